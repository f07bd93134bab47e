"""The match itself: both networks are looked at, their units paired and filled, and links made of what is known."""

import math
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from converter import nested
from converter.errors import printable
from converter.matching.aligning import Alignment, align
from converter.matching.arguments import Arguments, arguments_of
from converter.matching.belonging import Belonging, belonging
from converter.matching.builders import Builder
from converter.matching.comparing import agreement
from converter.matching.deciding import Deciding, Verdict
from converter.matching.linking import Linking
from converter.matching.rows import Fill, Link, Outcome
from converter.matching.spilled import Results, Spilled
from converter.matching.units import Shape, Unit, connect, downstream, grouped
from converter.naming import fold, listed
from converter.pairs.mapping import join
from converter.progress import Progress
from converter.torch_side.answers import Held, Outputs, Step, Value
from converter.torch_side.process import TorchProcess
from converter.torch_side.questions import Dataflow, Fetch, Reference
from converter.torch_side.seeding import seeded

_FACTORS = 8  # ways in which an axis may be made of others that are tried


class TorchSide:
    """The torch network, as its process tells of it.

    Attributes:
        held: name -> what the state dict holds under it.
        steps: the operations of a run.
        result: what the run gave.
        units: its units, connected.
        values: step -> what it gave, of the units' results.
    """

    def __init__(self, process: TorchProcess, builder: Builder, arguments: Arguments):
        reference = Reference(builder.text, builder, {}, {}, seeded=True)
        self._given = [
            one.shape for _, one in nested.flat((arguments.torch, arguments.torch_named)) if isinstance(one, np.ndarray)
        ]
        self.held: dict[str, Held] = {}
        self.steps: list[Step] = []
        self.result: Any = None
        process.ask(Dataflow(reference, arguments.torch, arguments.torch_named))
        for answer in process.answers():
            if isinstance(answer, Held):
                self.held[answer.name] = answer
            elif isinstance(answer, Step):
                self.steps.append(answer)
            elif isinstance(answer, Outputs):
                self.result = answer.value
        floats = {name: one for name, one in self.held.items() if "float" in one.dtype and one.same_as is None}
        self.units = grouped({name: one.shape for name, one in floats.items()}, {n: o.owner for n, o in floats.items()})
        connect(self.units, self.steps)
        wanted = frozenset(unit.result for unit in self.units if unit.result is not None)
        process.ask(Fetch(reference, arguments.torch, arguments.torch_named, wanted))
        self.values = Spilled()
        for answer in process.answers():
            if isinstance(answer, Value):
                self.values.add(answer.number, answer.value)

    def tensor(self, name: str) -> np.ndarray:
        """The values that it was given."""
        held = self.held[name]
        if held.value is not None:
            return held.value
        return seeded(name, held.shape, held.owner)

    def results(self, units: list[Unit]) -> Results:
        """What the units give."""
        return Results(units, self.values)

    def factors(self, unit: Unit) -> list[Shape]:
        """What an axis of the unit's tensors may be made of: (C, H, W) of images, (heads, channels of a head)."""
        lengths = {length for shape in unit.tensors.values() for length in shape}
        return [several for several in self._several() if math.prod(several) in lengths][:_FACTORS]

    def _several(self) -> list[Shape]:
        if not hasattr(self, "_found"):
            found: dict[Shape, None] = {}
            shapes = [shape for step in self.steps for shape in step.shapes]
            for shape in [*self._given, *shapes]:
                if len(shape) == 4:
                    found.update(dict.fromkeys([shape[1:], (shape[1], shape[3]), (shape[2], shape[3])]))
            self._found = [shape for shape in found if min(shape) > 1]
        return self._found


