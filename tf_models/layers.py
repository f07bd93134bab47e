"""Layers that compute what torch's do where Keras's do not, so that each can stand at the path of its torch module.

Keras's convolutions know "valid" and "same", and "same" pads unevenly at a stride. Here `padding` is what torch calls
padding: zeros added on both sides of an axis, or by `padding_mode` what stands there. All else is the Keras layer of
the same name: variables, arguments, channels last. Below them are normalisations and what moves pixels.
"""

import math
from numbers import Integral
from typing import Any

import keras
import tensorflow as tf
from keras import ops


def uniform(fan_in: int) -> Any:
    """Torch's default initializer of convolutions and linear layers, kernel and bias: U(-b, b), b = 1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    return keras.initializers.RandomUniform(-bound, bound)


def per_axis(value: Any, rank: int, name: str, least: int = 0) -> Any:
    """A whole number, or `rank` of them, as a tuple of `rank`.

    Raises:
        ValueError: it is neither, or one is below `least`; `name` is the argument's.
    """
    values = (value,) * rank if isinstance(value, Integral) else tuple(value)
    if len(values) != rank or any(not isinstance(v, Integral) or v < least for v in values):
        raise ValueError(f"{name}: expected a whole number from {least}, or {rank} of them, got {value!r}")
    return tuple(map(int, values))


PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def padded(inputs: Any, room: list[tuple[int, int]], mode: str = "zeros") -> Any:
    """torch.nn.functional.pad of (N, ..., C): `room` is (before, after) for each axis between."""
    if mode == "zeros":
        return ops.pad(inputs, [(0, 0), *room, (0, 0)]) if any(map(any, room)) else inputs
    for axis, (before, after) in enumerate(room, 1):
        if before or after:
            inputs = ops.concatenate(_border(inputs, axis, before, after, mode), axis)
    return inputs


def _border(x: Any, axis: int, before: int, after: int, mode: str) -> list[Any]:
    def cut(start: int | None, stop: int | None) -> Any:
        return x[(*(slice(None),) * axis, slice(start, stop))]

    if mode == "replicate":
        return [ops.repeat(cut(0, 1), before, axis), x, ops.repeat(cut(-1, None), after, axis)]
    if mode == "circular":
        return [cut(-before, None) if before else cut(0, 0), x, cut(0, after)]
    return [ops.flip(cut(1, before + 1), axis), x, ops.flip(cut(-after - 1, -1), axis)]


class _Padded(keras.layers.Layer):
    """Pads both sides of each spatial axis before the layer it is mixed into.

    `padding` is one of torch's: numbers, "valid", or "same" (at a stride of 1, the odd one at the end).
    """

    _axes: int

    def __init__(
        self,
        *args: Any,
        padding: int | tuple[int, ...] | str = 0,
        padding_mode: str = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, padding="valid", **kwargs)
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode: expected one of {', '.join(PADDING_MODES)}, got {padding_mode!r}")
        if padding == "same" and max(self.strides) > 1:
            raise ValueError('padding: "same" is for a stride of 1, as in torch')
        self.padding_mode = padding_mode
        self.zeros: Any = padding if padding in ("same", "valid") else per_axis(padding, self._axes, "padding")

    @property
    def room(self) -> list[tuple[int, int]]:
        """(before, after) of each axis."""
        if self.zeros == "valid":
            return [(0, 0)] * self._axes
        if self.zeros == "same":
            extra = [rate * (k - 1) for rate, k in zip(self.dilation_rate, self.kernel_size, strict=True)]
            return [(n // 2, n - n // 2) for n in extra]
        return [(n, n) for n in self.zeros]

    def call(self, inputs: Any) -> Any:
        self.compute_output_shape(tuple(inputs.shape))  # says so where there is no room for the kernel
        # Of a batch of nothing TensorFlow's convolution returns the shape that it was given.
        empty = inputs.shape[0] == 0
        if empty:
            inputs = ops.pad(inputs, [(0, 1), *[(0, 0)] * (self._axes + 1)])
        outputs = super().call(padded(inputs, self.room, self.padding_mode))
        return outputs[:0] if empty else outputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        spatial = (n if n is None else n + sum(room) for n, room in zip(input_shape[1:-1], self.room, strict=True))
        return super().compute_output_shape((input_shape[0], *spatial, input_shape[-1]))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "padding": self.zeros, "padding_mode": self.padding_mode}


class _Dilated(_Padded):
    """Lets a stride and a dilation go together, which Keras refuses."""

    def __init__(self, *args: Any, dilation_rate: int | tuple[int, ...] = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dilation_rate = per_axis(dilation_rate, self._axes, "dilation_rate")

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        if max(self.strides) == 1 or max(self.dilation_rate) == 1:
            return super().convolution_op(inputs, kernel)
        for axis, dilation in enumerate(self.dilation_rate):
            kernel = _spread(kernel, axis, dilation)
        return ops.conv(inputs, kernel, self.strides, self.padding, self.data_format)


@keras.saving.register_keras_serializable(package="weightbridge")
class Conv1D(_Padded, keras.layers.Conv1D):
    """torch.nn.Conv1d: (N, L, I) -> (N, L', O); kernel (k, I/groups, O)."""

    _axes = 1


@keras.saving.register_keras_serializable(package="weightbridge")
class Conv2D(_Dilated, keras.layers.Conv2D):
    """torch.nn.Conv2d: (N, H, W, I) -> (N, H', W', O); kernel (kh, kw, I/groups, O)."""

    _axes = 2


@keras.saving.register_keras_serializable(package="weightbridge")
class Conv3D(_Dilated, keras.layers.Conv3D):
    """torch.nn.Conv3d: (N, D, H, W, I) -> (N, D', H', W', O); kernel (kd, kh, kw, I/groups, O)."""

    _axes = 3


@keras.saving.register_keras_serializable(package="weightbridge")
class DepthwiseConv1D(_Padded, keras.layers.DepthwiseConv1D):
    """torch.nn.Conv1d with groups = I: (N, L, C) -> (N, L', C*m); kernel (k, C, m)."""

    _axes = 1


@keras.saving.register_keras_serializable(package="weightbridge")
class DepthwiseConv2D(_Padded, keras.layers.DepthwiseConv2D):
    """torch.nn.Conv2d with groups = I: (N, H, W, C) -> (N, H', W', C*m); kernel (kh, kw, C, m)."""

    _axes = 2


@keras.saving.register_keras_serializable(package="weightbridge")
class DepthwiseConv3D(keras.layers.Layer):
    """torch.nn.Conv3d with groups = I = O: (N, D, H, W, C) -> (N, D', H', W', C).

    The kernel is (kd, kh, kw, C, 1). Keras has no such layer, and TensorFlow's 3-d convolution knows no groups on CPU:
    it is a sum over kd of 2-d ones.
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, ...],
        strides: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        use_bias: bool = True,
        padding_mode: str = "zeros",
        depthwise_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.kernel_size = per_axis(kernel_size, 3, "kernel_size")
        self.strides = per_axis(strides, 3, "strides")
        self.padding = per_axis(padding, 3, "padding")
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode: expected one of {', '.join(PADDING_MODES)}, got {padding_mode!r}")
        self.use_bias, self.padding_mode = use_bias, padding_mode
        self.depthwise_initializer = keras.initializers.get(depthwise_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, input_shape: Any) -> None:
        channels = input_shape[-1]
        shape = (*self.kernel_size, channels, 1)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=self.depthwise_initializer)
        bias = {"name": "bias", "shape": (channels,), "initializer": self.bias_initializer}
        self.bias = self.add_weight(**bias) if self.use_bias else None

    def call(self, inputs: Any) -> Any:
        inputs = padded(inputs, [(n, n) for n in self.padding], self.padding_mode)
        batch, depth, height, width, channels = ops.shape(inputs)
        count = (depth - self.kernel_size[0]) // self.strides[0] + 1  # D'
        # The 2-d kernel takes one stride for both axes; what a common one gives too much is left out.
        step = math.gcd(*self.strides[1:])
        rows, columns = (stride // step for stride in self.strides[1:])
        total: Any = 0
        for tap in range(self.kernel_size[0]):
            slabs = inputs[:, tap : tap + (count - 1) * self.strides[0] + 1 : self.strides[0]]
            slabs = ops.reshape(slabs, (batch * count, height, width, channels))  # (N, D', H, W, C) -> (N*D', H, W, C)
            total += tf.nn.depthwise_conv2d(slabs, self.kernel[tap], (1, step, step, 1), "VALID")
        total = total[:, ::rows, ::columns]
        total = ops.reshape(total, (batch, count, *ops.shape(total)[1:]))  # (N*D', H', W', C) -> (N, D', H', W', C)
        return total if self.bias is None else total + self.bias

    def compute_output_shape(self, input_shape: Any) -> Any:
        axes = zip(input_shape[1:-1], self.kernel_size, self.strides, self.padding, strict=True)
        spatial = (n if n is None else (n + 2 * zeros - k) // stride + 1 for n, k, stride, zeros in axes)
        return (input_shape[0], *spatial, input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        names = ("kernel_size", "strides", "padding", "use_bias", "padding_mode")
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names},
            "depthwise_initializer": keras.initializers.serialize(self.depthwise_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }


@keras.saving.register_keras_serializable(package="weightbridge")
class PointwiseConv(keras.layers.Layer):
    """A torch convolution of kernel size 1, of any rank: (..., I) -> (..., O), a product per group.

    The kernel is (I/groups, O). It is initialised as torch initialises it.
    """

    def __init__(self, filters: int, groups: int = 1, use_bias: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if filters % groups:
            raise ValueError(f"groups: expected a divisor of filters ({filters}), got {groups}")
        self.filters, self.groups, self.use_bias = filters, groups, use_bias

    def build(self, input_shape: Any) -> None:
        channels = input_shape[-1]
        if channels is None or channels % self.groups:
            raise ValueError(f"input: expected channels in {self.groups} equal groups, got {channels}")
        fan_in = channels // self.groups
        self.kernel = self.add_weight(name="kernel", shape=(fan_in, self.filters), initializer=uniform(fan_in))
        bias = {"name": "bias", "shape": (self.filters,), "initializer": uniform(fan_in)}
        self.bias = self.add_weight(**bias) if self.use_bias else None

    def call(self, inputs: Any) -> Any:
        if self.groups == 1:
            output = ops.matmul(inputs, self.kernel)
        else:
            g = self.groups
            leading = ops.shape(inputs)[:-1]
            # One product per group, the groups first: forward and gradient are plain batched matrix products.
            grouped = ops.reshape(inputs, (-1, g, inputs.shape[-1] // g))  # (P, G, I/G)
            grouped = ops.transpose(grouped, (1, 0, 2))  # (P, G, I/G) -> (G, P, I/G)
            kernel = ops.reshape(self.kernel, (-1, g, self.filters // g))  # (I/G, O) -> (I/G, G, O/G)
            output = ops.matmul(grouped, ops.transpose(kernel, (1, 0, 2)))  # (G, P, O/G)
            output = ops.reshape(ops.transpose(output, (1, 0, 2)), (*leading, self.filters))
        return output if self.bias is None else output + self.bias

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape[:-1], self.filters)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "filters": self.filters,
            "groups": self.groups,
            "use_bias": self.use_bias,
        }


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
        self.kernel_size = per_axis(kernel_size, rank, "kernel_size")
        self.strides = per_axis(strides, rank, "strides")
        self.padding = per_axis(padding, rank, "padding")
        self.output_padding = per_axis(output_padding, rank, "output_padding")
        self.dilation_rate = per_axis(dilation_rate, rank, "dilation_rate")

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


class _Normalization(keras.layers.Layer):
    """What the normalisations below share: factors for each channel, and statistics that may be kept.

    `momentum` is Keras's: torch's 0.1 is 0.9.
    """

    def __init__(
        self,
        epsilon: float = 1e-5,
        affine: bool = True,
        track_running_stats: bool = False,
        momentum: float = 0.9,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.epsilon, self.affine, self.momentum = epsilon, affine, momentum
        self.track_running_stats = track_running_stats

    def build(self, input_shape: Any) -> None:
        shape = (input_shape[-1],)
        self.gamma = self.add_weight(name="gamma", shape=shape, initializer="ones") if self.affine else None
        self.beta = self.add_weight(name="beta", shape=shape, initializer="zeros") if self.affine else None
        kept: dict[str, Any] = {"shape": shape, "trainable": False}
        track = self.track_running_stats
        self.moving_mean = self.add_weight(name="moving_mean", initializer="zeros", **kept) if track else None
        self.moving_variance = self.add_weight(name="moving_variance", initializer="ones", **kept) if track else None

    def _normalized(self, x: Any, axes: tuple[int, ...], training: bool) -> Any:
        if self.track_running_stats and not training:
            mean, variance = ops.convert_to_tensor(self.moving_mean), ops.convert_to_tensor(self.moving_variance)
        else:
            mean = ops.mean(x, axes, keepdims=True)
            variance = ops.mean(ops.square(x - mean), axes, keepdims=True)
            if self.track_running_stats:
                self._keep(x, axes, mean, variance)
        x = (x - mean) * ops.rsqrt(variance + self.epsilon)
        return x * self.gamma + self.beta if self.affine else x

    def _keep(self, x: Any, axes: tuple[int, ...], mean: Any, variance: Any) -> None:
        count = math.prod(ops.shape(x)[axis] for axis in axes)
        kept: Any
        for kept, new in ((self.moving_mean, mean), (self.moving_variance, variance * (count / (count - 1)))):
            over = ops.mean(ops.reshape(new, (-1, x.shape[-1])), 0)
            kept.assign(kept * self.momentum + over * (1 - self.momentum))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        names = ("epsilon", "affine", "track_running_stats", "momentum")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(package="weightbridge")
class InstanceNormalization(_Normalization):
    """torch.nn.InstanceNorm1d, 2d and 3d: (N, ..., C), each channel of each sample by itself.

    torch's `affine` is off by default, here it is on. With `track_running_stats` it uses what training has kept.
    """

    def call(self, inputs: Any, training: bool = False) -> Any:
        return self._normalized(inputs, tuple(range(1, len(inputs.shape) - 1)), training)


@keras.saving.register_keras_serializable(package="weightbridge")
class BatchStatisticsNormalization(_Normalization):
    """torch.nn.BatchNorm with track_running_stats=False: (N, ..., C), by the batch's own statistics at all times."""

    def __init__(self, epsilon: float = 1e-5, affine: bool = True, **kwargs: Any) -> None:
        super().__init__(epsilon, affine, **{**kwargs, "track_running_stats": False})

    def call(self, inputs: Any, training: bool = False) -> Any:
        return self._normalized(inputs, tuple(range(len(inputs.shape) - 1)), training)


@keras.saving.register_keras_serializable(package="weightbridge")
class RMSNormalization(keras.layers.Layer):
    """torch.nn.RMSNorm over the last `axes` axes: x / sqrt(mean(x^2) + epsilon) * scale.

    The epsilon is torch's default (None), that of float32. Keras's layer of this name takes the last axis only for
    granted, and always has a scale.
    """

    def __init__(self, axes: int = 1, epsilon: float = 2.0**-23, use_scale: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axes, self.epsilon, self.use_scale = axes, epsilon, use_scale

    def build(self, input_shape: Any) -> None:
        shape = tuple(input_shape[-self.axes :])
        self.scale = self.add_weight(name="scale", shape=shape, initializer="ones") if self.use_scale else None

    def call(self, inputs: Any) -> Any:
        axes = tuple(range(-self.axes, 0))
        x = inputs * ops.rsqrt(ops.mean(ops.square(inputs), axes, keepdims=True) + self.epsilon)
        return x * self.scale if self.use_scale else x

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        names = ("axes", "epsilon", "use_scale")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(package="weightbridge")
class WeightNormalization(keras.layers.Layer):
    """torch's weight_norm around a layer with a kernel: it computes with kernel * g / |kernel|.

    Args:
        layer: what it is around.
        axes: axes of the kernel that have a factor and a length of their own: -1 for what torch calls dim=0 (of a
            transposed convolution too), (-2, -1) for a depthwise one.
    """

    def __init__(self, layer: Any, axes: int | tuple[int, ...] = -1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer = layer
        self.axes = (axes,) if isinstance(axes, int) else tuple(axes)

    @property
    def activation(self) -> Any:
        """The layer's."""
        return getattr(self.layer, "activation", None)

    @activation.setter
    def activation(self, value: Any) -> None:
        self.layer.activation = value

    def build(self, input_shape: Any) -> None:
        if not self.layer.built:
            self.layer.build(input_shape)
        shape = tuple(self.layer.kernel.shape[axis] for axis in self.axes)
        self.g = self.add_weight(name="g", shape=shape, initializer="ones")

    def call(self, inputs: Any) -> Any:
        v = ops.convert_to_tensor(self.layer.kernel)
        kept = [axis % len(v.shape) for axis in self.axes]
        over = tuple(axis for axis in range(len(v.shape)) if axis not in kept)
        length = ops.sqrt(ops.sum(ops.square(v), over, keepdims=True))
        factor = ops.reshape(self.g, [n if axis in kept else 1 for axis, n in enumerate(v.shape)])
        # The layer computes with what stands where its kernel does.
        place = "_kernel" if "_kernel" in vars(self.layer) else "kernel"
        variable = vars(self.layer)[place]
        object.__setattr__(self.layer, place, v * (factor / length))
        try:
            return self.layer(inputs)
        finally:
            object.__setattr__(self.layer, place, variable)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer, "axes": self.axes}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})


