"""What a weights file remembers of its checkpoint beyond the values, so that `restore` can give it back as it was.

Recorded is only what differs from the plain case: one state dict, its names as the dialect has them, all float32, and
nothing but what the model needs. Names stand folded (`layers.{0-11}.norm1.weight`), because an HDF5 attribute is short.
"""

import base64
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from converter.checkpoints.checkpoint import Checkpoint
from converter.checkpoints.tensors import FLOATS, NUMBERS, Entry
from converter.errors import ConversionError
from converter.naming import fold
from converter.pairs.mapping import expand
from converter.planning.reading import Reading, equal, mapping_of

SMALL = 1024  # bytes of a tensor that is kept though the model does not need it
_LONGEST = 40_000  # characters of the record; an attribute holds 60,000 with all that the escapes add
_MOST_AXES = 64
_MOST_NAMES = 10_000  # as many as are read of a checkpoint


@dataclass(frozen=True)
class Kept:
    """A small tensor that the model does not need, with its values as they stand in the checkpoint."""

    dtype: str
    shape: tuple[int, ...]
    values: bytes

    def array(self) -> np.ndarray:
        """The values."""
        return np.frombuffer(self.values, NUMBERS[self.dtype]).reshape(self.shape)


@dataclass
class Origin:
    """How a checkpoint spelled what its weights file holds.

    Attributes:
        key: dotted path of the state dict inside the file.
        prefix: what stands before the dialect's names.
        names: canonical name -> name in the checkpoint, where that is not the prefix and the dialect's name.
        dtype: what most tensors are.
        dtypes: canonical name -> dtype of the others.
        kept: canonical name -> a tensor that the model does not need.
        lost: canonical names of such tensors that are too large to be kept, or cannot be read.
        out_of_scope: how many tensors of the checkpoint are not of this network.
        narrowed: how many tensors lost precision on the way into the file.
        unrecorded: which of `names`, `dtypes` and `kept` were too long to be recorded.
        ties: canonical names under which the checkpoint also had a tensor that the model has once.
        spelled: canonical names of tensors that it had in the place of those that the mapping names first.
        ignored: patterns of the names that were passed over, as the user asked.
        merged: what was put into other tensors before, a sentence each.
        shared: canonical name -> that of the tensor whose memory it shared, where the model has a variable for each.
        order: of each tensor in the order of the checkpoint, the place of its canonical name among all, sorted.
    """

    key: str = ""
    prefix: str = ""
    names: dict[str, str] = field(default_factory=dict)
    dtype: str = "float32"
    dtypes: dict[str, str] = field(default_factory=dict)
    kept: dict[str, Kept] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    out_of_scope: int = 0
    narrowed: int = 0
    unrecorded: list[str] = field(default_factory=list)
    ties: list[str] = field(default_factory=list)
    spelled: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    merged: list[str] = field(default_factory=list)
    shared: dict[str, str] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, reading: Reading, checkpoint: Checkpoint, ignored: Iterable[str] = ()) -> "Origin":
        """What is to be remembered of a checkpoint that was read so, without names of these patterns."""
        outside = sum(reading.out_of_scope.values()) + len(reading.state.ignored)
        origin = cls(key=reading.key, out_of_scope=outside, ignored=list(ignored), merged=checkpoint.merged)
        ignored = reading.mapping.ignored()
        spelled = {name: _foreign(reading, name) for name in reading.entries}
        heads = Counter(
            entry.name.removesuffix(spelled[name])
            for name, entry in reading.entries.items()
            if entry.name.endswith(spelled[name])
        )
        origin.prefix = heads.most_common(1)[0][0] if heads else ""
        origin.names = {
            name: entry.name for name, entry in reading.entries.items() if entry.name != origin.prefix + spelled[name]
        }
        needed = {name: entry.dtype for name, entry in reading.entries.items() if name not in ignored}
        origin.dtype = Counter(needed.values()).most_common(1)[0][0] if needed else "float32"
        origin.dtypes = {name: dtype for name, dtype in needed.items() if dtype != origin.dtype}
        usual = {name for name, _ in mapping_of(reading.pair, reading.config or {}).tensors()}
        origin.spelled = [name for name in needed if name not in usual]
        homes: dict[tuple, str] = {}
        for name in needed:
            one = reading.entries[name]
            if one.storage is not None and one.nbytes and one.made is None:
                first = homes.setdefault((one.storage, one.offset, one.shape, one.strides), name)
                if first != name:
                    origin.shared[name] = first
        places = {name: place for place, name in enumerate(checkpoint.states[reading.key])}
        inside = sorted(reading.entries, key=lambda name: places[reading.entries[name].name])
        ranks = {name: rank for rank, name in enumerate(sorted(inside))}
        origin.order = [ranks[name] for name in inside]
        shared = reading.mapping.shared()
        for name in ignored:
            entry = reading.entries.get(name)
            if entry is None:
                continue
            same = reading.entries.get(shared.get(name, ""))
            if same is not None and equal([entry, same], checkpoint):
                origin.ties.append(name)
                continue
            kept = _kept_of(entry, checkpoint)
            if kept is None:
                origin.lost.append(name)
            else:
                origin.kept[name] = kept
        return origin

    def ordered(self, names: Iterable[str]) -> list[str]:
        """Canonical names of what comes back, as the checkpoint had them; as they are given where that is not known.

        What it had and does not come back (`lost`) leaves a gap.
        """
        names = list(names)
        every = sorted({*names, *self.lost})
        if len(every) != len(self.order):
            return names
        back = set(names)
        return [name for name in (every[rank] for rank in self.order) if name in back]

    def to_dict(self, narrowed: int) -> dict[str, Any]:
        """What differs from the plain case, as JSON can hold it, and no longer than an attribute can be."""
        result: dict[str, Any] = {"key": self.key, "prefix": self.prefix, "out_of_scope": self.out_of_scope}
        result["narrowed"] = narrowed
        result["lost"] = fold(self.lost)
        result["ties"] = fold(self.ties)
        result["spelled"] = fold(self.spelled)
        result["ignored"] = self.ignored
        result["merged"] = self.merged
        result["dtype"] = "" if self.dtype == "float32" else self.dtype
        result["dtypes"] = {dtype: fold(names) for dtype, names in _inverted(self.dtypes)}
        result["names"] = self.names
        result["shared"] = self.shared
        result["order"] = self.order
        result["kept"] = [
            [one.dtype, list(one.shape), base64.b64encode(one.values).decode(), fold(names)]
            for one, names in _inverted(self.kept)
        ]
        result = {name: value for name, value in result.items() if value}
        for name in ("order", "kept", "names", "dtypes", "lost", "ties", "spelled", "ignored", "shared"):
            if name in result and len(json.dumps(result)) > _LONGEST:
                del result[name]
                result.setdefault("unrecorded", []).append(name)
        return result

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Origin":
        """`to_dict` undone; the record may come from a stranger, and fields that are not known are left alone.

        Raises:
            ConversionError: it is not one that `to_dict` makes.
        """
        origin = cls(
            key=_typed(record, "key", str),
            prefix=_typed(record, "prefix", str),
            names=_typed(record, "names", dict),
            dtype=_typed(record, "dtype", str) or "float32",
            lost=_expanded(_typed(record, "lost", list)),
            ties=_expanded(_typed(record, "ties", list)),
            spelled=_expanded(_typed(record, "spelled", list)),
            out_of_scope=_typed(record, "out_of_scope", int),
            narrowed=_typed(record, "narrowed", int),
            unrecorded=_typed(record, "unrecorded", list),
            ignored=_typed(record, "ignored", list),
            merged=_typed(record, "merged", list),
            shared=_typed(record, "shared", dict),
            order=_typed(record, "order", list),
        )
        for dtype, names in _typed(record, "dtypes", dict).items():
            origin.dtypes.update(dict.fromkeys(_expanded(names), dtype))
            if len(origin.dtypes) > _MOST_NAMES:
                raise _damaged()
        for row in _typed(record, "kept", list):
            kept, names = _kept(row)
            origin.kept.update(dict.fromkeys(_expanded(names), kept))
            if len(origin.kept) > _MOST_NAMES:
                raise _damaged()
        if sorted(map(str, origin.order)) != sorted(map(str, range(len(origin.order)))):
            raise _damaged()
        texts = (*origin.names.values(), *origin.unrecorded, *origin.ignored, *origin.merged, *origin.shared.values())
        if not all(isinstance(text, str) for text in texts) or {origin.dtype, *origin.dtypes.values()} - set(FLOATS):
            raise _damaged()
        return origin


