"""Convolution whose kernel looks at displaced positions, each weighted by a mask."""

import itertools
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tf_models.ops import checks
from tf_models.ops._sampling import combine, linear_taps, sizes, weighted_sum
from tf_models.ops.compiling import compiled
from tf_models.ops.precision import opmath


def deform_conv2d(
    input: Any,
    offset: Any,
    kernel: Any,
    bias: Any = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Any = None,
) -> tf.Tensor:
    """Deformable convolution v1, or v2 with a `mask`, as torchvision.ops.deform_conv2d, channels last.

    Args:
        input: (N, H, W, Cin); float32, float64, float16 or bfloat16. Halves are computed in float32.
        offset: (N, Ho, Wo, 2*G*kh*kw) for G offset groups, in pixels; the last axis reads (G, kh, kw, 2), and its pairs
            are (dy, dx).
        kernel: (kh, kw, Cin/groups, Cout); `groups` follows from the shapes.
        bias: (Cout,), or None.
        stride, padding, dilation: an int, or one for y and one for x. Beyond the padding is zero, too.
        mask: (N, Ho, Wo, G*kh*kw), a factor for each sample, or None.

    Returns:
        (N, Ho, Wo, Cout), where Ho = (H + 2*padding - dilation*(kh - 1) - 1) // stride + 1. One dtype for all.

    Raises:
        ValueError: an argument of a wrong rank, shape, dtype or value.

    Follows torchvision; Dai et al., 2017 (v1), and Zhu et al., 2018 (v2).
    """
    return _deform_conv("HW", input, offset, kernel, bias, stride, padding, dilation, mask)


def deform_conv3d(
    input: Any,
    offset: Any,
    kernel: Any,
    bias: Any = None,
    stride: int | tuple[int, int, int] = 1,
    padding: int | tuple[int, int, int] = 0,
    dilation: int | tuple[int, int, int] = 1,
    mask: Any = None,
) -> tf.Tensor:
    """`deform_conv2d` of a volume: the same definition with one more axis, and trilinear samples.

    Args:
        input: (N, D, H, W, Cin); float32, float64, float16 or bfloat16. Halves are computed in float32.
        offset: (N, Do, Ho, Wo, 3*G*kd*kh*kw) for G offset groups, in pixels; the last axis reads (G, kd, kh, kw, 3),
            and its triples are (dz, dy, dx).
        kernel: (kd, kh, kw, Cin/groups, Cout); `groups` follows from the shapes.
        bias: (Cout,), or None.
        stride, padding, dilation: an int, or one for each of z, y, x.
        mask: (N, Do, Ho, Wo, G*kd*kh*kw), a factor for each sample, or None.

    Returns:
        (N, Do, Ho, Wo, Cout). All tensors share one dtype.

    Raises:
        ValueError: an argument of a wrong rank, shape, dtype or value.

    Neither torch nor torchvision has it; with kd = 1, D = 1 and dz = 0 it is `deform_conv2d`.
    """
    return _deform_conv("DHW", input, offset, kernel, bias, stride, padding, dilation, mask)


