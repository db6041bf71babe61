"""Models of the Hugging Face Hub as teachers and as students, from a Hub that this file serves on this machine.

huggingface_hub itself fetches and caches; only its endpoint and its cache's folder are the test's.
"""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from console import command
from export_student import student_record
from hugging_hub import Hub
from pretrain_lab import STUDENT, final_weights, new_run, run

from s3prl_ekd import doctor
from s3prl_ekd.bridge import downstream_arguments, downstream_launch, pretrain_configs
from s3prl_ekd.bridge.interrupts import Run
from s3prl_ekd.checked import read_yaml
from s3prl_ekd.config import DataConfig, load_model_config
from s3prl_ekd.data.lengths import LengthTable
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate import models
from s3prl_ekd.evaluate.cost import upstream_cost
from s3prl_ekd.evaluate.inputs import model_digest
from s3prl_ekd.export.huggingface import export_huggingface
from s3prl_ekd.student_checkpoint import is_student, load_student, newest_checkpoint
from s3prl_ekd.teachers import sources
from s3prl_ekd.teachers.build import check_teachers
from s3prl_ekd.teachers.fingerprint import Fingerprint, difference, fingerprint, weights_digest
from s3prl_ekd.teachers.stand_ins import TINY, random_encoder
from s3prl_ekd.teachers.writers import write_converted, write_transformers
from s3prl_ekd.torch_file import read_torch_file

SHAPE = TINY.with_(layers=2)
FIRST = ("-o", "config.runner.total_steps=4,,config.runner.save_step=2")


