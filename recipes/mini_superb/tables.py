"""``results/`` -> the tables of docs/results.md, between its markers.

python -m recipes.mini_superb.tables
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.mini_superb.scores import ITEMS, SCORES
from recipes.mini_superb.settings import Experiment, read_experiment, rows
from recipes.mini_superb.statistics import METRICS, Items, Metric, difference, mean_and_error
from recipes.mini_superb.students import DISTILLATION
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.table import markdown_table
from s3prl_ekd.evaluate.tasks import TASKS

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parents[1] / "docs" / "results.md"
BEGIN, END = "<!-- {} -->", "<!-- end -->"

NAMES = {
    "fbank": "log-mel (`fbank`)",
    "untrained": "student, random weights",
    "start": "student, tiny_hubert's first layers, not distilled",
    "hubert": "HuBERT alone",
    "robust_hubert": "RobustHuBERT alone",
    "wavlm": "WavLM alone",
    "hubert_wavlm_average": "HuBERT + WavLM, average",
    "hubert_wavlm_concat": "HuBERT + WavLM, concat",
    "hubert_robust_hubert": "HuBERT + RobustHuBERT, multi-head",
    "hubert_wavlm": "HuBERT + WavLM, multi-head",
    "robust_hubert_wavlm": "RobustHuBERT + WavLM, multi-head",
    "config_model": "all three, multi-head (EKD)",
    "recommended": "all three, standardised targets (`recommended`)",
    "teacher_dropping": "all three, teacher dropping",
    "standardised_and_dropping": "all three, standardised targets and teacher dropping",
    "hubert_from_random": "HuBERT alone, from random weights",
    "config_model_from_random": "all three, multi-head, from random weights",
    "recommended_longer": "all three, standardised targets, 4 times the steps",
    "hubert_longer": "HuBERT alone, 4 times the steps",
    "merged": "the three single-teacher students, merged",
}
CLAIMS = (
    ("a", "average beats concat", "hubert_wavlm_average", "hubert_wavlm_concat"),
    ("b", "multi-head beats average", "hubert_wavlm", "hubert_wavlm_average"),
    ("c", "the ensemble beats HuBERT alone", "config_model", "hubert"),
    ("c", "the ensemble beats RobustHuBERT alone", "config_model", "robust_hubert"),
    ("c", "the ensemble beats WavLM alone", "config_model", "wavlm"),
    ("", "the ensemble beats merged weights", "config_model", "merged"),
    ("", "recommended beats the paper's", "recommended", "config_model"),
    ("", "teacher dropping beats the paper's", "teacher_dropping", "config_model"),
    ("", "recommended beats itself with teacher dropping", "recommended", "standardised_and_dropping"),
    ("", "recommended beats HuBERT alone", "recommended", "hubert"),
    ("", "recommended beats RobustHuBERT alone", "recommended", "robust_hubert"),
    ("", "recommended beats WavLM alone", "recommended", "wavlm"),
    ("", "recommended beats the start", "recommended", "start"),
    ("", "recommended, longer, beats recommended", "recommended_longer", "recommended"),
    ("", "recommended, longer, beats HuBERT alone, longer", "recommended_longer", "hubert_longer"),
    ("", "recommended, longer, beats the start", "recommended_longer", "start"),
    ("", "distilling beats the start", "config_model", "start"),
    ("", "distilling beats random weights", "config_model_from_random", "untrained"),
    ("", "from random weights, the ensemble beats HuBERT alone", "config_model_from_random", "hubert_from_random"),
)
TEACHER_CLAIMS = (
    ("tiny_hubert", "fbank"),
    ("tiny_robust_hubert", "fbank"),
    ("tiny_wavlm", "fbank"),
    ("tiny_hubert", "untrained_tiny_hubert"),
    ("tiny_robust_hubert", "untrained_tiny_hubert"),
    ("tiny_wavlm", "untrained_tiny_hubert"),
)


@dataclass(frozen=True)
class Result:
    """What results/ROW holds, by seed."""

    name: str
    scores: dict[str, dict[str, Any]]
    items_by_seed: dict[str, dict[str, dict[str, list[int]]]]
    distillation: dict[str, dict[str, Any]] = field(default_factory=dict)

    def items(self, task: str) -> Items:
        """A task's utterances, by seed."""
        return {seed: found[task] for seed, found in self.items_by_seed.items() if task in found}

    def of_record(self, metric: Metric) -> dict[str, float]:
        """Percent of each seed: what the runner printed (ER: the mean of its folds), CER from its predictions."""
        found = {}
        for seed, scores in self.scores.items():
            record = scores["tasks"].get(metric.task)
            if record is not None:
                key = TASKS[metric.task].metric
                found[seed] = record["rescored"]["cer"] if metric.name == "CER" else record[key]
        return found

    @property
    def title(self) -> str:
        return NAMES.get(self.name, self.name.replace("untrained_", "untrained "))


