"""The steps of a conversion in their order: checkpoint, reading, plan, file, proofs."""

import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from converter.checkpoints.checkpoint import Checkpoint
from converter.checkpoints.hub import is_address
from converter.checkpoints.ignoring import ignore as pass_over
from converter.checkpoints.lora import merge_lora as merge
from converter.errors import ConversionError, ProofError, UsageError, printable
from converter.files.atomic import NewFile, undisturbed
from converter.naming import fold, listed
from converter.pairs import registry
from converter.pairs.pair import Pair
from converter.planning.choosing import Ambiguous, Choice, find_reading
from converter.planning.intruders import intruders, refuse_intruders
from converter.planning.origin import Origin
from converter.planning.reading import Reading
from converter.progress import Progress, Silent
from converter.report import Report
from converter.torch_side.process import TorchProcess, check_torch
from tf_models.runtime.mistaken import kind

if TYPE_CHECKING:
    from converter.planning.plan import Plan

LEVELS = ("train", "full-size", "full", "lossless", "none")
_NUMERICAL = LEVELS[:3]
DTYPES = ("float32", "float16")


def register(pair: Pair) -> Pair:
    """Make a pair known by its name, to `convert` as to `tf_models.load` and `create`, and by those of its variants.

    It takes the place of the pair that was known by its name, and of that one's variants.

    Raises:
        UsageError: a name is a built-in one's, or another pair's.
    """
    import tf_models
    import torch_refs

    before = registry.registered(pair.name)
    registry.register(pair)
    for side, builder in ((tf_models, "build_tf"), (torch_refs, "build_torch")):
        if before is not None and getattr(before, builder) is not None:
            for name in before.names:
                side.forget(name)
        if getattr(pair, builder) is not None:
            for name in pair.names:
                side.register(name, getattr(pair, builder))
    return pair


def name_of(model: str | Pair | None) -> str | None:
    """The model's name; a pair is registered, and known by its name from then on.

    Raises:
        UsageError: the pair's name is a built-in one's.
    """
    return register(model).name if isinstance(model, Pair) else model


def convert(
    model: str | Pair | None,
    checkpoint: str | os.PathLike,
    output: str | os.PathLike | None = None,
    verify: str = "full",
    overwrite: bool = False,
    options: Mapping[str, Any] | None = None,
    *,
    dtype: str = "float32",
    key: str | None = None,
    scope: str | None = None,
    dialect: str | None = None,
    ignore: Sequence[str] = (),
    allow_nonfinite: bool = False,
    merge_lora: bool | float = False,
    progress: Progress | None = None,
) -> Report:
    """Convert a torch checkpoint into a Keras weights file, and prove that it is right.

    Args:
        model: a pair or its name; None or "auto" recognises it from the checkpoint.
        checkpoint: a `.pth`, `.pt`, `.bin` or `.safetensors` file, a shard index, a folder that holds one, or the
            address of one on the Hugging Face Hub, `hf://ORGANISATION/NAME[@REVISION][/FILE]`.
        output: where to write, ending in `.weights.h5`; by default `weights/MODEL.weights.h5`.
        verify: "full" (lossless and numerical), "full-size" (with runs at the size a big model is meant for as well),
            "train" (with gradients, moving statistics and three steps as well), "lossless" or "none".
        overwrite: replace an existing output.
        options: what the state dict cannot reveal, by the pair's option names.
        dtype: "float32", or "float16" to write half precision.
        key: which state dict of the file, where several fit: `model_ema`.
        scope: where in a larger network this one is, as `backbone.res5.0`; it is searched for where it is not given.
            "" is the whole state dict.
        dialect: the checkpoint's dialect, where several layouts fit its names and shapes: `paddle`.
        ignore: names of tensors that are passed over, with `*` and `?` as in file names: `loss_fn.*`.
        allow_nonfinite: convert weights that hold NaN or Inf as they are.
        merge_lora: add what LoRA learnt to the kernels; a number is its scale (alpha / r), where nothing else tells it.
        progress: told of each stage.

    Raises:
        UsageError: an unknown model, option or value.
        PlanError: checkpoint and model do not match one to one; every reason is in its `problems`.
        ProofError: the proof failed; nothing was written, and its `report` holds the measurements.
        ConversionError: anything else a user should know; nothing was written.
    """
    _one_of("verify", verify, LEVELS)
    _one_of("dtype", dtype, DTYPES)
    if verify in _NUMERICAL:
        check_torch("--verify lossless")
    progress, name = progress or Silent(), name_of(model)
    began = time.monotonic()
    with _Session(checkpoint, progress) as session:
        pass_over(session.source, ignore, key)
        merge(session.source, merge_lora, key)
        source, reading = session.source, session.read(name, options, Choice(key, scope, dialect))
        output = Path(output or Path("weights", f"{reading.pair.name}.weights.h5")).expanduser()
        new = NewFile(output, overwrite, sources=source.files)
        plan = session.plan(reading, verify)
        from converter.files.weights_file import sign, write  # what imports TensorFlow is imported where it is needed
        from tf_models.runtime.weights_format import check

        origin = Origin.of(reading, source, ignore)
        with new.written() as temporary:
            session.ask(plan, dtype, verify)
            progress.start("writing", plan.nbytes)
            written = write(temporary, plan.steps, plan.layout, source, dtype, allow_nonfinite, progress.advance)
            report = session.report(plan, output, dtype)
            report.nbytes, report.narrowed, report.loss = written.nbytes, written.narrowed, written.loss
            session.prove(report, plan, temporary, verify, dtype)
            if written.nonfinite:
                names = listed([printable(name, 60) for name in written.nonfinite], 3)
                report.notes.insert(0, f"{len(written.nonfinite)} tensors hold NaN or Inf, as allowed: {names}")
            if not report:
                raise ProofError(f"the proof failed, nothing was written: {report.failure()}", report)
            sign(temporary, _provenance(report, origin.to_dict(report.narrowed)), written.digests)
            check(temporary, dict(plan.layout.values()), values=not report.lossless.ran)
            source.check_unchanged()
    report.seconds = time.monotonic() - began
    return report


