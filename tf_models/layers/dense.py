"""Small layers of vectors: an embedding, the exact GELU, and chains of dense layers."""

import math
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_models.ops.compiling import jit_enabled


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


@keras.saving.register_keras_serializable(package="weightbridge")
class GELU(keras.layers.Layer):
    """The exact GELU, x * Phi(x) with the error function: any shape, as `torch.nn.GELU()`."""

    def call(self, x: Any) -> Any:
        if not jit_enabled():
            return tf.nn.gelu(x, approximate=False)  # TensorFlow Lite has this op, but no error function
        # Two multiplications and a sum less than Keras's, which counts on the largest maps of a decoder.
        return x * (0.5 + 0.5 * ops.erf(x * math.sqrt(0.5)))


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
