"""Rows side by side: each is distilled, then evaluated; what a row needs of another it waits for.

Threads: the work is in the commands that they call.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

from recipes.mini_superb import scores
from recipes.mini_superb.settings import Row
from recipes.mini_superb.students import Students, model_config, write_config
from s3prl_ekd.errors import EkdError, one_line

logger = logging.getLogger(__name__)


class Rows:
    """How a row is made.

    Args:
        students: of the experiment.
        tasks: to evaluate on.
        how: further words of ``s3prl-ekd evaluate``.
        results: gets ``ROW/seedN``.
    """

    def __init__(self, students: Students, tasks: list[str], how: list[str], results: Path) -> None:
        self.students, self.tasks, self.how, self.results = students, tasks, how, results

    def make(self, row: Row, seed: int, first: Future[bool] | None) -> None:
        """Distil and evaluate a row at a seed, and keep its results.

        Args:
            first: the row at the first seed, which picks the learning rates; None where it isn't made in this call.
        """
        students, started = self.students, time.monotonic()
        model = self._model_words(row, seed)
        made = time.monotonic()
        if first is not None and not first.result():
            raise EkdError("its first seed failed, which picks the learning rates")
        began = time.monotonic()
        folder = students.work / "scores" / row.name / f"seed{seed}"
        try:
            scores.evaluate(students, row, model, seed, folder, self.tasks, self.how)
        except BaseException:  # tasks that were done before an interruption count
            with suppress(EkdError):  # which must not hide it
                self._keep(folder, row, seed)
            raise
        self._keep(folder, row, seed)
        spent = time.monotonic() - began
        logger.info("seed %d, %s: student %.0f s, scores %.0f s", seed, row.name, made - started, spent)

    def _keep(self, folder: Path, row: Row, seed: int) -> None:
        if (folder / scores.SCORES).is_file():
            target = self.results / row.name / f"seed{seed}"
            scores.keep(folder, self.students.folder(row.name, seed), self.students.work, target)

    def _model_words(self, row: Row, seed: int) -> list[str]:
        """What names a row's model to ``s3prl-ekd evaluate``; students are distilled for it."""
        if row.kind == "upstream":
            return ["--upstream", row.what]
        if row.kind in ("teacher", "untrained_teacher"):
            return ["--teacher", row.what]
        if row.kind == "untrained":
            config = model_config(self.students.experiment, row)
            return ["--untrained", str(write_config(config, self.students.folder(row.name, seed)))]
        return ["--ckpt", str(self.students.checkpoint(row, seed))]


def make(how: Rows, rows: list[Row], seeds: list[int], parallel: int) -> None:
    """Make every row at every seed, ``parallel`` at a time; a row that fails stops no other.

    They begin in the order of ``rows``, at the first seed before the others: a row waits only for earlier ones, which
    have begun.

    Raises:
        EkdError: at the end; which rows failed.
        KeyboardInterrupt: this process or a command was interrupted; all are stopped.
    """
    main = how.students.experiment.evaluation.seeds[0]
    failed: list[tuple[int, Row, str]] = []

    def attempt(row: Row, seed: int, first: Future[bool] | None) -> bool:
        try:
            how.make(row, seed, first)
        except CancelledError:
            raise KeyboardInterrupt from None
        except Exception as error:
            text = one_line(error) if isinstance(error, EkdError) else f"{type(error).__name__}: {error}"
            logger.error("seed %d, %s: %s", seed, row.name, text, exc_info=not isinstance(error, EkdError))
            failed.append((seed, row, text))
            return False
        return True

    ordered = sorted(dict.fromkeys(seeds), key=lambda seed: seed != main)
    firsts: dict[str, Future[bool]] = {}
    futures = []
    with ThreadPoolExecutor(parallel) as pool:
        try:
            for seed in ordered:
                for row in rows:
                    future = pool.submit(attempt, row, seed, firsts.get(row.name))
                    if seed == main:
                        firsts[row.name] = future
                    futures.append(future)
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            how.students.call.stop()
            raise
    if failed:
        names = ", ".join(f"{row.name} (seed {seed})" for seed, row, _ in failed)
        raise EkdError(f"{len(failed)} of {len(futures)} failed: {names}; the first: {failed[0][2]}")
