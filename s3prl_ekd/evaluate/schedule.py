"""Carry out a plan: all trainings, dealt over the devices, and a test of each rate that is picked on dev.

One thread for each run at a time; every thread waits for a native child process (``run.py``).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace

from s3prl_ekd.device import usable_cpus
from s3prl_ekd.evaluate.devices import native_device, slots
from s3prl_ekd.evaluate.fork_server import ForkServer
from s3prl_ekd.evaluate.grid import Search, searches
from s3prl_ekd.evaluate.marker import Results, Trained
from s3prl_ekd.evaluate.plan import Run
from s3prl_ekd.evaluate.process import Children
from s3prl_ekd.evaluate.progress import Board
from s3prl_ekd.evaluate.run import check_marker, clear_other, do_test, do_train

_Action = Callable[[Run, Board, Children], Trained]


def run_all(
    runs: list[Run],
    board: Board,
    jobs: int = 1,
    overwrite: bool = False,
    devices: Sequence[str] = ("cpu",),
    results: Results | None = None,
) -> Results:
    """Carry out all runs; returns their results in the plan's order, of those that were not tested their training's.

    ``jobs`` runs at a time share the machine's cores; each goes to the device that becomes free. ``results`` is filled
    on the way, for a caller who wants to keep what an interruption left.
    """
    results = {} if results is None else results
    for run in runs if not overwrite else ():
        check_marker(run)
    for run in runs:
        clear_other(run)
    # Threads that spin while they wait for one another slow runs side by side down.
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} if jobs > 1 else {}
    if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(max(1, usable_cpus() // jobs))
    server = ForkServer(environment, native_device(devices[0])) if ForkServer.possible(devices) else None
    try:
        _Schedule(runs, board, Children(server, environment), results).carry_out(slots(devices, jobs))
    finally:
        if server is not None:
            server.close()
    return {run.key: results[run.key] for run in runs}


class _Schedule:
    """The work that is left, and the results so far. Only the main thread touches it."""

    def __init__(self, runs: list[Run], board: Board, children: Children, results: Results) -> None:
        self.board, self.children, self.results = board, children, results
        self.search_of = {run.key: search for search in searches(runs) for run in search.runs}
        self.pending: deque[tuple[_Action, Run]] = deque((do_train, run) for run in runs)
        self.decided: set[str] = set()  # searches whose rate is picked

    def carry_out(self, free: list[str]) -> None:
        """Do all the work, ``len(free)`` runs at a time, each on the device that is free."""
        going: dict[Future[Trained], tuple[_Action, Run]] = {}
        with ThreadPoolExecutor(max_workers=len(free)) as pool:
            try:
                while self.pending or going:
                    while self.pending and free:
                        action, run = self.pending.popleft()
                        run = replace(run, device=free.pop(0))
                        going[pool.submit(action, run, self.board, self.children)] = action, run
                    done, _ = wait(going, return_when=FIRST_COMPLETED)
                    ended = [(future, *going.pop(future)) for future in done]
                    for future, _, run in ended:  # all that is done, before a failure among them is raised
                        free.append(run.device)
                        if future.exception() is None:
                            self.results[run.key] = future.result()
                    for future, action, run in ended:
                        future.result()
                        if action is do_train:
                            self._trained(run)
            except BaseException:
                # Nothing that has not begun may begin, and what runs must not outlive us.
                pool.shutdown(wait=False, cancel_futures=True)
                self.children.stop()
                raise

    def _trained(self, run: Run) -> None:
        """Put a run's test in front of the queue once nothing else can be picked instead."""
        search = self.search_of[run.key]
        if len(search.rates) == 1:
            self.pending.appendleft((do_test, run))
        elif search.key not in self.decided and all(one.key in self.results for one in search.runs):
            self.decided.add(search.key)  # its last trainings may have ended together, and each of them asks
            rate = search.picked(self.results)
            self._report_pick(search, rate)
            self.pending.extendleft((do_test, one) for one in reversed(search.at(rate)))

    def _report_pick(self, search: Search, rate: float | None) -> None:
        score = search.dev(rate, self.results)
        self.board.say(search.key, f"picked lr {rate:g}: {search.task.dev_split} {search.task.metric} {score:.2f} %")
