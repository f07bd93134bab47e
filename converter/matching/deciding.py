"""What the two networks compute decides: layouts are tried, units exchanged, and what does not agree is not proven.

Torch's network runs once on seeded values. Keras's runs with the same values where they are thought to belong, and its
units' results are compared with torch's. The first that differ, of those that are given what torch's are given, are
tried in other layouts, or exchanged with units that look alike. What agrees in an uncut run is where it belongs: a unit
that is given torch's own input would agree wherever it stood.
"""

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations, pairwise

import numpy as np

from converter.matching.aligning import Alignment
from converter.matching.comparing import Agreement, agreement, arranged, patterns
from converter.matching.filling import Filled, fill
from converter.matching.keras_side import KerasSide
from converter.matching.units import Shape, Unit

_ROUNDS = 12  # of exchanges
_EXCHANGES = 12  # pairs of units that are exchanged for one that differs
_IMAGES = ("Conv", "BatchNorm", "GroupNorm", "InstanceNorm")  # torch's modules whose results have channels at axis 1
_MANY = 12  # units that look alike up to which each is exchanged with each
_HELD = 64 << 20  # bytes of results that are held at once
_FIRST = 4  # units that differ for which that is tried

Compared = dict[Unit, Agreement]
_NONE: Mapping[Unit, np.ndarray] = {}


