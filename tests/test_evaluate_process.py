"""A native command as a child process: its progress and its errors."""

from __future__ import annotations

import sys
import textwrap

import pytest

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate import process


def test_progress_is_read_from_bars_and_prints(tmp_path):
    seen = []
    code = textwrap.dedent(
        """
        import sys
        sys.stderr.write("\\roverall:   0%|          | 0/40 [00:00<?, ?it/s]")
        sys.stderr.write("\\roverall:  25%|##5       | 10/40 [00:10<00:30,  1.00s/it]")
        sys.stderr.write("\\n\\rtrain:  50%|#####     | 2/4 [00:00<00:00]\\x1b[A")
        sys.stderr.flush()
        print("dev per: 0.75", flush=True)
        """
    )
    (tmp_path / "x.py").write_text(code)
    output, _ = process.run_logged(
        [sys.executable, str(tmp_path / "x.py")], tmp_path / "x.log", lambda p: seen.append((p.step, p.total, p.score))
    )
    assert seen[-1] == (10, 40, "dev per 0.75")
    assert output == "dev per: 0.75"
    assert "%|" not in (tmp_path / "x.log").read_text()


def test_our_own_error_line_is_the_message(tmp_path):
    code = "import sys; print('noise'); sys.stderr.write('error: config_model.yaml: ekd.mode: bad\\n'); sys.exit(2)"
    with pytest.raises(EkdError, match=r"x\.log: config_model\.yaml: ekd\.mode: bad$"):
        process.run_logged([sys.executable, "-c", code], tmp_path / "x.log")
