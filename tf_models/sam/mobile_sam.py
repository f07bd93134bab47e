"""MobileSAM: Segment Anything with TinyViT for an image encoder."""

from typing import Any

from tf_models.sam.mask_decoder import build_mask_decoder
from tf_models.sam.prompt_encoder import build_prompt_encoder
from tf_models.sam.sam import Sam
from tf_models.sam.tiny_vit import STRIDE, TinyViT

Sizes = dict[str, Any] | None


def build_mobile_sam(
    image_encoder: Sizes = None,
    prompt_encoder: Sizes = None,
    mask_decoder: Sizes = None,
    image_size: int = 1024,
    num_heads: int = 8,
    **kwargs: Any,
) -> Sam:
    """Build a `Sam` with a `TinyViT`, all its variables made, with fresh weights.

    `image_size` is the side of the square image in pixels, `num_heads` the mask decoder's. The other arguments are
    those of the parts, by name, and Keras's own for all of them (`dtype`). Follows `build_sam_vit_t` of
    ChaoningZhang/MobileSAM.
    """
    encoder = TinyViT(**{"img_size": image_size, **(image_encoder or {})}, **kwargs)
    encoder.build()
    prompt = {"image_size": image_size, "patch_size": STRIDE, **(prompt_encoder or {})}
    decoder = {"num_heads": num_heads, **(mask_decoder or {})}
    return Sam(encoder, build_prompt_encoder(**prompt, **kwargs), build_mask_decoder(**decoder, **kwargs), **kwargs)
