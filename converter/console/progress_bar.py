"""Progress as a bar where a person is looking."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from converter.console.streams import tell


class _Bar:
    """A progress bar on a terminal's standard error."""

    def __init__(self, bar: Any):
        self._bar, self._task = bar, None

    def start(self, stage: str, total: int) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(stage, total=total or None)

    def advance(self, count: int) -> None:
        self._bar.advance(self._task, count)

    def say(self, text: str) -> None:
        self._bar.console.print(text, highlight=False)


class _Plain:
    """What is worth knowing beforehand, on a standard error that is no terminal."""

    def start(self, stage: str, total: int) -> None:
        pass

    def advance(self, count: int) -> None:
        pass

    def say(self, text: str) -> None:
        tell(text)


@contextlib.contextmanager
def progress_for(quiet: bool) -> Iterator[Any]:
    """A bar where a person is looking, plain lines in a pipe, None for silence."""
    if quiet or not sys.stderr.isatty():
        yield None if quiet else _Plain()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<18}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(bar)