def plan(
    model: str | Pair | None,
    checkpoint: str | os.PathLike,
    options: Mapping[str, Any] | None = None,
    *,
    key: str | None = None,
    scope: str | None = None,
    dialect: str | None = None,
    ignore: Sequence[str] = (),
    merge_lora: bool | float = False,
) -> Any:
    """What `convert` would do: a `Plan` with `steps`, `dropped` and `out_of_scope`; `print(plan)` shows a table.

    Raises: as `convert`.
    """
    name = name_of(model)
    with Checkpoint(checkpoint) as source:
        pass_over(source, ignore, key)
        merge(source, merge_lora, key)
        reading = _read(source, name, options, Choice(key, scope, dialect))
        from converter.planning.plan import make_plan

        return make_plan(source, reading)


def verify(
    model: str | Pair | None,
    checkpoint: str | os.PathLike,
    weights: str | os.PathLike,
    options: Mapping[str, Any] | None = None,
    *,
    level: str = "full",
    key: str | None = None,
    scope: str | None = None,
    dialect: str | None = None,
    ignore: Sequence[str] = (),
    merge_lora: bool | float = False,
    progress: Progress | None = None,
) -> Report:
    """Prove an existing weights file against its checkpoint; the report is true when every proof passes.

    Options that are not given are taken from the file's own record, and so is the dialect where it must be chosen.

    Raises:
        ConversionError: the file cannot be read, or holds another model or configuration.
    """
    from tf_models.runtime.saving import FRESH
    from tf_models.runtime.weights_format import NoProvenance, WeightsError, provenance

    _one_of("level", level, LEVELS[:4])
    if kind(checkpoint) == "weights" and kind(weights) == "checkpoint":
        swapped = " ".join(shlex.quote(printable(str(one), 100)) for one in (weights, checkpoint))
        raise UsageError(f"the checkpoint comes first, and then the weights: weightbridge verify {swapped}")
    if level in _NUMERICAL:
        check_torch("--level lossless")
    progress, name = progress or Silent(), name_of(model)
    began = time.monotonic()
    weights = Path(weights).expanduser()
    with _Session(checkpoint, progress) as session:
        about: dict[str, Any] = {}
        recorded: dict[str, Any] = {}
        try:
            about = provenance(weights)
            recorded = about["config"]
            if name not in (None, "auto", about["model"]):
                raise ConversionError(
                    f"{printable(str(weights))} holds {printable(about['model'])}, not {printable(name)}"
                )
            name = about["model"]
        except NoProvenance:
            pass  # a file that Keras saved holds weights as well, only no word about them
        except WeightsError as error:
            raise ConversionError(str(error)) from None
        known = () if name in (None, "auto") else registry.get(str(name)).options
        held = {name: recorded[name] for name in known if name in recorded}
        pass_over(session.source, ignore or Origin.from_dict(about.get("origin", {})).ignored, key)
        merge(session.source, merge_lora, key)
        try:
            reading = session.read(name, options, Choice(key, scope, dialect), held)
        except Ambiguous:
            if dialect is not None or "dialect" not in about:
                raise
            reading = session.read(name, options, Choice(key, scope, about["dialect"]), held)
        plan = session.plan(reading, level)
        if about.get("trained") == FRESH:
            recorded = plan.pair.completed(recorded)
        if recorded and recorded != plan.config:
            differing = [name for name in plan.config if recorded.get(name) != plan.config[name]]
            raise ConversionError(
                f"{printable(str(weights))} was converted with another configuration: {', '.join(differing)} differ"
            )
        from converter.proof.lossless import stored_dtype

        dtype = stored_dtype(weights, plan)
        report = session.report(plan, weights, dtype)
        report.action, report.trained = "checked", about.get("trained", "")
        if not report.trained:
            session.ask(plan, dtype, level)
        try:
            session.prove(report, plan, weights, level, dtype)
        except (WeightsError, OSError) as error:
            raise ConversionError(f"{printable(str(weights))}: {error}") from None
        session.source.check_unchanged()
    report.seconds = time.monotonic() - began
    return report


