"""Which unit of torch is which of Keras: by how data flows between them, then by names and order.

Nothing here is sure. That two networks have the same flow shows which units can be meant; what they compute decides.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from converter.matching.units import Unit
from converter.matching.words import Likeness, paired_by_names, role

_DEEP = 64  # steps of the flow that are looked at: as far as it goes
# Where the two flows differ somewhere, what lies before that is told by what feeds it, what lies behind by what it
# feeds; and the rest by what is near.
_WAYS = (("both", _DEEP), ("before", _DEEP), ("after", _DEEP), *(("both", near) for near in (12, 6, 4, 3, 2, 1)))


@dataclass
class Alignment:
    """Pairs of units.

    Attributes:
        theirs, ours: the units of torch and of Keras; what is packed on one side is in parts there.
        pairs: torch's -> Keras's.
        evidence: torch's unit -> how its counterpart was found.
        alike: torch's units that the flow does not tell apart, group by group.
        uneven: sorts of units of which one side has more.
        candidates: Keras's unit that is not paired -> torch's units that are fed as it is.
        rivals: torch's unit -> units of either side that were left over, and may be meant as well as it or its
            counterpart.
    """

    theirs: list[Unit]
    ours: list[Unit]
    pairs: dict[Unit, Unit] = field(default_factory=dict)
    evidence: dict[Unit, str] = field(default_factory=dict)
    alike: list[list[Unit]] = field(default_factory=list)
    uneven: set[tuple] = field(default_factory=set)
    rivals: dict[Unit, list[Unit]] = field(default_factory=dict)
    candidates: dict[Unit, list[Unit]] = field(default_factory=dict)

    def alone(self) -> list[Unit]:
        """Keras's units that have no counterpart."""
        taken = {id(other.whole or other) for other in self.pairs.values()}
        return [one for one in self.ours if id(one.whole or one) not in taken]

    def pair(self, unit: Unit, other: Unit, evidence: str) -> None:
        self.pairs[unit], self.evidence[unit] = other, evidence


def align(theirs: Sequence[Unit], ours: Sequence[Unit]) -> Alignment:
    """Pair the units of both sides, as far as anything tells."""
    _cut_tables(theirs, ours)
    found = Alignment(*in_parts(theirs, ours))
    counts = [Counter(unit.sort for unit in side) for side in (found.theirs, found.ours)]
    found.uneven = {sort for sort in counts[0] | counts[1] if counts[0][sort] != counts[1][sort]}
    _by_flow(found)
    while _choose(found):
        _by_flow(found)
    _find_rivals(found)
    return found


_MOST_ROWS = 16  # that a table may have more on torch's side


def _cut_tables(theirs: Sequence[Unit], ours: Sequence[Unit]) -> None:
    """Take tables for the same that have a few rows more on torch's side, as positions that are counted from 2."""
    counts = [Counter(unit.sort for unit in side) for side in (theirs, ours)]
    lacking = {_table(one) for one in ours if counts[1][one.sort] > counts[0][one.sort]} - {None}
    for unit in theirs:
        table = _table(unit)
        if table is None or counts[0][unit.sort] <= counts[1][unit.sort]:
            continue
        near = {one for one in lacking if one and one[1] == table[1] and 0 < table[0] - one[0] <= _MOST_ROWS}
        if len(near) == 1:
            unit.cut = math.prod(near.pop())


def _table(unit: Unit) -> tuple[int, int] | None:
    """(rows, columns) of a unit that is one table."""
    shapes = list(unit.tensors.values())
    return (shapes[0][0], shapes[0][1]) if len(shapes) == 1 and len(shapes[0]) == 2 else None


def _find_rivals(found: Alignment) -> None:
    """Note units that were left over though they are fed as a paired one is: a second head, of which the other side has
    one."""
    bare = Alignment(found.theirs, found.ours)
    colours = _colours(bare, "before", _DEEP)
    partner = {other: unit for unit, other in found.pairs.items()}
    # What no operation uses is no counterpart of what one does.
    live = {unit: other for unit, other in found.pairs.items() if (unit.result is None) == (other.result is None)}
    for other, colour in colours[1].items():
        if other not in partner:
            found.candidates[other] = [
                one for one, theirs in colours[0].items() if theirs == colour and one.result is not None
            ]
    for side, known in zip(
        colours, ({unit: unit for unit in live}, {other: unit for unit, other in live.items()}), strict=True
    ):
        spare: dict[int, list[Unit]] = defaultdict(list)
        for unit, colour in side.items():
            if unit not in known and unit.result is not None:
                spare[colour].append(unit)
        for unit, colour in side.items():
            if unit in known and colour in spare:
                found.rivals.setdefault(known[unit], []).extend(spare[colour])


