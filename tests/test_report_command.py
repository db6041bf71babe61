"""``s3prl-ekd report``: the page and the figures that it writes, and those of an earlier one in their place."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys

import pytest
from report_lab import write_evaluation, write_pretraining

from s3prl_ekd.cli import main
from s3prl_ekd.report.earlier import names_of


@pytest.fixture
def pretraining(tmp_path):
    return write_pretraining(tmp_path / "ekd <demo>")


@pytest.fixture
def evaluation(tmp_path):
    return write_evaluation(tmp_path / "student")


def test_the_command_writes_page_and_figures(pretraining, evaluation, tmp_path, capsys):
    out = tmp_path / "out" / "report.html"
    assert main(["report", str(pretraining), str(evaluation), "--out", str(out)]) == 0
    assert out.read_text().startswith("<!doctype html>")
    assert {file.suffix for file in (tmp_path / "out" / "report").iterdir()} == {".png"}
    assert "student & co" in capsys.readouterr().out
    (tmp_path / "folder.html").mkdir()
    for wrong in ("folder.html", "figures", "report.png"):  # figures/ is where the figures of figures.html go
        assert main(["report", str(pretraining), "--out", str(tmp_path / wrong)]) == 2
        assert f"{wrong}: expected a file that ends in .html" in capsys.readouterr().err
        assert not (tmp_path / wrong).is_file()
    (tmp_path / "taken").touch()
    assert main(["report", str(pretraining), "--out", str(tmp_path / "taken.html")]) == 2
    printed = capsys.readouterr()
    taken = tmp_path / "taken"
    assert f"--out {taken}.html: its figures go into {taken}, which is no folder" in printed.err and not printed.out


def test_a_locale_without_arrows_costs_neither_table_nor_page(pretraining, evaluation, tmp_path):
    """LANG=en_US is ISO-8859-1 on many clusters; evaluate's tables came after the training."""
    config = pretraining / "config_model.yaml"
    config.write_text(config.read_text() + "# zum Üben\n", encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; from s3prl_ekd.cli import command\n"
        "from s3prl_ekd.evaluate.records import write_markdown\n"
        "from s3prl_ekd.evaluate.scores_file import read_scores\n"
        "folder = Path(sys.argv[2]); write_markdown([read_scores(folder)], folder); sys.exit(command())"
    )
    out = tmp_path / "r.html"
    words = [sys.executable, "-c", code, "report", str(evaluation), str(pretraining), "--out", str(out)]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(words, env={**os.environ, **ascii_only}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "PER" in done.stdout and "zum Üben" in out.read_text(encoding="utf-8")
    assert "PR PER ↓" in (evaluation / "scores.md").read_text(encoding="utf-8")


def test_without_figures_there_is_no_folder_of_them(evaluation, tmp_path, capsys):
    shutil.rmtree(evaluation / "runs")
    assert main(["report", str(evaluation), "--out", str(tmp_path / "r.html")]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == str(tmp_path / "r.html")
    assert not (tmp_path / "r").exists()


def test_a_report_removes_the_figures_of_the_one_whose_place_it_takes(pretraining, evaluation, tmp_path):
    old = pretraining.rename(pretraining.with_name('old & 50% "run"'))
    new = shutil.copytree(old, old.with_name("new"))
    out, figures = tmp_path / "out" / "my report.html", tmp_path / "out" / "my report"

    def report(*folders):
        assert main(["report", *map(str, folders), "--out", str(out)]) == 0
        return {file.name for file in figures.iterdir()}

    before = report(old, evaluation)
    assert {f"{old.name}-loss.png", "layer-weights.png"} <= before
    (figures / "mine.png").write_bytes((figures / f"{old.name}-loss.png").read_bytes())  # a copy under another name
    (figures / "layer-weights.png").write_bytes(b"with arrows")  # edited
    (figures / "notes.txt").touch()
    mine = {"mine.png", "layer-weights.png", "notes.txt"}
    assert report(new) == {"new-loss.png", "new-loss-per-head.png"} | mine
    assert report(new) == {"new-loss.png", "new-loss-per-head.png"} | mine
    assert (figures / "layer-weights.png").read_bytes() == b"with arrows"
    # a page of somebody else, and one that names what lies elsewhere
    theirs = tmp_path / "theirs" / "x.png"
    theirs.parent.mkdir()
    theirs.write_bytes(b"theirs")
    element = names_of([theirs]).replace("theirs/x.png", "../theirs/x.png")
    for text in ("<html>", element, element.replace("../theirs", str(theirs.parent))):
        out.write_text(text)
        assert report(evaluation) >= mine | {"new-loss.png"}
    assert theirs.is_file()


def test_a_full_disk_costs_neither_the_earlier_page_nor_its_figures(pretraining, evaluation, tmp_path, monkeypatch):
    page, link = tmp_path / "pages" / "r.html", tmp_path / "link.html"
    page.parent.mkdir()
    link.symlink_to(page)
    assert main(["report", str(pretraining), "--out", str(link)]) == 0
    assert link.is_symlink()
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    def full(file, text, **more):
        file.write_bytes(text.encode()[:10])
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    write = type(page).write_bytes
    monkeypatch.setattr("pathlib.Path.write_text", full)
    assert main(["report", str(evaluation), "--out", str(link)]) == 2
    assert {file: file.read_bytes() for file in before} == before

    def full_too(file, data):
        write(file, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr("pathlib.Path.write_bytes", full_too)  # figures of the same names
    assert main(["report", str(pretraining), "--out", str(link)]) == 2
    assert {file: file.read_bytes() for file in before} == before
