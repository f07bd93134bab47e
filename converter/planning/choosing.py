"""Which network a checkpoint holds, and where: of all ways to read it the one that fits, else what is to be chosen.

Nothing is taken that leaves a doubt: of two sets of weights, of a part of what nearly fits as a whole, or of one layer
of a larger network, the user is told how to name what is meant.
"""

import contextlib
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from converter.blame import PairError
from converter.checkpoints.checkpoint import Checkpoint
from converter.checkpoints.tensors import FLOATS, Entry
from converter.errors import ConversionError, UsageError, printable
from converter.naming import fold, globs, listed, nearest
from converter.pairs import dialects
from converter.pairs.mapping import Mapping
from converter.pairs.pair import OptionError, Pair
from converter.pairs.registry import get, pairs
from converter.planning.config_json import ConfigFile, ConfigJsonError
from converter.planning.prefixes import named, where_it_ends
from converter.planning.reading import ClaimsError, Reading, State, mapping_of, read

_MOST_NAMES = 10_000  # of a state dict: beyond any model here, and tried within seconds
_MOST_GLOBS = 6  # that are told of what may be ignored
# What covers less of a state dict than this is a layer of another network, and none to take without a word; the second
# is for what is by its scope a part of another.
_LEAST_COVERED, _LEAST_OF_PARTS = 1 / 4, 1 / 2
# What DataParallel puts around a part of a network, inside its name; other networks may have it as a name of their own.
_PARALLEL = (*dialects.WRAPPERS, "module")


@dataclass(frozen=True)
class Choice:
    """What the user says of the checkpoint where it leaves a choice.

    Attributes:
        key: dotted path of the state dict.
        scope: the path under which the network is; "" is the whole state dict.
        dialect: name of the dialect.
    """

    key: str | None = None
    scope: str | None = None
    dialect: str | None = None


_FREE = Choice()


class Ambiguous(ConversionError):
    """Several ways to read the checkpoint fit. `choices` are the options that choose one, each as on a command line."""

    def __init__(self, message: str, choices: Iterable[str]):
        self.choices = tuple(choices)
        super().__init__(message)


def find_reading(
    checkpoint: Checkpoint,
    model: str | None,
    options: dict[str, Any],
    choice: Choice = _FREE,
    recorded: dict[str, Any] | None = None,
) -> Reading:
    """The checkpoint read as the named model, or as the one that its names show ("auto" or None).

    `recorded` are options as a weights file has them, for those that are not given.

    Raises:
        Ambiguous: several readings fit.
        UsageError: what the user chose is not there.
        ConversionError: nothing in the checkpoint is of the network, or it is none that is known.
    """
    states = _states(checkpoint, choice)
    if all(_in_parts(entry.name for entry in checkpoint.states[state.key].values()) for state in states):
        raise ConversionError(
            "its tensors are those of FSDP, flat and each a part; gather them where they are saved, with "
            "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), or load them into the network"
        )
    if all(_is_placeholders(checkpoint.states[state.key]) for state in states):
        raise ConversionError(
            "its tensors hold no values, as those that ZeRO-3 of DeepSpeed keeps in parts; make one file of the parts, "
            "in the run's folder: python zero_to_fp32.py . one.pth"
        )
    config_file = ConfigFile.of(checkpoint)
    if model in (None, "auto"):
        return _recognise(_Search(checkpoint, states, config_file, options, choice))
    pair = get(str(model))
    try:
        reading = _read_as(_Search(checkpoint, states, config_file, options, choice, recorded or {}), pair)
    except ConversionError:
        misspelled = pair.misspelled(options)
        if misspelled is not None:
            raise misspelled from None
        raise
    if reading.fits:
        _check(reading, config_file, options, recorded)
    elif reading.config is not None:  # no sizes of this checkpoint, but their names
        pair.named(options, reading.config)
    return reading


