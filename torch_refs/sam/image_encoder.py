"""The image encoder of Segment Anything: a plain vision transformer whose blocks attend in windows, a few globally."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from torch_refs.sam.common import LayerNorm2d, MLPBlock


class ImageEncoderViT(nn.Module):
    """Turns an image into its embedding: (B, 3, H, W), normalised -> (B, out_chans, H/patch_size, W/patch_size).

    Follows segment-anything's `ImageEncoderViT`: the state dict has its names and shapes, and the outputs are equal.
    Unlike it, this takes an image of any H and W that `patch_size` divides, whatever size the positions were trained
    for: the relative ones are resized linearly, as segment-anything resizes them in a block, and the absolute ones
    bicubically, as they are in ViTDet, of which SAM's encoder is an adaptation.

    Args:
        img_size: side of the square image that the model is meant for, in pixels.
        trained_img_size: the one that the positions were trained for; `img_size` if None.
        global_attn_indexes: the blocks that attend to the whole image; the others attend in windows of `window_size`
            x `window_size` patches.
    """

    def __init__(
        self,
        img_size: int = 1024,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_dim: int = 3072,
        out_chans: int = 256,
        window_size: int = 14,
        global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11),
        trained_img_size: int | None = None,
    ) -> None:
        super().__init__()
        self.img_size = img_size
        grid = (trained_img_size or img_size) // patch_size
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, embed_dim))
        self.blocks = nn.ModuleList()
        for index in range(depth):
            window = 0 if index in global_attn_indexes else window_size
            self.blocks.append(Block(embed_dim, num_heads, mlp_dim, window, window or grid))
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dim, out_chans, kernel_size=1, bias=False),
            LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(out_chans),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(image).permute(0, 2, 3, 1)  # (B, C, h, w) -> (B, h, w, C)
        x = x + resized_pos_embed(self.pos_embed, x.shape[1:3])
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))  # (B, h, w, C) -> (B, C, h, w)


class PatchEmbed(nn.Module):
    """Each patch of the image as a vector: (B, 3, H, W) -> (B, C, H/patch_size, W/patch_size)."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.proj(image)


class Block(nn.Module):
    """Attention, in windows or to the whole image, and an MLP: x (B, H, W, C) -> (B, H, W, C).

    `window_size` is 0 where the block attends to the whole image. `positions` is the side of the square of patches that
    the relative positions were trained for.
    """

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, window_size: int, positions: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = RelativeAttention(dim, num_heads, positions)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLPBlock(dim, mlp_dim, nn.GELU())
        self.window_size = window_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normalized = self.norm1(x)
        if self.window_size:
            windows = partition(normalized, self.window_size)
            attended = unpartition(self.attn(windows), self.window_size, x.shape[1:3])
        else:
            attended = self.attn(normalized)
        x = x + attended
        return x + self.mlp(self.norm2(x))


class RelativeAttention(nn.Module):
    """Self-attention with relative positions, one table for rows and one for columns: x (B, H, W, C) -> (B, H, W, C).

    Raises:
        ValueError: the number of heads does not divide the width.
    """

    def __init__(self, dim: int, num_heads: int, positions: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads ({num_heads}) does not divide the attention's width ({dim})")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * positions - 1, dim // num_heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * positions - 1, dim // num_heads))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        qkv = self.qkv(x).flatten(1, 2).unflatten(2, (3, self.num_heads, -1))  # (B, HW, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, HW, d)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, heads, HW, HW)
        q = q.unflatten(2, (height, width))  # (B, heads, H, W, d)
        rows = torch.einsum("nhywd,ykd->nhywk", q, relative(self.rel_pos_h, height))  # (B, heads, H, W, H)
        columns = torch.einsum("nhywd,wkd->nhywk", q, relative(self.rel_pos_w, width))  # (B, heads, H, W, W)
        scores = scores.unflatten(3, (height, width)).unflatten(2, (height, width))  # (B, heads, H, W, H, W)
        scores = scores + rows[..., :, None] + columns[..., None, :]
        weights = scores.flatten(4, 5).flatten(2, 3).softmax(dim=-1)  # (B, heads, HW, HW)
        mixed = (weights @ v).transpose(1, 2).flatten(2)  # (B, HW, heads, d) -> (B, HW, C)
        return self.proj(mixed.unflatten(1, (height, width)))


def resized_pos_embed(pos_embed: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Absolute positions (1, G, G, C) for a grid of (h, w) patches: (1, h, w, C), bicubic where the size differs."""
    if pos_embed.shape[1:3] == tuple(size):
        return pos_embed
    resized = F.interpolate(pos_embed.permute(0, 3, 1, 2), size=tuple(size), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1)  # (1, C, h, w) -> (1, h, w, C)


def relative(table: torch.Tensor, size: int) -> torch.Tensor:
    """Relative positions (L, d), resized linearly to 2 * size - 1 -> (size, size, d): [query, key], by q - k."""
    if len(table) != 2 * size - 1:
        table = F.interpolate(table.t()[None], size=2 * size - 1, mode="linear")[0].t()
    index = torch.arange(size)
    return table[index[:, None] - index[None, :] + size - 1]


def partition(x: torch.Tensor, window_size: int) -> torch.Tensor:
    """x (B, H, W, C), filled up with zeros below and to the right -> (B * windows, window_size, window_size, C)."""
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -width % window_size, 0, -height % window_size))
    x = x.unflatten(2, (-1, window_size)).unflatten(1, (-1, window_size))  # (B, rows, s, columns, s, C)
    return x.transpose(2, 3).flatten(0, 2)


def unpartition(windows: torch.Tensor, window_size: int, size: tuple[int, ...]) -> torch.Tensor:
    """`partition` undone: (B * windows, window_size, window_size, C) -> (B, H, W, C), where `size` is (H, W)."""
    height, width = size
    rows, columns = -(-height // window_size), -(-width // window_size)
    x = windows.unflatten(0, (-1, rows, columns)).transpose(2, 3)  # (B, rows, s, columns, s, C)
    return x.flatten(3, 4).flatten(1, 2)[:, :height, :width]


def build_image_encoder(image_size: int = 1024, **config: Any) -> ImageEncoderViT:
    """Build an `ImageEncoderViT` with fresh weights, in inference mode.

    The arguments are those of the class, with `image_size` for its `img_size`.
    """
    return ImageEncoderViT(**{"img_size": image_size, **config}).eval()
