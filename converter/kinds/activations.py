"""How arrays that go into a layer and come out of it are laid out in torch and in Keras: patterns, by name or place."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from converter import nested
from converter.kinds.axes import Pattern, pattern

IMAGES = "n c ... -> n ... c"  # channels first in torch, last in Keras
SEQUENCES = "l n ... -> n l ..."  # time first in torch, where `batch_first` is off

# Path of an array among the arguments or the results ("0", "query", "1.0"; "" is each of them) -> its axes in torch
# and in Keras. What has no pattern is the same on both sides.
Axes = Mapping[str, str]


def arrange(value: Any, axes: Axes, sizes: Mapping[str, int] | None = None) -> Any:
    """Torch's arrays, in tuples, lists and dicts, as Keras has them; `sizes` are lengths that no array tells.

    Raises:
        ValueError: an array that is named does not have the axes of its pattern.
    """
    return nested.each_at(lambda path, part: arranged(part, path, axes, sizes), value) if axes else value


def arranged(part: Any, path: str, axes: Axes, sizes: Mapping[str, int] | None = None) -> Any:
    """The same of the array at one path. Under "" stands what arrays have that fit it; where the pattern does not say
    how many axes there are, those with an axis for its `...` at the least, as images have three or more."""
    named = _named(path, axes)
    if not isinstance(part, np.ndarray) or named is None:
        return part
    found = one_each(axes[named])
    if named == "" and "..." in axes[named] and part.ndim < len(re.findall(r"\([^)]*\)|\S+", found.sides[0])):
        return part
    try:
        [shape] = found.reversed().shapes([part.shape], sizes)
    except ValueError as error:
        if named:
            raise ValueError(f"{path}: {error}") from None
        return part
    return found.apply([part], [shape], sizes)[0]


def one_each(text: str) -> Pattern:
    """The pattern of one array on either side.

    Raises:
        ValueError: it is none, or of several.
    """
    if not isinstance(text, str):
        raise ValueError(f"a pattern is text, as `n c l -> n l c`, not {text!r}")
    found = pattern(text)
    if len(found.left) != 1 or len(found.right) != 1:
        raise ValueError(f"a pattern of inputs and results is of one array; {text!r} is of several")
    return found


def _named(path: str, axes: Axes) -> str | None:
    """The key that is for this path: itself, or the nearest above it."""
    while path not in axes:
        if not path:
            return None
        path = path.rpartition(".")[0]
    return path
