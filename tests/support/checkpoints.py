"""State dicts as files."""

from pathlib import Path
from typing import Any

import torch


def save(state: object, folder: Path, name: str = "ckpt.pth", **options: Any) -> Path:
    """torch.save into the folder."""
    path = folder / name
    torch.save(state, path, **options)
    return path


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The same tensors, every name behind a prefix."""
    return {prefix + name: tensor for name, tensor in state.items()}
