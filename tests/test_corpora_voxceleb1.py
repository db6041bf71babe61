"""``prepare voxceleb1`` on a miniature."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from corpora_lab import prepare

from s3prl_ekd.corpora.voxceleb1 import prepare_voxceleb1
from s3prl_ekd.errors import EkdError


def test_voxceleb1_split_file_is_checked_against_the_wavs(
    voxceleb1: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root, split), out = voxceleb1, tmp_path / "data"
    assert prepare("voxceleb1", root, "--out", out) == 2
    assert "--split-file is missing" in capsys.readouterr().err
    assert prepare("voxceleb1", root, "--split-file", split, "--out", out) == 0
    data = yaml.safe_load((out / "sid.yaml").read_text())["downstream_expert"]["datarc"]
    assert data["file_path"] == str(root)
    assert Path(data["meta_data"]).read_text() == split.read_text()

    split.write_bytes(b"\xef\xbb\xbf" + split.read_bytes().replace(b"\n", b"\r\n"))  # as Windows editors save it
    assert prepare("voxceleb1", root, "--split-file", split, "--out", out) == 0
    assert Path(data["meta_data"]).read_bytes() == split.read_bytes()[3:].replace(b"\r\n", b"\n")

    split.write_text(split.read_text("utf-8-sig") + "1 id10003/gone/1.wav\n1 id10003/gone/2.wav\n")
    assert prepare("voxceleb1", root, "--split-file", split, "--out", out) == 2
    assert "2 of 8 files are not below" in capsys.readouterr().err
    assert prepare("voxceleb1", root, "--split-file", split, "--out", out, "--allow-missing") == 0
    assert "gone" not in Path(data["meta_data"]).read_text()
    split.write_text("1 id10001/a/b.wav\n3 id10001/a/b.wav\n")
    assert prepare("voxceleb1", root, "--split-file", split, "--out", out) == 2
    assert f"{split}:2: id10001/a/b.wav is listed twice, first in line 1" in capsys.readouterr().err
    for line in ("4 id10001/a/b.wav", "1 id10001/b.wav", "1 id11252/a/b.wav"):
        split.write_text(line + "\n")
        assert prepare("voxceleb1", root, "--split-file", split, "--out", out) == 2
        assert f"{split}:1: " in capsys.readouterr().err


def test_voxceleb1_speakers_without_training_clips_are_noted(
    voxceleb1: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, split = voxceleb1
    assert prepare("voxceleb1", root, "--split-file", split, "--out", tmp_path / "data") == 0
    assert "cannot be identified" not in capsys.readouterr().out
    split.write_text(split.read_text().replace("1 id10002", "2 id10002"))
    assert prepare("voxceleb1", root, "--split-file", split, "--out", tmp_path / "data") == 0
    printed = capsys.readouterr().out
    for part in ("dev", "test"):
        assert f"sid: 1 speakers of {part} are not in train and cannot be identified: id10002\n" in printed


def test_the_closing_table_counts_what_the_corpus_holds(voxceleb1: tuple[Path, Path], tmp_path: Path) -> None:
    root, split = voxceleb1
    split.write_text(split.read_text() + "1 id10003/gone/1.wav\n")
    result = prepare_voxceleb1(root, tmp_path / "data", split, allow_missing=True)
    assert (result.splits, result.utterances) == (("train", "dev", "test"), (2, 2, 2))
    assert result.minutes == pytest.approx(6 * 4000 / 16_000 / 60) and result.speakers == 2
    assert result.notes == ("1 of 7 files of iden_split.txt left out: not there",)
    with pytest.raises(EkdError, match="no dev/wav or test/wav folder in it; expected VoxCeleb1"):
        prepare_voxceleb1(tmp_path, tmp_path / "data", split)
    split.write_text("".join(line for line in split.read_text().splitlines(True) if line[0] != "2"))
    with pytest.raises(EkdError, match=r"no file of part 2 \(1 train, 2 dev, 3 test\) is below"):
        prepare_voxceleb1(root, tmp_path / "data", split, allow_missing=True)
