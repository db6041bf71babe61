"""From predictions and teacher states to one loss and its log values: what the pretrain expert calls each step.

``states -> normalise -> targets; predictions, targets -> loss per head -> drop teachers -> weigh -> balance -> sum``
With every option off the loss is bit for bit the paper's: the mean over heads of L1 + lambda * (-log sigmoid(cos)).
Each option is in its own file; what lives here is their order, and the state that a resumed run needs (buffers).
Shapes: B clips, n heads of one set, S head sets, T frames, W channels of a target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_ekd.config import EkdConfig
from s3prl_ekd.distill.balance import Balancer, gradient_norms
from s3prl_ekd.distill.dropping import clip_factors, keep_worst
from s3prl_ekd.distill.losses import HeadLosses, frame_losses, mean_over_heads
from s3prl_ekd.distill.normalise import Normaliser
from s3prl_ekd.distill.targets import TargetSet, TeacherLayers, TeacherStates, align_frames
from s3prl_ekd.distributed import Share
from s3prl_ekd.errors import EkdError, naming


class Objective(nn.Module):
    """The distillation loss with its options.

    ``loss = sum_i factor_i * w_i / sum_j(w_j) * L_i`` over the heads i of all sets, L_i = mu * l1 + lambda * cosine
    (``ekd.l1_weight``, ``ekd.cosine_weight``), w_i the weight of head i's set (``ekd.weights``), factor_i 1 unless
    balanced (``ekd.balance``). Under ``teacher_dropping`` each clip's part of L_i is scaled by 0, or by what makes up
    for the sets that this clip dropped.

    Args:
        config: the ``ekd`` section.
        target_sets: the plan.
        teachers: name, layers and width of each teacher, for its statistics.
        file: name of the configuration file, for messages.

    Raises:
        EkdError: options that do not fit the teachers or each other.
    """

    weights: Tensor

    def __init__(
        self,
        config: EkdConfig,
        target_sets: Sequence[TargetSet],
        teachers: Sequence[TeacherLayers],
        file: str = "config_model.yaml",
    ) -> None:
        super().__init__()
        with naming(file):
            _check(config, target_sets)
            self.normaliser = Normaliser(config.targets, teachers)
        self.target_sets = list(target_sets)
        self.heads = [f"{target.name}.{label}" for target in target_sets for label in target.labels]
        self.term_weights = config.cosine_weight, config.l1_weight
        weights = [config.weights.get(t.name, 1.0) for t in target_sets for _ in t.labels]
        self.register_buffer("weights", torch.tensor(weights), persistent=False)  # (heads of all sets,)
        self.dropping = config.teacher_dropping
        self.balancer = Balancer(self.weights.clone(), config.balance.decay) if config.balance is not None else None
        self.unweighted = not config.weights and self.dropping is None and self.balancer is None

    def forward(
        self,
        predictions: Mapping[str, Tensor],
        hidden: Sequence[Tensor],
        states: TeacherStates,
        log: bool = False,
        share: Share | None = None,
    ) -> tuple[Tensor, dict[str, dict[str, float]] | None]:
        """Loss of a batch, in fp32.

        Args:
            predictions: head set -> (B, n, T, W).
            hidden: for each head of ``heads``, the student's hidden state that it reads, (B, T, D).
            states: teacher -> layer -> (B, T, W).
            log: also make log values, which waits for the device.
            share: all of the above is one rank's part of a global batch: statistics and log values are the global
                batch's, the loss is this rank's (``share.loss`` makes it the global one).

        Returns:
            scalar loss, and with ``log`` "<head set>.<label>" -> l1, cosine, target_norm (mean magnitude of the target)
            and, where there are gradients, gradient_share.
        """
        states = self.normaliser(states, share)
        raw: dict[str, HeadLosses] = {}
        clips: dict[str, HeadLosses] = {}
        norms = []
        dropping = self.dropping if self.training else None
        for target_set in self.target_sets:
            name = target_set.name
            prediction, target = align_frames(predictions[name], target_set.gather(states))
            terms = self.frame_losses(prediction, target)
            if dropping is not None:
                clips[name] = HeadLosses.of_clips(*terms)
                raw[name] = HeadLosses(clips[name].l1.mean(0), clips[name].cosine.mean(0))
            else:
                raw[name] = HeadLosses.of_heads(*terms)
            if log:
                norms.append(target.float().abs().mean((0, 2, 3)))
        kept = raw if dropping is None else self._drop(clips, dropping.probability)
        totals = [part.total(*self.term_weights) for part in kept.values()]
        shares = self.weights / self.weights.sum()
        gradients = None
        if (log or self.balancer is not None) and totals[0].requires_grad:
            gradients = gradient_norms(totals, hidden)
            gradients = shares * (gradients if share is None else share.norm(gradients))
        if self.balancer is not None and gradients is not None:
            factors = self.balancer(gradients)
            shares, gradients = shares * factors, gradients * factors
        # the paper's mean in its own order of summation, so that it stays what it is to the last bit
        loss = mean_over_heads(raw, *self.term_weights) if self.unweighted else (shares * torch.cat(totals)).sum()
        return loss, self._log_values(raw, torch.cat(norms), gradients, share) if log else None

    def frame_losses(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms of the loss for each frame; a script's own class may have others (docs/extending.md).

        ``forward`` averages them over frames and clips; under ``teacher_dropping``, over the frames of each clip first,
        to find the teacher that is predicted worst. L_i is mu times the first plus lambda times the second, and the log
        values are the two under the names l1 and cosine, whatever they are.

        Args:
            prediction: (B, n, T, W) of one head set, in the dtype of the student's arithmetic.
            target: (B, n, T, W), normalised, as many frames; of no gradient.

        Returns:
            (B, n, T) of each term in fp32, of every frame (not summed up): here |p - t| averaged over the channels, and
            -log sigmoid(cos(p, t)). What has one value a clip may be (B, n, 1).
        """
        return frame_losses(prediction, target)

    def resume(self, state: Mapping[str, Any]) -> None:
        """Take over the running statistics of a checkpoint.

        Raises:
            EkdError: they belong to other options than this run's.
        """
        try:
            self.load_state_dict(state)
        except (RuntimeError, KeyError) as error:
            raise EkdError(
                "the checkpoint's statistics do not fit ekd.targets and ekd.balance of this run: resume with the "
                "configuration that it was started with"
            ) from error

    def _drop(self, clips: Mapping[str, HeadLosses], probability: float) -> dict[str, HeadLosses]:
        """Losses per head (n,) of what is left after teacher dropping, from losses per clip (B, n)."""
        by_set = torch.stack([part.total(*self.term_weights).mean(1) for part in clips.values()]).detach()  # (S, B)
        weights = torch.stack([part.sum() for part in self.weights.split([len(t.labels) for t in self.target_sets])])
        # a set without weight is never trained, so it would be the worst for ever, and its clips would teach nothing
        by_set = by_set.masked_fill(weights.unsqueeze(1) == 0, -torch.inf)
        factors = clip_factors(keep_worst(by_set, probability), weights)  # (S, B)
        return {
            name: HeadLosses((part.l1 * factor[:, None]).mean(0), (part.cosine * factor[:, None]).mean(0))
            for (name, part), factor in zip(clips.items(), factors, strict=True)
        }

    def _log_values(
        self, losses: Mapping[str, HeadLosses], norms: Tensor, gradients: Tensor | None, share: Share | None
    ) -> dict[str, dict[str, float]]:
        """Log values as plain numbers: the one place where the device is waited for."""
        columns = {
            "l1": torch.cat([part.l1.detach() for part in losses.values()]),
            "cosine": torch.cat([part.cosine.detach() for part in losses.values()]),
            "target_norm": norms,
        }
        if gradients is not None:
            columns["gradient_share"] = gradients / gradients.sum().clamp(min=1e-30)
        table = torch.stack(list(columns.values()), dim=1)
        rows = (table if share is None else share.mean(table)).tolist()
        return {name: dict(zip(columns, row, strict=True)) for name, row in zip(self.heads, rows, strict=True)}


def _check(config: EkdConfig, target_sets: Sequence[TargetSet]) -> None:
    names = [target_set.name for target_set in target_sets]
    for name in config.weights:
        if name not in names:
            raise EkdError(f"ekd.weights.{name}: no head set has this name; there are {', '.join(names)}")
    if config.weights and not any(config.weights.get(name, 1.0) for name in names):
        raise EkdError("ekd.weights: at least one head set needs a weight above 0")
    if config.teacher_dropping is not None and len(names) < 2:
        raise EkdError(f"ekd.teacher_dropping: needs two head sets (multi_head), not {names[0]!r} alone")
    mixed = [target_set.name for target_set in target_sets if target_set.combine in ("mean", "difference")]
    if config.targets.normalise == "phi_s" and mixed:
        mix = f"{mixed[0]!r} would mix unlike channels"
        raise EkdError(f"ekd.targets.normalise: phi_s rotates each teacher its own way, so {mix}; use standardise")
