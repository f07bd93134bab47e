"""The way back: a weights file becomes the torch checkpoint that it was converted from, or one in another dialect."""

import os
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from converter.api import name_of
from converter.blame import PairError, where_and_what
from converter.checkpoints.checkpoint import Checkpoint
from converter.checkpoints.tensors import Entry, Scratch
from converter.checkpoints.writing import ENDINGS, ZIPPED, Named, write_checkpoint
from converter.errors import ConversionError, ProofError, UsageError, aligned, printable
from converter.files.atomic import NewFile
from converter.naming import fold, listed
from converter.pairs.dialects import CANONICAL, Dialect
from converter.pairs.mapping import Mapping
from converter.pairs.pair import Pair
from converter.pairs.registry import get
from converter.planning.origin import SMALL, Kept, Origin
from converter.planning.reading import Reading, State, mapping_of
from converter.progress import Progress, Silent
from converter.report import size
from tf_models.runtime.saving import FRESH

if TYPE_CHECKING:
    from converter.planning.plan import Plan
    from converter.planning.steps import Step


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
        trained: since when the values are no longer the checkpoint's, or "".
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
    trained: str = ""
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
        if self.trained:
            rows.append(("trained", f"{printable(self.trained, 160)}, so the values are new"))
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
    like: str | os.PathLike | None = None,
    model: str | Pair | None = None,
) -> Restored:
    """Write the torch checkpoint that a weights file came from: the same names, shapes, dtypes and bits.

    Weights that were trained since come back under the same names, in the same order and dtypes, with their new values.
    What cannot come back (other networks' tensors, large ones that the model does not need, digits lost when the file
    was written) is told in the report's notes. The checkpoint is read back and compared before it appears.

    Args:
        path: a `.weights.h5` file that `convert` or `tf_models.save` wrote.
        output: where to write, ending in `.pth`, `.pt`, `.bin` (torch's zip format) or `.safetensors`.
        dialect: whose names and layouts to write; by default those of the checkpoint.
        overwrite: replace an existing output.
        progress: told of each stage.
        like: the converted file that the model was loaded from, where `path` is a file that Keras saved after training.
        model: the pair that the file is of, or its name; by default as the file says.

    Raises:
        UsageError: an unknown model or dialect.
        ProofError: what was written does not give the same weights; nothing is left of it.
        ConversionError: the file is damaged, not a converted one or not of the model of `like`, the dialect cannot hold
            the model's tensors, two variables differ after training that are one tensor in torch, one that no tensor
            fills no longer holds its constant, or the output cannot be written.
    """
    progress, name = progress or Silent(), name_of(model)
    began = time.monotonic()
    path, output = Path(path).expanduser(), Path(output).expanduser()
    original = path if like is None else Path(like).expanduser()
    new = NewFile(output, overwrite, ENDINGS, [path, original])
    from tf_models.runtime.saving import adopt, known_like
    from tf_models.runtime.weights_format import SUFFIX, WeightsError, provenance

    try:
        about = provenance(path) if like is None else known_like(path, original)
        if name not in (None, about["model"]):
            raise ConversionError(f"it holds {printable(about['model'])}, not {printable(str(name))}")
        pair = get(about["model"])
        if about.get("trained") == FRESH:  # only what `create` was given is recorded
            about["config"] = pair.completed(about["config"])
        origin = Origin.from_dict(about.get("origin", {}))
        target = _dialect(pair, dialect, about.get("dialect", CANONICAL.name))
        progress.start("loading TensorFlow", 0)
        plan = _plan(original, pair, about, origin, target)
        items = _items(plan, origin, about, target)
        _refuse_equal_names(items, target)
    except WeightsError as error:
        raise ConversionError(str(error)) from None
    except UsageError:
        raise
    except ValueError as error:
        raise ConversionError(f"{pair.name} cannot be written in the dialect {target.name}: {error}") from None
    except ConversionError as error:
        raise ConversionError(f"{printable(str(path), 160)}: {error}") from error.__cause__
    tensors = [one.tensor for one in items]
    kept = {one.tensor.name: one.kept for one in items if one.kept is not None}
    nbytes = sum(one.nbytes for one in tensors)
    report = Restored(pair.name, path, target.name, origin.key, origin.prefix, output, len(tensors), len(kept), nbytes)
    report.trained = about.get("trained", "")
    report.notes = [*_notes(about, origin, plan, output), *plan.notes]
    with new.written() as temporary, ExitStack() as stack:
        if like is not None:
            path = temporary.with_name("adopted" + SUFFIX)
            adopt(report.source, original, path)
        if plan.constants:
            _check_constants(path, plan)
        progress.start("writing", nbytes)
        arrays = stack.enter_context(closing(_arrays(path, plan, items, progress)))
        if report.trained:
            arrays = stack.enter_context(closing(_shared_alike(arrays, items, origin.shared)))
        write_checkpoint(temporary, origin.key, tensors, arrays)
        progress.start("reading back", nbytes)
        _prove(path, temporary, plan, tensors, kept, about, progress)
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
    from converter.planning.plan import Match, Plan, outline, places_of
    from converter.planning.variables import by_path
    from tf_models.runtime.weights_format import listed as datasets

    config = about["config"]
    held = len(datasets(path))
    try:
        mapping = mapping_of(pair, config).holding(frozenset(origin.spelled))
        if about.get("trained") == FRESH:  # as the reference has it
            origin.ties = [*mapping.shared()]
            origin.lost = [name for name in mapping.ignored() if name not in origin.ties]
        model = outline(pair, config, 100 + 4 * held)
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


