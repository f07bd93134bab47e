"""`torch.nn.functional.interpolate`, channels last: every mode is a table of taps per axis, gathered and summed.

An axis of `size_in` samples becomes one of `size_out` by a table of indices (size_out, T) and weights (size_out, T).
Tables are computed in float64, so a result carries only the rounding of its sum. Where both sizes are known, a table is
computed once and is a constant in any graph; else the same code computes it in the graph.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_models.ops import checks
from tf_models.ops._sampling import sizes
from tf_models.ops.compiling import compiled
from tf_models.ops.precision import opmath, quotient

Size = Any  # int, or a scalar int32 tensor where it is known only when the graph runs

_RANKS = {
    "nearest": (3, 4, 5),
    "nearest-exact": (3, 4, 5),
    "area": (3, 4, 5),
    "linear": (3,),
    "bilinear": (4,),
    "bicubic": (4,),
    "trilinear": (5,),
}
_LAYOUTS = {3: "(N, L, C)", 4: "(N, H, W, C)", 5: "(N, D, H, W, C)"}
# Up to so many taps are gathered one by one, which is fastest; more are gathered at once, which keeps the graph small.
_UNROLLED_TAPS = 16
# torch chooses its index arithmetic for 2-D nearest by the height and width of the output, together.
_SMALL_OUTPUT = 128


class _Taps(NamedTuple):
    """Output o of an axis is sum over t of weights[o, t] * input[indices[o, t]]."""

    indices: Any  # (size_out, T), int32
    weights: Any  # (size_out, T), float64


class _Axis(NamedTuple):
    """One axis to resample."""

    size_in: Size
    size_out: Size
    scale: float | None  # the caller's scale factor where coordinates are computed with it
    align_corners: bool
    small: Any  # bool, or a scalar tensor: whether the output is small in the sense of `_nearest_taps`

    @property
    def static(self) -> bool:
        return all(isinstance(size, int) for size in (self.size_in, self.size_out)) and isinstance(self.small, bool)

    @property
    def unchanged(self) -> bool:
        return self.static and self.size_in == self.size_out and self.scale is None


@tf.autograph.experimental.do_not_convert
def interpolate(
    input: Any,
    size: Any = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    antialias: bool = False,
    recompute_scale_factor: bool | None = None,
) -> tf.Tensor:
    """Resample the spatial axes of a tensor to a size or by a scale factor.

    Args:
        input: (N, L, C), (N, H, W, C) or (N, D, H, W, C), N may be 0; float32, float64, float16 or bfloat16, and uint8
            for nearest, nearest-exact, bilinear and bicubic. Half types are computed in float32 and rounded once.
        size: output size in samples: an int for all spatial axes, or one per axis in the order of `input`; ints or
            int32/int64 tensors (a scalar, a vector, or a sequence of scalars), at least 1 (area: at least 0).
        scale_factor: output size over input size, one for all or one per spatial axis; the output size is
            floor(input size * scale factor). Exactly one of `size` and `scale_factor` is given.
        mode: nearest, nearest-exact, area (any rank); linear (rank 3); bilinear, bicubic (rank 4); trilinear (rank 5).
        align_corners: for the linear modes and bicubic only: align the centers of the corner samples instead of their
            outer edges. None means False.
        antialias: for bilinear and bicubic only: widen the filter when shrinking, as Pillow does.
        recompute_scale_factor: True computes coordinates from the sizes and not from `scale_factor`.

    Returns:
        The dtype and layout of `input`, with the new spatial sizes. uint8 is resampled in fixed point, as torch does.

    Raises:
        ValueError: an argument of a wrong rank, dtype or value, or a combination which torch refuses.

    Follows `torch.nn.functional.interpolate` on a contiguous CPU tensor. Differentiable with respect to `input`; the
    gradient is always the transpose of the forward pass.
    """
    checks.choice("mode", mode, tuple(_RANKS))
    input = checks.tensor("input", input, rank=_RANKS[mode], dtype=_dtypes(mode))
    if 0 in input.shape[1:-1]:
        raise ValueError(f"input: expected {_LAYOUTS[len(input.shape)]} with no empty spatial axis, got {input.shape}")
    if align_corners is not None and mode in ("nearest", "nearest-exact", "area"):
        raise ValueError(f"align_corners: expected None for mode {mode!r}, got {align_corners!r}")
    if antialias and mode not in ("bilinear", "bicubic"):
        raise ValueError(f"antialias: expected mode 'bilinear' or 'bicubic' with it, got {mode!r}")
    if (size is None) == (scale_factor is None):
        raise ValueError(f"size, scale_factor: expected exactly one of the two, got {size!r} and {scale_factor!r}")
    if recompute_scale_factor and scale_factor is None:
        raise ValueError("recompute_scale_factor: expected a scale_factor with it, got an explicit size")
    spatial = input.shape[1:-1].as_list()
    options: dict[str, Any] = {
        "size": None if size is None else checks.sizes("size", size, len(spatial), 0 if mode == "area" else 1),
        "scale_factor": None if scale_factor is None else _scale_factors(scale_factor, spatial),
        "mode": mode,
        "align_corners": checks.flag("align_corners", align_corners),
        "antialias": checks.flag("antialias", antialias),
        "recompute": checks.flag("recompute_scale_factor", recompute_scale_factor) or mode == "area",
    }
    if size is not None and any(map(tf.is_tensor, options["size"])):
        return _interpolate(input, **options)
    return _compiled_interpolate(input, **options)


def _interpolate(
    input: tf.Tensor,
    *,
    size: Sequence[Size] | None,
    scale_factor: Sequence[float] | None,
    mode: str,
    align_corners: bool,
    antialias: bool,
    recompute: bool,
) -> tf.Tensor:
    sizes_in = sizes(input)[1:-1]
    if size is None:
        size = [_scaled(n, scale) for n, scale in zip(sizes_in, scale_factor or (), strict=True)]
    scales = scale_factor if scale_factor is not None and not recompute else [None] * len(size)
    small = len(size) == 2 and size[0] + size[1] <= _SMALL_OUTPUT
    axes = [_Axis(n, out, f, align_corners, small) for n, out, f in zip(sizes_in, size, scales, strict=True)]
    fixed_point = input.dtype == tf.uint8 and not mode.startswith("nearest")
    output = (_resample_fixed_point if fixed_point else _resample)(input, axes, mode, antialias)
    static = [out if isinstance(out, int) else None for out in size]
    return tf.ensure_shape(output, (input.shape[0], *static, input.shape[-1]))


_compiled_interpolate = compiled(_interpolate)


# --- Arguments -------------------------------------------------------------------------------------------------------


def _dtypes(mode: str) -> tuple[tf.DType, ...]:
    return checks.FLOATS + ((tf.uint8,) if mode in ("nearest", "nearest-exact", "bilinear", "bicubic") else ())


def _scale_factors(scale_factor: Any, spatial: Sequence[int | None]) -> tuple[float, ...]:
    known = tf.get_static_value(scale_factor) if tf.is_tensor(scale_factor) else scale_factor
    scales = np.asarray(known).tolist() if isinstance(known, (np.ndarray, np.generic)) else known
    scales = scales if isinstance(scales, (list, tuple)) else [scales] * len(spatial)
    real = all(isinstance(scale, Real) and not isinstance(scale, (bool, np.bool_)) for scale in scales)
    numbers = tuple(map(float, scales)) if real else ()
    if len(numbers) != len(spatial) or not all(0 < scale < math.inf for scale in numbers):
        raise ValueError(f"scale_factor: expected a positive number or {len(spatial)} of them, got {scale_factor!r}")
    if any(n is not None and _scaled(n, scale) == 0 for n, scale in zip(spatial, numbers, strict=True)):
        raise ValueError(f"scale_factor: expected one that leaves no axis empty, got {scale_factor!r} for {spatial}")
    if any(n is not None and n * scale > checks.MOST for n, scale in zip(spatial, numbers, strict=True)):
        raise ValueError(f"scale_factor: expected sizes of at most {checks.MOST}, got {scale_factor!r} for {spatial}")
    return numbers


def _scaled(size: Size, scale: float) -> Size:
    if isinstance(size, int):
        return int(size * scale)
    return tf.cast(tf.floor(tf.cast(size, tf.float64) * scale), tf.int32)


# --- Tables ----------------------------------------------------------------------------------------------------------


def _table(build: Callable[..., Any], axis: _Axis, *options: Any) -> Any:
    return _constant_table(build, axis, *options) if axis.static else build(axis, *options)


@lru_cache(maxsize=128)
def _constant_table(build: Callable[..., Any], *arguments: Any) -> Any:
    with tf.init_scope():  # Out of the graph which is being traced: eager, hence known.
        return tf.nest.map_structure(lambda tensor: tensor.numpy(), build(*arguments))


def _taps(axis: _Axis, mode: str, antialias: bool, dtype: tf.DType) -> _Taps:
    cubic = mode == "bicubic"
    if mode.startswith("nearest"):
        return _nearest_taps(axis, mode == "nearest-exact", double=dtype == tf.float64)
    if mode == "area":
        return _area_taps(axis)
    if antialias:
        return _antialiased_taps(axis, _keys if cubic else _triangle, 2.0 if cubic else 1.0)
    # Whatever the scale factor, torch leaves an axis alone which keeps its size; but for bicubic in floating point.
    return _cubic_taps(axis, identity=dtype == tf.uint8) if cubic else _linear_taps(axis)


def _transposed_taps(axis: _Axis, *options: Any) -> _Taps:
    """The taps of the gradient: of each input, the outputs which it gave to. Tables ascend, so these are neighbours."""
    indices, weights = _taps(axis, *options)
    outputs = tf.broadcast_to(tf.range(axis.size_out)[:, None], tf.shape(indices))
    # (size_in, size_out): what input i gave to output o
    dense = tf.scatter_nd(tf.stack([indices, outputs], axis=-1), weights, (axis.size_in, axis.size_out))
    given = tf.cast(tf.not_equal(dense, 0.0), tf.int32)
    first = tf.argmax(given, axis=1, output_type=tf.int32)
    end = axis.size_out - tf.argmax(given[:, ::-1], axis=1, output_type=tf.int32)
    window = first[:, None] + tf.range(tf.reduce_max(end - first))
    indices = tf.minimum(window, end[:, None] - 1)
    weights = tf.gather(dense, indices, axis=1, batch_dims=1) * _float(window < end[:, None])
    return _Taps(indices, weights)


def _float(value: Any) -> tf.Tensor:
    return tf.cast(value, tf.float64)


def _ratio(axis: _Axis, identity: bool) -> tf.Tensor:
    """Input samples per output sample, scalar."""
    if axis.align_corners:
        return _float(axis.size_in - 1) / _float(tf.maximum(axis.size_out - 1, 1)) * _float(axis.size_out > 1)
    if axis.scale is None:
        return _float(axis.size_in) / _float(axis.size_out)
    ratio = tf.constant(1.0 / axis.scale, tf.float64)
    return tf.where(tf.equal(axis.size_in, axis.size_out), _float(1.0), ratio) if identity else ratio


def _coordinates(axis: _Axis, identity: bool) -> tf.Tensor:
    """Where each output sample lies among the input samples, (size_out,)."""
    output = tf.range(axis.size_out)
    ratio = _ratio(axis, identity)
    return _float(output) * ratio if axis.align_corners else (_float(output) + 0.5) * ratio - 0.5


def _linear_taps(axis: _Axis) -> _Taps:
    position = tf.maximum(_coordinates(axis, identity=True), 0.0)
    low, fraction = _split(position, axis.size_in)
    high = tf.minimum(low + 1, axis.size_in - 1)
    return _Taps(tf.stack([low, high], axis=1), tf.stack([1.0 - fraction, fraction], axis=1))


def _cubic_taps(axis: _Axis, identity: bool) -> _Taps:
    low, fraction = _split(_coordinates(axis, identity), axis.size_in)
    offsets = tf.constant([-1, 0, 1, 2])
    indices = tf.clip_by_value(low[:, None] + offsets, 0, axis.size_in - 1)
    return _Taps(indices, _cubic(_float(offsets) - fraction[:, None], a=-0.75))


def _split(position: tf.Tensor, size_in: Size) -> tuple[tf.Tensor, tf.Tensor]:
    """The sample at or before each position, and how far beyond it the position lies, in [0, 1]."""
    low = tf.minimum(tf.cast(tf.floor(position), tf.int32), size_in - 1)
    return low, tf.clip_by_value(position - _float(low), 0.0, 1.0)


def _area_taps(axis: _Axis) -> _Taps:
    """Adaptive average pooling: output o is the mean of inputs floor(o * in / out) up to ceil((o + 1) * in / out)."""
    n, out = tf.cast(axis.size_in, tf.int64), tf.cast(axis.size_out, tf.int64)
    output = tf.range(out)
    start, end = output * n // out, ((output + 1) * n + out - 1) // out
    window = tf.range(tf.reduce_max(tf.concat([end - start, [0]], axis=0)))  # An empty axis has no largest window.
    indices = start[:, None] + window
    inside = _float(indices < end[:, None])
    # Beyond the window an index repeats its last sample, so that a NaN elsewhere cannot leak in with weight 0.
    indices = tf.minimum(indices, end[:, None] - 1)
    return _Taps(tf.cast(indices, tf.int32), inside / _float(end - start)[:, None])


def _antialiased_taps(axis: _Axis, kernel: Callable[[tf.Tensor], tf.Tensor], radius: float) -> _Taps:
    """Pillow's resampling: the kernel is stretched by the ratio when shrinking, cut at the borders and normalised."""
    ratio = _ratio(axis, identity=True)
    stretch = tf.maximum(ratio, 1.0)
    support = radius * stretch
    center = (_float(tf.range(axis.size_out)) + 0.5) * ratio
    count = 2 * tf.cast(tf.math.ceil(support), tf.int32) + 1
    start = tf.maximum(tf.cast(center - support + 0.5, tf.int32), 0)
    end = tf.minimum(tf.cast(center + support + 0.5, tf.int32), axis.size_in)
    end = start + tf.clip_by_value(end - start, 0, count)
    indices = start[:, None] + tf.range(count)
    weights = kernel((_float(indices) - center[:, None] + 0.5) / stretch) * _float(indices < end[:, None])
    weights = tf.math.divide_no_nan(weights, tf.reduce_sum(weights, axis=1, keepdims=True))
    return _Taps(tf.clip_by_value(indices, 0, tf.maximum(end[:, None] - 1, 0)), weights)


