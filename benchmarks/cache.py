"""An epoch on a full target cache against an epoch with the teachers, and where targets are best read.

python -m benchmarks.cache [--size tiny|full] [--clips 24] [--seconds 4] [--json FILE]

Both run through the pretrain task on the same made audio: forward, backward, AdamW. Epochs take turns; processor time
of this process is given beside the clock, since other work on the machine lengthens the clock alone.
"""

from __future__ import annotations

import argparse
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
import yaml

from benchmarks import common
from benchmarks.common import LAYERS, SIZES
from benchmarks.step import student_config
from s3prl_ekd.audio import SAMPLE_RATE
from s3prl_ekd.config import DataConfig
from s3prl_ekd.data.batches import make_loader
from s3prl_ekd.data.lengths import LengthTable
from s3prl_ekd.data.target_cache import TargetCache
from s3prl_ekd.data.target_folder import CacheFolder
from s3prl_ekd.data.target_layout import TargetLayout, TeacherPart
from s3prl_ekd.data.windows import cut_windows
from s3prl_ekd.shape import HUBERT_BASE

HUB = {"hubert": "hubert_base", "robust_hubert": "hubert_base_robust_mgr", "wavlm": "wavlm_base_plus"}
EMBEDDED = {name: f"embedded:tiny_{name}" for name in HUB}
BATCH = 8


def make_corpus(folder: Path, clips: int, seconds: float) -> dict[str, Any]:
    """Noise of one length, and the ``datarc`` that names it."""
    generator, samples = np.random.default_rng(0), int(seconds * SAMPLE_RATE)
    rows = []
    for i in range(clips):
        soundfile.write(folder / f"{i}.wav", 0.1 * generator.standard_normal(samples), SAMPLE_RATE)
        rows.append(f"{i},{i}.wav,{samples},")
    (folder / "train.csv").write_text(",file_path,length,label\n" + "\n".join(rows) + "\n")
    return {"num_workers": 0, "train_batch_size": min(BATCH, clips), "libri_root": str(folder),
            "file_path": str(folder), "sets": ["train"]}  # fmt: skip


def make_expert(folder: Path, datarc: dict[str, Any], size: str, cache: Path | None) -> Any:
    from s3prl_ekd.pretrain.ekd.pretrain_expert import UpstreamPretrainExpert

    sources = EMBEDDED if size == "tiny" else HUB
    prefix = "" if size == "tiny" else "random:"
    teachers = [{"name": n, "source": f"{prefix}{s}", "layers": list(LAYERS[size])} for n, s in sources.items()]
    model = {
        "base": "config_model.yaml",
        "ekd": {
            "teachers": teachers,
            "initialise_from": None,
            "precision": "fp32",
            "cache_targets": cache and str(cache),
        },
        "student": student_config(SIZES[size]).model_dump(mode="json"),
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(model))
    return UpstreamPretrainExpert(datarc, str(folder / "model.yaml"), device="cpu").train()


def epoch_of(expert: Any) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(expert.model.parameters(), lr=2e-4)

    def epoch() -> None:
        for batch in expert.get_train_dataloader():
            loss, _ = expert(batch, records={}, global_step=1, log_step=1_000)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return epoch


def epochs(size: str, clips: int, seconds: float, pairs: int) -> dict[str, Any]:
    """Seconds of an epoch with teachers and on a full cache, by the clock and of the processor."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        datarc = make_corpus(folder, clips, seconds)
        online = epoch_of(make_expert(folder, datarc, size, None))
        expert = make_expert(folder, datarc, size, folder / "cache")
        cached = epoch_of(expert)
        filling = timed(cached)
        assert expert.cache is not None and expert.cache.complete
        online()
        found = [(timed(online), timed(cached)) for _ in range(pairs)]
        stored = sum(file.stat().st_size for file in (folder / "cache").iterdir())
    result: dict[str, Any] = {"filling_epoch": filling, "cache_mb": stored / 1e6, "audio_seconds": clips * seconds}
    for clock in ("clock", "processor"):
        result[f"online_{clock}_s"] = statistics.median(a[clock] for a, _ in found)
        result[f"cached_{clock}_s"] = statistics.median(b[clock] for _, b in found)
        ratios = sorted(a[clock] / b[clock] for a, b in found)
        result[f"ratio_{clock}"] = statistics.median(ratios)
        result[f"ratio_{clock}_range"] = [ratios[0], ratios[-1]]
    return result


def timed(work: Callable[[], None]) -> dict[str, float]:
    start, start_processor = time.perf_counter(), time.process_time()
    work()
    return {"clock": time.perf_counter() - start, "processor": time.process_time() - start_processor}


def reading(clips: int, seconds: float, batch: int, passes: int = 5) -> dict[str, Any]:
    """What reading a batch of full-size targets costs the main process: read there, or by two workers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_corpus(folder, clips, seconds)
        table = LengthTable([str(folder / f"{i}.wav") for i in range(clips)], np.full(clips, int(seconds * 16_000)))
        config = DataConfig(num_workers=2, train_batch_size=batch, libri_root="-", file_path="-", sets=["-"])
        layout = TargetLayout([TeacherPart(t, (4, 8, 12), 768, HUBERT_BASE.frames) for t in HUB], "fp16")
        windows = cut_windows(table.samples, 0, batch, None)
        place = CacheFolder(folder / "cache", "cache")
        place.make(1)
        place.create(windows, layout, {})
        cache = TargetCache(place, layout, table.paths)
        row = torch.randn(1, layout.numbers(int(windows.samples[0]))).half()
        for window in range(clips):
            cache.store((window,), row)
        loader, _ = make_loader(table, config, 0, None, cache)
        plain, _ = make_loader(table, config, 0)

        def by_workers() -> None:
            for found in loader:
                assert found.targets is not None

        def in_main() -> None:
            for i, _ in enumerate(plain):
                cache.read(range(i * batch, min((i + 1) * batch, clips)))

        by_workers()
        in_main()
        turns = [(timed(by_workers), timed(in_main)) for _ in range(passes)]
    batches = -(-clips // batch)
    return {"batch_mb": row.numel() * 2 * batch / 1e6} | {
        f"{who}_{clock}_s_a_batch": statistics.median(turn[i][clock] for turn in turns) / batches
        for i, who in enumerate(("workers", "main"))
        for clock in ("clock", "processor")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="tiny", help="full: Base shapes, random weights")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a clip")
    parser.add_argument("--pairs", type=int, default=5, help="epochs of each, taking turns")
    parser.add_argument("--no-reading", action="store_true", help="leave out where targets are read")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    result: dict[str, Any] = {"epoch": epochs(options.size, options.clips, options.seconds, options.pairs)}
    if not options.no_reading:
        result["reading"] = reading(clips=48, seconds=15.6, batch=24)
    print(json.dumps(common.save(result, options.json, "cpu", "benchmarks.cache"), indent=2))


if __name__ == "__main__":
    main()
