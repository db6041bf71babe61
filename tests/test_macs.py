"""Parameters and MACs: equal to the leaderboard's published rows, to PyTorch's FLOP counter, and from every source."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from convolutions import by_convolutions
from export_student import write_student
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from s3prl_ekd.cli import main
from s3prl_ekd.evaluate.cost import upstream_cost
from s3prl_ekd.evaluate.models import Upstream
from s3prl_ekd.export.superb import export_superb
from s3prl_ekd.macs.counting import LENGTHS, challenge_macs, cost, matrix_macs
from s3prl_ekd.model.encoder import Encoder
from s3prl_ekd.model.frontend import ConvFrontEnd
from s3prl_ekd.own_scripts import own_command
from s3prl_ekd.shape import DATA2VEC_BASE, DISTILHUBERT, HUBERT_LARGE, WAVLM_BASE, EncoderShape
from s3prl_ekd.teachers.stand_ins import TINY, random_encoder
from s3prl_ekd.teachers.writers import write_transformers

# The SUPERB hidden-set leaderboard: parameters, MACs of short, medium, long, longer
PUBLISHED = {
    "hubert_base": (94697600, 149255103040, 261280279552, 422366359296, 836254280960),
    "wavlm_base_plus": (94381936, 149332591168, 261414317056, 422579285760, 836657278208),
    "hubert_large": (316609408, 386052797568, 676078942208, 1093669977600, 2167758912000),
    "distilhubert": (27034752, 7.623e10, 1.323e11, 2.113e11, 4.058e11),
}
WAVLM_LARGE_MACS = (386259432576, 676436375552, 1094237781504, 2168833571328)


def counted(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, int]:
    capsys.readouterr()
    assert main(["macs", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_rows(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    params, *buckets = PUBLISHED[name]
    found = counted(capsys, "--shape", name)
    assert list(found) == ["params", "macs", "short", "medium", "long", "longer"]
    assert found["params"] == params
    digits = 1e-3 if name == "distilhubert" else 0.0  # that row is known to four digits only
    for bucket, macs in zip(LENGTHS, buckets, strict=True):
        assert found[bucket] == pytest.approx(macs, rel=digits)
    assert found["macs"] == sum(found[bucket] for bucket in LENGTHS)


def test_the_table_says_what_the_json_says(capsys: pytest.CaptureFixture[str]) -> None:
    params, *buckets = PUBLISHED["hubert_base"]
    assert main(["macs", "--shape", "hubert_base"]) == 0
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert ["parameters", str(params), f"{params / 1e6:.2f}", "M"] in rows
    expected = {"MACs": sum(buckets), **dict(zip(LENGTHS, buckets, strict=True))}
    for name, macs in expected.items():
        assert [name, str(macs), f"{macs / 1e9:.1f}", "G"] in rows


def test_hub_names(capsys: pytest.CaptureFixture[str]) -> None:
    """Rows that the two fitted numbers were not read from."""
    found = counted(capsys, "wavlm_large")
    assert found["params"] == 315453120 and tuple(found[bucket] for bucket in LENGTHS) == WAVLM_LARGE_MACS
    found = counted(capsys, "wav2vec2_base_960")
    assert found["params"] == 95044608 and found["macs"] == 1669156022848
    assert counted(capsys, "hubert_base_robust_mgr")["macs"] == 1669156022848


@pytest.mark.parametrize("shape", [
    DISTILHUBERT, TINY, HUBERT_LARGE.with_(layers=2), WAVLM_BASE.with_(layers=2), DATA2VEC_BASE.with_(layers=2)
])  # fmt: skip
def test_against_torchs_counter(shape: EncoderShape, monkeypatch: pytest.MonkeyPatch) -> None:
    """An independent count: PyTorch's own, of our encoder with plain convolutions, run on tensors without data."""
    monkeypatch.setattr(ConvFrontEnd, "forward", by_convolutions)
    with torch.device("meta"):
        encoder = Encoder(shape).eval()
        for samples in (20560, 21000, 55120):
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                encoder(torch.zeros(1, samples))
            assert counter.get_total_flops() == 2 * matrix_macs(shape, samples)
            assert challenge_macs(shape, samples) == pytest.approx(matrix_macs(shape, samples), rel=0.02)


