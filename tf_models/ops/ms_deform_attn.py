"""Attention that looks at a few points of several feature maps."""

from typing import Any

import numpy as np
import tensorflow as tf

from tf_models.ops import checks
from tf_models.ops._sampling import combine, linear_taps, sizes, weighted_sum
from tf_models.ops.compiling import compiled
from tf_models.ops.precision import opmath


def ms_deform_attn(value: Any, spatial_shapes: Any, sampling_locations: Any, attention_weights: Any) -> tf.Tensor:
    """Sum, for each query and head, bilinear samples of all levels, each times its attention weight.

    Args:
        value: (N, S, M, D), the feature maps of L levels, each flattened row by row, one after another: S = sum of H*W;
            M heads of D channels; float32, float64, float16 or bfloat16. Halves are computed in float32.
        spatial_shapes: (L, 2), the (H, W) of each level; ints, or an int32 or int64 tensor.
        sampling_locations: (N, Lq, M, L, P, 2), P points per level as (x, y), where 0 and 1 are the outer edges of the
            map (align_corners=False); outside is zero. Dtype of `value`.
        attention_weights: (N, Lq, M, L, P), dtype of `value`.

    Returns:
        (N, Lq, M*D), dtype of `value`.

    Raises:
        ValueError: an argument of a wrong rank, shape or dtype.

    The core of Deformable DETR (Zhu et al., 2020), after `ms_deform_attn_core_pytorch` of its reference implementation.
    """
    value = checks.tensor("value", value, rank=4)
    locations = checks.tensor("sampling_locations", sampling_locations, rank=6, dtype=value.dtype)
    weights = checks.tensor("attention_weights", attention_weights, rank=5, dtype=value.dtype)
    shapes = checks.tensor("spatial_shapes", spatial_shapes, rank=2, dtype=(tf.int32, tf.int64))
    batch, _, heads, _ = value.shape
    checks.known("sampling_locations", locations, "N Lq M L P 2", (3, 4))
    levels, points = locations.shape[3:5]
    checks.shape("spatial_shapes", shapes, "L 2", (levels, 2))
    checks.shape("sampling_locations", locations, "N Lq M L P 2", (batch, None, heads, None, None, 2))
    checks.shape("attention_weights", weights, "N Lq M L P", (batch, locations.shape[1], heads, levels, points))

    options = {"levels": levels, "points": points}
    known = tf.get_static_value(shapes)
    locations = checks.agree("sampling_locations", locations, "N", sizes(value)[:1])
    weights = checks.agree("attention_weights", weights, "N Lq", sizes(locations)[:2])
    if known is None:  # sizes that only the running graph knows: plain ops
        value = checks.agree("value", value, "N S", (None, tf.reduce_sum(tf.reduce_prod(shapes, axis=1))))
        return _join_heads(_ms_deform_attn.function(value, locations, weights, **options, spatial_shapes=shapes))
    if known.min(initial=1) < 1:
        raise ValueError(f"spatial_shapes: expected sizes of at least 1, got {known.tolist()}")
    checks.shape("value", value, "N S M D", (None, int(np.prod(known, axis=1).sum()), None, None))
    static = tuple(tuple(shape) for shape in known.tolist())
    return _join_heads(_ms_deform_attn(value, locations, weights, **options, spatial_shapes=static))


def _join_heads(output: tf.Tensor) -> tf.Tensor:
    """(N, Lq, M, D) -> (N, Lq, M*D). Not compiled: a loop over M*D would work out the taps for every channel."""
    batch, queries, heads, channels = sizes(output)
    return tf.reshape(output, (batch, queries, heads * channels))


@compiled
def _ms_deform_attn(
    value: tf.Tensor, locations: tf.Tensor, weights: tf.Tensor, *, spatial_shapes: Any, levels: int, points: int
) -> tf.Tensor:
    batch, pixels, heads, channels = sizes(value)
    queries = sizes(locations)[1]
    dtype = opmath(value.dtype)
    samples = levels * points
    if not samples:
        return tf.zeros((batch, queries, heads, channels), value.dtype)
    # One sample after another, each with the size of its level: the ranks stay within what TensorFlow Lite knows.
    height, width = tf.unstack(tf.repeat(tf.cast(spatial_shapes, tf.int32), points, axis=0), axis=1)  # (L*P,)
    start = tf.repeat(tf.cumsum(height[::points] * width[::points], exclusive=True), points)  # (L*P,)
    locations = tf.reshape(tf.cast(locations, dtype), (batch, queries, heads, samples, 2))
    attention = tf.reshape(tf.cast(weights, dtype), (batch, queries, heads, samples))
    x, y = tf.unstack(locations, axis=-1)  # (N, Lq, M, L*P)
    along_x = linear_taps(x * tf.cast(width, dtype) - 0.5, width)
    along_y = linear_taps(y * tf.cast(height, dtype) - 0.5, height)
    weighted_y = [(i, w * attention) for i, w in along_y]
    # A row is one head of one pixel.
    rows = tf.reshape(tf.cast(value, dtype), (batch * pixels * heads, channels))  # (N, S, M, D) -> (N*S*M, D)
    first = tf.reshape(tf.range(batch) * pixels, (-1, 1, 1, 1)) + start  # (N, 1, 1, L*P)
    first = first * heads + tf.range(heads)[:, tf.newaxis]  # (N, 1, M, L*P)
    taps = combine((weighted_y, along_x), (height, width), first, stride=heads)
    output = weighted_sum(rows, taps, samples)  # (N*Lq*M, D)
    return tf.cast(tf.reshape(output, (batch, queries, heads, channels)), value.dtype)
