"""Which network a checkpoint holds, and how it spells it: state dict, wrapping, scope, dialect and sizes."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from converter.blame import PairError, told, where, where_and_what
from converter.checkpoints.checkpoint import Checkpoint
from converter.checkpoints.tensors import FLOATS, Entry
from converter.errors import ConversionError, UsageError, printable
from converter.kinds.axes import relaid_shape
from converter.naming import listed
from converter.pairs import dialects
from converter.pairs.mapping import Mapping
from converter.pairs.pair import OptionError, Pair
from converter.pairs.registry import get, pairs
from converter.planning.config_json import ConfigFile, ConfigJsonError

# Names of a state dict, and of these times the ways to unwrap them: beyond any model here, and tried within seconds.
_MOST_NAMES = 10_000
_MOST_READINGS = 30_000


@dataclass(frozen=True)
class Choice:
    """What the user says of the checkpoint where it leaves a choice.

    Attributes:
        key: dotted path of the state dict.
        scope: the prefix under which the network is, in place of the pair's own scopes.
        dialect: name of the dialect.
    """

    key: str | None = None
    scope: str | None = None
    dialect: str | None = None


_FREE = Choice()


class Ambiguous(ConversionError):
    """Several state dicts of a file fit the same model, or several layouts of one."""


@dataclass
class Reading:
    """One way to read a state dict as a pair's network.

    Attributes:
        key: dotted path of the state dict inside the file.
        prefix: what stands before every canonical name: wrappers and scope.
        entries: canonical name -> entry, of everything in scope.
        doubled: canonical name -> source names, where several spell the same.
        copies: source name -> the one it is a copy of and that is read instead.
        out_of_scope: first word of the name -> how many tensors under it are not of this network.
        from_config_json: options that the `config.json` beside the checkpoint gave.
        config: the sizes, or None where they could not be read; `unsized` says why.
        lacking: the tensor that is not there, where that is why.
        failure: what the pair's own function raised, where that is why.
    """

    pair: Pair
    key: str
    prefix: str
    dialect: dialects.Dialect
    entries: dict[str, Entry] = field(default_factory=dict)
    doubled: dict[str, list[str]] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    out_of_scope: dict[str, int] = field(default_factory=dict)
    from_config_json: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    unsized: str | None = None
    lacking: str | None = None
    failure: BaseException | None = field(default=None, repr=False)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

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


def readings(checkpoint: Checkpoint, pair: Pair, options: dict[str, Any], choice: Choice = _FREE) -> Iterator[Reading]:
    """Every way to read the checkpoint as `pair`'s network."""
    tried = [one for one in (dialects.CANONICAL, *pair.dialects) if choice.dialect in (None, one.name)]
    scopes = pair.scopes if choice.scope is None else (f"{choice.scope.rstrip('.')}.",)
    for state_key, state in checkpoint.states.items():
        if choice.key not in (None, state_key):
            continue
        if len(state) > _MOST_NAMES:
            raise ConversionError(f"it names {len(state)} tensors, and no model here has more than {_MOST_NAMES}")
        compiled: dict[str, list[Entry]] = {}
        for name, entry in state.items():
            compiled.setdefault(dialects.strip_compiled(name), []).append(entry)
        wrappers = dialects.prefixes(compiled)
        if len(compiled) * len(wrappers) > _MOST_READINGS:
            raise ConversionError(f"its names are wrapped in {len(wrappers)} different ways")
        for wrapper in wrappers:
            for scope in scopes:
                prefix = wrapper + scope
                if any(name.startswith(prefix) for name in compiled):
                    for dialect in tried:
                        reading = Reading(pair, state_key, prefix, dialect)
                        _spell(reading, wrapper, compiled, checkpoint)
                        _size(reading, options)
                        yield reading


