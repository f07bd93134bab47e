"""One way to read a state dict as a network: where its names stand, how it spells them, and what sizes they show."""

import json
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from converter.blame import PairError, told, where, where_and_what
from converter.checkpoints.checkpoint import Checkpoint
from converter.checkpoints.tensors import Entry
from converter.errors import ConversionError, UsageError, printable
from converter.kinds.axes import relaid_shape
from converter.pairs import dialects
from converter.pairs.mapping import Mapping
from converter.pairs.pair import Pair


class ClaimsError(ConversionError):
    """A tensor claims far more bytes than the file holds."""


class State:
    """A state dict with the names that its network gave, before programs wrapped its modules.

    Attributes:
        key: its dotted path inside the file.
        entries: name -> the entries of that name, of which there are several where two were wrapped differently.
        ignored: names in the file of those that are to be passed over.
    """

    def __init__(self, key: str, entries: dict[str, list[Entry]], ignored: list[str]):
        self.key, self.entries, self.ignored = key, entries, ignored
        self._sorted = sorted(entries)
        self._place = {name: place for place, name in enumerate(entries)}

    def under(self, prefix: str) -> list[str]:
        """The names that start with the prefix, in the order of the file."""
        end = f"{prefix}{chr(sys.maxunicode)}"
        return self.in_order(self._sorted[bisect_left(self._sorted, prefix) : bisect_left(self._sorted, end)])

    def in_order(self, names: Iterable[str]) -> list[str]:
        """The names in the order of the file."""
        return sorted(names, key=self._place.__getitem__)


@dataclass(eq=False)
class Reading:
    """One way to read a state dict as a pair's network.

    Attributes:
        state: the state dict.
        prefix: what stands before every canonical name.
        entries: canonical name -> entry, of everything in scope.
        doubled: canonical name -> source names, where several spell the same.
        copies: source name -> the one it is a copy of and that is read instead.
        from_config_json: options that the `config.json` beside the checkpoint gave.
        config: the sizes, or None where they could not be read; `unsized` says why.
        lacking: the tensor that is not there, where that is why.
        failure: what the pair's own function raised, where that is why.
        refused: that an option does not go with the sizes, where that is why.
        missing, unexpected: canonical names that the network needs and that are not there; and the other way round.
    """

    pair: Pair
    state: State
    prefix: str
    dialect: dialects.Dialect
    entries: dict[str, Entry] = field(default_factory=dict)
    doubled: dict[str, list[str]] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    from_config_json: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    unsized: str | None = None
    lacking: str | None = None
    failure: BaseException | None = field(default=None, repr=False)
    refused: ConversionError | None = field(default=None, repr=False)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Dotted path of the state dict inside the file."""
        return self.state.key

    @property
    def scope(self) -> str:
        """Where in the state dict the network is, as a module's path; "" is the whole of it."""
        return self.prefix.rstrip(".")

    @property
    def mapping(self) -> Mapping:
        """The pair's rows at this reading's sizes."""
        assert self.config is not None
        return mapping_of(self.pair, self.config).holding(self.entries)

    @property
    def fits(self) -> bool:
        """Every name that the network needs is there, and no other in scope."""
        return self.config is not None and not (self.missing or self.unexpected or self.doubled or self.unsized)

    @property
    def matched(self) -> int:
        """How many tensors in scope the network knows."""
        return len(self.entries) - len(self.unexpected) if self.config is not None else 0

    @cached_property
    def tensors(self) -> frozenset[tuple[str, str]]:
        """(state dict, name there) of the tensors in scope that the network knows."""
        strange = {self.entries[name].name for name in self.unexpected}
        return frozenset((self.key, entry.name) for entry in self.entries.values() if entry.name not in strange)

    @cached_property
    def out_of_scope(self) -> dict[str, int]:
        """First word of the name -> how many tensors under it are not of this network."""
        claimed = {entry.name for entry in self.entries.values()} | set(self.copies)
        claimed.update(name for names in self.doubled.values() for name in names)
        others = ((name, one) for name, entries in self.state.entries.items() for one in entries)
        return dict(Counter(name.split(".")[0] for name, one in others if one.name not in claimed))


def read(
    pair: Pair,
    state: State,
    prefix: str,
    dialect: dialects.Dialect,
    options: dict[str, Any],
    checkpoint: Checkpoint,
    beside: tuple[str, ...] = (),
) -> Reading:
    """Read the names under a prefix, but not those under the prefixes `beside` it."""
    reading = Reading(pair, state, prefix, dialect)
    _spell(reading, [name for name in state.under(prefix) if not name.startswith(beside)], checkpoint)
    _size(reading, options)
    return reading