def match_networks(
    torch: Builder,
    keras: Builder,
    inputs: Builder | None,
    checkpoint: str | os.PathLike | None,
    progress: Progress,
) -> Outcome:
    """Match two networks by what they compute.

    Raises:
        ConversionError: a builder or a side fails.
    """
    given = inputs and inputs.called()  # before TensorFlow is imported, which torch must not follow
    with TorchProcess() as process:
        progress.start("loading TensorFlow", 0)
        from converter.matching.keras_side import KerasSide, is_float
        from converter.planning.variables import fresh_names

        with fresh_names():
            model = keras()
        arguments = arguments_of(given, model)
        progress.start("tracing torch", 0)
        theirs = TorchSide(process, torch, arguments)
        held = Belonging() if checkpoint is None else belonging(checkpoint, theirs.held)
        progress.start("tracing Keras", 0)
        ours = KerasSide(model, arguments.keras, arguments.keras_named)
        floats = {path: tuple(one.shape) for path, one in ours.variables.items() if is_float(one)}
        units = grouped(floats, ours.owners)
        connect(units, ours.steps)
        progress.start("matching", 0)
        alignment = align(theirs.units, units)
        results = theirs.results(alignment.theirs)
        deciding = Deciding(
            alignment, theirs.tensor, results, ours, theirs.factors, lambda: _counted(theirs.result, ours)
        )
        dull = _dull(arguments)
        verdict = deciding.decide(dull)
        outputs, verdict.ends = _outputs(theirs.result, ours)
        called = {
            unit for unit in alignment.theirs if unit.call is not None and theirs.steps[unit.call].module == unit.path
        }
        links = list(Linking(alignment, deciding.filled, verdict, called).links())
        felt = [found for unit, found in verdict.uncut.items() if deciding.felt(unit, verdict.uncut)]
        whole = bool(felt) and all(felt) and verdict.ends != "turned" and not _learns_more(alignment, ours)
        links += _unpaired(alignment, units, ours, whole)
        left = _left(theirs, alignment, links, whole and verdict.ends != "other")
    saved = {name: one.saved_as for name, one in theirs.held.items() if one.saved_as}
    return Outcome(links, left, outputs, [*held.notes, *_notes(alignment, verdict, dull)], saved, held.names)


def _dull(arguments: Arguments) -> bool:
    """Whether an input is the same all along an axis, as an image of zeros is: much does not show then."""
    floats: list[np.ndarray] = []
    for _, one in nested.flat((arguments.torch, arguments.torch_named)):
        if isinstance(one, np.ndarray) and one.dtype.kind == "f":
            floats.append(one)
    return any(
        length > 1 and bool((one == one.take([0], axis)).all())
        for one in floats
        for axis, length in enumerate(one.shape)
    )


def _counted(theirs: Any, ours: Any) -> tuple[int, int]:
    """How many outputs are the same, and how many of these at the same place."""
    found = _outputs(theirs, ours)[0]
    return len(found), sum(name == path for name, path, _ in found)


def _outputs(theirs: Any, ours: Any) -> tuple[list[tuple[str, str, str]], str]:
    """(path in torch's results, path in Keras's, pattern) of the results that are the same; and how all compare, as of
    a `Verdict`, or "other" where both sides have one of a size and no two are the same."""
    wanted = [(path, np.asarray(one)) for path, one in nested.flat(theirs) if hasattr(one, "dtype")]
    wanted = [(path, one) for path, one in wanted if one.dtype.kind == "f"]
    found = []
    ends = "same"
    for path, value in nested.flat(ours.now()):
        value = np.asarray(value)
        if value.dtype.kind != "f":
            continue
        every = [(name, agreement(one, value)) for name, one in wanted]
        for name, same in every:
            if same.in_order:
                found.append((name, path, same.axes))
                break
        else:
            if any(same for _, same in every):
                ends = "turned"
            elif ends != "turned" and any(one.size == value.size for _, one in wanted):
                ends = "other"
            elif ends == "same":
                ends = ""
    return found, ends


def _learns_more(alignment: Alignment, ours: Any) -> bool:
    """Whether a unit of Keras's that learns, and feeds others, has no counterpart."""
    return any(one.after and any(one.full(name) in ours.learnt for name in one.tensors) for one in alignment.alone())


