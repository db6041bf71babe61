"""doctor: what it finds broken, and the exit status."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from bridge_corpora import iemocap, librispeech, voxceleb
from export_student import write_student
from superb_corpora import intents, keywords

from s3prl_ekd import doctor
from s3prl_ekd.cli import main
from s3prl_ekd.config import load_model_config
from s3prl_ekd.corpora.speech_commands import NAMES
from s3prl_ekd.errors import EkdError
from s3prl_ekd.variants import packaged


def runner_config(folder: Path, **data: object) -> Path:
    values = yaml.safe_load(packaged("config_runner.yaml").read_text())
    values["pretrain_expert"]["datarc"] |= {key: value for key, value in data.items()}
    file = folder / "runner.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def model_config(folder: Path, *teachers: dict) -> Path:
    file = folder / "model.yaml"
    start = teachers[0]["name"]
    file.write_text(yaml.safe_dump({"base": "config_model.yaml", "ekd": {"teachers": list(teachers),
                                                                        "initialise_from": start}}))  # fmt: skip
    return file


def test_a_sound_setup_is_status_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    libri = librispeech(tmp_path / "libri")
    data = {"libri_root": str(libri["root"]), "file_path": str(libri["tables"]), "sets": ["train-clean-100"]}
    config = runner_config(tmp_path, **data)
    model = model_config(tmp_path, {"name": "a", "source": "random:hubert_base", "layers": [4]})
    assert main(["doctor", "-c", str(config), "-g", str(model)]) == 0
    shown = capsys.readouterr().out
    for words in ("torchaudio", "hub ", "has ekd_student", "FFmpeg", "6 utterances", "nothing needed is broken"):
        assert words in shown


def test_c_and_g_are_looked_for_as_a_run_looks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "-c", "config_runner", "-g", "embedded"]) == 1
    shown = capsys.readouterr().out
    assert f"{packaged('config_runner.yaml')}: pretrain_expert.datarc.file_path: no folder /path/to" in shown
    assert main(["doctor", "-c", "none", "-g", "embeded"]) == 1
    shown = capsys.readouterr().out
    assert "-c none: no such config file" in shown and "-g embeded: no such config file (variants by name: " in shown
    runner_config(tmp_path).rename("config_runner.yaml")  # what lies here comes first
    assert main(["doctor", "-c", "config_runner"]) == 1
    assert f"{tmp_path / 'config_runner.yaml'}: pretrain_expert.datarc.file_path: no folder" in capsys.readouterr().out


def test_each_problem_is_named(tmp_path: Path) -> None:
    (data,) = [row for row in doctor.pretraining_data(runner_config(tmp_path)) if row.what == "data"]
    assert data.state == "broken" and "file_path: no folder /path/to" in data.found and "prepare" in data.todo
    teachers = (
        {"name": "a", "source": "hubert_bsae", "layers": [4]},
        {"name": "b", "source": "random:hubert_base", "layers": [14]},
    )
    rows = {row.what: row for row in doctor.teachers(model_config(tmp_path, *teachers))}
    assert rows["a"].state == "broken" and "did you mean hubert_base" in rows["a"].found
    assert rows["a"].found.startswith("ekd.teachers[0].source: ")
    assert rows["b"].state == "broken" and rows["b"].todo == "ekd.teachers[1].layers: 14 > 12"
    assert doctor.prepared(tmp_path)[-1].found == "nothing prepared here"
    (mine := tmp_path / "my data").mkdir()
    assert doctor.prepared(mine)[-1].todo == f"s3prl-ekd prepare ... --out '{mine}'"  # as a shell takes it
    assert doctor.prepared(tmp_path / "none")[0].state == "broken"


def test_a_teacher_not_yet_downloaded_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3prl.util import download

    monkeypatch.setattr(download, "get_dir", lambda: tmp_path)
    (row,) = doctor.teachers(model_config(tmp_path, {"name": "a", "source": "hubert_base", "layers": [4]}))[1:]
    assert row.state == "note" and "not downloaded" in row.found and "https://" in row.todo


def prepared_data(tmp_path: Path) -> dict[str, Path]:
    """DATA with all tasks, of made corpora: what each task would miss, by task."""
    libri, vox, emotions = librispeech(tmp_path / "l"), voxceleb(tmp_path / "v"), iemocap(tmp_path / "i")
    out = tmp_path / "data"
    prepare = ["prepare", "--out", str(out)]
    assert main([*prepare, "librispeech", str(libri["root"]), "--lexicon", str(libri["lexicon"])]) == 0
    assert main([*prepare, "voxceleb1", str(vox["root"]), "--split-file", str(vox["table"])]) == 0
    rows = [(file, str(1 + index % 2), "neu" if index % 3 else "sad")
            for index, file in enumerate(sorted(emotions["root"].rglob("*.wav")))]  # fmt: skip
    table = "".join(f"{file}\t{fold}\ts{fold}\t{emotion}\n" for file, fold, emotion in rows)
    (tmp_path / "er.tsv").write_text("path\tfold\tspeaker\temotion\n" + table)
    assert main([*prepare, "--manifest", str(tmp_path / "er.tsv")]) == 0
    keywords(tmp_path / "KS")
    for name, made in zip(NAMES, ("train", "test"), strict=True):
        (tmp_path / "KS" / made).rename(tmp_path / "KS" / name)
    assert main([*prepare, "speech_commands", str(tmp_path / "KS")]) == 0
    intents(tmp_path / "FSC")
    assert main([*prepare, "fluent_commands", str(tmp_path / "FSC")]) == 0
    return {
        "pr": libri["root"] / "test-clean",
        "sid": vox["root"] / "dev" / "wav" / "id10002" / "video3",
        "er": next(file for file, fold, _ in rows if fold == "2"),
        "asr": libri["root"],
        "ks": tmp_path / "KS" / NAMES[1],
        "ic": tmp_path / "FSC" / "wavs" / "speakers" / "a" / "test0.wav",
        "pretrain": libri["root"],
    }


def test_data_whose_corpora_are_gone_is_broken(tmp_path: Path) -> None:
    """In SID, ER and IC one clip is, in PR and ASR one split, in KS the test set."""
    corpora, data = prepared_data(tmp_path), tmp_path / "data"
    rows = {row.what: row for row in doctor.prepared(data)}
    assert {name: row.state for name, row in rows.items()} == dict.fromkeys(corpora, "ok")
    assert rows["er"].found == f"{data / 'er.yaml'} (2 folds)"
    assert "6 utterances" in rows["pretrain"].found
    for task, path in corpora.items():
        path.rename(tmp_path / "away")
        rows = {row.what: row for row in doctor.prepared(data)}
        # PR, ASR and pretraining are all of LibriSpeech
        assert {name for name, row in rows.items() if row.state == "broken"} == (
            {"pr", "asr", "pretrain"} if path == corpora["asr"] else {"pr", "asr"} if task == "pr" else {task}
        )
        assert path.name in rows[task].found and "\n" not in rows[task].found
        assert "prepare this folder again" in rows[task].todo
        (tmp_path / "away").rename(path)


def test_each_fold_of_emotion_is_looked_at(tmp_path: Path) -> None:
    prepared_data(tmp_path)
    data = tmp_path / "data"
    (data / "er" / "meta_data" / "Session2" / "test_meta_data.json").unlink()
    (row,) = [row for row in doctor.prepared(data) if row.what == "er"]
    assert row.state == "broken" and "fold2: " in row.found and "test_meta_data.json: no such file" in row.found
    (data / "er" / "folds.json").write_text("[1")
    (row,) = [row for row in doctor.prepared(data) if row.what == "er"]
    assert row.state == "broken" and "folds.json: cannot be read as a list of folds" in row.found
    (data / "er" / "folds.json").write_text("[]")
    (row,) = [row for row in doctor.prepared(data) if row.what == "er"]
    assert row.state == "broken" and "folds.json: expected a list of folds" in row.found
    (data / "er.yaml").write_text("runner: [1\n")
    rows = {row.what: row for row in doctor.prepared(data)}
    assert rows["er"].state == "broken" and "er.yaml: line 2 is not valid YAML" in rows["er"].found
    assert rows["sid"].state == "ok"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("valid_ratio: 0.2", "valid_ratio: 2e-1", "valid_ratio: '2e-1' is text to YAML; write 2.0e-1"),
        ("eval_batch_size:", "eval_batchsize:", "datarc.eval_batchsize: unknown key; did you mean eval_batch_size?"),
    ],
)
def test_a_key_that_a_run_would_refuse_is_broken(tmp_path: Path, before: str, after: str, message: str) -> None:
    prepared_data(tmp_path)
    file = tmp_path / "data" / "er.yaml"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))
    (row,) = [row for row in doctor.prepared(tmp_path / "data") if row.what == "er"]
    assert row.state == "broken" and row.found.endswith(message) and row.found.startswith(str(file))


def test_every_required_package_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = (row for row in doctor.software() if row.what == "other packages")
    assert row.state == "ok"
    count = int(row.found.split()[0])
    assert count >= 10 and row.found == f"{count} of {count} installed"
    original = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("jiwer", "pyyaml"):
            raise importlib.metadata.PackageNotFoundError(name)
        return original(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    rows = {row.what: row for row in doctor.software()}
    assert rows["other packages"].found == f"{count - 2} of {count} installed"
    for name in ("jiwer", "pyyaml"):
        assert rows[name] == doctor.Finding(name, "broken", "not installed", f"pip install {name}")
    assert not {"pytest", "onnx"} & set(rows)  # those of extras are nobody's need


def test_a_version_that_setup_cfg_does_not_take_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    original, found = importlib.metadata.version, {"torch": "2.5.1+cu124", "pyyaml": "6.0.4"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: found.get(name) or original(name))
    rows = {row.what: row for row in doctor.software()}
    assert rows["torch"] == doctor.Finding("torch", "note", "2.5.1+cu124, not >=2.8", "pip install 'torch>=2.8'")
    assert rows["pyyaml"].state == "note" and rows["pyyaml"].found == "6.0.4, not !=6.0.4,>=6"
    assert rows["torchaudio"].state == rows["s3prl"].state == "ok"


@pytest.mark.parametrize("package", ["numpy", "pydantic", "soundfile", "torch", "yaml"])
def test_a_package_that_does_not_import_is_a_row_of_every_check_that_needs_it(tmp_path: Path, package: str) -> None:
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('no {package} here')\n")
    command = [sys.executable, "-m", "s3prl_ekd.cli", "doctor", "-g", "embedded", "-c", "config_runner"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    tables = done.stdout.split("\n\n")  # software, s3prl, devices, -g, -c, the count
    assert len(tables) == 6 and "torchaudio" in tables[0]
    assert f"ModuleNotFoundError: no {package} here" in tables[3] + tables[4]


def test_a_broken_config_is_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.yaml").write_text("ekd: [1\n")
    assert main(["doctor", "-g", str(tmp_path / "model.yaml")]) == 1
    assert "not valid YAML" in capsys.readouterr().out


TEACHERS = [{"name": name, "source": f"embedded:tiny_{name}", "layers": [2, 4, 6]} for name in ("hubert", "wavlm")]
REFUSED = {
    "heads do not divide the width": ({"student": {"heads": 5}}, "student: "),
    "narrower than its start": ({"student": {"width": 128}}, "ekd.initialise_from: "),
    "unequal layers to average": (
        {"ekd": {"mode": "layerwise_average", "teachers": [TEACHERS[0], TEACHERS[1] | {"layers": [2, 6]}]}},
        "layerwise_average",
    ),
    "a layer that its start has not": ({"ekd": {"initialise_layers": [4, 7]}}, "ekd.initialise_layers"),
    "a weight of no head set": ({"ekd": {"weights": {"wavlm2": 2}}}, "ekd.weights.wavlm2: "),
    "a difference of unknown teachers": ({"ekd": {"residual_heads": [["nobody", "hubert"]]}}, "residual_heads"),
    "no such noise": ({"distortion": {"additive": {"noise": ["/nowhere/musan"]}}}, "distortion.additive.noise[0]: "),
    "an average of rotated teachers": (
        {"ekd": {"mode": "layerwise_average", "targets": {"normalise": "phi_s"}}},
        "ekd.targets.normalise: phi_s",
    ),
    "a start that is no encoder of ours": ({"ekd": {"initialise_from": "s3prl:fbank"}}, "ekd.initialise_from: "),
}


def embedded_config(folder: Path, changes: dict) -> Path:
    ekd = {"teachers": TEACHERS, "initialise_from": "hubert"} | changes.get("ekd", {})
    file = folder / "model.yaml"
    file.write_text(yaml.safe_dump({"base": "embedded.yaml"} | changes | {"ekd": ekd}))
    return file


def test_a_start_may_be_a_trained_student(tmp_path: Path) -> None:
    like = load_model_config("embedded").student.model_dump(mode="json")
    start = write_student(tmp_path / "run" / "states-10.ckpt", student=like)
    for source in (start, start.parent):
        rows = doctor.teachers(embedded_config(tmp_path, {"ekd": {"initialise_from": str(source)}}))
        (row,) = [row for row in rows if row.what == "initialise_from"]
        assert row.state == "ok" and row.found.startswith(f"{source}: student, 2 layers of 192, ")
        assert all(row.state == "ok" for row in rows)
    torch.save({"EKD": {"format": 2}}, start)
    said = f"ekd.initialise_from: {start}: checkpoint format 2; this version reads 1"
    rows = doctor.teachers(embedded_config(tmp_path, {"ekd": {"initialise_from": str(start.parent)}}))
    assert [row.found for row in rows if row.state == "broken"] == [said]


@pytest.mark.parametrize("name", REFUSED)
def test_what_pretraining_refuses_is_broken(tmp_path: Path, name: str) -> None:
    """In the words that the pretrain task has for it."""
    from s3prl_ekd.pretrain.ekd.pretrain_expert import UpstreamPretrainExpert

    changes, words = REFUSED[name]
    file = embedded_config(tmp_path, changes)
    datarc = yaml.safe_load(packaged("config_runner.yaml").read_text())["pretrain_expert"]["datarc"]
    with pytest.raises(EkdError) as error:
        UpstreamPretrainExpert(datarc, str(file), device="cpu")
    assert words in str(error.value)
    (row,) = [row for row in doctor.teachers(file) if row.state == "broken"]
    assert row.found == str(error.value)


def test_what_needs_no_teacher_is_checked_beside_one_that_is_not_known(tmp_path: Path) -> None:
    """``s3prl:`` teachers are known only by loading them, which doctor does not; their names are known without."""
    unknown = [*TEACHERS, {"name": "odd", "source": "s3prl:vq_wav2vec", "layers": [0]}]
    file = embedded_config(tmp_path, {"ekd": {"teachers": unknown}})
    assert {row.state for row in doctor.teachers(file)} == {"ok", "note"}
    file = embedded_config(tmp_path, {"ekd": {"teachers": unknown}, "student": {"heads": 5}})
    assert [row.what for row in doctor.teachers(file) if row.state == "broken"] == ["checks"]
    unknown[-1]["source"] = "s3prl:no_such_upstream"
    file = embedded_config(tmp_path, {"ekd": {"teachers": unknown}})
    (row,) = [row for row in doctor.teachers(file) if row.state == "broken"]
    assert row.what == "odd" and "no_such_upstream" in row.found
