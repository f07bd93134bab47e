"""Small layers that Segment Anything uses in more than one place."""

import math
from collections.abc import Mapping
from numbers import Integral
from types import MappingProxyType
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_models.layers import Conv2D
from tf_models.ops._jit import jit_enabled


@keras.saving.register_keras_serializable(package="weightbridge")
class LayerNorm(keras.layers.LayerNormalization):
    """Layer normalization over the last axis that subtracts the mean before it scales, as torch does.

    Keras's own computes x * scale - mean * scale, which loses digits where the mean is large.
    Half-precision inputs are normalized in float32.
    """

    def call(self, x: Any) -> Any:
        x = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
        centered = x - ops.mean(x, axis=-1, keepdims=True)
        variance = ops.mean(ops.square(centered), axis=-1, keepdims=True)
        normalized = centered * ops.rsqrt(variance + self.epsilon)
        return ops.cast(normalized * self.gamma + self.beta, self.compute_dtype)


@keras.saving.register_keras_serializable(package="weightbridge")
class GELU(keras.layers.Layer):
    """The exact GELU, x * Phi(x) with the error function: any shape, as `torch.nn.GELU()`."""

    def call(self, x: Any) -> Any:
        if not jit_enabled():
            return tf.nn.gelu(x, approximate=False)  # TensorFlow Lite has this op, but no error function
        # Two multiplications and a sum less than Keras's, which counts on the largest maps of a decoder.
        return x * (0.5 + 0.5 * ops.erf(x * math.sqrt(0.5)))


def check_sizes(sizes: Mapping[str, Any], least: Mapping[str, int] = MappingProxyType({})) -> None:
    """See that every size is a whole number, from `least` or 1, or a sequence of them.

    Raises:
        ValueError: one is not.
    """
    for name, value in sizes.items():
        bottom = least.get(name, 1)
        values = value if isinstance(value, (tuple, list)) else [value]
        if any(not isinstance(one, Integral) or isinstance(one, bool) or one < bottom for one in values):
            raise ValueError(f"{name}: expected whole numbers from {bottom}, got {value!r}")


@keras.saving.register_keras_serializable(package="weightbridge")
class SummedConv2D(Conv2D):
    """`tf_models.layers.Conv2D` of stride 1 as a sum of matrix products, one for each place in the kernel.

    With 3 x 3 x 256 terms it rounds a third of what TensorFlow's convolution does, which at small sizes is also three
    times what torch's does.
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        kh, kw = self.kernel_size
        height, width = ops.shape(inputs)[1] - (kh - 1), ops.shape(inputs)[2] - (kw - 1)
        total: Any = 0
        for y in range(kh):
            for x in range(kw):
                total += ops.matmul(inputs[:, y : y + height, x : x + width], kernel[y, x])
        return total


@keras.saving.register_keras_serializable(package="weightbridge")
class MLPBlock(keras.layers.Layer):
    """Two dense layers with an activation between: x (..., C) -> (..., C)."""

    def __init__(self, embedding_dim: int, mlp_dim: int, activation: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.embedding_dim, self.mlp_dim, self.activation = embedding_dim, mlp_dim, activation
        self.lin1 = keras.layers.Dense(mlp_dim, dtype=self.dtype_policy)
        self.lin2 = keras.layers.Dense(embedding_dim, dtype=self.dtype_policy)
        self.act = keras.layers.Activation(activation, dtype=self.dtype_policy)

    def build(self, x_shape: Any = None) -> None:
        self.lin1.build((None, self.embedding_dim))
        self.lin2.build((None, self.mlp_dim))

    def call(self, x: Any) -> Any:
        return self.lin2(self.act(self.lin1(x)))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "embedding_dim": self.embedding_dim,
            "mlp_dim": self.mlp_dim,
            "activation": self.activation,
        }


@keras.saving.register_keras_serializable(package="weightbridge")
class MLP(keras.layers.Layer):
    """`num_layers` dense layers with a ReLU between each two: x (..., input_dim) -> (..., output_dim)."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.input_dim, self.hidden_dim, self.output_dim = input_dim, hidden_dim, output_dim
        sizes = [*[hidden_dim] * (num_layers - 1), output_dim]
        self.layers = [keras.layers.Dense(size, dtype=self.dtype_policy) for size in sizes]

    def build(self, x_shape: Any = None) -> None:
        size = self.input_dim
        for layer in self.layers:
            layer.build((None, size))
            size = layer.units

    def call(self, x: Any) -> Any:
        *hidden, last = self.layers
        for layer in hidden:
            x = ops.relu(layer(x))
        return last(x)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "input_dim": self.input_dim,
            "hidden_dim": self.hidden_dim,
            "output_dim": self.output_dim,
            "num_layers": len(self.layers),
        }
