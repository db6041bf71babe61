"""Manifests: where audio is found, which tasks are chosen, and errors that name file and line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_ekd.corpora.manifest import check_tasks, choose_tasks, read_manifest
from s3prl_ekd.corpora.probe import probe
from s3prl_ekd.errors import EkdError


def write(file: Path, header: list[str], *rows: list[str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join("\t".join(row) for row in (header, *rows)) + "\n", encoding="utf-8")
    return file


def tone(file: Path, seconds: float = 0.5, rate: int = 16000, channels: int = 1) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.1 * np.sin(np.arange(int(seconds * rate)) * 0.05)
    soundfile.write(file, np.stack([wave] * channels, axis=1), rate)
    return file


def test_paths_relative_to_the_folder_its_parent_or_absolute(tmp_path: Path) -> None:
    here = tone(tmp_path / "set" / "a.flac")
    above = tone(tmp_path / "set" / "sub" / "b.flac")
    elsewhere = tone(tmp_path / "other" / "c.flac")
    file = write(tmp_path / "set" / "manifest.tsv", ["path"], ["a.flac"], ["set/sub/b.flac"], [str(elsewhere)])
    assert [row.audio for row in read_manifest(file).rows] == [here, above, elsewhere]
    assert [row.line for row in read_manifest(file.parent).rows] == [2, 3, 4]
    moved = write(tmp_path / "x" / "y" / "manifest.tsv", ["path"], ["a.flac"])
    assert read_manifest(moved, root=here.parent).rows[0].audio == here
    odd = tone(tmp_path / "set" / "~a.flac")  # nobody's home
    assert read_manifest(write(file, ["path"], ["~a.flac"])).rows[0].audio == odd


def test_blank_lines_count_as_lines(tmp_path: Path) -> None:
    file = tmp_path / "manifest.tsv"
    file.write_text("path\tsplit\tspeaker\n\n\na\ttrain\ts\n\nb\teval\ts\n")
    assert [row.line for row in read_manifest(file).rows] == [4, 6]
    with pytest.raises(EkdError, match=r"manifest\.tsv:6: split 'eval'"):
        check_tasks(read_manifest(file), ["sid"])


@pytest.mark.parametrize(
    ("columns", "rows", "tasks"),
    [
        (["path", "fold", "speaker", "emotion"], [["a", "1", "s", "sad"]], ("er",)),
        (["path", "split", "speaker", "text"], [["a", "train", "s", "x"], ["b", "test", "t", "x"]], ("pr", "asr")),
        (
            ["path", "split", "speaker", "text"],
            [["a", "train", "s", "x"], ["b", "train", "t", "x"], ["c", "test", "t", "x"]],
            ("sid",),
        ),
        (
            ["path", "split", "speaker", "text", "phones"],
            [["a", "train", "s", "x", ""], ["b", "train", "t", "x", ""], ["c", "test", "t", "x", ""]],
            ("pr", "asr"),
        ),
        (["path", "split", "speaker", "text"], [["a", "train", "s", "x"], ["c", "test", "s", "x"]], ("pr", "asr")),
        (["path", "speaker"], [["a", "s"]], ("pretrain",)),
    ],
)
def test_tasks_follow_from_columns_and_speakers(
    tmp_path: Path, columns: list[str], rows: list[list[str]], tasks: tuple[str, ...]
) -> None:
    manifest = read_manifest(write(tmp_path / "manifest.tsv", columns, *rows))
    chosen, why = choose_tasks(manifest)
    assert chosen == tasks
    assert why


@pytest.mark.parametrize(
    ("text", "task", "message"),
    [
        ("path\n", "pretrain", "no rows"),
        ("file\tsplit\na\ttrain\n", "pretrain", "no column 'path'"),
        ("path\tsplit\na\ttrain\n", "sid", "needs column speaker"),
        ("path\tsplit\tspeaker\na\teval\ts\n", "sid", "manifest.tsv:2: split 'eval'"),
        ("path\tsplit\tspeaker\na\ttrain\t\n", "sid", "manifest.tsv:2: speaker is empty"),
        ("path\tsplit\tspeaker\na\ttrain\ts\nb\ttest\ts\n", "sid", "no utterance in split dev"),
        ("path\tsplit\n\ttrain\n", "sid", "manifest.tsv:2: path is empty"),
        ("path\ttext\na.wav\tHELLO\tWORLD\n", "pretrain", "manifest.tsv:2: 'WORLD' is beyond the header's columns"),
        ("path\tspeaker\tspeaker\na\ts\tt\n", "pretrain", "manifest.tsv:1: column 'speaker' appears twice"),
        ("path\na.wav\0\n", "pretrain", "manifest.tsv:2: path 'a.wav.x00': not a possible file name"),
        ("path\tkind\na.wav\tnoise\n", "pretrain", "list of noises"),
        (
            f"path\ttext\na.wav\t{'A' * 200_000}\n",
            "pretrain",
            "manifest.tsv: cannot be read as a tab-separated manifest",
        ),
    ],
)
def test_errors_name_the_line(tmp_path: Path, text: str, task: str, message: str) -> None:
    (tmp_path / "manifest.tsv").write_text(text)
    with pytest.raises(EkdError, match=message) as caught:
        check_tasks(read_manifest(tmp_path / "manifest.tsv"), [task])
    assert "\n" not in str(caught.value)


def test_empty_cells_beyond_the_header_are_nothing(tmp_path: Path) -> None:
    """As spreadsheets write them."""
    (tmp_path / "manifest.tsv").write_text("path\tsplit\t\t\na.wav\ttrain\t\t\t \t\n")
    assert read_manifest(tmp_path / "manifest.tsv").rows[0].path == "a.wav"


def test_bad_audio_is_named_with_its_line_or_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = tone(tmp_path / "good.flac", seconds=2)
    cut = tmp_path / "cut.flac"
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])  # sound header, half the data
    (tmp_path / "empty.wav").write_bytes(b"")
    tone(tmp_path / "blip.wav", seconds=0.02)
    soundfile.write(tmp_path / "nan.wav", np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    (tmp_path / "bare.raw").write_bytes(good.read_bytes())
    names = ["good.flac", "cut.flac", "empty.wav", "gone.wav", "blip.wav", "nan.wav", "bare.raw", "good.flac"]
    file = write(tmp_path / "manifest.tsv", ["path"], *([name] for name in names))
    for bad, reason in [
        ("cut.flac", "damaged"), ("empty.wav", "empty"), ("gone.wav", "no such"),
        ("blip.wav", "0.05 s is the least"), ("nan.wav", "NaN"), ("bare.raw", "cannot be read as audio"),
    ]:  # fmt: skip
        one = write(tmp_path / "one.tsv", ["path"], ["good.flac"], [bad])
        with pytest.raises(EkdError, match=rf"one.tsv:3: .*{bad}.*{reason}"):
            probe(read_manifest(one))
    with pytest.raises(EkdError, match="6 more rows"):
        probe(read_manifest(file))
    clips = probe(read_manifest(file), skip_bad=True)
    assert [clip.row.path for clip in clips] == ["good.flac"]
    assert "7 of 8 rows left out" in caplog.text


def test_one_file_under_two_names_is_no_second_clip(tmp_path: Path) -> None:
    """Else the same audio could be in train and test."""
    tone(tmp_path / "a.flac")
    (tmp_path / "b.flac").symlink_to("a.flac")
    (tmp_path / "there").symlink_to(tmp_path)
    for other, reason in [
        ("a.flac", "listed twice, first in line 2"),
        ("./x/../a.flac", "the same file as a.flac in line 2"),
        ("b.flac", "the same file as a.flac in line 2"),
        ("there/a.flac", "the same file as a.flac in line 2"),
    ]:
        (tmp_path / "x").mkdir(exist_ok=True)
        manifest = read_manifest(write(tmp_path / "manifest.tsv", ["path"], ["a.flac"], [other]))
        with pytest.raises(EkdError) as caught:
            probe(manifest)
        assert str(caught.value) == f"{manifest.file}:3: {other} is {reason} (--skip-bad leaves it out)"
        assert [clip.row.path for clip in probe(manifest, skip_bad=True)] == ["a.flac"]


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path / "manifest.tsv", ["path"], ["gone.wav"])
    with pytest.raises(EkdError, match="no readable audio"):
        probe(read_manifest(file), skip_bad=True)
