"""Seeded values for a torch network, and the names that its checkpoint file has."""

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def seeded(module: Any, seed: int) -> Any:
    """The module, each of its parameters and normalisation statistics drawn anew, so that activations stay alive.

    Tables that are computed (frequencies, positions, relative indices) and parameters that are not trained stay.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    seen: set[int] = set()
    with torch.no_grad():
        for owner, name, tensor in _drawn(module):
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            low, high, deviation = _scale(type(owner).__name__.lower(), name, tuple(tensor.shape))
            if deviation:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * deviation)
            else:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return module.eval()


def _drawn(module: Any) -> Iterator[tuple[Any, str, Any]]:
    for owner in module.modules():
        for name, tensor in owner.named_parameters(recurse=False):
            if tensor.is_floating_point() and tensor.requires_grad:
                yield owner, name, tensor
        for name, tensor in owner.named_buffers(recurse=False):
            frozen = "norm" in type(owner).__name__.lower() and name in ("weight", "bias")
            if name in ("running_mean", "running_var") or frozen:
                yield owner, name, tensor


def _scale(kind: str, name: str, shape: tuple[int, ...]) -> tuple[float, float, float]:
    """Of a uniform draw the ends, of a normal one the deviation, which is 0 for a uniform one."""
    vector = math.prod(shape) == max(shape, default=1)
    if "norm" in kind or kind.startswith("bn") or name.startswith("running_"):
        return (0.5, 1.5, 0) if name in ("weight", "running_var") else (0, 0, 0.1)
    if "embedding" in kind and len(shape) == 2:
        return 0, 0, 0.5
    if any(word in name for word in ("gamma", "scale", "lambda")) and vector:
        return 0.3, 1.0, 0
    if vector and name == "weight" and len(shape) == 1:
        return 0.3, 1.0, 0
    if len(shape) < 2:
        return 0, 0, 0.1
    if "table" in name or (shape[0] == 1 and "conv" not in kind and "linear" not in kind):
        return 0, 0, 0.3  # positions, tokens, biases of attention
    if kind == "conv1d" and len(shape) == 2:  # as transformers has it: (in, out)
        return 0, 0, shape[0] ** -0.5
    if len(shape) == 3 and "conv" not in kind:  # one matrix for each expert
        return 0, 0, shape[-1] ** -0.5
    return 0, 0, math.prod(shape[1:]) ** -0.5


def on_disk(module: Any) -> dict[str, Any]:
    """Its tensors under the names that a file has: transformers renames some while it loads and saves."""
    if not hasattr(module, "save_pretrained"):
        return dict(module.state_dict())
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        module.save_pretrained(folder)
        found: dict[str, Any] = load_file(Path(folder, "model.safetensors"))
    return found
