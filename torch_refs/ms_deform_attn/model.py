"""Multi-scale deformable attention as a module: every query looks at a few points of several feature maps."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class MSDeformAttn(nn.Module):
    """The attention of Deformable DETR: each query samples `n_points` points of each level, for each head.

    Written from the published definition (Zhu et al., 2020), with the core in terms of `grid_sample`: the original
    compiles CUDA. The module of `transformers`, `DeformableDetrMultiscaleDeformableAttention`, computes the same.
    """

    def __init__(self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4) -> None:
        super().__init__()
        self.n_levels, self.n_heads, self.n_points = n_levels, n_heads, n_points
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every head starts in a direction of its own, and point k with k + 1 steps."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
        for layer in (self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(layer.bias)
        angle = torch.arange(self.n_heads, dtype=torch.float32) * (2 * math.pi / self.n_heads)
        way = torch.stack([angle.cos(), angle.sin()], -1)  # (M, 2), (x, y)
        way = way / way.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.n_points + 1)[:, None]  # (P, 1)
        bias = (way[:, None, None] * steps).expand(-1, self.n_levels, -1, -1)  # (M, L, P, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.flatten())

    def forward(
        self,
        query: torch.Tensor,
        reference_points: torch.Tensor,
        input_flatten: torch.Tensor,
        input_spatial_shapes: torch.Tensor,
        input_padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """query (N, Lq, C), reference_points (N, Lq, L, 2|4), input_flatten (N, S, C), input_spatial_shapes (L, 2),
        input_padding_mask (N, S), True where padded -> (N, Lq, C).

        Raises:
            ValueError: the last axis of the reference points is neither 2 nor 4.
        """
        n, queries, _ = query.shape
        per_point = (n, queries, self.n_heads, self.n_levels, self.n_points)
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask[..., None], 0.0)
        value = value.view(n, value.shape[1], self.n_heads, -1)  # (N, S, M, D)
        offsets = self.sampling_offsets(query).view(*per_point, 2)
        weights = self.attention_weights(query).view(*per_point[:3], -1).softmax(-1)  # (N, Lq, M, L*P)
        centres = reference_points[:, :, None, :, None, :2]  # (N, Lq, 1, L, 1, 2)
        if reference_points.shape[-1] == 2:
            locations = centres + offsets / input_spatial_shapes.flip(-1)[:, None]  # by (W, H)
        elif reference_points.shape[-1] == 4:
            locations = centres + offsets / self.n_points * reference_points[:, :, None, :, None, 2:] * 0.5
        else:
            raise ValueError(f"reference_points: expected a last axis of 2 or 4, got {reference_points.shape[-1]}")

        samples, start = [], 0
        for level, (height, width) in enumerate(input_spatial_shapes.tolist()):
            maps = value[:, start : start + height * width].permute(0, 2, 3, 1)  # (N, M, D, H*W)
            maps = maps.reshape(n * self.n_heads, -1, height, width)
            grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)  # (N*M, Lq, P, 2)
            samples.append(F.grid_sample(maps, grid, align_corners=False))  # (N*M, D, Lq, P)
            start += height * width
        attention = weights.transpose(1, 2).reshape(n * self.n_heads, 1, queries, -1)  # (N*M, 1, Lq, L*P)
        attended = (torch.stack(samples, -2).flatten(-2) * attention).sum(-1)  # (N*M, D, Lq)
        return self.output_proj(attended.view(n, -1, queries).transpose(1, 2))
