"""Convolutions that pad as torch's do, so that each can stand at the path of its torch module.

Keras knows "valid" and "same", and "same" pads unevenly at a stride. Here `padding` is what torch calls padding: zeros
added on both sides of an axis. All else is the Keras layer of the same name: variables, arguments, channels last.
"""

from typing import Any

import keras
from keras import ops


def _per_axis(value: Any, rank: int, name: str) -> tuple[int, ...]:
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(values) != rank or any(not isinstance(v, int) or v < 0 for v in values):
        raise ValueError(f"{name}: expected a whole number from 0, or {rank} of them, got {value!r}")
    return values


class _Padded(keras.layers.Layer):
    """Adds zeros on both sides of each spatial axis before the layer it is mixed into."""

    _axes: int

    def __init__(self, *args: Any, padding: int | tuple[int, ...] = 0, **kwargs: Any) -> None:
        super().__init__(*args, padding="valid", **kwargs)
        self.zeros = _per_axis(padding, self._axes, "padding")

    def call(self, inputs: Any) -> Any:
        if any(self.zeros):
            inputs = ops.pad(inputs, [(0, 0), *((n, n) for n in self.zeros), (0, 0)])
        return super().call(inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        spatial = (n if n is None else n + 2 * zeros for n, zeros in zip(input_shape[1:-1], self.zeros, strict=True))
        return super().compute_output_shape((input_shape[0], *spatial, input_shape[-1]))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "padding": self.zeros}


