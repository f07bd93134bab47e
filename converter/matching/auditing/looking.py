"""The audit itself: both networks are matched, filled, and held against each other."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from converter import nested
from converter.checkpoints.checkpoint import Checkpoint
from converter.errors import ConversionError, printable
from converter.matching.aligning import Alignment, align
from converter.matching.arguments import arguments_of
from converter.matching.audit import CONFIGURATION, Audit, Finding, Output, load_weights
from converter.matching.auditing.between import PADS, Parting, Side, applied, edges, part, region
from converter.matching.auditing.settings import Setting, of_parts, of_unit, paddings
from converter.matching.auditing.values import Difference, Expected, causes, difference, initializers, same
from converter.matching.auditing.walking import Walk, as_ours, off
from converter.matching.auditing.weights import Weights
from converter.matching.builders import Builder
from converter.matching.comparing import agreement, arranged, patterns
from converter.matching.deciding import Deciding, Verdict
from converter.matching.engine import TorchSide
from converter.matching.filling import Filled, fill
from converter.matching.units import Unit, connect, grouped, leaf_of
from converter.naming import fold, listed
from converter.pairs.pair import Probe
from converter.progress import Progress
from converter.torch_side.answers import Module, Outputs, Value
from converter.torch_side.process import TorchProcess
from converter.torch_side.questions import Fetch, Inventory, Reference, Run

# Of its largest value that a result in float32 may be off on torch's own input. Right ports stay below a quarter of it.
EXPLAINED = 2e-5
# The same of an output, where errors of all layers come together, and how many times torch's own error it may be.
_WHOLE, _MORE = 1e-4, 30
_ROUNDS = 4  # in which units are left aside whose sums are made in another order
_PARTINGS = 48  # units of which the way to them is looked at step by step


def look(
    torch: Builder,
    keras: Builder,
    inputs: Builder,
    checkpoint: str | os.PathLike,
    weights: Path | None,
    progress: Progress,
) -> Audit:
    """Audit a model; as `converter.audit`."""
    with Checkpoint(checkpoint) as source, TorchProcess() as process:
        progress.start("loading TensorFlow", 0)
        from converter.matching.keras_side import KerasSide, is_float
        from converter.planning.variables import fresh_names

        with fresh_names():
            model = keras()
        arguments = arguments_of(inputs, model)
        progress.start("tracing torch", 0)
        theirs = TorchSide(process, torch, arguments)
        held = Weights(source, theirs.held)
        progress.start("tracing Keras", 0)
        ours = KerasSide(model, arguments.keras, arguments.keras_named)
        if weights is not None:
            load_weights(model, weights)
        kept = {path: np.array(one) for path, one in ours.variables.items()}
        units = grouped(
            {path: value.shape for path, value in kept.items() if is_float(ours.variables[path])}, ours.owners
        )
        connect(units, ours.steps)
        _end_with_their_layers(units, ours)
        progress.start("matching", 0)
        alignment = align(theirs.units, units)
        try:
            deciding = Deciding(alignment, theirs.tensor, theirs.results(alignment.theirs), ours, theirs.factors)
            verdict = deciding.decide()
        finally:
            ours.assign(kept)
        progress.start("filling torch", 0)
        reference = Reference(torch.text, torch, {}, held.sources, ignored=held.absent)
        asking = _Asking(process, reference, arguments)
        auditing = _Auditing(theirs, ours, alignment.pairs, deciding.filled, verdict, held, kept, asking)
        progress.start("comparing", len(alignment.pairs))
        found = auditing.audit(progress)
        source.check_unchanged()
    found.torch, found.keras = torch.text, keras.text
    found.units = sum(unit.result is not None for unit in theirs.units)
    found.notes += _unpaired(alignment, ours)
    return found


def _end_with_their_layers(units: list[Unit], ours: Any) -> None:
    """Of normalisations, whose steps are looked for until they meet again, leave what another layer does: a GELU
    behind one meets its input again as well."""
    for unit in units:
        if unit.sort[0] == "kernel" or unit.call is None or unit.result is None or not unit.path:
            continue
        own = [n for n in range(unit.call, unit.result + 1) if ours.homes[n] == unit.path]
        if own and ours.homes[unit.result] != unit.path:
            unit.result = own[-1]


def _unpaired(alignment: Alignment, ours: Any) -> Iterator[str]:
    """What stands on one side alone, and so is not judged."""
    paired = {id(one.whole or one) for one in (*alignment.pairs, *alignment.pairs.values())}
    lacking = [one.name for one in alignment.theirs if one.result is not None and id(one.whole or one) not in paired]
    more = [
        one.name
        for one in alignment.ours
        if id(one.whole or one) not in paired and any(ours.variables[one.full(name)].trainable for name in one.tensors)
    ]
    for side, names in (("torch", lacking), ("Keras", more)):
        if names:
            shown = listed([printable(one, 100) for one in fold(names)], 6)
            yield f"only {side} has {shown}, which the audit cannot judge"


class _Asking:
    """Torch's process, with the network that the checkpoint fills."""

    def __init__(self, process: TorchProcess, reference: Reference, arguments: Any):
        self._process, self._reference, self._arguments = process, reference, arguments

    def values(self, steps: set[int]) -> dict[int, np.ndarray]:
        given = self._arguments.torch, self._arguments.torch_named
        self._process.ask(Fetch(self._reference, *given, frozenset(steps)))
        return {one.number: one.value for one in self._process.answers() if isinstance(one, Value)}

    def modules(self) -> dict[str, Module]:
        self._process.ask(Inventory(self._reference))
        return {one.path: one for one in self._process.answers() if isinstance(one, Module)}

    def result(self, exact: bool = False) -> Any:
        """What the network gives; None where it does not run in float64."""
        self._process.ask(Run(self._reference, Probe(self._arguments.inputs), exact))
        try:
            return next(one.value for one in list(self._process.answers()) if isinstance(one, Outputs))
        except ConversionError:
            if exact:
                return None
            raise

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """Torch's inputs by the names that steps have for them."""
        args = (*self._arguments.torch, self._arguments.torch_named)
        return {f"input {path}": np.asarray(one) for path, one in nested.flat(args) if hasattr(one, "dtype")}


