"""Keras layers and models, called with what torch's were called with."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from converter import nested
from converter.blame import where_and_what
from converter.kinds import Kind
from converter.kinds.activations import Axes, arrange
from converter.pairs.pair import Probe
from converter.proof.comparing import numbers
from converter.report import Comparison
from converter.torch_side.answers import Call


def call_on(model: Any, probe: Probe, axes: Axes, **options: Any) -> Any:
    """The model's results on the probe; `axes` are those of torch's inputs that lie otherwise in Keras."""
    if probe.keras is not None:
        args, kwargs = probe.keras
        return model(*args, **kwargs, **options)
    return call_model(model, arrange(probe.inputs, axes), {**probe.options, **options})


def call_model(model: Any, inputs: dict[str, Any], options: dict[str, Any]) -> Any:
    """A Functional model takes all its inputs as one argument, a subclassed one each as its own.

    By name where `call` has the names that torch has, so that some may be left out; else by place.
    """
    values = list(inputs.values())
    if any(base.__name__ == "Functional" for base in type(model).__mro__):
        names = [one.name for one in model.inputs]
        if isinstance(model._inputs_struct, dict) and set(model._inputs_struct) == set(inputs):
            return model(inputs, **options)
        if len(values) > 1 and set(names) == set(inputs):
            values = [inputs[name] for name in names]
        return model(values if len(values) > 1 else values[0], **options)
    args, kwargs = nested.arguments(inputs)
    if set(kwargs) <= set(inspect.signature(model.call).parameters):
        return model(*args, **kwargs, **options)
    return model(*values, **options)


def layer_results(call: Call, layer: Any, kind: Kind) -> Comparison | tuple[Any, Callable[[], list[np.ndarray]]]:
    """The layer's results on torch's input and how to compute them again, or a Comparison that says why there is none.

    Where Keras pads before the layer, or torch did, the input is taken with, or without, that padding: the one whose
    result has torch's shape. That both pad alike is shown by what reaches the layer.
    """
    if layer is None:
        return Comparison(call.path, note="the TensorFlow model has no layer there")
    wanted = [value.shape for value in nested.arrays(kind.returned(call.truth, call.batch_second))]
    first: Any = None
    for args in _inputs(call, kind):
        try:
            with without_activation(layer, kind):
                results = called(layer, kind, args, call.kwargs, call.batch_second)
        except Exception as error:  # whatever a user's layer raises on inputs that torch's takes
            told = Comparison(call.path, note=f"the TensorFlow layer fails on torch's input: {where_and_what(error)}")
            first = told if first is None else first
            continue

        def compute(args: tuple = args) -> list[np.ndarray]:
            with without_activation(layer, kind):
                again = called(layer, kind, args, call.kwargs, call.batch_second)
                return [numbers(value) for value in nested.arrays(again)]

        if [tuple(value.shape) for value in nested.arrays(results)] == wanted:
            return results, compute
        first = (results, compute) if first is None or isinstance(first, Comparison) else first
    return first


def _inputs(call: Call, kind: Kind) -> Iterator[tuple]:
    yield call.args
    if call.padded is not None:
        yield (call.padded, *call.args[1:])
    elif kind.activated and kind.inputs and call.args and isinstance(call.args[0], np.ndarray):
        cut = _without_zeros(call.args[0])
        if cut is not None:
            yield (cut, *call.args[1:])


def _without_zeros(image: np.ndarray) -> np.ndarray | None:
    """(N, C, ...) without the border of zeros that a padding put there, or None where there is none."""
    places = [slice(None), slice(None)]
    for axis in range(2, image.ndim):
        filled = np.flatnonzero(np.any(image != 0, axis=tuple(other for other in range(image.ndim) if other != axis)))
        if not filled.size:
            return None
        places.append(slice(int(filled[0]), int(filled[-1]) + 1))
    cut = image[tuple(places)]
    return None if cut.shape == image.shape else cut


def called(layer: Any, kind: Kind, args: tuple, kwargs: dict[str, Any], batch_second: bool = False) -> Any:
    args, kwargs = kind.given(args, kwargs, batch_second)
    if kind.call is not None:
        return kind.call(layer, *args, **kwargs)
    if kind.stage:
        return layer(*args, **_known(layer, kwargs))
    return layer(*args, *kwargs.values())


def _known(layer: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Torch's keywords without those that ask for nothing (None, False) and that the Keras stage does not have."""
    if all(value is not None and value is not False for value in kwargs.values()):
        return kwargs
    parameters = inspect.signature(getattr(layer, "call", layer)).parameters.values()
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return kwargs
    names = {one.name for one in parameters}
    return {
        name: value for name, value in kwargs.items() if name in names or (value is not None and value is not False)
    }


def activation_of(layer: Any) -> Any:
    """The activation inside a Keras layer, or None where there is none."""
    found = getattr(layer, "activation", None)
    return None if found is None or getattr(found, "__name__", "") == "linear" else found


def activated(activation: Any, result: Any) -> Any:
    return nested.each(lambda part: np.asarray(activation(part)), result)


@contextmanager
def without_activation(layer: Any, kind: Kind) -> Iterator[None]:
    """The layer computes what torch's does, which has its activation apart; that is proven between the layers."""
    import keras

    kept = activation_of(layer) if kind.activated else None
    if kept is None:
        yield
        return
    layer.activation = keras.activations.linear
    try:
        yield
    finally:
        layer.activation = kept
