"""A pretraining folder as a report reads it, its numbers made up."""

from __future__ import annotations

import json
from pathlib import Path


def write_pretraining(folder: Path) -> Path:
    """Four log steps of six heads, two of them done twice, and configuration files; no held-out speech."""
    folder.mkdir()
    lines = []
    for step in (10, 20, 30, 20, 30, 40):  # 20 and 30 again: the run was resumed from step 10
        heads = {
            f"{teacher}.{layer}": {"l1": 1 / step + layer / 100, "cosine": 0.5, "target_norm": 1.0}
            for teacher in ("wavlm", "hubert") for layer in (12, 4, 8)
        }  # fmt: skip
        lines.append({"step": step, "loss": 100.0 / step, "lr": 1e-4, "heads": heads})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config_model.yaml").write_text("ekd: {mode: multi_head}  # </pre><script>\n")
    (folder / "args_1.yaml").write_text("expname: x\n")
    return folder
