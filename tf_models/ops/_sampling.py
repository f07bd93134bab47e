"""The gather core: every sampling op is a weighted sum of rows of a matrix.

An image is read as a matrix of pixels, (N*H*W, C). Along each axis a coordinate becomes a few *taps*, pairs of
(pixel, weight): one for nearest, two for linear, four for cubic. A tap of the op is one tap of every axis: its row is
the sum of their pixels times strides, its weight the product of their weights. So one core serves any number of axes.
"""

import functools
import itertools
import operator
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

Tap = tuple[tf.Tensor, tf.Tensor]

# A gradient is a sum of (taps * samples * channels) products for each query. A loop makes this many of them at a time:
# fresh memory costs several times more than the arithmetic.
ROWS_CHUNK = 2**17
WEIGHTS_CHUNK = 2**18

# Loops over so many channels XLA's compiler unrolls whole, and then makes no vectors of them.
_UNROLLED = range(17, 64)


def sizes(value: tf.Tensor) -> list[Any]:
    """The sizes of the axes: ints where they are known, scalar tensors elsewhere."""
    if value.shape.is_fully_defined():
        return value.shape.as_list()
    dynamic = tf.shape(value)
    return [dynamic[axis] if size is None else size for axis, size in enumerate(value.shape)]


def linear_taps(x: tf.Tensor, size: Any) -> list[Tap]:
    """The two pixels around `x` (pixel units); outside [0, size - 1] the weight is zero."""
    floor = tf.floor(x)
    above = x - floor
    # Zero times the fraction: a NaN or infinite coordinate stays NaN, as in torch.
    return [_zero_outside(floor, 1 - above, above * 0, size), _zero_outside(floor + 1, above, above * 0, size)]


def padded_taps(x: tf.Tensor, size: Any, mode: str, padding_mode: str, align_corners: bool, volume: bool) -> list[Tap]:
    """The taps of grid_sample along one axis; `x` in pixels, `volume` where there are three axes.

    Torch's kernel for volumes differs from the one for images in what it makes of NaN: zeros instead of NaN outside,
    and the last pixel instead of the first at a border.
    """
    last = tf.cast(size - 1, x.dtype)

    def resolve(position: tf.Tensor) -> tf.Tensor:
        """Bring a position into [0, size - 1]; no gradient passes from a border or beyond it, as in torch."""
        if padding_mode == "reflection":
            low = 0.0 if align_corners else -0.5
            span = last - 2 * low
            distance = tf.abs(position - low)
            if volume:
                # The very remainder, as in torch: it tells a pixel even where the quotient has no digits left.
                crossed = tf.floor(distance / span)
                distance = tf.math.floormod(distance, span)
                odd = (crossed < 2.0**31) & (tf.math.floormod(crossed, 2.0) == 1)  # torch counts in an int
                position = tf.where(odd, span - distance, distance) + low
            else:
                distance -= tf.floor(distance / (2 * span)) * (2 * span)
                position = tf.minimum(distance, 2 * span - distance) + low
        if volume:
            ends = tf.where(position <= 0, tf.zeros_like(position), last)
        else:
            ends = tf.where(position >= last, last, tf.zeros_like(position))
        return tf.where((position > 0) & (position < last), position, ends)

    def tap(position: tf.Tensor, weight: tf.Tensor, zero: tf.Tensor) -> Tap:
        if padding_mode == "zeros":
            return _zero_outside(position, weight, zero, size)
        return tf.cast(resolve(position), tf.int32), weight

    if mode == "bicubic":
        floor = tf.floor(x)
        above = x - floor
        return [tap(floor + k, weight, above * 0) for k, weight in zip(range(-1, 3), _cubic(above), strict=True)]
    if padding_mode != "zeros":
        x = resolve(x)
    if mode == "nearest":
        nearest = tf.round(x)  # half to even
        return [tap(nearest, tf.ones_like(x), tf.zeros_like(x))]
    floor = tf.floor(x)
    above = x - floor
    zero = tf.zeros_like(x) if volume else above * 0
    # At the last pixel the one above is outside: its weight is zero under every padding.
    return [tap(floor, 1 - above, zero), _zero_outside(floor + 1, above, zero, size)]