@pytest.fixture
def hugging_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that this process, and the commands that it starts, find in place of huggingface.co; its cache is empty."""
    from huggingface_hub import constants

    served = Hub()
    cache = tmp_path / "hf" / "hub"
    monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    yield served
    served.stop()


def write_model(folder: Path, seed: int = 0) -> Path:
    """A repository as they are: a model, and beside it what no teacher needs."""
    write_transformers(random_encoder(SHAPE, seed=seed), folder)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "tf_model.h5").write_bytes(b"weights of another library")
    return folder


def weights(source: str) -> dict[str, torch.Tensor]:
    return sources.load(sources.describe(source)).state_dict()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


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
            f"elsewhere `hf download {source.removeprefix('hf:')} --local-dir DIR`, and give what is there instead"
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
    "hf:me/code": "'hf:me/code' has no config.json, so it is no transformers model; what may be meant: hf:me/code/a.pt",
    "hf:me/code/b.pt": "'hf:me/code/b.pt': the model has no such file; what may be meant: hf:me/code/a.pt",
    "hf:me/code/b.pt@main": "the model has no such file; what may be meant: hf:me/code/a.pt@main",
    "hf:me/code/a.pt": "hf/hub/models--me--code/snapshots/",  # the file, and what is wrong in it
    "hf:me/empty": "'hf:me/empty' has no weights (model.safetensors, model.safetensors.index.json, pytorch_model.bin, ",
    "hf:me/cut": "'hf:me/cut' has no model-2.safetensors, though model.safetensors.index.json names it",
    "hf:me/text": "model_type 'bert' is not supported as a teacher",
    "hf:me": "no such model, or a private one",
    "hf:": "the name is missing",
    "hf:me/model@": "the revision behind @ is missing",
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


@pytest.mark.slow
def test_a_run_keeps_the_commit_that_it_began_with(hugging_hub: Hub, lab: Path, tmp_path: Path) -> None:
    """In its checkpoint and its configuration, so that it goes on with the same weights, the Hub moved on or gone."""
    folder = write_transformers(random_encoder(TINY, seed=3), tmp_path / "model")
    commit = hugging_hub.publish("me/model", folder)
    start = hugging_hub.publish("me/start", write_model(tmp_path / "start"))
    values = {
        "base": "config_model.yaml",
        "ekd": {"teachers": [{"name": "theirs", "source": "hf:me/model", "layers": [2, 4]}],
                "initialise_from": "hf:me/start", "initialise_layers": [1, 2]},
        "student": STUDENT,
    }  # fmt: skip
    file = tmp_path / "hub.yaml"
    file.write_text(yaml.safe_dump(values))
    words = [str(file) if word.endswith("model.yaml") else word for word in new_run(lab, "run")]
    done = run(tmp_path, *words, *FIRST)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"teacher theirs: hf:me/model@{commit} (hubert, {TINY.layers} layers of {TINY.width})" in done.stderr
    kept = read_torch_file(newest_checkpoint(tmp_path / "run"))["Upstream_Config"]["ekd"]
    for ekd in (kept, read_yaml(tmp_path / "run" / "config_model.yaml")["ekd"]):
        assert ekd["teachers"][0]["source"] == f"hf:me/model@{commit}"
        assert ekd["initialise_from"] == f"hf:me/start@{start}"

    hugging_hub.publish("me/model", write_transformers(random_encoder(TINY, seed=4), tmp_path / "newer"))
    hugging_hub.stop()
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    going_on = [word.replace("run", "again") if word == "run" else word for word in words]
    done = run(tmp_path, *going_on, "-a", "-o", "config.runner.total_steps=8")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "not read: -c " in done.stderr and "hub.yaml" not in done.stderr  # -g names the same repositories
    local = tmp_path / "local.yaml"  # the same run with the folder itself as its teacher
    values["ekd"]["teachers"][0]["source"], values["ekd"]["initialise_from"] = str(folder), str(tmp_path / "start")
    local.write_text(yaml.safe_dump(values))
    words = [str(local) if word.endswith(".yaml") and "hub" in word else word for word in words]
    words = ["local" if word == "run" else word for word in words]
    assert run(tmp_path, *words, *FIRST).returncode == 0
    assert run(tmp_path, *words, "-a", "-o", "config.runner.total_steps=8").returncode == 0
    assert equal(final_weights(tmp_path / "again"), final_weights(tmp_path / "local"))


def test_a_cache_of_another_commit_is_refused_though_its_weights_are_not_here(hugging_hub: Hub, tmp_path: Path) -> None:
    """And that of its own commit is not, by whichever name."""
    data, table = DataConfig(libri_root=str(tmp_path), file_path=".", sets=["a"]), LengthTable([], np.array([], int))

    def made_from(source: str, download: bool = False) -> Fingerprint:
        teacher = {"name": "a", "source": source, "layers": [1]}
        config = load_model_config({"ekd": {"teachers": [teacher], "initialise_from": None}})
        return fingerprint(check_teachers(config), table, data, download)

    first = hugging_hub.publish("me/model", write_model(tmp_path / "one"))
    there = made_from("hf:me/model", download=True)
    shutil.rmtree(tmp_path / "hf")
    assert difference(there, made_from("hf:me/model"), some=True) is None
    second = hugging_hub.publish("me/model", write_model(tmp_path / "two", seed=1))
    assert difference(there, made_from(f"hf:me/model@{first}"), some=True) is None
    assert difference(there, made_from("hf:me/model"), some=True) == (
        f"the source of a (hf:me/model@{first} there, hf:me/model@{second} now)"
    )


def test_a_configuration_without_a_revision_is_that_of_the_run_with_one() -> None:
    kept = load_model_config("hubert").model_dump(mode="json")
    kept["ekd"]["teachers"][0]["source"] = f"hf:me/model@{'a' * 40}"
    given = load_model_config(kept)
    for written, expected in (
        ("hf:me/model", f"hf:me/model@{'a' * 40}"),
        ("hf:me/model@v1.0", "hf:me/model@v1.0"),
        ("hf:me/model/best.pt", "hf:me/model/best.pt"),
        ("hf:me/other", "hf:me/other"),
        ("hubert_base", "hubert_base"),
    ):
        given.ekd.teachers[0].source = written
        pretrain_configs.keep_commits(given, kept)
        assert given.ekd.teachers[0].source == expected


@pytest.mark.parametrize("upstream", ["ekd_teacher", "ekd_student"])
def test_a_head_keeps_the_commit_that_it_was_trained_on(hugging_hub: Hub, tmp_path: Path, upstream: str) -> None:
    commit = hugging_hub.publish("me/model", write_model(tmp_path / "one"))
    given = Namespace(upstream=upstream, upstream_ckpt="hf:me/model", upstream_model_config=None, hub="torch")
    downstream_arguments.check_upstream(given)
    kept = given.upstream_ckpt
    assert kept == f"hf:me/model@{commit}"
    hugging_hub.publish("me/model", write_model(tmp_path / "two", seed=1))
    hugging_hub.publish("me/model", tmp_path / "one", branch="v1.0")
    launch = downstream_launch.DownstreamLaunch(Run([]))
    for now, expected in (
        ("hf:me/model", kept),  # which by now would be another commit
        ("hf:me/model@v1.0", kept),
        (None, kept),
        (str(tmp_path / "one"), str(tmp_path / "one")),
    ):
        launch.args = Namespace(upstream_ckpt=now)
        saved = Namespace(upstream_ckpt=kept)
        launch._correct_saved(saved)
        assert saved.upstream_ckpt == expected
    assert downstream_arguments._same_file("upstream_ckpt", "hf:me/model", kept)
    assert downstream_arguments._same_file("upstream_ckpt", "hf:me/model@v1.0", kept)
    assert not downstream_arguments._same_file("upstream_ckpt", "hf:me/model@main", kept)  # which has moved on
    assert not downstream_arguments._same_file("upstream_ckpt", "hf:me/other", kept)
    assert not downstream_arguments._same_file("upstream_ckpt", "me/model", kept)
    assert not downstream_arguments._same_file("upstream_ckpt", f"hf:me/model@{'b' * 40}", kept)


def test_a_published_student_is_one_here(hugging_hub: Hub, tmp_path: Path, hub: object) -> None:
    folder = write_model(tmp_path / "student")
    commit = hugging_hub.publish("me/student", folder)
    assert not is_student("hf:me/student") and not hugging_hub.asked
    here = load_student(folder).encoder.state_dict()
    assert equal(load_student("hf:me/student").encoder.state_dict(), here)
    expert = hub.ekd_student(f"hf:me/student@{commit}")
    assert equal(expert.encoder.state_dict(), here)
    (row,) = models.choose_models([("ckpt", "hf:me/student")])
    assert (row.name, row.label, row.folder) == ("ekd_student", "me/student", "me-student")
    assert row.arguments() == ["-u", "ekd_student", "-k", f"hf:me/student@{commit}"]
    (beside,) = models.choose_models([("ckpt", f"mine={folder}")])
    assert upstream_cost(row) == upstream_cost(beside)
    teacher = models.choose({"teacher": "hf:me/student"})
    assert (teacher.label, teacher.checkpoint) == ("me/student", f"hf:me/student@{commit}")
    assert model_digest(row) == model_digest(teacher) is not None
    scores = tmp_path / "scores.json"  # of the row: of this commit, and not of the next
    scores.write_text(json.dumps(student_record(folder) | {"checkpoint_sha256": model_digest(row)}))
    export_huggingface(Path("hf:me/student"), tmp_path / "copy", scores=scores)
    assert "## Scores" in (tmp_path / "copy" / "README.md").read_text()
    newer = hugging_hub.publish("me/student", write_model(tmp_path / "newer", seed=1))
    with pytest.raises(EkdError, match=f"which is not what hf:me/student@{newer} is"):
        export_huggingface(Path("hf:me/student"), tmp_path / "x", scores=scores)
    with pytest.raises(EkdError, match="--ckpt hf:me/student: a student .* which s3prl's hubert_base does not read"):
        models.choose({"ckpt": "hf:me/student", "upstream": "hubert_base"})


def test_a_fine_tuned_published_student_is_a_student(hugging_hub: Hub, tmp_path: Path) -> None:
    """Its checkpoint (``-f``) has the weights, and where it began the shape."""
    commit = hugging_hub.publish("me/student", write_model(tmp_path / "student"))
    tuned = random_encoder(SHAPE, seed=1).state_dict()
    states = {
        "Args": Namespace(upstream="ekd_student", upstream_ckpt=f"hf:me/student@{commit}", downstream="emotion"),
        "Upstream": {f"encoder.{name}": value for name, value in tuned.items()},
    }
    torch.save(states, tmp_path / "states-2.ckpt")
    assert equal(load_student(tmp_path / "states-2.ckpt").encoder.state_dict(), tuned)


def test_a_checkpoint_of_a_run_is_published_as_it_is(hugging_hub: Hub, tmp_path: Path, checkpoint: Path) -> None:
    """With its heads; what is no student is refused by the option that names it."""
    (tmp_path / "files").mkdir()
    shutil.copy(checkpoint, tmp_path / "files" / "states-10.ckpt")
    write_converted(random_encoder(SHAPE.with_(padding_rule="fairseq"), seed=0), tmp_path / "files" / "best.pt")
    commit = hugging_hub.publish("me/run", tmp_path / "files")
    source = "hf:me/run/states-10.ckpt"
    assert is_student(source) and not is_student("hf:me/run/best.pt")
    assert equal(load_student(source).heads.state_dict(), load_student(checkpoint).heads.state_dict())
    (row,) = models.choose_models([("ckpt", source)])
    assert row.arguments() == ["-u", "ekd_student", "-k", f"{source}@{commit}"]
    (beside,) = models.choose_models([("ckpt", f"mine={checkpoint}")])
    assert upstream_cost(row) == upstream_cost(beside) and model_digest(row) is not None
    given = Namespace(upstream="ekd_student", upstream_ckpt=source, upstream_model_config=None, hub="torch")
    downstream_arguments.check_upstream(given)
    assert given.upstream_ckpt == f"{source}@{commit}"
    given.upstream_ckpt = "hf:me/run/best.pt"
    with pytest.raises(EkdError, match=r"^-k: .*best.pt: not a checkpoint of `run_pretrain.py -u ekd`"):
        downstream_arguments.check_upstream(given)


def test_doctor_says_whether_the_weights_are_here(hugging_hub: Hub, tmp_path: Path) -> None:
    hugging_hub.publish("me/model", write_model(tmp_path / "model"))
    found = doctor._teacher("a", "hf:me/model", [1, 2], "k")
    assert (found.state, found.found) == ("note", f"hf:me/model: hubert, 2 layers of {SHAPE.width}, not downloaded")
    weights("hf:me/model")
    found = doctor._teacher("a", "hf:me/model", [1, 2], "k")
    assert found.state == "ok" and ", downloaded, " in found.found


def test_doctor_downloads_no_checkpoint_file(hugging_hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    write_converted(random_encoder(SHAPE, seed=0), tmp_path / "files" / "best.pt")
    hugging_hub.publish("me/robust", tmp_path / "files")
    teacher = write_transformers(random_encoder(SHAPE, seed=0), tmp_path / "here")
    file = tmp_path / "model.yaml"
    listed = [{"name": "a", "source": str(teacher), "layers": [1]}]
    ekd = {"teachers": listed, "initialise_from": "hf:me/robust/best.pt"}
    file.write_text(yaml.safe_dump({"base": "config_model.yaml", "ekd": ekd}))
    *_, start = doctor.teachers(file)
    assert (start.what, start.state) == ("initialise_from", "note") and not hugging_hub.asked
    for wrong in ("hf:me//best.pt", "random:hf:me/mod el/best.pt"):
        found = doctor._teacher("a", wrong, [1], "k")
        assert found.state == "broken" and "expected hf:OWNER/NAME or hf:OWNER/NAME/FILE" in found.found


@pytest.mark.slow
def test_the_commands_take_a_model_of_the_hub(hugging_hub: Hub, tmp_path: Path) -> None:
    commit = hugging_hub.publish("me/model", write_model(tmp_path / "model"))
    counted = command("s3prl-ekd", "macs", "hf:me/model", "--json", cwd=tmp_path)
    assert counted.returncode == 0 and "model.safetensors" not in hugging_hub.asked, counted.stderr[-2000:]
    assert counted.stdout == command("s3prl-ekd", "macs", tmp_path / "model", "--json", cwd=tmp_path).stdout
    shown = command("s3prl-ekd", "teachers", "hf:me/model", cwd=tmp_path)
    assert shown.returncode == 0 and f"hf:me/model@{commit}" in shown.stdout, shown.stderr[-2000:]
    wrong = command("s3prl-ekd", "teachers", "hf:me/none", cwd=tmp_path)
    assert wrong.returncode == 2 and wrong.stderr.endswith(
        "error: teachers: 'hf:me/none': no such model, or a private one (`hf auth login`)\n"
    )
    done = command("s3prl-ekd", "export", "hf", "--ckpt", "hf:me/model", "--out", "copy", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert equal(weights(str(tmp_path / "copy")), weights(str(tmp_path / "model")))
