"""Sizes as users give them, and the bounds of fresh weights."""

import math
from collections.abc import Mapping
from numbers import Integral
from types import MappingProxyType
from typing import Any

import keras


def uniform(fan_in: int) -> Any:
    """Torch's default initializer of convolutions and linear layers, kernel and bias: U(-b, b), b = 1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    return keras.initializers.RandomUniform(-bound, bound)


def per_axis(value: Any, rank: int, name: str, least: int = 0) -> Any:
    """A whole number, or `rank` of them, as a tuple of `rank`.

    Raises:
        ValueError: it is neither, or one is below `least`; `name` is the argument's.
    """
    values = (value,) * rank if isinstance(value, Integral) else tuple(value)
    if len(values) != rank or any(not isinstance(v, Integral) or v < least for v in values):
        raise ValueError(f"{name}: expected a whole number from {least}, or {rank} of them, got {value!r}")
    return tuple(map(int, values))


def check_sizes(sizes: Mapping[str, Any], least: Mapping[str, int] = MappingProxyType({})) -> None:
    """See that every size is a whole number, from `least` or 1, or a sequence of them.

    Raises:
        ValueError: one is not.
    """
    for name, value in sizes.items():
        bottom = least.get(name, 1)
        values = value if isinstance(value, (tuple, list)) else [value]
        if any(not isinstance(one, Integral) or isinstance(one, bool) or one < bottom for one in values):
            raise ValueError(f"{name}: expected whole numbers from {bottom}, got {value!r}")
