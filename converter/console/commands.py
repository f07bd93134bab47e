"""Commands that end in one line and an exit code, whatever happens."""

import functools
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import click

from converter.console.signals import INTERRUPTED, Stopped, end_on_signals, told
from converter.console.streams import discard, hushed, open_streams, tell
from converter.errors import one_line, shorten

FAILED = 1  # exit code
_MOST_CHOICES = 20


class Command(click.Command):
    """A command that handles signals from the first, also while its arguments are read, which may import modules."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            open_streams()
            end_on_signals()
            status = super().main(*args, **{**kwargs, "standalone_mode": False})
            sys.exit(status if isinstance(status, int) else 0)
        except click.exceptions.Abort:
            sys.exit(INTERRUPTED)
        except click.ClickException as error:
            message = error.format_message()
            if "unexpected extra argument" in message:
                message += "; all but the files that are read are options, as -o OUTPUT and --model NAME"
            fail(message, error.exit_code)
        except OSError as error:
            discard(sys.stdout)
            fail(f"what was asked for cannot be printed: {error.strerror}")
        except Stopped as stopped:
            tell(f"error: {stopped}")
            sys.exit(stopped.code)


class CommandGroup(Command, click.Group):
    pass


def fail(message: str, code: int = FAILED, choices: Sequence[str] = ()) -> NoReturn:
    """End the command with one line of at most 500 characters that only prints; below it, options to copy."""
    lines = ["error: " + shorten(one_line(" ".join(message.split())), 490)]
    lines += [f"  {one_line(choice)}" for choice in choices[:_MOST_CHOICES]]
    if len(choices) > _MOST_CHOICES:
        lines.append(f"  and {len(choices) - _MOST_CHOICES} more")
    tell("\n".join(lines))
    sys.exit(code)


def answering(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what a command raises into one line and an exit code."""

    @click.option("--debug", is_flag=True, help="Show the traceback of an error, and what libraries print.")
    @functools.wraps(command)
    def run(debug: bool, **arguments: Any) -> None:
        try:
            with hushed(debug):
                try:
                    command(**arguments)
                    return
                except (Stopped, Exception):
                    if debug:
                        traceback.print_exc()
                    raise
        except click.exceptions.Exit:
            raise
        except Exception as error:
            stopped = told()
            if stopped is not None:
                raise stopped from error
            if isinstance(error, click.ClickException):
                fail(error.format_message(), error.exit_code)
            fail(*_explained(error), choices=getattr(error, "choices", ()))

    return run


def _explained(error: Exception) -> tuple[str, int]:
    code = getattr(error, "exit_code", None)  # of errors that are meant for users
    if code is not None:
        return str(error), code
    if isinstance(error, MemoryError):
        return "out of memory", FAILED
    from converter.blame import what, where

    place = where(error)
    return f"unexpected {what(error)}{f' at {place}' if place else ''} (--debug shows more)", FAILED
