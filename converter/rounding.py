"""The one rule for what float32 can do to a computation. The proof, `export` and every test judge by it.

A result in float32 cannot be expected to equal the true one; how far it may be away follows from the computation, not
from how lucky another float32 result was. So the computation itself is run in float64 with a rounding put into every
step (`converter.torch_side.rounded`), each as large as float32's may be for any order of the sums, and what that moves
the result by (`moved`) says how far float32 may be from the truth. `docs/proof.md` has the derivation and both rates of
error.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Unit roundoff: half the distance of 1 and the next larger number.
UNITS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# How many times what random roundings moved a result a real one may be off. Those that are put in are one standard
# deviation of real ones in the worst order of every sum, and several of them in the orders that are met.
SAFETY = 4.0
# Runs with roundings go on until a result has so many values in all: the largest of six normal numbers is below 0.15
# standard deviations, which still allows more than float32 is off by, three times in 10^6. A small result is tried
# several times in any case, because its values may all hang on one number.
_ENOUGH, _SMALL, _AGAIN = 6, 100, 3
_OWN = 32  # values of a channel from which on it is judged by what moved in it alone
# Values in a channel are judged apart from ones that are larger by so many powers of two, with none in between.
_GAP = 10
_POWERS = 256  # that are told apart, up and down
_LEAST = float(np.finfo(np.float32).tiny)  # below it float32 may flush a number to zero


def runs_for(values: int, cheap: bool = False) -> int:
    """How many runs with roundings a result of so many values takes; more where a run costs next to nothing."""
    again = _AGAIN if not cheap else 4 * _AGAIN
    return max(again if values < _SMALL else 1, -(-_ENOUGH // max(values, 1)))


def allowance(truth: np.ndarray, moved: Sequence[np.ndarray], unit: float = UNITS["float32"]) -> np.ndarray:
    """How far each value of a result may be from `truth`; of its shape.

    Args:
        truth: the result in float64, channels last (..., C).
        moved: what roundings moved it by, in one run or several; each of its shape.
        unit: unit roundoff of the precision that is judged.
    """
    far: np.ndarray = np.zeros(truth.shape)
    for one in moved:
        np.maximum(far, np.abs(one), out=far)
    if not far.size:
        return far
    channels = truth.shape[-1] if truth.ndim > 1 else 1
    if truth.size < _OWN * channels:
        channels = 1
    size, far = (np.where(np.isfinite(each), each, 0.0).reshape(-1, channels) for each in (np.abs(truth), far))
    peaks = size.max(0)
    # A channel in which nothing moved is not exact by that: what is usual for a value of its size moves it too.
    usual = np.sqrt(np.mean(np.square(far)))
    shares = np.divide(far.max(0), peaks, out=np.zeros(channels), where=peaks > 0)
    share = np.sqrt(np.square(shares).sum() / max(np.count_nonzero(peaks), 1))
    likely = np.where(peaks > 0, np.minimum(usual, peaks * share), usual)
    allowed = np.broadcast_to(SAFETY * (np.maximum(far.max(0), likely) + unit * peaks + _LEAST), size.shape)
    apart = list(_apart(size))
    if apart:
        allowed = allowed.copy()
        order = np.argsort(size, None)
        squares, sizes = np.cumsum(np.square(far.ravel()[order])), size.ravel()[order]
    for channel, tops in apart:
        for top in tops:
            below, count = size[:, channel] <= top, np.searchsorted(sizes, top, "right")
            far_there = max(far[below, channel].max(), np.sqrt(squares[count - 1] / count))
            allowed[below, channel] = SAFETY * (far_there + unit * top + _LEAST)
    return allowed.reshape(truth.shape)


def _apart(size: np.ndarray) -> Iterator[tuple[int, list[float]]]:
    """(channel, magnitudes) where (values, channels) has values far larger than all others, as masks of -1e9 are.

    What is up to one of the magnitudes, from the largest to the smallest, is judged without what is above it. There are
    values enough just below each, and none within a factor 2^_GAP above it.
    """
    if size.shape[0] < 2 * _OWN:
        return
    powers = np.clip(np.frexp(size)[1], -_POWERS, _POWERS) + _POWERS  # of zero: in the middle
    powers[size == 0] = 0
    span = 2 * _POWERS + 1
    counts = np.bincount((powers + span * np.arange(size.shape[1])).ravel(), minlength=span * size.shape[1])
    counts = counts.reshape(size.shape[1], span)
    counts[:, 0] = 0  # zeros go with the smallest values
    places = np.where(counts > 0, np.arange(span), -span)
    before = np.maximum.accumulate(places, 1)
    gaps = (places[:, 1:] - before[:, :-1] > _GAP) & (before[:, :-1] >= 0) & (places[:, 1:] >= 0)
    for channel in np.flatnonzero(gaps.any(1)):
        tops = []
        for power in before[channel, np.flatnonzero(gaps[channel])][::-1]:
            if counts[channel, max(power - _GAP, 0) : power + 1].sum() >= _OWN:
                tops.append(float(size[powers[:, channel] <= power, channel].max()))
        if tops:
            yield int(channel), tops


@dataclass(frozen=True)
class Judgement:
    """How far a result is from the truth: at the value where that is most of what is allowed there."""

    error: float
    allowed: float

    @property
    def ratio(self) -> float:
        """The error over what is allowed: at most 1 for a result that passes."""
        return ratio(self.error, self.allowed)

    def __bool__(self) -> bool:
        return self.error <= self.allowed


def ratio(error: float, allowed: float) -> float:
    """The error as a part of what is allowed."""
    return error / allowed if allowed else float("inf") if error else 0.0


def worst(ours: np.ndarray, truth: np.ndarray, allowed: np.ndarray) -> Judgement:
    """The value that is furthest for what is allowed there; `allowed` broadcasts against both."""
    allowed = np.broadcast_to(allowed, truth.shape)
    error = np.abs(ours - truth)
    if not error.size:
        return Judgement(0.0, 0.0)
    share = np.divide(error, allowed, out=np.where(error > 0, np.inf, 0.0), where=allowed > 0)
    place = np.unravel_index(np.argmax(share), share.shape)
    return Judgement(float(error[place]), float(allowed[place]))


def judge(
    ours: np.ndarray, truth: np.ndarray, moved: Sequence[np.ndarray], unit: float = UNITS["float32"]
) -> Judgement:
    """`ours` against the truth; all of one shape, channels last, finite."""
    return worst(ours, truth, allowance(truth, moved, unit))
