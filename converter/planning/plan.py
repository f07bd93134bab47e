"""The plan: which tensor fills which variable. A bijection, or one error with every reason why it is not."""

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from math import prod
from typing import Any

import keras

import tf_models
from converter.blame import PairError, begins, blaming, where_and_what
from converter.checkpoints.checkpoint import Checkpoint
from converter.checkpoints.tensors import FLOATS, Entry
from converter.errors import ConversionError, PlanError, one_line, printable
from converter.kinds import Kind, Leaf
from converter.naming import fold, globs, listed, nearest
from converter.pairs.dialects import Dialect
from converter.pairs.mapping import Mapping, join
from converter.pairs.pair import Pair
from converter.pairs.registry import locate
from converter.planning.config_json import NAME
from converter.planning.reading import Reading, equal
from converter.planning.steps import Source, Step, Target
from converter.planning.variables import by_path, fresh_names, layer_at, layers_of
from tf_models.runtime.abstract import TooLarge, abstract
from tf_models.runtime.weights_format import places

# A model may have this many more variables than tensors were found for, so that what is missing can be listed.
_SPARE_VARIABLES = 1000


@dataclass
class Plan:
    """How a checkpoint becomes a model's weights.

    Attributes:
        pair, config: the model and its sizes and options.
        dialect: how the checkpoint spells the names and lays the tensors out.
        key, prefix: where in the file the state dict is, and what stands before every canonical name.
        steps: one for each tensor used, or for several that go together, or for a constant, in the mapping's order.
        dropped: source name -> why TensorFlow does not need the tensor.
        out_of_scope: first word of a name -> how many tensors under it belong to other parts of the checkpoint.
        variables: attribute path -> shape, of every variable of the Keras model.
        unused: canonical name -> the tensor, of those that TensorFlow does not need.
        places: attribute path -> the variable's dataset in a weights file, as Keras lays it out.
        modules: (torch path, Keras path, kind) of all in the mapping, each as the model's layer has it.
        from_config_json: options that the `config.json` beside the checkpoint gave.
        merged: what was put into other tensors before, a sentence each.
    """

    pair: Pair
    config: dict[str, Any]
    dialect: Dialect
    key: str
    prefix: str
    steps: list[Step]
    dropped: dict[str, str]
    out_of_scope: dict[str, int]
    variables: dict[str, tuple[int, ...]]
    unused: dict[str, Entry]
    places: dict[str, str] = field(repr=False)
    modules: list[tuple[str, str, Kind]] = field(default_factory=list, repr=False)
    from_config_json: dict[str, Any] = field(default_factory=dict)
    merged: list[str] = field(default_factory=list)

    @property
    def scope(self) -> str:
        """Path of the network in the state dict; "" where it stands as its family says."""
        return "" if self.prefix in self.pair.scopes else self.prefix.rstrip(".")

    @property
    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Attribute path -> (dataset in a weights file, shape), of every variable."""
        return {path: (self.places[path], shape) for path, shape in self.variables.items()}

    @property
    def tensors(self) -> int:
        """Count of the checkpoint's tensors that are used."""
        return sum(len(step.sources) for step in self.steps)

    @property
    def nbytes(self) -> int:
        """Bytes of their values in the checkpoint."""
        return sum(step.nbytes for step in self.steps)

    @property
    def entries(self) -> dict[str, Entry]:
        """Canonical name -> the tensor, of all that are used and of those that TensorFlow does not need."""
        return {**{one.canonical: one.entry for step in self.steps for one in step.sources}, **self.unused}

    @property
    def folded(self) -> dict[str, str]:
        """Name of a tensor that is folded with others -> what that costs."""
        return {one.name: step.leaf.fold.cost for step in self.steps if step.leaf.fold for one in step.sources}

    @property
    def constants(self) -> dict[str, str]:
        """Attribute path of a variable that no tensor fills -> what it holds, in words."""
        steps = (step for step in self.steps if step.leaf.constant is not None)
        return {one.path: step.leaf.constant.text for step in steps if step.leaf.constant for one in step.targets}

    @property
    def notes(self) -> list[str]:
        """What the folds cost, a line each."""
        costs: dict[str, list[str]] = {}
        for name, told in self.folded.items():
            costs.setdefault(told, []).append(name)
        return [f"folded: {_folded(names)}: {told}" for told, names in costs.items()]

    @property
    def taken(self) -> list[str]:
        """What the configuration has from the `config.json` beside the checkpoint, and what was merged, a line each."""
        given = ", ".join(f"{name} {printable(value, 40)}" for name, value in self.from_config_json.items())
        return [*([f"{given}: from the {NAME} beside the checkpoint"] if given else []), *self.merged]

    @property
    def values(self) -> int:
        """Count of all values written."""
        return sum(prod(shape) for shape in self.variables.values())

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON can hold it."""
        return {
            "model": self.pair.name,
            "config": self.config,
            "dialect": self.dialect.name,
            "key": self.key,
            "prefix": self.prefix,
            "steps": [
                {
                    "tensor": one.name,
                    "canonical": one.canonical,
                    "shape": list(one.entry.shape),
                    "dtype": one.entry.dtype,
                    "kind": step.kind.name,
                    "variables": [
                        {"path": target.path, "shape": list(target.shape), "axes": step.leaf.axes}
                        for target in step.targets
                    ],
                }
                for step in self.steps
                for one in step.sources
            ],
            "dropped": self.dropped,
            "folded": self.folded,
            "constants": self.constants,
            "out_of_scope": self.out_of_scope,
            "from_config_json": self.from_config_json,
            "merged": self.merged,
        }

    def __str__(self) -> str:
        rows = [("tensor", "shape", "variable", "shape", "axes")]
        for step in self.steps:
            for place, (source, target) in enumerate(zip_longest(step.sources, step.targets)):
                rows.append(
                    (
                        *((printable(source.name), str(tuple(source.entry.shape))) if source else ("", "")),
                        *((target.path, str(tuple(target.shape))) if target else ("", "")),
                        "" if place else step.leaf.axes,
                    )
                )
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.append("")
        lines.append(
            f"{self.pair.name}: {self.tensors} tensors fill {len(self.variables)} variables, {self.values:,} values;"
            f" dialect {self.dialect.name}"
            + (f", scope {printable(self.scope)}" if self.scope else "")
            + (f", key {printable(self.key)}" if self.key else "")
        )
        lines += [f"dropped {printable(name)}: {reason}" for name, reason in self.dropped.items()]
        lines += [f"folded {printable(name)}: {cost}" for name, cost in self.folded.items()]
        lines += self.taken
        if self.out_of_scope:
            lines.append(f"out of scope: {counted(self.out_of_scope)}")
        return "\n".join(map(one_line, lines))


def counted(out_of_scope: dict[str, int]) -> str:
    """`image_encoder. 177 tensors, prompt_encoder. 16`, as text."""
    words = [f"{printable(word, 40)}.* {count}" for word, count in out_of_scope.items()]
    return listed(words, 8)


def make_plan(checkpoint: Checkpoint, reading: Reading) -> Plan:
    """Match every tensor in scope with the model's variables, one to one.

    Raises:
        PlanError: what is missing, unexpected, misshapen, of a wrong dtype or used twice, all at once.
    """
    headline = f"{printable(checkpoint.path.name)} does not fit {reading.pair.name}"
    if reading.config is None:
        raise PlanError(headline, [reading.unsized or "its sizes cannot be read"]) from reading.failure
    held = sum(path.stat().st_size for path in checkpoint.files)
    claimed = sum(entry.claimed for entry in reading.entries.values())
    if claimed > checkpoint.room:  # before anything is made of that size
        raise PlanError(headline, [f"its tensors claim {claimed:,} bytes, but the file holds {held:,}"])
    model = _build_abstract(reading, headline)
    match = Match(reading, model)
    problems = match.problems() + list(_untied(reading, checkpoint))
    if problems:
        if match.unexpected and not (match.missing or reading.unsized):
            strange = [reading.entries[name].name for name in match.unexpected]
            patterns = globs(strange, [entry.name for name, entry in reading.entries.items() if name in match.known])
            ignored = listed([f"--ignore {shlex.quote(printable(one))}" for one in patterns], 4, " ")
            problems.append(f"what is not of this network is passed over with {ignored}")
        raise PlanError(headline, problems) from reading.failure
    return Plan(
        reading.pair,
        reading.config,
        reading.dialect,
        reading.key,
        reading.prefix,
        match.steps,
        match.dropped,
        reading.out_of_scope,
        match.variables,
        match.unused,
        places_of(reading.pair, model),
        [(path, where, fitted(kind, model, where)) for path, where, kind in reading.mapping.modules()],
        reading.from_config_json,
        checkpoint.merged,
    )


def _untied(reading: Reading, checkpoint: Checkpoint) -> Iterator[str]:
    """Tensors that should share their values and do not: TensorFlow has one variable for both."""
    for name, kept in reading.mapping.ties().items():
        both = [reading.entries[one] for one in (name, kept) if one in reading.entries]
        if len(both) == 2 and not equal(both, checkpoint):
            yield f"untied: {printable(both[0].name)} and {printable(both[1].name)} should be equal, and are not"


def _build_abstract(reading: Reading, headline: str) -> Any:
    """The model without values; when its sizes make no model, the names still tell what is wrong.

    Raises:
        PlanError: the names are not the model's either, or a built-in model refuses the sizes.
        PairError: they are, and the user's own builder failed.
    """
    pair, config = reading.pair, reading.config or {}
    cause: BaseException | None = None
    try:
        return outline(pair, config, _SPARE_VARIABLES + 4 * len(reading.entries))
    except TooLarge:
        reason = "its names and shapes claim a model far larger than it holds"
    except PairError as error:
        reason, cause = f"{error} (the configuration is {config})", error.__cause__
        if not (reading.missing or reading.unexpected or reading.unsized):
            raise PairError(reason) from cause
    except (ValueError, TypeError, ArithmeticError) as error:
        reason, cause = f"{pair.name} cannot be built with {config}: {where_and_what(error)}", error
    names = [
        f"{what}: {_folded(names)}"
        for what, names in (("missing", reading.missing), ("unexpected", reading.unexpected))
        if names
    ]
    if reading.failure is not None:
        names.append(reading.unsized or "")
    raise PlanError(headline, [*names, reason]) from cause


class Match:
    """The mapping's rows, the tensors in scope and the model's variables, held against one another."""

    def __init__(self, reading: Reading, model: Any):
        self.reading = reading
        self.variables = {path: tuple(variable.shape) for path, variable in by_path(model).items()}
        self.steps: list[Step] = []
        self.missing: list[str] = []
        self.unreadable: dict[str, str] = {}
        self.wrong_shape: dict[str, tuple] = {}
        self.wrong_dtype: dict[str, str] = {}
        self.filled: dict[str, str] = {}  # variable path -> canonical name
        self.clashes: list[str] = []
        self.known: set[str] = set()  # canonical names that the mapping maps
        self.placed: set[str] = set()  # those that are there, and their variables too
        mapping = reading.mapping
        rows = list(_rows(mapping, reading.dialect))
        for torch_path, keras_path, foreign in rows:
            try:
                kind = fitted(foreign, model, keras_path)
                for names, paths, leaf in _leaves(torch_path, keras_path, kind):
                    self._leaf(names, paths, kind, leaf)
                    self.known.update(names)
            except Misfit as error:
                row = self._row([torch_path], str(foreign), _class_at(model, keras_path))
                raise Misfit(f"{error}; {row}") from error.__cause__
        ignored = mapping.ignored()
        others = [name for name in reading.entries if name not in self.known]
        self.unused = {name: reading.entries[name] for name in others if name in ignored}
        self.dropped = {entry.name: ignored[name] for name, entry in self.unused.items()}
        self.dropped |= dict.fromkeys(reading.state.ignored, "ignored, as asked")
        self.dropped |= {
            name: f"a copy of {printable(kept)}, equal bit for bit" for name, kept in reading.copies.items()
        }
        self.unexpected = [name for name in others if name not in ignored]
        self.empty = [path for path in self.variables if path not in self.filled]
        self.strange = list(self._strange(model, rows))

    def _row(self, paths: list[str], kind: str, layer: str, without: str = "") -> str:
        """A row of the mapping, its kind, and the class of the layer that it is for, in words."""
        pair, place = self.reading.pair, begins(self.reading.pair.mapping)
        rows, are = ("the row", "is") if len(paths) == 1 else ("the rows", "are")
        of = f"{rows} {_folded(paths) or repr('')} of `mapping` of {pair.name}" + (f" ({place})" if place else "")
        there = f"the Keras layer there of the class {layer}" if layer else "and no Keras layer is there"
        return f"{of} {are} of the kind {kind}{without}, {there}"

    def _strange(self, model: Any, rows: list[tuple[str, str, Kind]]) -> Iterator[str]:
        """Modules that the checkpoint and the model have, and of whose tensors the row takes none: a line for alike."""
        below: dict[str, list[str]] = {}
        for name in self.reading.entries:
            path, _, leaf = name.rpartition(".")
            below.setdefault(path, []).append(leaf)
        unexpected = set(self.unexpected)
        lacking, holders = set(self.missing), {path.rpartition(".")[0] for path in self.empty}
        alike: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
        for torch_path, keras_path, kind in rows:
            names = [join(torch_path, name) for leaf in kind.leaves for name in leaf.torch]
            unfilled = keras_path in holders or not lacking.isdisjoint(names)
            if torch_path and torch_path in below and unfilled and self.placed.isdisjoint(names):
                leaves = tuple(leaf for leaf in below[torch_path] if join(torch_path, leaf) in unexpected)
                if leaves or names:
                    alike.setdefault((str(kind), _class_at(model, keras_path), leaves), []).append(torch_path)
        for (name, layer, leaves), paths in alike.items():
            yield self._row(paths, name, layer, f" without {_folded(leaves)}" if leaves else "")

    def _leaf(self, names: list[str], paths: list[str], kind: Kind, leaf: Leaf) -> None:
        entries = {name: self.reading.entries[name] for name in names if name in self.reading.entries}
        absent = [path for path in paths if path not in self.variables]
        if len(entries) < len(names):
            if entries or not (leaf.optional and len(absent) == len(paths)):
                self.missing += [name for name in names if name not in entries]
                self.filled.update(dict.fromkeys(paths, names[0]))
            return
        if absent:
            whose = printable(entries[names[0]].name) if names else "a constant"
            self.clashes += [f"{whose} has no variable {path}" for path in absent]
            return
        what = names[0] if names else f"the constant {leaf.constant.text}" if leaf.constant else ""
        for path in paths:
            if path in self.filled:
                self.clashes.append(f"{path} is filled by both {self.filled[path]} and {what}")
            self.filled[path] = what
        self.placed.update(names)
        targets = tuple(Target(path, self.variables[path]) for path in paths)
        right = True
        for (name, entry), expected in zip(entries.items(), expected_shapes(leaf, targets), strict=True):
            if entry.shape != expected:
                self.wrong_shape[name] = (entry.shape, expected)
            elif entry.problem:
                self.unreadable[entry.name] = entry.problem
            elif entry.dtype not in FLOATS:
                self.wrong_dtype[name] = entry.dtype
            else:
                continue
            right = False
        if right:
            sources = tuple(Source(entry.name, name, entry) for name, entry in entries.items())
            self.steps.append(Step(sources, targets, kind, leaf, self.reading.pair.name))

    def problems(self) -> list[str]:
        """Everything that keeps this from being a bijection, a line each."""
        lines = []
        if self.reading.unsized and self.reading.lacking not in self.missing:
            lines.append(self.reading.unsized)
        if self.missing:
            lines.append(f"missing: {_folded(self.missing)}")
        if self.unexpected:
            near = _nearest(self.unexpected, self.missing or sorted(self.known))
            lines.append(f"unexpected: {_folded(self.unexpected)}" + (f" (nearest known: {near})" if near else ""))
        lines += self.strange
        # Shapes say little against sizes that are not this checkpoint's.
        for name, (shape, expected) in () if self.reading.unsized else self.wrong_shape.items():
            lines.append(f"wrong shape: {printable(name)} is {_shape(shape)}, expected {_shape(expected)}")
        if self.wrong_dtype:
            shown = ", ".join(sorted({printable(dtype, 20) for dtype in self.wrong_dtype.values()}))
            lines.append(f"wrong dtype ({shown}; convertible are {', '.join(FLOATS)}): {_folded(self.wrong_dtype)}")
        for name, problem in self.unreadable.items():
            lines.append(f"{printable(name)} cannot be read: {problem}")
        for name, sources in self.reading.doubled.items():
            lines.append(f"used twice: {' and '.join(map(printable, sources))} are both {printable(name)}")
        lines += self.clashes
        if self.empty:
            lines.append(f"variables that no row of the mapping fills: {_folded(self.empty)}")
        return lines


def places_of(pair: Pair, model: Any) -> dict[str, str]:
    """Attribute path -> dataset path.

    Raises:
        ConversionError: Keras leaves a variable out when it saves.
    """
    place = {id(variable): where for where, variable in places(model).items()}
    lost = [path for path, variable in by_path(model).items() if id(variable) not in place]
    if lost:
        raise ConversionError(
            f"Keras does not save {len(lost)} of the variables of {pair.name}, first {lost[0]}; no layer can stand "
            "under a name that Keras has for itself, or, before Keras 3.15, in a list within a list"
        )
    return {path: place[id(variable)] for path, variable in by_path(model).items()}


def outline(pair: Pair, config: dict[str, Any], variables: int) -> Any:
    """The pair's Keras model without values, of so many variables at the most.

    A builder that makes variables out of arrays cannot leave the values out. It is called plainly where it takes no
    configuration: then no file says how large the model is.

    Raises:
        TooLarge: it has more variables.
        ConversionError: as `build_tf`.
    """
    try:
        return abstract(lambda: build_tf(pair, config), variables)
    except ConversionError as error:
        if config or "while in a stateless scope" not in str(error.__cause__):
            raise
        return build_tf(pair, config)


def build_tf(pair: Pair, config: dict[str, Any]) -> Any:
    """The pair's Keras model, in float32 whatever policy the caller has set, and with the names of a new process.

    Raises:
        PairError: the pair's own builder failed, or is not to be found.
        ConversionError: the builder returned something else, or Keras does not run on TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise ConversionError(f"Keras runs on {keras.backend.backend()}; set KERAS_BACKEND=tensorflow")
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        with fresh_names():
            if pair.build_tf is None:
                model = tf_models.create(pair.name, **config)
            else:
                with blaming(pair.name, "build_tf", passing=(TooLarge,)):
                    model = (locate(pair.build_tf) if isinstance(pair.build_tf, str) else pair.build_tf)(**config)
    finally:
        keras.config.set_dtype_policy(policy)
    if not isinstance(model, keras.Model):
        raise ConversionError(
            f"the TensorFlow builder of {pair.name} returned a {type(model).__name__}, not a keras.Model"
        )
    if not model.weights:
        raise ConversionError(
            f"the TensorFlow builder of {pair.name} returned a model without variables; build it first"
        )
    return model