@dataclass
class _Search:
    """All ways to read a checkpoint, by the options that are given, else recorded, else in its `config.json`.

    Attributes:
        strange: why something that has a network's names is none.
    """

    checkpoint: Checkpoint
    states: list[State]
    config_file: ConfigFile
    options: dict[str, Any]
    choice: Choice
    recorded: dict[str, Any] = field(default_factory=dict)
    strange: list[str] = field(default_factory=list)

    def readings(self, pair: Pair) -> list[Reading]:
        """Those as `pair`'s network; of several sets of its weights in one state dict each is read without the others.

        Raises:
            UsageError: an option or the dialect is none of the network's.
            ConfigJsonError: it does not take what the `config.json` says.
        """
        given = {**self.recorded, **pair.own_options(self.options)}
        taken = {name: value for name, value in self.config_file.options(pair).items() if name not in given}
        try:
            options = pair.parse_options({**taken, **given})
        except UsageError as error:
            raise self._told(pair, taken, error) from None
        found = list(self._each(pair, options))
        whole = [one for one in found if one.fits or _nearly(one)]
        for place, one in enumerate(found):
            beside = tuple(o.prefix for o in whole if o.state is one.state and len(o.prefix) > len(one.prefix))
            if one.config is not None and one.unexpected and not (one.missing or one.doubled) and beside:
                found[place] = read(pair, one.state, one.prefix, one.dialect, options, self.checkpoint, beside)
        if self.choice.scope is not None:
            exact = [one for one in found if one.prefix in named(one.state.entries, self.choice.scope)]
            within = [one for one in found if one.prefix in self._scopes(pair, one.state)]
            found = exact if any(one.fits for one in exact) else within
        for one in found:
            one.from_config_json = taken
            if one.refused is not None:
                one.refused = self._told(pair, taken, one.refused)
        return found

    def _each(self, pair: Pair, options: dict[str, Any]) -> Iterator[Reading]:
        known = [dialects.CANONICAL, *pair.dialects]
        wanted = self.choice.dialect
        if wanted is not None and wanted not in (names := [one.name for one in known]):
            near = nearest(wanted, names)
            meant = f"; did you mean {near}?" if near else ""
            raise UsageError(f"{pair.name} has no dialect {printable(wanted)}; it has: {', '.join(names)}{meant}")
        usual = _usual(pair)
        for state in self.states:
            tried = [one for one in ("", *pair.scopes, *self._scopes(pair, state)) if state.under(one)]
            for dialect in known:
                if wanted not in (None, dialect.name):
                    continue
                for prefix in dict.fromkeys([*tried, *self._found(state, usual, dialect)]):
                    other = next((told for path, told in pair.not_at if re.search(path, prefix)), None)
                    if other is None:
                        yield read(pair, state, prefix, dialect, options, self.checkpoint)
                    elif other not in self.strange:
                        self.strange.append(
                            f"what stands at {printable(prefix.rstrip('.'))} is not {pair.name}: {other}"
                        )

    def _found(self, state: State, usual: Mapping | None, dialect: dialects.Dialect) -> list[str]:
        """The prefixes that names show; where the user names one, others only tell of further sets."""
        try:
            return where_it_ends(state.entries, usual, dialect)
        except ConversionError:
            if self.choice.scope is None:
                raise
            return []

    def _scopes(self, pair: Pair, state: State) -> list[str]:
        """The prefixes that the user's word for it may mean."""
        if self.choice.scope is None:
            return []
        return [name + part for name in named(state.entries, self.choice.scope) for part in ("", *pair.scopes)]

    def _told(self, pair: Pair, taken: dict[str, Any], error: ConversionError) -> ConversionError:
        """What an option's error is where the `config.json` gave the option."""
        names = [name for name in taken if not isinstance(error, OptionError) or name == error.option]
        return self.config_file.refused(pair, names, error) if names else error


def _read_as(search: _Search, pair: Pair) -> Reading:
    """The reading as `pair`'s network that fits, else the one that comes nearest."""
    found = search.readings(pair)
    fitting = [one for one in found if one.fits]
    if fitting:
        return _settled(fitting, found)
    if search.strange:
        raise ConversionError(search.strange[0])
    refused = [one.refused for one in found if one.refused is not None]
    if refused:
        raise refused[0]
    # A reading that sizes itself tells more than one that fell back.
    best = max(found, key=lambda r: (r.matched - len(r.missing) - len(r.doubled), -len(r.unexpected)), default=None)
    if best is None or (best.matched == 0 and not _has_modules(best)):
        at = "" if search.choice.scope is None else f" at {printable(search.choice.scope)}{_meant(search)}"
        names = Counter(entry.name.split(".")[0] for entry in search.checkpoint.entries())
        shown = listed([f"{printable(name, 40)} ({count})" for name, count in names.most_common()], 6)
        failure = None if best is None else best.failure
        if best is not None and failure is not None and best.lacking is None:
            raise PairError(f"{best.unsized}; its names start with: {shown}") from failure
        raise ConversionError(f"it holds no tensor of {pair.name}{at}; its names start with: {shown}") from failure
    return best


