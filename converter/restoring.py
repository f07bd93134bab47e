"""The way back: a weights file becomes the torch checkpoint that it was converted from, or one in another dialect."""

import os
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.blame import PairError, where_and_what
from converter.checkpoints.checkpoint import Checkpoint
from converter.checkpoints.tensors import FLOATS, Entry, Scratch
from converter.checkpoints.writing import ENDINGS, ZIPPED, Named, write_checkpoint
from converter.errors import ConversionError, ProofError, UsageError, aligned, printable
from converter.files.atomic import NewFile
from converter.naming import fold, listed
from converter.pairs.dialects import CANONICAL, Dialect
from converter.pairs.mapping import Mapping
from converter.pairs.pair import Pair
from converter.pairs.registry import get
from converter.planning.origin import SMALL, Origin
from converter.planning.reading import Reading, State, mapping_of
from converter.progress import Progress, Silent
from converter.report import size

if TYPE_CHECKING:
    from converter.planning.plan import Plan
    from converter.planning.steps import Step, Target


@dataclass
class Restored:
    """A finished restoration.

    Attributes:
        model: the pair's name.
        source: the weights file.
        dialect: whose names and layouts were written.
        key, prefix: in which nested dict the tensors stand, and what stands before every name.
        output: the checkpoint.
        tensors: how many it has, of which `kept` are not the model's but were recorded.
        nbytes: bytes of their values.
        notes: what did not come back, and why.
    """

    model: str
    source: Path
    dialect: str
    key: str
    prefix: str
    output: Path
    tensors: int
    kept: int
    nbytes: int
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {**asdict(self), "source": str(self.source), "output": str(self.output)}

    def lines(self) -> list[tuple[str, str]]:
        """(heading, text) of each line for a person."""
        rows = [
            ("model", f"{self.model}, {self.tensors} tensors, {size(self.nbytes)}"),
            ("source", f"{self.source}, dialect {self.dialect}"),
        ]
        if self.key:
            rows.append(("key", printable(self.key)))
        if self.prefix:
            rows.append(("prefix", printable(self.prefix)))
        if self.kept:
            rows.append(("kept", f"{self.kept} of them are not the model's, and were recorded when it was converted"))
        rows += [("note", note) for note in self.notes]
        rows.append(("lossless", f"{self.tensors} tensors read back, equal bit for bit"))
        rows.append(("written", f"{self.output} in {self.seconds:.1f} s"))
        return rows

    def __str__(self) -> str:
        return "\n".join(aligned(self.lines()))