@dataclass(frozen=True)
class _Item:
    """A tensor to be written, and where its values are: those of `source`, of a step, or what was recorded."""

    canonical: str
    tensor: Named
    step: "Step | None" = None
    source: str = ""
    kept: Kept | None = None


def _items(plan: "Plan", origin: Origin, about: dict[str, Any], dialect: Dialect) -> list[_Item]:
    """All tensors, in the order in which the checkpoint had them.

    Raises:
        ValueError: the dialect has no name for one.
    """
    tied = {_name(origin, about, dialect, canonical): canonical for canonical in origin.ties}
    items: dict[str, _Item] = {}
    for step in plan.steps:
        for source in step.sources:
            canonical = tied.get(source.name, source.canonical)
            tensor = Named(source.name, source.entry.dtype, source.entry.shape)
            items[canonical] = _Item(canonical, tensor, step, source.canonical)
    for canonical, kept in origin.kept.items():
        tensor = Named(_name(origin, about, dialect, canonical), kept.dtype, kept.shape)
        items[canonical] = _Item(canonical, tensor, kept=kept)
    return [items[canonical] for canonical in origin.ordered(items)]


def _refuse_equal_names(items: list[_Item], dialect: Dialect) -> None:
    name, count = Counter(one.tensor.name for one in items).most_common(1)[0]
    if count > 1:
        raise ConversionError(f"{count} tensors are called {printable(name)} in the dialect {dialect.name}")


def _notes(about: dict[str, Any], origin: Origin, plan: "Plan", output: Path) -> Iterator[str]:
    if "origin" not in about:
        yield (
            "the file is an older converter's: prefix, key and dtypes of the checkpoint are not recorded, nor what the "
            "model does not need"
        )
    if "trained" in about:
        halves = sum(one.entry.dtype in ("float16", "bfloat16") for step in plan.steps for one in step.sources)
        if halves:
            yield f"{halves} tensors are of half precision in the checkpoint, to which their trained values are rounded"
    elif origin.narrowed:
        yield (
            f"{origin.narrowed} tensors lost digits when they were converted to {about['dtype']}, and come back rounded"
        )
    if origin.lost:
        large = f"they have more than {SMALL} bytes or could not be read"
        why = "the model was created and not converted" if about.get("trained") == FRESH else large
        shown = listed(map(printable, fold(origin.lost)), 4)
        count = len(origin.lost)
        yield f"{count} tensors that the model does not need do not come back, because {why}: {shown}"
    if origin.out_of_scope:
        yield f"{origin.out_of_scope} tensors of the checkpoint are not of this model and do not come back"
    for told in origin.merged:
        yield f"the merged weights come back, and not what they were made of: {printable(told, 300)}"
    if origin.unrecorded:
        yield f"too long to be recorded, so they do not come back: {listed(map(printable, origin.unrecorded), 4)}"
    if origin.key and not output.name.endswith(ZIPPED):
        yield f"the tensors stood under the key {printable(origin.key)}; a safetensors file has no keys"


