"""Results of both sides, one to one, and each compared by the rule."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from converter import nested, rounding
from converter.errors import printable
from converter.kinds import Kind
from converter.naming import listed
from converter.report import Comparison

LARGEST = float(np.finfo(np.float32).max)
# Times what is allowed that torch's own float32 result may be off: its kernels are other programs, and some of them sum
# one value after another. Another function in float64 is off by far more somewhere.
_STRANGE = 16.0


def compare(name: str, ours: np.ndarray, single: np.ndarray, truth: np.ndarray, moved: list[np.ndarray]) -> Comparison:
    """One result on both sides, all of them float64 arrays, channels last."""
    if ours.shape != truth.shape:
        return Comparison(name, note=f"TensorFlow's shape is {ours.shape}, torch's {truth.shape}")
    finite = np.isfinite(truth)
    if not np.isfinite(single[finite]).all():
        return Comparison(name, note="torch's own float32 result overflows here, and cannot tell what is allowed")
    with np.errstate(invalid="ignore"):
        own_error = np.where(finite, single - truth, 0.0)
    own = float(np.abs(own_error).max(initial=0.0))
    strange = rounding.worst(own_error, np.zeros_like(own_error), rounding.allowance(truth, moved))
    if strange.ratio > _STRANGE:
        told = f"is off by {strange.error:.1e} from its float64 one, and roundings explain {strange.allowed:.1e}"
        return Comparison(
            name, torch_error=own, note=f"torch's float32 result {told}: build_torch computes something else in float64"
        )
    # Torch's own float32 is one more run with roundings, and those are real.
    one = compare_allowed(name, ours, truth, rounding.allowance(truth, [*moved, own_error]))
    return replace(one, torch_error=own)


def compare_allowed(name: str, ours: np.ndarray, truth: np.ndarray, allowed: Any) -> Comparison:
    finite = np.isfinite(truth)
    if not (np.isfinite(ours) == finite).all() or not np.array_equal(ours[~finite], truth[~finite], equal_nan=True):
        return Comparison(name, note="TensorFlow and torch are not finite at the same places")
    one = rounding.worst(np.where(finite, ours, 0.0), np.where(finite, truth, 0.0), allowed)
    return Comparison(name, one.error, one.allowed, 0.0, float(np.abs(truth[finite]).max(initial=0.0)))


def pool(found: dict[str, Comparison], one: Comparison) -> None:
    """Join what several probes show of the same output or layer."""
    known = found.get(one.name)
    found[one.name] = one if known is None else known.joined(one)


def paired(name: str, ours: Any, kind: Kind, results: tuple[Any, ...], batch_second: bool = False) -> Iterator[Any]:
    """(name, ours, torch's, truth, moved) of each result, one to one; a Comparison of one of whole numbers.

    `results` are torch's own, the truth, and what roundings moved it by. Where Keras's result has the shape that it has
    in torch and not that of the kind's pattern, as an attention map among images, it is compared as it is.
    """
    truth = kind.kept(results[1])
    theirs = [list(nested.flat(kind.returned(each, batch_second))) for each in results]
    mine = list(nested.flat(ours))
    for laid, each in zip(theirs, results, strict=True):
        for index, (key, value) in enumerate(nested.flat(kind.kept(each))):
            shape = np.shape(mine[index][1]) if index < len(mine) else None
            if shape != np.shape(laid[index][1]) and shape == np.shape(value):
                laid[index] = key, value
    if len(mine) < len(theirs[0]):
        theirs = [[one for one in each if one[0] not in kind.may_lack] for each in theirs]
    if len(mine) != len(theirs[0]):
        raise Unpaired(f"TensorFlow returns {_count(mine)}, torch {_count(theirs[0])}")
    places = [[key for key, _ in side] for side in (mine, theirs[0])]
    if places[0] != places[1] and _as_long(ours, truth):
        shown = [listed(side, 6) for side in places]
        raise Unpaired(f"TensorFlow returns something at place {shown[0]}, torch at {shown[1]}")
    if isinstance(ours, Mapping) and isinstance(truth, Mapping):
        if {key for key, _ in mine} != {key for key, _ in theirs[1]}:
            shown = [listed([printable(key) for key, _ in side], 6) for side in (mine, theirs[1])]
            raise Unpaired(f"TensorFlow returns {shown[0]}, torch {shown[1]}")
        by_name = dict(mine)
        mine = [(key, by_name[key]) for key, _ in theirs[1]]
    for index, (key, value) in enumerate(mine):
        place = key if isinstance(truth, Mapping) or len(mine) > 1 else ""
        label = f"{name}.{place}" if name and place else name or place
        true = np.asarray(theirs[1][index][1])
        if true.dtype.kind in "iub" and np.shape(value) == true.shape:
            runs = [theirs[0][index][1], *(true + each[index][1] for each in theirs[2:])]
            yield _whole(label, np.asarray(value), true, runs)
            continue
        yield (
            label,
            numbers(value),
            numbers(theirs[0][index][1]),
            numbers(true),
            [numbers(each[index][1]) for each in theirs[2:]],
        )


def _whole(label: str, ours: np.ndarray, truth: np.ndarray, runs: list[np.ndarray]) -> Comparison:
    """Whole numbers are equal; but where roundings decide, as for a number that is cut, so many may differ."""
    allowed = max(int(np.count_nonzero(run != truth)) for run in runs)
    allowed += int(np.sqrt(allowed) * rounding.SAFETY)
    differing = int(np.count_nonzero(ours != truth))
    told = f"{differing} of {truth.size} whole numbers differ, {allowed} by roundings"
    return Comparison(label, note=told if differing > allowed else "")


class Unpaired(Exception):
    """The two sides do not return as many results, or not by the same names."""


def _as_long(some: Any, other: Any) -> bool:
    return all(isinstance(one, (tuple, list)) for one in (some, other)) and len(some) == len(other)


def _count(results: list[Any]) -> str:
    return "nothing" if not results else "1 result" if len(results) == 1 else f"{len(results)} results"


def numbers(value: Any) -> np.ndarray:
    """In float64; a complex number is two real ones, along a last axis, and what float32 has no number for infinite."""
    array = np.asarray(value)
    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag], -1)
    array = array.astype(np.float64)
    return np.where(np.abs(array) >= LARGEST, np.copysign(np.inf, array), array) if array.size else array
