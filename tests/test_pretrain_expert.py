"""The pretrain task through s3prl's contract: in process with the runner's calls, and by the real command."""

from __future__ import annotations

import json
import signal
import time
from copy import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from console import check_mistakes
from pretrain_lab import Logger, final_weights, make_expert, new_run, run, start

from s3prl_ekd.config import load_model_config
from s3prl_ekd.errors import EkdError
from s3prl_ekd.student_checkpoint import untrained_student
from s3prl_ekd.teachers.build import check_teachers
from s3prl_ekd.teachers.stand_ins import TINY
from s3prl_ekd.torch_file import read_torch_file


@pytest.mark.parametrize("mode", ["multi_head", "layerwise_average", "layerwise_concat"])
def test_the_loss_of_every_head_falls(lab: Path, mode: str, tmp_path: Path) -> None:
    expert = make_expert(lab, mode=mode).train()
    optimizer = torch.optim.AdamW(expert.model.parameters(), lr=1e-3)
    logger, step = Logger(tmp_path), 0
    for _ in range(8):
        for batch in expert.get_train_dataloader():
            step += 1
            loss, records = expert(batch, records={}, global_step=step, log_step=1)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            expert.log_records(records, logger, "ekd/train-", step)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, step + 1))
    assert len(lines[0]["heads"]) == (9 if mode == "multi_head" else 3)
    for head in lines[0]["heads"]:
        first, last = (np.mean([line["heads"][head]["l1"] for line in part]) for part in (lines[:3], lines[-3:]))
        assert last < first, head
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert "ekd/train-audio-seconds-per-second" in logger.tags


def test_metrics_are_of_this_run_alone_whatever_its_log_step(lab: Path, tmp_path: Path) -> None:
    """What a killed run logged after its checkpoint goes where it goes on, and all of it where a new one begins."""
    before = "".join(f'{{"step": {step}, "run": 1}}\n' for step in range(1, 8))
    checkpoint = make_expert(lab).add_state_to_save({"Step": 3})  # of step 4
    for goes_on, kept in ((False, []), (True, [1, 2, 3, 4])):
        expert, file = make_expert(lab), tmp_path / "metrics.jsonl"
        if goes_on:
            expert.load_model(checkpoint)
        file.write_text(before)
        for step in (10, 20):
            _, records = expert(next(iter(expert.loader)), records={}, global_step=step, log_step=10)
            expert.log_records(records, Logger(tmp_path), "ekd/train-", step)
        assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [*kept, 10, 20]


def test_teachers_are_frozen_and_outside_the_model(lab: Path) -> None:
    expert = make_expert(lab).train()
    assert expert.model.training and not any(module.training for module in expert.teachers.modules())
    trained = {id(parameter) for parameter in expert.model.parameters()}
    assert not trained & {id(parameter) for parameter in expert.teachers.parameters()}
    before = {name: value.clone() for name, value in expert.teachers.state_dict().items()}
    loss, _ = expert(next(iter(expert.loader)), records={}, global_step=1, log_step=10)
    loss.backward()
    assert all(parameter.grad is None for parameter in expert.teachers.parameters())
    assert all(torch.equal(before[name], value) for name, value in expert.teachers.state_dict().items())


def test_the_student_starts_from_the_named_teacher(lab: Path) -> None:
    expert = make_expert(lab, teacher_precision="bf16")  # the start must be copied before teachers are halved
    source = read_torch_file(lab / "teachers" / "hubert.pt")["model_weight"]
    student = expert.model.encoder
    assert torch.equal(student.frontend.convs[3].weight, source["feature_extractor.conv_layers.3.0.weight"])
    assert torch.equal(student.projection.weight, source["post_extract_proj.weight"])
    assert torch.equal(student.layers[1].ffn_in.weight, source["encoder.layers.1.fc1.weight"])
    query = student.layers[0].attention.qkv.weight[: TINY.width]
    assert torch.equal(query, source["encoder.layers.0.self_attn.q_proj.weight"])
    assert not torch.equal(student.norm.weight, source["encoder.layer_norm.weight"])  # as in s3prl's distiller
    scratch = make_expert(lab, initialise_from=None).model.encoder
    assert not torch.equal(scratch.projection.weight, source["post_extract_proj.weight"])