def _spell(reading: Reading, wrapper: str, state: dict[str, list[Entry]], checkpoint: Checkpoint) -> None:
    """Find the entries in scope by their canonical names."""
    shared = dict(reading.dialect.shared)
    spelled: dict[str, list[Entry]] = {}
    outside: Counter[str] = Counter()
    for name, entries in state.items():
        if name.startswith(wrapper) and name.removeprefix(wrapper) in shared:
            spelled.setdefault(shared[name.removeprefix(wrapper)], []).extend(entries)
        elif name.startswith(reading.prefix) and reading.dialect.claims(name.removeprefix(reading.prefix)):
            canonical = reading.dialect.canonical(name.removeprefix(reading.prefix))
            spelled.setdefault(canonical, []).extend(entries)
        else:
            outside[name.split(".")[0]] += len(entries)
    for name, entries in spelled.items():
        reading.entries[name] = entries[0]
        if len(entries) > 1 and name in shared.values() and equal(entries, checkpoint):
            reading.copies.update({entry.name: entries[0].name for entry in entries[1:]})
        elif len(entries) > 1:
            reading.doubled[name] = [entry.name for entry in entries]
    reading.out_of_scope = dict(outside)


def equal(entries: list[Entry], checkpoint: Checkpoint) -> bool:
    """Whether all of them hold the same bits."""
    if any(entry.problem for entry in entries) or len({(entry.shape, entry.dtype) for entry in entries}) > 1:
        return False
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


def read_as(checkpoint: Checkpoint, pair: Pair, options: dict[str, Any], choice: Choice = _FREE) -> Reading:
    """The reading of the checkpoint as `pair`'s network that fits, else the one that comes nearest.

    Raises:
        ConversionError: nothing in it is of this network, or two state dicts or two layouts fit alike.
        UsageError: what the user chose is not there.
    """
    key, dialect = choice.key, choice.dialect
    known = [dialects.CANONICAL.name, *(one.name for one in pair.dialects)]
    if dialect not in (None, *known):
        raise UsageError(f"{pair.name} has no dialect {printable(dialect)}; it has: {', '.join(known)}")
    if key is not None and key not in checkpoint.states:
        there = listed([printable(name or "(the file itself)") for name in checkpoint.states], 8)
        raise UsageError(f"the file has no state dict at {printable(key)}; it has: {there}")
    found = list(readings(checkpoint, pair, options, choice))
    fitting = [reading for reading in found if reading.fits]
    keys = list(dict.fromkeys(reading.key for reading in fitting))
    if len(keys) > 1:
        shown = listed([printable(name or "(the file itself)") for name in keys], 8)
        raise Ambiguous(f"several state dicts in the file fit {pair.name}: {shown}; choose one with --key")
    if fitting:
        best = max(fitting, key=lambda reading: reading.matched)
        alike = [reading for reading in fitting if _same_tensors(reading, best) and not _same_layout(reading, best)]
        if alike:
            shown = ", ".join(reading.dialect.name for reading in (best, *alike))
            raise Ambiguous(
                f"its names and shapes fit several layouts of {pair.name}: {shown}; choose one with --dialect"
            )
        return best
    # A reading that sizes itself tells more than one that fell back.
    nearest = max(found, key=lambda r: (r.matched - len(r.missing) - len(r.doubled), -len(r.unexpected)), default=None)
    if nearest is None or (nearest.matched == 0 and not _has_modules(nearest)):
        names = Counter(entry.name.split(".")[0] for entry in checkpoint.entries())
        shown = listed([f"{printable(name, 40)} ({count})" for name, count in names.most_common()], 6)
        failure = None if nearest is None else nearest.failure
        if nearest is not None and failure is not None and nearest.lacking is None:
            raise PairError(f"{nearest.unsized}; its names start with: {shown}") from failure
        raise ConversionError(f"it holds no tensor of {pair.name}; its names start with: {shown}") from failure
    return nearest


def _has_modules(reading: Reading) -> bool:
    """Whether modules of the mapping have tensors of their own, if not those that their kinds have."""
    if reading.config is None:
        return False
    holders = {name.rpartition(".")[0] for name in reading.unexpected}
    return any(path and path in holders for path, _, _ in reading.mapping.modules())


def _same_tensors(one: Reading, other: Reading) -> bool:
    """Both take the same tensors of the file for the same ones of the network."""
    return {name: entry.name for name, entry in one.entries.items()} == {
        name: entry.name for name, entry in other.entries.items()
    }


def _same_layout(one: Reading, other: Reading) -> bool:
    """Both lay every tensor out alike."""
    return all(one.dialect.axes(name) == other.dialect.axes(name) for name in one.entries)


