"""Which models, rates, seeds and devices a call means, how runs are dealt over devices, and every mistake in a call."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml
from evaluate_stand_in import evaluate, install_stand_in
from export_student import SMALL, write_student
from rich.console import Console

from s3prl_ekd.cli import main
from s3prl_ekd.compat import hub
from s3prl_ekd.device import default_device
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.cost import upstream_cost
from s3prl_ekd.evaluate.devices import check_devices, gpu_environment, slots
from s3prl_ekd.evaluate.models import Upstream, choose_models, read_listing, split_label
from s3prl_ekd.evaluate.plan import make_plan
from s3prl_ekd.evaluate.progress import Board
from s3prl_ekd.evaluate.records import MARKDOWN
from s3prl_ekd.evaluate.robustness import FILE_NAME as ROBUSTNESS
from s3prl_ekd.evaluate.schedule import run_all
from s3prl_ekd.evaluate.scores_file import FILE_NAME, read_models, read_scores
from s3prl_ekd.evaluate.tasks import TASKS
from s3prl_ekd.export.huggingface import export_huggingface
from s3prl_ekd.macs.models import model_cost
from s3prl_ekd.variants import variant_file


def test_runs_are_dealt_over_devices(data, tmp_path, monkeypatch):
    install_stand_in(tmp_path, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5")
    fbank = Upstream("fbank", "fbank")
    runs = make_plan(
        [TASKS["sid"]], data, tmp_path / "out", fbank, {}, rates={"sid": [0.1, 0.01, 1e-3, 1e-4]}, seeds=[1, 2]
    )
    with Board(Console(quiet=True)) as board:
        run_all(runs, board, jobs=4, devices=["cuda:0", "cuda:1"])
    used = (tmp_path / "out" / "runs" / "gpus.txt").read_text().splitlines()
    assert set(used) == {"4 cuda", "GPU-5 cuda"}  # each saw one GPU, by the name it has outside
    assert len(used) == 8
    assert slots(["cuda:0", "cuda:1"], 4) == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpu_environment("cuda:3") == {"CUDA_VISIBLE_DEVICES": "3"}
    assert gpu_environment("cuda") == gpu_environment("cpu") == {}


def test_dry_run_prints_the_whole_grid_and_makes_nothing(data, tmp_path, capsys):
    assert evaluate(data, tmp_path, "--lr", "er:0.1,0.01", "--seeds", "1,2", "--dry-run", "--devices", "cuda:0,cuda:1",
                    tasks="er,pr", upstream=("--upstream", "fbank", "--upstream", "a=mfcc")) == 0  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line) for line in lines if not line.startswith("#")]
    trains = [words for words in commands if "train" in words]
    assert len(trains) == 2 * (2 * 2 * 2 + 2)  # two models; ER: seeds x rates x folds; PR: seeds
    assert len(commands) == 2 * len(trains)
    assert {words[0] for words in commands} == {"CUDA_VISIBLE_DEVICES=0", "CUDA_VISIBLE_DEVICES=1"}
    assert sum("if lr" in line for line in lines) == 2 * 2 * 2 * 2
    assert len({words[words.index("-p") + 1] for words in trains}) == len(trains)
    assert not (tmp_path / "out").exists()


def test_dry_run_names_the_device_of_each_run(data, tmp_path, capsys):
    assert evaluate(data, tmp_path, "--seeds", "1,2", "--dry-run", "--devices", "cpu,cuda:1") == 0
    words = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    told = [(one[0].startswith("CUDA_VISIBLE_DEVICES="), one[one.index("--device") + 1]) for one in words]
    assert told == [(False, "cpu")] * 2 + [(True, "cuda")] * 2


def test_brackets_in_names_and_long_paths_are_shown(data, tmp_path, monkeypatch, capsys):
    """rich would take the former for its markup, and break the latter where the terminal ends."""
    install_stand_in(tmp_path, monkeypatch)
    monkeypatch.setenv("COLUMNS", "60")
    where = tmp_path / "a [b]" / "in a folder of a folder" / "of another one"
    for seeds in ("1", "2"):
        label = f"s [avg]{seeds}"
        assert evaluate(data, where, "--seeds", seeds, upstream=("--upstream", f"{label}=fbank")) == 0
        printed = capsys.readouterr().out
        assert f"{label}: 1 runs of s3prl's runner on cpu -> {where}/out" in printed
        assert f"{where}/out/scores.json" in printed
    assert "Seeds: 1 (s [avg]1); 2 (s [avg]2): not the same for all rows." in " ".join(printed.split())


def models(*given):
    return choose_models([tuple(one.split(":", 1)) for one in given])


def test_tasks_of_several_calls_come_together(data, tmp_path, monkeypatch):
    install_stand_in(tmp_path, monkeypatch)

    def tasks_after(*words: str, tasks: str) -> list[str]:
        assert evaluate(data, tmp_path, *words, tasks=tasks, upstream=("--upstream", "fbank")) == 0
        return list(read_scores(tmp_path / "out")["tasks"])

    assert tasks_after(tasks="sid") == ["sid"]
    assert tasks_after(tasks="pr") == ["pr", "sid"]
    assert tasks_after(tasks="sid") == ["pr", "sid"]  # again: once
    assert tasks_after("--seeds", "5", tasks="pr") == ["pr", "sid"]  # another seed adds to its task
    assert tasks_after("--preset", "tiny", "--overwrite", tasks="pr") == ["pr"]  # another preset is another record


def test_which_models_are_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model.yaml").touch()
    Path("lr=0.1").mkdir()
    Path("x.ckpt").touch()
    both = models("upstream:wav2vec2_local", "ckpt:x.ckpt", "untrained:model.yaml")
    assert [one.arguments()[:3:2] for one in both] == [["-u", "-k"], ["-u", "-g"]]
    (named,) = models("untrained:embedded")
    assert named.arguments() == ["-u", "ekd_student", "-g", str(variant_file("embedded"))]
    assert [one.name for one in models("upstream:a=fbank", "upstream:b=fbank")] == ["fbank", "fbank"]
    assert [one.label for one in models("upstream:mfcc", "untrained:u=model.yaml", "upstream:fbank")] == [
        "mfcc", "u", "fbank"
    ]  # fmt: skip
    assert split_label("lr=0.1") == (None, "lr=0.1")
    assert split_label("runs/lr=0.1/x") == (None, "runs/lr=0.1/x")
    assert split_label("a=runs/lr=0.1") == ("a", "runs/lr=0.1")
    Path("list.yaml").write_text(
        "- {label: theirs, upstream: wav2vec2_local, ckpt: x.ckpt}\n"
        "- {untrained: model.yaml}\n- {label: e, untrained: embedded}\n"
    )
    listed = choose_models([("upstream", "fbank")], Path("list.yaml"))
    assert [one.label for one in listed] == ["theirs", "untrained student", "e", "fbank"]
    assert [one.model_config for one in listed[1:3]] == [tmp_path / "model.yaml", variant_file("embedded")]
    assert listed[0].checkpoint == tmp_path / "x.ckpt"


def test_a_student_is_not_handed_to_another_upstream_unasked(tmp_path):
    file = str(write_student(tmp_path / "x" / "states-10.ckpt"))
    for given in (file, str(tmp_path / "x")):
        with pytest.raises(EkdError, match="a student, which s3prl's fbank does not read; .*--ckpt LABEL="):
            choose_models([("ckpt", given), ("upstream", "fbank")])
    both = choose_models([("ckpt", f"mine={file}"), ("upstream", "fbank")])
    assert [one.name for one in both] == ["ekd_student", "fbank"]
    for given in (file, str(tmp_path / "x")):  # a folder's newest, as natively: its other files are nobody's business
        [ours] = choose_models([("ckpt", given), ("upstream", "ekd_student")])
        assert ours.arguments() == ["-u", "ekd_student", "-k", file]


def test_a_row_of_one_layer_or_of_one_key_of_the_output(data, tmp_path, monkeypatch, capfd):
    """Of one checkpoint, beside the weighted sum of its states; the rows are found again with and without labels."""
    install_stand_in(tmp_path, monkeypatch)
    monkeypatch.setenv("COLUMNS", "500")
    student = write_student(tmp_path / "x" / "states-10.ckpt")
    listing = tmp_path / "list.yaml"
    listing.write_text(
        "- {ckpt: x}\n- {ckpt: x, layer: 0}\n- {ckpt: x, layer: 2, label: top}\n"
        "- {ckpt: x, feature: last_hidden_state}\n- {upstream: fbank, feature: hidden_states}\n"
    )
    labels = ["x/states-10", "x/states-10, layer 0", "top", "x/states-10, last_hidden_state", "fbank"]
    ends = [[str(student)], ["-l", "0"], ["-l", "2"], ["-s", "last_hidden_state"], ["-u", "fbank"]]
    found = read_listing(listing)
    assert [one.label for one in found] == labels
    assert [one.arguments()[-len(end) :] for one, end in zip(found, ends, strict=True)] == ends

    models, out = ("--models", str(listing)), tmp_path / "out"
    for _ in range(2):
        assert evaluate(data, tmp_path, upstream=models) == 0
        rows = read_models(out)
        assert [record["label"] for _, record in rows] == labels
        assert [(record["feature"], record["layer"]) for _, record in rows] == [
            (None, None), (None, 0), (None, 2), ("last_hidden_state", None), (None, None)
        ]  # fmt: skip
        assert [len((folder / "runs" / "calls.txt").read_text().split()) for folder, _ in rows] == [1] * 5
    assert " -l 2 " in rows[2][1]["tasks"]["sid"]["commands"][0]
    assert "the same model as the row" not in capfd.readouterr().err
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "ekd_student · layer 2 · preset superb" in page and "ekd_student · last_hidden_state · preset" in page

    listing.write_text("- {ckpt: x, layer: 1, label: top}\n")
    assert evaluate(data, tmp_path, upstream=models) == 2
    assert f"another model as top (ekd_student {student} 2, now ekd_student {student} 1)" in capfd.readouterr().err
    scores = ["--scores", str(out / "top" / "scores.json"), "--out", str(tmp_path / "hf")]
    assert main(["export", "hf", "--ckpt", str(student), *scores]) == 2
    assert "holds the scores of 'top', of a part of its states alone" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("ckpt: x, layer: 3", "layer: 3: expected a whole number, 0 to 2, the states of x/states-10"),
        ("untrained: embedded, layer: 9", "layer: 9: expected a whole number, 0 to 2, the states of untrained student"),
        ("teacher: 'embedded:tiny_hubert', layer: 99", "layer: 99: expected a whole number, 0 to "),
        ("upstream: fbank, layer: -1", "layer: -1: expected a whole number, 0 or more"),
        ("upstream: fbank, layer: 1.0", "layer: 1.0: expected a whole number, 0 or more"),
        ("upstream: fbank, layer: yes", "layer: True: expected a whole number, 0 or more"),
        ("upstream: fbank, layer: two", "layer: 'two': expected a whole number, 0 or more"),
        ("upstream: fbank, feature: ''", "feature: '': expected a key of the upstream's output"),
        ("upstream: fbank, feature: 3", "expected a mapping of label, ckpt"),
        ("layer: 3", "expected a mapping of label, ckpt"),
    ],
)
def test_a_layer_that_is_none(tmp_path, entry, message):
    write_student(tmp_path / "x" / "states-10.ckpt")
    (tmp_path / "list.yaml").write_text(f"- {{{entry}}}\n")
    with pytest.raises(EkdError) as error:
        read_listing(tmp_path / "list.yaml")
    assert str(error.value).startswith(f"--models {tmp_path / 'list.yaml'}: [0]: {message}")


MISTAKES = {
    "preset's tasks": (
        ["--preset", "hidden", "--tasks", "pr,ks"], "--preset hidden: is for pr,sid,er,asr, not for ks",
    ),
    "preset": (["--preset", "huge"], "no preset 'huge'; expected one of superb, superb_grid, hidden, small, tiny"),
    "rate that is no number": (["--lr", "pr:0.1,fast"], "--lr pr:0.1,fast: learning rate 'fast': expected a positive"),
    "rate of 0": (["--lr", "0"], "--lr 0: learning rate '0': expected a positive number"),
    "empty rate": (["--lr", "pr:"], "--lr pr:: learning rate '': expected a positive number"),
    "rate twice": (["--lr", "pr:0.1,1e-1"], "--lr pr:0.1,1e-1: learning rate 0.1 is listed twice"),
    "rates of an unknown task": (["--lr", "kws:0.1"], "--lr kws:0.1: unknown task 'kws'; expected one of pr, sid"),
    "rates of a task twice": (["--lr", "pr:1", "--lr", "pr:2"], "--lr pr:2: given twice for pr"),
    "seeds": (["--seeds", "1,two"], "--seeds 1,two: 'two': expected whole numbers"),
    "a seed twice": (["--seeds", "1,1"], "--seeds 1,1: 1 is listed twice"),
    "a seed too large": (["--seeds", "1,4294967296"], "--seeds 1,4294967296: 4294967296: numpy's seeds are below"),
    "a rate of a task left out": (["--lr", "asr:0.1"], "--lr asr:0.1: asr is not among --tasks sid"),
    "an override of a task left out": (["--override", "asr:config.x=1"], "--override asr:config.x=1: asr is not among"),
    "folds without ER": (["--folds", "fold1"], "--folds fold1: is for er, which is not among --tasks sid"),
    "a fold twice": (["--tasks", "er", "--folds", "fold1,fold1"], "--folds: fold1 is listed twice"),
    "no fold": (["--tasks", "er", "--folds", ""], "--folds '': expected folds with commas between"),
    "no label": (["--label", ""], "label '': expected printable characters"),
    "no seed": (["--seeds", ""], "--seeds : '': expected whole numbers"),
    "device": (["--devices", "gpu0"], "--devices: unknown device 'gpu0'; expected cpu, cuda, or some of cuda:0"),
    "device twice": (["--devices", "cuda:1,cuda:1"], "cuda:1 is named twice; --jobs N"),
    "device that is not there": (["--devices", "cuda:77"], "--devices cuda:77: torch sees "),
    "jobs": (["--jobs", "0"], "--jobs 0: expected 1 or more"),
    "two models of one label": (["--upstream", "fbank"], "two models are called 'fbank': their runs would share"),
    "two labels of one folder": (["--upstream", "a b=fbank", "--upstream", "a-b=mfcc"], "'a b' and 'a-b': their runs"),
    "one label for two models": (["--upstream", "mfcc", "--label", "x"], "--label x: names one model, and 2 are given"),
    "empty label": (["--upstream", "=mfcc"], "'=mfcc': expected LABEL=VALUE"),
    "label that no file keeps": (["--upstream", "a\u00a0b=mfcc"], r"label 'a\xa0b': expected printable characters"),
    "upstream that s3prl lacks": (["--upstream", "fbnak"], "--upstream fbnak: s3prl's hub has no such upstream"),
    "a student without one": (["--upstream", "ekd_student"], "--upstream ekd_student: give --ckpt CKPT instead"),
    "a teacher without one": (["--upstream", "ekd_teacher"], "--upstream ekd_teacher: give --teacher SOURCE instead"),
    "no list of models": (["--models", "DATA/pr.yaml"], "expected a list of models, each with some of label, ckpt"),
    "list with a bad key": (["--models", "bad.yaml"], "bad.yaml: [1]: unknown key 'chkpt'; expected some of label"),
    "list with a key twice": (["--models", "twice.yaml"], "twice.yaml: line 1 is not valid YAML (the key 'label'"),
    "list that is not there": (["--models", "none.yaml"], "--models none.yaml: no such configuration file"),
    "list with a lost file": (["--models", "lost.yaml"], "lost.yaml: [0]: --ckpt "),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MISTAKES))
def test_mistakes_are_one_clear_line(data, tmp_path, monkeypatch, capfd, name):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text("- {upstream: fbank}\n- {chkpt: x}\n")
    Path("lost.yaml").write_text("- {ckpt: nowhere.ckpt}\n")
    Path("twice.yaml").write_text("- {upstream: mfcc, label: a, label: b}\n")
    words, message = MISTAKES[name]
    assert evaluate(data, tmp_path, *words) == 2
    printed = capfd.readouterr().err.strip().splitlines()
    assert printed[-1].startswith("error: ") and message in printed[-1]
    assert sum(line.startswith("error: ") for line in printed) == 1
    assert not (tmp_path / "out").exists()


def test_a_row_named_as_a_tables_file_has_another_folder(data, tmp_path, stand_in):
    """The table could not be written after the training; robustness.md neither."""
    for label in (FILE_NAME, MARKDOWN, ROBUSTNESS):
        assert evaluate(data, tmp_path, upstream=("--upstream", f"{label}=fbank")) == 0
    models = read_models(tmp_path / "out")
    assert [record["label"] for _, record in models] == [FILE_NAME, MARKDOWN, ROBUSTNESS]
    assert all(folder.is_dir() and folder.name == f"{record['label']}-model" for folder, record in models)


def test_a_wrong_name_is_told_when_planning_and_a_right_one_needs_no_import(data, tmp_path, monkeypatch, capfd):
    for words in ((), ("--dry-run",)):
        assert evaluate(data, tmp_path, *words, upstream=("--upstream", "fbnk")) == 2
        assert "--upstream fbnk: s3prl's hub has no such upstream; did you mean fbank" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(hub, "register", lambda: pytest.fail("the hub was imported"))
    for name in ("fbank", "hubert_base", "wav2vec2_local"):
        assert evaluate(data, tmp_path, "--dry-run", upstream=("--upstream", name)) == 0


def test_devices_of_this_machine(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert default_device() == "cuda"
    check_devices(["cuda", "cuda:1"])
    with pytest.raises(EkdError, match="--devices cuda:2: torch sees 2 CUDA GPUs here"):
        check_devices(["cuda:0", "cuda:2"])


def test_code_in_a_models_folder_is_not_run_for_its_cost(checkpoint, tmp_path):
    """A folder with an expert.py is a submission to ``s3prl-ekd macs``; here it is a student of somebody's."""
    folder = export_huggingface(checkpoint, tmp_path / "student")
    (folder / "expert.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    counted = upstream_cost(Upstream("ekd_student", "x", checkpoint=folder))
    assert counted == upstream_cost(Upstream("ekd_student", "x", checkpoint=checkpoint))
    assert not (tmp_path / "ran").exists()


def test_cost_of_what_is_evaluated(tmp_path):
    """The same numbers as ``s3prl-ekd macs``: a checkpoint, the untrained student of its configuration, a hub name."""
    checkpoint = write_student(tmp_path / "x" / "states-10.ckpt")
    config = tmp_path / "config_model.yaml"
    config.write_text(yaml.safe_dump({"base": "config_model.yaml", "student": SMALL}))
    counted = model_cost(str(checkpoint))
    expected = {"params": counted.params, "macs": counted.macs}
    assert upstream_cost(Upstream("ekd_student", "x", checkpoint=checkpoint)) == expected
    assert upstream_cost(Upstream("ekd_student", "x", model_config=config)) == expected
    assert upstream_cost(Upstream("hubert_base", "x"))["macs"] == model_cost("hubert_base").macs
    assert upstream_cost(Upstream("wav2vec2_local", "x", checkpoint=checkpoint)) is None
