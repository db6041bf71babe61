"""Speed of the distortions: audio seconds per second for one worker, and for a DataLoader with two.

    python -m benchmarks.distort [--json FILE] [--seconds 15] [--noise FOLDER] [--rooms FOLDER]

Without --noise and --rooms it makes its own files: 16-bit WAV noise of 20 s (MUSAN and WHAM! are WAV), room responses
of 0.5 s. The clips are FLAC, as LibriSpeech is. Each figure is the median of several passes over different files, by
the clock and by the processor's time: the second leaves out the time in which other work had the processor, so it is
what one worker does on a core of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from benchmarks import common
from s3prl_ekd.audio import SAMPLE_RATE, read_audio
from s3prl_ekd.config import AdditiveConfig, DataConfig, DistortionConfig, NonAdditiveConfig
from s3prl_ekd.data.batches import make_loader
from s3prl_ekd.data.distort import BAND_REJECT, CLEAN, GAUSSIAN, PITCH, REVERB, Distorter
from s3prl_ekd.data.lengths import LengthTable
from s3prl_ekd.environment import versions

CLIPS, PASSES, BATCHES = 24, 7, 24
NOISES, ROOMS = 300, 50  # files


def make_corpus(folder: Path, seconds: float) -> LengthTable:
    """Clips with the spectrum and the pauses of speech: FLAC decodes noise slower and silence faster than speech."""
    rng, samples, paths = np.random.default_rng(0), int(seconds * SAMPLE_RATE), []
    tilt = 1 / np.maximum(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE), 100)
    pauses = np.clip(np.sin(2 * np.pi * 1.5 * np.arange(samples) / SAMPLE_RATE) + 0.4, 0.001, 1)
    for i in range(CLIPS):
        wave = np.fft.irfft(np.fft.rfft(rng.standard_normal(samples)) * tilt, samples) * pauses
        paths.append(str(folder / f"{i}.flac"))
        soundfile.write(paths[-1], 0.5 * wave / np.abs(wave).max(), SAMPLE_RATE, subtype="PCM_16")
    return LengthTable(paths, np.full(CLIPS, samples, dtype=np.int64))


def make_noise(folder: Path) -> Path:
    """More than the 35 minutes a worker keeps decoded, so that files are read as with a real noise corpus."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    for i in range(NOISES):
        soundfile.write(folder / f"{i}.wav", 0.1 * rng.standard_normal(20 * SAMPLE_RATE), SAMPLE_RATE, subtype="PCM_16")
    return folder


