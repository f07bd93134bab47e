"""MobileSAM: Segment Anything with TinyViT for an image encoder."""

from typing import Any

from torch_refs.sam.mask_decoder import build_mask_decoder
from torch_refs.sam.prompt_encoder import build_prompt_encoder
from torch_refs.sam.sam import Sam
from torch_refs.sam.tiny_vit import STRIDE, TinyViT

Sizes = dict[str, Any] | None


def build_mobile_sam(
    image_encoder: Sizes = None,
    prompt_encoder: Sizes = None,
    mask_decoder: Sizes = None,
    image_size: int = 1024,
    num_heads: int = 8,
) -> Sam:
    """Build a `Sam` with a `TinyViT` and fresh weights, in inference mode.

    `image_size` is the side of the square image in pixels, `num_heads` the mask decoder's. The other arguments are
    those of the parts, by name. Follows `build_sam_vit_t` of ChaoningZhang/MobileSAM.
    """
    encoder = TinyViT(**{"img_size": image_size, **(image_encoder or {})})
    prompt = build_prompt_encoder(**{"image_size": image_size, "patch_size": STRIDE, **(prompt_encoder or {})})
    return Sam(encoder, prompt, build_mask_decoder(**{"num_heads": num_heads, **(mask_decoder or {})})).eval()