@dataclass
class Verdict:
    """What is known of the pairs in the end.

    Attributes:
        uncut: torch's unit -> how its result compares in a run that nothing was put into; missing where it has none.
        cut: the same where torch's results stand in the place of those of units that differ on their own.
        faulty: those units, in the order of the network.
        behind: of those the ones that are not given what torch's are given -> the unit before them whose result is of
            another shape.
        untold: units that can be exchanged with another without any difference: unit -> the others.
        hidden: units whose kernel shows nowhere, as what they are given is zero.
        unlaid: units that give the same in another layout.
        ends: how the outputs of both networks compare: "same", "turned" where one has the values of torch's in another
            order, "other" where one has the size of torch's alone, "" where one is none of torch's.
    """

    uncut: dict[Unit, Agreement] = field(default_factory=dict)
    cut: dict[Unit, Agreement] = field(default_factory=dict)
    faulty: list[Unit] = field(default_factory=list)
    behind: dict[Unit, Unit] = field(default_factory=dict)
    untold: dict[Unit, set[Unit]] = field(default_factory=dict)
    hidden: set[Unit] = field(default_factory=set)
    unlaid: set[Unit] = field(default_factory=set)
    ends: str = ""


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
        outputs: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ):
        """`outputs` counts those of Keras's that are torch's now, and those of them at the same place on both sides."""
        self._alignment, self._tensor, self._results, self._keras = alignment, tensor, results, keras
        self._factors, self._outputs = factors, outputs
        self._shapes = {path: tuple(variable.shape) for path, variable in keras.variables.items()}
        self.filled: dict[Unit, Filled] = {}
        self._turns: list[tuple[dict[Unit, np.ndarray], list[Unit]]] | None = None
        for unit, other in alignment.pairs.items():
            self.filled[unit] = fill(unit, other, factors(unit))
        self._put(self.filled)

    def decide(self, dull: bool = False) -> Verdict:
        """Repair what can be, and say what is known; `dull` are inputs that do not vary along each axis."""
        uncut = self._run()
        faulty: list[Unit] = []
        if any(not found and self.felt(unit, uncut) for unit, found in uncut.items()):
            faulty = self._relaid(self._alone())
            uncut = self._run()
            for _ in range(_ROUNDS):
                if not self._exchanged(uncut):
                    break
                uncut = self._run()
                alone = self._alone()
                faulty = [unit for unit in faulty if not alone[unit]]
        if self._straightened(uncut):
            uncut = self._run()
        given = self._given(faulty)
        return Verdict(
            uncut=uncut,
            cut=self._run(given) if given else uncut,
            faulty=self._in_order(faulty),
            behind=self._behind(faulty, uncut),
            untold=self._untold(uncut),
            hidden={unit for unit in self.filled if self._hidden(unit)},
            unlaid=self._unlaid() if dull else set(),
        )

    # Running

    def _put(self, units: Iterable[Unit]) -> None:
        """Assign the variables of these units, one after another: all values at once would be a whole model."""
        for unit in units:
            for variable, block, value in self.filled[unit].values(self._tensor, self._shapes):
                if block is None:
                    self._keras.assign({variable: value})
                else:
                    whole = np.array(self._keras.variables[variable])
                    view = block.of(whole)
                    view[...] = value.reshape(view.shape)
                    self._keras.assign({variable: whole})

    def _run(self, given: Mapping[Unit, np.ndarray] = _NONE, units: Iterable[Unit] | None = None) -> Compared:
        """How results compare with torch's, where `given` stand in the place of some units' own."""
        wanted = [unit for unit in (self.filled if units is None else units) if self._comparable(unit)]
        feeds = {self._step(unit): value for unit, value in given.items()}
        compared: Compared = {}
        for some in self._at_once(wanted):
            values = self._keras.values([self._step(unit) for unit in some], feeds)
            compared.update({unit: agreement(self._results[unit], values[self._step(unit)]) for unit in some})
        return compared

    def _at_once(self, units: list[Unit]) -> Iterator[list[Unit]]:
        """The units in lots whose results are held at the same time: a run for each is paid for little memory."""
        lot: list[Unit] = []
        nbytes = 0
        for unit in units:
            nbytes += 4 * math.prod(self._keras.steps[self._step(unit)].shapes[0])
            lot.append(unit)
            if nbytes > _HELD:
                yield lot
                lot, nbytes = [], 0
        if lot:
            yield lot

    def _alone(self, only: Container[Unit] | None = None) -> Compared:
        """How each unit's result compares where torch's results reach it.

        What is given cannot be had as well, so units take turns by their depth: in each run every other one is given.
        """
        if self._turns is None:
            depths = _depths(self.filled)
            feedable = self._given(unit for unit in self.filled if self._comparable(unit))
            self._turns = []
            for turn in range(2):
                given = {unit: value for unit, value in feedable.items() if depths[unit] % 2 != turn}
                self._turns.append((given, [unit for unit in self.filled if unit not in given]))
        compared: Compared = {}
        for given, units in self._turns:
            if only is None or any(unit in only for unit in units):
                compared.update(self._run(given, units))
        return compared

    def _given(self, units: Iterable[Unit]) -> dict[Unit, np.ndarray]:
        """Torch's results of these units as the Keras steps give them, where the layout is known."""
        found = {}
        for unit in units:
            if self._comparable(unit):
                shape = self._keras.steps[self._step(unit)].shapes[0]
                theirs = self._results[unit]
                ways = list(patterns(theirs.shape, shape))
                images = unit.owner.startswith(_IMAGES)  # a square image of as many channels fits both ways
                text = next(iter(sorted(ways, key=lambda way: images and not way.startswith("n c"))), None)
                if text is not None and theirs.size == math.prod(shape):
                    found[unit] = np.ascontiguousarray(arranged(theirs, text, shape))
        return found

    def _comparable(self, unit: Unit) -> bool:
        other = self._alignment.pairs[unit]
        return unit in self._results and not unit.part and not other.part and other.result is not None

    def _step(self, unit: Unit) -> int:
        step = self._alignment.pairs[unit].result
        assert step is not None
        return step

    def _in_order(self, units: Iterable[Unit]) -> list[Unit]:
        return sorted(units, key=lambda unit: (unit.call is None, unit.call or 0, unit.order))

    def felt(self, unit: Unit, compared: Compared) -> bool:
        """Whether what it feeds differs too: where it does not, sums are made in another order."""
        after = [one for one in unit.after if one in compared and one is not unit]
        return not after or not all(compared[one] for one in after)

    def _blamed(self, unit: Unit, compared: Compared) -> set[Unit]:
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

    def _relaid(self, alone: Compared) -> list[Unit]:
        """Try other layouts of the units that differ on torch's own input, all at once; those that no layout mends."""
        blamed = {unit: self._blamed(unit, alone) for unit, found in alone.items() if not found}
        mended = self._mended({unit: some - {unit} for unit, some in blamed.items()})  # itself may be as usual
        rest = {unit: some for unit, some in blamed.items() if unit not in mended}
        mended |= self._mended(rest)
        return [unit for unit in blamed if unit not in mended]

    def _mended(self, blamed: Mapping[Unit, set[Unit]]) -> set[Unit]:
        """Units that agree once those that are to blame for each are laid out otherwise; the rest is as it was."""
        choices = {one: len(self.filled[one].choices) for some in blamed.values() for one in some}
        kept = {one: self.filled[one].chosen for one in choices}
        open_ = {unit for unit, some in blamed.items() if any(choices[one] > 1 for one in some)}
        found: set[Unit] = set()
        for choice in range(1, max(choices.values(), default=0)):
            moved = {one for unit in open_ for one in blamed[unit] if choices[one] > choice}
            if not moved:
                break
            for one in moved:
                self.filled[one].chosen = choice
            self._put(moved)
            mended = {unit for unit, same in self._alone(open_).items() if unit in open_ and same}
            found |= mended
            open_ -= mended
        rest = {one for unit in open_ for one in blamed[unit]}
        for one in rest:
            self.filled[one].chosen = kept[one]
        self._put(rest)
        return found

    def _behind(self, faulty: list[Unit], compared: Compared) -> dict[Unit, Unit]:
        unfed = set(faulty) - set(self._given(faulty))
        found: dict[Unit, Unit] = {}
        for unit in self._in_order(faulty):
            before = next((one for one in self._nearest(unit, compared) if one in unfed), None)
            if before is not None:
                found[unit] = found.get(before, before)
        return found

    def _straightened(self, uncut: Compared) -> bool:
        """Lay out units at the end so that their values come in torch's order, which nothing after them would show;
        whether any was changed."""
        changed = False
        for unit, found in uncut.items():
            filled = self.filled[unit]
            if not found or found.usual or self._alignment.pairs[unit].after:
                continue
            kept = filled.chosen
            for choice in range(len(filled.choices)):
                filled.chosen = choice
                self._put([unit])
                if self._run(units=[unit])[unit].usual:
                    changed = True
                    break
            else:
                filled.chosen = kept
                self._put([unit])
        return changed

    def _exchanged(self, uncut: Compared) -> bool:
        """Exchange two units that look alike near the first ones that differ; whether more agrees then."""
        good = sum(map(bool, uncut.values()))
        wrong = [unit for unit in self._in_order(uncut) if not uncut[unit]]
        first = [unit for unit in wrong if not any(one in wrong for one in self._nearest(unit, uncut))][:_FIRST]
        for unit in first:
            near = {unit, *(one for one in unit.before if isinstance(one, Unit))} | self._blamed(unit, uncut)
            tried = 0
            for group in self._alignment.alike:
                members = [one for one in group if one in self.filled]
                for one, other in combinations(members, 2):
                    if not {one, other} & near or tried >= _EXCHANGES:
                        continue
                    tried += 1
                    self._exchange(one, other)
                    if sum(map(bool, self._run().values())) > good:
                        told = "exchanged with one that looks alike, since then the results agree"
                        self._alignment.evidence[one] = self._alignment.evidence[other] = told
                        return True
                    self._exchange(one, other)
        return False

    def _nearest(self, unit: Unit, compared: Compared) -> set[Unit]:
        """The nearest units before it whose results can be compared."""
        found: set[Unit] = set()
        seen: set[Unit] = {unit}
        open_ = [one for one in unit.before if isinstance(one, Unit)]
        while open_:
            one = open_.pop()
            if one in seen:
                continue
            seen.add(one)
            if one in compared:
                found.add(one)
            else:
                open_ += [other for other in one.before if isinstance(other, Unit)]
        return found

    def _exchange(self, one: Unit, other: Unit) -> None:
        """Let each have the other's counterpart, in the layout that was found for it."""
        pairs = self._alignment.pairs
        layouts = {pairs[unit]: self.filled[unit] for unit in (one, other)}
        pairs[one], pairs[other] = pairs[other], pairs[one]
        for unit in (one, other):
            filled = self.filled[unit] = fill(unit, pairs[unit], self._factors(unit))
            before = layouts[pairs[unit]]
            if len(filled.choices) == len(before.choices):
                filled.chosen = before.chosen
        self._put_whole(one, other)

    def _put_whole(self, *units: Unit) -> None:
        """Assign the variables of these units' counterparts, and of all parts of what is packed there."""
        wholes = {self._alignment.pairs[unit].whole for unit in units} - {None}
        beside = [one for one in self.filled if one not in units and self._alignment.pairs[one].whole in wholes]
        self._put([*units, *beside])

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

    def _unlaid(self) -> set[Unit]:
        """Units that give the same of torch's own input in another layout, or may do so where that cannot be seen."""
        found = {unit for unit, filled in self.filled.items() if len(filled.choices) > 1 and not self._comparable(unit)}
        kept = {unit: filled.chosen for unit, filled in self.filled.items() if self._comparable(unit)}
        alone = self._alone()
        for choice in range(max((len(self.filled[unit].choices) for unit in kept), default=0)):
            moved = {one for one, chosen in kept.items() if len(self.filled[one].choices) > choice != chosen}
            values = {one: self._values(one) for one in moved}
            for one in moved:
                self.filled[one].chosen = choice
            moved -= {one for one in moved if all(map(np.array_equal, values[one], self._values(one)))}
            self._put(moved)
            now = self._alone(moved) if moved else {}
            found |= {one for one in moved if now[one] and now[one].axes == alone[one].axes}
            for one, chosen in kept.items():
                self.filled[one].chosen = chosen
            self._put(moved)
        return found

    def _values(self, unit: Unit) -> list[np.ndarray]:
        return [value for _, _, value in self.filled[unit].values(self._tensor, self._shapes)]

    def _untold(self, uncut: Compared) -> dict[Unit, set[Unit]]:
        """Units that can be exchanged with one that looks alike, and nothing differs that agreed."""
        untold: dict[Unit, set[Unit]] = {}
        outputs = self._outputs() if self._alignment.alike else (0, 0)
        tried: set[tuple[Unit, Unit]] = set()
        for group in self._alignment.alike:
            members = [unit for unit in group if unit in self.filled]
            for one, other in combinations(members, 2) if len(members) <= _MANY else pairwise(members):
                if (one, other) in tried:  # a group comes again without the one that was chosen
                    continue
                tried.add((one, other))
                if sorted(one.tensors.values()) != sorted(other.tensors.values()) and not one.part:
                    continue
                # Each of two is compared with the other's result then, which says nothing; what comes after them does.
                after = {unit for unit, found in uncut.items() if found and unit not in (one, other)}
                swapped = {one: other}
                same = self._same_after(swapped, after, outputs)
                if not same:
                    swapped = self._branches(one, other)
                    same = len(swapped) > 1 and self._same_after(swapped, {u for u in uncut if uncut[u]}, outputs)
                for some in swapped.items() if same else ():
                    for unit, twin in (some, some[::-1]):
                        untold.setdefault(unit, set()).add(twin)
        return untold

    def _same_after(self, swapped: Mapping[Unit, Unit], units: Container[Unit], outputs: tuple[int, int]) -> bool:
        """Whether these units agree, and the outputs, while others are exchanged."""
        kept = {unit: self.filled[unit] for some in swapped.items() for unit in some}
        for one, other in swapped.items():
            self._exchange(one, other)
        same = all(self._run(units=[unit for unit in self.filled if unit in units]).values())
        if same:
            now = self._outputs()
            named = any("names" in self._alignment.evidence[unit] for unit in kept)
            same = now[0] >= outputs[0] and not (named and now[1] < outputs[1])
        for one, other in swapped.items():
            self._exchange(one, other)
        self.filled.update(kept)
        self._put_whole(*kept)
        return same

    def _branches(self, one: Unit, other: Unit) -> dict[Unit, Unit]:
        """The two with all that is fed by one of them alone, or feeds it alone, each with its twin; or nothing."""
        found = {one: other}
        open_ = [(one, other)]
        while open_:
            pair = open_.pop()
            for way in ("after", "before"):
                both = [{near for near in getattr(unit, way) if isinstance(near, Unit)} for unit in pair]
                some, others = (
                    sorted(mine - rest, key=lambda unit: (repr(unit.sort), self._place(unit)))
                    for mine, rest in (both, both[::-1])
                )
                if [unit.sort for unit in some] != [unit.sort for unit in others]:
                    return {}
                for unit, twin in zip(some, others, strict=True):
                    if unit in found.values() or twin in found or found.get(unit, twin) is not twin:
                        return {}
                    if not {unit, twin} <= self.filled.keys():
                        return {}
                    if unit not in found:
                        found[unit] = twin
                        open_.append((unit, twin))
        return found if len(set(found.values())) == len(found) else {}

    @staticmethod
    def _place(unit: Unit) -> tuple[float, int]:
        return (math.inf if unit.call is None else unit.call, unit.order)


def _depths(units: Iterable[Unit]) -> dict[Unit, int]:
    """How many units feed each, one after another, at most; circles are cut where they close."""
    units = set(units)
    depths: dict[Unit, int] = {}
    for unit in sorted(units, key=lambda one: (one.call is None, one.call or 0, one.order)):
        depths[unit] = 1 + max((depths.get(one, 0) for one in unit.before if isinstance(one, Unit)), default=0)
    return depths
