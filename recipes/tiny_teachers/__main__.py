"""Train one of the embedded teachers, or one of your own.

python -m recipes.tiny_teachers tiny_hubert --data data --noise $SPEECH/noise --out teachers
python -m recipes.tiny_teachers tiny_robust_hubert ...   (needs embedded:tiny_hubert)
python -m recipes.tiny_teachers tiny_wavlm ...           (needs embedded:tiny_hubert)

Stages that are finished are kept, one that was stopped goes on: give the same command again.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recipes.command import carry_out
from recipes.tiny_teachers.settings import HOP, NOISE, STAGE, StageSettings, TeacherSettings, read_settings
from recipes.tiny_teachers.ship import ship
from recipes.tiny_teachers.train import Machine, Stage
from recipes.tiny_teachers.units import make_units
from s3prl_ekd.checked import read_yaml
from s3prl_ekd.config import DistortionConfig, check_runner_config
from s3prl_ekd.data.lengths import LengthTable, read_lengths
from s3prl_ekd.device import find_device
from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.encoder import Encoder
from s3prl_ekd.model.student import START_FIELDS
from s3prl_ekd.shape import EncoderShape
from s3prl_ekd.signals import Signals, leave
from s3prl_ekd.teachers import sources
from s3prl_ekd.teachers.fingerprint import data_digest, weights_digest

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
DATA = "LibriSpeech train-clean-100 (Panayotov et al. 2015) and speechocean762 (Zhang et al. 2021), 7.6 h in all"
NOISE_DATA = "noise and rooms of ESC-10, Speech Commands, speechbrain, OpenAIR (CC0, CC BY 4.0, Apache-2.0)"
LICENCE = "weights: MIT; both corpora: CC BY 4.0"
# What weights depend on; attention may differ, its gates then start at random
_SAME = (*START_FIELDS, "feature_norm", "layers")
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main(argv: list[str] | None = None, signals: Signals | None = None) -> int:
    """Train every stage of a teacher and write its folder; returns the exit status."""
    return carry_out(train_teacher, _parser().parse_args(argv), signals)


def train_teacher(args: argparse.Namespace) -> Path:
    """Train what the arguments name; the teacher's folder."""
    file = Path(args.teacher) if args.teacher.endswith(".yaml") else HERE / f"{args.teacher}.yaml"
    settings = read_settings(file)
    for index, stage in enumerate(settings.stages):
        with_noise(stage, args.noise, f"{file}: stages[{index}]")  # mistakes show before anything is computed
        check_sources(stage, settings.encoder_shape, f"{file}: stages[{index}]")
    machine = Machine(find_device(args.device), PRECISIONS[args.precision], args.workers)
    if machine.device.type == "cuda":
        torch.cuda.set_device(machine.device)  # masks are drawn from this device's generator, which is then saved
    recipe = _Recipe(settings, file, args.noise, args.out / file.stem, _corpus(args.data), machine)
    logger.info("[%s] %d utterances, %.1f h", file.stem, len(recipe.table.paths), recipe.table.hours)
    distorts = any(stage.distortion is not None for stage in settings.stages)
    data = f"{args.data_name}; {args.noise_name}" if distorts else args.data_name
    record: dict[str, Any] = {"name": file.stem, "data": data, "licence": args.licence}
    record["command"] = f"python -m recipes.tiny_teachers {args.teacher} --data DATA --noise NOISE --out OUT"
    record["stages"] = []
    for index, stage in enumerate(settings.stages):
        training = recipe.stage(index, stage)
        record["stages"].append(training.run())
        folders = [recipe.folder / stage.name / "model"]
        if stage is settings.stages[-1]:
            folders.append(recipe.folder / "teacher")
        for folder in folders:
            ship(training.encoder, training.mask_vector, folder, settings, record)
    logger.info("[%s] %s", file.stem, recipe.folder / "teacher")
    return recipe.folder / "teacher"


