"""Whose error it was: a pair's functions are a person's program, and what they raise is told with the line of it."""

import contextlib
from collections.abc import Iterator

from converter.errors import ConversionError, one_line
from tf_models.runtime.blame import begins, what, where, where_and_what

__all__ = ["PairError", "begins", "blaming", "told", "what", "where", "where_and_what"]


class PairError(ConversionError):
    """A pair's own function raised what it should not. The cause is what it raised."""


@contextlib.contextmanager
def blaming(pair: str, field: str, passing: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Have what the pair's `field` (as `build_tf`) raises in this block told as its own.

    Errors that are meant for users, a lack of memory, and those of the types `passing` pass as they are.

    Raises:
        PairError: anything else was raised.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (ConversionError, MemoryError, *passing)):
            raise
        raise PairError(told(pair, field, error)) from error


def told(pair: str, field: str, error: BaseException) -> str:
    """`build_tf of vit failed at my_tf.py:31: ValueError: ...`; without the place where it is not the user's code."""
    at = " at " if where(error) else ": "
    return f"{field} of {one_line(pair)} failed{at}{where_and_what(error)}"
