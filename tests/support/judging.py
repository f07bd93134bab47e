"""What an op has to reach next to its torch original: exact in float64, and in less precision by the proof's rule."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import torch

from tests.support.rule import assert_allowed

# The same dtypes on both sides.
DTYPES = {
    "float64": (tf.float64, torch.float64),
    "float32": (tf.float32, torch.float32),
    "float16": (tf.float16, torch.float16),
    "bfloat16": (tf.bfloat16, torch.bfloat16),
}


def channels_first(value: np.ndarray) -> torch.Tensor:
    """(N, ..., C) -> (N, C, ...), contiguous."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(value, -1, 1)))


def channels_last(value: torch.Tensor | np.ndarray) -> np.ndarray:
    """(N, C, ...) -> (N, ..., C); of a tensor in float64."""
    return np.moveaxis(value.detach().double().numpy() if isinstance(value, torch.Tensor) else value, 1, -1)


def with_gradient(function: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor, upstream: np.ndarray) -> list[np.ndarray]:
    """The output and the gradient with respect to `x`, as float64."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        output = function(x)
    gradient = tape.gradient(output, x, tf.cast(upstream, output.dtype))
    assert output.dtype == x.dtype == gradient.dtype
    return [tf.cast(value, tf.float64).numpy() for value in (output, gradient)]


def torch_with_gradient(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, upstream: torch.Tensor
) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    output = function(x)
    (gradient,) = torch.autograd.grad(output, x, upstream.to(output.dtype))
    return [output, gradient]


def of_every_dtype(values: np.ndarray) -> np.ndarray:
    """The nearest numbers that are the same in every dtype: few digits for bfloat16, no wide range for float16."""
    return values.astype(np.float16).astype(tf.bfloat16.as_numpy_dtype).astype(np.float64)


def assert_exact(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    """Both in float64: equal to 1e-12 of the largest number.

    That is 9000 roundings of it: what a formula makes wrong is larger, and sums of a few hundred terms are nearer.
    """
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * max(np.abs(theirs).max(initial=0), 1e-300))


def assert_near(ours: Sequence[np.ndarray], truth: Callable[[], Sequence[Any]], dtype: str) -> None:
    """As near to the truth, torch's in float64, as an op is that computes half types in float32 and rounds once."""
    assert_allowed(ours, truth, dtype, inside="float32")
