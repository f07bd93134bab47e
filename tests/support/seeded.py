"""Torch modules with drawn values in place of those that they are made with."""

from typing import TypeVar

import torch

from torch_refs.sam.seeded_checkpoint import seeded_tensor

Module = TypeVar("Module", bound=torch.nn.Module)


def seeded(module: Module, seed: int = 0) -> Module:
    """The module in inference mode, every tensor drawn by its name, its shape and the seed, as large as trained ones.

    Weights and variances of normalisations lie around 1, nothing is left at 0 or 1, and whole numbers are as they were.
    """
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(seeded_tensor(name, tuple(tensor.shape), seed))
    return module.eval()