class _Session(ExitStack):
    """What `convert` and `verify` have in common: the checkpoint's reading and plan, torch's side, and the proofs."""

    def __init__(self, checkpoint: str | os.PathLike, progress: Progress):
        super().__init__()
        self.source = self.enter_context(Checkpoint(checkpoint, progress=progress))
        self._progress = progress
        self._torch: TorchProcess | None = None
        self._question: Any = None
        self._hashing: Future[str] | None = None

    def read(
        self,
        model: str | None,
        options: Mapping[str, Any] | None,
        choice: Choice,
        recorded: dict[str, Any] | None = None,
    ) -> Reading:
        """The checkpoint as the model's network."""
        return _read(self.source, model, options, choice, recorded)

    def plan(self, reading: Reading, level: str) -> "Plan":
        """The plan; meanwhile torch's process starts, if the level wants it, and the file's digest is computed."""
        if level in _NUMERICAL and reading.fits:
            # A signal neither comes between the process and its end, nor between that and its folder's.
            with undisturbed():
                self._torch = TorchProcess()
                self.callback(undisturbed()(self._torch.close))
        self._hashing = self.enter_context(ThreadPoolExecutor(1)).submit(self.source.sha256)
        self.callback(self.source.stop)
        if level == "train" and "tensorflow" not in sys.modules:
            # TensorFlow 2.21's oneDNN writes out of bounds in the gradient of a 1x1 convolution with stride 2.
            os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
        self._progress.start("loading TensorFlow", 0)
        from converter.planning.plan import make_plan

        return make_plan(self.source, reading)

    def ask(self, plan: "Plan", dtype: str, level: str) -> None:
        """Let torch's side begin with the numerical proof."""
        if self._torch is not None:
            from converter.proof import asking

            self._question = asking.question_for(plan, self.source, dtype, level)
            if plan.values >= asking.BIG:
                self._progress.say(asking.cost(plan, self._question))
            self._torch.ask(self._question)

    def report(self, plan: "Plan", output: Path, dtype: str) -> Report:
        """What there is to say before the proofs."""
        return Report(
            model=plan.pair.name,
            config=plan.config,
            source=self.source.address or self.source.path,
            source_sha256="",
            dialect=plan.dialect.name,
            scope=plan.scope,
            key=plan.key,
            beside=[key for key in self.source.states if key != plan.key],
            output=output,
            tensors=plan.tensors,
            variables=len(plan.variables),
            nbytes=plan.nbytes,
            dtype=dtype,
            out_of_scope=plan.out_of_scope,
            dropped=plan.dropped,
            folded=plan.folded,
            constants=plan.constants,
            notes=plan.taken,
            plan=plan,
        )

    def prove(self, report: Report, plan: "Plan", weights: Path, level: str, dtype: str) -> None:
        """Run the proofs of this level on a weights file, and complete the report.

        Of trained weights nothing more is asked once they are another checkpoint's.
        """
        from converter.proof import asking
        from converter.proof.lossless import lossless
        from converter.proof.numerical import numerical

        if level != "none":
            self._progress.start("lossless", plan.nbytes)
            back: Literal["", "restored"] = "restored" if report.trained else ""  # the checkpoint may be made of it
            report.lossless = lossless(weights, plan, self.source, dtype, self._progress.advance, back)
        if self._torch is not None and not (report.trained and not report.lossless):
            if self._question is None:
                self.ask(plan, dtype, level)
            self._progress.start("numerical", asking.count(self._question))
            report.numerical = numerical(weights, plan, self._question, self._torch, self._progress.advance)
        assert self._hashing is not None
        report.source_sha256 = self._hashing.result()
        report.notes += self.source.notes