def recognise(
    checkpoint: Checkpoint, known: Iterable[Pair], options: dict[str, Any], choice: Choice = _FREE
) -> Reading:
    """The reading as the pair whose network covers the most of the checkpoint.

    Raises:
        ConversionError: none fits, or several do that cover as much; they are listed.
    """
    known = [
        pair
        for pair in known
        if choice.dialect is None or any(choice.dialect == one.name for one in (dialects.CANONICAL, *pair.dialects))
    ]
    if not known:
        raise UsageError(f"no model has a dialect {printable(choice.dialect)}")
    config_file = ConfigFile.of(checkpoint)
    fitting: list[Reading] = []
    tried = []
    refused: list[UsageError] = []
    for pair in known:
        tried.append(pair.name)
        try:
            pair.parse_options(pair.own_options(options))
        except UsageError as error:  # a value may be right for another model
            refused.append(error)
            continue
        try:
            reading = _read_with(checkpoint, pair, config_file, options, choice)
        except (UsageError, Ambiguous, ConfigJsonError):
            raise
        except ConversionError:
            continue
        if reading.fits:
            fitting.append(reading)
    most = max((reading.matched for reading in fitting), default=0)
    chosen = [reading for reading in fitting if reading.matched == most]
    if len(chosen) == 1:
        reading = chosen[0]
        _check(reading, config_file, options)
        variant = reading.pair.published(reading.config or {})
        if variant is not None:
            reading.pair = get(variant)
        return reading
    if not chosen:
        if refused:
            raise refused[0]
        raise ConversionError(
            f"no model fits this checkpoint; known: {', '.join(tried)}; name one with --model to see why"
        )
    names = ", ".join(reading.pair.name for reading in chosen)
    raise ConversionError(f"several models fit this checkpoint: {names}; choose one with --model")


def _is_placeholders(state: dict[str, Entry]) -> bool:
    floats = [entry for entry in state.values() if entry.dtype in FLOATS]
    return len(floats) > 1 and sum(entry.shape == (0,) for entry in floats) > len(floats) / 2


def find_reading(
    checkpoint: Checkpoint,
    model: str | None,
    options: dict[str, Any],
    choice: Choice = _FREE,
    recorded: dict[str, Any] | None = None,
) -> Reading:
    """The checkpoint read as the named model, or as the one that its names show ("auto" or None).

    `recorded` are options as a weights file has them, for those that are not given.
    """
    states = [state for key, state in checkpoint.states.items() if choice.key in (None, key)]
    if states and all(map(_is_placeholders, states)):
        raise ConversionError(
            "its tensors hold no values, as those that ZeRO-3 of DeepSpeed keeps in parts; make one file of the parts, "
            "in the run's folder: python zero_to_fp32.py . one.pth"
        )
    if model in (None, "auto"):
        return recognise(checkpoint, pairs(), options, choice)
    assert model is not None
    pair, config_file = get(model), ConfigFile.of(checkpoint)
    reading = _read_with(checkpoint, pair, config_file, options, choice, recorded)
    if reading.fits:
        _check(reading, config_file, options, recorded)
    elif reading.config is not None:  # no sizes of this checkpoint, but their names
        pair.named(options, reading.config)
    return reading


def _read_with(
    checkpoint: Checkpoint,
    pair: Pair,
    config_file: ConfigFile,
    options: dict[str, Any],
    choice: Choice,
    recorded: dict[str, Any] | None = None,
) -> Reading:
    """The checkpoint read as the pair's network, by the options that are given, else recorded, else in `config.json`.

    Raises:
        ConfigJsonError: the network does not take what it says.
    """
    own = {**(recorded or {}), **pair.own_options(options)}
    taken = {name: value for name, value in config_file.options(pair).items() if name not in own}
    try:
        reading = read_as(checkpoint, pair, pair.parse_options({**taken, **own}), choice)
    except UsageError as error:
        refused = [name for name in taken if not isinstance(error, OptionError) or name == error.option]
        if not refused:
            raise
        raise config_file.refused(pair, refused, error) from None
    reading.from_config_json = taken
    return reading


def _check(
    reading: Reading, config_file: ConfigFile, options: dict[str, Any], recorded: dict[str, Any] | None = None
) -> None:
    """See that the sizes that were read are those that are given, recorded, and in the `config.json`."""
    pair, config = reading.pair, reading.config or {}
    pair.check_determined(options, config)
    config_file.check(pair, config, pair.named(options, config), recorded or {})
