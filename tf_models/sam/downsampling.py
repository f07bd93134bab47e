"""A convolution whose patches do not overlap, computed as one matrix product."""

import math
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="weightbridge")
class PatchConv2D(keras.layers.Layer):
    """Convolution with strides equal to its kernel size: each patch of the input becomes a pixel.

    x (B, H, W, I), where kh divides H and kw divides W -> (B, H/kh, W/kw, O). The variables are those of
    `keras.layers.Conv2D`: kernel (kh, kw, I, O) and bias (O,). It equals
    `torch.nn.Conv2d(I, O, (kh, kw), stride=(kh, kw))`.
    """

    def __init__(self, filters: int, kernel_size: tuple[int, int], use_bias: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        kh, kw = kernel_size
        self.filters, self.kernel_size, self.use_bias = filters, (kh, kw), use_bias

    def build(self, x_shape: Any) -> None:
        self.kernel = self.add_weight(name="kernel", shape=(*self.kernel_size, x_shape[-1], self.filters))
        self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros") if self.use_bias else None

    def call(self, x: Any) -> Any:
        batch, height, width, channels = ops.shape(x)
        kh, kw = self.kernel_size
        x = ops.reshape(x, (batch, height // kh, kh, width // kw, kw, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))  # (B, H/kh, kh, W/kw, kw, I) -> (B, H/kh, W/kw, kh, kw, I)
        x = ops.reshape(x, (batch, height // kh, width // kw, math.prod(self.kernel_size) * channels))
        x = ops.matmul(x, ops.reshape(self.kernel, (-1, self.filters)))  # (kh, kw, I, O) -> (kh * kw * I, O)
        return x if self.bias is None else x + self.bias

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "use_bias": self.use_bias,
        }
