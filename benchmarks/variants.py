"""Every variant of full size and the base, trained a few steps by the real command: does its loss fall?

    python -m benchmarks.variants --speech FOLDER [--work result/variants] [--steps 200] [--only NAME ...]

FOLDER holds ``pretrain/manifest.tsv`` (column ``path``). The teachers are Base models at an eighth of their width, 12
layers deep, with RANDOM weights: what is seen is that every variant trains, not which one is good. Each variant's own
file is used, with a file on top (``base: NAME.yaml``) that makes it narrow and puts the small teachers in their places.
A variant that has been run with the same settings is not run again; docs/variants.md holds the table.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from benchmarks import common
from s3prl_ekd.config import ModelConfig, load_model_config
from s3prl_ekd.environment import versions
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.table import markdown_table
from s3prl_ekd.own_scripts import own_command
from s3prl_ekd.shape import EncoderShape
from s3prl_ekd.teachers.stand_ins import TINY, write_stand_ins
from s3prl_ekd.variants import BASE, variant_file, variant_names

EIGHTH = TINY.with_(layers=12, ffn_width=384)  # of 768, 3072 and 512 channels; layers 4, 8 and 12 exist
STAND_INS = {"hubert_base": "hubert", "hubert_base_robust_mgr": "robust_hubert", "wavlm_base_plus": "wavlm"}
ENDS = 10  # steps averaged at the start and at the end of a run
SETTLED = 20  # steps left out of the speed: allocations, and statistics that are read from an empty file cache
SETTINGS = {"batch_size": 6, "crop_samples": 32_000, "learning_rate": 1.0e-3, "warmup_proportion": 0.07}


def variants() -> list[str]:
    """The base first, then the files of pretrain/ekd/variants/ by name, but for the one that is small already."""
    return [BASE, *(name for name in variant_names() if name != "embedded")]


def small_config(name: str, teachers: dict[str, Path], crop: int) -> dict[str, Any]:
    """A variant's file on top of its own, as a user would write it: small teachers, an eighth of the student's width.

    Args:
        name: of the variant.
        teachers: hubert, robust_hubert and wavlm -> source.
        crop: longest crop in samples.

    Raises:
        EkdError: the variant names a source that no small teacher stands in for.
    """
    file = variant_file(name)
    config = load_model_config(file)

    def stand_in(source: str) -> str:
        if source not in STAND_INS:
            raise EkdError(f"{file}: no small teacher stands in for {source!r}, only for {', '.join(STAND_INS)}")
        return str(teachers[STAND_INS[source]].resolve())

    ekd: dict[str, Any] = {
        "teachers": [{"name": t.name, "source": stand_in(t.source), "layers": t.layers} for t in config.ekd.teachers]
    }
    start = config.ekd.initialise_from
    if start is not None and start not in [teacher.name for teacher in config.ekd.teachers]:
        ekd["initialise_from"] = stand_in(start)
    return {
        "base": file.name,
        "ekd": ekd,
        "student": small_student(config, EIGHTH),
        "task": {"sequence_length": crop},
    }


def small_student(config: ModelConfig, teacher: EncoderShape) -> dict[str, Any]:
    """The variant's student in the proportions that the small teacher has to a Base one; its depth stays."""
    student = config.student
    return {
        "width": student.width * teacher.width // 768,
        "ffn_width": student.ffn_width * teacher.ffn_width // 3072,
        "heads": student.heads * teacher.heads // 12,
        "conv_layers": [list(layer) for layer in teacher.conv_layers],
        "pos_conv_kernel": teacher.pos_conv_kernel,
        "pos_conv_groups": teacher.pos_conv_groups,
    }


