"""Nested results and inputs, as networks take and give them: tuples, lists and dicts of arrays. One walk for all."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np


def each(function: Callable[[Any], Any], value: Any, plain: bool = False) -> Any:
    """`value` with `function` applied to whatever is not a tuple, list or dict.

    Named tuples and other sorts of dicts are made anew, or with `plain` become tuples and dicts.
    """
    if isinstance(value, Mapping):
        parts = {name: each(function, part, plain) for name, part in value.items()}
        return parts if plain or type(value) is dict else _like(value, parts)
    if isinstance(value, (tuple, list)):
        several = [each(function, part, plain) for part in value]
        if hasattr(value, "_fields") and not plain:
            return type(value)(*several)
        return tuple(several) if isinstance(value, tuple) else several
    return function(value)


def each_at(function: Callable[[str, Any], Any], value: Any, path: str = "") -> Any:
    """The same with a function of (path, part), where paths are those of `flat`; the result is in plain containers."""
    if isinstance(value, Mapping):
        return {name: each_at(function, part, f"{path}.{name}" if path else str(name)) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        several = [each_at(function, part, f"{path}.{i}" if path else str(i)) for i, part in enumerate(value)]
        return tuple(several) if isinstance(value, tuple) else several
    return function(path, value)


def _like(value: Mapping, parts: dict[Any, Any]) -> Any:
    """A dict of the same sort, as libraries have for results."""
    try:
        return type(value)(**parts)
    except TypeError:
        return parts


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, part) of everything in it, in order; None, which stands for a result that is left out, is not among it."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from flat(part, f"{path}.{name}" if path else str(name))
    elif isinstance(value, (tuple, list)):
        for index, part in enumerate(value):
            yield from flat(part, f"{path}.{index}" if path else str(index))
    elif value is not None:
        yield path, value


def arrays(value: Any) -> list[np.ndarray]:
    """Every array or tensor in it, in order; numbers and flags of Python are none."""
    return [np.asarray(part) for _, part in flat(value) if hasattr(part, "shape") and hasattr(part, "dtype")]
