"""MobileSAM small enough for every test: what differs from `small_sam`, in sizes that again differ from one another."""

from typing import Any

import torch

import torch_refs
from tests.support import small_sam
from tests.support.seeded import seeded
from torch_refs.sam.seeded_checkpoint import seeded_tensor
from torch_refs.sam.tiny_vit import TinyViT

ENCODER: dict[str, Any] = {
    "embed_dims": (16, 24, 20, 40),
    "depths": (1, 2, 1, 2),
    "num_heads": (3, 2, 5),
    "window_sizes": (3, 5, 2),
    "mlp_ratio": 2.5,
    "mbconv_expand_ratio": 3.0,
    "local_conv_size": 5,
    "out_chans": 32,
}
CONFIG = {**small_sam.CONFIG, "image_encoder": ENCODER}
OPTIONS = {"image_size": 80, "num_heads": 4}


def seeded_encoder(**sizes: Any) -> TinyViT:
    """The small encoder."""
    return seeded(TinyViT(**{**ENCODER, **sizes}))


def mobile_state() -> dict[str, torch.Tensor]:
    """A checkpoint of the small model, with what the published one holds besides."""
    state = seeded(torch_refs.create("mobile_sam", **CONFIG)).state_dict()
    for name, shape in (("norm_head.weight", (40,)), ("norm_head.bias", (40,)), ("head.weight", (9, 40))):
        state[f"image_encoder.{name}"] = seeded_tensor(name, shape)
    return state | {"image_encoder.head.bias": torch.zeros(9)}