def leaves_of(mapping: Mapping, dialect: Dialect, model: Any) -> Iterator[tuple[list[str], list[str], Kind, Leaf]]:
    """(canonical names, paths of variables, kind, leaf) of all that the mapping names, in its order.

    The model's layers tell which of several layouts is meant.

    Raises:
        ValueError: the dialect has no layout for a module.
        Misfit: the kind has none for the model's layer.
    """
    for torch_path, keras_path, foreign in _rows(mapping, dialect):
        kind = fitted(foreign, model, keras_path)
        for names, paths, leaf in _leaves(torch_path, keras_path, kind):
            yield names, paths, kind, leaf


def _rows(mapping: Mapping, dialect: Dialect) -> Iterator[tuple[str, str, Kind]]:
    """(torch path, Keras path, kind as the dialect lays it out) of every module."""
    for torch_path, keras_path, kind in mapping.modules():
        yield torch_path, keras_path, dialect.kind(torch_path, kind)


def _leaves(torch_path: str, keras_path: str, kind: Kind) -> Iterator[tuple[list[str], list[str], Leaf]]:
    """(canonical names, paths of variables, leaf) of all that a module has."""
    for leaf in kind.leaves:
        yield [join(torch_path, name) for name in leaf.torch], [join(keras_path, name) for name in leaf.keras], leaf


