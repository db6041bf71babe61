"""Train one of the embedded teachers, or one of your own.

python -m recipes.tiny_teachers tiny_hubert --data data --noise ../shared/speech/noise --out teachers
python -m recipes.tiny_teachers tiny_robust_hubert ...   (needs embedded:tiny_hubert)
python -m recipes.tiny_teachers tiny_wavlm ...           (needs embedded:tiny_hubert)

Stages that are finished are kept, one that was stopped goes on: give the same command again.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from recipes.tiny_teachers.settings import NOISE, STAGE, StageSettings, TeacherSettings, read_settings
from recipes.tiny_teachers.ship import ship
from recipes.tiny_teachers.train import Machine, Stage
from recipes.tiny_teachers.units import make_units
from s3prl_ekd.config import check_runner_config, read_yaml
from s3prl_ekd.data.lengths import LengthTable, read_lengths
from s3prl_ekd.data.recipe import DistortionConfig
from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.encoder import Encoder
from s3prl_ekd.model.shape import EncoderShape
from s3prl_ekd.teachers import sources

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
DATA = "LibriSpeech train-clean-100 (Panayotov et al. 2015) and speechocean762 (Zhang et al. 2021), 7.6 h in all"
LICENCE = "weights: MIT; both corpora: CC BY 4.0"
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main(argv: list[str] | None = None) -> int:
    """Train every stage of a teacher and write its folder; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    args = _parser().parse_args(argv)
    try:
        train_teacher(args, f"python -m recipes.tiny_teachers {shlex.join(argv)}")
    except EkdError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def train_teacher(args: argparse.Namespace, command: str) -> Path:
    """Train what the arguments name; the teacher's folder."""
    file = Path(args.teacher) if args.teacher.endswith(".yaml") else HERE / f"{args.teacher}.yaml"
    settings = read_settings(file)
    name = file.stem
    stages = [_with_noise(stage, args.noise, f"{file}: stages[{i}]") for i, stage in enumerate(settings.stages)]
    table = _corpus(args.data)
    machine = Machine(torch.device(args.device), PRECISIONS[args.precision], args.workers)
    logger.info("[%s] %d utterances, %.1f h", name, len(table.paths), table.hours)
    folder = args.out / name
    records: list[dict[str, Any]] = []
    encoder, vector = None, None
    for stage in stages:
        encoder, vector, record = _stage(stage, settings, table, folder, machine)
        records.append(record)
        facts = {"name": name, "data": args.data_name, "licence": args.licence, "command": command, "stages": records}
        ship(encoder, vector, folder / stage.name / "model", settings, facts)
    assert encoder is not None and vector is not None
    teacher = ship(encoder, vector, folder / "teacher", settings, facts)
    logger.info("[%s] %s", name, teacher)
    return teacher


def _stage(
    stage: StageSettings, settings: TeacherSettings, table: LengthTable, folder: Path, machine: Machine
) -> tuple[Encoder, torch.Tensor, dict[str, Any]]:
    logger.info("[%s] %d steps of %g s of audio", stage.name, stage.steps, stage.batch_seconds)
    shape = settings.encoder_shape
    of_units = None if stage.units.encoder is None else _load(stage.units.encoder, folder)
    units = make_units(table, stage.units, of_units, shape, settings.seed, folder / stage.name / "units.npz")
    encoder = _start(stage.start, shape, settings.seed, folder)
    training = Stage(encoder, table, units, stage, settings.seed, folder / stage.name, machine)
    record = training.run()
    return encoder, training.mask_vector, record


def _start(source: str | None, shape: EncoderShape, seed: int, folder: Path) -> Encoder:
    """A random encoder of the shape, or one with the weights of another where both have them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(shape)
    if source is not None:
        other = _load(source, folder)
        if (other.shape.width, other.shape.conv_layers) != (shape.width, shape.conv_layers):
            raise EkdError(f"start: {source} has another shape")
        missing, unexpected = encoder.load_state_dict(other.state_dict(), strict=False)
        if unexpected:
            raise EkdError(f"start: {source} has weights that this shape lacks: {unexpected[0]}")
        if missing:
            logger.info("[start] %s does not have %s, which start at random", source, ", ".join(missing))
    return encoder


def _load(source: str, folder: Path) -> Encoder:
    if source.startswith(STAGE):
        source = str(folder / source.removeprefix(STAGE) / "model")
    encoder = sources.load(sources.describe(source, "units.encoder or start"), "units.encoder or start")
    if not isinstance(encoder, Encoder):
        raise EkdError(f"{source}: an s3prl expert; units and starts are of our own encoders only")
    return encoder


def _with_noise(stage: StageSettings, noise: str | None, where: str) -> StageSettings:
    """The stage with --noise where its file says NOISE."""
    if stage.distortion is None:
        return stage
    values = stage.distortion.model_dump()
    for section, key in (("additive", "noise"), ("non_additive", "reverb")):
        listed = (values.get(section) or {}).get(key, [])
        if NOISE in listed and noise is None:
            raise EkdError(f"{where}.distortion.{section}.{key}: give --noise DIR (noise and room responses)")
        if listed:
            values[section][key] = [noise if entry == NOISE else entry for entry in listed]
    return stage.model_copy(update={"distortion": DistortionConfig.model_validate(values)})


def _corpus(data: Path) -> LengthTable:
    file = data / "pretrain.yaml"
    return read_lengths(check_runner_config(read_yaml(file), str(file)).pretrain_expert.datarc)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.tiny_teachers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join(sorted(file.stem for file in HERE.glob("*.yaml")))
    parser.add_argument("teacher", help=f"{known}, or a YAML file")
    parser.add_argument("--data", type=Path, required=True, help="what s3prl-ekd prepare made of the training speech")
    parser.add_argument("--noise", help="noise and room responses, for stages that distort")
    parser.add_argument("--out", type=Path, required=True, help="gets NAME/STAGE/ and NAME/teacher/")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16", help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=1, help="processes that read audio (default: %(default)s)")
    parser.add_argument("--data-name", default=DATA, help="for the teacher's record")
    parser.add_argument("--licence", default=LICENCE, help="for the teacher's record")
    return parser


if __name__ == "__main__":
    sys.exit(main())
