"""The two proofs: that no bit was lost on the way into the file, and that both networks compute the same."""

import inspect
import math
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tensorflow as tf

from converter.checkpoint import Checkpoint
from converter.errors import ConversionError, printable
from converter.kinds import Kind, channels_last
from converter.planning import Plan, Step, build_tf
from converter.report import Comparison, Lossless, Numerical, size
from converter.tensors import FLOATS, Scratch
from converter.torch_process import TorchProcess
from converter.torch_side import Call, Request, Source
from converter.variables import layer_at
from converter.weights_file import THREADS, cast, dense
from tf_models.loading import WeightsError, datasets
from tf_models.loading import stored_dtype as dtype_of

SEED = 20_240_229
_PIECE = 1 << 18  # values
BIG = 50_000_000  # values of a model whose proof is announced with its cost
# For each value: 4 bytes in TensorFlow, 4 in torch and 8 in torch's float64, and what activations and copies take.
_BYTES_EXACT, _BYTES_SINGLE, _BYTES_SPARE = 18, 10, 1 << 30


def lossless(
    path: Path,
    plan: Plan,
    checkpoint: Checkpoint,
    dtype: str | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Lossless:
    """Read the file back, undo the layout, and compare every tensor bit for bit with the checkpoint's.

    `dtype` is what the file must hold (None: what it does hold). Values that were narrowed on the way are compared with
    the checkpoint's, narrowed.

    Raises:
        ConversionError: the file does not hold exactly the model's variables, in shape and dtype.
    """
    home = plan.places
    with h5py.File(path, "r") as file:
        held = dict(datasets(file))
        problems = [f"{name} is not in it" for name, place in home.items() if place not in held]
        problems += [f"{place} is no variable of the model" for place in held if place not in set(home.values())]
        for name, place in home.items():
            dataset = held.get(place)
            if dataset is None:
                continue
            found = dtype_of(dataset)
            if dataset.shape != plan.variables[name]:
                problems.append(f"{name} has shape {dataset.shape}, not {plan.variables[name]}")
            elif found not in FLOATS or (dtype is not None and found != dtype):
                problems.append(f"{name} has dtype {found}")
            elif found != "bfloat16" and "dtype" in dataset.attrs:  # Keras would read it, however long it claims to be
                problems.append(f"{name} is marked with a dtype, as only bfloat16 is")
        if problems:
            raise ConversionError(
                f"{printable(path.name)} does not hold {plan.pair.name}'s variables: {'; '.join(problems[:4])}"
                + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
            )

        scratch = Scratch()

        def same(step: Step) -> tuple[str | None, int]:
            stored = dtype_of(held[home[step.targets[0].path]])
            values = []
            for index, target in enumerate(step.targets):
                values.append(scratch.array(f"stored {index}", target.shape, FLOATS[stored]))
                if values[-1].size:
                    held[home[target.path]].read_direct(values[-1])
            back = dense(step.undo(values), scratch)
            expected, _ = cast(checkpoint.read(step.entry, scratch), stored, step.source)
            equal = back.shape == expected.shape and _equal_bits(back, expected)
            return (None if equal else step.source), expected.nbytes

        differing, nbytes = [], 0
        with ThreadPoolExecutor(THREADS) as pool:
            for wrong, count in pool.map(same, plan.steps):
                nbytes += count
                progress(count)
                if wrong is not None:
                    differing.append(wrong)
    return Lossless(len(plan.steps), nbytes, tuple(differing))


def _equal_bits(some: np.ndarray, other: np.ndarray) -> bool:
    """Compared in pieces, so that what the comparison makes stays in the cache."""
    ours, theirs = (values.reshape(-1).view(f"u{values.dtype.itemsize}") for values in (some, other))
    starts = range(0, ours.size, _PIECE)
    return all(np.array_equal(ours[start : start + _PIECE], theirs[start : start + _PIECE]) for start in starts)


def stored_dtype(path: Path, plan: Plan) -> str:
    """The dtype that every variable in the file has.

    Raises:
        ConversionError: not an HDF5 file, or of several dtypes.
    """
    try:
        with h5py.File(path, "r") as file:
            found = {dtype_of(dataset) for _, dataset in datasets(file)}
    except (OSError, WeightsError):
        raise ConversionError(f"{printable(str(path), 160)} is not a readable HDF5 file") from None
    if len(found) != 1 or not found <= set(FLOATS):
        raise ConversionError(
            f"{printable(str(path), 160)} does not hold {plan.pair.name}'s variables in one float dtype"
        )
    return found.pop()


def request_for(plan: Plan, checkpoint: Checkpoint, dtype: str, full_size: bool = False) -> Request:
    """What the torch side must do to prove `plan`: seeded probe inputs, and the layers to record.

    `full_size` adds probes of the size the model is meant for, where a pair has smaller ones.
    """
    files = {path.name: str(path.resolve()) for path in checkpoint.files}
    table = plan.pair.mapping(plan.config)
    sources = {
        step.canonical: Source(files[step.entry.file], step.entry.key, step.source, plan.dialect.axes(step.canonical))
        for step in plan.steps
    }
    called = {path: kind for path, _, kind in table.modules() if kind.callable_alone}
    probes = [plan.pair.probes]
    if full_size and plan.pair.full_size_probes is not None:
        probes.append(plan.pair.full_size_probes)
    return Request(
        model=plan.pair.name,
        build=plan.pair.build_torch,  # type: ignore[arg-type]
        config=plan.config,
        sources=sources,
        dtype=dtype,
        ignored=set(table.ignored()),
        modules={path: kind.probe_scales for path, kind in called.items()},
        stages=frozenset(path for path, kind in called.items() if kind.stage),
        probes=[probe for make in probes for probe in make(plan.config, np.random.default_rng(SEED))],
        exact=available_memory() > plan.values * _BYTES_EXACT + _BYTES_SPARE,
    )


def cost(plan: Plan, request: Request) -> str:
    """What the numerical proof of `plan` will take, for a person to know beforehand."""
    memory = plan.values * (_BYTES_EXACT if request.exact else _BYTES_SINGLE)
    truth = "float64" if request.exact else "for want of memory float32"
    return (
        f"numerical proof of {plan.values / 1e6:.0f} million values: {count(request)} results of layers and stages,"
        f" {truth} as the truth, about {size(memory)} of memory (--verify lossless leaves it out)"
    )


def count(request: Request) -> int:
    """How many calls of layers are compared."""
    return sum(len(factors) for probe in request.probes for factors in request.recorded(probe).values())


def available_memory() -> float:
    """Bytes that can be had without swapping, or infinity where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            found = re.search(r"MemAvailable:\s*(\d+) kB", file.read())
    except OSError:
        return math.inf
    return int(found[1]) * 1024 if found else math.inf


def numerical(
    path: Path,
    plan: Plan,
    request: Request,
    torch_process: TorchProcess,
    progress: Callable[[int], None] = lambda layers: None,
) -> Numerical:
    """Load the file into a fresh model, and compare its outputs and each of its layers with torch's.

    Each mapped layer is also proven on its own, on the input that torch's module received: outputs alone are nearly
    blind to a layer that is slightly wrong.

    Raises:
        ConversionError: the model does not load the file, or the torch side fails.
    """
    with tf.device("CPU:0"):  # the rule is about float32; a GPU may compute with less
        return _numerical(path, plan, request, torch_process, progress)


def _numerical(
    path: Path, plan: Plan, request: Request, torch_process: TorchProcess, progress: Callable[[int], None]
) -> Numerical:
    model = build_tf(plan.pair, plan.config)
    try:
        model.load_weights(str(path))
    except Exception as error:
        raise ConversionError(
            f"Keras does not load the file: {printable(str(error).partition(chr(10))[0], 160)}"
        ) from None
    kinds = {torch_path: (keras_path, kind) for torch_path, keras_path, kind in modules(plan)}
    outputs: dict[str, Comparison] = {}
    layers: dict[str, Comparison] = {}
    probes = iter(request.probes)
    for answer in torch_process.answers():
        if isinstance(answer, Call):
            keras_path, kind = kinds[answer.path]
            for one in _compared(answer, layer_at(model, keras_path), kind, request.exact):
                _pool(layers, one)
            progress(1)
            continue
        probe = next(probes)
        if answer.outputs is None:
            continue
        first = plan.pair.channels_first
        inputs = {name: channels_last(value) if name in first else value for name, value in probe.inputs.items()}
        results = flat(call_model(model, inputs, probe.options))
        for name, *values in _named(plan.pair.outputs, results, flat(answer.outputs), flat(answer.truth)):
            single, exact = (channels_last(value) if name in first else value for value in values[1:])
            _pool(outputs, _compare(name, values[0], single, exact, request.exact))
    uncalled = tuple(path or "the model's own tensors" for path in kinds if path not in layers)
    return Numerical(tuple(outputs.values()), tuple(layers.values()), uncalled, len(request.probes))


def _compared(call: Call, layer: Any, kind: Kind, exact: bool) -> Iterator[Comparison]:
    """Each result of the layer on the input that torch's received."""
    ours = _called(call.path, layer, kind, call.args, call.kwargs)
    if isinstance(ours, Comparison):
        yield ours
        return
    # torch may return more than Keras does: attention its weights.
    theirs = [flat(kind.arrange(result)) for result in (call.result, call.truth)]
    for result, single, truth in zip(flat(ours), *theirs, strict=False):
        yield replace(_compare(call.path, result, single, truth, exact), suspects=kind.suspects)


def call_model(model: Any, inputs: dict[str, Any], options: dict[str, Any]) -> Any:
    """A Functional model takes all its inputs as one argument, a subclassed one each as its own.

    By name where `call` has the names that torch has, so that some may be left out; else by place.
    """
    values = list(inputs.values())
    if any(base.__name__ == "Functional" for base in type(model).__mro__):
        return model(values if len(values) > 1 else values[0], **options)
    if set(inputs) <= set(inspect.signature(model.call).parameters):
        return model(**inputs, **options)
    return model(*values, **options)


def modules(plan: Plan) -> Iterator[tuple[str, str, Kind]]:
    """(torch path, Keras path, kind) of every module of the plan's mapping."""
    return plan.pair.mapping(plan.config).modules()


def _named(names: tuple[str, ...], *results: tuple) -> Iterator[tuple]:
    count = max(map(len, results))
    names = (*names, *(f"output {i}" for i in range(len(names), count)))[:count]
    if any(len(result) != count for result in results):
        raise ConversionError(f"TensorFlow returns {len(results[0])} outputs, torch {len(results[1])}")
    yield from zip(names, *results, strict=True)


def _called(path: str, layer: Any, kind: Kind, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The layer's result, or a Comparison that says why there is none."""
    try:
        return _call(layer, kind, args, kwargs)
    except Exception as error:  # whatever a user's layer raises on inputs that torch's takes
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if len(lines) > 1 and lines[0].startswith("Exception encountered"):
            lines = lines[1:]  # Keras's frame around what went wrong
        shown = printable(re.sub(r"\x1b\[\d*m", "", lines[0]) if lines else "", 120)
        return Comparison(path, note=f"the TensorFlow layer fails on torch's input ({type(error).__name__}: {shown})")


def _call(layer: Any, kind: Kind, args: tuple, kwargs: dict[str, Any]) -> Any:
    if layer is None:
        return None
    args, kwargs = kind.arrange(args), kind.arrange(kwargs)
    if kind.call is not None:
        return kind.call(layer, *args, **kwargs)
    if kind.stage:
        return layer(*args, **kwargs)  # a stage has torch's parameters, some left out
    return layer(*args, *kwargs.values())


def flat(results: Any) -> tuple:
    """Every array in nested results, in order."""
    if isinstance(results, dict):
        results = tuple(results.values())
    if isinstance(results, (tuple, list)):
        return tuple(part for result in results for part in flat(result))
    return (results,)


def _compare(name: str, ours: Any, torch_result: Any, truth: Any, in_float64: bool = True) -> Comparison:
    """One result on both sides; `in_float64`: the truth is."""
    if ours is None:
        return Comparison(name, note="the TensorFlow model has no layer there")
    result, single, exact = (np.asarray(value, np.float64) for value in (ours, torch_result, truth))
    if result.shape != exact.shape:
        return Comparison(name, note=f"TensorFlow's shape is {result.shape}, torch's {exact.shape}")
    finite = np.isfinite(exact)
    if not np.isfinite(single[finite]).all():
        return Comparison(name, note="torch's own float32 result overflows here, and cannot tell what is allowed")
    if not (np.isfinite(result) == finite).all() or not np.array_equal(result[~finite], exact[~finite], equal_nan=True):
        return Comparison(name, note="TensorFlow and torch are not finite at the same places")
    result, single, exact = result[finite], single[finite], exact[finite]
    return Comparison(
        name,
        error=float(np.abs(result - exact).max(initial=0.0)),
        torch_error=float(np.abs(single - exact).max(initial=0.0)),
        scale=float(np.abs(exact).max(initial=0.0)),
        exact=in_float64,
    )


def _pool(found: dict[str, Comparison], one: Comparison) -> None:
    """Join what several probes show of the same output or layer: a single number may be right by luck on one side."""
    known = found.get(one.name)
    found[one.name] = one if known is None else known.joined(one)
