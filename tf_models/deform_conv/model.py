"""Deformable convolution as a layer: it predicts its own offsets, and masks, from what it convolves."""

import math
from typing import Any

import keras
import tensorflow as tf

from tf_models.layers import Conv2D
from tf_models.layers.sizes import per_axis
from tf_models.ops import deform_conv2d


@keras.saving.register_keras_serializable(package="weightbridge")
class DeformConv2d(keras.Model):
    """A convolution that looks where a second one, `conv_offset_mask`, points: (N, H, W, I) -> (N, H', W', O).

    `conv_offset_mask` has the window of the convolution itself. For G offset groups and K = kh*kw taps its channels are
    2*G*K offsets (G, kh, kw, 2), pairs (dy, dx) in pixels, and if `modulated` G*K masks (G, kh, kw) before the sigmoid.
    H' = (H + 2*padding - dilation*(kh - 1) - 1) // stride + 1, W' likewise.

    Args:
        in_channels, out_channels: I and O.
        kernel_size, stride, padding, dilation: an int, or one for y and one for x.
        groups: of channels that are convolved apart.
        offset_groups: G, of channels that have offsets of their own.
        bias: add one.
        modulated: with masks (v2); without, v1.

    Raises:
        ValueError: `groups` or `offset_groups` does not divide the channels.

    The torch module is one with `torchvision.ops.deform_conv2d` inside: its tensors are `weight`, `bias` and
    `conv_offset_mask.*`. Dai et al., 2017 (v1), and Zhu et al., 2018 (v2).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        offset_groups: int = 1,
        bias: bool = True,
        modulated: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if min(groups, offset_groups) < 1:
            raise ValueError(f"groups ({groups}) and offset_groups ({offset_groups}) are at least 1")
        if in_channels % groups or out_channels % groups or in_channels % offset_groups:
            raise ValueError(
                f"groups ({groups}) must divide in_channels ({in_channels}) and out_channels ({out_channels}), "
                f"offset_groups ({offset_groups}) in_channels"
            )
        self.in_channels, self.out_channels, self.groups, self.offset_groups = (
            in_channels,
            out_channels,
            groups,
            offset_groups,
        )
        self.kernel_size, self.stride = per_axis(kernel_size, 2, "kernel_size", 1), per_axis(stride, 2, "stride", 1)
        self.padding, self.dilation = per_axis(padding, 2, "padding"), per_axis(dilation, 2, "dilation", 1)
        self.use_bias, self.modulated = bias, modulated
        self.conv_offset_mask = Conv2D(
            (3 if modulated else 2) * offset_groups * math.prod(self.kernel_size),
            self.kernel_size,
            strides=self.stride,
            padding=self.padding,
            dilation_rate=self.dilation,
            kernel_initializer=self._offset_initializer(),
            bias_initializer=self._offset_initializer(),
            dtype=self.dtype_policy,
        )

    def _bound(self) -> float:
        """Weights start uniformly within this, as torchvision's."""
        return 1 / math.sqrt(self.in_channels // self.groups * math.prod(self.kernel_size))

    def _offset_initializer(self) -> Any:
        """That of `torch.nn.Conv2d`."""
        bound = 1 / math.sqrt(self.in_channels * math.prod(self.kernel_size))
        return keras.initializers.RandomUniform(-bound, bound)

    def _bias_initializer(self) -> Any:
        return keras.initializers.RandomUniform(-self._bound(), self._bound())

    def build(self, x_shape: Any = None) -> None:
        self.conv_offset_mask.build((None, None, None, self.in_channels))
        self.kernel = self.add_weight(
            name="kernel",
            shape=(*self.kernel_size, self.in_channels // self.groups, self.out_channels),
            initializer=keras.initializers.RandomUniform(-self._bound(), self._bound()),
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.out_channels,), initializer=self._bias_initializer())

    def call(self, x: Any) -> Any:
        predicted = self.conv_offset_mask(x)  # (N, H', W', 3*G*K), or 2*G*K
        mask = None
        if self.modulated:
            # torch cuts it in three and joins the first two: still pairs (dy, dx), no block of y and block of x.
            count = self.offset_groups * math.prod(self.kernel_size)
            predicted, mask = tf.split(predicted, [2 * count, count], axis=-1)
            mask = tf.sigmoid(mask)
        kernel, bias = (None if v is None else keras.ops.convert_to_tensor(v) for v in (self.kernel, self.bias))
        return deform_conv2d(x, predicted, kernel, bias, self.stride, self.padding, self.dilation, mask)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "offset_groups": self.offset_groups,
            "bias": self.use_bias,
            "modulated": self.modulated,
        }


@keras.saving.register_keras_serializable(package="weightbridge")
class DCNv2(DeformConv2d):
    """`DeformConv2d` with masks as detectors use it: it starts as half an ordinary convolution, with no offsets.

    (N, H, W, I) -> (N, H', W', O). Arguments, tensors and shapes are those of `DeformConv2d`, except that `modulated`
    is true. Offsets and bias start at zero, as in CharlesShang's DCNv2 and in mmcv.
    """

    def _bound(self) -> float:
        return 1 / math.sqrt(self.in_channels * math.prod(self.kernel_size))

    def _offset_initializer(self) -> Any:
        return "zeros"

    def _bias_initializer(self) -> Any:
        return "zeros"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.modulated:
            raise ValueError("modulated: DCNv2 has masks; DeformConv2d can do without")


def build_deform_conv2d(**config: Any) -> DeformConv2d:
    """Build a `DeformConv2d`, all its variables made, with fresh weights; the arguments are those of the class."""
    return _built(DeformConv2d(**config))


def build_dcn_v2(**config: Any) -> DCNv2:
    """Build a `DCNv2`, all its variables made, with fresh weights; the arguments are those of the class."""
    return _built(DCNv2(**config))


def _built(model: Any) -> Any:
    model.build((None, None, None, model.in_channels))
    return model
