"""One EKD training step: ours against the s3prl way, same audio, same process, interleaved.

The s3prl way: the three teachers as s3prl's own HubertModel and WavLM in fp32 (in eval mode, which is kind to it),
its DistillerModel student with nine heads, zero-padded batches and the attention masks that come with them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import common
from benchmarks.models import s3prl_expert
from s3prl_ekd.audio import SAMPLE_RATE
from s3prl_ekd.config import StudentConfig, TeacherPrecision
from s3prl_ekd.distill.losses import head_losses, mean_over_heads
from s3prl_ekd.distill.targets import TeacherLayers, plan_targets
from s3prl_ekd.macs.counting import matrix_macs
from s3prl_ekd.model.encoder import Encoder
from s3prl_ekd.model.student import Student, student_like, student_shape
from s3prl_ekd.shape import BASE_CONV, EncoderShape
from s3prl_ekd.teachers.ensemble import FrozenTeachers


def step_flop(size: str, clip_seconds: float) -> float:
    """Operations of a step a clip: three teachers forward; student and nine heads forward, and twice that backward.

    Of convolutions and matrix products, a multiply-accumulate counted as two. 70.4e9 a second at 15.6 s, full size.
    """
    shape, samples = common.SIZES[size], int(clip_seconds * SAMPLE_RATE)
    teachers = sum(matrix_macs(teacher, samples) for teacher in shapes_of(shape).values())
    heads = [(len(common.LAYERS[size]), shape.width)] * 3
    return 2.0 * (teachers + 3 * matrix_macs(student_shape(student_config(shape)), samples, heads))


def shapes_of(shape: EncoderShape) -> dict[str, EncoderShape]:
    """Those of the paper's three teachers, in the size of ``shape``."""
    fairseq = shape.with_(padding_rule="fairseq")
    return {"hubert": fairseq, "robust_hubert": fairseq, "wavlm": fairseq.with_(attention="gated_relative")}


def teachers_of(shape: EncoderShape, count: int = 3) -> dict[str, Encoder]:
    """The paper's three with random weights, or the first ``count`` of them."""
    torch.manual_seed(0)
    return {name: Encoder(teacher).eval() for name, teacher in list(shapes_of(shape).items())[:count]}


def ours(
    size: str,
    wave: torch.Tensor,
    precision: TeacherPrecision,
    device: str,
    student_precision: str,
    teachers: int = 3,
) -> Callable[[], float]:
    """A training step of this project: ``precision`` of the teachers, ``student_precision`` of the student."""
    shape, layers = common.SIZES[size], common.LAYERS[size]
    encoders = teachers_of(shape, teachers)
    frozen = FrozenTeachers(encoders, {name: layers for name in encoders}, precision).to(device)
    targets = plan_targets("multi_head", [TeacherLayers(name, layers, shape.width) for name in encoders])
    student = Student(student_config(shape), targets).to(device).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-4)
    autocast = torch.autocast(device.split(":")[0], torch.bfloat16, enabled=student_precision == "bf16")

    def step() -> float:
        states = frozen(wave)
        with autocast:
            _, predictions = student(wave)
        losses = {t.name: head_losses(predictions[t.name], t.gather(states)) for t in targets}
        loss = mean_over_heads(losses, 1.0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def student_config(shape: EncoderShape) -> StudentConfig:
    return StudentConfig(**student_like(shape))


def s3prl_way(size: str, clips: list[torch.Tensor], device: str) -> Callable[[], float]:
    """The same step strung together from s3prl's classes, as its distiller does for one teacher."""
    import s3prl_ekd

    s3prl_ekd.register()
    from s3prl.upstream.distiller.model import DistillerConfig, DistillerModel

    shape, layers = common.SIZES[size], common.LAYERS[size]
    experts = [
        s3prl_expert(encoder, name).eval().requires_grad_(False).to(device)
        for name, encoder in teachers_of(shape).items()
    ]
    conv = str([tuple(layer) for layer in shape.conv_layers] if shape.conv_layers != BASE_CONV else list(BASE_CONV))
    student = DistillerModel(
        DistillerConfig(
            {
                "extractor_conv_feature_layers": conv,
                "feature_grad_mult": 0.1,
                "conv_pos": shape.pos_conv_kernel,
                "conv_pos_groups": shape.pos_conv_groups,
                "encoder_layers": 2,
                "encoder_embed_dim": shape.width,
                "encoder_ffn_embed_dim": shape.ffn_width,
                "encoder_attention_heads": shape.heads,
                "final_dim": shape.width,
                "n_tasks": 3 * len(layers),
                "pred_layer_id": list(range(3 * len(layers))),
                "task_emb_type": "expand-last",
            }
        )
    )
    student = student.to(device).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-4)
    lengths = torch.tensor([len(clip) for clip in clips], device=device)
    wave = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    pad_mask = (torch.arange(wave.shape[1], device=device) < lengths.unsqueeze(1)).float()

    def step() -> float:
        _, _, prediction, _ = student(wave, pad_mask)
        with torch.no_grad():
            states = [expert(list(clips))["hidden_states"] for expert in experts]
            target = torch.stack([teacher[layer] for teacher in states for layer in layers], dim=1)
        frames = min(prediction.shape[2], target.shape[2])
        prediction, target = prediction[:, :, :frames], target[:, :, :frames]
        loss = F.l1_loss(prediction, target) - F.logsigmoid(F.cosine_similarity(prediction, target, dim=-1)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def run(options: Any) -> dict[str, Any]:
    """Measure; ``options``: device, size, batch, clip_seconds, precision, student_precision, pairs."""
    logging.disable(logging.INFO)
    device, precision = options.device, options.precision
    # equal clips for both: what padding costs s3prl on unequal ones comes on top
    clips = common.clips(options.batch, options.clip_seconds, device)
    mine = ours(options.size, torch.stack(clips), precision, device, options.student_precision)
    theirs = s3prl_way(options.size, clips, device)
    result = common.interleaved(mine, theirs, device, options.pairs)
    audio = options.batch * options.clip_seconds
    values: dict[str, Any] = {
        "ratio": result["ratio"],
        "ratio_quartiles": [result["ratio_low"], result["ratio_high"]],
        "ours_s": result["first_s"],
        "s3prl_s": result["second_s"],
        "audio_seconds": audio,
        "audio_seconds_per_second": audio / result["first_s"],
        "precision": precision,
        "student_precision": options.student_precision,
        "size": options.size,
        "batch": options.batch,
        "clip_seconds": options.clip_seconds,
        "pairs": options.pairs,
    }
    if precision == options.student_precision and not (precision == "fp32" and device.startswith("cuda")):
        # else products have no one ceiling: of fp32 on a GPU the teachers' are TF32, the student's not
        ceiling = common.matmul_ceiling(device, torch.bfloat16 if precision == "bf16" else torch.float32)
        values["matmul_ceiling_flops"] = ceiling
        flop = options.batch * step_flop(options.size, options.clip_seconds)
        values["matmul_fraction"] = flop / result["first_s"] / ceiling
    return values
