"""Multi-head attention of Segment Anything's two-way transformer."""

import math

import torch
from torch import nn


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than its embeddings.

    q (B, Nq, C), k (B, Nk, C), v (B, Nk, C) -> (B, Nq, C). A batch of 1 is broadcast.

    Raises:
        ValueError: the number of heads does not divide the inner width, embedding_dim // downsample_rate.
    """

    def __init__(self, embedding_dim: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        inner_dim = embedding_dim // downsample_rate
        if inner_dim % num_heads:
            raise ValueError(f"num_heads ({num_heads}) does not divide the attention's inner width ({inner_dim})")
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embedding_dim, inner_dim)
        self.k_proj = nn.Linear(embedding_dim, inner_dim)
        self.v_proj = nn.Linear(embedding_dim, inner_dim)
        self.out_proj = nn.Linear(inner_dim, embedding_dim)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q = self._split_heads(self.q_proj(q))
        k = self._split_heads(self.k_proj(k))
        v = self._split_heads(self.v_proj(v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, heads, Nq, Nk)
        mixed = torch.softmax(scores, dim=-1) @ v  # (B, heads, Nq, C/heads)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # (B, Nq, heads, C/heads) -> (B, Nq, C)

    def _split_heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, N, C) -> (B, heads, N, C/heads)
