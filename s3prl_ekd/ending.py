"""How a command ends: a user's mistake, a full disk or GPU or a signal is one line on stderr and an exit status.

Any other exception is a bug and keeps its traceback, but what a library makes of a signal: an import of torch's that it
cuts can be an AttributeError, and that an error of the ONNX exporter. The launchers end as s3prl's runs do:
bridge/interrupts.py.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from s3prl_ekd.data_workers import end_children, in_main_thread, killed_workers
from s3prl_ekd.errors import UNWRITABLE, EkdError, is_out_of_memory, message, out_of_memory_line
from s3prl_ekd.signals import HEARD, Signals

STOPPED = tuple(status for number in HEARD for status in (128 + number, -number))
"""Statuses of one of our commands, as ``subprocess`` gives them, that was asked to stop: no failure of its own."""


def carry_out(act: Callable[[], int | None], signals: Signals, advice: str = "") -> int:
    """Do what a command does, and say in a line why it did not come to its end.

    Args:
        act: returns an exit status, or None for 0.
        signals: listens meanwhile, in the main thread; what is kept of an interrupted command lives as long.
        advice: said after a signal.

    Returns:
        The exit status: 0 done, 2 the user's mistake, 130 after SIGINT, 138 SIGUSR1, 143 SIGTERM.
    """
    if in_main_thread():
        signals.listen()
    try:
        return act() or 0
    except EkdError as error:
        sys.stderr.write(f"error: {message(error)}\n")
        return 2
    except KeyboardInterrupt as error:
        return _interrupted(signals, error, advice)
    except Exception as error:
        signals.end()
        line = _unwritable(error)
        if not line:
            if signals.number or signals.ended_workers(error):
                return _interrupted(signals, error, advice)
            line = _out_of_memory(error)
        if not line:
            raise
        sys.stderr.write(f"error: {line}\n")
        return 2
    finally:
        signals.restore()


def _unwritable(error: Exception) -> str:
    """The line on a place that cannot be written; empty for another error."""
    if not isinstance(error, OSError) or error.errno not in UNWRITABLE:
        return ""
    where = f"{error.filename}: " if error.filename else ""  # a write to a full disk doesn't name its file
    return f"{where}{error.strerror}"


def _out_of_memory(error: Exception) -> str:
    """The line on a GPU, or a system, without memory left; empty for another error."""
    if not isinstance(error, RuntimeError):
        return ""
    if is_out_of_memory(error):
        return out_of_memory_line(error)
    return killed_workers(error)


def _interrupted(signals: Signals, error: BaseException, advice: str) -> int:
    signals.end()
    signals.hold(error)
    end_children(grace=2.0)
    number = signals.number or signal.SIGINT
    how = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    sys.stderr.write(f"{how}; {advice}\n" if advice else f"{how}\n")
    return 128 + number