class _ByFactor(keras.layers.Layer):
    """Grows or shrinks an image by a factor."""

    def __init__(self, factor: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable(package="weightbridge")
class PixelShuffle(_ByFactor):
    """torch.nn.PixelShuffle, in torch's order of channels: (N, H, W, C*r*r) -> (N, H*r, W*r, C)."""

    def call(self, inputs: Any) -> Any:
        batch, height, width, channels = ops.shape(inputs)
        r = self.factor
        x = ops.reshape(inputs, (batch, height, width, channels // (r * r), r, r))  # (N, H, W, C, rh, rw)
        x = ops.transpose(x, (0, 1, 4, 2, 5, 3))  # (N, H, rh, W, rw, C)
        return ops.reshape(x, (batch, height * r, width * r, channels // (r * r)))

    def compute_output_shape(self, input_shape: Any) -> Any:
        batch, height, width, channels = input_shape
        grown = (None if n is None else n * self.factor for n in (height, width))
        return (batch, *grown, channels // self.factor**2)


@keras.saving.register_keras_serializable(package="weightbridge")
class PixelUnshuffle(_ByFactor):
    """torch.nn.PixelUnshuffle, in torch's order of channels: (N, H*r, W*r, C) -> (N, H, W, C*r*r)."""

    def call(self, inputs: Any) -> Any:
        batch, height, width, channels = ops.shape(inputs)
        r = self.factor
        x = ops.reshape(inputs, (batch, height // r, r, width // r, r, channels))  # (N, H, rh, W, rw, C)
        x = ops.transpose(x, (0, 1, 3, 5, 2, 4))  # (N, H, W, C, rh, rw)
        return ops.reshape(x, (batch, height // r, width // r, channels * r * r))

    def compute_output_shape(self, input_shape: Any) -> Any:
        batch, height, width, channels = input_shape
        shrunk = (None if n is None else n // self.factor for n in (height, width))
        return (batch, *shrunk, channels * self.factor**2)


@keras.saving.register_keras_serializable(package="weightbridge")
class Embedding(keras.layers.Embedding):
    """torch.nn.Embedding with `padding_idx`: the row at it is looked up as any other, and gets no gradient."""

    def __init__(self, input_dim: int, output_dim: int, padding_idx: int | None = None, **kwargs: Any) -> None:
        super().__init__(input_dim, output_dim, **kwargs)
        self.padding_idx = padding_idx if padding_idx is None or padding_idx >= 0 else input_dim + padding_idx

    def call(self, inputs: Any) -> Any:
        rows = super().call(inputs)
        if self.padding_idx is None:
            return rows
        kept = ops.expand_dims(ops.equal(inputs, self.padding_idx), -1)
        return ops.where(kept, ops.stop_gradient(rows), rows)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "padding_idx": self.padding_idx}
