"""MobileSAM small enough for every test, in which every size differs from every other."""

import torch

import torch_refs
from tests.support.seeded import seeded
from tests.support.small_sam import SMALL
from torch_refs.sam.tiny_vit import TinyViT

ENCODER = {
    "embed_dims": (16, 24, 20, 40),
    "depths": (1, 2, 1, 2),
    "num_heads": (3, 2, 5),
    "window_sizes": (3, 5, 2),
    "mlp_ratio": 2.5,
    "mbconv_expand_ratio": 3.0,
    "local_conv_size": 5,
    "out_chans": 32,
}

CONFIG = {
    "image_encoder": ENCODER,
    "prompt_encoder": {"embed_dim": 32, "mask_in_chans": 8},
    "mask_decoder": {name: size for name, size in SMALL.items() if name != "num_heads"},
    "image_size": 80,
    "num_heads": 4,
}
OPTIONS = {"image_size": 80, "num_heads": 4}


def seeded_encoder(**sizes: object) -> TinyViT:
    """The small encoder."""
    return seeded(TinyViT(**ENCODER | sizes))  # type: ignore[arg-type]


def small_state() -> dict[str, torch.Tensor]:
    """A checkpoint of the small model, with what the published one holds besides."""
    state = seeded(torch_refs.create("mobile_sam", **CONFIG)).state_dict()
    rng = torch.Generator().manual_seed(1)
    for name, shape in (("norm_head.weight", (40,)), ("norm_head.bias", (40,)), ("head.weight", (9, 40))):
        state[f"image_encoder.{name}"] = torch.randn(shape, generator=rng)
    return state | {"image_encoder.head.bias": torch.zeros(9)}
