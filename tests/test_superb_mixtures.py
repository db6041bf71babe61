"""What the data and values of SUPERB's two tasks of mixtures (SE, SS) must hold, named before a run."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch
from superb_corpora import CORPORA, check_data

from s3prl_ekd.bridge import downstream_arguments
from s3prl_ekd.compat.shims import apply_shims
from s3prl_ekd.errors import EkdError


@pytest.fixture(scope="module", autouse=True)
def shims() -> None:
    apply_shims()


def test_a_mixture_has_each_of_its_sources(tmp_path: Path) -> None:
    items = CORPORA["separation_stft"](tmp_path / "ss")
    table = tmp_path / "ss" / "dev" / "s2" / "wav.scp"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text(lines[0])
    with pytest.raises(EkdError, match=f"{table}: no utterance u1, which {tmp_path / 'ss' / 'dev'} has elsewhere"):
        check_data("separation_stft", items, ("train",), tmp_path)  # s3prl reads all three splits whatever is run
    table.write_text("".join(lines).replace("u1", "u2"))
    with pytest.raises(EkdError, match=f"{table}: no utterance u1"):
        check_data("separation_stft", items, ("train",), tmp_path)
    table.unlink()
    with pytest.raises(EkdError, match=r"loaderrc.dev_dir: .*/dev/s2/wav.scp: no such table"):
        check_data("separation_stft", items, ("train",), tmp_path)


def test_mixtures_are_tested_where_those_that_were_trained_on_are_not(tmp_path: Path) -> None:
    """s3prl reads the tables of all splits, and the clips of those that it comes to."""
    items = CORPORA["separation_stft"](tmp_path / "ss")
    for clip in (tmp_path / "ss" / "train").glob("*/*.wav"):
        clip.unlink()
    check_data("separation_stft", items, ("test",), tmp_path)
    with pytest.raises(EkdError, match=r"train/mix_clean/wav.scp: line 1: .*/mix_clean/0.wav: no such file"):
        check_data("separation_stft", items, ("train", "dev"), tmp_path)


def test_mixtures_of_another_rate_are_named(tmp_path: Path) -> None:
    items = CORPORA["separation_stft"](tmp_path / "ss")
    clip = tmp_path / "ss" / "train" / "s1" / "0.wav"
    soundfile.write(clip, np.zeros(8000), 8000)
    message = f"s1/wav.scp: line 1: {clip}: 8000 Hz; separation_stft takes 16000 Hz alone"
    with pytest.raises(EkdError, match=message):
        check_data("separation_stft", items, ("train",), tmp_path)
    items = CORPORA["enhancement_stft"](tmp_path / "se")
    soundfile.write(tmp_path / "se" / "train" / "noisy" / "0.wav", np.zeros(48_000), 48_000)
    # Voicebank-DEMAND as it comes: s3prl's librosa converts it
    check_data("enhancement_stft", items, ("train",), tmp_path)


@pytest.mark.parametrize(
    ("task", "item", "message"),
    [
        (
            "enhancement_stft",
            "datarc.src=[noisy, clean]",
            "datarc.src: ['noisy', 'clean']: expected 1 of s1, s2, noise",
        ),
        ("enhancement_stft", "datarc.tgt=clean", "datarc.tgt: 'clean': expected 1 of s1, s2"),
        ("separation_stft", "datarc.tgt=[s1]", "datarc.tgt: ['s1']: expected 2 of s1, s2"),
        ("separation_stft", "datarc.tgt=[s1, s1]", "datarc.tgt: ['s1', 's1']: expected 2 of s1, s2"),
        ("separation_stft", "datarc.src=[noisy]", "datarc.src: ['noisy']: expected 1 of s1, s2"),
        ("separation_stft", "datarc.num_speakers=3", "datarc.num_speakers: 3: tgt names 2"),
        ("separation_stft", "datarc.rate=8000", "datarc.rate: 8000: upstreams hear 16000 Hz"),
        ("separation_stft", "loaderrc.eval_batchsize=2", "eval_batchsize: 2: s3prl scores one utterance at a time"),
        ("separation_stft", "modelrc.mask_type=IRM", "modelrc.mask_type: 'IRM': expected AM or PSM or NPSM"),
        ("separation_stft", "modelrc.rnn=Linear", "modelrc.rnn: 'Linear': expected RNN or LSTM or GRU"),
        ("separation_stft", "modelrc.dropout=1.5", "modelrc.dropout: 1.5: expected 0 to 1"),
        ("enhancement_stft", "datarc.win_length=1024", "datarc.win_length: 1024: more than n_fft, 512"),
        ("enhancement_stft", "datarc.window=henn", "datarc.window: 'henn': is no window of scipy's"),
        ("enhancement_stft", "datarc.window=kaiser", "datarc.window: 'kaiser': is no window of scipy's"),
    ],
)
def test_values_that_mixtures_cannot_take(tmp_path: Path, task: str, item: str, message: str) -> None:
    items = CORPORA[task](tmp_path / task)
    with pytest.raises(EkdError, match=re.escape(message)):
        check_data(task, [*items, f"config.downstream_expert.{item}"], ("train",), tmp_path)


def test_a_loss_that_s3prl_computes_on_a_gpu_alone(tmp_path: Path) -> None:
    items = [*CORPORA["enhancement_stft"](tmp_path / "se"), "config.downstream_expert.modelrc.loss_type=SISDR"]
    check_data("enhancement_stft", items, ("train",), tmp_path)
    for device in ("cpu", "cpu:0"):
        with pytest.raises(EkdError, match="modelrc.loss_type: SISDR: s3prl computes it on a GPU alone"):
            check_data("enhancement_stft", items, ("train",), tmp_path, device=device)
    items.append("config.downstream_expert.datarc.window=hamming")
    with pytest.raises(EkdError, match="datarc.window: 'hamming': s3prl's SISDR knows hann alone"):
        check_data("enhancement_stft", items, ("train",), tmp_path)


def test_mixtures_are_trained_on_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """s3prl shares out the batches of the other tasks; two ranks here ended with one process's weights, bit for bit."""
    items = CORPORA["separation_stft"](tmp_path / "ss")
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_data("separation_stft", items, ("train",), tmp_path)  # the run is none of torchrun's
    with pytest.raises(
        EkdError, match="-d separation_stft: s3prl gives each of 2 processes the same batches; run it without"
    ):
        check_data("separation_stft", items, ("train",), tmp_path, local_rank=0)


def test_mixtures_are_scored_on_the_device_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """s3prl's modules name the first GPU, whatever --device says (stand-ins: the real ones ask for asteroid)."""
    modules = {part: ModuleType(part) for part in ("expert", "loss", "dataset")}
    for part, module in modules.items():
        monkeypatch.setitem(sys.modules, f"s3prl.downstream.separation_stft.{part}", module)
        module.device = torch.device("cuda:0")
    modules["dataset"].device = "another matter"
    downstream_arguments.import_expert("separation_stft", torch.device("cuda:1"))
    assert [module.device for module in modules.values()] == [*2 * [torch.device("cuda:1")], "another matter"]
