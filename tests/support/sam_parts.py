"""A whole Segment Anything small enough to convert in every test: sizes, seeded weights, and segment-anything's own."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from tests.support.rule import assert_allowed
from tests.support.seeded import seeded
from torch_refs.sam.sam import build_sam

# Windows of 4 do not divide the grid of 10 x 10 patches. Lengths differ from one another where they can.
IMAGE_ENCODER = {
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 4,
    "mlp_dim": 96,
    "out_chans": 32,
    "window_size": 4,
    "global_attn_indexes": [1],
    "trained_img_size": 80,
}
PROMPT_ENCODER = {"embed_dim": 32, "mask_in_chans": 16}
MASK_DECODER = {
    "transformer_dim": 32,
    "num_multimask_outputs": 3,
    "iou_head_depth": 3,
    "iou_head_hidden_dim": 24,
    "depth": 2,
    "mlp_dim": 40,
    "attention_downsample_rate": 2,
}
CONFIG = {
    "image_size": 80,
    "num_heads": 4,
    "image_encoder": IMAGE_ENCODER,
    "prompt_encoder": PROMPT_ENCODER,
    "mask_decoder": MASK_DECODER,
}
OPTIONS = {"num_heads": 4}


def upstream_image_encoder(sizes: dict[str, Any] = IMAGE_ENCODER) -> ImageEncoderViT:
    """segment-anything's image encoder of these sizes, built as its `build_sam` does."""
    return ImageEncoderViT(
        img_size=sizes["trained_img_size"],
        patch_size=sizes["patch_size"],
        embed_dim=sizes["embed_dim"],
        depth=sizes["depth"],
        num_heads=sizes["num_heads"],
        mlp_ratio=sizes["mlp_dim"] / sizes["embed_dim"],
        out_chans=sizes["out_chans"],
        window_size=sizes["window_size"],
        global_attn_indexes=sizes["global_attn_indexes"],
        use_rel_pos=True,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    ).eval()


def upstream_sam() -> Sam:
    """segment-anything's `Sam` of CONFIG's sizes."""
    size = CONFIG["image_size"]
    grid = size // IMAGE_ENCODER["patch_size"]
    width = PROMPT_ENCODER["embed_dim"]
    transformer = TwoWayTransformer(MASK_DECODER["depth"], width, CONFIG["num_heads"], MASK_DECODER["mlp_dim"])
    return Sam(
        upstream_image_encoder(),
        PromptEncoder(width, (grid, grid), (size, size), PROMPT_ENCODER["mask_in_chans"]),
        MaskDecoder(
            transformer_dim=width,
            transformer=transformer,
            iou_head_hidden_dim=MASK_DECODER["iou_head_hidden_dim"],
        ),
    ).eval()


def sam_state(**changes: Any) -> dict[str, torch.Tensor]:
    """Seeded weights of a `Sam` of CONFIG's sizes, with changes to those of the image encoder."""
    return seeded(build_sam(**{**CONFIG, "image_encoder": {**IMAGE_ENCODER, **changes}})).state_dict()


def last(value: torch.Tensor | np.ndarray) -> np.ndarray:
    """An image with the channels last; anything else as it is."""
    value = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return np.moveaxis(value, 1, -1) if value.ndim == 4 else value


def assert_as_exact(
    results: Iterable[Any], compute: Callable[[], Iterable[torch.Tensor]], dtype: str = "float32"
) -> None:
    """TensorFlow's results are as near to those that torch computes in float64 as the rule of the proof demands."""
    with torch.no_grad():
        assert_allowed(list(results), lambda: [last(value) for value in compute()], dtype)