def combine(axes: Sequence[Sequence[Tap]], axis_sizes: Sequence[Any], base: Any, stride: Any = 1) -> list[Tap]:
    """The taps of all axes together, slowest axis first: rows `base + stride * position`, products of weights."""
    strides = list(itertools.accumulate(reversed(axis_sizes[1:]), lambda a, b: a * b, initial=stride))[::-1]
    scaled = [[(i * s, w) for i, w in taps] for taps, s in zip(axes, strides, strict=True)]
    # One axis after another, so that what two taps share is computed once.
    combined: list[Tap] = [(base + i, w) for i, w in scaled[0]]
    for taps in scaled[1:]:
        combined = [(i + j, w * v) for i, w in combined for j, v in taps]
    return combined


def weighted_sum(rows: tf.Tensor, taps: Sequence[Tap], samples: int = 1) -> tf.Tensor:
    """Sum of weight * rows[index] over the taps and the samples of each query.

    Args:
        rows: (R, C).
        taps: K pairs of index, int32, and weight, of any shape with Q*T numbers, the T samples of a query together.
        samples: T.

    Returns:
        (Q, C).
    """
    return _weighted_sum(rows, *(tf.reshape(item, (-1, samples)) for tap in taps for item in tap))


@tf.custom_gradient
def _weighted_sum(rows: tf.Tensor, *flat: tf.Tensor) -> Any:
    index, weight = flat[::2], flat[1::2]

    def gradient(upstream: tf.Tensor) -> list[tf.Tensor | None]:  # (Q, C)
        d_rows = _gradient_to_rows(rows, index, weight, upstream)
        d_weight = tf.unstack(_gradient_to_weights(rows, index, upstream), len(weight))
        return [d_rows, *itertools.chain.from_iterable((None, d) for d in d_weight)]

    # One sum of single gathers, which XLA makes one loop of without any temporary.
    single = [[t for tensor in tensors for t in tf.unstack(tensor, axis=1)] for tensors in (index, weight)]
    terms = (tf.gather(rows, i) * w[:, tf.newaxis] for i, w in zip(*single, strict=True))
    return functools.reduce(operator.add, terms), gradient