def fitted(kind: Kind, model: Any, path: str) -> Kind:
    """The kind as the model's layer at `path` has it.

    Raises:
        Misfit: the layer is none that the kind knows.
    """
    if kind.fitted is None:
        return kind
    with _fitting(path or str(kind)):
        return kind.fitted(kind, layers_of(model, path, kind.parts))


def expected_shapes(leaf: Leaf, targets: Sequence[Target]) -> list[tuple[int, ...]]:
    """The shapes of the tensors that fill these variables.

    Raises:
        Misfit: the mapping's axes are not those of the variables.
    """
    with _fitting(targets[0].path):
        return leaf.torch_shapes([target.shape for target in targets])


class Misfit(ConversionError):
    """A row of the mapping is not for the layer that the model has there."""


@contextlib.contextmanager
def _fitting(path: str) -> Iterator[None]:
    """What a kind, or a fold of a user's own, raises of the model's layer or variable at this path."""
    try:
        yield
    except (ConversionError, MemoryError):
        raise
    except Exception as error:
        told = str(error) if isinstance(error, ValueError) else where_and_what(error)
        raise Misfit(f"the mapping does not fit the model at {path}: {told}") from error


def _class_at(model: Any, path: str) -> str:
    layer = layer_at(model, path)
    return "" if layer is None else type(layer).__name__


def _folded(names: Any) -> str:
    return listed(map(printable, fold(names)), 12)


def _nearest(names: list[str], known: list[str]) -> str:
    """The known names nearest to the first few of `names`."""
    near = [nearest(name, known[:5000]) for name in names[:5]]
    return _folded([name for name in near if name])


def _shape(shape: tuple[int, ...]) -> str:
    return listed(map(str, shape), 8, "x") or "a single value"