def _deform_conv(
    axes: str, input: Any, offset: Any, kernel: Any, bias: Any, stride: Any, padding: Any, dilation: Any, mask: Any
) -> tf.Tensor:
    count = len(axes)
    input = checks.tensor("input", input, rank=count + 2)
    offset = checks.tensor("offset", offset, rank=count + 2, dtype=input.dtype)
    kernel = checks.tensor("kernel", kernel, rank=count + 2, dtype=input.dtype)
    stride = checks.integers("stride", stride, count, 1)
    padding = checks.integers("padding", padding, count, 0)
    dilation = checks.integers("dilation", dilation, count, 1)
    # Spelled for the messages: "N Ho Wo", "kh kw".
    out_axes, kernel_axes = f"N {'o '.join(axes)}o", " ".join(f"k{axis.lower()}" for axis in axes)

    checks.known("kernel", kernel, f"{kernel_axes} Cin/groups Cout", range(count + 2))
    checks.known("input", input, f"N {' '.join(axes)} Cin", (count + 1,))
    checks.non_empty("kernel", kernel, range(count + 2))
    *window, group_channels, filters = kernel.shape.as_list()
    channels, samples = input.shape[-1], math.prod(window)
    groups = channels // group_channels
    if groups < 1 or groups * group_channels != channels or filters % groups:
        raise ValueError(
            f"kernel: expected ({kernel_axes.replace(' ', ', ')}, Cin/groups, Cout) with Cin = {channels} a "
            f"multiple of Cin/groups and Cout a multiple of groups, got {kernel.shape}"
        )
    out = [
        None if size is None else (size + 2 * pad - step * (taps - 1) - 1) // jump + 1
        for size, taps, jump, pad, step in zip(input.shape[1:-1], window, stride, padding, dilation, strict=True)
    ]
    if any(size is not None and size < 1 for size in out):
        raise ValueError(f"input: expected room for the kernel {tuple(window)}, got {input.shape}: output size {out}")
    offset_axes = f"{out_axes} {count}*G*{kernel_axes.replace(' ', '*')}"
    checks.known("offset", offset, offset_axes, (count + 1,))
    offset_groups = offset.shape[-1] // (count * samples)
    if offset_groups < 1 or offset_groups * count * samples != offset.shape[-1] or channels % offset_groups:
        raise ValueError(
            f"offset: expected its last axis to be {count} * {samples} * G, with Cin = {channels} a multiple of G, "
            f"got {offset.shape}"
        )
    checks.shape("offset", offset, offset_axes, (input.shape[0], *out, offset.shape[-1]))
    # Where only the running graph knows them.
    input_sizes = sizes(input)
    out = [
        (size + 2 * pad - step * (taps - 1) - 1) // jump + 1
        for size, taps, jump, pad, step in zip(input_sizes[1:-1], window, stride, padding, dilation, strict=True)
    ]
    offset = checks.agree("offset", offset, offset_axes, (input_sizes[0], *out, None))
    tensors = [input, offset]
    if mask is not None:
        mask = checks.tensor("mask", mask, rank=count + 2, dtype=input.dtype)
        mask_axes = f"{out_axes} G*{kernel_axes.replace(' ', '*')}"
        checks.shape("mask", mask, mask_axes, (*offset.shape[:-1], offset_groups * samples))
        tensors.append(checks.agree("mask", mask, mask_axes, (input_sizes[0], *out, None)))

    columns = _columns(  # (N, ..., Ho, Wo, K, G, Cin/G), K = kh*kw
        *tensors,
        window=tuple(window),
        stride=stride,
        padding=padding,
        dilation=dilation,
        offset_groups=offset_groups,
    )
    dtype = opmath(input.dtype)
    kernel = tf.cast(kernel, dtype)
    # The product is TensorFlow's own: XLA's is slower.
    if groups == 1:
        matrix = tf.reshape(kernel, (samples * channels, filters))  # (kh, kw, Cin, Cout) -> (K*Cin, Cout)
        output = tf.matmul(tf.reshape(columns, (-1, samples * channels)), matrix)  # (N*...*Ho*Wo, Cout)
    else:
        # (N, ..., Ho, Wo, K*Cin) -> (N*...*Ho*Wo, K, groups, Cin/groups)
        columns_of_group = tf.reshape(columns, (-1, samples, groups, group_channels))
        # (kh, kw, Cin/groups, Cout) -> (K, Cin/groups, groups, Cout/groups)
        kernel_of_group = tf.reshape(kernel, (samples, group_channels, groups, filters // groups))
        output = tf.einsum("pkgc,kcgf->pgf", columns_of_group, kernel_of_group)
    output = tf.reshape(output, (*sizes(offset)[:-1], filters))  # (N, ..., Ho, Wo, Cout)
    if bias is not None:
        bias = checks.tensor("bias", bias, rank=1, dtype=input.dtype)
        checks.shape("bias", bias, "Cout", (filters,))
        output += tf.cast(bias, dtype)
    return tf.cast(output, input.dtype)


@compiled
def _columns(
    input: tf.Tensor,
    offset: tf.Tensor,
    mask: tf.Tensor | None = None,
    *,
    window: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    offset_groups: int,
) -> tf.Tensor:
    """What each output position sees: (N, ..., Ho, Wo, K, G, Cin/G), in the precision to compute in.

    Not yet (..., K*Cin): a compiled loop over that would work out the taps for every channel.
    """
    batch, *spatial, channels = sizes(input)
    out = sizes(offset)[1:-1]
    dtype, count, samples = opmath(input.dtype), len(window), math.prod(window)

    def by_sample(values: tf.Tensor) -> tf.Tensor:
        """(N, ..., Ho, Wo, G, K) -> (N, ..., Ho, Wo, K*G)"""
        swapped = tf.transpose(values, (*range(count + 1), count + 2, count + 1))
        return tf.reshape(swapped, (batch, *out, samples * offset_groups))

    # (N, ..., Ho, Wo, G*K*2) -> (N, ..., Ho, Wo, G, K, 2) -> two of (N, ..., Ho, Wo, G, K)
    offset = tf.reshape(tf.cast(offset, dtype), (batch, *out, offset_groups, samples, count))
    kernel_positions = list(itertools.product(*map(range, window)))
    axes = []
    for axis, moves in enumerate(tf.unstack(offset, count, -1)):
        start = tf.range(out[axis]) * stride[axis] - padding[axis]
        start = tf.reshape(start, [-1 if a == axis else 1 for a in range(count)] + [1])  # (Ho, 1, 1), (Wo, 1)
        within = np.repeat([position[axis] * dilation[axis] for position in kernel_positions], offset_groups)  # (K*G,)
        position = tf.cast(start + tf.constant(within, tf.int32), dtype) + by_sample(moves)
        # An infinite offset points outside; NaN stays NaN.
        position = tf.where(tf.math.is_inf(position), tf.constant(-2, dtype), position)
        axes.append(linear_taps(position, spatial[axis]))
    if mask is not None:
        mask = by_sample(tf.reshape(tf.cast(mask, dtype), (batch, *out, offset_groups, samples)))
        axes[0] = [(i, w * mask) for i, w in axes[0]]

    # A row is one offset group of one pixel.
    pixels, depth = math.prod(spatial), channels // offset_groups
    first = tf.reshape(tf.range(batch) * (pixels * offset_groups), (-1, *(1 for _ in range(count + 1))))
    first += tf.constant(np.tile(np.arange(offset_groups), samples), tf.int32)  # (N, 1, ..., 1, K*G)
    rows = tf.reshape(tf.cast(input, dtype), (batch * pixels * offset_groups, depth))
    output = weighted_sum(rows, combine(axes, spatial, first, stride=offset_groups))  # (N*...*Ho*Wo*K*G, Cin/G)
    return tf.reshape(output, (batch, *out, samples, offset_groups, depth))