def read_results(experiment: Experiment, folder: Path) -> dict[str, Result]:
    """The rows that are there, in the experiment's order.

    Raises:
        EkdError: none is.
    """
    found = {}
    for row in rows(experiment):
        scores, items, distillation = (_by_seed(folder / row.name, name) for name in (SCORES, ITEMS, DISTILLATION))
        if scores:
            found[row.name] = Result(row.name, scores, items, distillation)
    if not found:
        raise EkdError(f"{folder}: no results in it; python -m recipes.mini_superb makes them")
    return found


def _by_seed(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    files = sorted(folder.glob(f"seed*/{name}"), key=lambda file: int(file.parent.name.removeprefix("seed")))
    return {file.parent.name.removeprefix("seed"): json.loads(file.read_text()) for file in files}


def score_table(results: dict[str, Result]) -> str:
    """Every row's scores with standard errors, parameters, MACs and seconds of distillation."""
    heads = [f"{metric.name} {'↓' if metric.lower_is_better else '↑'}" for metric in METRICS]
    lines = [["upstream", "seeds", *heads, "params", "GMACs", "distilled in"]]
    for result in results.values():
        cells = []
        for metric in METRICS:
            values = result.of_record(metric)
            if not values:
                cells.append("")
                continue
            mean, error = mean_and_error(values)
            cells.append(f"{mean:.1f}" if error is None else f"{mean:.1f} ± {error:.1f}")
        cost = next(iter(result.scores.values())).get("cost")
        size = ["", ""] if cost is None else [f"{cost['params'] / 1e6:.2f} M", f"{cost['macs'] / 1e9:.1f}"]
        spent = [facts["seconds"] for facts in result.distillation.values()]
        minutes = f"{sum(spent) / len(spent) / 60:.1f} min" if spent else ""
        lines.append([result.title, str(len(result.scores)), *cells, *size, minutes])
    return markdown_table(lines, left=1)


def claim_table(results: dict[str, Result]) -> str:
    """Each claim on each metric: gain in points, its standard error, and whether that is beyond the noise."""
    lines = [["", "claim", *(metric.name for metric in METRICS)]]
    for letter, text, first, second in CLAIMS:
        if first in results and second in results:
            lines.append([letter, text, *_gains(results[first], results[second])])
    return markdown_table(lines, left=2)


def teacher_table(results: dict[str, Result]) -> str:
    """What the embedded teachers gain over log-mel and over an untrained model of their shape."""
    lines = [["teacher", "against", *(metric.name for metric in METRICS)]]
    for first, second in TEACHER_CLAIMS:
        if first in results and second in results:
            lines.append([first, results[second].title, *_gains(results[first], results[second])])
    return markdown_table(lines, left=2)


def _gains(first: Result, second: Result) -> list[str]:
    cells = []
    for metric in METRICS:
        found = difference(metric, first.items(metric.task), second.items(metric.task))
        if found is None:
            cells.append("")
            continue
        text = f"{found.gain:+.1f} ± {found.error:.1f}"
        cells.append(f"**{text}**" if found.beyond_noise else text)
    return cells


def fill(page: str, tables: dict[str, str]) -> str:
    """The page with each table between its markers ``<!-- NAME -->`` and ``<!-- end -->``.

    Raises:
        EkdError: a marker is missing.
    """
    for name, table in tables.items():
        begin = BEGIN.format(name)
        before, found, rest = page.partition(begin)
        _, ended, after = rest.partition(END)
        if not found or not ended:
            raise EkdError(f"{PAGE}: no {begin} ... {END}")
        page = f"{before}{begin}\n{table}{END}{after}"
    return page


def main(argv: list[str] | None = None) -> int:
    """Write docs/results.md's tables; returns the exit status."""
    argparse.ArgumentParser(
        prog="python -m recipes.mini_superb.tables", description="Write the tables of docs/results.md from results/."
    ).parse_args(argv)
    try:
        results = read_results(read_experiment(HERE / "experiment.yaml"), RESULTS)
        tables = {
            "scores": score_table(results),
            "claims": claim_table(results),
            "teachers": teacher_table(results),
        }
        PAGE.write_text(fill(PAGE.read_text(), tables))
    except EkdError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{PAGE}: {len(results)} rows\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