def _by_flow(found: Alignment) -> None:
    """Pair all units that the flow tells, with those that are paired as landmarks."""
    while True:
        taken = {other: unit for unit, other in found.pairs.items()}
        for way, steps in _WAYS:
            theirs, ours = _colours(found, way, steps)
            counts = Counter(theirs.values()), Counter(ours.values())
            by_colour = {colour: unit for unit, colour in ours.items()}
            new = [
                (unit, by_colour[colour])
                for unit, colour in theirs.items()
                if unit not in found.pairs
                and counts[0][colour] == counts[1][colour] == 1
                and by_colour[colour] not in taken
            ]
            if new:
                for unit, other in new:
                    found.pair(unit, other, _told(way, steps, bool(found.alike)))
                break
        else:
            return


def _told(way: str, steps: int, chosen: bool) -> str:
    if steps == _DEEP:
        return {"both": "data flow", "before": "data flow before it", "after": "data flow after it"}[way]
    return f"data flow nearby ({steps} units)"


def _colours(found: Alignment, way: str, steps: int) -> tuple[dict[Unit, int], dict[Unit, int]]:
    """A number for each unit of both sides: equal where the flow around them looks the same."""
    landmarks: dict[Unit, int] = {}
    for place, (unit, other) in enumerate(found.pairs.items()):
        landmarks[unit] = landmarks[other] = hash(("landmark", place))
    sides = [{unit: landmarks.get(unit, hash(unit.sort)) for unit in side} for side in (found.theirs, found.ours)]
    kinds = len(set(sides[0].values()) | set(sides[1].values()))
    for _ in range(steps):
        sides = [_finer(colours, landmarks, way) for colours in sides]
        now = len(set(sides[0].values()) | set(sides[1].values()))
        if now == kinds:
            break
        kinds = now
    return sides[0], sides[1]


def _finer(colours: dict[Unit, int], landmarks: dict[Unit, int], way: str) -> dict[Unit, int]:
    finer = {}
    for unit, colour in colours.items():
        if unit in landmarks:
            finer[unit] = colour
            continue
        before: tuple[int, ...] = ()
        after: tuple[int, ...] = ()
        if way != "after":
            before = tuple(sorted(colours.get(one, 2) if isinstance(one, Unit) else 1 for one in unit.before))
        if way != "before":
            after = tuple(sorted(colours.get(one, 2) for one in unit.after))
        finer[unit] = hash((colour, before, after))
    return finer


def _choose(found: Alignment) -> bool:
    """Of units that the flow does not tell apart, pair some by their names or their order; whether there were any."""
    taken = set(found.pairs.values())
    like = Likeness((unit.name, other.name) for unit, other in found.pairs.items())
    for steps in (_DEEP, 6, 2, 0):
        theirs, ours = _colours(found, "both", steps)
        groups: dict[int, tuple[list[Unit], list[Unit]]] = defaultdict(lambda: ([], []))
        for unit, colour in theirs.items():
            if unit not in found.pairs:
                groups[colour][0].append(unit)
        for other, colour in ours.items():
            if other not in taken:
                groups[colour][1].append(other)
        even = [group for group in groups.values() if len(group[0]) == len(group[1]) > 0]
        if not even:
            continue
        by_role = [group for group in even if _by_role(found, *group)]
        if by_role:
            return True
        # The first that is called: what comes after it may be told by it.
        some, others = min(even, key=lambda group: min(map(_called, group[0])))
        some, others = sorted(some, key=_called), sorted(others, key=_called)
        names = paired_by_names([one.name for one in some], [one.name for one in others], like)
        agree = all(names.get(place) == place for place in range(len(some)))
        place = 0
        if not agree and len(names) == len(some) == len(set(names.values())):
            found.pair(some[place], others[names[place]], "names, against the order of calls")
        else:
            found.pair(some[place], others[place], "order of calls and names" if agree else "order of calls")
        if len(some) > 1:
            found.alike.append(some)
        return True
    return False


