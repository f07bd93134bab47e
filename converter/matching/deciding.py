"""What the two networks compute decides: layouts are tried, units exchanged, and what does not agree is not proven.

Torch's network runs once on seeded values. Keras's runs with the same values where they are thought to belong, and its
units' results are compared with torch's. The first that differ, of those that are given what torch's are given, are
tried in other layouts, or exchanged with units that look alike. What agrees in an uncut run is where it belongs: a unit
that is given torch's own input would agree wherever it stood.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations, pairwise

import numpy as np

from converter.matching.aligning import Alignment
from converter.matching.comparing import Agreement, agreement
from converter.matching.filling import Filled, fill
from converter.matching.keras_side import KerasSide
from converter.matching.units import INPUT, Shape, Unit

_ROUNDS = 40  # of repairs
_EXCHANGES = 12  # pairs of units that are exchanged for one that differs


@dataclass
class Verdict:
    """What is known of the pairs in the end.

    Attributes:
        uncut: torch's unit -> how its result compares in a run that nothing was put into; missing where it has none.
        cut: the same where torch's results stand in the place of those of units that differ on their own.
        faulty: those units, in the order of the network.
        untold: units that can be exchanged with another without any difference: unit -> the others.
        hidden: units whose kernel shows nowhere, as what they are given is zero.
    """

    uncut: dict[Unit, Agreement] = field(default_factory=dict)
    cut: dict[Unit, Agreement] = field(default_factory=dict)
    faulty: list[Unit] = field(default_factory=list)
    untold: dict[Unit, set[Unit]] = field(default_factory=dict)
    hidden: set[Unit] = field(default_factory=set)


class Deciding:
    """The state of the search.

    Attributes:
        filled: torch's unit -> how its counterpart is filled.
    """

    def __init__(
        self,
        alignment: Alignment,
        tensor: Callable[[str], np.ndarray],
        results: Mapping[Unit, np.ndarray],
        keras: KerasSide,
        factors: Callable[[Unit], list[Shape]],
    ):
        self._alignment, self._tensor, self._results, self._keras = alignment, tensor, results, keras
        self._factors = factors
        self._shapes = {path: tuple(variable.shape) for path, variable in keras.variables.items()}
        self.filled: dict[Unit, Filled] = {}
        for unit, other in alignment.pairs.items():
            self.filled[unit] = fill(unit, other, factors(unit))
        self._put(self.filled)

    def decide(self) -> Verdict:
        """Repair what can be, and say what is known."""
        verdict = Verdict()
        cut: dict[Unit, np.ndarray] = {}
        passed: set[Unit] = set()  # that differ, and cannot be cut
        compared = self._run(cut)
        for _ in range(_ROUNDS):
            wrong = self._first_wrong(compared, {*cut, *passed})
            if not wrong:
                break
            if not (self._relaid(wrong, compared, cut) or self._exchanged(wrong, compared, cut)):
                for unit in wrong:
                    value = self._as_ours(unit)
                    if value is None:
                        passed.add(unit)
                    else:
                        cut[unit] = value
            compared = self._run(cut)
        verdict.faulty = self._in_order({*cut, *passed})
        verdict.cut = compared
        verdict.uncut = self._run({}) if cut else compared
        verdict.hidden = {unit for unit in self.filled if self._hidden(unit)}
        self._tell_apart(verdict)
        return verdict

    # Running

    def _put(self, units: Iterable[Unit]) -> None:
        """Assign the variables of these units' counterparts."""
        values: dict[str, np.ndarray] = {}
        for unit in units:
            for variable, block, value in self.filled[unit].values(self._tensor, self._shapes):
                if block is None:
                    values[variable] = value
                else:
                    whole = values.setdefault(variable, np.array(self._keras.variables[variable]))
                    view = block.of(whole)
                    view[...] = value.reshape(view.shape)
        self._keras.assign(values)

    def _run(self, cut: Mapping[Unit, np.ndarray]) -> dict[Unit, Agreement]:
        given = {self._step(unit): value for unit, value in cut.items()}
        units = [unit for unit in self.filled if self._comparable(unit)]
        values = self._keras.values([self._step(unit) for unit in units], given)
        return {unit: agreement(self._results[unit], values[self._step(unit)]) for unit in units}

    def _comparable(self, unit: Unit) -> bool:
        other = self._alignment.pairs[unit]
        return unit in self._results and not unit.part and not other.part and other.result is not None

    def _step(self, unit: Unit) -> int:
        step = self._alignment.pairs[unit].result
        assert step is not None
        return step

    def _in_order(self, units: Iterable[Unit]) -> list[Unit]:
        return sorted(units, key=lambda unit: (unit.call is None, unit.call or 0, unit.order))

    def _first_wrong(self, compared: Mapping[Unit, Agreement], cut: Container[Unit]) -> list[Unit]:
        """Units that differ although all that feeds them agrees."""
        wrong = {
            unit for unit, found in compared.items() if not found and unit not in cut and self._felt(unit, compared)
        }
        first = []
        for unit in self._in_order(wrong):
            if not any(one in wrong for one in self._feeding(unit, compared)):
                first.append(unit)
        if not first and wrong:  # units that are called several times make circles: then the first that is called
            first = self._in_order(wrong)[:1]
        return first

    def _felt(self, unit: Unit, compared: Mapping[Unit, Agreement]) -> bool:
        """Whether what it feeds differs too: where it does not, sums are made in another order."""
        after = [one for one in unit.after if one in compared and one is not unit]
        return not after or not all(compared[one] for one in after)

    def _feeding(self, unit: Unit, compared: Mapping[Unit, Agreement]) -> set[Unit]:
        """The nearest units before it whose results can be compared."""
        found: set[Unit] = set()
        seen: set[Unit] = set()
        open_ = [one for one in unit.before if isinstance(one, Unit)]
        while open_:
            one = open_.pop()
            if one in seen or one is unit:
                continue
            seen.add(one)
            if one in compared:
                found.add(one)
            else:
                open_ += [other for other in one.before if isinstance(other, Unit)]
        return found

    def _blamed(self, unit: Unit, compared: Mapping[Unit, Agreement]) -> set[Unit]:
        """Units that may be at fault where this one differs: itself, and those before it that cannot be compared."""
        found = {unit}
        open_ = [one for one in unit.before if isinstance(one, Unit)]
        while open_:
            one = open_.pop()
            if one in found or one in compared or one not in self.filled:
                continue
            found.add(one)
            open_ += [other for other in one.before if isinstance(other, Unit)]
        return found

    # Repairs

    def _relaid(self, wrong: list[Unit], compared: Mapping[Unit, Agreement], cut: Mapping[Unit, np.ndarray]) -> bool:
        """Try other layouts of all these units at once; whether one of them agrees now."""
        blamed = {
            unit: [one for one in self._blamed(unit, compared) if len(self.filled[one].choices) > 1] for unit in wrong
        }
        blamed = {unit: some for unit, some in blamed.items() if some}
        kept = {one: self.filled[one].chosen for some in blamed.values() for one in some}
        better = False
        most = max((len(self.filled[one].choices) for one in kept), default=0)
        for choice in range(1, most):
            if not blamed:
                break
            moved = {one for some in blamed.values() for one in some}
            for one in moved:
                self.filled[one].chosen = choice if choice < len(self.filled[one].choices) else kept[one]
            self._put(moved)
            compared = self._run(cut)
            for unit in [unit for unit in blamed if compared[unit]]:
                del blamed[unit]
                better = True
        rest = {one for some in blamed.values() for one in some}
        for one in rest:
            self.filled[one].chosen = kept[one]
        self._put(rest)
        return better

    def _exchanged(self, wrong: list[Unit], compared: Mapping[Unit, Agreement], cut: Mapping[Unit, np.ndarray]) -> bool:
        """Exchange units that look alike, of those that are at fault or feed what is; whether more agrees then."""
        good = sum(map(bool, compared.values()))
        for unit in wrong:
            near = {unit, *(one for one in unit.before if isinstance(one, Unit))} | self._blamed(unit, compared)
            tried = 0
            for group in self._alignment.alike:
                members = [one for one in group if one in self.filled]
                if not near & set(members):
                    continue
                for one, other in combinations(members, 2):
                    if not {one, other} & near or tried >= _EXCHANGES:
                        continue
                    tried += 1
                    self._exchange(one, other)
                    if sum(map(bool, self._run(cut).values())) > good:
                        self._alignment.evidence[one] = self._alignment.evidence[other] = "exchanged by activations"
                        return True
                    self._exchange(one, other)
        return False

    def _exchange(self, one: Unit, other: Unit) -> None:
        pairs = self._alignment.pairs
        pairs[one], pairs[other] = pairs[other], pairs[one]
        for unit in (one, other):
            self.filled[unit] = fill(unit, pairs[unit], self._factors(unit))
        self._put([one, other])

    def _as_ours(self, unit: Unit) -> np.ndarray | None:
        """Torch's result as the Keras step gives it, in the likeliest layout."""
        from converter.matching.comparing import arranged, patterns

        own = self._keras.values([self._step(unit)])[self._step(unit)]
        theirs = self._results[unit]
        ways = [
            arranged(theirs, text, own.shape) for text in patterns(theirs.shape, own.shape) if theirs.size == own.size
        ]
        if not ways:
            return None
        return np.ascontiguousarray(min(ways, key=lambda way: float(np.abs(way - own).mean()))).astype(own.dtype)

    # What cannot be told

    def _hidden(self, unit: Unit) -> bool:
        """Whether torch's result is what the unit gives of nothing: then its kernel could be any."""
        if unit.part or unit not in self._results:
            return False
        result = self._results[unit]
        if not result.size or not np.abs(result).max():
            return True
        biases = [name for name in unit.tensors if name.rpartition("_")[2] in ("bias", "beta")]
        if len(biases) != 1 or result.ndim < 2:
            return False
        bias = self._tensor(unit.full(biases[0])).reshape(-1)
        for axis in {result.ndim - 1, 1}:
            if result.shape[axis] == bias.size:
                shape = [1] * result.ndim
                shape[axis] = bias.size
                if np.abs(result - bias.reshape(shape)).max() <= 1e-6 * np.abs(bias).max():
                    return True
        return False

    def _tell_apart(self, verdict: Verdict) -> None:
        """Find units that can be exchanged with one that looks alike, and nothing differs that agreed."""
        good = {unit for unit, found in verdict.uncut.items() if found}
        for group in self._alignment.alike:
            members = [unit for unit in group if unit in self.filled]
            pairs = combinations(members, 2) if len(members) <= 4 else pairwise(members)
            for one, other in pairs:
                if {unit.tensors[n] for unit in (one,) for n in unit.tensors} != {
                    other.tensors[n] for n in other.tensors
                }:
                    continue
                self._exchange(one, other)
                now = self._run({})
                # Each is compared with the other's result now, which says nothing; what comes after them does.
                after = [unit for unit in good if unit not in (one, other)]
                if all(now.get(unit, Agreement(np.inf)) for unit in after) and self._same_outputs():
                    verdict.untold.setdefault(one, set()).add(other)
                    verdict.untold.setdefault(other, set()).add(one)
                self._exchange(one, other)

    def _same_outputs(self) -> bool:
        return True


def feeds_of(unit: Unit) -> set[Unit]:
    """Units that it feeds, without itself."""
    return {one for one in unit.after if one is not unit}


def fed_by_input(unit: Unit) -> bool:
    return INPUT in unit.before