def _spell(reading: Reading, names: list[str], checkpoint: Checkpoint) -> None:
    """Find the entries in scope by their canonical names."""
    dialect, prefix, state = reading.dialect, reading.prefix, reading.state
    scope = max((one for one in reading.pair.scopes if prefix.endswith(one)), key=len, default="")
    whole = prefix.removesuffix(scope)
    elsewhere = {f"{whole}{theirs}": ours for theirs, ours in dialect.shared if f"{whole}{theirs}" in state.entries}
    spelled: dict[str, list[Entry]] = {}
    for name in state.in_order({*names, *elsewhere}) if elsewhere else names:
        short = name.removeprefix(prefix)
        if name in elsewhere or dialect.claims(short):
            spelled.setdefault(elsewhere.get(name) or dialect.canonical(short), []).extend(state.entries[name])
    shared = {ours for _, ours in dialect.shared}
    for name, entries in spelled.items():
        reading.entries[name] = entries[0]
        if len(entries) > 1 and name in shared and equal(entries, checkpoint):
            reading.copies.update({entry.name: entries[0].name for entry in entries[1:]})
        elif len(entries) > 1:
            reading.doubled[name] = [entry.name for entry in entries]


def equal(entries: list[Entry], checkpoint: Checkpoint) -> bool:
    """Whether all of them hold the same bits.

    Raises:
        ClaimsError: one claims far more bytes than the file holds.
        ConversionError: one cannot be read.
    """
    if any(entry.problem for entry in entries) or len({(entry.shape, entry.dtype) for entry in entries}) > 1:
        return False
    for entry in entries:
        if entry.claimed > checkpoint.room:
            raise ClaimsError(f"{printable(entry.name)} claims {entry.claimed:,} bytes, far more than the file holds")
    first, *others = (checkpoint.read(entry).tobytes() for entry in entries)
    return all(other == first for other in others)


def _size(reading: Reading, options: dict[str, Any]) -> None:
    """Read the sizes off the shapes, and hold the names against the mapping of that size."""
    pair = reading.pair
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        shapes.update((n, _torch_shape(reading.dialect, n, entry.shape)) for n, entry in reading.entries.items())
        reading.config = as_recorded(pair, pair.configure(shapes, options))
        mapping_of(pair, reading.config)
        reading.unsized = reading.dialect.refusal(reading.config)
    except PairError as error:
        reading.unsized, reading.failure = str(error), error
    except UsageError as error:
        reading.unsized, reading.refused = str(error), error
    except (ConversionError, MemoryError):
        raise
    except Exception as error:
        reading.lacking = _lacking(error, shapes)
        reading.unsized = _why_unsized(pair, error, reading.lacking)
        reading.failure = error
    if reading.failure is not None:
        reading.config = pair.fallback
        if pair.fallback is not None:
            try:
                mapping_of(pair, pair.fallback)
            except PairError:
                reading.config = None
    if reading.config is not None:
        mapping = reading.mapping
        for name, kept in mapping.ties().items():
            if kept not in reading.entries and name in reading.entries:
                reading.entries[kept] = reading.entries.pop(name)
        needed, ignored = dict(mapping.tensors()), mapping.ignored()
        reading.missing = [name for name, optional in needed.items() if name not in reading.entries and not optional]
        reading.unexpected = [name for name in reading.entries if name not in needed and name not in ignored]


def _why_unsized(pair: Pair, error: Exception, lacking: str | None) -> str:
    """Why no sizes were read: the shapes are another network's, or a user's own function is at fault."""
    place = where(error)
    if lacking is not None:
        return f"{printable(lacking)} is missing, and sizes are read from it" + (f" ({place})" if place else "")
    if not place:
        if not isinstance(error, (KeyError, ValueError, IndexError, TypeError, ZeroDivisionError)):
            raise error
        return f"its shapes are not those of this network ({printable(str(error), 80)})"
    if isinstance(error, (KeyError, ValueError)):  # how a pair says so
        return f"its shapes are not those of this network ({where_and_what(error)})"
    return told(pair.name, "configure", error)


def _lacking(error: BaseException, known: Iterable[str]) -> str | None:
    """The tensor that a pair asked for and that is not there, where that is the error."""
    name = error.args[0] if isinstance(error, KeyError) and error.args else None
    return name if isinstance(name, str) and name not in known else None


def mapping_of(pair: Pair, config: dict[str, Any]) -> Mapping:
    """The pair's rows at these sizes.

    Raises:
        PairError: a user's own `mapping` failed, or returned something else.
    """
    try:
        mapping = pair.mapping(config)
    except (ConversionError, MemoryError):
        raise
    except Exception as error:
        if not where(error):
            raise
        raise PairError(told(pair.name, "mapping", error)) from error
    if not isinstance(mapping, Mapping):
        raise PairError(f"mapping of {pair.name} returned a {type(mapping).__name__}, not a converter.Mapping")
    return mapping


def _torch_shape(dialect: dialects.Dialect, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that torch gives to the tensor of the canonical `name`."""
    axes = dialect.axes(name)
    return shape if axes is None else relaid_shape(shape, axes)


def as_recorded(pair: Pair, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration as a file gives it back: JSON knows lists, but no tuples.

    Raises:
        ConversionError: it is no dict, or holds something that JSON cannot.
    """
    if not isinstance(config, dict):
        raise PairError(f"configure of {pair.name} returned a {type(config).__name__}, not a dict")
    try:
        return json.loads(json.dumps(config))
    except TypeError as error:
        raise ConversionError(f"the configuration of {pair.name} cannot be recorded: {error}") from None
