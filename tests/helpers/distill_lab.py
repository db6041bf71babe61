"""Made teachers, heads and objectives for the tests of the options beyond the paper."""

from __future__ import annotations

import torch

from s3prl_ekd.config import EkdConfig
from s3prl_ekd.distill.objective import Objective
from s3prl_ekd.distill.residual import plan_residuals
from s3prl_ekd.distill.targets import TeacherLayers, plan_targets

WIDTH, FRAMES, CLIPS = 8, 20, 6
TEACHERS = [TeacherLayers(name, (1, 2), WIDTH) for name in ("a", "b", "c")]


def ekd(**changes: object) -> EkdConfig:
    teachers = [{"name": t.name, "source": "random", "layers": list(t.layers)} for t in TEACHERS]
    return EkdConfig.model_validate({"teachers": teachers, **changes})


def objective(mode: str = "multi_head", **changes: object) -> Objective:
    config = ekd(mode=mode, **changes)
    sets = plan_targets(config.mode, TEACHERS) + plan_residuals(config.residual_heads, TEACHERS)
    return Objective(config, sets, TEACHERS).train()


def states(seed: int = 0, scale: tuple[float, ...] = (1.0, 3.0, 10.0)) -> dict[str, dict[int, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        t.name: {l: s * torch.randn(CLIPS, FRAMES, WIDTH, generator=generator) + s for l in t.layers}
        for t, s in zip(TEACHERS, scale, strict=True)
    }


def heads(hidden: torch.Tensor, sets: list, seed: int = 1) -> dict[str, torch.Tensor]:
    """Linear heads of different scales."""
    generator = torch.Generator().manual_seed(seed)
    predictions = {}
    for scale, target_set in enumerate(sets, start=1):
        weight = scale * torch.randn(len(target_set.labels), hidden.shape[-1], WIDTH, generator=generator)
        predictions[target_set.name] = torch.einsum("btd,ndw->bntw", hidden, weight)
    return predictions


def hidden_state(seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(CLIPS, FRAMES, 5, generator=generator, requires_grad=True)


def skewed_batches(count: int = 7, width: int = WIDTH) -> list[torch.Tensor]:
    """Batches of different sizes with correlated channels of very different scale."""
    generator = torch.Generator().manual_seed(5)
    mixing = torch.randn(width, width, generator=generator) * torch.logspace(-2, 2, width)
    return [
        torch.randn(3, 30 + 10 * i, width, generator=generator) @ mixing + torch.linspace(-50, 50, width)
        for i in range(count)
    ]
