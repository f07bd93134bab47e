"""Standard output and standard error: results, and one line for what goes wrong."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from converter.console.signals import replaced
from converter.errors import aligned, one_line


def print_lines(*lines: str) -> None:
    """Print a result to standard output, each line escaped where it would do more than print.

    Raises:
        ClickException: it cannot be printed, though not because the reader has seen enough.
    """
    try:
        click.echo("\n".join(map(one_line, lines)))
    except BrokenPipeError:
        discard(sys.stdout)
    except OSError as error:
        discard(sys.stdout)
        written = "; the output is written" if replaced() else ""
        raise click.ClickException(f"the report cannot be printed: {error.strerror}{written}") from None


def print_json(data: Any) -> None:
    print_lines(*json.dumps(data, indent=2).split("\n"))


def print_report(report: Any, as_json: bool, *more: tuple[str, str]) -> None:
    """What happened: `report.lines()`, with more (heading, text) behind them, or JSON."""
    if as_json:
        print_json(report.to_dict())
    else:
        print_lines(*aligned([*report.lines(), *more]))


def tell(text: str) -> None:
    """Print to standard error, if that is possible."""
    try:
        click.echo(text, err=True)
    except OSError:
        discard(sys.stderr)


def discard(stream: Any) -> None:
    """Have what a stream could not print, and still holds, go nowhere; Python would fail over it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def hushed(debug: bool) -> Iterator[None]:
    """Keep what native libraries print at import away from standard error, so that errors stay one line."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if debug:
        yield
        return
    logging.getLogger().addHandler(logging.NullHandler())
    sys.stderr.flush()
    kept = os.dup(2)
    python_stderr = sys.stderr
    with open(os.devnull, "w") as nowhere, open(kept, "w", closefd=True, errors="backslashreplace") as screen:
        os.dup2(nowhere.fileno(), 2)
        sys.stderr = screen
        try:
            yield
        finally:
            screen.flush()
            sys.stderr = python_stderr
            os.dup2(kept, 2)


def open_streams() -> None:
    """Open what the caller closed; a file would get its number, and in it what libraries print."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for as long as the process lives
