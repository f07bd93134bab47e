"""A Keras layer beside its torch module, with the same seeded weights: outputs and all gradients, in any precision."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
import torch

from converter import Mapping
from converter.planning.variables import by_path
from tests.support.carrying import laid_out


def tf_results(layer: Any, inputs: list[np.ndarray], upstream: np.ndarray, call: Any = None, **options: Any) -> dict:
    """The output and the gradients to the inputs and to every variable, by its path."""
    tensors = [tf.constant(value, layer.variable_dtype) for value in inputs]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        output = (call or layer)(*tensors, **options)
        loss = tf.reduce_sum(tf.cast(output, tf.float64) * upstream)
    variables = {name: variable.value for name, variable in by_path(layer).items()}
    gradients = tape.gradient(loss, [*tensors, *variables.values()])
    found = {"output": output, **{f"input {i}": g for i, g in enumerate(gradients[: len(tensors)])}}
    found.update(zip(variables, gradients[len(tensors) :], strict=True))
    return {name: np.asarray(tf.cast(value, tf.float64)) for name, value in found.items()}


def torch_results(
    module: torch.nn.Module,
    inputs: list[np.ndarray],
    upstream: np.ndarray,
    layer: Any,
    mapping: Mapping,
    channels_first: bool = False,
    **options: Any,
) -> dict:
    """The same of the torch module, laid out as the layer has it."""
    dtype = next(module.parameters()).dtype
    tensors = [torch.from_numpy(_first(value, channels_first)).to(dtype).requires_grad_() for value in inputs]
    output = module(*tensors, **options)
    loss = (output.double() * torch.from_numpy(_first(upstream, channels_first))).sum()
    gradients = torch.autograd.grad(loss, [*tensors, *module.parameters()])
    found = {"output": _last(output, channels_first)}
    found.update({f"input {i}": _last(g, channels_first) for i, g in enumerate(gradients[: len(tensors)])})
    names = [name for name, _ in module.named_parameters()]
    found.update(
        laid_out(dict(zip(names, (g.double() for g in gradients[len(tensors) :]), strict=True)), layer, mapping)
    )
    return found


def _first(value: np.ndarray, channels_first: bool) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(value, -1, 1)) if channels_first and value.ndim == 4 else value


def _last(value: torch.Tensor, channels_first: bool) -> np.ndarray:
    array = value.detach().double().numpy()
    return np.moveaxis(array, 1, -1) if channels_first and array.ndim == 4 else array


def assert_equal(ours: dict, theirs: dict) -> None:
    """Both in float64: the same to 1e-11 of the largest number."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape, name
        np.testing.assert_allclose(ours[name], expected, rtol=0, atol=1e-11 * np.abs(expected).max(), err_msg=name)


def again(layer: Any) -> Any:
    """The layer made anew of its own configuration, with its weights."""
    made = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(made) is type(layer)
    return made
