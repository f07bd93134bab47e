"""Export a Keras model to what runs without this package: a SavedModel, or a TensorFlow Lite file.

A model is exported in parts (most have one), each with signatures: functions of named tensors. An axis of an input is a
number, or a name where its length is chosen: unknown in a SavedModel, given when a TensorFlow Lite file is made.
"""

import contextlib
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import tf_models
from tf_models.runtime.blame import where_and_what

DTYPES = ("float32", "float16", "int8-dynamic")
_LITE_LIMIT = 2**31  # bytes of a TensorFlow Lite file, whose offsets are 32-bit numbers with a sign


class ExportError(ValueError):
    """A model cannot be exported as it was asked for: one line that says why."""


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal probe values."""
    return rng.standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True)
class Input:
    """An input of a signature: its shape, of numbers and names of axes; its dtype; and how probe values are drawn."""

    shape: tuple[int | str, ...]
    dtype: str = "float32"
    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray] = normal

    def known(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with the named axes' lengths."""
        return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in self.shape)


@dataclass(frozen=True)
class Signature:
    """A function to export.

    Attributes:
        inputs: by name, in any order.
        call: takes the inputs by name, returns outputs by name.
        sizes: the usual length of each named axis, for TensorFlow Lite and for probes.
        also: other lengths for a second probe where lengths are free; empty if one is enough.
        empty: an output holds no values, which TensorFlow Lite has no tensors for; the signature is left out there.
        signs_of: as `call`, but with numbers where that returns whether they are above zero. A number that is nearly
            zero may end on either side; so it is these that are compared.
    """

    inputs: Mapping[str, Input]
    call: Callable[..., Mapping[str, Any]]
    sizes: Mapping[str, int] = field(default_factory=dict)
    also: Mapping[str, int] = field(default_factory=dict)
    empty: bool = False
    signs_of: Callable[..., Mapping[str, Any]] | None = None

    def probe(self, sizes: Mapping[str, int], seed: int = 0) -> dict[str, np.ndarray]:
        """Seeded inputs of these sizes."""
        rng = np.random.default_rng(seed)
        return {
            name: one.draw(rng, one.known(sizes)).astype(object if one.dtype == "string" else one.dtype)
            for name, one in self.inputs.items()
        }


@dataclass(frozen=True)
class Part:
    """A model, or a part of one, that is exported on its own; `signatures` by name, the first being the usual one."""

    name: str
    model: Any
    signatures: Mapping[str, Signature]

    @property
    def nbytes(self) -> int:
        """Bytes of its weights in float32."""
        return sum(4 * int(np.prod(variable.shape)) for variable in self.model.weights)


def parts(name: str, model: Any) -> list[Part]:
    """The parts of the model that `tf_models.create(name)` built; none where its signatures are not known here."""
    for network in tf_models.networks():
        place = getattr(network, "SIGNATURES", {}).get(name)
        if place is not None:
            module, _, attribute = place.partition(":")
            return getattr(import_module(module), attribute)(model)
    return []


def axes(name: str) -> dict[str, tuple[str, ...]] | None:
    """Names of those parts, and of the axes that each has; nothing is built for it."""
    return next((network.AXES[name] for network in tf_models.networks() if name in getattr(network, "AXES", {})), None)


def by_name_only(name: str) -> tuple[str, ...]:
    """Names of those parts that are exported where they are asked for, as SavedModels only."""
    return next((n.BY_NAME[name] for n in tf_models.networks() if name in getattr(n, "BY_NAME", {})), ())


