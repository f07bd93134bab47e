"""MobileSAM small enough for every test, in which every size differs from every other."""

import torch

import torch_refs
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


def seeded(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The module in inference mode with seeded weights and statistics, none left at 0 or 1."""
    rng = torch.Generator().manual_seed(seed)
    state = module.state_dict()
    for name, tensor in state.items():
        values = torch.randn(tensor.shape, generator=rng)
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_var"):
            values = 0.5 + torch.rand(tensor.shape, generator=rng)
        elif tensor.ndim == 1:
            values = 0.1 * values + name.endswith("weight")
        elif not name.endswith("attention_biases"):
            values = values / tensor[0].numel() ** 0.5
        state[name] = values
    module.load_state_dict(state)
    return module.eval()


def seeded_encoder(**sizes: object) -> TinyViT:
    """The small encoder."""
    return seeded(TinyViT(**ENCODER | sizes))  # type: ignore[arg-type, return-value]


def small_state() -> dict[str, torch.Tensor]:
    """A checkpoint of the small model, with what the published one holds besides."""
    state = seeded(torch_refs.create("mobile_sam", **CONFIG)).state_dict()
    rng = torch.Generator().manual_seed(1)
    for name, shape in (("norm_head.weight", (40,)), ("norm_head.bias", (40,)), ("head.weight", (9, 40))):
        state[f"image_encoder.{name}"] = torch.randn(shape, generator=rng)
    return state | {"image_encoder.head.bias": torch.zeros(9)}
