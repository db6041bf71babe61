"""Models of the Hugging Face Hub as teachers and students of a run: what it keeps, and which commands take them."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from console import command
from export_student import student_record
from hugging_hub import SHAPE, Hub, equal, weights, write_model
from pretrain_lab import STUDENT, final_weights, new_run, run

from s3prl_ekd import doctor
from s3prl_ekd.bridge import downstream_arguments, downstream_launch, pretrain_configs
from s3prl_ekd.bridge.interrupts import Run
from s3prl_ekd.checked import read_yaml
from s3prl_ekd.cli import main
from s3prl_ekd.config import DataConfig, load_model_config
from s3prl_ekd.data.lengths import LengthTable
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate import models
from s3prl_ekd.evaluate.cost import upstream_cost
from s3prl_ekd.evaluate.inputs import model_digest
from s3prl_ekd.export.huggingface import export_huggingface
from s3prl_ekd.student_checkpoint import is_student, load_student, newest_checkpoint
from s3prl_ekd.teachers.build import check_teachers
from s3prl_ekd.teachers.fingerprint import Fingerprint, difference, fingerprint
from s3prl_ekd.teachers.stand_ins import TINY, random_encoder
from s3prl_ekd.teachers.writers import write_converted, write_transformers
from s3prl_ekd.torch_file import read_torch_file

FIRST = ("-o", "config.runner.total_steps=4,,config.runner.save_step=2")


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
    # processes of their own: huggingface_hub reads the environment when it is imported
    done = command("run_pretrain.py", *words, *FIRST, "--device", "cpu", cwd=tmp_path)
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
    more = ["-a", "-o", "config.runner.total_steps=8", "--device", "cpu"]
    done = command("run_pretrain.py", *going_on, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "ignored: -c " in done.stderr and "hub.yaml" not in done.stderr  # -g names the same repositories
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
    kept["ekd"]["initialise_from"] = "/runs/one/states-5.ckpt"  # of a student's folder, its newest checkpoint then
    for written, expected in (("/runs/one", "/runs/one/states-5.ckpt"), ("/runs/two", "/runs/two")):
        given.ekd.initialise_from = written
        pretrain_configs.keep_commits(given, kept)
        assert given.ekd.initialise_from == expected


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


def test_a_published_student_is_merged_at_the_commit_that_it_has(hugging_hub: Hub, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "student")
    commit = hugging_hub.publish("me/student", folder)
    assert main(["merge", "hf:me/student", str(folder), "--out", str(tmp_path / "merged.ckpt")]) == 0
    merged = load_student(tmp_path / "merged.ckpt")
    assert equal(merged.encoder.state_dict(), load_student(folder).encoder.state_dict())
    assert [one["file"] for one in merged.part["merged"]] == [f"hf:me/student@{commit}", str(folder)]
    assert main(["merge", "hf:me/none", str(folder), "--out", str(tmp_path / "x.ckpt")]) == 2


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


def test_the_commands_take_a_model_of_the_hub(
    hugging_hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, copy = write_model(tmp_path / "model"), tmp_path / "copy"
    commit = hugging_hub.publish("me/model", folder)
    assert main(["macs", "hf:me/model", "--json"]) == 0 and "model.safetensors" not in hugging_hub.asked
    counted = capsys.readouterr().out
    assert main(["macs", str(folder), "--json"]) == 0 and counted == capsys.readouterr().out
    assert main(["teachers", "hf:me/model"]) == 0 and f"hf:me/model@{commit}" in capsys.readouterr().out
    assert main(["teachers", "hf:me/none"]) == 2
    said = "error: teachers: 'hf:me/none': no such model, or a private one (`hf auth login`)\n"
    assert capsys.readouterr().err.endswith(said)
    assert main(["export", "hf", "--ckpt", "hf:me/model", "--out", str(copy)]) == 0
    assert equal(weights(str(copy)), weights(str(folder)))
