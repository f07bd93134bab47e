"""The numerical proof: both networks on the same seeded inputs, layer by layer, between the layers, and as a whole."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from converter import nested, rounding
from converter.blame import where_and_what
from converter.errors import ConversionError, printable
from converter.kinds import Kind
from converter.kinds.activations import arranged
from converter.naming import listed
from converter.pairs.mapping import join
from converter.pairs.pair import Probe
from converter.planning.plan import Plan, build_tf
from converter.planning.reading import mapping_of
from converter.planning.variables import by_path, layers_of
from converter.proof.calling import activated, activation_of, call_on, called, layer_results
from converter.proof.causes import cause
from converter.proof.comparing import LARGEST, Unpaired, compare, compare_allowed, numbers, paired, pool
from converter.proof.watching import Forced, Seen, Watch, as_declared, distinct, watched
from converter.report import Comparison, Numerical
from converter.torch_side import questions
from converter.torch_side.answers import MOST_CALLS, WIDE, Call, Entry, Note, Seeded, Trained, Whole
from converter.torch_side.process import TorchProcess

_MOST_MISPLACED = 6  # layers whose input differs that are looked at one by one
_SURE = 1.5  # times what is allowed: less accuses nothing in particular
# Times what is allowed where layers give more than they do: a picture that is sampled far outside hangs on few numbers,
# of which a few roundings say little, and another function is off by far more.
_ROOM_IN_WIDE = 16.0


def numerical(
    path: Path,
    plan: Plan,
    question: questions.Proof,
    torch_process: TorchProcess,
    progress: Callable[[int], None] = lambda layers: None,
) -> Numerical:
    """Load the file into a fresh model, and compare it with torch: each layer, what joins them, and the outputs.

    Each mapped layer is proven on its own, on the input that torch's module received. Then the whole is run with every
    layer giving torch's result, so that what reaches the next one shows what lies between. Outputs alone are nearly
    blind to a layer that is slightly wrong.

    Raises:
        ConversionError: the model does not load the file, or the torch side fails.
    """
    with tf.device("CPU:0"):  # the rule is about float32; a GPU may compute with less
        proof = Proof(path, plan, question, progress)
        for message in torch_process.answers():
            try:
                proof.take(message)
            except (ConversionError, MemoryError):
                raise
            except Exception as error:  # whatever results of a user's networks cannot be compared
                raise ConversionError(f"the proof of {plan.pair.name} broke off at {where_and_what(error)}") from error
        return proof.result()


@dataclass(frozen=True)
class _Found:
    """Something that differs. `rank` 0 is a layer or what lies between two, 1 a stage, 2 an output."""

    rank: int
    probe: int
    place: float
    text: str


@dataclass
class _Row:
    keras: str
    kind: Kind


@dataclass
class Proof:
    """The proof as far as torch has told."""

    path: Path
    plan: Plan
    question: questions.Proof
    progress: Callable[[int], None]
    model: Any = None
    variables: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    seeds: dict[str, np.ndarray] = field(default_factory=dict)
    layers_at: dict[Any, Any] = field(default_factory=dict)  # of the model, by path and parts
    at: int = 0  # of the probes
    place: int = 0  # of calls in a probe
    outputs: dict[str, Comparison] = field(default_factory=dict)
    layers: dict[str, Comparison] = field(default_factory=dict)
    between: dict[str, Comparison] = field(default_factory=dict)
    trained: dict[str, Comparison] = field(default_factory=dict)
    by_design: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    failed_layers: dict[str, tuple[int, Comparison]] = field(default_factory=dict)
    found: list[_Found] = field(default_factory=list)
    covered: set[str] = field(default_factory=set)
    alone: set[str] = field(default_factory=set)  # variables on which a layer that is run alone depends
    varied: bool = False
    notes: list[str] = field(default_factory=list)
    named: set[str] = field(default_factory=set)  # inputs and outputs of the whole
    _several: dict[str, list[np.ndarray]] | None = None

    def __post_init__(self) -> None:
        mapping = mapping_of(self.plan.pair, self.plan.config)
        # Rows of tensors that lie beside one another may share a path with that of a module that is called.
        modules = sorted(self.plan.modules, key=lambda one: one[2].callable_alone)
        self.rows = {torch_path: _Row(keras_path, kind) for torch_path, keras_path, kind in modules}
        self.probes = list(self.question.probes)
        self.named.update(name for probe in self.probes if not probe.part for name in probe.inputs)
        self.mapping = mapping
        self.owners: dict[str, str] = {}  # variable -> the torch path of the layer that is proven alone with it
        for torch_path, row in self.rows.items():
            if row.kind.callable_alone and not row.kind.stage:
                for leaf in row.kind.leaves:
                    self.owners.update({join(row.keras, name): torch_path for name in leaf.keras})
            self.covered.update(join(row.keras, name) for name in row.kind.without_effect)

    @property
    def probe(self) -> Probe:
        return self.probes[self.at]

    def take(self, message: Any) -> None:
        """Work off one message."""
        if isinstance(message, Note):
            self.notes.append(message.text)
        elif isinstance(message, Seeded):
            self.seeds = message.values
            self.config, self.at = None, 0
            self.probes = [probe for probe in self.question.probes if not probe.stages_only]
        elif isinstance(message, Entry):
            self.entries.append(message)
        elif isinstance(message, Call):
            self._prepare(self.probe)
            self._compare_call(message)
            self.progress(1)
        elif isinstance(message, Whole):
            self._prepare(self.probe)
            self._compare_run(message)
            self.entries, self.place, self._several = [], 0, None
            self.at += 1
        elif isinstance(message, Trained):
            from converter.proof.training import compare_training

            self._prepare(self.question.probes[message.probe])
            compare_training(self, message)

    def result(self) -> Numerical:
        """What was shown."""
        pair = self.plan.pair.name
        if not self.question.probes:
            raise ConversionError(f"`probes` of {pair} is empty, so nothing was compared")
        if not self.layers and not self.outputs:
            raise ConversionError(f"`probes` of {pair} reach none of the layers of its mapping, and no output")
        if self.outputs and not self.varied:
            raise ConversionError(
                f"`probes` of {pair} prove nothing: on them every output is one number throughout; give inputs on "
                "which it varies"
            )
        strangers = [name for name in self.plan.pair.activations if name not in self.named]
        if strangers:
            shown = listed(map(printable, strangers), 4)
            self.notes.append(f"`channels_first` or `axes` of {pair} names {shown}, neither an input nor an output")
        first = min(self.found, key=lambda one: (one.rank, one.probe, one.place), default=None)
        return Numerical(
            outputs=tuple(self.outputs.values()),
            layers=tuple(self.layers.values()),
            between=tuple(self.between.values()),
            fault=first.text if first else "",
            unproven=tuple(path for path in self.variables if path not in self.covered),
            seeded=len(self.seeds),
            probes=len(self.question.probes),
            trained=tuple(self.trained.values()),
            by_design=tuple(self.by_design),
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def _prepare(self, probe: Probe) -> None:
        """The model of the probe's configuration, with the file's values and the seeds."""
        config = {**self.plan.config, **probe.config}
        if config == self.config:
            return
        self.model, self.layers_at = None, {}  # before the next one takes memory
        self.model = build_tf(self.plan.pair, config)
        try:
            self.model.load_weights(str(self.path))
        except Exception as error:
            raise ConversionError(f"Keras does not load the file: {where_and_what(error)}") from error
        self.config, self.variables = config, by_path(self.model)
        self.assign(self.seeds)

    def _layer(self, row: _Row) -> Any:
        """The row's layer in the model, or None; a list where the row has several for one module of torch."""
        key = row.keras, row.kind.parts
        if key not in self.layers_at:
            found = list(layers_of(self.model, *key).values())
            self.layers_at[key] = found if row.kind.parts else found[0]
        return self.layers_at[key]

    def note_trained(self, one: Comparison, suspects: str) -> None:
        """Note a comparison of `--verify train`."""
        one = replace(one, suspects=suspects)
        pool(self.trained, one)
        if not one:
            self.found.append(_Found(2, self.at, len(self.trained), f"training: {one}"))

    def assign(self, values: Mapping[str, np.ndarray]) -> None:
        """Give variables the values of tensors by canonical name, in torch's axes; what is folded stays."""
        for step in self.plan.steps:
            if step.leaf.fold is None and any(one.canonical in values for one in step.sources):
                variables = [self.variables[target.path] for target in step.targets]
                tensors = step.undo([np.asarray(variable) for variable in variables])
                tensors = [values.get(one.canonical, old) for one, old in zip(step.sources, tensors, strict=True)]
                for variable, value in zip(variables, step.lay_out(tensors), strict=True):
                    variable.assign(value)

    # Layers alone

    def _compare_call(self, call: Call) -> None:
        row = self.rows[call.path]
        layer = self._layer(row)
        ours = layer_results(call, layer, row.kind)
        self.place += 1
        if isinstance(ours, Comparison):
            self._note_layer(call, ours)
            return
        results, compute = ours
        theirs = (call.result, call.truth, *call.moved)
        try:
            every = list(paired(call.path, results, row.kind, theirs, call.batch_second))
        except Unpaired as error:
            self._note_layer(call, Comparison(call.path, note=str(error)))
            return
        for one in every:
            compared = one if isinstance(one, Comparison) else compare(*one)
            self._note_layer(call, replace(compared, name=call.path, suspects=row.kind.suspects))
        pairs = [one for one in every if not isinstance(one, Comparison)]
        layers = [join(row.keras, part) for part in row.kind.parts or ("",)]
        prefixes = tuple(f"{path}." if path else "" for path in layers)
        known = self.covered if row.kind.stage else self.alone | self.covered
        here = [
            path
            for path in self.variables
            if path.startswith(prefixes) and (not row.kind.stage or path not in self.owners) and path not in known
        ]
        if here:
            allowed = [rounding.allowance(values[2], values[3]) for _, *values in pairs]
            usual = [values[0] for _, *values in pairs]
            found = self._moving(here, lambda: _beyond(compute(), usual, allowed))
            if row.kind.stage or self.probe.stages_only:
                self.covered |= found
            else:
                self.alone |= found

    def _note_layer(self, call: Call, one: Comparison) -> None:
        pool(self.layers, one)
        if not one:
            kind = self.rows[call.path].kind
            if kind.stage and not one.note:
                self._note_found(1, self.place, f"first stage that differs: {one}")
            elif call.path not in self.failed_layers:
                self.failed_layers[call.path] = (self.at, one)

    def _note_found(self, rank: int, place: float, text: str) -> None:
        seeded = " (with other values in tensors that are constant)" if self.seeds else ""
        self.found.append(_Found(rank + (3 if self.seeds else 0), self.at, place, text + seeded))

    def _moving(self, paths: list[str], moves: Callable[[], bool]) -> set[str]:
        """Those of these variables with other values of which a comparison `moves`."""
        found = set()
        for path in paths:
            variable = self.variables[path]
            kept = np.array(variable)
            variable.assign(_nudged(kept))
            try:
                if moves():
                    found.add(path)
            except Exception:  # a layer that fails on other values shows nothing
                continue
            finally:
                variable.assign(kept)
        return found

    # The whole, and what lies between the layers

    def _compare_run(self, run: Whole) -> None:
        names = self._compare_outputs(run)
        for path, (at, one) in self.failed_layers.items():
            if at == self.at:
                place = next((i for i, entry in enumerate(self.entries) if entry.path == path), len(self.entries))
                self._note_found(0, place + 0.5, f"first layer that differs: {one}")
        self.failed_layers.clear()
        if self.entries:
            self._compare_between(run, names)
        else:
            self._cover_by_outputs(run)

    def _root(self, watch: Watch | None = None) -> Any:
        """The model's (or the probe's part's) results on the probe."""
        probe = self.probe
        layers = [
            (entry, self._layer(self.rows[entry])) for entry in dict.fromkeys(entry.path for entry in self.entries)
        ]
        watch = replace(watch, expected=self._expected()) if watch else Watch()
        with watched(layers, watch):
            if probe.part:
                row = self.rows[probe.part]
                _, inputs = row.kind.given((), probe.inputs)
                return self._layer(row)(**inputs, **probe.options)
            return call_on(self.model, probe, self.plan.pair.activations)

    def _ran(self, watch: Watch | None = None) -> Any:
        try:
            return self._root(watch)
        except ConversionError:
            raise
        except Exception as error:  # whatever a user's model raises on inputs that torch's takes
            raise ConversionError(
                f"the TensorFlow model of {self.plan.pair.name} (build_tf) fails on its probe inputs at "
                f"{where_and_what(error)}"
            ) from error

    def _rows_of(self, results: Any, run: Whole, moved: list[Any]) -> list[Any]:
        """(name, ours, torch's, truth, moved) of each output of floats, as Keras has it."""
        return [one for one in self._every_row(results, run, moved) if not isinstance(one, Comparison)]

    def _every_row(self, results: Any, run: Whole, moved: list[Any]) -> list[Any]:
        """The same, and a Comparison of each output of whole numbers."""
        part = self.probe.part
        if self.probe.outputs is not None and not part:
            return list(self._named_rows(self.probe.outputs, results, (run.outputs, run.truth, *moved)))
        kind = self.rows[part].kind if part else _WHOLE
        try:
            rows = list(paired(part, results, kind, (run.outputs, run.truth, *moved)))
        except Unpaired as error:
            raise ConversionError(
                f"the two sides of {self.plan.pair.name} do not return the same (its `outputs`): {error}"
            ) from None
        if part:
            return [
                one if isinstance(one, Comparison) else (f"{part}{one[0].removeprefix(part)}", *one[1:]) for one in rows
            ]
        known, pair = self.plan.pair.outputs, self.plan.pair.name
        returned = [one.name if isinstance(one, Comparison) else one[0] for one in rows]
        shown = listed(map(printable, returned), 6)
        if known != ("output",) and len(known) != len(rows):
            told = f"`outputs` of {pair} names {len(known)} outputs, but both sides return {len(rows)}"
            raise ConversionError(f"{told}: {shown}" if any(returned) else told)  # a single array has no name
        if known != ("output",) and isinstance(run.truth, Mapping) and set(known) != set(returned):
            raise ConversionError(f"`outputs` of {pair} names {listed(known, 6)}, but both sides return {shown}")
        named: list[Any] = []
        for index, row in enumerate(rows):
            name = row.name if isinstance(row, Comparison) else row[0]
            plain = name == "" or name.isdecimal()
            name = name if not plain else known[index] if index < len(known) else f"output {index}"
            self.named.add(name)
            if isinstance(row, Comparison):
                named.append(replace(row, name=name))
                continue
            ours, single, truth, runs = row[1:]
            single, truth, *runs = (arranged(one, name, self.plan.pair.activations) for one in (single, truth, *runs))
            named.append((name, ours, single, truth, runs))
        return named

    def _named_rows(
        self, outputs: Sequence[tuple[str, str, str]], results: Any, runs: tuple[Any, ...]
    ) -> Iterator[Any]:
        """The same of outputs that the probe names, under torch's path or, where that says little, the pair's name.

        Raises:
            ConversionError: one of the sides does not return what is named.
        """
        known, pair = self.plan.pair.outputs, self.plan.pair.name
        sides = [dict(nested.flat(one)) for one in (results, *runs)]
        for index, (theirs, mine, axes) in enumerate(outputs):
            for side, path, have in (("TensorFlow", mine, sides[0]), ("torch", theirs, sides[1])):
                if path not in have:
                    shown = listed(map(printable, have), 6) if any(have) else "one array"
                    raise ConversionError(f"`outputs` of {pair}: {side} returns no {printable(path)!r}; it has {shown}")
            plain = theirs == "" or theirs.isdecimal()
            name = theirs if not plain else known[index] if index < len(known) else f"output {index}"
            self.named.add(name)
            kind = Kind(name, (), results={"": axes} if axes else {})
            yield from paired(name, sides[0][mine], kind, tuple(side[theirs] for side in sides[1:]))

    def _compare_outputs(self, run: Whole) -> list[str]:
        """Compare the outputs; their names."""
        every = self._every_row(self._ran(), run, run.moved)
        rows = [row for row in every if not isinstance(row, Comparison)]
        self._last = [(row[1], rounding.allowance(row[3], row[4])) for row in rows]
        for row in every:
            one = row if isinstance(row, Comparison) else compare(*row)
            pool(self.layers if self.probe.part else self.outputs, one)
            if not one:
                self._note_found(2, 0, f"output {one}")
        for row in rows:
            known = row[3][np.isfinite(row[3])]
            self.varied = self.varied or bool(known.size == 1 and known.any()) or bool(known.size and np.ptp(known) > 0)
        self.varied = self.varied or len(rows) < len(every)
        return [row[0] for row in rows]

    def _cover_by_outputs(self, run: Whole) -> None:
        """Note the variables that no layer shows and on which the outputs depend."""
        paths = self._uncovered()
        if paths:
            usual, allowed = [row[0] for row in self._last], [row[1] for row in self._last]
            self.covered |= self._moving(
                paths, lambda: _beyond([row[1] for row in self._rows_of(self._root(), run, [])], usual, allowed)
            )

    def _uncovered(self) -> list[str]:
        """Variables of the probe's part that no comparison depends on so far."""
        prefix = f"{self.rows[self.probe.part].keras}." if self.probe.part else ""
        return [path for path in self.variables if path.startswith(prefix) and path not in self.covered]

    def _compare_between(self, run: Whole, names: list[str]) -> None:
        """Run the whole with torch's result in the place of each layer's, and compare what reaches the layers."""
        forced = self._forced()
        watch = Watch(forced=forced)
        with _eagerly():
            results = self._ran(watch)
        for path in self.alone - self.covered:
            if path in self.owners and self._called_alike(self.owners[path], watch):
                self.covered.add(path)  # what shows it alone is called in the whole as torch calls it
        own = self._own(watch)
        compared: list[tuple[int, int, Comparison, np.ndarray, np.ndarray, Any]] = []
        # Inputs of another size, which may be right, but are to blame where what comes next differs.
        otherwise: dict[int, tuple[Comparison, np.ndarray, np.ndarray]] = {}
        for index, entry in enumerate(self.entries):
            for place, ours, truth, allowed in self._reaching(
                entry, watch, (entry.args, entry.kwargs), entry.far if index > own else entry.near
            ):
                if ours.shape != truth.shape:
                    if ours.size != truth.size:
                        note = f"TensorFlow's has shape {ours.shape}, torch's {truth.shape}"
                        otherwise.setdefault(index, (Comparison(entry.path, note=note), ours, truth))
                    continue
                one = compare_allowed(entry.path, ours, truth, allowed)
                compared.append((index, place, one, ours, truth, allowed))
        rows = self._rows_of(results, run, run.near if own >= len(self.entries) else run.moved)
        # Torch's own float32 result carries the roundings of all layers, which are not in this run.
        single = 2 if own < len(self.entries) else 3
        last = [(row[0], compare(row[0], row[1], row[single], *row[3:]), row[1], row[3]) for row in rows]
        wrong = [row for row in compared if not row[2]]
        idle = bool(wrong) and self._idle(wrong)
        if idle:
            count = len({row[0] for row in wrong})
            self.notes.append(f"the inputs of {count} layers differ at places on which no output depends")
        first = min((row[0] for row in compared if not row[2]), default=len(self.entries))
        agreeing = max((row[0] for row in compared if row[2] and row[0] < first), default=-1)
        blamed = next((index for index in sorted(otherwise) if agreeing < index < first), None)
        if blamed is not None and ((wrong and not idle) or not all(one for _, one, _, _ in last)):
            self._note_found(0, blamed, self._between_text(blamed, *otherwise[blamed], watch))
        for index, _, one, ours, truth, _ in compared:
            if idle and not one:
                continue
            pool(self.between, one)
            if not one:
                self._note_found(0, index, self._between_text(index, one, ours, truth, watch))
        for name, one, ours, truth in last:
            if not one:
                text = self._between_text(len(self.entries), one, ours, truth, watch, name, run.between)
                self._note_found(0, len(self.entries), text)
        self._cover_between(watch, forced, compared, rows, run)
        if run.wide is not None and not wrong and not otherwise and all(one for _, one, _, _ in last):
            self._compare_wide(run, own)

    def _compare_wide(self, run: Whole, own: int) -> None:
        """The same where every layer gives WIDE times its result: what is alike for small values may not be then."""
        watch = Watch(forced=self._forced(WIDE))
        try:
            with _eagerly():
                results = self._root(watch)
        except Exception:  # as a network may that takes only what layers really give
            return
        told = f" (where the layers before give {WIDE:.0f} times as much)"
        for index, entry in enumerate(self.entries[: own + 1]):
            if entry.wide is None:
                continue
            for _, ours, truth, allowed in self._reaching(entry, watch, entry.wide, entry.wide_near):
                if ours.shape == truth.shape and _far_from_overflow(truth):
                    one = compare_allowed(entry.path, ours, truth, _ROOM_IN_WIDE * allowed)
                    pool(self.between, one)
                    if not one:
                        self._note_found(0, index, self._between_text(index, one, ours, truth, watch) + told)
        if own < len(self.entries):
            return
        wide = replace(run, outputs=run.wide, truth=run.wide)
        for name, ours, _, truth, moved in self._rows_of(results, wide, run.wide_near):
            if ours.shape != truth.shape or not _far_from_overflow(truth):
                continue
            one = compare_allowed(name, ours, truth, _ROOM_IN_WIDE * rounding.allowance(truth, moved))
            if not one:
                text = self._between_text(len(self.entries), one, ours, truth, watch, name, run.between)
                self._note_found(0, len(self.entries), text + told)

    def _cover_between(
        self, watch: Watch, forced: dict[str, list[Forced | None]], compared: list[Any], rows: list[Any], run: Whole
    ) -> None:
        """Note the variables that no layer shows, and with which what reaches a layer, or an output, moves.

        Each costs a run of the whole, until the first place that moves, and without the layers whose results are given.
        """
        paths = self._uncovered()
        if not paths:
            return
        reached: dict[tuple[str, int], list[tuple[int, np.ndarray, Any]]] = {}
        for index, place, _, ours, _, allowed in compared:
            entry = self.entries[index]
            reached.setdefault((entry.path, entry.index), []).append((place, ours, allowed))
        given = {
            path: {seen.number: seen.result for seen in calls if seen.forced}
            for path, calls in watch.seen.items()
            if not any(other.startswith(f"{path}.") for other in watch.seen)
        }

        def look(path: str, index: int, seen: Seen) -> None:
            for place, usual, allowed in reached.get((path, index), ()):
                if _beyond([numbers(seen.arrays()[place])], [usual], [allowed]):
                    raise _Moved

        def moves() -> bool:
            try:
                with _eagerly():
                    results = self._root(Watch(forced=forced, given=given, look=look))
            except _Moved:
                return True
            ends = [row[1] for row in self._rows_of(results, run, run.near)]
            allowed = [rounding.allowance(row[3], row[4]) for row in rows]
            return _beyond(ends, [row[1] for row in rows], allowed)

        self.covered |= self._moving(paths, moves)

    def _given(
        self, entry: Entry, args: tuple, kwargs: dict[str, Any], kind: Kind | None = None
    ) -> list[np.ndarray] | None:
        """What the Keras layer would be given of torch's arguments; None where that is not one call."""
        row, capture = self.rows[entry.path], _Capture()
        try:
            called(capture, kind or row.kind, args, kwargs, entry.batch_second)
        except Exception:  # a kind whose call wants the layer itself
            return None
        layer = self._layer(row)
        given: tuple[tuple, dict[str, Any]] = getattr(capture, "given", ((), {}))
        if callable(getattr(layer, "call", None)):
            given = as_declared(layer.call, *given)
        return nested.arrays(given) or None

    def _expected(self) -> dict[str, list[np.ndarray]]:
        """The first argument of each of torch's calls, of layers that it calls several times."""
        if self._several is None:
            found: dict[str, list[np.ndarray]] = {}
            for entry in self.entries:
                given = self._given(entry, entry.args, entry.kwargs)
                found.setdefault(entry.path, []).append(given[0] if given else np.zeros(0))
            self._several = {path: calls for path, calls in found.items() if len(calls) > 1}
        return self._several

    def _forced(self, factor: float = 1.0) -> dict[str, list[Forced | None]]:
        """Torch's result of each call of each layer, times the factor, as the Keras layer gives it."""
        forced: dict[str, list[Forced | None]] = {}
        for entry in self.entries:
            row = self.rows[entry.path]
            if row.kind.stage:
                continue
            result = None if entry.result is None else row.kind.returned(entry.result, entry.batch_second)
            layer = self._layer(row)
            if factor != 1 and result is not None:
                result = nested.each(lambda part: _times(part, factor), result)
            if result is not None and row.kind.activated and activation_of(layer) is not None:
                result = activated(activation_of(layer), result)
            given = self._given(entry, entry.args, entry.kwargs)
            sizes = None if given is None else [{given[place].size} for place in distinct(given)]
            if sizes and entry.padded is not None:
                sizes[0].add(entry.padded.size)  # Keras may pad before the layer
            forced.setdefault(entry.path, []).append(None if result is None else Forced(result, sizes))
        return forced

    def _own(self, watch: Watch) -> int:
        """Index of the first entry of a layer that gave its own result, because Keras computes it otherwise: in a
        graph, or for several calls at once. What comes after it carries the roundings of layers."""
        for index, entry in enumerate(self.entries):
            calls = sum(other.path == entry.path for other in self.entries)
            forced = sum(seen.forced for seen in watch.seen.get(entry.path, []))
            if not self.rows[entry.path].kind.stage and forced < calls:
                return index
        return len(self.entries)

    def _called_alike(self, path: str, watch: Watch) -> bool:
        """Whether Keras called the layer as often as torch did, of calls that are recorded."""
        known = sum(other.path == path for other in self.entries)
        seen = len(watch.seen.get(path, []))
        return seen == known or (known == MOST_CALLS and seen > known)

    def _reaching(
        self, entry: Entry, watch: Watch, true_arguments: tuple[tuple, dict[str, Any]], moved_by: list[Any]
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray, Any]]:
        """(place, ours, truth, allowed) of each argument of a layer's call that can be compared."""
        calls = watch.calls(entry.path)
        if not self._called_alike(entry.path, watch) or not moved_by:
            return  # Keras's layer is called otherwise, or not at all
        kind = self.rows[entry.path].kind
        seen: Seen = calls[entry.index]

        def torchs(kind: Kind) -> list[list[np.ndarray]]:
            moved = [_sum(true_arguments, run) for run in moved_by]
            runs = [self._given(entry, *one, kind) for one in (true_arguments, *moved)]
            return [run for run in runs if run is not None]

        given = torchs(kind)
        if not given:
            return
        ours, truth = seen.arrays(), given[0]
        for place, of in zip(distinct(ours), distinct(truth), strict=False):
            runs = given
            if ours[place].shape != truth[of].shape and ours[place].size == truth[of].size:
                plain = torchs(replace(kind, inputs={}))  # an attention map among images
                if plain and ours[place].shape == plain[0][of].shape:
                    runs = plain
            whole = truth[of].dtype.kind in "iub"
            value, true, *others = numbers(ours[place]), *(numbers(run[of]) for run in runs)
            with np.errstate(invalid="ignore"):
                moved = [other - true for other in others]
            allowed: Any = 0.0 if whole else rounding.allowance(true, moved)
            if (
                place == 0
                and value.shape != true.shape
                and entry.padded is not None
                and moved_by is not entry.wide_near
            ):
                true = numbers(arranged(entry.padded, "0", kind.inputs, kind.sizes))  # Keras pads before the layer
                allowed = np.max(allowed, axis=tuple(range(true.ndim - 1)))
            yield place, value, true, allowed

    def _idle(self, wrong: list[Any]) -> bool:
        """Whether no output depends on the places at which inputs of layers differ, as those behind a mask."""
        if not all(map(bool, self.outputs.values())):
            return False

        def outputs(watch: Watch) -> list[np.ndarray]:
            with _eagerly():
                return [numbers(value) for value in nested.arrays(self._root(watch))]

        rng = np.random.default_rng(0)
        usual = outputs(Watch())
        for signs, factor in ((1.0, 1.0), (-1.0, 1.0), (0.0, 0.1), (0.0, 10.0), (1.0, 1e4), (-1.0, 1e4)):
            added = {}
            for index, place, _, ours, truth, allowed in wrong:
                entry = self.entries[index]
                off = np.abs(ours - truth) > np.broadcast_to(allowed, truth.shape)
                if off.any(-1).all():
                    return False  # behind a mask some rows differ; where all do, it is the layer that is dead
                size = factor * (np.sqrt(np.mean(np.square(truth))) + np.abs(ours - truth).max(initial=0))
                sign = signs or rng.choice([-1.0, 1.0], truth.shape)
                moved = sign * rng.uniform(0.5, 1.5, truth.shape) * size
                added[entry.path, entry.index, place] = np.where(off, moved, 0.0)
            try:
                values = outputs(Watch(added=added))
            except Exception:
                return False
            # A mask gives a weight of exactly zero; what is merely weak moves an output by more than a few roundings.
            if not all(
                value.shape == before.shape
                and bool((np.abs(value - before) <= 4 * rounding.UNITS["float32"] * np.abs(before)).all())
                for value, before in zip(values, usual, strict=True)
            ):
                return False
        return True

    def _between_text(
        self,
        index: int,
        one: Comparison,
        ours: np.ndarray,
        truth: np.ndarray,
        watch: Watch,
        output: str = "",
        between: tuple[str, ...] = (),
    ) -> str:
        """Which layer agrees last, what does not, and a guess at why."""
        leaves = [entry for entry in self.entries[:index] if not self.rows[entry.path].kind.stage]
        before = leaves[-1] if leaves else None
        names = between if output else self.entries[index].between
        what = f"the output {printable(output)} does not" if output else f"the input of {printable(one.name)} does not"
        begin = f"{printable(before.path)} agrees, {what}" if before else f"{what[:-8]}differs"
        guess = ""
        if one.ratio > _SURE and not one.note:
            left = _left(watch, before)
            earlier = {
                entry.path: numbers(watch.calls(entry.path)[entry.index].arrays()[0])
                for entry in self.entries[:index]
                if len(watch.calls(entry.path)) > entry.index and watch.calls(entry.path)[entry.index].arrays()
            }
            guess = cause(ours, truth, left, earlier, names)
        computed = ", ".join(dict.fromkeys(name for name in names if name not in _SILENT))
        there = f", where torch computes {computed}" if computed else ""
        look = f"look between them{there}" if before else f"look before it{there}"
        size = one.note or f"error {one.error:.1e}, allowed {one.allowed:.1e}"
        return f"{begin} ({size}): {look}" + (f"; {guess}" if guess else "")


