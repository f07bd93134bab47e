"""Why a variable does not hold what the checkpoint would give it: what would make the one of the other."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import permutations
from typing import Any

import numpy as np

_EQUAL = 1e-6  # of the largest value that equal values may be off: a detour over float64, or another order of a product
_NEAR = 2e-5  # the same of values that something was done to
_MANY = 64  # values from which on a spread tells something
_AXES = {
    1: ("outputs",),
    2: ("inputs", "outputs"),
    3: ("taps", "inputs", "outputs"),
    4: ("height", "width", "inputs", "outputs"),
}


@dataclass(frozen=True)
class Difference:
    """What is the matter with a variable, or a block of it.

    Attributes:
        sort: "initial", "zeros", "exchanged", "half", "order", "scale", "shift" or "other".
        text: in words.
        off: the largest difference over the largest value.
    """

    sort: str
    text: str
    off: float


class Expected:
    """What every variable should hold, to be found by its values."""

    def __init__(self) -> None:
        self._names: dict[tuple, tuple[str, str]] = {}

    def add(self, layer: str, name: str, value: np.ndarray) -> None:
        if value.size > 1 and np.ptp(value):
            self._names.setdefault(_key(value), (layer, name))

    def whose(self, value: np.ndarray) -> tuple[str, str] | None:
        """Of which layer, and which of its variables, these are the values."""
        return self._names.get(_key(value))


def _key(value: np.ndarray) -> tuple:
    return value.size, sha256(np.ascontiguousarray(value, np.float32).tobytes()).digest()


def same(held: np.ndarray, wanted: np.ndarray) -> bool:
    return _off(held, wanted) <= _EQUAL


def difference(
    name: str, held: np.ndarray, wanted: np.ndarray, expected: Expected, initial: list[Any]
) -> Difference | None:
    """What is the matter, or None where the values are equal.

    Args:
        name: the variable's, without its layer's.
        held, wanted: of one shape: what the variable holds, and what the checkpoint would give it.
        initial: the initializers of its layer.
    """
    off = _off(held, wanted)
    if off <= _EQUAL:
        return None
    owner = expected.whose(held)
    if owner is not None:
        whose = owner[0] if owner[1] == name else ".".join(owner)
        return Difference("exchanged", f"exchanged: holds what belongs to {whose}", off)
    for value in (0.0, 1.0):
        if (held == value).all():
            return Difference("initial" if value else "zeros", "ones" if value else "zeros", off)
    for sort, guess in (("half", _half), ("scale", _scale), ("shift", _shift)):
        text = guess(held, wanted)
        if text:
            return Difference(sort, text, off)
    axes = _AXES.get(held.ndim) if "kernel" in name or name == "bias" else None
    text = _order(held, wanted, axes or tuple(f"axis {place}" for place in range(held.ndim)))
    if text:
        return Difference("order", text, off)
    made = _initializer(held, initial)
    if made:
        return Difference("initial", f"spread as {made} gives them", off)
    return Difference("other", "other values", off)


def _off(held: np.ndarray, wanted: np.ndarray) -> float:
    if not held.size:
        return 0.0
    largest = float(np.abs(wanted).max())
    off = float(np.abs(held.astype(np.float64) - wanted).max())
    return off / largest if largest else (np.inf if off else 0.0)


def _half(held: np.ndarray, wanted: np.ndarray) -> str:
    import ml_dtypes

    for name, dtype in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        if np.array_equal(wanted.astype(dtype).astype(np.float32), held):
            return f"half precision: rounded to {name}"
    return ""


def _scale(held: np.ndarray, wanted: np.ndarray) -> str:
    square = float((wanted.astype(np.float64) ** 2).sum())
    factor = float((held.astype(np.float64) * wanted).sum()) / square if square else 0.0
    if held.size > 1 and factor and _off(held, wanted * factor) <= _NEAR:
        return f"scaled: {factor:.6g} times torch's"
    return ""


def _shift(held: np.ndarray, wanted: np.ndarray) -> str:
    shift = float((held.astype(np.float64) - wanted).mean())
    if held.size > 1 and _off(held, wanted + shift) <= _NEAR:
        return f"shifted: torch's {'plus' if shift > 0 else 'minus'} {abs(shift):.6g}"
    return ""


def _order(held: np.ndarray, wanted: np.ndarray, names: tuple[str, ...]) -> str:
    """The same values in other places; `names` are those of the axes."""
    if not np.array_equal(np.sort(held, None), np.sort(wanted, None)):
        return ""
    for order in permutations(range(held.ndim)):
        moved = [names[place] for place, axis in enumerate(order) if place != axis]
        if moved and np.array_equal(wanted.transpose(order), held):
            return f"transposed: {' and '.join(moved)} exchanged"
    for axis, length in enumerate(held.shape):
        for first in range(2, length):
            if length % first == 0 and first < length:
                split = (*held.shape[:axis], first, length // first, *held.shape[axis + 1 :])
                if np.array_equal(wanted.reshape(split).swapaxes(axis, axis + 1).reshape(held.shape), held):
                    return f"axes exchanged: {first} x {length // first} of {names[axis]} (heads and what is in them?)"
    for axis, length in enumerate(held.shape):
        for parts in (2, 3):
            if length % parts == 0 and length > parts:
                blocks = np.split(wanted, parts, axis)
                for order in permutations(range(parts)):
                    if np.array_equal(np.concatenate([blocks[place] for place in order], axis), held):
                        return f"exchanged: the {parts} parts of {names[axis]} are in another order"
        if np.array_equal(np.flip(wanted, axis), held):
            return f"turned round: {names[axis]}"
    return "the same values in another order: axes exchanged"


def _initializer(held: np.ndarray, initial: list[Any]) -> str:
    """The initializer of the layer that gives values of this spread, or ""."""
    if held.size < _MANY:
        return ""
    for one in initial:
        made = np.asarray(one(held.shape, dtype="float32"))
        if np.ptp(made) and _alike(held, made):
            return str(type(one).__name__)
    return ""


def _alike(held: np.ndarray, made: np.ndarray) -> bool:
    """Whether two samples look drawn alike: the spread, the largest value, and no more of a mean than chance gives."""
    spread = float(made.std())
    unsure = 4 / np.sqrt(held.size)
    near = abs(float(held.std()) / spread - 1) <= max(unsure, 0.02)
    centred = abs(float(held.mean()) - float(made.mean())) <= 2 * unsure * spread
    largest = float(np.abs(held).max()) / float(np.abs(made).max())
    return near and centred and 0.6 <= largest <= 1.6


def initializers(layer: Any) -> list[Any]:
    """Those that a layer has, and those that Keras's layers have where nobody says otherwise."""
    from keras import initializers as known

    own = [one for name, one in vars(layer).items() if name.endswith("_initializer") and callable(one)]
    usual = (
        known.GlorotUniform(), known.TruncatedNormal(stddev=0.02), known.RandomNormal(stddev=0.02),
        known.RandomUniform(), known.RandomNormal(), known.TruncatedNormal(), known.HeNormal(), known.LecunNormal(),
        known.HeUniform(), known.VarianceScaling(2.0, "fan_out"),
    )  # fmt: skip
    return [*own, *usual]


def causes(differences: Mapping[str, Difference], biases: set[str], statistics: set[str]) -> Iterator[tuple[str, str]]:
    """(variables, cause) for those of one unit; what is known alike is told once.

    Args:
        differences: name of a variable below its layer -> what is the matter.
        biases: those of the unit's variables that are added; `statistics`: those that are no parameters.
    """
    sorts = {one.sort for one in differences.values()}
    unfilled = "initial" in sorts or set(differences) <= statistics
    groups: dict[str, list[str]] = {}
    spread = ""
    for name, one in differences.items():
        if one.sort == "initial" or (one.sort == "zeros" and (unfilled or name not in biases)):
            groups.setdefault("initial", []).append(name)
            spread = spread or (one.text if one.text not in ("zeros", "ones") else "")
        elif one.sort == "zeros":
            groups.setdefault("the bias is lost: zeros", []).append(name)
        else:
            groups.setdefault(one.text, []).append(name)
    for text, names in groups.items():
        if text == "initial":
            text = "still at the initial value, not filled" + (f": {spread}" if spread else "")
        yield ", ".join(names), text