def _gradient_to_rows(
    rows: tf.Tensor, index: Sequence[tf.Tensor], weight: Sequence[tf.Tensor], upstream: tf.Tensor
) -> tf.Tensor:
    """(R, C); index and weight are K of (Q, T), upstream is (Q, C)."""

    def updates(weight: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
        """What to add to the rows: (K, q, T), (q, C) -> (K*q*T, C)."""
        # The NaN weight of a NaN coordinate belongs to no pixel.
        weight = tf.where(tf.math.is_nan(weight), tf.zeros_like(weight), weight)
        return tf.reshape(weight[..., tf.newaxis] * upstream[:, tf.newaxis], (-1, rows.shape[1] or tf.shape(rows)[1]))

    chunk, chunks = _chunks(ROWS_CHUNK, index, rows)
    if chunks == 1:
        flat = tf.reshape(tf.stack(index), (-1,))
        return tf.math.unsorted_segment_sum(updates(tf.stack(weight), upstream), flat, tf.shape(rows)[0])

    def body(i: tf.Tensor, total: tf.Tensor) -> tuple[Any, ...]:
        start, fresh = _start(i, chunk, upstream.shape[0])
        some_weight = tf.where(fresh[:, tf.newaxis], _slice(weight, start, chunk), tf.zeros((), rows.dtype))
        some = updates(some_weight, tf.slice(upstream, (start, 0), (chunk, rows.shape[1])))
        return i + 1, tf.tensor_scatter_nd_add(total, tf.reshape(_slice(index, start, chunk), (-1, 1)), some)

    return tf.while_loop(lambda i, _: i < chunks, body, (0, tf.zeros_like(rows)), maximum_iterations=chunks)[1]


def _gradient_to_weights(rows: tf.Tensor, index: Sequence[tf.Tensor], upstream: tf.Tensor) -> tf.Tensor:
    """(K, Q, T): the rows there, times upstream (Q, C); index is K of (Q, T)."""
    channels = rows.shape[1]

    def products(index: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
        """(K, q, T), (q, C) -> (K, q, T)"""
        sampled = tf.gather(rows, index)  # (K, q, T, C)
        if channels in _UNROLLED:
            sampled = _at_length(sampled)
        products = sampled * upstream[:, tf.newaxis]
        if channels == 1:
            return products[..., 0]
        # A product with ones and not a sum: XLA has a fast one.
        shape = (-1, channels or tf.shape(rows)[1])
        return tf.reshape(tf.matmul(tf.reshape(products, shape), tf.ones((shape[1], 1), rows.dtype)), tf.shape(index))

    chunk, chunks = _chunks(WEIGHTS_CHUNK, index, rows)
    if chunks == 1:
        return products(tf.stack(index), upstream)

    def body(i: tf.Tensor, parts: tf.TensorArray) -> tuple[Any, ...]:
        start, _ = _start(i, chunk, upstream.shape[0])
        some = products(_slice(index, start, chunk), tf.slice(upstream, (start, 0), (chunk, channels)))
        return i + 1, parts.write(i, some)

    taps, (queries, samples) = len(index), index[0].shape
    parts = tf.TensorArray(rows.dtype, chunks, element_shape=(taps, chunk, samples))
    parts = tf.while_loop(lambda i, _: i < chunks, body, (0, parts), maximum_iterations=chunks)[1].stack()
    # (chunks - 1, K, chunk, T) -> (K, (chunks - 1)*chunk, T)
    whole = tf.reshape(tf.transpose(parts[:-1], (1, 0, 2, 3)), (taps, (chunks - 1) * chunk, samples))
    return tf.concat([whole, parts[-1, :, chunks * chunk - queries :]], 1)


@tf.custom_gradient
def _at_length(x: tf.Tensor) -> Any:
    """`x`, spelled so that a loop over it is too long to be unrolled: a quarter of the time with 32 channels."""
    return tf.abs(x) * tf.sign(x), lambda upstream: upstream


def _chunks(most: int, index: Sequence[tf.Tensor], rows: tf.Tensor) -> tuple[int, int]:
    """How many queries to take at a time, and how often, so that `most` numbers are between; sizes unknown: all."""
    (queries, samples), channels = index[0].shape, rows.shape[1]
    if None in (queries, channels):
        return 0, 1
    chunk = max(1, most // max(1, len(index) * samples * channels))
    return chunk, max(1, -(-queries // chunk))


def _start(i: tf.Tensor, chunk: int, queries: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Where chunk `i` starts, and which of its queries no chunk before had: the last reaches back to be full."""
    start = tf.minimum(i * chunk, queries - chunk)
    return start, start + tf.range(chunk) >= i * chunk


def _slice(tensors: Sequence[tf.Tensor], start: tf.Tensor, chunk: int) -> tf.Tensor:
    """K of (Q, T) -> (K, chunk, T)"""
    return tf.stack([tf.slice(tensor, (start, 0), (chunk, tensor.shape[1])) for tensor in tensors])


def _zero_outside(position: tf.Tensor, weight: tf.Tensor, zero: tf.Tensor, size: Any) -> Tap:
    """A tap whose weight is `zero` unless 0 <= position <= size - 1; the pixel is then any valid one."""
    inside = (position >= 0) & (position <= tf.cast(size - 1, position.dtype))
    weight = tf.where(inside, weight, zero)
    # TensorFlow Lite's converter takes a clip to 0..6 or 0..1 for an activation, which knows no integers.
    if position.dtype == tf.float32 and isinstance(size, int) and size <= 2**22 and size not in (2, 7):
        # Below 2**23, adding it leaves the whole number in the last bits: a fifth of the time of a cast, which XLA
        # guards against every overflow. Elsewhere the bits are any number.
        bits = tf.bitcast(position + 2.0**23, tf.int32) - 0x4B000000
        return tf.clip_by_value(bits, 0, size - 1), weight
    return tf.cast(tf.where(inside, position, tf.zeros_like(position)), tf.int32), weight


def _cubic(t: tf.Tensor) -> list[tf.Tensor]:
    """Weights of the pixels -1, 0, 1, 2 at the fraction t, by the cubic convolution with a = -0.75 (Keys, 1981)."""
    a = -0.75

    def near(d: tf.Tensor) -> tf.Tensor:  # 0 <= d <= 1
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: tf.Tensor) -> tf.Tensor:  # 1 <= d <= 2
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]
