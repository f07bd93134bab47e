"""`torch.nn.functional.affine_grid`: the sampling grid of an affine map, for `grid_sample`."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_models.ops import checks
from tf_models.ops.precision import opmath

# Length of `size` -> rows and columns of a matrix.
_LAYOUTS = {4: (2, 3), 5: (3, 4)}


@tf.autograph.experimental.do_not_convert
def affine_grid(theta: Any, size: Any, align_corners: bool = False) -> tf.Tensor:
    """Where each output sample lies in the input: output coordinates in [-1, 1], mapped by an affine matrix per batch.

    Args:
        theta: (N, 2, 3), rows x and y, columns x, y, 1; or (N, 3, 4), rows x, y and z, columns x, y, z, 1. float32,
            float64, float16 or bfloat16; half types are computed in float32 and rounded once.
        size: shape of the output tensor, CHANNELS LAST: (N, H, W, C) or (N, D, H, W, C), where torch takes (N, C, H, W)
            or (N, C, D, H, W). Ints or an int32/int64 vector. C is not used; N must be that of `theta`. Sizes may be 0.
        align_corners: True puts -1 and 1 at the centers of the corner samples, False at their outer edges.

    Returns:
        (N, H, W, 2) with (x, y), or (N, D, H, W, 3) with (x, y, z), in the dtype of `theta`. An axis of one sample lies
        at 0. To be given to `grid_sample` with the same `align_corners`.

    Raises:
        ValueError: `theta` or `size` of a wrong rank, shape or dtype.

    Follows `torch.nn.functional.affine_grid`, which refuses empty sizes. Differentiable with respect to `theta`.
    """
    theta = checks.tensor("theta", theta, rank=3)
    align_corners = checks.flag("align_corners", align_corners)
    sizes = _output_shape(size)
    rows, columns = _LAYOUTS[len(sizes)]
    batch = sizes[0] if isinstance(sizes[0], int) else None
    checks.shape("theta", theta, f"N {rows} {columns}", (batch, rows, columns))
    dtype = opmath(theta.dtype)
    spatial = sizes[1:-1]
    coordinates = [tf.cast(_centers(count, align_corners), dtype) for count in spatial]
    points = tf.stack([*reversed(tf.meshgrid(*coordinates, indexing="ij")), tf.ones(spatial, dtype)], axis=-1)
    # (D, H, W, 4) -> (D * H * W, 4): the same points for every matrix
    points = tf.reshape(points, (-1, columns))
    grid = tf.matmul(points, tf.cast(theta, dtype), transpose_b=True)
    # (N, D * H * W, 3) -> (N, D, H, W, 3)
    return tf.cast(tf.reshape(grid, (tf.shape(theta)[0], *spatial, rows)), theta.dtype)


def _output_shape(size: Any) -> Sequence[int | tf.Tensor]:
    shape = getattr(size, "shape", None)  # of a tensor or an array
    count = shape[0] if shape is not None and len(shape) == 1 else 0
    if isinstance(size, (list, tuple, tf.TensorShape)):
        count = len(size)
    if count not in _LAYOUTS:
        raise ValueError(f"size: expected (N, H, W, C) or (N, D, H, W, C), got {size!r}")
    return checks.sizes("size", size, count, 0)


def _centers(count: int | tf.Tensor, align_corners: bool) -> tf.Tensor:
    """Coordinates of the samples of one axis, (count,), float64."""
    steps = 2.0 * tf.cast(tf.range(count), tf.float64) - tf.cast(count - 1, tf.float64)
    return steps / tf.cast(tf.maximum(count - 1 if align_corners else count, 1), tf.float64)