@dataclass(frozen=True)
class _Recipe:
    """A teacher's file, where it is carried out and on what."""

    settings: TeacherSettings
    file: Path
    noise: str | None
    folder: Path
    table: LengthTable
    machine: Machine

    def stage(self, index: int, stage: StageSettings) -> Stage:
        """Make a stage's units, then its training, ready to run or to go on."""
        where = f"{self.file}: stages[{index}]"
        logger.info("[%s] %d steps of %g s of audio", stage.name, stage.steps, stage.batch_seconds)
        seed, shape = self.settings.seed, self.settings.encoder_shape
        data = data_digest(self.table, "/")
        codebooks, made = [], []
        for book, settings in enumerate(stage.units):
            of_units, digest = self._encoder(settings.encoder, f"{where}.units[{book}].encoder")
            # where the settings name an encoder, what counts is its weights
            of_book = {"units": settings.model_dump(exclude={"encoder"}), "encoder": digest, "seed": seed, "data": data}
            file = self.folder / stage.name / f"units-{book}.npz"
            codebooks.append(make_units(self.table, settings, of_units, shape, of_book, file, self.machine.device))
            made.append(of_book)
        encoder, start = self._start(stage.start, f"{where}.start")
        made_by: dict[str, Any] = {"codebooks": made, "stage": stage.model_dump(mode="json"), "seed": seed}
        made_by |= {"shape": shape.to_dict(), "start": start}
        heard = with_noise(stage, self.noise, where)
        return Stage(encoder, self.table, codebooks, heard, made_by, self.folder / stage.name, self.machine)

    def _start(self, source: str | None, where: str) -> tuple[Encoder, str | None]:
        """A random encoder of the shape, with another's weights where there are such; and these weights' digest."""
        shape = self.settings.encoder_shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            encoder = Encoder(shape)
        other, digest = self._encoder(source, where)
        if other is not None:
            missing, unexpected = encoder.load_state_dict(other.state_dict(), strict=False)
            if unexpected:
                raise EkdError(f"{where}: {source} has weights that this shape lacks: {unexpected[0]}")
            if missing:
                logger.info("[start] %s does not have %s, which start at random", source, ", ".join(missing))
        return encoder, digest

    def _encoder(self, source: str | None, where: str) -> tuple[Encoder | None, str | None]:
        """A source's encoder and the digest of its weights."""
        if source is None:
            return None, None
        if source.startswith(STAGE):
            source = str(self.folder / source.removeprefix(STAGE) / "model")
        described = sources.describe(source, where)
        encoder = sources.load(described, where)
        if not isinstance(encoder, Encoder):
            raise EkdError(f"{where}: {source} is an s3prl expert; units and starts are of our own encoders only")
        return encoder, weights_digest(described, where, download=True)


def check_sources(stage: StageSettings, shape: EncoderShape, where: str) -> None:
    """See that the encoders which a stage names from outside its file fit; nothing is loaded.

    Raises:
        EkdError: the key, and what does not.
    """
    for key, source, layer in (
        *((f"units[{book}]", units.encoder, units.layer) for book, units in enumerate(stage.units)),
        ("start", stage.start, None),
    ):
        if source is None or source.startswith(STAGE):
            continue
        at = f"{where}.{key}" if layer is None else f"{where}.{key}.encoder"
        theirs = sources.describe(source, at).shape
        if theirs.hop != HOP:
            raise EkdError(f"{at}: {source} has a frame every {theirs.hop} samples, expected 320 (20 ms)")
        if layer is not None and layer > theirs.layers:
            raise EkdError(f"{where}.{key}.layer: {layer} > {theirs.layers}")
        for name in _SAME if layer is None else ():
            if getattr(shape, name) != getattr(theirs, name):
                raise EkdError(f"{at}: {name} is {getattr(theirs, name)} in {source}, {getattr(shape, name)} in shape")


def with_noise(stage: StageSettings, noise: str | None, where: str) -> StageSettings:
    """The stage with --noise where its file says NOISE.

    Raises:
        EkdError: it says so, and there is no --noise.
    """
    if stage.distortion is None:
        return stage
    values = stage.distortion.model_dump()
    for section, key in (("additive", "noise"), ("non_additive", "reverb")):
        part = values.get(section)
        if part is None or NOISE not in part[key]:
            continue
        if noise is None:
            raise EkdError(f"{where}.distortion.{section}.{key}: give --noise DIR (noise and room responses)")
        part[key] = [noise if entry == NOISE else entry for entry in part[key]]
        part["weights"] = {noise if name == NOISE else name: weight for name, weight in part["weights"].items()}
    return stage.model_copy(update={"distortion": DistortionConfig.model_validate(values)})


def _corpus(data: Path) -> LengthTable:
    file = data / "pretrain.yaml"
    return read_lengths(check_runner_config(read_yaml(file), str(file)).pretrain_expert.datarc, str(file))


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
    parser.add_argument("--noise-name", default=NOISE_DATA, help="for the record of a teacher that heard noise")
    parser.add_argument("--licence", default=LICENCE, help="for the teacher's record")
    return parser


if __name__ == "__main__":
    listening = Signals()
    sys.exit(leave(main(signals=listening)))
