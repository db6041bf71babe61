"""The script of docs/extending.md trains, and goes on, as the page says."""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import REPO
from console import code, command
from distill_lab import CLIPS, TEACHERS, ekd, heads, hidden_state, states
from pretrain_lab import hold_out, new_run, run
from torch import nn

from s3prl_ekd.config import load_model_config
from s3prl_ekd.distill.objective import Objective
from s3prl_ekd.distill.targets import plan_targets
from s3prl_ekd.errors import EkdError
from s3prl_ekd.teachers.build import check_model
from s3prl_ekd.torch_file import read_torch_file
from s3prl_ekd.variants import packaged

PAGE = (REPO / "docs/extending.md").read_text()
# the page's tests of its worked examples, with the module that each is to stand in
WORKED = re.findall(r"`tests/(test_\w+)\.py`[^\n]*\n\n```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("module", "text"), WORKED, ids=[module for module, _ in WORKED])
def test_a_worked_test_uses_names_that_its_module_has(module: str, text: str) -> None:
    nodes = list(ast.walk(ast.parse(text)))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    bound = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    known = vars(importlib.import_module(module)).keys() | vars(builtins).keys()
    assert {node.id for node in names} - bound - known == set()


def test_a_loss_whose_parameters_nothing_would_train_is_refused() -> None:
    class Tempered(Objective):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            self.temperature = nn.Parameter(torch.ones(()), requires_grad=trained)

    trained = False
    config = load_model_config(packaged("variants/embedded.yaml"))
    assert isinstance(check_model(config, objective=Tempered).objective, Tempered)
    trained = True
    with pytest.raises(EkdError, match="the loss Tempered has the parameter temperature, which would not be trained"):
        check_model(config, objective=Tempered)


def block(title: str) -> str:
    """The page's script of that title."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (text,) = (block for block in blocks if block.startswith(f'"""{title}'))
    return text


@pytest.fixture
def script() -> str:
    """``my_run.py`` of the page, its 50,000 batches made 8."""
    text = block("my_run.py")
    assert text.count("50_000") == 1
    return text.replace("50_000", "8")


def shares(line: dict, teacher: str) -> float:
    return sum(values["gradient_share"] for head, values in line["heads"].items() if head.startswith(f"{teacher}."))


@pytest.mark.slow
def test_the_script_of_an_objective_of_ones_own(lab: Path, tmp_path: Path, script: str) -> None:
    hold_out(lab)
    keys = "config.runner.save_step=2,,config.runner.log_step=1,,config.pretrain_expert.datarc.valid_sets=['valid']"
    arguments = [*new_run(lab, "mine"), "--device", "cpu"]
    done = code(script, *arguments, "-o", f"{keys},,config.runner.total_steps=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "[ekd] loss: MyObjective of " in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "mine/metrics.jsonl").read_text().splitlines()]
    # at batch b the others' weights are b / 8: the teacher that counts alone at first counts less and less
    of_first = [shares(line, "hubert") for line in lines]
    assert of_first == sorted(of_first, reverse=True) and of_first[0] > 0.7 > of_first[3]
    for batch, line in enumerate(lines, start=1):
        totals = {head: values["l1"] + values["cosine"] for head, values in line["heads"].items()}
        weights = {head: 1.0 if head.startswith("hubert.") else batch / 8 for head in totals}
        own = sum(weights[head] * totals[head] for head in totals) / sum(weights.values())
        assert line["loss"] > own + 1e-4  # and the term for changes on top
    newest = max((tmp_path / "mine").glob("states-*.ckpt"), key=lambda file: file.stat().st_mtime)
    states = read_torch_file(newest)
    assert states["EKD_Resume"]["objective"] == {"batches": 4}  # validation is not counted
    assert states["EKD"]["objective"] == "MyObjective"  # for model cards

    longer = ["-u", "ekd", "-n", "mine", "-p", "mine", "-a", "-o", "config.runner.total_steps=6", "--device", "cpu"]
    plain = command("run_pretrain.py", *longer, cwd=tmp_path)
    assert plain.returncode == 2 and "the run began with the loss MyObjective, and this is Objective" in plain.stderr
    done = code(script, *longer, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "mine/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert shares(lines[5], "hubert") < shares(lines[4], "hubert") < of_first[3]


@pytest.mark.parametrize("dropping", [None, {"probability": 0.0}, {"probability": 1.0}])
def test_a_loss_per_frame_of_ones_own_takes_the_place_of_ours(dropping: dict | None) -> None:
    """The page's class, its table's terms, and the log values, with and without teacher dropping."""
    names: dict[str, Any] = {"__name__": "my_loss"}
    exec(block("my_loss.py"), names)

    class Squares(Objective):
        def frame_losses(self, prediction: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            squares = (prediction - target).square().mean(-1)
            return squares, torch.zeros_like(squares)

    class Contrast(Objective):
        def frame_losses(self, prediction: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            s = F.normalize(prediction, dim=-1) @ F.normalize(target, dim=-1).mT / 0.1
            loss = s.logsumexp(-1) - s.diagonal(dim1=-2, dim2=-1)
            return loss, torch.zeros_like(loss)

    def smooth(p: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return F.smooth_l1_loss(p, t) - F.logsigmoid(F.cosine_similarity(p, t, dim=-1)).mean()

    def contrast(p: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        scores = F.cosine_similarity(p.unsqueeze(2), t.unsqueeze(1), dim=-1) / 0.1  # (B, T, T)
        return F.cross_entropy(scores.flatten(0, 1), torch.arange(p.shape[1]).repeat(len(p)))

    config, hidden = ekd(teacher_dropping=dropping), hidden_state()
    for kind, reference in ((names["SmoothL1"], smooth), (Squares, F.mse_loss), (Contrast, contrast)):
        subject = kind(config, plan_targets("multi_head", TEACHERS), TEACHERS).train()
        predictions = heads(hidden, subject.target_sets)
        found = []
        for target_set in subject.target_sets:
            pairs = zip(
                predictions[target_set.name].flatten(0, 1), target_set.gather(states()).flatten(0, 1), strict=True
            )
            found.append(torch.stack([reference(p[None], t[None]) for p, t in pairs]).reshape(CLIPS, -1))
        expected = torch.stack(found)  # (teachers, clips, heads)
        worst_alone = dropping is not None and dropping["probability"] == 1.0
        by_clip = expected.mean(2).max(0).values if worst_alone else expected
        loss, logged = subject(predictions, [hidden] * len(subject.heads), states(), log=True)
        assert loss.item() == pytest.approx(by_clip.mean().item(), rel=1e-5)
        totals = [values["l1"] + values["cosine"] for values in logged.values()]
        assert totals == pytest.approx(expected.mean(1).flatten().tolist(), rel=1e-5)


@pytest.mark.slow
def test_the_script_of_a_loss_per_frame_trains(lab: Path, tmp_path: Path) -> None:
    keys = "config.runner.save_step=2,,config.runner.log_step=1,,config.runner.total_steps=3"
    done = code(block("my_loss.py"), *new_run(lab, "mine"), "--device", "cpu", "-o", keys, cwd=tmp_path)
    assert done.returncode == 0 and "[ekd] loss: SmoothL1 of " in done.stderr, done.stderr[-2000:]
    plain = run(tmp_path, *new_run(lab, "plain"), "-o", keys)
    assert plain.returncode == 0, plain.stderr[-2000:]
    first, ours = (
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0]) for name in ("mine", "plain")
    )
    for head, values in first["heads"].items():  # the same batch and weights
        assert values["cosine"] == pytest.approx(ours["heads"][head]["cosine"], rel=1e-4)
        assert values["l1"] < ours["heads"][head]["l1"]


@pytest.mark.slow
def test_the_script_of_a_teacher_of_ones_own(lab: Path, tmp_path: Path) -> None:
    script, weights = block("my_teacher.py"), tmp_path / "mine.pt"
    done = code(f"{script}\n", "-h", cwd=tmp_path)
    assert done.returncode == 0 and "--upstream_config" in done.stdout, done.stderr[-2000:]
    saving = (
        f"{script.partition('if __name__')[0]}torch.manual_seed(0)\ntorch.save(Mine().state_dict(), {str(weights)!r})"
    )
    assert code(saving, cwd=tmp_path).returncode == 0
    model = yaml.safe_load((lab / "model.yaml").read_text())
    model["ekd"]["teachers"][1:] = [{"name": "mine", "source": f"s3prl:mine:{weights}", "layers": [1, 2]}]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(model))

    arguments = [*new_run(lab, "mine"), "-g", "mine.yaml", "--device", "cpu"]
    keys = "config.runner.save_step=2,,config.runner.log_step=1,,config.runner.total_steps"
    done = code(script, *arguments, "-o", f"{keys}=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    done = code(script, *arguments, "-a", "-o", f"{keys}=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "mine/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {head for head in lines[0]["heads"] if head.startswith("mine.")} == {"mine.1", "mine.2"}
    plain = command("run_pretrain.py", *arguments, "-a", "-o", f"{keys}=5", cwd=tmp_path)
    assert plain.returncode == 2 and "s3prl's hub has no such upstream" in plain.stderr
