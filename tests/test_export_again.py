"""A Hugging Face folder that is exported once more: what was told or edited stays, or the export is refused."""

from __future__ import annotations

import json
import logging
import subprocess
from pathlib import Path

import pytest
from export_student import export_hf, student_record, write_student

from s3prl_ekd.cli import main
from s3prl_ekd.errors import EkdError
from s3prl_ekd.export import cards
from s3prl_ekd.export.huggingface import export_huggingface


def test_a_folder_of_somebody_else_stays(checkpoint: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "whisper"
    theirs.mkdir()
    for name in ("config.json", "README.md", "expert.py", "model.pt"):
        (theirs / name).write_text("mine")
    for kind in ("hf", "superb"):
        assert main(["export", kind, "--ckpt", str(checkpoint), "--out", str(theirs)]) == 2
    assert {file.read_text() for file in theirs.iterdir()} == {"mine"}
    ours = tmp_path / "ours"
    export_huggingface(checkpoint, ours)
    assert (ours / "LICENSE").is_file()
    export_huggingface(checkpoint, ours, licence="cc-by-nc-4.0")  # an earlier export is written over
    assert not (ours / "LICENSE").exists()


def test_an_earlier_card_keeps_what_is_not_said_again(checkpoint: Path, tmp_path: Path, caplog) -> None:
    """The documented order: export with everything, look at it, push."""
    out, card = tmp_path / "out", tmp_path / "out" / "README.md"
    other = write_student(tmp_path / "other" / "states-1.ckpt", seed=9)
    everything = ("--training-data", "other corpus", "--licence", "mit")
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps(student_record(checkpoint)))
    mine = ("--training-data", "my corpus", "--licence", "cc-by-4.0", "--scores", str(scores))
    assert export_hf(checkpoint, out, *mine) == 0
    rich = card.read_text()
    caplog.set_level(logging.INFO)
    assert export_hf(checkpoint, out) == 0
    assert card.read_text() == rich
    assert not (out / "LICENSE").exists()
    assert export_hf(checkpoint, out, "--training-data", "another corpus") == 0
    assert card.read_text().splitlines()[:-1] == rich.replace("my corpus", "another corpus").splitlines()[:-1]

    (out / "LICENSE").write_text("mine")
    weights = (out / "model.safetensors").read_bytes()
    made = next(line for line in rich.splitlines() if "made with s3prl-ekd" in line)
    for edited in (f"{rich}\nMine.\n", rich.replace("# Dist", "# My dist"), rich.replace(made, f"{made}, mended")):
        card.write_text(edited)
        caplog.clear()
        assert export_hf(checkpoint, out) == 0
        assert f"{card}: stays as it is: the weights are the same" in caplog.text
        for words in (("--training-data", "third corpus"), ("--scores", str(scores))):
            assert export_hf(checkpoint, out, *words) == 2
        # which cannot be given for these weights
        assert export_hf(other, out) == export_hf(other, out, *everything) == 2
        assert card.read_text() == edited and (out / "LICENSE").read_text() == "mine"
        assert (out / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("heading", ["Scores", "Model"])
def test_headings_in_the_users_words_are_theirs(checkpoint: Path, tmp_path: Path, heading: str) -> None:
    """They were taken for the card's own: with each further export the card grew, or its data lost their end."""
    words = f"all of it\n\n## {heading}\n\nmine"
    (tmp_path / "scores.json").write_text(json.dumps(student_record(checkpoint)))
    for scores in (None, tmp_path / "scores.json"):
        out = tmp_path / f"out{scores is None}"
        export_huggingface(checkpoint, out, data=words, scores=scores)
        card = (out / "README.md").read_text()
        assert cards.card_facts(card).data == words
        export_huggingface(checkpoint, out)
        assert (out / "README.md").read_text() == card


def test_a_card_is_no_poorer_for_an_export_of_the_folder_itself(checkpoint: Path, tmp_path: Path, capfd) -> None:
    """A transformers folder does not know how its student was trained; where it came first, its card becomes richer."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert export_hf(checkpoint, first, "--training-data", "my corpus") == 0
    rich = (first / "README.md").read_text()
    assert export_hf(first, first) == 0
    assert export_hf(first, first, "--licence", "cc-by-4.0") == 2
    assert "says how the student was trained, which --ckpt does not" in capfd.readouterr().err
    assert (first / "README.md").read_text() == rich
    assert export_hf(first, second, "--training-data", "my corpus") == 0
    assert (second / "README.md").read_text() != rich
    assert export_hf(checkpoint, second) == 0
    assert (second / "README.md").read_text() == rich


def test_a_config_that_was_edited_is_never_written_over(checkpoint: Path, tmp_path: Path, caplog, capfd) -> None:
    """As an edited card: it stays while the weights are the same, and is refused where they are others."""
    out, other = tmp_path / "out", write_student(tmp_path / "other" / "states-1.ckpt", seed=9)
    caplog.set_level(logging.INFO)
    assert export_hf(checkpoint, out, "--training-data", "my corpus") == 0
    written = {name: (out / name).read_text() for name in ("config.json", "preprocessor_config.json")}
    for name, key, value in (
        ("config.json", "hidden_dropout", 0.25),
        ("config.json", "id2label", {"0": "yes"}),
        ("preprocessor_config.json", "note", "mine"),
    ):
        file, whole = out / name, {other: text for other, text in written.items() if other != name}
        edited = json.dumps(json.loads(written[name]) | {key: value})
        file.write_text(edited)
        caplog.clear()
        for more in ([], ["--training-data", f"corpus of {key}"]):
            assert export_hf(checkpoint, out, *more) == 0
            assert file.read_text() == edited and f"{file}: stays as it is: it was edited" in caplog.text
        assert export_hf(out, out) == 0 and file.read_text() == edited
        assert {other: (out / other).read_text() for other in whole} == whole
        before = {path: path.read_bytes() for path in out.iterdir()}
        capfd.readouterr()
        assert export_hf(other, out, "--training-data", "other corpus") == 2
        message = f"error: {file}: was edited, or another version wrote it, for other weights; name another folder\n"
        assert capfd.readouterr().err.endswith(message)
        assert {path: path.read_bytes() for path in out.iterdir()} == before
        file.write_text(written[name])
    # a folder that is exported onto itself does not know the dropout, and keeps it
    assert json.loads(written["config.json"])["hidden_dropout"] > 0
    caplog.clear()
    assert export_hf(out, out) == 0 and "config.json" not in caplog.text
    assert (out / "config.json").read_text() == written["config.json"]
    assert export_hf(other, out, "--training-data", "other corpus") == 0
    # what another version wrote is replaced where it is known to be that version's
    file, card = out / "config.json", out / "README.md"
    earlier = file.read_text().replace('"layerdrop": 0.0', '"layerdrop": 0.5')
    text = cards._SEAL.sub("", card.read_text()).replace(cards.digest(file.read_text()), cards.digest(earlier))
    file.write_text(earlier)
    card.write_text(cards._sealed(text))
    assert export_hf(other, out) == 0 and '"layerdrop": 0.0' in file.read_text()


def test_a_kill_leaves_no_card_beside_other_weights(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    """The next export would find its weights there and keep the card, which is of others."""
    out, other = tmp_path / "out", write_student(tmp_path / "other" / "states-1.ckpt", seed=9)
    export_huggingface(checkpoint, out, data="my corpus")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("s3prl_ekd.export.huggingface.cards.huggingface_card", killed)
        export_huggingface(other, out, data="other corpus")
    with pytest.raises(EkdError, match="is not empty and holds no earlier export"):
        export_huggingface(other, out)
    assert not (out / "README.md").exists()


@pytest.mark.parametrize(("kind", "last"), [("hf", "huggingface.write_license"), ("superb", "superb.write_license")])
def test_a_first_export_that_was_cut_can_be_made_again(
    checkpoint: Path, tmp_path: Path, monkeypatch, kind: str, last: str
) -> None:
    """The same call was refused: the folder held a part of it, and no card yet."""
    out, words = tmp_path / "out", ["export", kind, "--ckpt", str(checkpoint), "--out", str(tmp_path / "out")]

    def killed(*_: object) -> None:
        for path in out.glob("README.md"):
            path.unlink()
        (out / f".model.tmp-{dead.pid}").write_text("a part")
        raise KeyboardInterrupt

    dead = subprocess.Popen(["true"])
    dead.wait()
    with monkeypatch.context() as patch:
        patch.setattr(f"s3prl_ekd.export.{last}", killed)
        assert main(words) == 130
    other = {"hf": "superb", "superb": "hf"}[kind]
    assert main(["export", other, *words[2:]]) == 2  # its files would stand beside these
    assert main(words) == 0
    again = {path.name for path in out.iterdir()}
    assert "README.md" in again and not [name for name in again if name.startswith(".")]
    (out / "README.md").unlink()  # a whole one is told by its card, as ever
    assert main(words) == 2


def test_a_card_of_other_weights_is_not_made_poorer(checkpoint: Path, tmp_path: Path, capfd) -> None:
    out, other = tmp_path / "out", write_student(tmp_path / "other" / "states-1.ckpt", seed=9)
    assert export_hf(checkpoint, out, "--training-data", "my corpus", "--licence", "cc-by-4.0") == 0
    before = {file: file.read_bytes() for file in out.iterdir()}
    capfd.readouterr()
    assert export_hf(other, out) == 2
    told = capfd.readouterr().err
    assert f"--out {out}: holds other weights, and its README.md has details that this call" in told
    assert "add --licence, --training-data, or name another folder" in told
    assert {file: file.read_bytes() for file in out.iterdir()} == before
    assert export_hf(other, out, "--training-data", "other corpus", "--licence", "mit") == 0
    card = (out / "README.md").read_text()
    assert "other corpus" in card and "my corpus" not in card and "license: mit" in card
    # a licence of mit is what an export says by itself
    assert export_hf(checkpoint, out, "--training-data", "x") == 0