def _arrays(path: Path, plan: "Plan", items: "list[_Item]", progress: Progress) -> Generator[np.ndarray, None, None]:
    """Each tensor, laid out and typed as it is to be written; every digest is checked."""
    from converter.files.weights_file import dense, narrowed
    from tf_models.runtime.weights_format import WeightsError, readable

    places = {plan.places[target.path]: target.shape for step in plan.steps for target in step.targets}
    scratch = Scratch()
    wanted = Counter(one.source for one in items)
    undone: dict[str, np.ndarray] = {}  # what a step gave, until it is written under every name
    try:
        with readable(path, places) as read:
            for one in items:
                if one.step is None:
                    assert one.kept is not None
                    yield one.kept.array()
                    continue
                if one.source not in undone:
                    values = one.step.undo([read(plan.places[target.path]) for target in one.step.targets])
                    undone.update(zip((source.canonical for source in one.step.sources), values, strict=True))
                result = narrowed(dense(undone[one.source], scratch), one.tensor.dtype, one.tensor.name)
                yield result
                wanted[one.source] -= 1
                if not wanted[one.source]:
                    del undone[one.source]
                progress.advance(result.nbytes)
    except WeightsError as error:
        raise ConversionError(str(error)) from None


def _check_constants(path: Path, plan: "Plan") -> None:
    """See that variables without a tensor hold what they held: the checkpoint has no place for anything else, and
    without it would be of a network that computes something else.

    Raises:
        ConversionError: one does not.
    """
    from converter.files.weights_file import laid_out
    from tf_models.runtime.weights_format import WeightsError, readable

    try:
        with readable(path, dict(plan.layout.values())) as read:
            for step in (step for step in plan.steps if step.leaf.constant is not None):
                held = read(plan.places[step.name])
                [wanted], _ = laid_out(step, [], str(held.dtype))
                if not np.array_equal(held, wanted):
                    raise ConversionError(
                        f"{step.name} holds a constant ({plan.constants[step.name]}) for which torch has no tensor, "
                        "and training has changed it; set `trainable = False` on it before training"
                    )
    except WeightsError as error:
        raise ConversionError(str(error)) from None


def _shared_alike(
    arrays: Iterator[np.ndarray], items: "list[_Item]", shared: dict[str, str]
) -> Generator[np.ndarray, None, None]:
    """The same arrays, of which those that are one tensor in torch are seen to be equal.

    Raises:
        ConversionError: two of them differ.
    """
    seen: dict[str, tuple[str, bytes]] = {}
    for one, array in zip(items, arrays, strict=True):
        group = shared.get(one.canonical, one.canonical)
        if group in shared.values():
            now = one.tensor.name, sha256(array.reshape(-1).view(np.uint8).data).digest()
            first = seen.setdefault(group, now)
            if first[1] != now[1]:
                raise ConversionError(
                    f"{printable(first[0])} and {printable(now[0])} are one tensor in torch, and training parted them; "
                    "give both variables the same values, or let the Keras model have one (Row's `tied` in the mapping)"
                )
        yield array


def _prove(
    weights: Path,
    written: Path,
    plan: "Plan",
    tensors: list[Named],
    kept: dict[str, Kept],
    about: dict[str, Any],
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
        if [*found.items()] != [*expected.items()] or len(checkpoint.states) != 1:
            raise ProofError("the names, dtypes or shapes read back are not those that were written")
        again = replace(plan, steps=[_as_written(step, state) for step in plan.steps])
        back: Literal["trained", "restored"] = "trained" if "trained" in about else "restored"
        proof = lossless(weights, again, checkpoint, about["dtype"], progress.advance, back)
        differing = [*proof.differing]
        differing += [name for name, one in kept.items() if checkpoint.read(state[name]).tobytes() != one.values]
        if differing:
            names = listed(map(printable, differing), 5)
            raise ProofError(f"the proof failed, nothing was written: {len(differing)} tensors differ: {names}")


def _as_written(step: "Step", state: dict[str, Entry]) -> "Step":
    """The step of the checkpoint that was read back."""
    return replace(step, sources=tuple(replace(source, entry=state[source.name]) for source in step.sources))
