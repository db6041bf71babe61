"""Carry out a plan: all trainings, dealt over the devices, and a test of each rate that is picked on dev."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from s3prl_ekd.evaluate.devices import slots
from s3prl_ekd.evaluate.folder_lock import locked_folder
from s3prl_ekd.evaluate.grid import Search, searches
from s3prl_ekd.evaluate.marker import Result, Results, Trained
from s3prl_ekd.evaluate.plan import Run
from s3prl_ekd.evaluate.process import Children
from s3prl_ekd.evaluate.progress import Board
from s3prl_ekd.evaluate.run import check_marker, clear_other, do_test, do_train
from s3prl_ekd.evaluate.side_by_side import native_children, work_off


def run_all(
    runs: list[Run],
    board: Board,
    jobs: int = 1,
    overwrite: bool = False,
    devices: Sequence[str] = ("cpu",),
    results: Results | None = None,
    keep_going: bool = False,
) -> Results:
    """Carry out all runs; returns their results in the plan's order, of those that were not tested their training's.

    ``jobs`` runs at a time share the machine's cores; each goes to the device that becomes free. ``results`` is filled
    on the way, for a caller who wants to keep what an interruption left. With ``keep_going`` a run that fails does not
    stop the others, and its error is raised after them.
    """
    results = {} if results is None else results
    with native_children(devices, jobs) as children:
        schedule = _Schedule(runs, board, children, results, overwrite)
        say = board.say if keep_going else None
        work_off(schedule.pending, slots(devices, jobs), children, schedule.done, say)
    return {run.key: results[run.key] for run in runs}


class _Schedule:
    """The work that is left, and the results so far. Only the main thread touches it."""

    def __init__(self, runs: list[Run], board: Board, children: Children, results: Results, overwrite: bool) -> None:
        self.board, self.results = board, results
        self.search_of = {run.key: search for search in searches(runs) for run in search.runs}
        self.do_train = lambda run: _train_alone(run, board, children, overwrite)
        self.do_test = lambda run: _test_alone(run, board, children)
        self.pending: deque[tuple[Callable[[Run], Trained], Run]] = deque((self.do_train, run) for run in runs)

    def done(self, action: Callable[[Run], Trained], run: Run, result: Trained) -> None:
        """Note a result and put a run's test in front of the queue once nothing else can be picked instead."""
        self.results[run.key] = result
        if action is not self.do_train:
            return
        search = self.search_of[run.key]
        if len(search.rates) == 1:
            self.pending.appendleft((self.do_test, run))
        elif all(one.key in self.results for one in search.runs):
            rate = search.picked(self.results)
            self._report_pick(search, rate)
            self.pending.extendleft((self.do_test, one) for one in reversed(search.at(rate)))

    def _report_pick(self, search: Search, rate: float | None) -> None:
        score = search.dev(rate, self.results)
        self.board.say(search.key, f"picked lr {rate:g}: {search.task.dev_split} {search.task.metric} {score:.2f} %")


def _train_alone(run: Run, board: Board, children: Children, overwrite: bool) -> Trained:
    """Train a run that no other call is at: one with another ``--shard`` may have been dealt it too.

    Raises:
        EkdError: it fails; or, without ``overwrite``, the folder has come to hold a run of other settings.
    """
    with locked_folder(run.expdir, str(run.expdir)):
        if not overwrite:
            check_marker(run)
        clear_other(run)
        return do_train(run, board, children)


def _test_alone(run: Run, board: Board, children: Children) -> Result:
    with locked_folder(run.expdir, str(run.expdir)):
        return do_test(run, board, children)
