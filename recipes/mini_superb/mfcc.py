"""What a classifier without any network reaches in SID and ER: a floor under the table of docs/results.md.

python -m recipes.mini_superb.mfcc --speech $SPEECH

Logistic regression on the mean and the standard deviation over time of librosa's MFCCs, 20 or --coefficients N of
them. --speech DIR holds sid and er, each with a manifest.tsv.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import librosa
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from recipes.command import carry_out
from s3prl_ekd.audio import SAMPLE_RATE, read_audio
from s3prl_ekd.console import Console
from s3prl_ekd.corpora.manifest import Row, read_manifest


def accuracy(train: Sequence[Row], test: Sequence[Row], label: str, coefficients: int) -> float:
    """Share of ``test`` whose ``label``, a column of the manifest, is recognised after training on ``train``."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    classifier.fit(*_examples(train, label, coefficients))
    return float(classifier.score(*_examples(test, label, coefficients)))


def _examples(rows: Sequence[Row], label: str, coefficients: int) -> tuple[np.ndarray, list[str]]:
    return np.stack([_statistics(row.audio, coefficients) for row in rows]), [str(getattr(row, label)) for row in rows]


def _statistics(audio: Path, coefficients: int) -> np.ndarray:
    mfcc = librosa.feature.mfcc(y=read_audio(audio), sr=SAMPLE_RATE, n_mfcc=coefficients)  # (coefficients, T)
    return np.concatenate([mfcc.mean(1), mfcc.std(1)])


def main(argv: list[str] | None = None) -> int:
    """Print both accuracies; returns the exit status."""
    parser = argparse.ArgumentParser(prog="recipes.mini_superb.mfcc", description=__doc__.splitlines()[0])
    parser.add_argument("--speech", type=Path, required=True, help="folder of sid and er")
    parser.add_argument("--coefficients", type=int, default=20, metavar="N", help="MFCCs (20)")
    return carry_out(run, parser.parse_args(argv), None)


def run(args: argparse.Namespace) -> None:
    """SID on its test split; ER as the mean over its folds, each tested by a classifier of the others."""
    console = Console()
    sid = read_manifest(args.speech / "sid" / "manifest.tsv").rows
    train, test = ([row for row in sid if row.split == split] for split in ("train", "test"))
    console.out(f"SID {100 * accuracy(train, test, 'speaker', args.coefficients):.1f}")
    er = read_manifest(args.speech / "er" / "manifest.tsv").rows
    folds = [[[row for row in er if (row.fold == fold) == tested] for tested in (False, True)]
             for fold in sorted({row.fold for row in er})]  # fmt: skip
    scores = [accuracy(others, fold, "emotion", args.coefficients) for others, fold in folds]
    console.out(f"ER {100 * np.mean(scores):.1f}")


if __name__ == "__main__":
    sys.exit(main())
