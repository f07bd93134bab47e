"""What the Keras networks share."""

from typing import Any

import keras
from keras import ops

from tf_models import layers


class Layer(keras.layers.Layer):
    """A layer of layers, which are built when they are first called; without `build` Keras traces every level anew."""

    def build(self, input_shape: Any) -> None:
        pass


class Model(keras.Model):
    """The same of a model."""

    def build(self, input_shape: Any) -> None:
        pass


def conv(filters: int, kernel: Any, stride: int = 1, bias: bool = True, **more: Any) -> Any:
    """A convolution that keeps the size at stride 1."""
    padding = more.pop("padding", kernel // 2 if isinstance(kernel, int) else tuple(k // 2 for k in kernel))
    return layers.Conv2D(filters, kernel, strides=stride, padding=padding, use_bias=bias, **more)


def batch_norm(epsilon: float = 1e-5) -> Any:
    """torch's momentum of 0.1 is Keras's 0.9."""
    return keras.layers.BatchNormalization(epsilon=epsilon, momentum=0.9)


def layer_norm(epsilon: float = 1e-6) -> Any:
    return keras.layers.LayerNormalization(epsilon=epsilon)


def dense(units: int, **more: Any) -> Any:
    return keras.layers.Dense(units, **more)


def act(name: str) -> Any:
    """An activation as a layer of its own."""
    return keras.layers.Activation(name)


def gelu() -> Any:
    """torch's GELU is the exact one."""
    return keras.layers.Activation(exact_gelu)


def exact_gelu(x: Any) -> Any:
    return keras.activations.gelu(x, approximate=False)


class Identity(Layer):
    """Stands where torch has a module without weights that channels last does not need."""

    def call(self, x: Any) -> Any:
        return x


def chain(layers_: Any, x: Any) -> Any:
    """The layers one after another."""
    for layer in layers_:
        x = layer(x)
    return x


def pad(x: Any, before: int, after: int | None = None, value: float = 0.0, mode: str = "constant") -> Any:
    """Both image axes of (N, H, W, C) padded alike."""
    amount = (before, before if after is None else after)
    more = {"constant_values": value} if mode == "constant" else {}
    return ops.pad(x, [(0, 0), amount, amount, (0, 0)], mode=mode, **more)


def max_pool(x: Any, size: int, stride: int, padding: int = 0, ceil: bool = False) -> Any:
    """torch's max_pool2d: padded with minus infinity; `ceil` lets the last window reach beyond the image."""
    if padding:
        x = pad(x, padding, value=float("-inf"))
    if ceil:
        missing = [-(n - size) % stride for n in x.shape[1:3]]
        x = ops.pad(x, [(0, 0), *((0, n) for n in missing), (0, 0)], constant_values=float("-inf"))
    return ops.max_pool(x, size, stride)


def heads_apart(x: Any, heads: int) -> Any:
    """(N, L, h*d) -> (N, h, L, d)."""
    n, length, width = ops.shape(x)
    return ops.transpose(ops.reshape(x, (n, length, heads, width // heads)), (0, 2, 1, 3))


def heads_joined(x: Any) -> Any:
    """(N, h, L, d) -> (N, L, h*d)."""
    n, heads, length, width = ops.shape(x)
    return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (n, length, heads * width))


def attend(q: Any, k: Any, v: Any, bias: Any = None) -> Any:
    """softmax(q k / sqrt(d) + bias) v, of heads apart."""
    scores = ops.matmul(q / (q.shape[-1] ** 0.5), ops.transpose(k, (0, 1, 3, 2)))
    if bias is not None:
        scores = scores + bias
    return ops.matmul(ops.softmax(scores, -1), v)


def built(model: Any, *inputs: Any) -> Any:
    """The model with its variables, made by a call on zeros of these shapes; an array is taken as it is."""
    given = [ops.zeros(value) if isinstance(value, tuple) else value for value in inputs]
    model(*given)
    return model