def summary(lines: Sequence[dict[str, Any]], cosine_weight: float, l1_weight: float = 1.0) -> dict[str, Any]:
    """First and last losses of a run's metrics.jsonl (one line a step), of all heads and of each.

    Args:
        lines: at least 2 * ENDS steps.
        cosine_weight, l1_weight: of the configuration: a head's loss is l1_weight * l1 + cosine_weight * cosine.
    """
    ends = lines[:ENDS], lines[-ENDS:]
    first, last = (statistics.fmean(line["loss"] for line in part) for part in ends)
    heads = {}
    for head in lines[0]["heads"]:
        rows = [[line["heads"][head] for line in part] for part in ends]
        losses = [
            statistics.fmean(l1_weight * row["l1"] + cosine_weight * row["cosine"] for row in part) for part in rows
        ]
        heads[head] = {"first": losses[0], "last": losses[1]}
    return {
        "steps": len(lines),
        "first": first,
        "last": last,
        "heads": heads,
        "heads_fallen": sum(head["last"] < head["first"] for head in heads.values()),
        "audio_seconds_per_second": statistics.median(line["audio_seconds_per_second"] for line in lines[SETTLED:]),
        "data_wait": statistics.median(line["data_wait"] for line in lines[SETTLED:]),
        "skipped_files": lines[-1]["skipped_files"],
    }


class Bench:
    """One call's folder and settings."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.work: Path = options.work.resolve()
        self.settings = SETTINGS | {"steps": options.steps}
        self.console = Console()
        self.work.mkdir(parents=True, exist_ok=True)
        self.data = self.work / "data"
        if not (self.data / "pretrain.yaml").is_file():
            manifest = options.speech.resolve() / "pretrain" / "manifest.tsv"
            self.call(["s3prl-ekd", "prepare", "--manifest", str(manifest), "--out", str(self.data)])
        # written again each time: the same weights from the same seeds
        self.teachers = write_stand_ins(self.work / "teachers", EIGHTH)

    def run(self, name: str) -> dict[str, Any]:
        """A variant's figures, from its earlier run where that had the same settings and configuration."""
        config = small_config(name, self.teachers, int(self.settings["crop_samples"]))
        result_file = self.work / f"{name}.json"
        file, folder = self.work / f"small_{name}.yaml", self.work / "runs" / name
        file.write_text(yaml.safe_dump(config, sort_keys=False, default_flow_style=None))
        checked = load_model_config(file)
        asked = {"settings": self.settings, "config": checked.model_dump(mode="json")}
        if result_file.is_file():
            known = json.loads(result_file.read_text())
            if known["asked"] == asked:
                self.console.print(f"[dim]{name}: run before[/]", highlight=False)
                return known["result"]
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted call left
        used = self.call(self.command(name, file, folder), folder / "metrics.jsonl")
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        if [line["step"] for line in lines] != list(range(1, int(self.settings["steps"]) + 1)):
            raise EkdError(f"{folder}/metrics.jsonl: not one line for each of {self.settings['steps']} steps")
        result = summary(lines, checked.ekd.cosine_weight, checked.ekd.l1_weight) | {
            "audio_seconds_per_processor_second": used,
            "load_average": common.machine("cpu")["load_average"],  # at the end of the run
        }
        result_file.write_text(json.dumps({"asked": asked, "result": result}))
        return result

    def command(self, name: str, file: Path, folder: Path) -> list[str]:
        overrides = {
            "config.runner.total_steps": self.settings["steps"],
            "config.runner.log_step": 1,
            "config.runner.save_step": int(self.settings["steps"]) - 1,
            "config.runner.max_keep": 1,
            "config.optimizer.lr": self.settings["learning_rate"],
            "config.optimizer.warmup_proportion": self.settings["warmup_proportion"],
            "config.pretrain_expert.datarc.train_batch_size": self.settings["batch_size"],
            "config.pretrain_expert.datarc.max_timestep": -int(self.settings["crop_samples"]),  # every crop is whole
            "config.pretrain_expert.datarc.num_workers": 0,  # so that the process's own time is all there is
        }
        words = ["run_pretrain.py", "-u", "ekd", "-n", name, "-p", str(folder), "-g", str(file)]
        words += ["-c", str(self.data / "pretrain.yaml"), "--device", "cpu"]
        return [*words, "-o", ",,".join(f"{key}={value}" for key, value in overrides.items())]

    def call(self, command: list[str], metrics: Path | None = None) -> float | None:
        """Run one of our commands to its end.

        Returns:
            audio seconds per second of processor between step SETTLED and the last look at ``metrics``; None without
            it, and on systems without /proc.

        Raises:
            EkdError: it failed; its last lines are shown.
        """
        self.console.print(f"[bold cyan]$ {shlex.join(command)}[/]", highlight=False, soft_wrap=True)
        log = self.work / "command.log"
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        looks: list[tuple[int, float]] = []
        with log.open("w") as output:
            process = subprocess.Popen(own_command(command), stdout=output, stderr=output, env=environment)
            try:
                while process.poll() is None:
                    time.sleep(0.25)
                    looks += _look(process.pid, metrics)
            finally:
                process.kill()
        if process.returncode != 0:
            tail = "\n".join(log.read_text().splitlines()[-15:])
            raise EkdError(f"exit {process.returncode}: {shlex.join(command)}\n{tail}")
        settled = [look for look in looks if look[0] >= SETTLED]
        if not settled or settled[-1][0] <= settled[0][0]:
            return None
        steps, seconds = settled[-1][0] - settled[0][0], settled[-1][1] - settled[0][1]
        audio = int(self.settings["batch_size"]) * int(self.settings["crop_samples"]) / 16_000
        return steps * audio / seconds


