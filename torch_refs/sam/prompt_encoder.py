"""The prompt encoder of Segment Anything: points, boxes and masks in, embeddings for the mask decoder out."""

import math
from typing import Any

import torch
from torch import nn

from torch_refs.sam.common import LayerNorm2d

Points = tuple[torch.Tensor, torch.Tensor]


class PromptEncoder(nn.Module):
    """Embeds prompts.

    Follows segment-anything's `PromptEncoder`: the state dict has its names and shapes, and the outputs are equal.

    Args:
        embed_dim: width C of the embeddings.
        image_embedding_size: side of the square image embedding, in patches.
        input_image_size: side of the square image in whose pixels points and boxes are given.
        mask_in_chans: channels between the convolutions that shrink a mask.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        image_embedding_size: int = 64,
        input_image_size: int = 1024,
        mask_in_chans: int = 16,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.image_embedding_size = image_embedding_size
        self.input_image_size = input_image_size
        self.pe_layer = PositionEmbeddingRandom(embed_dim // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed_dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_in_chans // 4, kernel_size=2, stride=2),
            LayerNorm2d(mask_in_chans // 4),
            nn.GELU(),
            nn.Conv2d(mask_in_chans // 4, mask_in_chans, kernel_size=2, stride=2),
            LayerNorm2d(mask_in_chans),
            nn.GELU(),
            nn.Conv2d(mask_in_chans, embed_dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, embed_dim)

    def forward(
        self, points: Points | None = None, boxes: torch.Tensor | None = None, masks: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed B prompts.

        Args:
            points: (x, y) in pixels (B, N, 2), and labels (B, N): 1 foreground, 0 background, -1 not a point.
            boxes: (B, 4), two corners (x0, y0, x1, y1) in pixels.
            masks: (B, 1, 4G, 4G), logits, where G is `image_embedding_size`.

        Returns:
            sparse (B, T, C): N points, one that is none where there are no boxes, two corners;
            dense (B, C, G, G).
        """
        given = [part for part in (points and points[0], boxes, masks) if part is not None]
        batch = len(given[0]) if given else 1
        sparse = [self.no_mask_embed.weight.new_empty(batch, 0, self.embed_dim)]
        if points is not None:
            sparse.append(self._embed_points(*points, pad=boxes is None))
        if boxes is not None:
            sparse.append(self._embed_boxes(boxes))
        if masks is not None:
            dense = self.mask_downscaling(masks)
        else:
            grid = self.image_embedding_size
            dense = self.no_mask_embed.weight[..., None, None].expand(batch, -1, grid, grid)
        return torch.cat(sparse, dim=1), dense

    def get_dense_pe(self) -> torch.Tensor:
        """The positional encoding of every patch's centre: (1, C, G, G)."""
        grid = self.image_embedding_size
        matrix = self.pe_layer.positional_encoding_gaussian_matrix
        centres = (torch.arange(grid, dtype=matrix.dtype) + 0.5) / grid
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return self.pe_layer(torch.stack([x, y], dim=-1)).permute(2, 0, 1)[None]  # (G, G, C) -> (1, C, G, G)

    def _embed_points(self, coords: torch.Tensor, labels: torch.Tensor, pad: bool) -> torch.Tensor:
        coords = coords + 0.5  # to the centre of the pixel
        if pad:
            coords = torch.cat([coords, coords.new_zeros(len(coords), 1, 2)], dim=1)
            labels = torch.cat([labels, -labels.new_ones(len(labels), 1)], dim=1)
        label = labels[..., None]  # (B, N, 1)
        encoded = self.pe_layer(coords / self.input_image_size)
        background, foreground = self.point_embeddings[0].weight, self.point_embeddings[1].weight
        encoded = encoded + (label == 0) * background + (label == 1) * foreground
        return torch.where(label == -1, self.not_a_point_embed.weight, encoded)

    def _embed_boxes(self, boxes: torch.Tensor) -> torch.Tensor:
        corners = boxes.reshape(-1, 2, 2) + 0.5  # (B, 4) -> (B, 2, 2), to the centre of the pixel
        encoded = self.pe_layer(corners / self.input_image_size)
        return encoded + torch.cat([self.point_embeddings[2].weight, self.point_embeddings[3].weight])


class PositionEmbeddingRandom(nn.Module):
    """Random Fourier features of places: (x, y) (..., 2), from 0 to 1 -> (..., 2 * num_pos_feats)."""

    def __init__(self, num_pos_feats: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, num_pos_feats))

    def forward(self, places: torch.Tensor) -> torch.Tensor:
        matrix = self.positional_encoding_gaussian_matrix
        angles = 2 * math.pi * ((2 * places - 1).to(matrix.dtype) @ matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


def build_prompt_encoder(image_size: int = 1024, patch_size: int = 16, **config: Any) -> PromptEncoder:
    """Build a `PromptEncoder` with fresh weights, in inference mode, for a square image and its patches.

    Both sizes are in pixels along a side; the other arguments are those of the class.
    """
    sizes = {"image_embedding_size": image_size // patch_size, "input_image_size": image_size}
    return PromptEncoder(**{**sizes, **config}).eval()
