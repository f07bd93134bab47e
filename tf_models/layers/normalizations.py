"""Normalisations as torch computes them."""

import math
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="weightbridge")
class LayerNorm(keras.layers.LayerNormalization):
    """Layer normalization over `axis`, the last by default, that subtracts the mean before it scales, as torch does.

    Keras's own computes x * scale - mean * scale, which loses digits where the mean is large.
    Half-precision inputs are normalized in float32.
    """

    def call(self, x: Any) -> Any:
        x = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
        axes = [axis % len(x.shape) for axis in (self.axis if isinstance(self.axis, (list, tuple)) else [self.axis])]
        centered = x - ops.mean(x, axis=axes, keepdims=True)
        variance = ops.mean(ops.square(centered), axis=axes, keepdims=True)
        normalized = centered * ops.rsqrt(variance + self.epsilon)
        # Factors have the axes of the normalisation, in their order; the others count 1.
        shape = [n if place in axes else 1 for place, n in enumerate(x.shape)]
        if self.scale:
            normalized = normalized * ops.reshape(self.gamma, shape)
        if self.center:
            normalized = normalized + ops.reshape(self.beta, shape)
        return ops.cast(normalized, self.compute_dtype)


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
