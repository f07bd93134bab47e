"""Deformable convolution as a module: it predicts its own offsets, and masks, from what it convolves."""

import math

import torch
import torchvision
from torch import nn


class DeformConv2d(nn.Module):
    """A convolution that looks where a second one, `conv_offset_mask`, points: (N, I, H, W) -> (N, O, H', W').

    The widely used module around `torchvision.ops.deform_conv2d`; with `modulated=False` (v1) there are no masks.
    For G offset groups and K = kh*kw taps `conv_offset_mask` has 2*G*K channels of offsets, pairs (dy, dx), and if
    `modulated` G*K of masks.
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
    ) -> None:
        super().__init__()
        kernel_size, self.stride, self.padding, self.dilation = map(_pair, (kernel_size, stride, padding, dilation))
        self.modulated = modulated
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.conv_offset_mask = nn.Conv2d(
            in_channels,
            (3 if modulated else 2) * offset_groups * math.prod(kernel_size),
            kernel_size,
            self.stride,
            self.padding,
            self.dilation,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As torchvision's `DeformConv2d`."""
        bound = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        offset, mask = self.conv_offset_mask(x), None
        if self.modulated:
            first, second, mask = torch.chunk(offset, 3, dim=1)
            offset, mask = torch.cat([first, second], dim=1), torch.sigmoid(mask)
        return torchvision.ops.deform_conv2d(
            x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask
        )


class DCNv2(DeformConv2d):
    """`DeformConv2d` with masks, whose offsets and bias start at zero.

    Written from the published definition (Zhu et al., 2018): CharlesShang's DCNv2 and mmcv's operators need a compiler
    or CUDA. Their arithmetic is that of `torchvision.ops.deform_conv2d`; names and initial values are CharlesShang's.
    """

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.conv_offset_mask.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.conv_offset_mask.weight)
        nn.init.zeros_(self.conv_offset_mask.bias)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
