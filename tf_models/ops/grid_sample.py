"""Sampling an image or a volume at given points."""

import math
from typing import Any

import tensorflow as tf

from tf_models.ops import checks
from tf_models.ops._sampling import combine, padded_taps, sizes, weighted_sum
from tf_models.ops.compiling import compiled
from tf_models.ops.precision import opmath


def grid_sample(
    input: Any,
    grid: Any,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> tf.Tensor:
    """Sample `input` at the points of `grid`, as torch.nn.functional.grid_sample does, channels last.

    Args:
        input: (N, H, W, C), or (N, D, H, W, C); float32, float64, float16 or bfloat16. Halves are computed in float32.
        grid: (N, Ho, Wo, 2) with last axis (x, y), or (N, Do, Ho, Wo, 3) with (x, y, z); dtype of `input`.
            -1 and 1 are the first and last pixel: their centres if `align_corners`, else their outer edges.
        mode: "bilinear" (trilinear for a volume), "nearest" (halves to even), or "bicubic" (images only, a = -0.75).
        padding_mode: what lies outside: "zeros", "border" (the edge pixel), or "reflection".
        align_corners: see `grid`.

    Returns:
        (N, Ho, Wo, C) or (N, Do, Ho, Wo, C), dtype of `input`.

    Raises:
        ValueError: an argument of a wrong rank, shape, dtype or value.
    """
    input = checks.tensor("input", input, rank=(4, 5))
    volume = input.shape.rank == 5
    grid = checks.tensor("grid", grid, rank=input.shape.rank, dtype=input.dtype)
    checks.choice("mode", mode, ("bilinear", "nearest") if volume else ("bilinear", "nearest", "bicubic"))
    checks.choice("padding_mode", padding_mode, ("zeros", "border", "reflection"))
    if volume:
        checks.shape("grid", grid, "N Do Ho Wo 3", (input.shape[0], None, None, None, 3))
    else:
        checks.shape("grid", grid, "N Ho Wo 2", (input.shape[0], None, None, 2))
    checks.non_empty("input", input, range(1, input.shape.rank - 1))
    grid = checks.agree("grid", grid, "N", sizes(input)[:1])
    aligned = checks.flag("align_corners", align_corners)
    return _grid_sample(input, grid, mode=mode, padding_mode=padding_mode, align_corners=aligned)


@compiled
def _grid_sample(input: tf.Tensor, grid: tf.Tensor, *, mode: str, padding_mode: str, align_corners: bool) -> tf.Tensor:
    batch, *spatial, channels = sizes(input)
    points = sizes(grid)[1:-1]
    dtype = opmath(input.dtype)
    axes = []
    coordinates = reversed(tf.unstack(tf.cast(grid, dtype), len(spatial), -1))  # (N, ..., Ho, Wo), x last
    for x, size in zip(coordinates, spatial, strict=True):
        half = tf.cast(size - 1 if align_corners else size, dtype) / 2
        x = (x + 1) * half - (0.0 if align_corners else 0.5)  # from [-1, 1] to pixels
        axes.append(padded_taps(x, size, mode, padding_mode, align_corners, volume=len(spatial) == 3))
    pixels = math.prod(spatial)
    first = tf.reshape(tf.range(batch) * pixels, (-1, *(1 for _ in points)))  # (N, 1, ..., 1)
    rows = tf.reshape(tf.cast(input, dtype), (batch * pixels, channels))  # (N, ..., H, W, C) -> (N*...*H*W, C)
    output = weighted_sum(rows, combine(axes, spatial, first))  # (N*...*Ho*Wo, C)
    return tf.cast(tf.reshape(output, (batch, *points, channels)), input.dtype)