def _recognise(search: _Search) -> Reading:
    """The reading as the one network that the checkpoint holds.

    Raises:
        Ambiguous: several, or a part of one that nearly fits as a whole, or only a small part of the checkpoint.
        ConversionError: none.
    """
    dialect, known = search.choice.dialect, list(pairs())
    if dialect is not None:
        known = [pair for pair in known if any(dialect == one.name for one in (dialects.CANONICAL, *pair.dialects))]
    if not known:
        spelled = sorted({one.name for pair in pairs() for one in (dialects.CANONICAL, *pair.dialects)})
        near = nearest(str(dialect), spelled)
        meant = f"did you mean {near}? known" if near else "known"
        raise UsageError(f"no model has a dialect {printable(str(dialect))}; {meant}: {', '.join(spelled)}")
    found: list[Reading] = []
    refused: list[ConversionError] = []
    without: list[tuple[ConversionError, Reading]] = []  # what would fit but for an option
    for pair in known:
        try:
            found += search.readings(pair)
        except (ConfigJsonError, ClaimsError):
            raise
        except UsageError as error:  # a value may be right for another model
            refused.append(error)
            with contextlib.suppress(ConversionError):
                without += [(error, one) for one in replace(search, options={}).readings(pair) if one.fits]
        except ConversionError:
            continue
    fitting = _outermost([one for one in found if one.fits])
    nearly = [one for one in found if _nearly(one) and not any(one.tensors <= other.tensors for other in fitting)]
    parts = [one for one in fitting if any(one.tensors < whole.tensors for whole in nearly)]
    fitting = [one for one in fitting if one not in parts]
    if nearly and not fitting:
        whole = max(nearly, key=lambda one: one.matched)
        raise _nearly_fits(whole, [one for one in parts if one.tensors < whole.tensors])
    # What an option keeps from fitting goes before the parts of it that do fit.
    without += [(one.refused, one) for one in found if one.refused is not None]
    for reason, one in without:
        if all(part.tensors < one.tensors for part in fitting):
            raise reason
    if not fitting:
        if refused:
            raise refused[0]
        at = search.choice.scope
        told = f"; {search.strange[0]}" if search.strange else f" at {printable(at)}{_meant(search)}" if at else ""
        names = ", ".join(pair.name for pair in known)
        raise ConversionError(f"no model fits this checkpoint{told}; known: {names}; name one with --model to see why")
    reading = _settled(fitting, found)
    if search.choice.scope is None:
        _check_whole(reading, search.checkpoint)
    _check(reading, search.config_file, search.options)
    reading.pair = get(_name(reading))
    return reading


def _settled(fitting: list[Reading], found: list[Reading]) -> Reading:
    """The one reading that is meant.

    Raises:
        Ambiguous: there are several.
    """
    left: list[Reading] = []
    for one in _outermost(fitting):
        alike = [other for other in left if other.pair is one.pair and other.key == one.key and _same(other, one)]
        if all(not _same_layout(other, one) for other in alike):
            left.append(one)
    # Another set of weights that has something beside it, or lacks a little, may be meant as well.
    others = _outermost([one for one in found if _nearly(one)])
    left += [one for one in others if all(one.tensors.isdisjoint(fit.tensors) for fit in left)]
    if len(left) == 1:
        return left[0]
    raise Ambiguous(*_question(left))


