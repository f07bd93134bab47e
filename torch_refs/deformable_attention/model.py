"""Deformable attention with continuous position bias (lucidrains), over sequences, images and volumes.

State dicts and results are those of the `deformable-attention` package, release 0.0.20. Its earlier releases have the
same state dict but other grids: `grid_variant` chooses among them.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Scale(nn.Module):
    """Times a constant, which is no part of the state dict: any shape."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class ScalePerAxis(nn.Module):
    """x (B, 3, F, H, W) times a constant for each of the three channels; a buffer `scale` (3,)."""

    scale: torch.Tensor

    def __init__(self, scale: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale[:, None, None, None]


class CPB(nn.Module):
    """Continuous position bias (Swin Transformer V2): an MLP of the distance between a query and a key.

    grid_q (*S, r), grid_kv (B*G, *T, r), positions in r axes -> (B, heads, prod(S), prod(T)).
    """

    def __init__(
        self, dim: int, *, axes: int, heads: int, offset_groups: int, depth: int, log_distance: bool = True
    ) -> None:
        super().__init__()
        self.offset_groups, self.log_distance = offset_groups, log_distance
        widths = [axes, *[dim] * depth]
        hidden = (nn.Sequential(nn.Linear(i, dim), nn.ReLU()) for i in widths[:-1])
        self.mlp = nn.ModuleList([*hidden, nn.Linear(dim, heads // offset_groups)])

    def forward(self, grid_q: torch.Tensor, grid_kv: torch.Tensor) -> torch.Tensor:
        queries = grid_q.flatten(0, -2)  # (*S, r) -> (I, r)
        keys = grid_kv.flatten(1, -2)  # (B*G, *T, r) -> (B*G, J, r)
        bias = queries[None, :, None] - keys[:, None]  # (B*G, I, J, r)
        if self.log_distance:
            bias = torch.sign(bias) * torch.log(bias.abs() + 1)
        for layer in self.mlp:
            bias = layer(bias)
        # (B*G, I, J, heads/G) -> (B, G, I, J, heads/G) -> (B, G, heads/G, I, J) -> (B, heads, I, J)
        return bias.unflatten(0, (-1, self.offset_groups)).movedim(-1, 2).flatten(1, 2)


class _DeformableAttention(nn.Module):
    """What the three have in common; `axes` is the number of spatial axes.

    Arguments are those of the `deformable-attention` package, and `grid_variant`: one of `grid_variants`, of which the
    first is that of the newest release.

    Raises:
        ValueError: sizes that do not fit each other, or an unknown `grid_variant`.
    """

    axes: int
    conv: Any
    grid_variants: tuple[str, ...]

    def __init__(
        self,
        *,
        dim: int,
        dim_head: int = 64,
        heads: int = 8,
        dropout: float = 0.0,
        downsample_factor: int | Sequence[int] = 4,
        offset_scale: float | Sequence[float] | None = None,
        offset_groups: int | None = None,
        offset_kernel_size: int | Sequence[int] = 6,
        group_queries: bool = True,
        group_key_values: bool = True,
        cpb_log_distance: bool = True,
        grid_variant: str | None = None,
    ) -> None:
        super().__init__()
        groups = heads if offset_groups is None else offset_groups
        if heads % groups:
            raise ValueError(f"offset_groups ({groups}) does not divide heads ({heads})")
        self.grid_variant = self.grid_variants[0] if grid_variant is None else grid_variant
        if self.grid_variant not in self.grid_variants:
            raise ValueError(f"grid_variant is one of {', '.join(self.grid_variants)}, not {grid_variant!r}")
        strides, kernel = _per_axis(downsample_factor, self.axes), _per_axis(offset_kernel_size, self.axes)
        if any(k < s or (k - s) % 2 for k, s in zip(kernel, strides, strict=True)):
            raise ValueError(
                f"offset_kernel_size {kernel} must be downsample_factor {strides} or an even number more on every axis"
            )
        self.scale = dim_head**-0.5
        self.heads, self.offset_groups = heads, groups
        inner = dim_head * heads
        width = inner // groups
        padding = tuple((k - s) // 2 for k, s in zip(kernel, strides, strict=True))
        scale: Any = downsample_factor if offset_scale is None else offset_scale
        self.to_offsets = nn.Sequential(
            self.conv(width, width, kernel, groups=width, stride=strides, padding=padding),
            nn.GELU(),
            self.conv(width, self.axes, 1, bias=False),
            *([nn.Flatten(1)] if self.axes == 1 else []),
            nn.Tanh(),
            ScalePerAxis(_per_axis(scale, 3)) if self.axes == 3 else Scale(scale),
        )
        self.rel_pos_bias = CPB(
            dim // 4, axes=self.axes, heads=heads, offset_groups=groups, depth=2, log_distance=cpb_log_distance
        )
        self.dropout = nn.Dropout(dropout)
        query_groups, key_value_groups = groups if group_queries else 1, groups if group_key_values else 1
        self.to_q = self.conv(dim, inner, 1, groups=query_groups, bias=False)
        self.to_k = self.conv(dim, inner, 1, groups=key_value_groups, bias=False)
        self.to_v = self.conv(dim, inner, 1, groups=key_value_groups, bias=False)
        self.to_out = self.conv(inner, dim, 1)

    def forward(self, x: torch.Tensor, return_vgrid: bool = False) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """x (B, dim, *S) -> (B, dim, *S), and with `return_vgrid` the sampled positions (B*G, axes, *T) in pixels.

        A sequence's positions are (B*G, T).
        """
        spatial = x.shape[2:]
        q = self.to_q(x)
        offsets = self.to_offsets(self._group(q))  # (B*G, axes, *T)
        offsets = offsets.reshape(len(offsets), self.axes, *offsets.shape[-self.axes :])
        vgrid = self.grid(offsets.shape[2:]).to(offsets) + offsets
        points = _normalised(vgrid.movedim(1, -1))  # (B*G, *T, axes)
        sampled = self.sample(self._group(x), points).unflatten(0, (-1, self.offset_groups)).flatten(1, 2)
        k, v = self.to_k(sampled), self.to_v(sampled)
        q, k, v = (self._split_heads(part) for part in (q * self.scale, k, v))  # (B, heads, I or J, d)
        queries = _normalised(self.grid(spatial).to(x).movedim(0, -1)[None])[0]  # (*S, axes)
        scores = q @ k.transpose(-2, -1) + self.rel_pos_bias(queries, points)  # (B, heads, I, J)
        scores = scores - scores.amax(-1, keepdim=True).detach()
        mixed = self.dropout(scores.softmax(-1)) @ v
        mixed = mixed.transpose(-2, -1).flatten(1, 2).unflatten(-1, spatial)  # (B, heads, I, d) -> (B, inner, *S)
        output = self.to_out(mixed)
        if not return_vgrid:
            return output
        return output, vgrid.squeeze(1) if self.axes == 1 else vgrid

    def grid(self, spatial: Sequence[int]) -> torch.Tensor:
        """The position of every pixel, one channel per axis: (axes, *spatial)."""
        raise NotImplementedError

    def sample(self, x: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Bilinear samples of x (N, C, *S) at points (N, *T, axes): (N, C, *T). Outside is zero."""
        return F.grid_sample(x, points, mode="bilinear", padding_mode="zeros", align_corners=False)

    def _group(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(1, (self.offset_groups, -1)).flatten(0, 1)  # (B, G*C, ...) -> (B*G, C, ...)

    def _split_heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).unflatten(1, (self.heads, -1)).transpose(-2, -1)  # (B, heads*d, ...) -> (B, heads, I, d)


class DeformableAttention1D(_DeformableAttention):
    """Deformable attention over a sequence: x (B, dim, N) -> (B, dim, N).

    Grids: "zero_x" of the releases 0.0.19 and 0.0.20, "zero_y" of 0.0.14 to 0.0.18.
    """

    axes, conv, grid_variants = 1, nn.Conv1d, ("zero_x", "zero_y")

    def grid(self, spatial: Sequence[int]) -> torch.Tensor:
        return torch.arange(spatial[0])[None]

    def sample(self, x: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """The sequence is the column of an image (N, C, length, 1); `zero_y` takes the position for that in its row."""
        zero = torch.zeros_like(points)
        columns = torch.cat([zero, points] if self.grid_variant == "zero_x" else [points, zero], -1)  # (N, T, 2)
        return super().sample(x[..., None], columns[:, :, None]).squeeze(-1)


class DeformableAttention2D(_DeformableAttention):
    """Deformable attention over an image: x (B, dim, H, W) -> (B, dim, H, W).

    Grids: "xy_wh" of the releases 0.0.18 to 0.0.20, "xy_hw" of 0.0.17, "ij_hw" of 0.0.14 to 0.0.16.
    """

    axes, conv, grid_variants = 2, nn.Conv2d, ("xy_wh", "xy_hw", "ij_hw")

    def grid(self, spatial: Sequence[int]) -> torch.Tensor:
        """`ij_hw` has (y, x), which is then sampled as (x, y); `xy_hw` is (2, W, H), and fits squares."""
        indexing, order = self.grid_variant.split("_")
        height, width = map(torch.arange, spatial)
        lengths = (width, height) if order == "wh" else (height, width)
        return torch.stack(torch.meshgrid(*lengths, indexing=indexing))


class DeformableAttention3D(_DeformableAttention):
    """Deformable attention over a volume: x (B, dim, F, H, W) -> (B, dim, F, H, W).

    All releases have the same grid, "ij_fhw". Sizes and the offsets' scale are a number, or one for each of F, H and W.
    """

    axes, conv, grid_variants = 3, nn.Conv3d, ("ij_fhw",)

    def grid(self, spatial: Sequence[int]) -> torch.Tensor:
        """(frame, row, column); sampled as (x, y, z), which is (column, row, frame)."""
        return torch.stack(torch.meshgrid(*map(torch.arange, spatial), indexing="ij"))


def _normalised(vgrid: torch.Tensor) -> torch.Tensor:
    """Positions in pixels, (N, *T, axes) -> [-1, 1]: channel i by the length of axis i, whatever it stands for."""
    lengths = vgrid.shape[1:-1]
    parts = [2.0 * part / max(n - 1, 1) - 1.0 for part, n in zip(vgrid.unbind(-1), lengths, strict=True)]
    return torch.stack(parts, -1)


def _per_axis(value: Any, axes: int) -> tuple[Any, ...]:
    values = (value,) * axes if isinstance(value, (int, float)) else tuple(value)
    if len(values) != axes:
        raise ValueError(f"expected a number, or one for each of {axes} axes, got {value}")
    return values


def build_1d(**config: Any) -> DeformableAttention1D:
    """A `DeformableAttention1D` with fresh weights, in inference mode; the arguments are those of the class."""
    return DeformableAttention1D(**config).eval()


def build_2d(**config: Any) -> DeformableAttention2D:
    """A `DeformableAttention2D` with fresh weights, in inference mode; the arguments are those of the class."""
    return DeformableAttention2D(**config).eval()


def build_3d(**config: Any) -> DeformableAttention3D:
    """A `DeformableAttention3D` with fresh weights, in inference mode; the arguments are those of the class."""
    return DeformableAttention3D(**config).eval()