@dataclass(frozen=True)
class Listed:
    """One tensor of a file: its name, shape, dtype (torch's word) and bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class Inspection:
    """What a file holds: a sequence of `Listed`, the container's name, and a converted file's provenance."""

    entries: tuple[Listed, ...]
    container: str
    provenance: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Listed]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Listed:
        return self.entries[index]


def inspect(path: str | os.PathLike) -> Inspection:
    """Names, shapes, dtypes and bytes of everything in a checkpoint or a weights file; no value is read.

    Raises:
        ConversionError: it is neither.
    """
    if not is_address(path) and kind(Path(path).expanduser()) == "weights":
        return _inspect_weights(Path(path).expanduser())
    with Checkpoint(path, named=False) as source:
        several = len(source.states) > 1
        entries = tuple(
            Listed(
                f"{entry.key}.{entry.name}" if several and entry.key else entry.name,
                entry.shape,
                entry.dtype,
                entry.nbytes,
            )
            for entry in (*source.entries(), *source.bare)
        )
        unlisted = [f"not listed: {told}" for told in source.unlisted]
        return Inspection(entries, source.container, {}, (*source.notes, *unlisted))


def _inspect_weights(path: Path) -> Inspection:
    from tf_models.runtime.weights_format import NoProvenance, WeightsError, listed, provenance

    notes: tuple[str, ...] = ()
    about: dict[str, Any] = {}
    try:
        entries = tuple(Listed(*row) for row in listed(path))
        try:
            about = provenance(path)
        except NoProvenance:
            notes = (
                "no provenance: not written by weightbridge; --like ORIGINAL and tf_models.load(path, like=) take what "
                "Keras saved after training, and tf_models.save writes a file that needs no such word",
            )
    except WeightsError as error:
        raise ConversionError(str(error)) from None
    return Inspection(entries, "keras weights", about, notes)


def _read(
    source: Checkpoint,
    model: str | None,
    options: Mapping[str, Any] | None,
    choice: Choice,
    recorded: dict[str, Any] | None = None,
) -> Reading:
    try:
        reading = find_reading(source, model, dict(options or {}), choice, recorded)
        refuse_intruders(source, reading)
        return reading
    except UsageError:
        raise
    except ConversionError as error:
        among = next(intruders(source), None)
        first = f"{among}; " if among and among not in str(error) else ""
        told = f"{printable(source.address or str(source.path), 160)}: {first}{error}"
        if isinstance(error, Ambiguous):
            raise Ambiguous(told, error.choices) from error.__cause__
        raise ConversionError(told) from error.__cause__


def _provenance(report: Report, origin: dict[str, Any]) -> dict[str, Any]:
    from tf_models.runtime.weights_format import FORMAT

    source = report.source if isinstance(report.source, str) else report.source.name
    return {
        "format": FORMAT,
        "version": version("weightbridge"),
        "model": report.model,
        "config": report.config,
        "source": source.encode(errors="backslashreplace").decode(),  # it need not be UTF-8
        "source_sha256": report.source_sha256,
        "dialect": report.dialect,
        "dtype": report.dtype,
        "origin": origin,
        "proof": _proven(report),
    }


def _proven(report: Report) -> dict[str, Any]:
    """What the file says was shown of it: `level` is the highest that was passed with nothing left unproven."""
    from importlib.metadata import version

    lossless, numerical = report.lossless, report.numerical
    level = "full" if numerical.full else "partial" if numerical else "lossless" if lossless else "none"
    if numerical.full and numerical.trained:
        level = "train"
    found: dict[str, Any] = {"level": level, "lossless": bool(lossless)}
    if numerical.ran:
        found |= {
            "layers": len(numerical.layers),
            "between": len(numerical.between),
            "outputs": len(numerical.outputs),
            "trained": len(numerical.trained),
            "worst": float(f"{numerical.worst:.2g}"),
            "unproven": [*fold(numerical.unproven)][:50],
            "versions": {name: version(name) for name in ("torch", "tensorflow", "keras", "numpy")},
        }
    found["numerical"] = {
        one.name: {"error": float(f"{one.error:.1e}"), "allowed": float(f"{one.allowed:.1e}")}
        for one in numerical.outputs
    }
    return found


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{name} is one of {', '.join(known)}, not {printable(value)}")