def _unpaired(alignment: Alignment, units: list[Unit], ours: Any, whole: bool) -> Iterator[Link]:
    """Variables of Keras's that nothing of torch's fills."""
    paired = {id(other.whole or other) for other in alignment.pairs.values()}
    known = {path for unit in units for path in map(unit.full, unit.tensors)}
    counts = [Counter(unit.sort for unit in side) for side in (alignment.theirs, alignment.ours)]
    for unit in units:
        if id(unit) in paired:
            continue
        place = unit.place
        below = [unit.full(name)[len(place) :].removeprefix(".") for name in unit.tensors]
        if unit.statistics or any(unit.full(name) in ours.learnt for name in unit.tensors):
            told = f"torch has {counts[0][unit.sort]} units of its size, Keras {counts[1][unit.sort]}"
            near = alignment.candidates.get(unit, [])
            if near:
                told += f"; {listed([one.name for one in near], 4)} may be meant"
            status = "ambiguous" if near else "unmatched"
            yield Link("", place, tuple(Fill((), (name,), "") for name in below), status, told)
            continue
        told = "Keras computes it when it is built; torch has no such tensor"
        shown = whole and unit.result is not None
        told += ", and all that the two networks compute agrees with it" if shown else ""
        told += "; no operation uses it on these inputs" if unit.result is None else ""
        fills = tuple(Fill((), (name,), "= built") for name in below)
        yield Link("", place, fills, "proven" if shown else "proposed", told)
    for path, variable in ours.variables.items():
        if path not in known:
            told = f"{variable.dtype}: nothing that a checkpoint holds"
            yield Link("", path, (Fill((), ("",), "= built"),), "proven", told)


def _left(theirs: TorchSide, alignment: Alignment, links: list[Link], whole: bool) -> dict[str, str]:
    """Torch's tensors that fill nothing, each with the reason that is known."""
    used = {
        join(path, name) for link in links for path, _ in link.units() for fill in link.fills for name in fill.tensors
    }
    idle = {unit.full(name): unit for unit in theirs.units for name in unit.tensors}
    left = {}
    for name, held in theirs.held.items():
        if name in used:
            continue
        if held.same_as is not None:
            left[name] = f"a copy of {held.same_as}"
        elif name.endswith("num_batches_tracked"):
            left[name] = "Keras keeps no count of batches"
        elif "float" not in held.dtype:
            left[name] = f"{held.dtype}: nothing that is learnt"
        elif idle[name].result is None:
            left[name] = "no operation uses it on these inputs"
        elif idle[name] not in alignment.pairs and whole and not _downstream_paired(idle[name], alignment):
            left[name] = "nothing of the Keras model comes after it, and what it has agrees"
        else:
            left[name] = ""
    return left


def _downstream_paired(unit: Unit, alignment: Alignment) -> bool:
    return any(one in alignment.pairs for one in downstream(unit))


def _notes(alignment: Alignment, verdict: Verdict, dull: bool) -> Iterator[str]:
    """Where the two networks differ, for a person."""
    lacking = [unit.name for unit in alignment.theirs if unit not in alignment.pairs and unit.result is not None]
    taken = set(alignment.pairs.values())
    more = [other.name for other in alignment.ours if other not in taken]
    if lacking:
        yield f"only torch has {listed([printable(one, 100) for one in fold(lacking)], 8)}"
    if more:
        yield f"only Keras has {listed([printable(one, 100) for one in fold(more)], 8)}"
    first = [one.name for one in verdict.faulty if one not in verdict.behind]
    if first:
        yield f"on agreeing inputs the results differ of {listed([printable(one, 100) for one in fold(first)], 8)}"
    elif verdict.ends == "turned":
        yield "an output has torch's values in another order"
    elif verdict.ends == "other":
        yield "an output differs from torch's: what follows the last layers is not the same, as a softmax on one side"
    if dull:
        yield "an input is the same all along an axis, and hides much: random numbers show more"