def _look(pid: int, metrics: Path | None) -> list[tuple[int, float]]:
    """(steps logged, seconds of processor that the process has used), or nothing."""
    try:
        if metrics is None:
            return []
        steps = metrics.read_bytes().count(b"\n")
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name may hold spaces
    except OSError:
        return []
    return [(steps, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))]  # user and system time


def rows(results: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The table's cells."""
    table = []
    for name, result in results.items():
        heads = f"{result['heads_fallen']} of {len(result['heads'])}"
        speed = result["audio_seconds_per_processor_second"]
        numbers = [f"{result['first']:.3f}", f"{result['last']:.3f}", f"{result['last'] / result['first'] - 1:+.0%}"]
        speeds = ["" if speed is None else f"{speed:.0f}", f"{result['audio_seconds_per_second']:.0f}"]
        table.append([name, *numbers, heads, *speeds])
    return table


COLUMNS = ("variant", "first", "last", "change", "heads that fell", "audio s / core s", "audio s / s")


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """The table as docs/variants.md has it."""
    return markdown_table([COLUMNS, *([f"`{row[0]}`", *row[1:]] for row in rows(results))])


def main() -> int:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.variants", description=__doc__, formatter_class=formatter
    )
    parser.add_argument("--speech", type=Path, required=True, help="folder with pretrain/manifest.tsv")
    parser.add_argument("--work", type=Path, default=Path("result/variants"), help="folder of the runs (%(default)s)")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", nargs="+", choices=variants(), metavar="NAME", help="some variants; default: all")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    options = parser.parse_args()
    if options.steps <= SETTLED + ENDS:
        parser.error(f"--steps: {options.steps}; expected more than {SETTLED + ENDS}")
    bench = Bench(options)
    results = {name: bench.run(name) for name in options.only or variants()}
    table = Table(title=f"loss of the first and last {ENDS} of {options.steps} steps")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "variant" else "right")
    for row in rows(results):
        table.add_row(*row)
    bench.console.print(table)
    bench.console.print("Teachers with random weights. Losses of different target sets do not compare.")
    if options.markdown:
        options.markdown.write_text(markdown(results))
    if options.json:
        command = shlex.join(["python", "-m", "benchmarks.variants", *sys.argv[1:]])
        figures = {
            "command": command,
            "teachers": "random weights",
            "settings": bench.settings,
            "machine": {"processor": common.machine("cpu")["processor"], "threads": 1},
            "versions": versions(),
            "variants": results,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(_rounded(figures), indent=1) + "\n")
    fallen = [name for name, result in results.items() if result["last"] < result["first"]]
    return 0 if len(fallen) == len(results) else 1


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EkdError as error:
        sys.exit(f"error: {error}")