class _Auditing:
    def __init__(
        self,
        theirs: TorchSide,
        ours: Any,
        pairs: dict[Unit, Unit],
        filled: dict[Unit, Filled],
        verdict: Verdict,
        weights: Weights,
        kept: Mapping[str, np.ndarray],
        asking: _Asking,
    ):
        from converter.planning.variables import layers_by_path

        self._theirs, self._ours, self._pairs, self._filled = theirs, ours, pairs, filled
        self._verdict, self._weights, self._kept, self._asking = verdict, weights, kept, asking
        self._modules = asking.modules()
        self._layers = layers_by_path(ours.model)
        self._shapes = {path: value.shape for path, value in kept.items()}

    def audit(self, progress: Progress) -> Audit:
        found = Audit("", "")
        self._put_right()
        wrong = self._variables(found)
        steps = {unit.result for unit in self._filled if unit.result is not None}
        values = self._asking.values(steps)
        known = {**self._verdict.uncut, **self._verdict.cut}
        results = {
            unit: values[unit.result]
            for unit, other in self._pairs.items()
            if not unit.part and not other.part and other.result is not None and unit.result in values
        }
        unfelt: set[Unit] = set()
        for _ in range(_ROUNDS):
            results = {unit: value for unit, value in results.items() if unit not in unfelt}
            self._walk = Walk(self._ours, self._pairs, results)
            self._walk.run(known, progress.advance)
            differing = [unit for unit, error in self._walk.errors.items() if error > EXPLAINED and self._right(unit)]
            unfelt = self._walk.unfelt(differing, EXPLAINED)
            if not unfelt:
                break
        found.judged = len(self._walk.errors)
        findings = self._findings(wrong)
        found.outputs = self._outputs(findings)
        if not found.outputs:
            found.notes.append("no output of one side has the size of one of the other's: layers alone are compared")
        if not any(one.shown for _, one in findings):
            for output in found.outputs:
                if output.error > max(_WHOLE, _MORE * (output.own or 0.0)):
                    findings.append((None, Finding("", _word(output.keras), "no layer alone shows why", output.error)))
        order: dict[Unit | None, int] = {unit: at for at, unit in enumerate(self._in_order(self._filled))}
        findings.sort(key=lambda one: order.get(one[0], len(order)))
        same: dict[tuple, Finding] = {}  # an operation between layers may reach several of them
        for _, one in findings:
            key = one.layer, one.what, one.cause, one.torch
            same[key] = replace(one, size=max(one.size, same[key].size)) if key in same else one
        found.findings = [*same.values()]
        return found

    # Variables

    def _put_right(self) -> None:
        """Of units that nothing tells apart, and of layouts that nothing confirms, take what the variables hold."""
        for one, others in self._verdict.untold.items():
            for other in others:
                if self._right(one) and self._right(other):
                    continue
                swapped = {
                    unit: fill(unit, self._pairs[mate], self._theirs.factors(unit))
                    for unit, mate in ((one, other), (other, one))
                }
                for unit, new in swapped.items():
                    new.chosen = min(self._filled[unit].chosen, len(new.choices) - 1)
                if all(self._holds(new) for new in swapped.values()):
                    self._filled.update(swapped)
                    self._pairs[one], self._pairs[other] = self._pairs[other], self._pairs[one]
        for unit, filled in self._filled.items():
            if not self._trusted(unit) and not self._right(unit):
                ways = (replace(filled, chosen=choice) for choice in range(len(filled.choices)))
                self._filled[unit] = next((one for one in ways if self._holds(one)), filled)

    def _trusted(self, unit: Unit) -> bool:
        """Whether the match shows how it is filled."""
        verdict = self._verdict
        if unit in verdict.untold or unit in verdict.hidden or unit in verdict.faulty:
            return False
        own = verdict.cut.get(unit)
        if own is not None:
            return bool(own)
        after = [verdict.cut[one] for one in unit.after if one in verdict.cut]
        return bool(after) and all(map(bool, after))

    def _right(self, unit: Unit) -> bool:
        return self._holds(self._filled[unit])

    def _holds(self, filled: Filled) -> bool:
        return all(same(held, wanted) for _, held, wanted in self._held(filled))

    def _held(self, filled: Filled) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """(variable, what it holds, what the checkpoint gives it) of each, or of each part."""
        for variable, block, value in filled.values(self._weights.__getitem__, self._shapes):
            held = self._kept[variable]
            yield variable, held if block is None else block.of(held).reshape(value.shape), value

    def _variables(self, found: Audit) -> dict[Unit, dict[str, Difference]]:
        """Unit -> variable below its layer -> what is the matter with it."""
        expected = Expected()
        every = {unit: list(self._held(filled)) for unit, filled in self._filled.items()}
        for unit, held in every.items():
            for variable, _, value in held:
                expected.add(self._name(unit), variable.rpartition(".")[2], value)
        wrong: dict[Unit, dict[str, Difference]] = {}
        totals: dict[str, bool] = {}
        for unit, held in every.items():
            layer = self._layers.get(self._pairs[unit].path)
            for variable, value, wanted in held:
                one = difference(
                    variable.rpartition(".")[2],
                    value,
                    wanted,
                    expected,
                    initializers(layer) if layer is not None else [],
                )
                totals[variable] = totals.get(variable, True) and one is None
                if one is not None:
                    wrong.setdefault(unit, {})[variable[len(self._pairs[unit].path) :].lstrip(".")] = one
        found.variables, found.equal = len(totals), sum(totals.values())
        return wrong

    def _name(self, unit: Unit) -> str:
        """Its layer's path, with which part of it where torch has it alone."""
        other = self._pairs[unit]
        return f"{other.place} ({unit.place})" if other.part else other.place

    # Results

    def _in_order(self, units: Any) -> list[Unit]:
        return sorted(units, key=lambda unit: (unit.call is None, unit.call or 0, unit.order))

    def _findings(self, wrong: dict[Unit, dict[str, Difference]]) -> list[tuple[Unit | None, Finding]]:
        walk = self._walk
        findings: list[tuple[Unit | None, Finding]] = []
        differing = [unit for unit in self._in_order(walk.errors) if walk.errors[unit] > EXPLAINED]
        unexplained, followed = [], []
        blamed: dict[Unit, float] = {}  # units without a result of their own: how far what they feed is off
        for unit in differing:
            if unit in wrong:
                continue
            at_fault = [one for one in walk.passed(unit) if one in wrong]
            for one in at_fault:
                blamed[one] = max(blamed.get(one, 0.0), walk.errors[unit])
            unfed = [one for one in walk.passed(unit) if walk.errors.get(one, 0) > EXPLAINED]
            if not at_fault and not unfed:
                unexplained.append(unit)
            elif not at_fault and any(not one.hidden for one in self._settings(unit)):
                followed.append(unit)
        for unit, some in wrong.items():
            size = walk.errors.get(unit, blamed.get(unit, 0.0))
            if not self._trusted(unit) and size <= EXPLAINED:
                continue
            names = self._pairs[unit].tensors
            biases = {name for name in names if leaf_of(name) in ("bias", "beta")}
            statistics = {name for name in names if name.startswith("moving_")}
            for what, why in causes(some, biases, statistics):
                findings.append((unit, Finding(self._name(unit), what, why, size, unit.place)))
        partings = self._partings(unexplained)
        explained = set()
        for unit in (*unexplained, *followed):
            finding, used = self._explained(unit, partings.get(unit))
            findings.append((unit, finding))
            explained |= {(unit, name) for name in used}
        for unit in self._filled:
            for setting in self._settings(unit):
                if setting.hidden and (unit, setting.name) not in explained:
                    size = walk.errors.get(unit, 0.0)
                    findings.append((unit, Finding(self._name(unit), CONFIGURATION, str(setting), size, unit.place)))
        return findings

    def _settings(self, unit: Unit) -> list[Setting]:
        module, layer = self._modules.get(unit.path), self._layers.get(self._pairs[unit].path)
        return [] if module is None or layer is None else list(of_unit(module, layer))

    def _partings(self, units: list[Unit]) -> dict[Unit, Parting]:
        """Where the two sides part on the way to each of these units."""
        units = units[:_PARTINGS]
        if not units:
            return {}
        walk = self._walk
        ways = {}
        steps: set[int] = set()
        results = {unit.result for unit in walk.axes if unit.result is not None}
        for unit in units:
            assert unit.result is not None
            some = region(self._theirs.steps, unit.result, results - {unit.result})
            ways[unit] = some
            steps |= {*some, *(one for one in edges(self._theirs.steps, some) if isinstance(one, int))}
        values: dict[int | str, np.ndarray] = {}
        values.update(self._asking.inputs.items())
        values.update(self._asking.values(steps).items())
        found = {}
        homes = dict(enumerate(self._ours.homes))
        for unit in units:
            assert unit.result is not None
            last = walk.step(unit)
            given = walk.without([last])
            some = region(self._ours.steps, last, set(given))
            around = edges(self._ours.steps, some)
            mine: dict[int | str, np.ndarray] = dict(self._ours.values(some, given))
            mine = {one: mine[one] for one in some}
            mine.update({one: given[one] for one in around if isinstance(one, int) and one in given})
            mine.update({one: self._ours.input(one) for one in around if isinstance(one, str)})
            around = edges(self._theirs.steps, ways[unit])
            known = {one: values[one] for one in (*ways[unit], *around) if one in values}
            theirs = Side(self._theirs.steps, unit.result, [n for n in ways[unit] if n in values], known)
            found[unit] = part(theirs, Side(self._ours.steps, last, some, mine), homes)
        return found

    def _explained(self, unit: Unit, parting: Parting | None) -> tuple[Finding, list[str]]:
        """A finding for a unit whose variables are right and whose result is not; names of the settings it tells."""
        other, size = self._pairs[unit], self._walk.errors[unit]
        settings = self._settings(unit)
        home = None if parting is None or parting.step is None else self._ours.homes[parting.step]
        if home is None or home == other.path or home.startswith(f"{other.path}."):
            padding = self._padding(unit)
            both = [*settings, *([padding] if padding else [])]
            shown = [one for one in both if one.name != "momentum"]
            if shown:
                text = "; ".join(map(str, shown))
                return Finding(self._name(unit), "result", text, size, unit.place), [one.name for one in shown]
            guess = parting.guess if parting else ""
            return Finding(self._name(unit), "result", guess, size, unit.place), []
        assert parting is not None
        layer = self._layers.get(home)
        modules = [self._modules[path] for path in parting.modules if path in self._modules and path != unit.path]
        rescales = type(layer).__name__ in ("Rescaling", "Normalization")
        told = ["the model rescales what it is given"] if rescales else []
        told += [str(one) for one in of_parts(modules, layer)] if layer is not None else []
        told += [parting.guess] if parting.guess and not (told and parting.vague) else []
        theirs = next((one.path for one in modules if one.path), unit.place)
        return Finding(home, "result", "; ".join(told), size, theirs), []

    def _padding(self, unit: Unit) -> Setting | None:
        """How a convolution pads otherwise, with what is padded right before it."""
        module, layer = self._modules.get(unit.path), self._layers.get(self._pairs[unit].path)
        if module is None or layer is None or not module.kind.rpartition(".")[2].startswith("Conv"):
            return None
        rank = len(self._walk.results[unit].shape) - 2
        call = self._pairs[unit].call
        step = next(
            (s for s in self._ours.steps[call or 0 :] if "Conv" in s.operation and s.number <= self._walk.step(unit)),
            None,
        )
        if step is None or step.reads[0] is None:
            return None
        explicit = [(0, 0)] * rank
        before: Any = step.reads[0]
        while isinstance(before, int) and self._ours.steps[before].operation in (*PADS, "Identity", "Cast"):
            number, before = before, self._ours.steps[before].reads[0]
            if self._ours.steps[number].operation not in PADS:
                continue
            amounts = self._ours.constant(number, 1)
            if amounts is None or len(amounts) != rank + 2:
                return None
            inner = amounts[1:-1]
            explicit = [(a + int(c), b + int(d)) for (a, b), (c, d) in zip(explicit, inner, strict=True)]
        read = step.reads[0]
        given = self._ours.steps[read].shapes[0] if isinstance(read, int) else self._ours.input(read).shape
        size = given[1:-1]
        return paddings(module, layer, size, explicit)

    # Outputs

    def _outputs(self, findings: list[tuple[Unit | None, Finding]]) -> list[Output]:
        """Errors of the whole; and what is done to results behind the last layer becomes a finding."""
        result, exact = self._asking.result(), self._asking.result(exact=True)
        theirs = {path: np.asarray(one) for path, one in nested.flat(result) if _floats(one)}
        truth = {path: np.asarray(one) for path, one in nested.flat(exact) if _floats(one)} if exact is not None else {}
        ours = {path: np.asarray(one) for path, one in nested.flat(self._ours.now()) if _floats(np.asarray(one))}
        found = []
        steps = dict(self._ours.outputs)
        walk = self._walk
        local = self._ours.values(sorted(set(steps.values())), walk.fed)
        taken: set[str] = set()
        for path, value in ours.items():
            name = _counterpart(path, value, {n: v for n, v in theirs.items() if n not in taken})
            if name is None:
                continue
            taken.add(name)
            axes = min(
                patterns(theirs[name].shape, value.shape),
                key=lambda way: float(np.abs(arranged(theirs[name], way, value.shape) - value).mean()),
            )
            wanted = as_ours(theirs[name], axes, value)
            own = off(truth[name], theirs[name]) if name in truth else None
            found.append(Output(name, path, off(wanted, value), own))
            error = off(wanted, local[steps[path]]) if path in steps else 0.0
            if error > EXPLAINED and not self._hangs_on_others(steps[path]):
                unit = self._last_before(steps[path])
                given = local[steps[path]]
                layer = self._name(unit) if unit is not None else ""
                where = unit.place if unit is not None else ""
                why = applied(theirs[name], given)
                findings.append((unit, Finding(layer, _word(path), why, error, where)))
        return found

    def _hangs_on_others(self, step: int) -> bool:
        """Whether layers that are wrong themselves, and whose results could not be put in, reach an output."""
        some = set(region(self._ours.steps, step, set(self._walk.fed)))
        wrong = {
            self._walk.step(u)
            for u, error in self._walk.errors.items()
            if error > EXPLAINED and u not in self._walk.axes
        }
        return bool(some & wrong)

    def _last_before(self, step: int) -> Unit | None:
        by_step = {self._walk.step(unit): unit for unit in self._walk.results}
        if step in by_step:
            return by_step[step]
        near = edges(self._ours.steps, region(self._ours.steps, step, set(self._walk.fed)))
        return next((by_step[one] for one in sorted(n for n in near if isinstance(n, int)) if one in by_step), None)


def _word(path: str) -> str:
    return f"output {path}" if path else "output"


def _floats(one: Any) -> bool:
    return hasattr(one, "dtype") and np.asarray(one).dtype.kind == "f"


def _counterpart(path: str, value: np.ndarray, theirs: Mapping[str, np.ndarray]) -> str | None:
    """Torch's output that is this one: the same values, or the same name, or the first of its size."""
    sized = {name: one for name, one in theirs.items() if one.size == value.size}
    for name, one in sized.items():
        if agreement(one, value):
            return name
    return path if path in sized else next(iter(sized), None)