def _by_role(found: Alignment, some: list[Unit], others: list[Unit]) -> bool:
    """Pair units that say whether they are query, key or value."""
    roles = [[_role(unit) for unit in side] for side in (some, others)]
    if None in roles[0] + roles[1] or sorted(roles[0]) != sorted(roles[1]) or len(set(roles[0])) < 2:  # type: ignore
        return False
    if len(set(roles[0])) < len(some):
        return False
    for unit, name in zip(some, roles[0], strict=True):
        found.pair(unit, others[roles[1].index(name)], "data flow, and the names of query, key and value")
    found.alike.append(some)
    return True


def _role(unit: Unit) -> str | None:
    if unit.part:
        which, shares = unit.part
        if len(shares) == 3:
            return ("query", "key", "value")[which]
        if len(shares) == 2:
            return ("key", "value")[which]
    return role(unit.name)


def _called(unit: Unit) -> tuple:
    return (math.inf if unit.call is None else unit.call, unit.order, unit.part or ())


def in_parts(theirs: Sequence[Unit], ours: Sequence[Unit]) -> tuple[list[Unit], list[Unit]]:
    """The units of both sides, where those that are packed on one side alone are in parts."""
    sides = [list(theirs), list(ours)]
    for packed, single in ((0, 1), (1, 0)):
        counts = [Counter(unit.sort for unit in side) for side in sides]
        surplus = {
            sort for sort in counts[packed] if counts[packed][sort] > counts[single][sort] and sort[0] == "kernel"
        }
        lacking = {
            sort for sort in counts[single] if counts[single][sort] > counts[packed][sort] and sort[0] == "kernel"
        }
        groups = _siblings(unit for unit in sides[single] if unit.sort in lacking)
        for sort in surplus:
            whole = [unit for unit in sides[packed] if unit.sort == sort]
            sets = [group for group in groups if sum(one.size for one in group) == sort[1] and len(group) in (2, 3)]
            more = counts[packed][sort] - counts[single][sort]
            if not sets or len(sets) < min(more, len(whole)):
                continue
            shares = Counter(tuple(one.size for one in group) for group in sets).most_common(1)[0][0]
            if len(sets) != len(whole) and more != len(sets):
                continue
            named = whole if len(whole) == len(sets) else [unit for unit in whole if _packed_name(unit.name)]
            if len(named) != len(sets):
                continue
            for unit in named:
                place = sides[packed].index(unit)
                sides[packed][place : place + 1] = _parts(unit, shares)
    for side in sides:
        _rewire(side)
    return sides[0], sides[1]


def _siblings(units: Iterable[Unit]) -> list[list[Unit]]:
    """Kernels that are given the same, and whose results go the same way, in the order of their roles or calls."""
    groups: dict[tuple, list[Unit]] = defaultdict(list)
    for unit in units:
        above = unit.path.rpartition(".")[0]
        groups[frozenset(unit.before), above].append(unit)
    order = {"query": 0, "key": 1, "value": 2, None: 3}
    return [sorted(group, key=lambda one: (order[_role(one)], _called(one))) for group in groups.values()]


_PACKED = ("qkv", "in_proj", "query_key_value", "c_attn", "kv", "to_kv", "qk", "gate_up", "wqkv")


def _packed_name(name: str) -> bool:
    words = name.lower().replace("/", ".").split(".")
    return any(
        word == one or word.startswith(f"{one}_") or word.endswith(f"_{one}") for word in words for one in _PACKED
    )


def _parts(unit: Unit, sizes: tuple[int, ...]) -> list[Unit]:
    least = math.gcd(*sizes)
    shares = tuple(size // least for size in sizes)
    return [replace(unit, part=(place, shares), whole=unit) for place in range(len(shares))]


def _rewire(side: list[Unit]) -> None:
    """Let what was joined to a whole be joined to its parts."""
    parts: dict[Unit, list[Unit]] = defaultdict(list)
    for unit in side:
        if unit.whole is not None:
            parts[unit.whole].append(unit)
    if not parts:
        return
    for unit in side:
        unit.before = {
            part for one in unit.before for part in (parts.get(one, [one]) if isinstance(one, Unit) else [one])
        }
        unit.after = {part for one in unit.after for part in parts.get(one, [one])}