def _question(left: list[Reading]) -> tuple[str, list[str]]:
    """What is to be chosen between these readings, and the options that choose each."""
    fields = {
        "--model": [_name(one) for one in left],
        "--key": [one.key for one in left],
        "--scope": [one.scope for one in left],
        "--dialect": [one.dialect.name for one in left],
    }
    asked = {option: values for option, values in fields.items() if len(set(values)) > 1}
    if len(asked) > 1 and len(set(zip(*[asked[one] for one in asked if one != "--dialect"], strict=True))) == len(left):
        asked.pop("--dialect", None)
    choices = [
        " ".join(
            [f"{option} {shlex.quote(printable(values[place], 200))}" for option, values in asked.items()]
            + ([] if one.missing else _ignoring(one))
        )
        for place, one in enumerate(left)
    ]
    if len(asked) == 1:
        option, values = next(iter(asked.items()))
        what = {
            "--model": "several models fit this checkpoint",
            "--key": f"several state dicts in the file fit {_name(left[0])}",
            "--scope": f"several sets of tensors fit {_name(left[0])}",
            "--dialect": f"its names and shapes fit several layouts of {_name(left[0])}",
        }[option]
        shown = listed([printable(value or "(the whole)") for value in values], 8)
        return f"{what}: {shown}; choose one with {option}", choices
    return f"several networks stand in this checkpoint; choose one: {listed(choices, 4)}", choices


def _check_whole(reading: Reading, checkpoint: Checkpoint) -> None:
    """See that the network is not a part of another, or so small a part of the checkpoint that another may be meant.

    Raises:
        Ambiguous: it is; the choice that takes it nevertheless.
    """
    held, others = len(reading.tensors), sum(reading.out_of_scope.values())
    others += sum(len(state) for at, state in checkpoint.states.items() if at != reading.key and not _of_training(at))
    scope = next((one for one in reading.pair.scopes if one and reading.prefix.endswith(one)), None)
    if held < (_LEAST_COVERED if scope is None else _LEAST_OF_PARTS) * (held + others):
        place = [] if reading.prefix == (scope or "") else ["--scope", shlex.quote(printable(reading.scope, 200))]
        keyed = ["--key", shlex.quote(printable(reading.key, 200))] if reading.key else []
        choice = " ".join(["--model", _name(reading), *keyed, *place])
        told = f"{_name(reading)} fits {held} of its {held + others} tensors"
        raise Ambiguous(f"no known network is the whole of it; {told}, and is converted with: {choice}", [choice])


def _nearly_fits(whole: Reading, parts: list[Reading]) -> Ambiguous:
    """That a network would fit but for a few tensors, and the options that take it, or one that is a part of it."""
    name, few = _name(whole), len(whole.unexpected) + len(whole.missing)
    taken = list(dict.fromkeys(f"--model {_name(one)}" for one in parts))
    if whole.lacking is not None:  # without it nobody knows which variant it is, nor what else is missing
        name = whole.pair.name
        told = f"{name} nearly fits: {printable(whole.lacking)} is missing, and sizes are read from it"
        return Ambiguous(f"{told}; see --model {name}", [f"--model {name}", *taken])
    told = f"{name} fits all but {few} tensor{'s' if few > 1 else ''}"
    if whole.missing:
        lacking, strange = (listed(map(printable, fold(names)), 3) for names in (whole.missing, whole.unexpected))
        more = f", and has {strange}" if whole.unexpected else ""
        return Ambiguous(f"{told}: it lacks {lacking}{more}; see --model {name}", [f"--model {name}", *taken])
    patterns = _ignoring(whole)
    also = f"; its parts: {', '.join(taken)}" if taken else ""
    them = "it" if few == 1 else "them"
    return Ambiguous(
        f"{told}; if the network does without {them}: {listed(patterns, _MOST_GLOBS, ' ')}{also}",
        [" ".join(patterns), *taken],
    )


def _ignoring(reading: Reading) -> list[str]:
    """The options that have the tensors passed over that are not of the network."""
    strange = [reading.entries[name].name for name in reading.unexpected]
    patterns = globs(strange, [name for _, name in reading.tensors])
    return [f"--ignore {shlex.quote(printable(one, 200))}" for one in patterns]


def _name(reading: Reading) -> str:
    """What `--model` calls it: the variant of these sizes, or the family."""
    return reading.pair.published(reading.config or {}) or reading.pair.name


def _nearly(reading: Reading) -> bool:
    """Whether it would fit but for a few tensors: what it lacks is rarely much, what stands beside it may be more."""
    unsized = reading.unsized and reading.lacking is None
    if reading.config is None or reading.fits or unsized or reading.doubled:
        return False
    return 10 * len(reading.missing) <= reading.matched and 2 * len(reading.unexpected) <= reading.matched


