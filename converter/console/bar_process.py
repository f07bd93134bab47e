"""The process that draws the bar: it reads what is done, a line of JSON at a time, until the command ends."""

import json
import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

_COUNTED = 10_000  # up to so many are layers, points, ...; more are bytes


class _Share(ProgressColumn):
    """How many of how many, of bytes the part of a hundred; nothing where the total is not known."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text("")
        return Text(f"{task.completed:.0f}/{task.total:.0f}" if task.total < _COUNTED else f"{task.percentage:3.0f}%")


def main() -> None:
    """Draw on standard error what comes from standard input. What has no total moves too, and shows its seconds."""
    columns = (
        SpinnerColumn("line"),
        TextColumn("{task.description:<18}", markup=False),
        BarColumn(),
        _Share(),
        TimeElapsedColumn(),
    )
    task = None
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        for line in sys.stdin:
            what, *values = json.loads(line)
            if what == "say":
                bar.console.print(values[0], highlight=False, markup=False)
            elif what == "advance" and task is not None:
                bar.advance(task, values[0])
            elif what == "status" and task is not None:
                bar.update(task, description=values[0])
            elif what == "start":
                if task is not None:
                    bar.remove_task(task)
                task = bar.add_task(values[0], total=values[1] or None)
