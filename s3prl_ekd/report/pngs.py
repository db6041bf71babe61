"""All figures of a report as PNG files beside the page."""

from __future__ import annotations

import itertools
from pathlib import Path

from s3prl_ekd.evaluate.robustness import rows_of
from s3prl_ekd.report.curves import comparison_png, head_losses_png, layer_weights_png, overview_png
from s3prl_ekd.report.score_figures import cost_png, grid_png, robustness_png
from s3prl_ekd.report.sources import Evaluation, Pretraining
from s3prl_ekd.whole_file import whole_file


def write_pngs(folder: Path, pretrainings: list[Pretraining], evaluations: list[Evaluation]) -> list[Path]:
    """Write the figures, light ones, into ``folder``, which is made where there are any; returns their paths."""
    records = [one.scores for one in evaluations]
    figures: dict[str, bytes | None] = {}
    taken: set[str] = set()
    for run in pretrainings:
        choices = itertools.chain([run.name], (f"{run.name}-{number}" for number in itertools.count(2)))
        name = next(choice for choice in choices if choice not in taken)
        taken.add(name)
        figures[f"{name}-loss-per-head.png"] = head_losses_png(run) if run.heads() else None
        figures[f"{name}-loss.png"] = overview_png(run)
    figures["pretraining-runs.png"] = comparison_png(pretrainings) if len(pretrainings) > 1 else None
    figures["learning-rates.png"] = grid_png(records)
    figures["macs.png"] = cost_png(records)
    rows = rows_of([(one.folder, one.scores) for one in evaluations])
    figures["distorted-audio.png"] = robustness_png(rows, [record["label"] for record in records])
    figures["layer-weights.png"] = layer_weights_png(evaluations)
    written = {folder / name: data for name, data in figures.items() if data is not None}
    if written:
        folder.mkdir(parents=True, exist_ok=True)
    for file, data in written.items():
        with whole_file(file) as partial:
            partial.write_bytes(data)
    return list(written)
