"""Every unit on torch's own input: its error is its own, and does not come from what stands before it.

Torch's results stand in the place of Keras's own. A result that is put in cannot be had, so that units that feed one
another take turns: each run puts in the results of all but one set of units, and asks for those.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from converter.matching.comparing import Agreement, arranged, patterns
from converter.matching.keras_side import KerasSide
from converter.matching.units import Unit

_ROUNDS = 4  # in which layouts are found


@dataclass
class Walk:
    """Units with a result on both sides.

    Attributes:
        pairs: torch's unit -> Keras's.
        results: torch's unit -> its result with the checkpoint's values.
        axes: torch's unit -> pattern that lays its result out as Keras does; not of those that have the same values in
            an order that is not known, or another size: these are not put in.
        errors: torch's unit -> the largest difference over the largest value, on torch's own input; infinite where the
            two are not of one size.
        fed: Keras's step -> torch's result for it, laid out; of those that can be put in.
    """

    keras: KerasSide
    pairs: Mapping[Unit, Unit]
    results: Mapping[Unit, np.ndarray]
    axes: dict[Unit, str] = field(default_factory=dict)
    errors: dict[Unit, float] = field(default_factory=dict)
    fed: dict[int, np.ndarray] = field(default_factory=dict)

    def _lay_out(self, known: Mapping[Unit, Agreement]) -> None:
        """Lay torch's results out as the agreements say; where they do not, as most others are, or as is nearest."""
        usual = Counter(
            (self.results[unit].ndim, agreed.axes)
            for unit, agreed in known.items()
            if unit in self.results and agreed.in_order
        )
        own = self.keras.values(sorted({self.step(unit) for unit in self.results}))
        for unit, theirs in self.results.items():
            value = own[self.step(unit)]
            if theirs.size != value.size or value.dtype.kind != "f":
                continue
            agreed = known.get(unit)
            if agreed is not None and agreed.in_order:
                axes = agreed.axes
            elif agreed:
                continue
            else:
                ways = [way for way in patterns(theirs.shape, value.shape) if usual[theirs.ndim, way]]
                axes = max(ways, key=lambda way: usual[theirs.ndim, way], default=nearest(theirs, value)[0])
            self.axes[unit] = axes
            self.fed[self.step(unit)] = as_ours(theirs, axes, value)

    def step(self, unit: Unit) -> int:
        step = self.pairs[unit].result
        assert step is not None
        return step

    def run(self, known: Mapping[Unit, Agreement], told: Callable[[int], None]) -> None:
        """Measure every unit; `known` are agreements that say how results are laid out, `told` hears of units."""
        self._lay_out(known)
        for _ in range(_ROUNDS):
            if not self._measure(told):
                break

    def _measure(self, told: Callable[[int], None]) -> bool:
        """One round; whether results were laid out by it whose order was not known before."""
        found = False
        for some in self._sets():
            values = self.keras.values(sorted(some), self.without(some))
            for unit, theirs in self.results.items():
                step = self.step(unit)
                if step not in some:
                    continue
                if unit in self.axes:
                    self.errors[unit] = off(self.fed[step], values[step])
                    most = self.errors[unit] / 10
                else:
                    self.errors[unit] = off(np.sort(theirs, None), np.sort(values[step], None))
                    most = 2 * self.errors[unit]
                axes, error = nearest(theirs, values[step])
                if axes and axes != self.axes.get(unit) and error <= most:
                    self.axes[unit], self.fed[step] = axes, as_ours(theirs, axes, values[step])
                    found = True
            told(len(some))
        return found

    def unfelt(self, units: Iterable[Unit], near: float) -> set[Unit]:
        """Those of the units whose own result can stand: what they feed agrees with it as well. Sums that are made in
        another order have other values on the way.

        Of several that feed one another the first is among them; the rest was given what is not right for it.
        """
        alone = {unit for unit in units if unit in self.axes}
        after = {unit: [one for one in self.axes if one is not unit and unit in self.feeding(one)] for unit in alone}
        steps = {self.step(one) for some in after.values() for one in some}
        if not steps:
            return set()
        values = self.keras.values(sorted(steps), self.without({*steps, *map(self.step, alone)}))
        agree = {step for step in steps if off(self.fed[step], values[step]) <= near}
        found = {unit for unit, some in after.items() if some and all(self.step(one) in agree for one in some)}
        return {unit for unit in found if not found & self.feeding(unit)}

    def without(self, steps: Iterable[int]) -> dict[int, np.ndarray]:
        """What is put in where these steps are to be had."""
        some = set(steps)
        return {step: value for step, value in self.fed.items() if step not in some}

    def _sets(self) -> list[set[int]]:
        """Steps in as few sets as it takes that none feeds another of its set."""
        near: dict[int, set[int]] = {self.step(unit): set() for unit in self.results}
        for unit in self.results:
            for other in self.feeding(unit):
                if self.step(other) != self.step(unit):
                    near[self.step(unit)].add(self.step(other))
                    near[self.step(other)].add(self.step(unit))
        colours: dict[int, int] = {}
        for step in sorted(near):
            taken = {colours[one] for one in near[step] if one in colours}
            colours[step] = next(colour for colour in range(len(near) + 1) if colour not in taken)
        return [{one for one, mine in colours.items() if mine == colour} for colour in sorted(set(colours.values()))]

    def feeding(self, unit: Unit) -> set[Unit]:
        """The nearest units before it whose results are put in, by Keras's flow."""
        return self._above(unit)[0]

    def passed(self, unit: Unit) -> set[Unit]:
        """Units between those and it."""
        return self._above(unit)[1]

    def _above(self, unit: Unit) -> tuple[set[Unit], set[Unit]]:
        theirs = {id(other): one for one, other in self.pairs.items()}
        found, passed, seen = set(), set(), set()
        open_ = [one for one in self.pairs[unit].before if isinstance(one, Unit)]
        while open_:
            other = open_.pop()
            if id(other) in seen or other is self.pairs[unit]:
                continue
            seen.add(id(other))
            one = theirs.get(id(other))
            if one is not None and one in self.axes:
                found.add(one)
                continue
            if one is not None:
                passed.add(one)
            open_ += [each for each in other.before if isinstance(each, Unit)]
        return found, passed


def nearest(theirs: np.ndarray, ours: np.ndarray) -> tuple[str, float]:
    """The pattern by which torch's result is nearest to Keras's, and how far they are apart then; "" where there is
    none."""
    if theirs.size != ours.size:
        return "", np.inf
    apart = {way: off(arranged(theirs, way, ours.shape), ours) for way in patterns(theirs.shape, ours.shape)}
    return min(apart.items(), key=lambda one: one[1], default=("", np.inf))


def as_ours(theirs: np.ndarray, axes: str, like: np.ndarray) -> np.ndarray:
    """Torch's result as Keras has it, to be put in its place."""
    return np.ascontiguousarray(arranged(theirs, axes, like.shape)).astype(like.dtype)


def off(theirs: np.ndarray, ours: np.ndarray) -> float:
    """The largest difference over the largest value, of what is finite; infinite where other values are not."""
    if theirs.shape != ours.shape:
        return float(np.inf)
    finite = np.isfinite(theirs)
    if not np.array_equal(finite, np.isfinite(ours)):
        return float(np.inf)
    theirs, ours = theirs[finite].astype(np.float64), ours[finite]
    size = float(np.abs(theirs).max(initial=0.0))
    return float(np.abs(theirs - ours).max(initial=0.0)) / (size or 1.0)
