"""Our SoX effects against SoX itself, on audio files, in two calls.

    python benchmarks/sox_effects.py FILES --save sox.npz       where torchaudio has SoX: 2.8 beside a libsox of the
                                                                system's, or torch 2.0.1, torchaudio 2.0.2 and numpy
                                                                below 2 on Python 3.11; and soundfile
    python benchmarks/sox_effects.py FILES --compare sox.npz    in this project's environment

Each file counts as recorded at 16, 8, 22.05 and 44.1 kHz. Printed are the largest difference in full scale, the largest
relative L2, and how many lengths differ.
"""

from __future__ import annotations

import argparse
import importlib
from collections import defaultdict
from typing import Any

import numpy as np
import soundfile
import torch

RATES = (16_000, 8_000, 22_050, 44_100)
PLAIN = [["channels", "1"], ["rate", "16000"]]
CHAINS = {
    "gain": [*PLAIN, ["gain", "-3.0"]],
    "norm, pad, reverse": [*PLAIN, ["norm"], ["pad", "0.3", "0.1"], ["reverse"]],
    "silence (ASV)": [*PLAIN, ["gain", "-3.0"], ["silence", "1", "0.1", "0.1%", "-1", "0.1", "0.1%"]],
    "silence, other limits": [*PLAIN, ["silence", "1", "0.05", "1%", "-1", "0.2", "2%"]],
}


def results(files: list[str], apply: Any) -> dict[str, Any]:
    """Wave (samples,) of each chain, rate and file."""
    found: dict[str, Any] = {}
    for number, file in enumerate(files):
        wave = torch.from_numpy(soundfile.read(file, dtype="float32", always_2d=True)[0].T.copy())
        for rate in RATES:
            for name, effects in CHAINS.items():
                found[f"{name}|{rate}|{number}"] = apply(wave, rate, effects)[0].numpy()[0]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--save")
    parser.add_argument("--compare")
    args = parser.parse_args()
    if args.save:
        theirs: Any = importlib.import_module("torchaudio.sox_effects")
        np.savez(args.save, **results(args.files, theirs.apply_effects_tensor))
        return
    from s3prl_ekd.compat.sox_effects import apply_effects_tensor as ours

    table: dict[str, list[tuple[float, float]]] = defaultdict(list)
    lengths: dict[str, int] = defaultdict(int)
    with np.load(args.compare) as saved:
        for key, wave in results(args.files, ours).items():
            row, sox = key.rpartition("|")[0], saved[key]
            if len(sox) != len(wave):
                lengths[row] += 1
            elif len(sox):
                difference = np.abs(wave - sox)
                table[row].append((difference.max(), np.sqrt((difference**2).sum() / max((sox**2).sum(), 1e-12))))
    print(f"{len(args.files)} files\n{'effects | Hz':32}{'largest':>10}{'rel. L2':>10}{'lengths differ':>16}")
    for row, values in table.items():
        largest, relative = np.max(values, axis=0)
        print(f"{row:32}{largest:10.1e}{relative:10.1e}{lengths[row]:16}")


if __name__ == "__main__":
    main()
