"""A transposed convolution whose patches do not overlap, computed as one matrix product."""

import math
from typing import Any

import keras
from keras import ops


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