def test_a_run_over_long_clips_says_how_much_an_epoch_hears(
    lab: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """12 clips of 0.50 to 0.71 s: whole, in crops of 0.25 s, and in windows of 0.25 s, which a cache has all of."""
    from s3prl_ekd.pretrain.ekd.pretrain_expert import UpstreamPretrainExpert

    datarc = yaml.safe_load((lab / "runner.yaml").read_text())["pretrain_expert"]["datarc"]
    file = tmp_path / "model.yaml"
    said = []
    for keys in (
        "",
        "task: {sequence_length: 4000}",
        f"task: {{sequence_length: 4000}}\nekd: {{cache_targets: {tmp_path}/c}}",
    ):
        file.write_text(f"base: {lab}/model.yaml\n{keys}\n")
        caplog.clear()
        with caplog.at_level("INFO"):
            UpstreamPretrainExpert(datarc, str(file), device="cpu")
        said.append([line for line in caplog.messages if "12 utterances" in line or "hears" in line])
    assert said[0] == ["[ekd] 12 utterances, 0.0 h; 3 batches an epoch"]
    heard = "of which an epoch hears 0.00083 h: one crop of 0.2 s of each longer clip; 3 batches an epoch"
    little = "one crop of 0.2 s (task.sequence_length) of each clip; cut its files into clips of about 0.25 s"
    assert said[1] == [f"[ekd] 12 utterances, 0.0 h, {heard}", f"[data] train: an epoch hears 41 % of it, {little}"]
    assert len(said[2]) == 1 and "hears" not in said[2][0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precisions_agree(lab: Path, precision: str) -> None:
    exact = make_expert(lab).eval()
    other = make_expert(lab, precision=precision, teacher_precision=precision).eval()
    batch = next(iter(exact.loader))
    values = [float(expert(batch, records={}, global_step=1, log_step=10)[0].detach()) for expert in (exact, other)]
    assert values[1] == pytest.approx(values[0], rel=1e-2)


@pytest.mark.parametrize(("precision", "dtype"), [("auto", "float32"), ("fp32", "float32"), ("bf16", "bfloat16")])
def test_the_student_computes_in_the_precision_asked_for(lab: Path, precision: str, dtype: str) -> None:
    """``auto`` is fp32 on a CPU, where bf16 may be emulated."""
    expert, seen = make_expert(lab, precision=precision), set()
    for part in (expert.model.encoder.layers[0].ffn_out, *expert.model.heads.values()):
        part.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    loss, _ = expert(next(iter(expert.loader)), records={}, global_step=1, log_step=10)
    assert seen == {getattr(torch, dtype)} and loss.dtype == torch.float32


def test_the_runners_autocast_reaches_neither_teachers_nor_loss(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16 of s3prl's runner is for the student; the teachers' precision is their own, and the loss is fp32."""
    expert = make_expert(lab).eval()
    batch = next(iter(expert.loader))
    expected = expert.teachers(batch.wave)
    seen, objective = {}, expert.objective.forward

    def watched(*args: object) -> object:
        seen["autocast"] = torch.is_autocast_enabled("cpu")
        return objective(*args)

    monkeypatch.setattr(expert.objective, "forward", watched)
    with torch.autocast("cpu", torch.bfloat16):
        found = expert.teachers(batch.wave)
        loss, _ = expert(batch, records={}, global_step=1, log_step=10)
    assert seen == {"autocast": False} and loss.dtype == torch.float32
    for teacher, layers in expected.items():
        assert all(torch.equal(found[teacher][layer], state) for layer, state in layers.items())


def test_a_step_of_several_batches_is_logged_once_and_whole(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under gradient accumulation every batch of a log step comes with its number."""
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    expert, logged = make_expert(lab), []
    waits = 0.5
    data = iter([batch for _ in range(4) for batch in expert.get_train_dataloader()])
    for step in range(1, 7):
        for _ in range(2):
            clock[0] += 1.0
            expert.loader.waited += waits
            _, records = expert(next(data), records={}, global_step=step, log_step=2)
            logged += [records["ekd"]] if records else []
        clock[0] += 4.0  # the optimizer
    assert len(logged) == 3
    for values in logged[1:]:  # two steps each: four batches in 12 s
        assert values["data_wait"] == pytest.approx(4 * waits / 12)
        assert 4 * 4 * 0.5 / 12 < values["audio_seconds_per_second"] < 4 * 4 * 0.71 / 12


def test_a_student_that_cannot_be_names_its_file(lab: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((lab / "model.yaml").read_text())
    values["student"]["heads"] = 5
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(values))
    config = load_model_config(tmp_path / "odd.yaml")
    with pytest.raises(EkdError, match=r"odd.yaml: student: width \d+ is not a multiple of heads 5"):
        check_teachers(config, str(tmp_path / "odd.yaml"))
    with pytest.raises(EkdError, match=r"odd.yaml: student: width"):
        untrained_student(tmp_path / "odd.yaml")


def test_a_batch_of_unreadable_files_teaches_nothing_and_many_end_the_run(lab: Path) -> None:
    """A lone clip of a batch is enough for the former: a run that ended there would end there again, resumed."""
    expert = make_expert(lab, batch_size=1)
    table = expert.loader.dataset.table
    first, *others = (batch.items for batch in copy(expert.batches))  # a plan counts its epochs
    real = list(table.paths)
    table.paths[first[0]] = str(lab / "gone.flac")
    data = iter(expert.get_train_dataloader())
    expert(next(data), records={}, global_step=1, log_step=1)[0].backward()
    grads = [parameter.grad for parameter in expert.model.parameters()]
    assert all(grad is not None and not grad.any() for grad in grads)
    loss, records = expert(next(data), records={}, global_step=2, log_step=1)
    assert loss > 0 and records["ekd"]["skipped_files"] == 1
    for (item,) in others:
        table.paths[item] = str(lab / "gone.flac")
    for _ in range(9):
        assert expert(next(data), records={}, global_step=3, log_step=1) == (0.0, {})
    with pytest.raises(EkdError, match="of 10 batches in a row not one file can be read; the last: .*gone.flac"):
        expert(next(data), records={}, global_step=3, log_step=1)
    table.paths[:] = real


def test_multi_gpu_and_other_checkpoints_are_refused(lab: Path) -> None:
    from s3prl_ekd.pretrain.ekd.pretrain_expert import UpstreamPretrainExpert

    with pytest.raises(EkdError, match="--multi_gpu"):
        UpstreamPretrainExpert({}, str(lab / "model.yaml"), "cpu", multi_gpu=True)
    with pytest.raises(EkdError, match="not written by"):
        make_expert(lab).load_model({"Distiller": {}})


@pytest.mark.slow
def test_a_stopped_run_continues_to_the_same_weights(lab: Path, tmp_path: Path) -> None:
    """SIGINT, SIGTERM, SIGKILL; then -a or -e: the end is bit for bit the end of a run that never stopped."""
    whole = run(tmp_path, *new_run(lab, "whole"))
    assert whole.returncode == 0, whole.stderr[-2000:]
    assert "[ekd] 12 utterances, " in whole.stderr and "[ekd] student starts from hubert: " in whole.stderr
    expected = final_weights(tmp_path / "whole")
    for stop, resume in ((signal.SIGINT, ["-a"]), (signal.SIGTERM, ["-e"]), (signal.SIGKILL, ["-a"])):
        name = stop.name
        process = start(tmp_path, *new_run(lab, name))
        deadline = time.monotonic() + 200
        while not (tmp_path / name / "states-4.ckpt").is_file():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0][-2000:]
            time.sleep(0.02)
        process.send_signal(stop)
        output, _ = process.communicate(timeout=100)
        assert process.returncode != 0, "the run was over before it could be stopped"
        assert "Traceback" not in output
        if resume == ["-e"]:
            again = run(tmp_path, "-u", "ekd", "-e", name)
        else:
            again = run(tmp_path, *new_run(lab, name), "-a")
        assert again.returncode == 0, again.stderr[-2000:]
        found = final_weights(tmp_path / name)
        assert all(torch.equal(found[key], value) for key, value in expected.items()), name
        steps = [json.loads(line)["step"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert set(range(2, 13, 2)) <= set(steps)


@pytest.mark.slow
def test_mistakes_are_one_line_and_a_status(lab: Path, tmp_path: Path) -> None:
    base = " ".join(new_run(lab, "x"))
    mistakes = {
        f"{base} -o config.pretrain_expert.datarc.libri_root='/nowhere'": "datarc.libri_root: no folder /nowhere",
        f"{base} -o config.runner.total_steps=4": "must be below total_steps",
        f"{base} -o config.pretrain_expert.datarc.set=['a']": "unknown key; did you mean sets",
    }
    check_mistakes("pretrain", mistakes, tmp_path)