class _Dilated(_Padded):
    """Lets a stride and a dilation go together, which Keras refuses."""

    def __init__(self, *args: Any, dilation_rate: int | tuple[int, ...] = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dilation_rate = _per_axis(dilation_rate, self._axes, "dilation_rate")

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        if max(self.strides) == 1 or max(self.dilation_rate) == 1:
            return super().convolution_op(inputs, kernel)
        for axis, dilation in enumerate(self.dilation_rate):
            kernel = _spread(kernel, axis, dilation)
        return ops.conv(inputs, kernel, self.strides, self.padding, self.data_format)


@keras.saving.register_keras_serializable(package="weightbridge")
class Conv1D(_Padded, keras.layers.Conv1D):
    """torch.nn.Conv1d with zero padding: (N, L, I) -> (N, L', O); kernel (k, I/groups, O)."""

    _axes = 1


@keras.saving.register_keras_serializable(package="weightbridge")
class Conv2D(_Dilated, keras.layers.Conv2D):
    """torch.nn.Conv2d with zero padding: (N, H, W, I) -> (N, H', W', O); kernel (kh, kw, I/groups, O)."""

    _axes = 2


@keras.saving.register_keras_serializable(package="weightbridge")
class Conv3D(_Dilated, keras.layers.Conv3D):
    """torch.nn.Conv3d with zero padding: (N, D, H, W, I) -> (N, D', H', W', O); kernel (kd, kh, kw, I/groups, O)."""

    _axes = 3


@keras.saving.register_keras_serializable(package="weightbridge")
class DepthwiseConv2D(_Padded, keras.layers.DepthwiseConv2D):
    """torch.nn.Conv2d with groups = I and zero padding: (N, H, W, C) -> (N, H', W', C*m); kernel (kh, kw, C, m)."""

    _axes = 2


class _Transposed(keras.layers.Layer):
    """A transposed convolution with torch's padding, output padding, dilation and groups, for any number of axes."""

    _axes: int

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, ...],
        strides: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        output_padding: int | tuple[int, ...] = 0,
        dilation_rate: int | tuple[int, ...] = 1,
        groups: int = 1,
        use_bias: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if filters % groups:
            raise ValueError(f"groups: expected a divisor of filters ({filters}), got {groups}")
        rank = self._axes
        self.filters, self.groups, self.use_bias = filters, groups, use_bias
        self.kernel_size = _per_axis(kernel_size, rank, "kernel_size")
        self.strides = _per_axis(strides, rank, "strides")
        self.padding = _per_axis(padding, rank, "padding")
        self.output_padding = _per_axis(output_padding, rank, "output_padding")
        self.dilation_rate = _per_axis(dilation_rate, rank, "dilation_rate")

    def build(self, input_shape: Any) -> None:
        channels = input_shape[-1]
        if channels is None or channels % self.groups:
            raise ValueError(f"input: expected channels in {self.groups} equal groups, got {channels}")
        # (k..., O/groups, I): torch's (I, O/groups, k...) with the axes that Keras gives a transposed convolution.
        self.kernel = self.add_weight(
            name="kernel",
            shape=(*self.kernel_size, self.filters // self.groups, channels),
            initializer="glorot_uniform",
        )
        self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros") if self.use_bias else None

    def call(self, inputs: Any) -> Any:
        parts = zip(ops.split(inputs, self.groups, axis=-1), ops.split(self.kernel, self.groups, axis=-1), strict=True)
        grown = ops.concatenate([self._whole(x, kernel) for x, kernel in parts], axis=-1)
        return grown if self.bias is None else grown + self.bias

    def _whole(self, inputs: Any, kernel: Any) -> Any:
        """A full ("valid") transposed convolution, cut by `padding` and extended by `output_padding` at the end."""
        for axis, dilation in enumerate(self.dilation_rate):
            kernel = _spread(kernel, axis, dilation)
        grown = ops.conv_transpose(inputs, kernel, self.strides, padding="valid")
        full = [
            (n - 1) * stride + dilation * (k - 1) + 1
            for n, stride, dilation, k in zip(
                ops.shape(inputs)[1:-1], self.strides, self.dilation_rate, self.kernel_size, strict=True
            )
        ]
        # At a stride beyond the kernel Keras appends what torch leaves to output_padding: keep `full` and no more.
        extra = [max(0, more - zeros) for more, zeros in zip(self.output_padding, self.padding, strict=True)]
        cut = grown[(slice(None), *(slice(0, n) for n in full))]
        if any(extra):
            cut = ops.pad(cut, [(0, 0), *((0, n) for n in extra), (0, 0)])
        spans = zip(full, self.padding, self.output_padding, strict=True)
        return cut[(slice(None), *(slice(zeros, n - zeros + more) for n, zeros, more in spans))]

    def compute_output_shape(self, input_shape: Any) -> Any:
        spatial = (
            n if n is None else (n - 1) * stride - 2 * zeros + dilation * (k - 1) + more + 1
            for n, stride, zeros, dilation, k, more in zip(
                input_shape[1:-1],
                self.strides,
                self.padding,
                self.dilation_rate,
                self.kernel_size,
                self.output_padding,
                strict=True,
            )
        )
        return (input_shape[0], *spatial, self.filters)

    def get_config(self) -> dict[str, Any]:
        names = (
            "filters",
            "kernel_size",
            "strides",
            "padding",
            "output_padding",
            "dilation_rate",
            "groups",
            "use_bias",
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _spread(kernel: Any, axis: int, dilation: int) -> Any:
    """The kernel with `dilation - 1` zeros between its taps, for TensorFlow's CPU kernels know no dilation here."""
    if dilation == 1:
        return kernel
    shape = tuple(kernel.shape)
    taps = ops.expand_dims(kernel, axis + 1)  # (..., k, 1, ...)
    room = [(0, dilation - 1) if i == axis + 1 else (0, 0) for i in range(len(shape) + 1)]
    spread = ops.reshape(ops.pad(taps, room), (*shape[:axis], shape[axis] * dilation, *shape[axis + 1 :]))
    return spread[(*(slice(None),) * axis, slice(0, (shape[axis] - 1) * dilation + 1))]


@keras.saving.register_keras_serializable(package="weightbridge")
class Conv1DTranspose(_Transposed):
    """torch.nn.ConvTranspose1d: (N, L, I) -> (N, L', O); kernel (k, O/groups, I)."""

    _axes = 1


@keras.saving.register_keras_serializable(package="weightbridge")
class Conv2DTranspose(_Transposed):
    """torch.nn.ConvTranspose2d: (N, H, W, I) -> (N, H', W', O); kernel (kh, kw, O/groups, I)."""

    _axes = 2


@keras.saving.register_keras_serializable(package="weightbridge")
class Conv3DTranspose(_Transposed):
    """torch.nn.ConvTranspose3d: (N, D, H, W, I) -> (N, D', H', W', O); kernel (kd, kh, kw, O/groups, I)."""

    _axes = 3
