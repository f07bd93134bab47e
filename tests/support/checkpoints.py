"""State dicts as files."""

from pathlib import Path

import torch


def save(state: object, folder: Path, name: str = "ckpt.pth", **options: object) -> Path:
    """torch.save into the folder."""
    path = folder / name
    torch.save(state, path, **options)  # type: ignore[arg-type]
    return path


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The same tensors, every name behind a prefix."""
    return {prefix + name: tensor for name, tensor in state.items()}
