"""Segment Anything as a whole: image encoder, prompt encoder and mask decoder."""

from typing import Any

import torch
from torch import nn

from torch_refs.sam.image_encoder import build_image_encoder
from torch_refs.sam.mask_decoder import MaskDecoder, build_mask_decoder
from torch_refs.sam.prompt_encoder import PromptEncoder, build_prompt_encoder


class Sam(nn.Module):
    """Predicts masks from an image and prompts.

    Follows segment-anything's `Sam`: the state dict has its names and shapes. The image is already normalised and
    padded, and the masks are the decoder's.
    """

    def __init__(self, image_encoder: nn.Module, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder

    def forward(
        self,
        image: torch.Tensor,
        point_coords: torch.Tensor | None = None,
        point_labels: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        mask_input: torch.Tensor | None = None,
        multimask_output: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict the masks of B prompts.

        Args:
            image: (1|B, 3, S, S), where S is the image encoder's `img_size`; a single one serves all prompts.
            point_coords: (B, N, 2), (x, y) in pixels of the image.
            point_labels: (B, N): 1 foreground, 0 background, -1 not a point.
            boxes: (B, 4), (x0, y0, x1, y1) in pixels of the image.
            mask_input: (B, 1, S/4, S/4), logits; 4 times the image embedding's size.
            multimask_output: three masks a prompt, or one.

        Returns:
            masks (B, K, S/4, S/4), logits; iou (B, K), estimated quality.
        """
        points = None if point_coords is None else (point_coords, point_labels)
        sparse, dense = self.prompt_encoder(points, boxes, mask_input)
        image_pe = self.prompt_encoder.get_dense_pe()
        embedding = self.image_encoder(image)
        return self.mask_decoder(embedding, image_pe, sparse, dense, multimask_output=multimask_output)


# Sizes of the image encoder; ViT-B's are the defaults of the class.
VIT_L = {"embed_dim": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096, "global_attn_indexes": (5, 11, 17, 23)}
VIT_H = {"embed_dim": 1280, "depth": 32, "num_heads": 16, "mlp_dim": 5120, "global_attn_indexes": (7, 15, 23, 31)}
Sizes = dict[str, Any] | None


def build_sam(
    image_encoder: Sizes = None,
    prompt_encoder: Sizes = None,
    mask_decoder: Sizes = None,
    image_size: int = 1024,
    num_heads: int = 8,
) -> Sam:
    """Build a `Sam` with an `ImageEncoderViT` and fresh weights, in inference mode.

    `image_size` is the side of the square image in pixels, `num_heads` the mask decoder's. The other arguments are
    those of the parts, by name.
    """
    encoder = {"image_size": image_size, **(image_encoder or {})}
    prompt = {"image_size": image_size, "patch_size": encoder.get("patch_size", 16), **(prompt_encoder or {})}
    decoder = {"num_heads": num_heads, **(mask_decoder or {})}
    return Sam(build_image_encoder(**encoder), build_prompt_encoder(**prompt), build_mask_decoder(**decoder)).eval()


def build_sam_vit_l(image_encoder: Sizes = None, **parts: Any) -> Sam:
    """`build_sam` with ViT-L for an image encoder."""
    return build_sam(VIT_L | (image_encoder or {}), **parts)


def build_sam_vit_h(image_encoder: Sizes = None, **parts: Any) -> Sam:
    """`build_sam` with ViT-H for an image encoder."""
    return build_sam(VIT_H | (image_encoder or {}), **parts)