def _foreign(reading: Reading, name: str) -> str:
    try:
        return reading.dialect.foreign(name)
    except ValueError:  # the checkpoint has some of the names as torch has them
        return name


def _kept_of(entry: Entry, checkpoint: Checkpoint) -> Kept | None:
    if entry.nbytes > SMALL:
        return None
    try:
        return Kept(entry.dtype, entry.shape, checkpoint.read(entry).tobytes())
    except ConversionError:  # the model does not need it, so this is no reason not to convert
        return None


def _inverted(table: dict[str, Any]) -> list[tuple[Any, list[str]]]:
    """(value, the names that have it), in order of first appearance."""
    groups: dict[Any, list[str]] = {}
    for name, value in table.items():
        groups.setdefault(value, []).append(name)
    return list(groups.items())


def _typed(record: dict[str, Any], name: str, kind: type) -> Any:
    value: Any = record.get(name, kind())
    if type(value) is not kind or (isinstance(value, int) and value < 0):
        raise _damaged()
    return value


def _expanded(names: Any) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _damaged()
    found: list[str] = []
    for path in names:
        found += _paths(path)
        if len(found) > _MOST_NAMES:  # a few characters stand for thousands of names
            raise _damaged()
    return found


def _paths(path: str) -> Iterable[str]:
    try:
        return expand(path)
    except ValueError:
        raise _damaged() from None


def _kept(row: Any) -> tuple[Kept, Any]:
    if not isinstance(row, list) or len(row) != 4:
        raise _damaged()
    dtype, shape, text, names = row
    plain = isinstance(shape, list) and len(shape) <= _MOST_AXES and all(type(n) is int and n >= 0 for n in shape)
    if not plain or not isinstance(dtype, str) or dtype not in NUMBERS or not isinstance(text, str):
        raise _damaged()
    try:
        values = base64.b64decode(text, validate=True)
    except ValueError:
        raise _damaged() from None
    if len(values) > SMALL or len(values) != prod(shape) * NUMBERS[dtype].itemsize:
        raise _damaged()
    return Kept(dtype, tuple(shape), values), names


def _damaged() -> ConversionError:
    return ConversionError("what the file records of its checkpoint is not as the converter writes it")