# Operations that change no value: they say little to a person.
_SILENT = frozenset(
    "view _unsafe_view detach clone t alias expand unsqueeze squeeze contiguous lift_fresh as_strided slice select "
    "copy_ empty_like empty _to_copy zeros ones arange lift_fresh_copy full".split()
)
_WHOLE = Kind("WHOLE", ())


def _left(watch: Watch, entry: Entry | None) -> np.ndarray | None:
    """What left the layer before."""
    if entry is None or len(watch.calls(entry.path)) <= entry.index:
        return None
    found = nested.arrays(watch.calls(entry.path)[entry.index].result)
    return numbers(found[0]) if found else None


@contextmanager
def _eagerly() -> Iterator[None]:
    """Run what is compiled step by step, so that layers within can be watched."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def _sum(some: Any, other: Any) -> tuple[tuple, dict[str, Any]]:
    """Array by array, of two that are nested alike."""
    theirs = iter(nested.arrays(other))

    def plus(part: Any) -> Any:
        if not isinstance(part, np.ndarray):
            return part
        more = next(theirs)
        return part + more if part.dtype.kind == "f" else part

    return nested.each(plus, some)


class _Moved(BaseException):
    """What reaches a layer has moved, which was the question; nobody on the way is to handle it."""


def _beyond(results: list[np.ndarray], usual: list[np.ndarray], allowed: list[Any]) -> bool:
    """Whether any of the results is further from what it usually is than allowed."""
    return len(results) == len(usual) and any(
        result.shape == before.shape and bool((np.abs(result - before) > most).any())
        for result, before, most in zip(results, usual, allowed, strict=True)
    )


def _far_from_overflow(truth: np.ndarray) -> bool:
    return bool((np.abs(truth) < np.sqrt(LARGEST)).all())


class _Capture:
    """Stands for a Keras layer, and notes with what it would be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.given = (args, kwargs)
        return args[0]


def _times(part: Any, factor: float) -> Any:
    """Of floats; what is left out (None), and whole numbers, as they are."""
    return part * np.float32(factor) if getattr(part, "dtype", np.dtype(bool)).kind == "f" else part


def _nudged(values: np.ndarray) -> np.ndarray:
    """Other values of the same size, all of them further from zero or above it: a variance stays one."""
    size = float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0
    rng = np.random.default_rng(values.size)
    return (values + rng.uniform(0.05, 0.25, values.shape) * (size or 0.5)).astype(values.dtype)
