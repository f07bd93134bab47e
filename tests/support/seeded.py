"""Torch modules with drawn values in place of those that they are made with."""

import torch
from torch import nn


def norm(layer: nn.Module) -> nn.Module:
    """Statistics and affine parameters that are not the trivial ones."""
    for name, tensor in layer.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(
                torch.rand(tensor.shape) + 0.5 if "weight" in name or "var" in name else torch.randn(tensor.shape)
            )
    return layer
