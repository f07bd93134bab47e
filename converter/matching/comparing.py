"""Whether two results are the same, whatever the layout: torch has channels at axis 1, Keras last."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, permutations
from operator import mul

import numpy as np

from converter.kinds.axes import relaid
from converter.matching.units import Shape

# Of its largest value that a result may be off and still be that of the same unit. Another epsilon or GELU stays below
# it, and is for the proof to find; a tensor in the wrong place, or a bias that is lost, is above by ten times.
NEAR = 2e-3
_LETTERS = "abcdef"
_SAME = "... -> ..."
_FEW = 200_000  # values of an array up to which all orders of its axes are tried


@dataclass(frozen=True)
class Agreement:
    """How two results compare.

    Attributes:
        error: the largest difference over the largest value; infinite where nothing can be compared.
        axes: the pattern that makes Keras's of torch's; "" where the values are the same in an order that is not known.
    """

    error: float
    axes: str = ""

    def __bool__(self) -> bool:
        return self.error <= NEAR

    @property
    def in_order(self) -> bool:
        """The values agree, and their axes are known."""
        return bool(self) and bool(self.axes)

    @property
    def usual(self) -> bool:
        """The values agree in one of the layouts that most networks have."""
        return bool(self) and (self.axes == _SAME or self.axes.startswith("n c "))


def agreement(theirs: np.ndarray, ours: np.ndarray) -> Agreement:
    """Torch's result against Keras's."""
    if theirs.size != ours.size:
        return Agreement(np.inf)
    if not theirs.size:
        return Agreement(0.0, _SAME)
    best = Agreement(np.inf)
    for text in patterns(theirs.shape, ours.shape):
        error = _off(arranged(theirs, text, ours.shape), ours)
        if error < best.error:
            best = Agreement(error, text)
        if best:
            return best
    in_any_order = _off(np.sort(theirs, None), np.sort(ours, None))
    if in_any_order > NEAR:
        return best if best.error < np.inf else Agreement(in_any_order)
    if theirs.ndim <= 5 and theirs.size <= _FEW:
        for order in permutations(range(theirs.ndim)):
            left, right = " ".join(_LETTERS[: theirs.ndim]), " ".join(_LETTERS[place] for place in order)
            turned = theirs.transpose(order)
            if turned.size == ours.size and _off(turned.reshape(ours.shape), ours) <= NEAR:
                return Agreement(_off(turned.reshape(ours.shape), ours), f"{left} -> {right}")
    return Agreement(in_any_order)


def patterns(theirs: Shape, ours: Shape) -> Iterator[str]:
    """The usual ways in which a result is laid out on both sides; a shape that has fewer axes joins neighbours."""
    if theirs == ours:
        yield _SAME
    if len(theirs) >= 3:
        spatial = " ".join(("d", "h", "w")[-(len(theirs) - 2) :]) if len(theirs) <= 5 else ""
        if spatial:
            yield f"n c {spatial} -> n {spatial} c"
    if theirs != ours and _joins(theirs, ours):
        yield _SAME


def _joins(theirs: Shape, ours: Shape) -> bool:
    """Whether one shape joins neighbouring axes of the other: 3 x 4 and 4 x 3 are not in one order."""
    some, others = (set(accumulate(shape, mul)) for shape in (theirs, ours))
    return some <= others or others <= some


def arranged(value: np.ndarray, axes: str, shape: Shape) -> np.ndarray:
    """Torch's result as Keras has it."""
    return relaid(value, axes).reshape(shape)


def _off(theirs: np.ndarray, ours: np.ndarray) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.isfinite(theirs)
        if not np.array_equal(finite, np.isfinite(ours)):
            return float(np.inf)
        if not finite.all():
            if not np.array_equal(theirs[~finite], ours[~finite], equal_nan=True):
                return float(np.inf)
            theirs, ours = theirs[finite], ours[finite]
        size = float(np.abs(theirs).max(initial=0.0))
        return float(np.abs(theirs.astype(np.float64) - ours).max(initial=0.0)) / (size or 1.0)
