"""A Segment Anything small enough to convert in every test: its sizes, seeded weights, and segment-anything's own."""

from functools import partial
from typing import Any

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

import torch_refs
from tests.support.seeded import seeded

# Windows of 4 do not divide the grid of 10 x 10 patches. Lengths differ from one another where they can.
IMAGE_ENCODER: dict[str, Any] = {
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
CONFIG: dict[str, Any] = {
    "image_size": 80,
    "num_heads": 4,
    "image_encoder": IMAGE_ENCODER,
    "prompt_encoder": PROMPT_ENCODER,
    "mask_decoder": MASK_DECODER,
}
OPTIONS = {"num_heads": 4}  # what a checkpoint of it does not tell, whole or the decoder alone
DECODER = {**MASK_DECODER, **OPTIONS}  # of the decoder alone
OTHER_DECODER = {  # as SAM's, in which every count is another
    **DECODER,
    "num_multimask_outputs": 2,
    "iou_head_depth": 4,
    "depth": 3,
    "attention_downsample_rate": 1,
}


def sam_state(**changes: Any) -> dict[str, torch.Tensor]:
    """Seeded weights of the whole, with changes to the sizes of the image encoder."""
    config = {**CONFIG, "image_encoder": {**IMAGE_ENCODER, **changes}}
    return seeded(torch_refs.create("sam_vit_b", **config)).state_dict()


def decoder_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Seeded weights of the mask decoder, by its own names."""
    return seeded(torch_refs.create("sam_decoder", **DECODER), seed).state_dict()


def decoder_inputs(c: int, prompts: int, height: int, width: int, tokens: int) -> list[torch.Tensor]:
    """Image embeddings and positions (1, c, H, W), sparse (prompts, tokens, c) and dense ones (prompts, c, H, W)."""
    rng = torch.Generator().manual_seed(prompts * 1000 + height * 100 + width * 10 + tokens)
    shapes = [(1, c, height, width), (1, c, height, width), (prompts, tokens, c), (prompts, c, height, width)]
    return [torch.randn(shape, generator=rng) for shape in shapes]


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


def upstream_mask_decoder(sizes: dict[str, Any] = DECODER) -> MaskDecoder:
    """segment-anything's mask decoder of these sizes."""
    transformer = TwoWayTransformer(
        depth=sizes["depth"],
        embedding_dim=sizes["transformer_dim"],
        num_heads=sizes["num_heads"],
        mlp_dim=sizes["mlp_dim"],
        attention_downsample_rate=sizes["attention_downsample_rate"],
    )
    return MaskDecoder(
        transformer_dim=sizes["transformer_dim"],
        transformer=transformer,
        num_multimask_outputs=sizes["num_multimask_outputs"],
        iou_head_depth=sizes["iou_head_depth"],
        iou_head_hidden_dim=sizes["iou_head_hidden_dim"],
    ).eval()


def upstream_sam() -> Sam:
    """segment-anything's `Sam` of CONFIG's sizes."""
    size, width = CONFIG["image_size"], PROMPT_ENCODER["embed_dim"]
    grid = size // IMAGE_ENCODER["patch_size"]
    prompts = PromptEncoder(width, (grid, grid), (size, size), PROMPT_ENCODER["mask_in_chans"])
    return Sam(upstream_image_encoder(), prompts, upstream_mask_decoder()).eval()
