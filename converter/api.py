"""The steps of a conversion in their order: checkpoint, reading, plan, file, proofs."""

import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from converter.atomic import refuse, replacing, undisturbed
from converter.checkpoint import Checkpoint
from converter.errors import ConversionError, ProofError, UsageError, printable
from converter.naming import fold, listed
from converter.origin import Origin
from converter.reading import Ambiguous, Choice, Reading, find_reading
from converter.registry import get
from converter.report import Report
from converter.torch_process import TorchProcess

LEVELS = ("train", "full-size", "full", "lossless", "none")
_NUMERICAL = LEVELS[:3]
DTYPES = ("float32", "float16")


class Progress(Protocol):
    """Told what is being done, and how far it is; see `cli.py` for one that draws a bar."""

    def start(self, stage: str, total: int) -> None: ...
    def advance(self, count: int) -> None: ...
    def say(self, text: str) -> None: ...


class Silent:
    """Tells nobody."""

    def start(self, stage: str, total: int) -> None:
        pass

    def advance(self, count: int) -> None:
        pass

    def say(self, text: str) -> None:
        pass


def convert(
    model: str | None,
    checkpoint: str | os.PathLike,
    output: str | os.PathLike | None = None,
    verify: str = "full",
    overwrite: bool = False,
    options: Mapping[str, Any] | None = None,
    *,
    dtype: str = "float32",
    key: str | None = None,
    scope: str | None = None,
    spelling: str | None = None,
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Convert a torch checkpoint into a Keras weights file, and prove that it is right.

    Args:
        model: a pair's name; None or "auto" recognises it from the checkpoint.
        checkpoint: a `.pth`, `.pt`, `.bin` or `.safetensors` file, a shard index, or a folder that holds one.
        output: where to write, ending in `.weights.h5`; by default `weights/MODEL.weights.h5`.
        verify: "full" (lossless and numerical), "full-size" (with runs at the size a big model is meant for as well),
            "lossless" or "none".
        overwrite: replace an existing output.
        options: what the state dict cannot reveal, by the pair's option names.
        dtype: "float32", or "float16" to write half precision.
        key: which state dict of the file, where several fit: `model_ema`.
        scope: where in a larger network this one is, as `backbone.res5.0`.
        spelling: the checkpoint's dialect, where several layouts fit its names and shapes: `paddle`.
        allow_nonfinite: convert weights that hold NaN or Inf as they are.
        progress: told of each stage.

    Raises:
        UsageError: an unknown model, option or value.
        PlanError: checkpoint and model do not match one to one; every reason is in its `problems`.
        ProofError: the proof failed; nothing was written, and its `report` holds the measurements.
        ConversionError: anything else a user should know; nothing was written.
    """
    _one_of("verify", verify, LEVELS)
    _one_of("dtype", dtype, DTYPES)
    progress = progress or Silent()
    began = time.monotonic()
    with ExitStack() as stack:
        source = stack.enter_context(Checkpoint(checkpoint))
        reading = _read(source, model, options, Choice(key, scope, spelling))
        if output is None:
            output = Path("weights", f"{reading.pair.name}.weights.h5")
        output = Path(output).expanduser()
        refuse(output, overwrite, sources=source.files)
        torch = _torch_process(stack) if verify in _NUMERICAL and reading.fits else None
        hashing = stack.enter_context(ThreadPoolExecutor(1)).submit(source.sha256)
        stack.callback(source.stop)
        progress.start("loading TensorFlow", 0)
        from converter import proof as proofs  # what imports TensorFlow is imported where it is needed
        from converter.numerical import numerical
        from converter.planning import make_plan
        from converter.weights_file import sign, write
        from tf_models.loading import check

        plan = make_plan(source, reading)
        origin = Origin.of(reading, source)
        nbytes = sum(step.nbytes for step in plan.steps)
        with replacing(output, overwrite, sources=source.files) as temporary:
            if torch is not None:
                request = proofs.request_for(plan, source, dtype, verify)
                if plan.values >= proofs.BIG:
                    progress.say(proofs.cost(plan, request))
                torch.ask(request)
            progress.start("writing", nbytes)
            written = write(temporary, plan, source, dtype, allow_nonfinite, progress.advance)
            report = Report(
                model=plan.pair.name,
                config=plan.config,
                source=source.path,
                source_sha256="",
                dialect=plan.dialect.name,
                output=output,
                tensors=plan.tensors,
                variables=len(plan.variables),
                nbytes=written.nbytes,
                dtype=dtype,
                out_of_scope=plan.out_of_scope,
                dropped=plan.dropped,
                narrowed=written.narrowed,
                loss=written.loss,
            )
            if verify != "none":
                progress.start("lossless", nbytes)
                report.lossless = proofs.lossless(temporary, plan, source, dtype, progress.advance)
            if torch is not None:
                progress.start("numerical", proofs.count(request))
                report.numerical = numerical(temporary, plan, request, torch, progress.advance)
            report.source_sha256 = hashing.result()
            if written.nonfinite:
                names = listed([printable(name, 60) for name in written.nonfinite], 3)
                report.notes.append(f"{len(written.nonfinite)} tensors hold NaN or Inf, as allowed: {names}")
            report.notes += [*plan.notes, *source.notes]
            if not report:
                raise ProofError(f"the proof failed, nothing was written: {report.failure()}", report)
            sign(temporary, _provenance(report, origin.to_dict(report.narrowed)), written.digests)
            shapes = {plan.places[name]: shape for name, shape in plan.variables.items()}
            check(temporary, shapes, values=not report.lossless.ran)
            source.check_unchanged()
    report.seconds = time.monotonic() - began
    return report


def plan(
    model: str | None,
    checkpoint: str | os.PathLike,
    options: Mapping[str, Any] | None = None,
    *,
    key: str | None = None,
    scope: str | None = None,
    spelling: str | None = None,
) -> Any:
    """What `convert` would do: a `Plan` with `steps`, `dropped` and `out_of_scope`; `print(plan)` shows a table.

    Raises: as `convert`.
    """
    with Checkpoint(checkpoint) as source:
        reading = _read(source, model, options, Choice(key, scope, spelling))
        from converter.planning import make_plan

        return make_plan(source, reading)


def verify(
    model: str | None,
    checkpoint: str | os.PathLike,
    weights: str | os.PathLike,
    options: Mapping[str, Any] | None = None,
    *,
    level: str = "full",
    key: str | None = None,
    scope: str | None = None,
    spelling: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Prove an existing weights file against its checkpoint; the report is true when every proof passes.

    Options that are not given are taken from the file's own record, and so is the spelling where it must be chosen.

    Raises:
        ConversionError: the file cannot be read, or holds another model or configuration.
    """
    from tf_models.loading import NO_PROVENANCE, WeightsError, provenance

    _one_of("level", level, LEVELS[:4])
    progress = progress or Silent()
    began = time.monotonic()
    weights = Path(weights).expanduser()
    options = dict(options or {})
    with ExitStack() as stack:
        source = stack.enter_context(Checkpoint(checkpoint))
        about: dict[str, Any] = {}
        recorded: dict[str, Any] = {}
        try:
            about = provenance(weights)
            recorded = about["config"]
            if model not in (None, "auto", about["model"]):
                raise ConversionError(
                    f"{printable(str(weights))} holds {printable(about['model'])}, not {printable(model)}"
                )
            model = about["model"]
        except WeightsError as error:
            # A file that Keras saved holds weights as well, only no word about them.
            if NO_PROVENANCE not in str(error):
                raise ConversionError(str(error)) from None
        if model not in (None, "auto"):
            known = get(str(model)).options
            options = {**{name: recorded[name] for name in known if name in recorded}, **options}
        try:
            reading = _read(source, model, options, Choice(key, scope, spelling))
        except Ambiguous:
            if spelling is not None or "dialect" not in about:
                raise
            reading = _read(source, model, options, Choice(key, scope, about["dialect"]))
        torch = _torch_process(stack) if level in _NUMERICAL and reading.fits else None
        hashing = stack.enter_context(ThreadPoolExecutor(1)).submit(source.sha256)
        stack.callback(source.stop)
        progress.start("loading TensorFlow", 0)
        from converter import proof as proofs
        from converter.numerical import numerical
        from converter.planning import make_plan

        plan = make_plan(source, reading)
        if recorded and recorded != plan.config:
            differing = [name for name in plan.config if recorded.get(name) != plan.config[name]]
            raise ConversionError(
                f"{printable(str(weights))} was converted with another configuration: {', '.join(differing)} differ"
            )
        dtype = proofs.stored_dtype(weights, plan)
        report = Report(
            model=plan.pair.name,
            config=plan.config,
            source=source.path,
            source_sha256="",
            dialect=plan.dialect.name,
            output=weights,
            deed="checked",
            tensors=plan.tensors,
            variables=len(plan.variables),
            nbytes=sum(step.nbytes for step in plan.steps),
            dtype=dtype,
            out_of_scope=plan.out_of_scope,
            dropped=plan.dropped,
        )
        if torch is not None:
            request = proofs.request_for(plan, source, dtype, level)
            if plan.values >= proofs.BIG:
                progress.say(proofs.cost(plan, request))
            torch.ask(request)
        progress.start("lossless", sum(step.nbytes for step in plan.steps))
        try:
            report.lossless = proofs.lossless(weights, plan, source, dtype, progress.advance)
        except (WeightsError, OSError) as error:
            raise ConversionError(f"{printable(str(weights))}: {error}") from None
        if torch is not None:
            progress.start("numerical", proofs.count(request))
            report.numerical = numerical(weights, plan, request, torch, progress.advance)
        report.source_sha256 = hashing.result()
        report.notes += [*plan.notes, *source.notes]
        source.check_unchanged()
    report.seconds = time.monotonic() - began
    return report


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
    path = Path(path).expanduser()
    if _is_hdf5(path):
        return _inspect_weights(path)
    with Checkpoint(path) as source:
        several = len(source.states) > 1
        entries = tuple(
            Listed(
                f"{entry.key}.{entry.name}" if several and entry.key else entry.name,
                entry.shape,
                entry.dtype,
                entry.nbytes,
            )
            for entry in source.entries()
        )
        return Inspection(entries, source.container, {}, tuple(source.notes))


def _inspect_weights(path: Path) -> Inspection:
    from tf_models.loading import NO_PROVENANCE, WeightsError, listed, provenance

    notes: tuple[str, ...] = ()
    about: dict[str, Any] = {}
    try:
        entries = tuple(Listed(*row) for row in listed(path))
        try:
            about = provenance(path)
        except WeightsError as error:
            if NO_PROVENANCE not in str(error):
                raise
            notes = ("no provenance: not written by weightbridge",)
    except WeightsError as error:
        raise ConversionError(str(error)) from None
    return Inspection(entries, "keras weights", about, notes)


def _is_hdf5(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return file.read(8) == b"\x89HDF\r\n\x1a\n"
    except OSError:
        return False


def _read(source: Checkpoint, model: str | None, options: Mapping[str, Any] | None, choice: Choice) -> Reading:
    try:
        return find_reading(source, model, dict(options or {}), choice)
    except UsageError:
        raise
    except ConversionError as error:
        told = f"{printable(str(source.path), 160)}: {error}"
        raise (Ambiguous(told) if isinstance(error, Ambiguous) else ConversionError(told)) from error.__cause__


def _torch_process(stack: ExitStack) -> TorchProcess:
    """The torch side's process; a signal neither comes between it and its end, nor between that and its folder's."""
    with undisturbed():
        torch = TorchProcess()
        stack.callback(undisturbed()(torch.close))
    return torch


def _provenance(report: Report, origin: dict[str, Any]) -> dict[str, Any]:
    from tf_models.loading import FORMAT

    return {
        "format": FORMAT,
        "version": version("weightbridge"),
        "model": report.model,
        "config": report.config,
        "source": report.source.name.encode(errors="backslashreplace").decode(),  # it need not be UTF-8
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
