"""Native commands side by side, each on the device that is free: what evaluations and tests on distorted audio share.

One thread for each command at a time; every thread waits for a child process (``process.py``).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Protocol, Self, TypeVar

from s3prl_ekd.device import usable_cpus
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.devices import native_device
from s3prl_ekd.evaluate.fork_server import ForkServer
from s3prl_ekd.evaluate.process import Children


class Job(Protocol):
    """What has a name and a device to go to."""

    @property
    def key(self) -> str: ...

    @property
    def device(self) -> str: ...

    def on(self, device: str) -> Self:
        """The same job on that device."""


One = TypeVar("One", bound=Job)
Result = TypeVar("Result")


@contextmanager
def native_children(devices: Sequence[str], jobs: int) -> Iterator[Children]:
    """What starts the native commands; ``jobs`` at a time share the machine's cores."""
    # Threads that spin while they wait for one another slow runs side by side down.
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} if jobs > 1 else {}
    if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(max(1, usable_cpus() // jobs))
    server = ForkServer(environment, native_device(devices[0])) if ForkServer.possible(devices) else None
    try:
        yield Children(server, environment)
    finally:
        if server is not None:
            server.close()


def work_off(
    pending: deque[tuple[Callable[[One], Result], One]],
    free: list[str],
    children: Children,
    done: Callable[[Callable[[One], Result], One, Result], None],
    say: Callable[[str, str], None] | None,
) -> None:
    """Do all the work, ``len(free)`` jobs at a time.

    Args:
        pending: what is to be done, in order: an action and its job.
        free: devices, once for each job that it may have at a time.
        children: whatever the actions start; stopped where one of them fails.
        done: called in this thread with each action that has ended, and may add to ``pending``.
        say: prints a line about a job, by its name: of what fails, while the rest goes on, until its error is raised
            at the end. None: the first that fails ends all.
    """
    failed: dict[str, EkdError] = {}

    def fail(job: One, error: EkdError) -> None:
        if say is None:
            raise error
        failed.setdefault(job.key, error)
        say(job.key, f"failed: {error}")

    going: dict[Future[Result], tuple[Callable[[One], Result], One]] = {}
    with ThreadPoolExecutor(max_workers=len(free)) as pool:
        try:
            while pending or going:
                while pending and free:
                    action, job = pending.popleft()
                    job = job.on(free.pop(0))
                    going[pool.submit(action, job)] = action, job
                # in slices: a signal that another thread was given does not wake this one, which is to obey it
                found = wait(going, timeout=1.0, return_when=FIRST_COMPLETED).done
                ended = [(future, *going.pop(future)) for future in found]
                for future, action, job in ended:  # all that is done, before a failure among them is raised
                    free.append(job.device)
                    if future.exception() is None:
                        try:
                            done(action, job, future.result())
                        except EkdError as error:
                            fail(job, error)
                for future, _, job in ended:
                    try:
                        future.result()
                    except EkdError as error:
                        fail(job, error)
        except BaseException:
            # Nothing that has not begun may begin, and what runs must not outlive us.
            pool.shutdown(wait=False, cancel_futures=True)
            children.stop()
            raise
    if failed:
        first, *others = failed
        also = f" (also failed: {', '.join(others)})" if others else ""
        raise EkdError(f"{first}: {failed[first]}{also}")
