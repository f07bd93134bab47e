"""MobileSAM small enough for every test, in which every size differs from every other."""

import torch

from torch_refs.sam.tiny_vit import TinyViT

ENCODER = {
    "img_size": 80,
    "embed_dims": (16, 24, 20, 40),
    "depths": (1, 2, 1, 2),
    "num_heads": (3, 2, 5),
    "window_sizes": (3, 5, 2),
    "mlp_ratio": 2.5,
    "mbconv_expand_ratio": 3.0,
    "local_conv_size": 5,
    "out_chans": 32,
}


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