def make_rooms(folder: Path) -> Path:
    """Exponential decays of 0.5 s (RT60 0.4 s)."""
    rng, n = np.random.default_rng(2), np.arange(SAMPLE_RATE // 2)
    folder.mkdir()
    for i in range(ROOMS):
        tail = 0.2 * rng.standard_normal(len(n)) * 10 ** (-3 * n / (0.4 * SAMPLE_RATE))
        soundfile.write(folder / f"{i}.wav", np.concatenate([np.zeros(50), [0.95], tail.clip(-0.9, 0.9)]), SAMPLE_RATE)
    return folder


def speed(work: Callable[[int], object], seconds: float) -> dict[str, float]:
    """Audio seconds per second of ``work(i)`` on ``seconds`` of audio, by the clock and per second of processor."""
    work(0)
    clock, processor = [], []
    for pass_ in range(PASSES):
        start, start_processor = time.perf_counter(), time.process_time()
        for i in range(CLIPS):
            work(pass_ * CLIPS + i)
        clock.append(CLIPS * seconds / (time.perf_counter() - start))
        processor.append(CLIPS * seconds / (time.process_time() - start_processor))
    return {"clock": statistics.median(clock), "processor": statistics.median(processor)}


def loader_speed(table: LengthTable, distorter: Distorter | None, workers: int) -> dict[str, float]:
    """The same through the DataLoader of a run, batches of 24.

    By the clock the pass that starts the workers is not counted. Per processor: what ``workers`` processes give that
    have a core each, from the time that they used, putting batches into shared memory included.
    """
    whole = LengthTable(table.paths * BATCHES, np.tile(table.samples, BATCHES))
    config = DataConfig(num_workers=workers, train_batch_size=24, libri_root="-", file_path="-", sets=["-"])
    loader, _ = make_loader(whole, config, 0, distorter)
    rates, total, used = [], 0.0, common.children_seconds()
    for _ in range(4):
        start = time.perf_counter()
        heard = sum(batch.seconds for batch in loader)
        rates.append(heard / (time.perf_counter() - start))
        total += heard
    del loader  # ends the workers, whose time is known when they have ended
    gc.collect()
    return {"clock": statistics.median(rates[1:]), "processor": workers * total / (common.children_seconds() - used)}


def measure(seconds: float, noise: str | None = None, rooms: str | None = None) -> dict[str, dict[str, float]]:
    """Audio seconds per second of every case; ``noise`` and ``rooms`` are folders or tables, made here if None."""
    figures: dict[str, dict[str, float]] = {}
    # once a large array was given back, malloc keeps memory at hand; a run has loaded its teachers by then
    large = np.empty(30 * 2**20, dtype=np.uint8)
    del large
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = make_corpus(folder, seconds)
        noise = noise or str(make_noise(folder / "noise"))
        rooms = rooms or str(make_rooms(folder / "rooms"))
        additive, other = AdditiveConfig(noise=[noise]), NonAdditiveConfig(reverb=[rooms])
        mixture = Distorter(DistortionConfig(additive=additive, non_additive=other))
        alone = AdditiveConfig(noise=[noise], gaussian=False, clean=False)
        always_noise = Distorter(DistortionConfig(additive=alone))

        def work(additive: str | None, non_additive: str | None, read: bool = True) -> Callable[[int], object]:
            kept = read_audio(table.paths[0])

            def one(i: int) -> object:
                wave = read_audio(table.paths[i % CLIPS], 0, int(table.samples[0])) if read else kept
                draw = mixture.draw(0, i)
                changes = {"additive": additive, "non_additive": non_additive}
                return mixture.apply(wave, type(draw)(**{**vars(draw), **{k: v for k, v in changes.items() if v}}))

            return one

        cases: dict[str, Callable[[int], object]] = {
            "decode and crop": work(CLEAN, CLEAN),
            "decode + noise from files": work(noise, CLEAN),
            "decode + Gaussian": work(GAUSSIAN, CLEAN),
            "decode + reverb": work(CLEAN, REVERB),
            "decode + pitch": work(CLEAN, PITCH),
            "decode + band reject": work(CLEAN, BAND_REJECT),
            "decode + the whole mixture": work(None, None),
            "noise from files alone": work(noise, CLEAN, read=False),
            "Gaussian alone": work(GAUSSIAN, CLEAN, read=False),
            "reverb alone": work(CLEAN, REVERB, read=False),
            "pitch alone": work(CLEAN, PITCH, read=False),
            "band reject alone": work(CLEAN, BAND_REJECT, read=False),
        }
        figures |= {name: speed(case, seconds) for name, case in cases.items()}
        both_kinds = Distorter(DistortionConfig(additive=additive))
        for label, distorter in (
            ("no distortion", None), ("noise from files", always_noise), ("noise, Gaussian, clean", both_kinds),
            ("the whole mixture", mixture),
        ):  # fmt: skip
            figures[f"2 workers, loader: {label}"] = loader_speed(table, distorter, workers=2)
    return figures


def run(options: Any) -> dict[str, Any]:
    """For ``make bench``: clips of ``options.clip_seconds``."""
    torch.set_num_threads(1)
    return measure(options.clip_seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of a clip (the recipe crops to 15.6)")
    parser.add_argument("--noise", help="folder or table of noise")
    parser.add_argument("--rooms", help="folder or table of room responses")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure(arguments.seconds, arguments.noise, arguments.rooms)
    libraries = versions("scipy", "soundfile") | {"libsndfile": soundfile.__libsndfile_version__}
    result = {"clip_seconds": arguments.seconds, "audio_seconds_per_second": figures, "libraries": libraries}
    print(json.dumps(common.save(result, arguments.json, "cpu", "benchmarks.distort")["machine"]))
    for name, figure in figures.items():
        print(
            f"{name:36s} {figure['clock']:8,.0f} x real time by the clock {figure['processor']:8,.0f} by the processor"
        )


if __name__ == "__main__":
    main()
