"""The display of native runs that go on: one status line a run, and one line when a phase ends.

On a terminal the lines are live (rich); in a pipe or a CI log only starts and ends are written.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from s3prl_ekd.console import Console
from s3prl_ekd.evaluate.marker import Result
from s3prl_ekd.evaluate.process import Progress as RunProgress
from s3prl_ekd.evaluate.process import Watcher

HEARTBEAT = 60.0  # seconds between two lines of one run where no live display is possible


class Board:
    """The status lines of several runs; use it as a context manager around :func:`run_all`.

    ``width`` is the longest name of a run in characters.
    """

    def __init__(self, console: Console, width: int = 10) -> None:
        self.console = console
        self.width = width
        self._live = Progress(
            TextColumn(f"[bold]{{task.fields[run]:<{width}}}[/] {{task.description:<5}}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed:>5.0f}/{task.total:<5.0f}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[news]}[/]"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Board:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    @contextmanager
    def phase(self, run: str, name: str) -> Iterator[Watcher]:
        """A live line for one phase (``train`` or ``test``) of a run; yields what :func:`run_logged` reports to."""
        started = last_line = time.monotonic()
        if not self.console.is_terminal:
            self.say(run, f"{name} ...")
        line = self._live.add_task(name, run=run, total=1, news="starting")

        def watch(progress: RunProgress) -> None:
            nonlocal last_line
            step, total = progress.step, progress.total
            if total == 0:
                step, total = progress.phase_step, progress.phase_total
            news = progress.score or progress.phase
            self._live.update(line, completed=step, total=max(total, 1), news=escape(news))
            if not self.console.is_terminal and time.monotonic() - last_line > HEARTBEAT:
                last_line = time.monotonic()
                self.say(run, f"{name} {step}/{total} {news}")

        try:
            yield watch
        finally:
            self._live.remove_task(line)
        self.say(run, f"{name} done in {time.monotonic() - started:.0f} s")

    def kept(self, run: str, tested: bool) -> None:
        """Print that a run is not run again: it was tested, or only trained, its rate not picked."""
        self.say(run, "done before, kept" if tested else "trained before, kept")

    def finished(self, run: str, result: Result) -> None:
        """Print a run's score."""
        metric = next(key for key in ("per", "wer", "acc") if key in result)
        cer = f", cer {result['rescored']['cer']:.2f} %" if "cer" in result["rescored"] else ""
        self.console.print(
            f"[bold]{run:<{self.width}}[/] {metric} [bold green]{result[metric]:.2f} %[/]{cer}", highlight=False
        )

    def say(self, run: str, text: str) -> None:
        """Print one line about a run."""
        self.console.print(f"[bold]{run:<{self.width}}[/] [dim]{escape(text)}[/]", highlight=False)
