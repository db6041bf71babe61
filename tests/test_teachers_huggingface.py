"""Models of the Hugging Face Hub as sources: what is fetched, when, and what is said of mistakes.

A Hub on this machine serves them (hugging_hub.py); huggingface_hub itself fetches and caches.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hugging_hub import SHAPE, Hub, equal, weights, write_model

from s3prl_ekd import doctor
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate import models
from s3prl_ekd.student_checkpoint import load_student
from s3prl_ekd.teachers import sources
from s3prl_ekd.teachers.fingerprint import weights_digest
from s3prl_ekd.teachers.stand_ins import random_encoder
from s3prl_ekd.teachers.writers import write_converted


def test_no_more_is_fetched_than_makes_a_teacher(hugging_hub: Hub, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    commit = hugging_hub.publish("me/model", folder)
    found = sources.describe("hf:me/model")
    assert hugging_hub.asked == ["config.json", "preprocessor_config.json"]  # of the weights nothing yet
    assert (found.kind, found.family, found.shape) == ("huggingface", "hubert", sources.describe(str(folder)).shape)
    assert found.pinned == f"hf:me/model@{commit}"
    assert sources.weights_path(found, "x", download=False) is None
    assert equal(weights("hf:me/model"), weights(str(folder)))
    assert hugging_hub.asked[2:] == ["model.safetensors"]
    assert sources.weights_path(found, "x", download=False) == found.path
    # the same weights, whatever else the owner's folder holds
    assert weights_digest(found, "x", download=False) == weights_digest(sources.describe(str(folder)), "x", False)
    assert sources.describe("random:hf:me/model").shape == found.shape
    assert len(hugging_hub.asked) == 3


def test_the_newest_commit_is_taken_and_a_pinned_one_stays(hugging_hub: Hub, tmp_path: Path) -> None:
    first = hugging_hub.publish("me/model", write_model(tmp_path / "one", seed=0))
    old = weights("hf:me/model")
    second = hugging_hub.publish("me/model", write_model(tmp_path / "two", seed=1))
    hugging_hub.publish("me/model", tmp_path / "one", branch="v1.0")
    new = weights("hf:me/model")
    assert equal(new, weights(str(tmp_path / "two"))) and not equal(new, old)
    assert sources.describe("hf:me/model").pinned == f"hf:me/model@{second}"
    assert equal(weights("hf:me/model@v1.0"), old)
    assert sources.describe("hf:me/model@v1.0").pinned == f"hf:me/model@{first}"
    assert sources.describe(f"hf:me/model@{first}").pinned == f"hf:me/model@{first}"
    assert equal(weights(f"hf:me/model@{first}"), old)


def test_a_checkpoint_file_of_a_repository_is_a_teacher(
    hugging_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the RobustHuBERT of the paper's authors is published."""
    from huggingface_hub import constants

    (tmp_path / "files").mkdir()
    file = write_converted(random_encoder(SHAPE.with_(padding_rule="fairseq"), seed=0), tmp_path / "files" / "best.pt")
    (tmp_path / "files" / "last.pt").write_text("another, of which nothing is asked")
    commit = hugging_hub.publish("me/robust", tmp_path / "files")
    source = "hf:me/robust/best.pt"
    row = doctor._teacher("a", source, [1], "k")
    assert row.state == "note" and row.todo == f"s3prl-ekd teachers {source}" and not hugging_hub.asked
    found = sources.describe(source)
    assert (found.kind, found.family, found.pinned) == ("huggingface", "hubert", f"{source}@{commit}")
    assert equal(weights(source), weights(str(file))) and hugging_hub.asked == ["best.pt"]
    assert weights_digest(found, "x", download=False) == weights_digest(sources.describe(str(file)), "x", False)
    assert doctor._teacher("a", source, [1], "k").state == "ok"
    for read in (load_student, lambda named: models.choose({"ckpt": named})):  # before the first run of a table
        with pytest.raises(EkdError, match=r"best.pt: not a checkpoint of `run_pretrain.py -u ekd`"):
            read(source)
    hugging_hub.stop()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for one in (source, found.pinned):
        assert sources.describe(one).pinned == f"{source}@{commit}"


