"""Counts what a submission folder computes by running it: ``python -P -B folder.py FOLDER LENGTHS_JSON``.

For folders of other people's code, whose arithmetic nobody knows beforehand; run in a process of its own, since it
imports their ``expert.py``. Tensors without data ("meta") make it fast; code that looks at values is run on the CPU.
Prints one JSON line: parameters, and multiply-accumulates of matrix products and convolutions per bucket.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main(argv: list[str]) -> int:
    """argv: the folder, and ``{"bucket": [samples, ...]}`` as JSON."""
    folder, buckets = argv[0], json.loads(argv[1])
    sys.path.append(folder)
    import torch
    from expert import UpstreamExpert

    expert = UpstreamExpert(ckpt=f"{folder}/model.pt").eval()
    params = sum(parameter.numel() for parameter in expert.parameters())
    try:
        counts = count(torch, expert.to("meta"), buckets, "meta")
    except Exception:  # whatever their code does with the values; what is wrong with it otherwise, the CPU says too
        counts = count(torch, UpstreamExpert(ckpt=f"{folder}/model.pt").eval(), buckets, "cpu")
    print("\n" + json.dumps({"params": params, "buckets": counts}))  # noqa: T201
    return 0


def count(torch: Any, expert: Any, buckets: dict[str, list[int]], device: str) -> dict[str, int]:
    """MACs per bucket: half of PyTorch's own FLOP counts."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counts = {}
    for name, lengths in buckets.items():
        # the CPU's fused attention is not counted; the plain one is made of matrix products, which are
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            for samples in lengths:
                expert([torch.zeros(samples, device=device)])
        counts[name] = counter.get_total_flops() // 2
    return counts


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
