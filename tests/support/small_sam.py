"""A mask decoder small enough to convert in every test, and checkpoints of it."""

from pathlib import Path

import torch

import torch_refs
from tests.support.seeded import seeded

# Every size differs from every other, so that a swapped axis shows.
SMALL = {
    "transformer_dim": 32,
    "num_multimask_outputs": 3,
    "iou_head_depth": 3,
    "iou_head_hidden_dim": 24,
    "depth": 2,
    "num_heads": 4,
    "mlp_dim": 40,
    "attention_downsample_rate": 2,
}
OPTIONS = {"num_heads": 4}


def small_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Seeded weights of the decoder."""
    return seeded(torch_refs.create("sam_decoder", **SMALL), seed).state_dict()


def save(state: object, folder: Path, name: str = "ckpt.pth", **options: object) -> Path:
    """torch.save into the folder."""
    path = folder / name
    torch.save(state, path, **options)  # type: ignore[arg-type]
    return path


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The same tensors, every name behind a prefix."""
    return {prefix + name: tensor for name, tensor in state.items()}
