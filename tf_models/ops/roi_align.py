"""`torchvision.ops.roi_align`: features of a box as a small grid of averages, for a channels-last feature map.

A bin averages a grid of bilinear samples. Sample by sample, for all bins of all boxes at once, four rows are gathered
and added up: memory does not grow with the number of samples, which may depend on the boxes. The map from features to
bins is linear: its gradient is the same loop with the rows scattered back, and the gradient of that the first again.
"""

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, NamedTuple

import tensorflow as tf

from tf_models.ops import checks
from tf_models.ops.compiling import compiled
from tf_models.ops.precision import opmath, quotient, rounded

_MOST_SAMPLES = 2.0**31  # per bin, along one axis


class _Side(NamedTuple):
    """The samples of all bins along one axis."""

    start: tf.Tensor  # (K,), where the box begins, in samples of the feature map
    bin_size: tf.Tensor  # (K,)
    count: tf.Tensor  # (K,), samples per bin, float
    bins: int
    extent: tf.Tensor  # size of the feature map, scalar float


@tf.autograph.experimental.do_not_convert
def roi_align(
    input: Any,
    boxes: Any,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> tf.Tensor:
    """Average-pool bilinear samples of a feature map over a grid of bins in each box.

    Args:
        input: (N, H, W, C); float32, float64, float16 or bfloat16. Half types are computed in float32 and rounded once.
        boxes: (K, 5), the index of the batch element and then the corners (x1, y1, x2, y2); or a list of N tensors
            (L, 4), one per batch element. Any of the float dtypes, in which (for half types, in float32) the
            coordinates are computed.
        output_size: (PH, PW), bins per box, or an int for both.
        spatial_scale: samples of the feature map per unit of `boxes`.
        sampling_ratio: samples per bin along each axis; 0 or less takes ceil(box size / bins) for each box, and the
            time is then K times that of the box with the most samples.
        aligned: True shifts boxes by half a sample, so that pixel centers meet, and lets a box be smaller than one.

    Returns:
        (K, PH, PW, C), in the dtype of `input`. Samples more than one beyond the feature map count as zero.

    Raises:
        ValueError: an argument of a wrong rank, shape, dtype or value; in a graph, the batch indices are not checked.

    Follows `torchvision.ops.roi_align`. Differentiable (any order) with respect to `input`; not with respect to
    `boxes`, as in torchvision. Works under `jit_compile=True` with any `sampling_ratio`.
    """
    input = checks.tensor("input", input, rank=4)
    checks.non_empty("input", input, (1, 2))
    rois = _rois(boxes, input)
    bins = checks.integers("output_size", output_size, 2, 1)
    if isinstance(spatial_scale, bool) or not isinstance(spatial_scale, Real):
        raise ValueError(f"spatial_scale: expected a number, got {spatial_scale!r}")
    if isinstance(sampling_ratio, bool) or not isinstance(sampling_ratio, Integral):
        raise ValueError(f"sampling_ratio: expected an int, got {sampling_ratio!r}")
    count = rois.shape[0]
    if tf.executing_eagerly():
        if not tf.reduce_all((rois[:, 0] >= 0) & (rois[:, 0] < input.shape[0])):  # NaN is none either
            raise ValueError(f"boxes: expected the index of a batch element, 0 to {input.shape[0] - 1}, in column 0")
        # The number of boxes changes from call to call: compiled for powers of two, the rest are boxes of nothing.
        rois = tf.pad(rois, [[0, (1 << (count - 1).bit_length()) - count if count else 0], [0, 0]])
    # A batch of one map and all boxes: the boxes of a batch share its map.
    pooled = _roi_align(
        input[None],
        tf.stop_gradient(rois)[None],
        bins=bins,
        spatial_scale=float(spatial_scale),
        sampling_ratio=max(int(sampling_ratio), 0),
        aligned=checks.flag("aligned", aligned),
    )
    return pooled[0, :count]


@compiled
def _roi_align(
    input: tf.Tensor,
    rois: tf.Tensor,
    *,
    bins: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> tf.Tensor:
    """(1, N, H, W, C) and (1, K, 5) -> (1, K, PH, PW, C)."""
    features, rois = tf.cast(input[0], opmath(input.dtype)), tf.cast(rois[0], opmath(rois.dtype))
    # (K, 4): corners x1, y1, x2, y2 in samples of the feature map
    corners = rounded(rois[:, 1:] * tf.constant(spatial_scale, rois.dtype)) - (0.5 if aligned else 0.0)
    x1, y1, x2, y2 = tf.unstack(corners, num=4, axis=1)
    size = tf.shape(features)
    vertical = _side(y1, y2, bins[0], size[1], sampling_ratio, aligned)
    horizontal = _side(x1, x2, bins[1], size[2], sampling_ratio, aligned)
    pooled = _pool(features, tf.cast(rois[:, 0], tf.int32), vertical, horizontal)
    return tf.cast(pooled, input.dtype)[None]


def _rois(boxes: Any, input: tf.Tensor) -> tf.Tensor:
    """(K, 5): the batch index and the corners of each box."""
    if not isinstance(boxes, (list, tuple)):
        rois = checks.tensor("boxes", boxes, rank=2)
        checks.shape("boxes", rois, "K 5", (None, 5))
        return rois
    if input.shape[0] is not None and len(boxes) != input.shape[0]:
        raise ValueError(f"boxes: expected one tensor (L, 4) per batch element, got {len(boxes)} for {input.shape}")
    parts = [checks.tensor("boxes", part, rank=2, dtype=(input.dtype, *checks.FLOATS)) for part in boxes]
    for part in parts:
        checks.shape("boxes", part, "L 4", (None, 4))
        if part.dtype != parts[0].dtype:
            raise ValueError(f"boxes: expected one dtype, got {parts[0].dtype.name} and {part.dtype.name}")
    indexed = [tf.pad(part, [[0, 0], [1, 0]], constant_values=tf.cast(i, part.dtype)) for i, part in enumerate(parts)]
    return tf.concat(indexed, axis=0) if indexed else tf.zeros((0, 5), input.dtype)


def _side(start: tf.Tensor, end: tf.Tensor, bins: int, extent: tf.Tensor, sampling_ratio: int, aligned: bool) -> _Side:
    length = end - start if aligned else tf.maximum(end - start, 1.0)
    bin_size = quotient(length, bins)
    count = tf.fill(tf.shape(start), tf.cast(sampling_ratio, start.dtype))
    if sampling_ratio <= 0:
        # A box without extent, or with one that is no number or that no integer holds, has no samples.
        counted = tf.abs(bin_size) < _MOST_SAMPLES
        count = tf.where(counted, tf.maximum(tf.math.ceil(bin_size), 0.0), tf.zeros_like(bin_size))
    return _Side(start, bin_size, count, bins, tf.cast(extent, start.dtype))


def _corners(side: _Side, index: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Sample `index` of every bin: ((low, weight), (high, weight)), the neighbours along one axis, each (K, bins)."""
    dtype = side.start.dtype
    index = tf.cast(index, dtype)
    first = side.start[:, None] + rounded(tf.range(side.bins, dtype=dtype) * side.bin_size[:, None])
    position = first + quotient((index + 0.5) * side.bin_size, tf.maximum(side.count, 1.0))[:, None]
    sampled = (position >= -1.0) & (position <= side.extent) & (index < side.count[:, None])
    position = tf.clip_by_value(tf.where(sampled, position, tf.zeros_like(position)), 0.0, side.extent - 1.0)
    low = tf.floor(position)
    high = tf.minimum(low + 1.0, side.extent - 1.0)
    # Each sample is one of `count` of which a bin is the average.
    share = tf.cast(sampled, dtype) / tf.maximum(side.count, 1.0)[:, None]
    fraction = position - low
    return (tf.cast(low, tf.int32), (1.0 - fraction) * share), (tf.cast(high, tf.int32), fraction * share)


def _pool(features: tf.Tensor, batch: tf.Tensor, vertical: _Side, horizontal: _Side) -> tf.Tensor:
    """(N, H, W, C) -> (K, PH, PW, C)."""
    size = tf.shape(features)
    height, width, channels = size[1], size[2], size[3]
    boxes = tf.shape(batch)[0]

    def over_samples(step: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor], total: tf.Tensor) -> tf.Tensor:
        """Fold `step(total, rows, weights)` over the samples of a bin and the four neighbours of each."""
        down, across = (tf.reduce_max(tf.concat([side.count, [0.0]], axis=0)) for side in (vertical, horizontal))

        # Two counters: their product need not fit an integer, and TFLite divides none of 64 bits.
        def sample(i: tf.Tensor, j: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            for y, weight_y in _corners(vertical, i):
                for x, weight_x in _corners(horizontal, j):
                    # (K, PH, 1) and (K, 1, PW) -> (K, PH, PW), rows of the (N * H * W, C) view
                    rows = ((batch[:, None] * height + y) * width)[:, :, None] + x[:, None, :]
                    weights = tf.cast(weight_y[:, :, None] * weight_x[:, None, :], total.dtype)
                    total = step(total, rows, weights[..., None])
            last = tf.cast(j + 1, across.dtype) >= across
            return tf.where(last, i + 1, i), tf.where(last, 0, j + 1), total

        def more(i: tf.Tensor, j: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
            return (tf.cast(i, down.dtype) < down) & (across > 0.0)

        return tf.while_loop(more, sample, (tf.constant(0), tf.constant(0), total))[2]

    @tf.custom_gradient
    def gather(features: tf.Tensor) -> Any:
        table = tf.reshape(features, (-1, channels))  # (N, H, W, C) -> (N * H * W, C)
        zeros = tf.zeros((boxes, vertical.bins, horizontal.bins, channels), features.dtype)
        pooled = over_samples(lambda total, rows, weights: total + weights * tf.gather(table, rows), zeros)
        return pooled, lambda upstream: scatter(upstream)

    @tf.custom_gradient
    def scatter(pooled: tf.Tensor) -> Any:
        def add(total: tf.Tensor, rows: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
            return tf.tensor_scatter_nd_add(total, rows[..., None], weights * pooled)

        zeros = tf.zeros((size[0] * height * width, channels), pooled.dtype)
        features = tf.reshape(over_samples(add, zeros), size)  # (N * H * W, C) -> (N, H, W, C)
        return features, lambda upstream: gather(upstream)

    return gather(features)
