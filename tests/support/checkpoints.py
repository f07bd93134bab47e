"""State dicts as files."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


def save(state: object, folder: Path, name: str = "ckpt.pth", **options: Any) -> Path:
    """torch.save into the folder."""
    path = folder / name
    torch.save(state, path, **options)
    return path


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The same tensors, every name behind a prefix."""
    return {prefix + name: tensor for name, tensor in state.items()}


@contextlib.contextmanager
def without_checksums() -> Iterator[None]:
    """torch writes none inside this; versions that always do have no such test."""
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this torch always writes checksums")
    computed = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(computed)
