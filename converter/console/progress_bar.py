"""Progress as a bar where a person is looking.

The bar is drawn by a process of its own: native code may hold this one's interpreter for many seconds, as TensorFlow
Lite's converter does, and a bar that stands still looks like a program that does.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from converter.console.streams import tell
from converter.errors import one_line, shorten
from converter.python import python

_EVERY = 60  # seconds


class _Bar:
    """A progress bar on a terminal's standard error, from the first stage on."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def start(self, stage: str, total: int) -> None:
        self._send("start", shorten(one_line(stage), 100), total)

    def advance(self, count: int) -> None:
        self._send("advance", count)

    def status(self, text: str) -> None:
        self._send("status", shorten(one_line(text), 100))

    def say(self, text: str) -> None:
        self._send("say", shorten(one_line(text), 1000))

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()

    def _send(self, *message: Any) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                python("from converter.console import bar_process; bar_process.main()"),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=sys.stderr,
                start_new_session=True,  # Ctrl-C is for the command, which takes the bar away when it ends
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            # One short line at a time, which a pipe takes whole, from whatever thread.
            os.write(self._process.stdin.fileno(), json.dumps(message).encode() + b"\n")


class _Plain:
    """What is worth knowing beforehand, and of long work a line a minute, on a standard error that is no terminal."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def start(self, stage: str, total: int) -> None:
        pass

    def advance(self, count: int) -> None:
        pass

    def status(self, text: str) -> None:
        if time.monotonic() - self._told >= _EVERY:
            self._told = time.monotonic()
            tell(text)

    def say(self, text: str) -> None:
        tell(text)


@contextlib.contextmanager
def progress_for(quiet: bool) -> Iterator[Any]:
    """A bar where a person is looking, plain lines in a pipe, None for silence."""
    if quiet or not sys.stderr.isatty():
        yield None if quiet else _Plain()
        return
    with contextlib.closing(_Bar()) as bar:
        yield bar
