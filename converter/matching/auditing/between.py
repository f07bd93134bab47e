"""Where a unit's result differs and its variables are right: the first operation on the way to it that is no longer
torch's, the layer that it stands in, and what it may be.

A value of Keras's that is also somewhere in torch's run, in whatever layout, is right. What is computed of right ones
and is nowhere in torch's run is where the two part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from converter.matching.auditing.walking import off
from converter.matching.comparing import arranged, patterns
from converter.proof.causes import cause, operation
from converter.torch_side.answers import Step

_NEAR = 2e-5  # of the largest value, of values that are the same
# Operations that move values alone: where they stand, nothing is computed.
_MOVES = frozenset(
    "Reshape Transpose Identity Squeeze ExpandDims Pad PadV2 MirrorPad Split SplitV StridedSlice Slice Cast Pack "
    "Unpack ConcatV2 StopGradient GatherV2 BroadcastTo Tile".split()
)
PADS = ("Pad", "PadV2", "MirrorPad")


def region(steps: Sequence[Step], last: int, stops: set[int]) -> list[int]:
    """The steps that lead to `last`, itself among them, back to the stops and the inputs; not those that no input
    reaches."""
    reached: set[int] = set()
    for step in steps[: last + 1]:
        if any((isinstance(read, str) and read.startswith("input ")) or read in reached for read in step.reads):
            reached.add(step.number)
    found: set[int] = set()
    open_ = [last]
    while open_:
        number = open_.pop()
        if number not in found and number in reached:
            found.add(number)
            open_ += [one for one in steps[number].reads if isinstance(one, int) and one not in stops]
    return sorted(found)


def edges(steps: Sequence[Step], some: Sequence[int]) -> set[int | str]:
    """What these steps read that is none of them: other steps, and inputs by name."""
    inside = set(some)
    return {
        read
        for number in some
        for read in steps[number].reads
        if read is not None and read not in inside and (isinstance(read, int) or read.startswith("input "))
    }


@dataclass
class Side:
    """One side's way to a unit.

    Attributes:
        steps: all of the run.
        last: the step of the unit's result.
        some: the steps on the way.
        values: value of each of them, and of what they start from.
    """

    steps: Sequence[Step]
    last: int
    some: Sequence[int]
    values: Mapping[int | str, np.ndarray]


@dataclass
class Parting:
    """Where the two part.

    Attributes:
        step: Keras's first step that is nowhere in torch's run; None where there is none.
        modules: paths of torch's modules on the way whose values Keras has not.
        guess: what it may be; "" where nothing fits.
        vague: no value says so, only which operations stand there.
    """

    step: int | None
    modules: list[str] = field(default_factory=list)
    guess: str = ""
    vague: bool = False


def part(theirs: Side, ours: Side, home: Mapping[int, str]) -> Parting:
    """Find where the two part; `home` has the layer of each of Keras's steps."""
    known = _Known(theirs.values)
    alike = {number: known.find(value) for number, value in ours.values.items() if number != ours.last}
    matched = {number: found for number, found in alike.items() if found}
    differing: set[int] = set()
    open_: list[int] = [ours.last]
    inside = set(ours.some)
    while open_:
        number = open_.pop()
        if number in inside and number not in differing and number not in matched and _is_float(ours.values[number]):
            differing.add(number)
            open_ += [read for read in ours.steps[number].reads if isinstance(read, int)]
    computing = [n for n in sorted(differing) if ours.steps[n].operation not in _MOVES]
    used = {name for found in matched.values() for name in found}
    lacking = [n for n in theirs.some if n not in used and n != theirs.last and _is_float(theirs.values[n])]
    modules = [*dict.fromkeys(theirs.steps[n].module for n in [*lacking, theirs.last])]
    # What is computed of inputs alone, as a mask is, differs where the two write it otherwise.
    first = next((n for n in computing if _befores(ours, n, matched)), None)
    if first is None:
        return Parting(None, modules)
    here = [n for n in sorted(differing) if home.get(n) == home.get(first)]
    befores = _befores(ours, first, matched)
    rest = [*lacking, theirs.last]
    for before in befores:
        guess = _guess(theirs, ours, before, matched[before], here[-1], rest)
        if guess:
            return Parting(first, modules, guess)
    names = [theirs.steps[n].operation for n in lacking]
    return Parting(first, modules, operation(names), vague=True)


def applied(theirs: np.ndarray, ours: np.ndarray) -> str:
    """What torch may do to a value before it gives it, and Keras does not, or the other way."""
    for axes in patterns(theirs.shape, ours.shape) if theirs.size == ours.size else ():
        laid = arranged(theirs, axes, ours.shape).astype(np.float64)
        guess = cause(ours.astype(np.float64), laid, ours.astype(np.float64), {}, ())
        if guess:
            return guess
    return ""


def _befores(ours: Side, first: int, matched: Mapping[int | str, list[int | str]]) -> list[int | str]:
    """What the first differing step is computed of, through what moves values alone."""
    found: list[int | str] = []
    open_: list[int | str | None] = list(ours.steps[first].reads)
    while open_:
        read = open_.pop(0)
        if read in matched:
            found.append(read)  # type: ignore[arg-type]
        elif isinstance(read, int) and read in ours.values and ours.steps[read].operation in _MOVES:
            open_ += ours.steps[read].reads
    return found


def _guess(
    theirs: Side, ours: Side, before: int | str, counterparts: list[int | str], last: int, lacking: Sequence[int]
) -> str:
    mine, start, end = ours.values[before], theirs.values[counterparts[0]], ours.values[last]
    axes = next(
        (one for one in patterns(start.shape, mine.shape) if off(arranged(start, one, mine.shape), mine) <= _NEAR), None
    )
    for number in [*lacking, counterparts[0]]:
        value = theirs.values[number]
        if value.size != end.size or not _is_float(value):
            continue
        ways = [axes] if axes and value.ndim == start.ndim else list(patterns(value.shape, end.shape))
        for way in ways:
            try:
                laid = arranged(value, way, end.shape).astype(np.float64)
            except ValueError:
                continue
            first = mine.astype(np.float64)
            found = cause(end.astype(np.float64), laid, first if first.size == laid.size else None, {}, ())
            if found:
                return found
    return ""


class _Known:
    """Torch's values, to be found by what they are, whatever their layout."""

    def __init__(self, values: Mapping[int | str, np.ndarray]):
        self._by_size: dict[int, list[tuple[int | str, np.ndarray]]] = {}
        for name, value in values.items():
            if _is_float(value) and value.size:
                self._by_size.setdefault(value.size, []).append((name, value))
        self._sorted: dict[int | str, np.ndarray] = {}

    def find(self, value: np.ndarray) -> list[int | str]:
        """All of torch's values that are these, in any order; the last first."""
        if not _is_float(value) or value.size not in self._by_size:
            return []
        mine = np.sort(value, None)
        near = _NEAR * (float(np.abs(mine[[0, -1]]).max()) or 1.0)
        return [name for name, other in reversed(self._by_size[value.size]) if self._near(mine, name, other, near)]

    def _near(self, mine: np.ndarray, name: int | str, other: np.ndarray, near: float) -> bool:
        if name not in self._sorted:
            self._sorted[name] = np.sort(other, None)
        theirs = self._sorted[name]
        ends = abs(theirs[0] - mine[0]) <= near and abs(theirs[-1] - mine[-1]) <= near
        return bool(ends and np.abs(theirs - mine).max() <= near)


def _is_float(value: np.ndarray) -> bool:
    return value.dtype.kind == "f" and value.size > 1
