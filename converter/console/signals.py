"""Ctrl-C and SIGTERM end a command as an error does."""

import atexit
import signal
import sys
from typing import Any

INTERRUPTED, TERMINATED = 130, 143  # exit codes


class Stopped(BaseException):
    """The command was told to end. Like KeyboardInterrupt, what handles errors must not take it for one."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


_told: list[Stopped] = []


def told() -> Stopped | None:
    """What the command was told, if it was: Python and libraries may have put another exception in its place."""
    return _told[0] if _told else None


def end_on_signals() -> None:
    """Have Ctrl-C and SIGTERM end the command as an error does, so that what it began is cleaned up."""

    def stop(number: int, _frame: Any) -> None:
        _ignore_signals()  # a second one would disturb the cleaning up
        if replaced():
            return  # a command that says it was interrupted has changed nothing
        words = ("interrupted", INTERRUPTED) if number == signal.SIGINT else ("terminated", TERMINATED)
        _told.append(Stopped(*words))
        raise _told[0]

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)
    atexit.register(_ignore_signals)  # Python takes our handler away before it ends


def _ignore_signals() -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)


def replaced() -> bool:
    """Whether an output has taken its place."""
    atomic = sys.modules.get("converter.files.atomic")
    return atomic is not None and atomic.replaced.is_set()