def restore(
    path: str | os.PathLike,
    output: str | os.PathLike,
    dialect: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Restored:
    """Write the torch checkpoint that a weights file came from: the same names, shapes, dtypes and bits.

    What cannot come back (other networks' tensors, large ones that the model does not need, digits lost when the file
    was written) is told in the report's notes. The checkpoint is read back and compared before it appears.

    Args:
        path: a `.weights.h5` file that `convert` wrote.
        output: where to write, ending in `.pth`, `.pt`, `.bin` (torch's zip format) or `.safetensors`.
        dialect: whose names and layouts to write; by default those of the checkpoint.
        overwrite: replace an existing output.
        progress: told of each stage.

    Raises:
        UsageError: an unknown model or dialect.
        ProofError: what was written does not give the same weights; nothing is left of it.
        ConversionError: the file is damaged or not a converted one, the dialect cannot hold the model's tensors, or the
            output cannot be written.
    """
    progress = progress or Silent()
    began = time.monotonic()
    path, output = Path(path).expanduser(), Path(output).expanduser()
    new = NewFile(output, overwrite, ENDINGS, [path])
    from tf_models.runtime.weights_format import WeightsError, provenance

    try:
        about = provenance(path)
        pair = get(about["model"])
        origin = Origin.from_dict(about.get("origin", {}))
        target = _dialect(pair, dialect, about.get("dialect"))
        progress.start("loading TensorFlow", 0)
        plan = _plan(path, pair, about, origin, target)
        kept = {_name(origin, about, target, name): one for name, one in origin.kept.items()}
        written = [source for step in plan.steps for source in step.sources]
        tensors = [Named(one.name, one.entry.dtype, one.entry.shape) for one in written]
        tensors += [Named(name, one.dtype, one.shape) for name, one in kept.items()]
        _refuse_equal_names(tensors, target)
    except WeightsError as error:
        raise ConversionError(str(error)) from None
    except UsageError:
        raise
    except ValueError as error:
        raise ConversionError(f"{pair.name} cannot be written in the dialect {target.name}: {error}") from None
    except ConversionError as error:
        raise ConversionError(f"{printable(str(path), 160)}: {error}") from error.__cause__
    nbytes = sum(one.nbytes for one in tensors)
    report = Restored(pair.name, path, target.name, origin.key, origin.prefix, output, len(tensors), len(kept), nbytes)
    report.notes = [*_notes(about, origin, output), *plan.notes]
    with new.written() as temporary, ExitStack() as stack:
        progress.start("writing", nbytes)
        arrays = stack.enter_context(closing(_arrays(path, plan, progress)))
        write_checkpoint(temporary, origin.key, tensors, _followed(arrays, kept))
        progress.start("reading back", nbytes)
        _prove(path, temporary, plan, tensors, kept, about["dtype"], progress)
    report.seconds = time.monotonic() - began
    return report


def _dialect(pair: Pair, chosen: str | None, recorded: Any) -> Dialect:
    known = {one.name: one for one in (CANONICAL, *pair.dialects)}
    name = recorded if chosen is None else chosen
    if isinstance(name, str) and name in known:
        return known[name]
    told = f"{pair.name} has no dialect {printable(name)}; it has: {', '.join(known)}"
    raise UsageError(told) if chosen is not None else ConversionError(f"{told}; choose one with --dialect")


def _plan(path: Path, pair: Pair, about: dict[str, Any], origin: Origin, dialect: Dialect) -> "Plan":
    """The plan that would convert the checkpoint again: its entries tell what is to be written.

    Raises:
        ConversionError: the file's configuration makes no model, or the mapping does not fit it.
        ValueError: the dialect has no name or no layout for a tensor, or its library no such network.
    """
    from converter.planning.plan import Match, Plan, build_tf, places_of
    from converter.planning.variables import by_path
    from tf_models.runtime.abstract import abstract
    from tf_models.runtime.weights_format import listed as datasets

    config = about["config"]
    held = len(datasets(path))
    try:
        mapping = mapping_of(pair, config).holding(frozenset(origin.spelled))
        model = abstract(lambda: build_tf(pair, config), 100 + 4 * held)
    except Exception as error:  # whatever a mapping or a model's builder raises on a configuration that is not one
        cause = error.__cause__ if isinstance(error, PairError) else error
        reason = str(error) if isinstance(error, ConversionError) else where_and_what(error)
        raise ConversionError(f"{pair.name} cannot be built with the recorded configuration: {reason}") from cause
    refusal = dialect.refusal(config)
    if refusal:
        raise ValueError(refusal)
    variables = {place: tuple(variable.shape) for place, variable in by_path(model).items()}
    entries = dict(_entries(mapping, model, variables, about, origin, dialect))
    match = Match(Reading(pair, State(origin.key, {}, []), origin.prefix, dialect, entries, config=config), model)
    if match.problems():
        raise ConversionError(f"{pair.name} does not fit the file: {'; '.join(match.problems())}")
    steps = list(_with_ties(match.steps, mapping.shared(), about, origin, dialect))
    return Plan(pair, config, dialect, origin.key, origin.prefix, steps, {}, {}, variables, {}, places_of(pair, model))


def _entries(
    mapping: Mapping,
    model: Any,
    variables: dict[str, tuple[int, ...]],
    about: dict[str, Any],
    origin: Origin,
    dialect: Dialect,
) -> Iterator[tuple[str, Entry]]:
    """(canonical name, tensor) of what the checkpoint is to hold, in the mapping's order.

    Raises:
        ValueError: the dialect has no name or no layout for one.
    """
    from converter.planning.plan import expected_shapes, leaves_of
    from converter.planning.steps import Target

    # An older file does not say what the tensors were; they are what they became.
    usual = origin.dtype if "origin" in about else about["dtype"]
    for names, paths, _, leaf in leaves_of(mapping, dialect, model):
        if leaf.optional and not variables.keys() & set(paths):
            continue
        absent = [path for path in paths if path not in variables]
        if absent:
            raise ConversionError(f"the model has no variable {absent[0]}, which its mapping names")
        if leaf.fold is not None and leaf.fold.back is None:
            raise ConversionError(f"{names[0]} cannot be restored: {leaf.fold.cost}")
        shapes = expected_shapes(leaf, [Target(path, variables[path]) for path in paths])
        for canonical, shape in zip(names, shapes, strict=True):
            name = _name(origin, about, dialect, canonical)
            dtype = origin.dtypes.get(canonical, usual)
            if leaf.fold is not None and dtype in ("float16", "bfloat16"):
                dtype = "float32"  # what is computed anew has digits that a half type does not hold
            yield canonical, Entry(name, shape, dtype, origin.key)


def _with_ties(
    steps: "list[Step]", shared: dict[str, str], about: dict[str, Any], origin: Origin, dialect: Dialect
) -> "Iterator[Step]":
    """The steps, each followed by those for the names under which the checkpoint had one of its tensors too."""
    for step in steps:
        yield step
        for source in step.sources:
            for tied in origin.ties:
                if shared.get(tied) == source.canonical:
                    name = _name(origin, about, dialect, tied)
                    other = replace(source, name=name, entry=replace(source.entry, name=name))
                    yield replace(step, sources=(other,))


def _name(origin: Origin, about: dict[str, Any], dialect: Dialect, canonical: str) -> str:
    """What the tensor is called in the checkpoint to be written.

    Raises:
        ValueError: the dialect has no name for it.
    """
    if dialect.name == about.get("dialect") and canonical in origin.names:
        return origin.names[canonical]
    return origin.prefix + dialect.foreign(canonical)


def _refuse_equal_names(tensors: list[Named], dialect: Dialect) -> None:
    name, count = Counter(one.name for one in tensors).most_common(1)[0]
    if count > 1:
        raise ConversionError(f"{count} tensors are called {printable(name)} in the dialect {dialect.name}")


def _notes(about: dict[str, Any], origin: Origin, output: Path) -> Iterator[str]:
    if "origin" not in about:
        yield (
            "the file is an older converter's: prefix, key and dtypes of the checkpoint are not recorded, nor what the "
            "model does not need"
        )
    if origin.narrowed:
        yield (
            f"{origin.narrowed} tensors lost digits when they were converted to {about['dtype']}, and come back rounded"
        )
    if origin.lost:
        shown = listed(map(printable, fold(origin.lost)), 4)
        yield (
            f"{len(origin.lost)} tensors that the model does not need do not come back, because they have more than "
            f"{SMALL} bytes or could not be read: {shown}"
        )
    if origin.out_of_scope:
        yield f"{origin.out_of_scope} tensors of the checkpoint are not of this model and do not come back"
    for told in origin.merged:
        yield f"the merged weights come back, and not what they were made of: {printable(told, 300)}"
    if origin.unrecorded:
        yield f"too long to be recorded, so they do not come back: {listed(map(printable, origin.unrecorded), 4)}"
    if origin.key and not output.name.endswith(ZIPPED):
        yield f"the tensors stood under the key {printable(origin.key)}; a safetensors file has no keys"


def _arrays(path: Path, plan: "Plan", progress: Progress) -> Generator[np.ndarray, None, None]:
    """Each step's tensor, laid out and typed as it is to be written; every digest is checked."""
    from converter.files.weights_file import dense
    from tf_models.runtime.weights_format import WeightsError, values

    places = {plan.places[target.path]: target.shape for step in plan.steps for target in step.targets}
    scratch = Scratch()
    try:
        with closing(values(path, places)) as found:
            held: tuple[tuple[Target, ...], dict[str, np.ndarray]] = ((), {})
            for step in plan.steps:
                if step.targets != held[0]:  # else it is another name for a tensor of the step before
                    undone = step.undo([next(found) for _ in step.targets])
                    held = step.targets, dict(zip((one.canonical for one in step.sources), undone, strict=True))
                for source in step.sources:
                    result = _typed(dense(held[1][source.canonical], scratch), source.entry.dtype)
                    yield result
                    progress.advance(result.nbytes)
    except WeightsError as error:
        raise ConversionError(str(error)) from None


def _followed(arrays: Iterator[np.ndarray], kept: dict[str, Any]) -> Iterator[np.ndarray]:
    yield from arrays
    for one in kept.values():
        yield one.array()


def _typed(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16" and values.dtype == FLOATS["float32"]:
        bits = values.view(np.uint32)
        if not (bits & 0xFFFF).any():  # it was widened; a conversion would give every NaN the same bits
            return (bits >> 16).astype(np.uint16).view(FLOATS[dtype])
    with np.errstate(all="ignore"):
        return values.astype(FLOATS[dtype], copy=False)


def _prove(
    weights: Path,
    written: Path,
    plan: "Plan",
    tensors: list[Named],
    kept: dict[str, Any],
    dtype: str,
    progress: Progress,
) -> None:
    """Read the checkpoint back with the reader of `convert`: it fills the same variables with the same bits.

    Raises:
        ProofError: it does not.
    """
    from converter.proof.lossless import lossless

    with Checkpoint(written) as checkpoint:
        expected = {one.name: (one.dtype, one.shape) for one in tensors}
        state = checkpoint.states.get(plan.key if written.name.endswith(ZIPPED) else "", {})
        found = {name: (entry.dtype, entry.shape) for name, entry in state.items()}
        if found != expected or len(checkpoint.states) != 1:
            raise ProofError("the names, dtypes or shapes read back are not those that were written")
        again = replace(plan, steps=[_as_written(step, state) for step in plan.steps])
        proof = lossless(weights, again, checkpoint, dtype, progress.advance, restored=True)
        differing = [*proof.differing]
        differing += [name for name, one in kept.items() if checkpoint.read(state[name]).tobytes() != one.values]
        if differing:
            names = listed(map(printable, differing), 5)
            raise ProofError(f"the proof failed, nothing was written: {len(differing)} tensors differ: {names}")


def _as_written(step: "Step", state: dict[str, Entry]) -> "Step":
    """The step of the checkpoint that was read back."""
    return replace(step, sources=tuple(replace(source, entry=state[source.name]) for source in step.sources))
