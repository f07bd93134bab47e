"""Rows by a checkpoint alone: names, shapes and order. Nothing of it is known, so nothing is proven."""

import os
from collections import defaultdict

from converter.checkpoints.checkpoint import Checkpoint
from converter.checkpoints.tensors import FLOATS
from converter.errors import ConversionError, printable
from converter.matching.aligning import Alignment, in_parts
from converter.matching.builders import Builder
from converter.matching.deciding import Verdict
from converter.matching.filling import Filled, fill
from converter.matching.linking import Linking
from converter.matching.rows import Fill, Link, Outcome
from converter.matching.units import Unit, grouped
from converter.matching.words import Likeness, paired_by_names, ranked
from converter.progress import Progress

_ROUNDS = 3  # in which names are learnt from pairs that are likely
_AGREE = "order and names agree"
_ALONE = "the only one of its size on both sides"
_NAMES = "names agree; the file is sorted by name, so that its order says nothing"
_MOST = 400  # units of one size whose names are compared


def propose(keras: Builder, checkpoint: str | os.PathLike, progress: Progress) -> Outcome:
    """Propose which tensor fills which variable.

    Raises:
        ConversionError: the file or the builder fails.
    """
    with Checkpoint(checkpoint, progress=progress) as source:
        state = max(source.states.values(), key=len)
        floats = {name: entry.shape for name, entry in state.items() if entry.dtype in FLOATS}
        others = {name: f"{entry.dtype}: nothing that is learnt" for name, entry in state.items() if name not in floats}
    if not floats:
        raise ConversionError(f"{printable(str(checkpoint), 160)} holds no tensors of floats")
    progress.start("loading TensorFlow", 0)
    from converter.matching.keras_side import is_float, owners_of
    from converter.planning.variables import by_path, fresh_names

    with fresh_names():
        model = keras()
    variables = by_path(model)
    shapes = {path: tuple(one.shape) for path, one in variables.items() if is_float(one)}
    progress.start("matching", 0)
    by_dtype: dict[str, list[str]] = defaultdict(list)  # safetensors sorts the names of each
    for name, entry in state.items():
        by_dtype[entry.dtype].append(name)
    ordered = any(names != sorted(names) for names in by_dtype.values())
    alignment, doubts = _paired(grouped(floats, {}), grouped(shapes, owners_of(model, variables)), ordered)
    filled = {unit: fill(unit, other, []) for unit, other in alignment.pairs.items()}
    links = list(_Proposed(alignment, filled, doubts).links())
    taken = {id(other.whole or other) for other in alignment.pairs.values()}
    for unit in alignment.ours:
        if id(unit.whole or unit) not in taken:
            below = [unit.full(name)[len(unit.place) :].removeprefix(".") for name in unit.tensors]
            links.append(
                Link(
                    "", unit.place, tuple(Fill((), (one,), "") for one in below), "unmatched", _counts(alignment, unit)
                )
            )
            taken.add(id(unit.whole or unit))
    rest = [path for path in variables if path not in shapes]
    links += [Link("", path, (Fill((), ("",), "= built"),), "proposed", "no floats") for path in rest]
    used = {
        f"{theirs}.{name}".strip(".")
        for link in links
        for theirs, _ in link.units()
        for one in link.fills
        for name in one.tensors
    }
    left = {**{name: "" for name in floats if name not in used}, **others}
    return Outcome(links, left, notes=["there is no torch network to compare with, so nothing here is proven"])


class _Proposed(Linking):
    """Links of which nothing is known but what names, shapes and order say."""

    def __init__(self, alignment: Alignment, filled: dict[Unit, Filled], doubts: set[Unit]):
        super().__init__(alignment, filled, Verdict(), set())
        self._doubts = doubts

    def judged(self, unit: Unit) -> tuple[str, str]:
        return ("ambiguous" if unit in self._doubts else "proposed"), self._alignment.evidence[unit]


def _paired(theirs: list[Unit], ours: list[Unit], ordered: bool) -> tuple[Alignment, set[Unit]]:
    """Units of one size are paired by order, and by names; the second are those where the two do not agree."""
    found = Alignment(*in_parts(theirs, ours))
    groups: dict[tuple, tuple[list[Unit], list[Unit]]] = defaultdict(lambda: ([], []))
    for side, units in enumerate((found.theirs, found.ours)):
        for unit in units:
            groups[unit.sort][side].append(unit)
    even = [(some, others) for some, others in groups.values() if len(some) == len(others) <= _MOST]
    names = dict(zip(found.theirs, ranked([_name(one) for one in found.theirs]), strict=True))
    names |= dict(zip(found.ours, ranked([_name(one) for one in found.ours]), strict=True))
    known = [(some[0], others[0]) for some, others in even if len(some) == 1]
    doubts: set[Unit] = set()
    for _ in range(_ROUNDS):
        like = Likeness((names[unit], names[other]) for unit, other in known)
        known = []
        for some, others in even:
            by_name = paired_by_names([names[one] for one in some], [names[one] for one in others], like)
            for place, unit in enumerate(some):
                at = by_name.get(place)
                if len(some) == 1:
                    found.pair(unit, others[0], _ALONE)
                elif ordered and at == place:
                    found.pair(unit, others[place], _AGREE)
                elif not ordered and at is not None and sum(one == at for one in by_name.values()) == 1:
                    found.pair(unit, others[at], _NAMES)
                else:
                    told = "order, which names do not bear out" if ordered else "the names leave it open"
                    found.pair(unit, others[place], told)
                    doubts.add(unit)
                    continue
                doubts.discard(unit)
                known.append((unit, found.pairs[unit]))
    return found, doubts | _twice(found)


def _twice(found: Alignment) -> set[Unit]:
    """Units whose counterpart is another's too, which names may give; all but the first are unpaired."""
    seen: dict[Unit, Unit] = {}
    doubtful: set[Unit] = set()
    for unit, other in list(found.pairs.items()):
        if other in seen:
            doubtful |= {seen[other]}
            del found.pairs[unit]
        else:
            seen[other] = unit
    return doubtful


def _name(unit: Unit) -> str:
    which = ("query", "key", "value")[unit.part[0]] if unit.part and len(unit.part[1]) == 3 else ""
    return f"{unit.name}.{which}" if which else unit.name


def _counts(alignment: Alignment, unit: Unit) -> str:
    counts = [sum(one.sort == unit.sort for one in side) for side in (alignment.theirs, alignment.ours)]
    return f"the checkpoint has {counts[0]} units of its size, the Keras model {counts[1]}"
