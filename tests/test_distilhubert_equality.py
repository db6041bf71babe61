"""One teacher with one head set is exactly DistilHuBERT: loss and every gradient equal those of s3prl's own classes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from s3prl_ekd.config import StudentConfig
from s3prl_ekd.distill.losses import head_losses, mean_over_heads
from s3prl_ekd.distill.targets import TeacherLayers, plan_targets
from s3prl_ekd.model.student import Student
from s3prl_ekd.teachers import mapping

CONV = [[32, 10, 5], *[[32, 3, 2]] * 4, *[[32, 2, 2]] * 2]


def student_config() -> StudentConfig:
    return StudentConfig(
        width=48, ffn_width=96, heads=4, conv_layers=CONV, pos_conv_kernel=16, pos_conv_groups=4,
        dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
    )  # fmt: skip


def s3prl_distiller(layers: tuple[int, ...]) -> torch.nn.Module:
    import s3prl_ekd

    s3prl_ekd.register()
    from s3prl.upstream.distiller.model import DistillerConfig, DistillerModel

    return DistillerModel(
        DistillerConfig(
            {
                "extractor_conv_feature_layers": str([tuple(layer) for layer in CONV]),
                "feature_grad_mult": 0.1,
                "conv_pos": 16,
                "conv_pos_groups": 4,
                "encoder_layers": 2,
                "encoder_embed_dim": 48,
                "encoder_ffn_embed_dim": 96,
                "encoder_attention_heads": 4,
                "dropout": 0.0,
                "attention_dropout": 0.0,
                "activation_dropout": 0.0,
                "final_dim": 48,
                "n_tasks": len(layers),
                "task_emb_type": "expand-last",
                "pred_layer_id": list(layers),
                "cosine_loss": 1.0,
            }
        )
    )


@pytest.mark.parametrize("layers", [(4, 8, 12), (4, 12)])
@pytest.mark.parametrize("cosine_weight", [1.0, 0.3])
def test_loss_and_gradients_equal_s3prls_distiller(layers: tuple[int, ...], cosine_weight: float) -> None:
    torch.manual_seed(0)
    theirs = s3prl_distiller(layers)
    (targets,) = plan_targets("multi_head", [TeacherLayers("hubert", layers, 48)])
    ours = Student(student_config(), [targets])

    encoder = {name: value for name, value in theirs.state_dict().items() if not name.startswith("output_layer")}
    mapping.load_into(ours.encoder, mapping.to_ours(encoder, mapping.FAIRSEQ, "s3prl"), "s3prl")
    heads = ours.heads["hubert"]
    heads.expand.load_state_dict(theirs.output_layer[0].state_dict())
    heads.weight.data.copy_(theirs.output_layer[2].weight)
    heads.bias.data.copy_(theirs.output_layer[2].bias[0, 0])

    wave = 0.1 * torch.randn(3, 8_000)
    states = {layer: torch.randn(3, 24, 48) for layer in layers}

    # s3prl: pretrain/distiller/pretrain_expert.py, compute_loss
    feat, _, prediction, _ = theirs(wave, torch.ones_like(wave))
    target = torch.stack([states[layer] for layer in layers], dim=1)
    similarity = F.logsigmoid(F.cosine_similarity(prediction, target, dim=-1))
    their_loss = F.l1_loss(prediction, target) - cosine_weight * similarity.mean()
    their_loss.backward()

    _, predictions = ours(wave)
    losses = {"hubert": head_losses(predictions["hubert"], targets.gather({"hubert": states}))}
    our_loss = mean_over_heads(losses, cosine_weight)
    our_loss.backward()

    assert our_loss.item() == pytest.approx(their_loss.item(), rel=1e-6)
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters() if "output_layer" not in name}
    expected = mapping.to_ours(gradients, mapping.FAIRSEQ, "s3prl")
    expected |= {
        "expand.weight": theirs.output_layer[0].weight.grad,
        "expand.bias": theirs.output_layer[0].bias.grad,
        "weight": theirs.output_layer[2].weight.grad,
        "bias": theirs.output_layer[2].bias.grad[0, 0],
    }
    found = {name: parameter.grad for name, parameter in ours.encoder.named_parameters()}
    found |= {name: parameter.grad for name, parameter in heads.named_parameters()}
    assert sorted(found) == sorted(expected)
    # relative to the largest gradient: the key bias has none but rounding, in both
    scale = max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        difference = float((found[name] - gradient).norm())
        assert difference < 1e-5 * max(float(gradient.norm()), 1e-2 * scale), name


def test_student_hidden_states_equal_s3prls_distiller_upstream() -> None:
    """The states that downstream tasks read, on unequal lengths: projected features, then each layer."""
    torch.manual_seed(0)
    theirs = s3prl_distiller((4, 8, 12)).eval()
    ours = Student(student_config()).eval()
    encoder = {name: value for name, value in theirs.state_dict().items() if not name.startswith("output_layer")}
    mapping.load_into(ours.encoder, mapping.to_ours(encoder, mapping.FAIRSEQ, "s3prl"), "s3prl")
    lengths = torch.tensor([8_000, 6_111, 900])
    inside = torch.arange(8_000) < lengths.unsqueeze(1)
    wave = 0.1 * torch.randn(3, 8_000) * inside
    with torch.no_grad():
        _, features, _, mask, layers = theirs(wave, inside.float(), get_hidden=True, no_pred=True)
        out = ours.encoder(wave, lengths)
    mask = mask.bool()
    for mine, reference in zip([out.features, out.states[1], out.states[2]], [features, *layers], strict=True):
        assert torch.allclose(mine[mask], reference[mask], atol=1e-5)


def test_random_weights_are_spread_as_s3prls() -> None:
    """Where no teacher gives the start: each part's mean and deviation over ten seeds, heads included."""

    def of_theirs(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        state = s3prl_distiller((4, 8, 12)).state_dict()
        heads = {"expand.weight": state.pop("output_layer.0.weight"), "expand.bias": state.pop("output_layer.0.bias")}
        heads |= {"weight": state.pop("output_layer.2.weight"), "bias": state.pop("output_layer.2.bias")[0, 0]}
        return mapping.to_ours(state, mapping.FAIRSEQ, "s3prl") | heads

    def of_ours(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        (targets,) = plan_targets("multi_head", [TeacherLayers("hubert", (4, 8, 12), 48)])
        student = Student(student_config(), [targets])
        return student.encoder.state_dict() | student.heads["hubert"].state_dict()

    def drawn(make: Callable[[int], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        states = [make(seed) for seed in range(10)]
        return {name: torch.stack([state[name] for state in states]) for name in states[0]}

    found, expected = drawn(of_ours), drawn(of_theirs)
    assert sorted(found) == sorted(expected)
    for name, values in expected.items():
        spread, mean, chance = float(values.std()), float(values.mean()), values.numel() ** -0.5
        assert float(found[name].std()) == pytest.approx(spread, rel=5 * chance + 1e-3), name
        assert float(found[name].mean()) == pytest.approx(mean, abs=7 * chance * spread, rel=1e-3), name