def save(part: Part, folder: Path | str, dtype: str = "float32", sizes: Mapping[str, int] | None = None) -> None:
    """Write a part as a SavedModel, with named signatures; the first is also `serving_default`.

    Its graphs hold plain TensorFlow ops. `dtype` "float16" stores the weights in half precision; each call computes in
    float32. `sizes` fixes the lengths of named axes; None leaves them free.

    Raises:
        ExportError: the model cannot be traced with these sizes.
    """
    import tensorflow as tf

    from tf_models.ops import jit

    root = tf.Module()
    stored = [variable.value for variable in part.model.weights]
    if dtype == "float16":
        stored = [tf.Variable(tf.cast(value, tf.float16), trainable=False) for value in stored]
    root.stored = stored

    def traced(signature: Signature) -> Any:
        def function(**inputs: Any) -> Mapping[str, Any]:
            values = [tf.cast(value, tf.float32) for value in stored] if dtype == "float16" else None
            with substituted(part.model, values):
                return dict(signature.call(**inputs))

        specs = {
            name: tf.TensorSpec(
                [
                    None if sizes is None and isinstance(axis, str) else n
                    for axis, n in zip(one.shape, known, strict=True)
                ],
                one.dtype,
                name=name,
            )
            for name, one in signature.inputs.items()
            for known in [one.known({**signature.sizes, **(sizes or {})})]
        }
        return tf.function(function, autograph=False).get_concrete_function(**specs)

    with jit(False):
        try:
            functions = {name: traced(signature) for name, signature in part.signatures.items()}
        except Exception as error:  # whatever a model raises on sizes that it cannot take
            raise ExportError(f"{part.name} cannot be traced: {where_and_what(error)}") from error
        if sizes is None:
            functions = {"serving_default": next(iter(functions.values())), **functions}
        tf.saved_model.save(root, str(folder), signatures=functions)


@contextlib.contextmanager
def substituted(model: Any, values: Sequence[Any] | None) -> Iterator[None]:
    """Have the model compute with other values for its weights; None leaves them as they are."""
    if values is None:
        yield
        return
    import keras

    with keras.StatelessScope(state_mapping=list(zip(model.weights, values, strict=True))):
        yield


def lite(part: Part, dtype: str = "float32", sizes: Mapping[str, int] | None = None) -> bytes:
    """A part as a TensorFlow Lite file with the signatures' names, of built-in ops only.

    `sizes` are the lengths of named axes where they are not to be the usual ones. `dtype` "float16" stores the weights
    in half precision; "int8-dynamic" stores those of matrix products and convolutions as 8-bit whole numbers and rounds
    their inputs to such while it runs.

    Signatures with an empty output are left out.

    Raises:
        ExportError: TensorFlow Lite has no such ops, or the file would be too large for it.
    """
    import tensorflow as tf

    if part.nbytes // {"float32": 1, "float16": 2}.get(dtype, 4) >= _LITE_LIMIT:
        raise ExportError(f"{part.name} has more weights than a TensorFlow Lite file holds, 2 GB; take saved_model")
    part = replace(part, signatures={name: one for name, one in part.signatures.items() if not one.empty})
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow announces the successor of this converter
        save(part, folder, sizes=sizes or {})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(part.signatures))
        if dtype != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if dtype == "float16":
            converter.target_spec.supported_types = [tf.float16]
        try:
            return converter.convert()
        except Exception as error:
            missing = re.search(r"(?:TF Select|Custom) ops: ([\w, ]+)", str(error))
            why = f"has no built-in op for {missing[1].strip()}" if missing else f"refuses it: {_first_line(error)}"
            raise ExportError(f"{part.name}: TensorFlow Lite {why}") from None


def runner(path: Path | str, signature: str) -> Callable[..., dict[str, np.ndarray]]:
    """A signature of an exported file or folder, as a function of arrays by name."""
    return runners(path)(signature)


def runners(path: Path | str) -> Callable[[str], Callable[..., dict[str, np.ndarray]]]:
    """`runner` of every signature, by name; the file is read once."""
    import tensorflow as tf

    if Path(path).is_dir():
        loaded = tf.saved_model.load(str(path))

        def saved(signature: str) -> Callable[..., dict[str, np.ndarray]]:
            function = loaded.signatures[signature]

            def run(**inputs: np.ndarray) -> dict[str, np.ndarray]:
                outputs = function(**{name: tf.constant(value) for name, value in inputs.items()})
                return {name: output.numpy() for name, output in outputs.items()}

            run.loaded = loaded  # type: ignore[attr-defined]  # the function holds its variables weakly
            return run

        return saved
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow announces the successor of this interpreter
        return tf.lite.Interpreter(model_path=str(path)).get_signature_runner


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Exception encountered"):
        lines = lines[1:]  # Keras's frame around what went wrong
    return re.sub(r"\x1b\[\d*m", "", lines[0]) if lines else type(error).__name__