def test_every_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_student(tmp_path / "run" / "states-10.ckpt")
    plain = counted(capsys, str(file))
    assert plain == counted(capsys, str(file.parent))
    folder = export_superb(file, tmp_path / "submission")
    assert plain == counted(capsys, str(folder))
    encoder = torch.load(file, weights_only=True)["EKD"]["encoder"]
    assert plain["params"] == sum(value.numel() for value in encoder.values())

    heads = counted(capsys, str(file), "--heads")
    assert heads == counted(capsys, str(export_superb(file, tmp_path / "with_heads", keep_heads=True)))
    assert heads["params"] > plain["params"] and heads["macs"] > plain["macs"]

    teacher = write_transformers(random_encoder(TINY, 0), tmp_path / "teacher")
    assert counted(capsys, str(teacher))["macs"] == cost(TINY).macs
    assert counted(capsys, "hubert_base") == counted(capsys, "--shape", "hubert_base")


@pytest.mark.slow
def test_a_folder_of_other_code_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export_superb(write_student(tmp_path / "states-1.ckpt"), tmp_path / "submission")
    known = counted(capsys, str(folder))
    saved = torch.load(folder / "model.pt", weights_only=True)
    code = (folder / "expert.py").read_text()
    (folder / "models.py").write_text(code.replace('saved["shape"]', 'saved["numbers"]'))  # as one of ours is called
    prints = "import atexit, sys; sys.stdout.buffer.write(bytes([255])); atexit.register(print, 'bye')\n"
    (folder / "expert.py").write_text(f"{prints}from models import UpstreamExpert\n")
    torch.save({"numbers": saved["shape"], **{key: saved[key] for key in saved if key != "shape"}}, folder / "model.pt")
    found = counted(capsys, str(folder))
    assert found["params"] == known["params"]
    assert found["macs"] == pytest.approx(known["macs"], rel=0.03)


BY_NUMPY = """
import torch

class UpstreamExpert(torch.nn.Module):
    def __init__(self, ckpt):
        super().__init__()
        self.layer = torch.nn.Linear(400, 8, bias=False)

    def forward(self, wavs):
        assert wavs[0].numpy().shape == wavs[0].shape
        return {"hidden_states": [self.layer(wavs[0].unfold(0, 400, 320)).unsqueeze(0)]}
"""


def test_code_that_takes_clips_to_numpy_is_counted_on_the_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a tensor without data that is a TypeError."""
    (tmp_path / "expert.py").write_text(BY_NUMPY)
    frames = {name: sum((n - 400) // 320 + 1 for n in lengths) for name, lengths in LENGTHS.items()}
    found = counted(capsys, str(tmp_path))
    assert found["params"] == 3200 and {name: found[name] for name in frames} == {
        name: 3200 * count for name, count in frames.items()
    }


@pytest.mark.slow
def test_an_expert_that_was_edited_is_counted_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export_superb(write_student(tmp_path / "states-1.ckpt"), tmp_path / "submission")
    known = counted(capsys, str(folder))["macs"]
    code = (folder / "expert.py").read_text()
    (folder / "expert.py").write_text(code.replace("in self.layers:", "in self.layers[:1]:"))
    assert counted(capsys, str(folder))["macs"] < 0.95 * known


def test_the_leaderboards_fbank(capsys: pytest.CaptureFixture[str]) -> None:
    found = counted(capsys, "fbank")
    assert found["params"] == 0 and found["macs"] == 479_126_160
    assert sum(found[bucket] for bucket in LENGTHS) == found["macs"]
    assert upstream_cost(Upstream("fbank", "fbank")) == {"params": 0, "macs": 479_126_160}


@pytest.mark.parametrize("source", ["s3prl:fbank", "s3prl:wav2vec2_conformer_rope"])
def test_an_upstream_that_stays_s3prls_is_one_line(source: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["macs", source]) == 2
    message = capfd.readouterr().err
    assert f"macs: '{source}': s3prl's own experts" in message and "hub name" in message and message.count("\n") == 1


def test_heads_of_what_has_none_to_choose(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = export_superb(write_student(tmp_path / "states-1.ckpt"), tmp_path / "submission")
    for words, expected in (
        (["--shape", "distilhubert"], "--heads: --shape distilhubert is no student checkpoint"),
        ([str(folder)], f"--heads: {folder} is a submission folder"),
        (["hubert_base"], "--heads: hubert_base is no student checkpoint"),
    ):
        assert main(["macs", *words, "--heads"]) == 2
        assert expected in capfd.readouterr().err


def test_whoever_reads_the_numbers_may_go_before_they_come() -> None:
    """As a pipe into head does: it was a traceback."""
    end, pipe = os.pipe()
    os.close(end)
    words = own_command(["s3prl-ekd", "macs", "fbank", "--json"])
    done = subprocess.run(words, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (1, "")


def test_mistakes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["macs"]) == 2
    assert main(["macs", "hubert_bas"]) == 2
    assert "hubert_base" in capfd.readouterr().err
    assert main(["macs", str(tmp_path)]) == 2
