"""Links out of what was decided: each unit with what fills it, its status, and the evidence in words."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping

from converter.kinds import BATCH_NORM, CONV_1D, CONV_2D, CONV_3D, DENSE, EMBEDDING, GROUP_NORM, LAYER_NORM, Kind
from converter.kinds.plain import DEPTHWISE_CONV_2D
from converter.matching.aligning import Alignment
from converter.matching.deciding import Verdict
from converter.matching.fill_text import ROWS
from converter.matching.filling import Filled, Piece, Way
from converter.matching.laying import with_sizes
from converter.matching.packing import packed_pattern
from converter.matching.rows import Fill, Link
from converter.matching.units import Unit, downstream
from converter.matching.words import role
from converter.naming import listed

# Classes of torch's modules and of Keras's layers that are one kind, and can be called alone.
_KINDS: dict[tuple[str, str], tuple[Kind, ...]] = {
    ("Linear", "Dense"): (DENSE,),
    ("Conv1d", "Conv1D"): (CONV_1D,),
    ("Conv2d", "Conv2D"): (CONV_2D,),
    ("Conv2d", "DepthwiseConv2D"): (DEPTHWISE_CONV_2D,),
    ("Conv3d", "Conv3D"): (CONV_3D,),
    ("BatchNorm1d", "BatchNormalization"): (BATCH_NORM,),
    ("BatchNorm2d", "BatchNormalization"): (BATCH_NORM,),
    ("BatchNorm3d", "BatchNormalization"): (BATCH_NORM,),
    ("LayerNorm", "LayerNormalization"): (LAYER_NORM,),
    ("GroupNorm", "GroupNormalization"): (GROUP_NORM,),
    ("Embedding", "Embedding"): (EMBEDDING,),
}
_SAME = "... -> ..."


class Linking:
    """What there is to say of each pair of units."""

    def __init__(self, alignment: Alignment, filled: Mapping[Unit, Filled], verdict: Verdict, called: set[Unit]):
        """`called` are torch's units whose module is called where their tensors are first used."""
        self._alignment, self._filled, self._verdict, self._called = alignment, filled, verdict, called

    def links(self) -> Iterator[Link]:
        """One for each unit of either side that is paired, packed ones with all their parts."""
        groups: dict[tuple[str, int], list[Unit]] = defaultdict(list)
        for unit in self._filled:
            other = self._alignment.pairs[unit]
            if unit.part:
                groups["theirs", id(unit.whole)].append(unit)
            elif other.part:
                groups["ours", id(other.whole)].append(unit)
            else:
                groups["", id(unit)].append(unit)
        for (packed, _), units in groups.items():
            yield from self._packed(units, packed) if packed else [self._single(units[0])]

    def _single(self, unit: Unit) -> Link:
        filled = self._filled[unit]
        theirs, ours = unit.place, filled.ours.place
        fills = []
        for piece, way in filled.ways():
            text, sizes = with_sizes(way.axes)
            if way.rows is not None:
                sizes = dict(zip(ROWS, way.rows, strict=True))
            fills.append(
                Fill((_below(piece.tensor, theirs),), (_below(piece.variable, ours),), text, tuple(sizes.items()))
            )
        fills += [Fill((), (_below(variable, ours),), f"= {value:g}") for variable, value in filled.constants.items()]
        status, evidence = self.judged(unit)
        return Link(theirs, ours, tuple(fills), status, evidence, self._kind(filled))

    def _packed(self, units: list[Unit], packed: str) -> Iterator[Link]:
        """Parts of one unit with their counterparts."""
        units = sorted(units, key=lambda one: (one if packed == "theirs" else self._alignment.pairs[one]).part or ())
        every = [self._filled[unit] for unit in units]
        whole = units[0] if packed == "theirs" else every[0].ours
        assert whole.part is not None
        statuses = [self.judged(unit) for unit in units]
        status, evidence = max(statuses, key=lambda one: _RANK[one[0]])
        single = [one.ours.path if packed == "theirs" else one.theirs.path for one in every]
        above = _common(single)
        theirs, ours = (whole.path, above) if packed == "theirs" else (above, whole.path)
        by_whole: dict[str, list[tuple[Piece, Way]]] = defaultdict(list)
        for one in every:
            for piece, way in one.ways():
                by_whole[piece.tensor if packed == "theirs" else piece.variable].append((piece, way))
        fills = []
        for pieces in by_whole.values():
            text, sizes = (
                packed_pattern([way for _, way in pieces], packed) if len(pieces) == len(whole.part[1]) else ("", {})
            )
            tensors = dict.fromkeys(_below(piece.tensor, theirs) for piece, _ in pieces)
            variables = dict.fromkeys(_below(piece.variable, ours) for piece, _ in pieces)
            if not text:
                status, evidence = "unmatched", "its parts are laid out in ways that do not go together"
            fills.append(Fill(tuple(tensors), tuple(variables), text, tuple(sizes.items())))
        for one in every:
            fills += [Fill((), (_below(name, ours),), f"= {value:g}") for name, value in one.constants.items()]
        yield Link(theirs, ours, tuple(fills), status, evidence)

    def judged(self, unit: Unit) -> tuple[str, str]:
        """Status and evidence."""
        how = self._alignment.evidence[unit]
        verdict = self._verdict
        own = verdict.uncut.get(unit)
        if unit in verdict.untold:
            others = listed([one.name for one in verdict.untold[unit]], 4)
            told = f"{how}; exchanged with {others}, nothing that follows differs on these inputs"
            mine = role(unit.name)
            if mine is not None and mine == role(self._alignment.pairs[unit].name):
                return "proposed", f"{told}; both sides call it {mine}"
            return "ambiguous", told
        if unit in self._alignment.rivals:
            others = listed([one.name for one in self._alignment.rivals[unit]], 4)
            return "ambiguous", f"{how}; {others} may be meant as well, and has no counterpart"
        if unit in verdict.hidden:
            return "proposed", f"{how}; on these inputs its kernel shows nowhere"
        if unit in verdict.unlaid:
            return "ambiguous", f"{how}; laid out otherwise it gives the same on these inputs, which hardly vary"
        meant = self._meant(unit)
        if meant:
            return "ambiguous", f"{how}; {listed([one.name for one in meant], 4)} may be meant for its constants"
        if verdict.ends == "turned" and own and not self._alignment.pairs[unit].after:
            return "ambiguous", f"{how}; its result agrees, but an output has torch's values in another order"
        confirmed = self._confirmed(unit)
        moved = self._moved(unit) if confirmed else []
        if moved:
            others = listed([one.name for one in moved], 4)
            return "proposed", f"{how}; it agrees, but {others} of its size has no counterpart, and the outputs differ"
        if confirmed:
            if own is None:
                return "proven", f"{how}; what it feeds agrees in an uncut run"
            if not own:
                return "proven", f"{how}; what it feeds agrees in an uncut run (its own sums are made in another order)"
            return "proven", f"{how}; its result agrees to {_rounded(own.error)} in an uncut run, and what it feeds"
        cut = verdict.cut.get(unit)
        if unit in verdict.faulty:
            size = "in shape" if own is None or math.isinf(own.error) else f"by {_rounded(own.error)}"
            if unit in verdict.behind:
                return "proposed", f"{how}; its result differs {size}, behind {verdict.behind[unit].name}"
            return "proposed", f"{how}; its result differs {size}, though what it is given agrees"
        if own:
            return "proposed", f"{how}; its own result agrees, but what it feeds does not, or has no counterpart"
        if cut:
            before = self._first_fault(unit)
            told = f" (uncut it differs from {before} on)" if before else ""
            return "proposed", f"{how}; its result agrees where torch's stand before it{told}"
        return "proposed", f"{how}; no run confirms it"

    def _confirmed(self, unit: Unit) -> bool:
        """Whether it agrees in an uncut run where it stands: its own result, and all that it feeds."""
        pairs, uncut = self._alignment.pairs, self._verdict.uncut
        own = uncut.get(unit)
        other = pairs[unit]
        if not other.after:  # nothing but the outputs shows in which order its values are
            return own is not None and (own.in_order or (bool(own) and self._verdict.ends == "same"))
        fed = {pairs.get(one): one for one in downstream(unit)}
        known = 0
        for after in other.after:
            if after is other:
                continue
            theirs = fed.get(after)
            if theirs is None:
                return False
            if theirs in uncut:
                known += 1
                if not uncut[theirs] and not self._confirmed_beyond(theirs):
                    return False
        if own is None:
            return known > 0
        return bool(own) or known > 0

    def _meant(self, unit: Unit) -> list[Unit]:
        """Units of torch's behind this one that have no counterpart, and the size of what is held constant here."""
        filled = self._filled[unit]
        sizes = {math.prod(filled.ours.tensors[_below(name, filled.ours.path)]) for name in filled.constants}
        found: dict[Unit, None] = {}
        open_ = [unit] if sizes else []
        while open_:
            for one in open_.pop().after:
                if (
                    one not in found
                    and one not in self._alignment.pairs
                    and one.sort[:2] in {("vector", n) for n in sizes}
                ):
                    found[one] = None
                    open_.append(one)
        return list(found)

    def _moved(self, unit: Unit) -> list[Unit]:
        """Units of either side in a line with this one that have no counterpart, though they are of its size: which of
        them is missing on the other side, only equal outputs tell."""
        if self._verdict.ends == "same":
            return []
        found = []
        other = self._alignment.pairs[unit]
        taken = set(self._alignment.pairs.values())
        for mine, every, known in (
            (unit, self._alignment.theirs, self._alignment.pairs),
            (other, self._alignment.ours, taken),
        ):
            spare = [one for one in every if one not in known and one.sort == mine.sort and one.result is not None]
            if spare:
                behind = downstream(mine)
                found += [one for one in spare if one in behind or mine in downstream(one)]
        return found

    def _confirmed_beyond(self, unit: Unit) -> bool:
        """Whether a unit whose own sums are made in another order feeds only what agrees."""
        after = [one for one in unit.after if one is not unit]
        return bool(after) and all(self._verdict.uncut.get(one) for one in after)

    def _first_fault(self, unit: Unit) -> str:
        seen: set[Unit] = set()
        open_ = [unit]
        while open_:
            one = open_.pop()
            for before in one.before:
                if isinstance(before, Unit) and before not in seen:
                    if before in self._verdict.faulty:
                        return before.name
                    seen.add(before)
                    open_.append(before)
        return ""

    def _kind(self, filled: Filled) -> str:
        """The kind of a layer that can be called alone on both sides, or ""."""
        found = self._verdict.uncut.get(filled.theirs)
        known = _KINDS.get((filled.theirs.owner, filled.ours.owner), ())
        if filled.constants or filled.theirs not in self._called or not found or not found.axes:
            return ""
        for kind in known:
            leaves = {(leaf.torch[0], leaf.keras[0]): leaf.pattern.text for leaf in kind.leaves}
            if found.axes != _SAME and not kind.results:
                continue
            mine = [
                (piece.tensor.rpartition(".")[2], piece.variable.rpartition(".")[2], way.axes)
                for piece, way in filled.ways()
            ]
            if all(
                (one, other) in leaves and (axes == leaves[one, other] or axes == _SAME == _plain(leaves[one, other]))
                for one, other, axes in mine
            ):
                return kind.name
        return ""


_RANK = {"proven": 0, "proposed": 1, "ambiguous": 2, "unmatched": 3}


def _plain(text: str) -> str:
    left, right = text.split(" -> ")
    return _SAME if left == right else text


def _below(name: str, path: str) -> str:
    return name[len(path) :].removeprefix(".") if path else name


def _common(paths: list[str]) -> str:
    words = [path.split(".") for path in paths]
    shared = []
    for column in zip(*words, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return ".".join(shared)


def _rounded(error: float) -> str:
    return f"{max(error, 1e-9):.0e}".replace("e-0", "e-")