def in_shards(folder: Path) -> None:
    import transformers

    transformers.AutoModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def in_torchs_format(folder: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("rewrite", [in_shards, in_torchs_format])
def test_weights_come_in_every_form_of_transformers(hugging_hub: Hub, tmp_path: Path, rewrite: object) -> None:
    folder = write_model(tmp_path / "model")
    expected = weights(str(folder))
    rewrite(folder)
    hugging_hub.publish("me/model", folder)
    assert equal(weights("hf:me/model"), expected)


def test_what_is_in_the_cache_needs_no_hub(hugging_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does what the Hub has said a repository lacks: here the extractor, and the better of two formats."""
    folder = write_model(tmp_path / "model")
    in_torchs_format(folder)
    (folder / "preprocessor_config.json").unlink()
    commit = hugging_hub.publish("me/model", folder)
    hugging_hub.publish("me/seen", folder)
    before = weights("hf:me/model")
    sources.describe("hf:me/seen")  # its configuration alone
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert equal(weights("hf:me/model"), before)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hugging_hub.stop()
    assert equal(weights(f"hf:me/model@{commit}"), before)  # is asked for nowhere
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for source, missing in (("hf:me/seen", "model.safetensors"), ("hf:me/never", "config.json")):
        with pytest.raises(EkdError) as error:
            weights(source)
        assert str(error.value) == (
            f"source: {source!r}: the Hugging Face Hub cannot be reached, and {missing} is not in its cache here; "
            f"on another machine run `hf download {source.removeprefix('hf:')} --local-dir DIR`, copy DIR here, and "
            "give DIR or the file in it instead"
        )
    with pytest.raises(EkdError, match="`hf download me/never --revision v1 --local-dir DIR`"):  # not the newest
        sources.describe("hf:me/never@v1")


def test_a_whole_download_needs_no_hub_either(
    hugging_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hf download OWNER/NAME` asks for what is there, so that nothing says what is not."""
    from huggingface_hub import constants

    folder = write_model(tmp_path / "model")
    in_torchs_format(folder)
    commit = hugging_hub.publish("me/model", folder)
    snapshot = Path(constants.HF_HUB_CACHE, "models--me--model", "snapshots", commit)
    shutil.copytree(folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    hugging_hub.stop()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert equal(weights("hf:me/model"), weights(str(folder)))
    (snapshot / "preprocessor_config.json").unlink()  # whether clips are to be normalised is not to be guessed
    with pytest.raises(EkdError, match="processor_config.json is not in its cache here"):
        sources.describe("hf:me/model")


MISTAKES = {
    "hf:me/none": "no such model, or a private one (`hf auth login`)",
    "hf:me/model@v9": "the model has no revision 'v9'",
    "hf:me/private": "no such model, or a private one (`hf auth login`)",
    "hf:me/gated": "its owner's terms are to be accepted first, on its page; then `hf auth login`",
    "hf:me/code": "'hf:me/code' has no config.json, so it is no transformers model; perhaps you mean: hf:me/code/a.pt",
    "hf:me/code/b.pt": "'hf:me/code/b.pt': the model has no such file; perhaps you mean: hf:me/code/a.pt",
    "hf:me/code/b.pt@main": "the model has no such file; perhaps you mean: hf:me/code/a.pt@main",
    "hf:me/code/a.pt": "hf/hub/models--me--code/snapshots/",  # the file, and what is wrong in it
    "hf:me/empty": "'hf:me/empty' has no weights (model.safetensors, model.safetensors.index.json, pytorch_model.bin, ",
    "hf:me/cut": "'hf:me/cut' has no model-2.safetensors, though model.safetensors.index.json names it",
    "hf:me/text": "model_type 'bert' is not supported as a teacher",
    "hf:me": "no such model, or a private one",
    "hf:": "the name is missing",
    "hf:me/model@": "the revision behind @ is missing",
    "hf:me/model/model.safetensors": "a transformers model is named by its repository: hf:me/model",
    "hf:me/": "expected hf:OWNER/NAME or hf:OWNER/NAME/FILE, and perhaps @REVISION",
    "hf:me/model/": "expected hf:OWNER/NAME or hf:OWNER/NAME/FILE, and perhaps @REVISION",
    "hf:me/code/./a.pt": "expected hf:OWNER/NAME or hf:OWNER/NAME/FILE, and perhaps @REVISION",
    "hf:me/code/../a.pt": "expected hf:OWNER/NAME or hf:OWNER/NAME/FILE, and perhaps @REVISION",
    "random:hf:me//model": "expected hf:OWNER/NAME or hf:OWNER/NAME/FILE, and perhaps @REVISION",
    "me/model": "the model of that name on huggingface.co is 'hf:me/model'",
}


def test_every_mistake_is_one_line_with_its_key(hugging_hub: Hub, tmp_path: Path) -> None:
    hugging_hub.publish("me/model", write_model(tmp_path / "model"))
    hugging_hub.closed = {"me/private": (401, "RepoNotFound"), "me/gated": (403, "GatedRepo")}
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "modeling.py").write_text("raise SystemExit")
    (tmp_path / "code" / "a.pt").write_text("a note")
    hugging_hub.publish("me/code", tmp_path / "code")
    (write_model(tmp_path / "empty") / "model.safetensors").unlink()
    hugging_hub.publish("me/empty", tmp_path / "empty")
    cut = write_model(tmp_path / "cut")
    (cut / "model.safetensors").rename(cut / "model-1.safetensors")
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (cut / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    hugging_hub.publish("me/cut", cut)
    text = write_model(tmp_path / "text")
    config = json.loads((text / "config.json").read_text())
    (text / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    hugging_hub.publish("me/text", text)
    where = "my.yaml: ekd.teachers[0].source"
    for source, expected in MISTAKES.items():
        with pytest.raises(EkdError) as error:
            sources.load(sources.describe(source, where), where)
        said = str(error.value)
        assert said.startswith(f"{where}: ") and said.count(where) == 1 and expected in said, f"{source}\n{said}"
        assert "\n" not in said
