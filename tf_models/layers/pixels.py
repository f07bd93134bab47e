"""What moves pixels: patches that do not overlap, computed as one matrix product, and shuffles."""

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


def place_patches(patches: Any, kernel_size: tuple[int, int]) -> Any:
    """Put the patch of each pixel in its place: patches (B, H, W, kh * kw * C), (ky, kx, c) -> (B, kh*H, kw*W, C)."""
    batch, height, width, size = ops.shape(patches)
    kh, kw = kernel_size
    patches = ops.reshape(patches, (batch, height, width, kh, kw, size // (kh * kw)))
    patches = ops.transpose(patches, (0, 1, 3, 2, 4, 5))  # (B, H, W, kh, kw, C) -> (B, H, kh, W, kw, C)
    return ops.reshape(patches, (batch, kh * height, kw * width, size // (kh * kw)))


@keras.saving.register_keras_serializable(package="weightbridge")
class PatchConv2DTranspose(keras.layers.Layer):
    """Transposed convolution with strides equal to its kernel size: each input pixel becomes a patch of its own.

    x (B, H, W, I) -> (B, kh*H, kw*W, O). The variables are those of `keras.layers.Conv2DTranspose`:
    kernel (kh, kw, O, I) and bias (O,). It equals `torch.nn.ConvTranspose2d(I, O, (kh, kw), stride=(kh, kw))`.
    """

    def __init__(self, filters: int, kernel_size: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        kh, kw = kernel_size
        self.filters, self.kernel_size = filters, (kh, kw)

    def build(self, x_shape: Any) -> None:
        self.kernel = self.add_weight(name="kernel", shape=(*self.kernel_size, self.filters, x_shape[-1]))
        self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")

    def patches(self, x: Any) -> Any:
        """x (..., I) -> (..., kh * kw * O), (ky, kx, o): the patch of each pixel, not yet put in its place."""
        kernel = ops.reshape(self.kernel, (-1, x.shape[-1]))  # (kh, kw, O, I) -> (kh * kw * O, I)
        bias = ops.tile(self.bias, math.prod(self.kernel_size))  # (O,) -> (kh * kw * O,)
        return ops.matmul(x, ops.transpose(kernel)) + bias

    def call(self, x: Any) -> Any:
        return place_patches(self.patches(x), self.kernel_size)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"filters": self.filters, "kernel_size": self.kernel_size}


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