def _triangle(x: tf.Tensor) -> tf.Tensor:
    return tf.maximum(1.0 - tf.abs(x), 0.0)


def _keys(x: tf.Tensor) -> tf.Tensor:
    return _cubic(x, a=-0.5)


def _cubic(x: tf.Tensor, a: float) -> tf.Tensor:
    """The cubic convolution kernel (Keys, 1981); torch takes a = -0.75 plainly and a = -0.5 with antialias."""
    x = tf.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return tf.where(x <= 1, near, tf.where(x < 2, far, tf.zeros_like(x)))


def _nearest_taps(axis: _Axis, exact: bool, double: bool) -> _Taps:
    """The one sample that torch takes, in torch's own roundings.

    torch has two ways to it. For small outputs it computes in float32 whatever the dtype, and has shortcuts for an
    equal and for a doubled size. Else it computes in the dtype, and for nearest-exact subtracts a half and adds it.
    """
    if tf.is_tensor(axis.small):
        ways = [_nearest_taps(axis._replace(small=small), exact, double) for small in (True, False)]
        return _Taps(tf.where(axis.small, ways[0].indices, ways[1].indices), ways[0].weights)
    real = tf.float64 if double and not axis.small else tf.float32
    if axis.scale is None:
        ratio = quotient(tf.cast(axis.size_in, real), axis.size_out)
    else:
        ratio = tf.constant(1.0 / axis.scale, real)
    output = tf.range(axis.size_out)
    if exact:
        position = (_float(output) + 0.5) * _float(ratio)
        if not axis.small:
            position = _float(tf.cast(tf.maximum(position - 0.5, 0.0), real)) + 0.5
    else:
        position = tf.cast(output, real) * ratio
    indices = tf.cast(tf.floor(tf.cast(position, tf.float32)), tf.int32)
    if axis.small and not exact:
        indices = tf.where(tf.equal(axis.size_out, 2 * axis.size_in), output // 2, indices)
        indices = tf.where(tf.equal(axis.size_out, axis.size_in), output, indices)
    indices = tf.minimum(indices, axis.size_in - 1)[:, None]
    return _Taps(indices, tf.ones(tf.shape(indices), tf.float64))


def _fixed_point_taps(axis: _Axis, mode: str, antialias: bool) -> tuple[_Taps, tf.Tensor]:
    """Taps with int32 weights, and the bits that these have after the point: the most with which all fit in 16 bits."""
    indices, weights = _taps(axis, mode, antialias, tf.uint8)
    largest = weights
    if not antialias:
        # Taps of one sample, as at the borders, become one before they are rounded: torch adds their weights up in
        # order and remembers the largest on the way.
        same = _float(tf.equal(indices[:, :, None], indices[:, None, :]))  # (size_out, T, T)
        largest = tf.einsum("ot,ots->os", weights, tf.linalg.band_part(same, 0, -1))
        last = tf.equal(tf.reduce_sum(tf.linalg.band_part(same, -1, 0), axis=1), 1.0)
        weights = largest * _float(last)
    powers = tf.constant([2.0**bits for bits in range(1, 23)], tf.float64)
    fits = tf.floor(0.5 + tf.reduce_max(largest) * powers) < 2.0**15
    precision = tf.reduce_sum(tf.cast(fits, tf.int32))
    scaled = weights * _float(tf.bitwise.left_shift(1, precision))
    # To the nearest integer, halves away from zero.
    return _Taps(indices, tf.cast(scaled + 0.5 * tf.sign(scaled), tf.int32)), precision


# --- Resampling ------------------------------------------------------------------------------------------------------


def _resample(input: tf.Tensor, axes: Sequence[_Axis], mode: str, antialias: bool) -> tf.Tensor:
    x = tf.cast(input, opmath(input.dtype))
    for i, axis in enumerate(axes, start=1):
        if not axis.unchanged:
            x = _resample_axis(x, i, axis, mode, antialias, input.dtype)
    return tf.cast(x, input.dtype)


def _resample_axis(x: tf.Tensor, i: int, axis: _Axis, *options: Any) -> tf.Tensor:
    """One axis. Its gradient gathers as well, much faster than the scatter which a gather differentiates to."""

    @tf.custom_gradient
    def forward(x: tf.Tensor) -> Any:
        return _weighted_sum(x, i, *_table(_taps, axis, *options)), lambda upstream: backward(upstream)

    @tf.custom_gradient
    def backward(x: tf.Tensor) -> Any:
        return _weighted_sum(x, i, *_table(_transposed_taps, axis, *options)), lambda upstream: forward(upstream)

    return forward(x)


def _resample_fixed_point(input: tf.Tensor, axes: Sequence[_Axis], mode: str, antialias: bool) -> tf.Tensor:
    """The last axis first, rounded to uint8 after each axis."""
    x = input
    for i, axis in reversed(list(enumerate(axes, start=1))):
        if not axis.unchanged:
            (indices, weights), precision = _table(_fixed_point_taps, axis, mode, antialias)
            total = _weighted_sum(tf.cast(x, tf.int32), i, indices, weights)
            half = tf.bitwise.left_shift(1, precision - 1)
            x = tf.cast(tf.clip_by_value(tf.bitwise.right_shift(total + half, precision), 0, 255), tf.uint8)
    return x


def _weighted_sum(x: tf.Tensor, axis: int, indices: Any, weights: Any) -> tf.Tensor:
    """(..., size_in, ..., C) -> (..., size_out, ..., C) along `axis`."""
    weights = tf.cast(weights, x.dtype)
    tail = (1,) * (x.shape.rank - axis - 1)
    count = indices.shape[1]
    if count is not None and 0 < count <= _UNROLLED_TAPS:
        # weights (size_out, T) -> T times (size_out, 1, ..., 1)
        columns = [tf.reshape(weights[:, t], (-1, *tail)) for t in range(count)]
        return tf.add_n([tf.gather(x, indices[:, t], axis=axis) * columns[t] for t in range(count)])
    # weights (size_out, T) -> (size_out, T, 1, ..., 1)
    weights = tf.reshape(weights, tf.concat([tf.shape(weights), tf.ones(len(tail), tf.int32)], axis=0))
    return tf.reduce_sum(tf.gather(x, indices, axis=axis) * weights, axis=axis + 1)