def _outermost(fitting: list[Reading]) -> list[Reading]:
    """Those whose tensors are not a part of another's."""
    return [one for one in fitting if not any(one.tensors < other.tensors for other in fitting)]


def _has_modules(reading: Reading) -> bool:
    """Whether modules of the mapping have tensors of their own, if not those that their kinds have."""
    if reading.config is None:
        return False
    holders = {name.rpartition(".")[0] for name in reading.unexpected}
    return any(path and path in holders for path, _, _ in reading.mapping.modules())


def _same(one: Reading, other: Reading) -> bool:
    """Both take the same tensors of the file for the same ones of the network."""
    return {name: entry.name for name, entry in one.entries.items()} == {
        name: entry.name for name, entry in other.entries.items()
    }


def _same_layout(one: Reading, other: Reading) -> bool:
    """Both lay every tensor out alike."""
    return all(one.dialect.axes(name) == other.dialect.axes(name) for name in one.entries)


def _usual(pair: Pair) -> Mapping | None:
    """The mapping of a network of some size, or None where sizes must be known."""
    config = pair.fallback or {name: option.default for name, option in pair.options.items()}
    try:
        return mapping_of(pair, config)
    except Exception:  # a pair that is someone's own, at sizes that are a guess
        return None


def _states(checkpoint: Checkpoint, choice: Choice) -> list[State]:
    """The state dicts that may be meant, each as it stands, and once more without what is wrapped inside."""
    key = choice.key
    if key is not None and key not in checkpoint.states:
        near = nearest(key, checkpoint.states)
        meant = f"; did you mean {printable(near)}?" if near else ""
        there = listed([printable(name or "(the file itself)") for name in checkpoint.states], 8)
        raise UsageError(f"the file has no state dict at {printable(key)}; it has: {there}{meant}")
    kept = {one: state for one, state in checkpoint.states.items() if key in (None, one)}
    found = []
    for one, state in kept.items():
        if len(state) > _MOST_NAMES:
            raise ConversionError(f"it names {len(state)} tensors, and no model here has more than {_MOST_NAMES}")
        views = [_unwrapped(state, words) for words in (dialects.WRAPPERS, _PARALLEL)]
        ignored = checkpoint.ignored.get(one, [])
        found += [State(one, view, ignored) for view in views[: 1 if views[0].keys() == views[1].keys() else 2]]
    return found


def _unwrapped(state: dict[str, Entry], words: Collection[str]) -> dict[str, list[Entry]]:
    view: dict[str, list[Entry]] = {}
    for name, entry in state.items():
        view.setdefault(dialects.unwrapped(name, words), []).append(entry)
    return view


def _is_placeholders(state: dict[str, Entry]) -> bool:
    floats = [entry for entry in state.values() if entry.dtype in FLOATS]
    # Small tensors may be whole among them.
    return len(floats) > 1 and sum(entry.shape == (0,) for entry in floats) > len(floats) / 20


def _of_training(key: str) -> bool:
    """Whether a state dict is an optimizer's or the like, by its place in the file."""
    return key.startswith(("optim", "lr_sched", "sched", "scaler", "grad_scaler"))


def _meant(search: _Search) -> str:
    """A path in the file that the user's scope may mean, as a question."""
    paths = {name[: at.start()] for state in search.states for name in state.entries for at in re.finditer(r"\.", name)}
    near = nearest(str(search.choice.scope), paths)
    return f" (did you mean {printable(near)}?)" if near and near != search.choice.scope else ""


def _in_parts(names: Iterable[str]) -> bool:
    """Whether they are those that FSDP gives to the parts of what it makes flat."""
    return any(re.search(r"(^|\.)_?flat_param(_\d+)?$", name) for name in names)


def _check(
    reading: Reading, config_file: ConfigFile, options: dict[str, Any], recorded: dict[str, Any] | None = None
) -> None:
    """See that the sizes that were read are those that are given, recorded, and in the `config.json`."""
    pair, config = reading.pair, reading.config or {}
    pair.check_determined(options, config)
    config_file.check(pair, config, pair.named(options, config), recorded or {})
