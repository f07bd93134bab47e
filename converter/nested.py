"""Nested results and inputs, as networks take and give them: tuples, lists, dicts and dataclasses of arrays. One walk
for all."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np


def each(function: Callable[[Any], Any], value: Any, plain: bool = False) -> Any:
    """`value` with `function` applied to whatever is not a tuple, list, dict or dataclass.

    Named tuples, dataclasses and other sorts of dicts are made anew, or with `plain` become tuples and dicts.
    """
    if isinstance(value, Mapping):
        parts = {name: each(function, part, plain) for name, part in value.items()}
        return parts if plain or type(value) is dict else _like(value, parts)
    if isinstance(value, (tuple, list)):
        several = [each(function, part, plain) for part in value]
        if hasattr(value, "_fields") and not plain:
            return type(value)(*several)
        return tuple(several) if isinstance(value, tuple) else several
    if is_dataclass(value) and not isinstance(value, type):
        parts = {name: each(function, part, plain) for name, part in _fields(value)}
        return parts if plain else _changed(value, parts)
    return function(value)


def each_at(function: Callable[[str, Any], Any], value: Any, path: str = "") -> Any:
    """The same with a function of (path, part), where paths are those of `flat`; the result is in plain containers."""
    if isinstance(value, Mapping):
        return {name: each_at(function, part, f"{path}.{name}" if path else str(name)) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        several = [each_at(function, part, f"{path}.{i}" if path else str(i)) for i, part in enumerate(value)]
        return tuple(several) if isinstance(value, tuple) else several
    if is_dataclass(value) and not isinstance(value, type):
        return each_at(function, dict(_fields(value)), path)
    return function(path, value)


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    return ((one.name, getattr(value, one.name)) for one in fields(value))


def _changed(value: Any, parts: dict[str, Any]) -> Any:
    """A copy of a dataclass with these parts."""
    found = copy.copy(value)
    for name, part in parts.items():
        object.__setattr__(found, name, part)  # it may be frozen
    return found


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
    elif is_dataclass(value) and not isinstance(value, type):
        yield from flat(dict(_fields(value)), path)
    elif value is not None:
        yield path, value


def arguments(inputs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments out of inputs by name, where a number is a place: `{"0": x, "mask": m}`."""
    places = sorted((name for name in inputs if name.isdecimal()), key=int)
    return tuple(inputs[name] for name in places), {k: v for k, v in inputs.items() if not k.isdecimal()}


def arrays(value: Any) -> list[np.ndarray]:
    """Every array or tensor in it, in order; numbers and flags of Python are none."""
    return [np.asarray(part) for _, part in flat(value) if hasattr(part, "shape") and hasattr(part, "dtype")]
