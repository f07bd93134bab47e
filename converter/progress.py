"""Telling a person how far the work is."""

from typing import Protocol


class Progress(Protocol):
    """Told what is being done, and how far it is; `converter.console.progress_bar` has one that draws a bar.

    `start` begins a stage of `total` steps, 0 where nobody knows how many; `advance` tells of steps that are done.
    """

    def start(self, stage: str, total: int) -> None: ...
    def advance(self, count: int) -> None: ...
    def say(self, text: str) -> None: ...


class Silent:
    """Tells nobody."""

    def start(self, stage: str, total: int) -> None:
        pass

    def advance(self, count: int) -> None:
        pass

    def say(self, text: str) -> None:
        pass
