"""A full Segment Anything checkpoint in the official layout, with seeded random weights in place of trained ones.

python -m torch_refs.sam.seeded_checkpoint vit_b out.pth
"""

import argparse
import math
import os
import zlib
from pathlib import Path

import numpy as np
import torch

from torch_refs.sam.mask_decoder import build_mask_decoder
from torch_refs.sam.tiny_vit import TinyViT

Shapes = dict[str, tuple[int, ...]]

_ENCODERS = {  # variant: width, depth, attention heads
    "vit_b": (768, 12, 12),
    "vit_l": (1024, 24, 16),
    "vit_h": (1280, 32, 16),
}
VARIANTS = (*_ENCODERS, "mobile_sam")
_GRID, _PATCH, _WINDOW, _EMBED = 64, 16, 14, 256  # a 1024 x 1024 image in 16 x 16 patches
_EMBEDDINGS = ("iou_token.", "mask_tokens.", "point_embeddings.", "not_a_point_embed.", "no_mask_embed.", "gaussian")
_CLASSES = 1000  # of the classifier that TinyViT was trained with, which is still in MobileSAM's checkpoint
_GLOBAL_BLOCKS = 4  # of the encoder's blocks, evenly spaced, attend to the whole image instead of a window


def official_shapes(variant: str) -> Shapes:
    """Name and shape of every tensor of the official SAM checkpoint, in state-dict order.

    `variant` is vit_b, vit_l or vit_h, which follow the modules of segment-anything, or mobile_sam, which follows those
    of ChaoningZhang/MobileSAM.

    Raises:
        ValueError: no such variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    with torch.device("meta"):
        decoder = build_mask_decoder()
    return {
        **_under("image_encoder", _tiny_vit() if variant == "mobile_sam" else _image_encoder(*_ENCODERS[variant])),
        **_under("prompt_encoder", _prompt_encoder()),
        **_under("mask_decoder", _shapes(decoder)),
    }


def _shapes(module: torch.nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _under(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def _affine(name: str, *kernel: int) -> Shapes:
    return {f"{name}.weight": kernel, f"{name}.bias": kernel[:1]}


def _image_encoder(width: int, depth: int, heads: int) -> Shapes:
    shapes: Shapes = {
        "pos_embed": (1, _GRID, _GRID, width),
        **_affine("patch_embed.proj", width, 3, _PATCH, _PATCH),
    }
    for index in range(depth):
        is_global = (index + 1) % (depth // _GLOBAL_BLOCKS) == 0
        offsets = 2 * (_GRID if is_global else _WINDOW) - 1
        block: Shapes = {
            **_affine("norm1", width),
            "attn.rel_pos_h": (offsets, width // heads),
            "attn.rel_pos_w": (offsets, width // heads),
            **_affine("attn.qkv", 3 * width, width),
            **_affine("attn.proj", width, width),
            **_affine("norm2", width),
            **_affine("mlp.lin1", 4 * width, width),
            **_affine("mlp.lin2", width, 4 * width),
        }
        shapes |= _under(f"blocks.{index}", block)
    return shapes | {
        "neck.0.weight": (_EMBED, width, 1, 1),
        **_affine("neck.1", _EMBED),
        "neck.2.weight": (_EMBED, _EMBED, 3, 3),
        **_affine("neck.3", _EMBED),
    }


def _tiny_vit() -> Shapes:
    with torch.device("meta"):
        shapes = _shapes(TinyViT())
    neck = {name: shapes.pop(name) for name in list(shapes) if name.startswith("neck.")}
    width = neck["neck.0.weight"][1]
    return {**shapes, **_affine("norm_head", width), **_affine("head", _CLASSES, width), **neck}


def _prompt_encoder() -> Shapes:
    return {
        "pe_layer.positional_encoding_gaussian_matrix": (2, _EMBED // 2),
        **{f"point_embeddings.{index}.weight": (1, _EMBED) for index in range(4)},
        "not_a_point_embed.weight": (1, _EMBED),
        **_affine("mask_downscaling.0", 4, 1, 2, 2),
        **_affine("mask_downscaling.1", 4),
        **_affine("mask_downscaling.3", 16, 4, 2, 2),
        **_affine("mask_downscaling.4", 16),
        **_affine("mask_downscaling.6", _EMBED, 16, 1, 1),
        "no_mask_embed.weight": (1, _EMBED),
    }


def seeded_tensor(name: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """A tensor for the parameter `name`, fixed by name, shape and seed, at the scale of a trained one.

    It is of float32, but for the batches that a batch normalization has counted.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith("num_batches_tracked"):
        return torch.tensor(int(rng.integers(1, 1_000_000)))
    values = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    values *= _scale(name, shape)
    if len(shape) == 1 and name.endswith(("weight", "running_var")):  # a normalization's
        values += 1
    return values


def _scale(name: str, shape: tuple[int, ...]) -> float:
    if "pos_embed" in name or "rel_pos" in name:
        return 0.02
    if len(shape) == 1:  # biases, and how far a normalization's weights and variances are from 1
        return 0.05
    if any(part in name for part in _EMBEDDINGS) or name.endswith("attention_biases"):
        return 1.0
    if name.endswith(("output_upscaling.0.weight", "output_upscaling.3.weight")):  # (in, out, 2, 2), stride 2
        return 1 / math.sqrt(shape[0])
    return 1 / math.sqrt(math.prod(shape[1:]))


def write_seeded_checkpoint(path: str | os.PathLike[str], variant: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Write a `torch.save`d state dict with the official layout of `variant` and seeded weights.

    The same variant and seed give the same tensors. Returns what was written.

    Raises:
        ValueError: no such variant.
    """
    tensors = {name: seeded_tensor(name, shape, seed) for name, shape in official_shapes(variant).items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path)
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tensors = write_seeded_checkpoint(arguments.path, arguments.variant, arguments.seed)
    size = sum(tensor.nbytes for tensor in tensors.values())
    print(f"{arguments.path}  {arguments.variant}  {len(tensors)} tensors  {size / 1e6:,.1f} MB  seed {arguments.seed}")


if __name__ == "__main__":
    main()
