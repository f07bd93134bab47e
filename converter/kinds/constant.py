"""Constants: what variables hold that no tensor fills, as a bias that torch leaves out holds zeros."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Constant:
    """What a variable holds that no tensor fills.

    Attributes:
        text: the value for a person, as "0".
        value: a number for all of it, an array of its shape, or a function of its shape that gives either.
    """

    text: str
    value: float | np.ndarray | Callable[[Shape], Any]

    def values(self, shape: Shape) -> np.ndarray:
        """The values of a variable of this shape.

        Raises:
            ValueError: they are of another one, or no numbers.
        """
        given = np.asarray(self.value(shape) if callable(self.value) else self.value)
        if given.dtype.kind not in "iuf":
            raise ValueError(f"a constant is made of numbers, not of {given.dtype}")
        if given.shape not in ((), tuple(shape)):
            raise ValueError(f"the constant has the shape {given.shape}, its variable {tuple(shape)}")
        return np.array(np.broadcast_to(given, shape))

    def __repr__(self) -> str:
        return f"= {self.text}"
