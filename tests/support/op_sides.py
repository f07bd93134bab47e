"""The same call on both sides, with gradients: functions take and give channels-last arrays."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

from tf_models.ops import compiling


def tf_side(function: Callable[..., Any], arrays: Sequence[np.ndarray], dtype: Any = tf.float64) -> list[np.ndarray]:
    """The output, and the gradients of its sum weighted by `weights_of`, as float64."""
    arguments = [tf.cast(array, dtype) for array in arrays]
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        output = function(*arguments)
    upstream = tf.cast(weights_of(output.shape), dtype)
    gradients = tape.gradient(output, arguments, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    assert all(value.dtype == dtype for value in (output, *gradients))
    return [tf.cast(value, tf.float64).numpy() for value in (output, *gradients)]


def torch_side(
    function: Callable[..., Any], arrays: Sequence[np.ndarray], dtype: Any = torch.float64
) -> list[np.ndarray]:
    arguments = [torch.from_numpy(array).to(dtype).requires_grad_() for array in arrays]
    output = function(*arguments)
    gradients = torch.autograd.grad(output, arguments, torch.from_numpy(weights_of(output.shape)).to(dtype))
    return [value.detach().double().numpy() for value in (output, *gradients)]


def weights_of(shape: Sequence[int]) -> np.ndarray:
    """The gradient that comes from above: any, but the same on both sides, and exact in every precision."""
    return np.random.default_rng(5).integers(-8, 9, tuple(shape)) / 8


def as_precise(arrays: Sequence[np.ndarray], dtype: Any) -> list[np.ndarray]:
    """The arrays rounded to the dtype, so that it holds them exactly."""
    return [torch.from_numpy(array).to(dtype).double().numpy() for array in arrays]


def unwrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ops run as they are written, eagerly: tracing each of many options would take minutes."""
    monkeypatch.setattr(
        compiling.compiled, "__call__", lambda self, *tensors, **options: self.function(*tensors, **options)
    )


def always_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ops compile however small the call."""
    monkeypatch.setattr(compiling, "WORTHWHILE", 0)


def assert_equal_sums(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> None:
    """Equal to 1e-12 of the largest number or of the summands, which are of size one: a sum may come to nothing."""
    for actual, expected in zip(ours, theirs, strict=True):
        atol = 1e-12 * max(np.abs(expected).max(initial=0), 1)
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def second_order(
    function: Callable[..., Any], arrays: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The gradient of a sum over first gradients: by TensorFlow, and by differences of first gradients."""
    rng = np.random.default_rng(6)
    directions = [rng.standard_normal(array.shape) for array in arrays]

    def first(values: Sequence[Any]) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = tf.reduce_sum(function(*values) ** 2)
        return tape.gradient(loss, values)

    values = [tf.constant(array) for array in arrays]
    with tf.GradientTape() as tape:
        tape.watch(values)
        total = tf.add_n([tf.reduce_sum(g * d) for g, d in zip(first(values), directions, strict=True)])
    second = [g.numpy() for g in tape.gradient(total, values)]

    step = 1e-6  # the Hessian is symmetric: its product with the directions is a difference of gradients along them
    ahead, behind = (
        first([tf.constant(a + s * d) for a, d in zip(arrays, directions, strict=True)]) for s in (step, -step)
    )
    return second, [((a - b) / (2 * step)).numpy() for a, b in zip(ahead, behind, strict=True)]


def assert_second_order(function: Callable[..., Any], arrays: Sequence[np.ndarray]) -> None:
    for ours, differences in zip(*second_order(function, arrays), strict=True):
        scale = np.abs(differences).max()
        assert scale > 0.1
        # What central differences of step 1e-6 are good for in float64.
        np.testing.assert_allclose(ours, differences, rtol=0, atol=1e-7 * scale)
