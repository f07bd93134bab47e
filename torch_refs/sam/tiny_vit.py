"""TinyViT as MobileSAM's image encoder: convolutions, then attention in windows, then Segment Anything's neck."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from torch_refs.sam.common import LayerNorm2d

STRIDE = 16  # pixels of the image along each side of one vector of the embedding


class ConvBN(nn.Sequential):
    """A convolution without bias (`c`) and its batch normalization (`bn`); the padding keeps odd kernels centered."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)


class PatchEmbed(nn.Module):
    """Two convolutions of stride 2: image (B, 3, H, W) -> (B, C, H/4, W/4)."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            ConvBN(3, embed_dim // 2, 3, stride=2), nn.GELU(), ConvBN(embed_dim // 2, embed_dim, 3, stride=2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.seq(x)


class MBConv(nn.Module):
    """Inverted bottleneck: widen, filter each channel, narrow, add: x (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(dim, hidden)
        self.act1 = nn.GELU()
        self.conv2 = ConvBN(hidden, hidden, 3, groups=hidden)
        self.act2 = nn.GELU()
        self.conv3 = ConvBN(hidden, dim)
        self.act3 = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.act2(self.conv2(self.act1(self.conv1(x))))
        return self.act3(x + self.conv3(hidden))


class PatchMerging(nn.Module):
    """The step from one stage to the next: x (B, C, H, W) -> (B, C', H/stride, W/stride)."""

    def __init__(self, dim: int, out_dim: int, stride: int) -> None:
        super().__init__()
        self.act = nn.GELU()
        self.conv1 = ConvBN(dim, out_dim)
        self.conv2 = ConvBN(out_dim, out_dim, 3, stride, groups=out_dim)
        self.conv3 = ConvBN(out_dim, out_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv3(self.act(self.conv2(self.act(self.conv1(x)))))


class Attention(nn.Module):
    """Self-attention inside a window, with a bias learned for each distance: x (B, w * w, C) -> (B, w * w, C).

    The bias of two tokens is `attention_biases[head, dy * w + dx]`, where dy and dx are the absolute distances
    of their rows and columns. `qkv` gives a head's query, key and value side by side: (heads, 3, C/heads).
    """

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads ({num_heads}) does not divide the width of its stage ({dim})")
        self.num_heads = num_heads
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window_size**2))
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        apart = (torch.arange(window_size)[:, None] - torch.arange(window_size)).abs()  # (w, w)
        rows, columns = apart[:, None, :, None], apart[None, :, None, :]  # (w, 1, w, 1), (1, w, 1, w)
        index = (rows * window_size + columns).reshape(window_size**2, window_size**2)
        self.register_buffer("attention_bias_idxs", index, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(self.norm(x)).unflatten(-1, (self.num_heads, 3, -1))  # (B, N, heads, 3, d)
        q, k, v = qkv.permute(3, 0, 2, 1, 4)  # each (B, heads, N, d)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + self.attention_biases[:, self.attention_bias_idxs]
        mixed = torch.softmax(scores, dim=-1) @ v  # (B, heads, N, d)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # (B, N, heads, d) -> (B, N, C)


class Mlp(nn.Module):
    """A layer normalization and two linear layers with a GELU between: x (..., C) -> (..., C)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.act = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(self.norm(x))))


class TinyViTBlock(nn.Module):
    """Attention in windows, a depthwise convolution across them, and an MLP: x (B, H, W, C) -> (B, H, W, C).

    A map that windows do not tile is padded with zeros below and on the right, before the attention's norm; what is
    padded takes part in the attention.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, mlp_ratio: float, local_conv_size: int) -> None:
        super().__init__()
        self.window_size = window_size
        self.attn = Attention(dim, num_heads, window_size)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.local_conv = ConvBN(dim, dim, local_conv_size, groups=dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self._attend_in_windows(x)
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.mlp(x)

    def _attend_in_windows(self, x: torch.Tensor) -> torch.Tensor:
        _, height, width, _ = x.shape
        w = self.window_size
        x = F.pad(x, (0, 0, 0, -width % w, 0, -height % w))  # (B, rows * w, columns * w, C)
        x = x.unflatten(2, (-1, w)).unflatten(1, (-1, w))  # (B, rows, w, columns, w, C)
        windows = x.transpose(2, 3)  # (B, rows, columns, w, w, C)
        attended = self.attn(windows.flatten(3, 4).flatten(0, 2)).view(windows.shape)
        return attended.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :height, :width]


class ConvLayer(nn.Module):
    """The first stage: `depth` inverted bottlenecks, then a patch merging: (B, C, H, W) -> (B, C', H/2, W/2)."""

    def __init__(self, dim: int, out_dim: int, depth: int, expand_ratio: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MBConv(dim, int(dim * expand_ratio)) for _ in range(depth))
        self.downsample = PatchMerging(dim, out_dim, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.downsample(x)


class BasicLayer(nn.Module):
    """A later stage: blocks with attention, then a patch merging unless it is None: (B, C, H, W) -> (B, C', H', W')."""

    def __init__(self, blocks: list[TinyViTBlock], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)
        for block in self.blocks:
            x = block(x)
        x = x.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)
        return x if self.downsample is None else self.downsample(x)


class TinyViT(nn.Module):
    """The image encoder of MobileSAM: image (B, 3, H, W) -> embedding (B, out_chans, H/16, W/16).

    H and W are multiples of 16. The original takes squares of `img_size` only; nothing here depends on it. The defaults
    are the sizes of TinyViT-5M. `num_heads` and `window_sizes` have an entry for each stage with attention, which are
    all but the first.

    Follows `mobile_sam/modeling/tiny_vit_sam.py` of ChaoningZhang/MobileSAM: the state dict has its names and shapes,
    without the classifier (`norm_head`, `head`), which the original keeps but never calls. Unlike in TinyViT, the
    last patch merging does not halve the resolution.

    Raises:
        ValueError: sizes that do not fit one another, or an image that is not of multiples of 16.
    """

    def __init__(
        self,
        img_size: int = 1024,
        embed_dims: Sequence[int] = (64, 128, 160, 320),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (4, 5, 10),
        window_sizes: Sequence[int] = (7, 14, 7),
        mlp_ratio: float = 4.0,
        mbconv_expand_ratio: float = 4.0,
        local_conv_size: int = 3,
        out_chans: int = 256,
    ) -> None:
        super().__init__()
        if not 4 == len(embed_dims) == len(depths) == len(num_heads) + 1 == len(window_sizes) + 1:
            raise ValueError("TinyViT has four stages, and num_heads and window_sizes are of the last three")
        self.img_size = img_size
        self.patch_embed = PatchEmbed(embed_dims[0])
        self.layers = nn.ModuleList([ConvLayer(embed_dims[0], embed_dims[1], depths[0], mbconv_expand_ratio)])
        for stage in (1, 2, 3):
            dim, heads, window = embed_dims[stage], num_heads[stage - 1], window_sizes[stage - 1]
            blocks = [TinyViTBlock(dim, heads, window, mlp_ratio, local_conv_size) for _ in range(depths[stage])]
            merging = PatchMerging(dim, embed_dims[stage + 1], stride=2 if stage == 1 else 1) if stage < 3 else None
            self.layers.append(BasicLayer(blocks, merging))
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dims[-1], out_chans, 1, bias=False),
            LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False),
            LayerNorm2d(out_chans),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if any(size % STRIDE for size in image.shape[2:]):
            raise ValueError(f"image: height and width must be multiples of {STRIDE}, got {tuple(image.shape)}")
        x = self.patch_embed(image)
        for layer in self.layers:
            x = layer(x)
        return self.neck(x)
