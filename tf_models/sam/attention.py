"""Multi-head attention, and its two cheaper forms between a few tokens and the many pixels of an image.

Between tokens and pixels nearly all the work is to project the pixels. A projection is a matrix product, and
products associate: a token that is multiplied by the projection once can meet all pixels as they are. With the
7 tokens of one click, 8 heads and an inner width of 128, that is less than half the work and a third of the memory.
"""

import math
from typing import Any

import keras
import tensorflow as tf
from keras import ops


@keras.saving.register_keras_serializable(package="weightbridge")
class Attention(keras.layers.Layer):
    """Multi-head attention whose inner width may be smaller than its embeddings.

    q (B, Nq, C), k (B, Nk, C), v (B, Nk, C) -> (B, Nq, C). A batch of 1 is broadcast.

    Raises:
        ValueError: the number of heads does not divide the inner width, embedding_dim // downsample_rate.
    """

    def __init__(self, embedding_dim: int, num_heads: int, downsample_rate: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.embedding_dim, self.num_heads, self.downsample_rate = embedding_dim, num_heads, downsample_rate
        self.inner_dim = embedding_dim // downsample_rate
        if self.inner_dim % num_heads:
            raise ValueError(f"num_heads ({num_heads}) does not divide the attention's inner width ({self.inner_dim})")
        self.head_dim = self.inner_dim // num_heads
        self.q_proj = keras.layers.Dense(self.inner_dim, dtype=self.dtype_policy)
        self.k_proj = keras.layers.Dense(self.inner_dim, dtype=self.dtype_policy)
        self.v_proj = keras.layers.Dense(self.inner_dim, dtype=self.dtype_policy)
        self.out_proj = keras.layers.Dense(embedding_dim, dtype=self.dtype_policy)

    def build(self, q_shape: Any = None) -> None:
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            projection.build((None, self.embedding_dim))
        self.out_proj.build((None, self.inner_dim))

    def call(self, q: Any, k: Any, v: Any) -> Any:
        q = self._split_heads(self.q_proj(q)) / math.sqrt(self.head_dim)
        k = self._split_heads(self.k_proj(k))
        v = self._split_heads(self.v_proj(v))
        scores = ops.matmul(q, ops.swapaxes(k, -2, -1))  # (B, heads, Nq, Nk)
        return self.out_proj(self._join_heads(ops.matmul(tf.nn.softmax(scores), v)))

    def _split_heads(self, x: Any) -> Any:
        """x (B, N, heads * d) -> (B, heads, N, d)."""
        x = ops.reshape(x, (-1, ops.shape(x)[1], self.num_heads, self.head_dim))
        return ops.transpose(x, (0, 2, 1, 3))  # (B, N, heads, d) -> (B, heads, N, d)

    def _join_heads(self, x: Any) -> Any:
        """x (B, heads, N, d) -> (B, N, heads * d)."""
        x = ops.transpose(x, (0, 2, 1, 3))  # (B, heads, N, d) -> (B, N, heads, d)
        return ops.reshape(x, (-1, ops.shape(x)[1], self.inner_dim))

    def _per_head(self, projection: Any) -> tuple[Any, Any]:
        """The projection to q, k or v as kernel (heads, C, d) and bias (heads, d)."""
        kernel = ops.reshape(projection.kernel, (self.embedding_dim, self.num_heads, self.head_dim))
        return ops.transpose(kernel, (1, 0, 2)), ops.reshape(projection.bias, (self.num_heads, self.head_dim))

    def _is_few(self, tokens: Any) -> Any:
        """Whether to multiply these by the projection is less work than to project the other side."""
        return self.num_heads * ops.shape(tokens)[1] <= self.inner_dim

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "embedding_dim": self.embedding_dim,
            "num_heads": self.num_heads,
            "downsample_rate": self.downsample_rate,
        }


@keras.saving.register_keras_serializable(package="weightbridge")
class TokenToImageAttention(Attention):
    """`Attention` of tokens to pixels: with few tokens, the keys and values are not projected but the tokens."""

    def call(self, q: Any, k: Any, v: Any) -> Any:
        return ops.cond(self._is_few(q), lambda: self._unprojected(q, k, v), lambda: Attention.call(self, q, k, v))

    def _unprojected(self, q: Any, k: Any, v: Any) -> Any:
        heads, d, c, tokens = self.num_heads, self.head_dim, self.embedding_dim, ops.shape(q)[1]
        q = self._split_heads(self.q_proj(q)) / math.sqrt(d)  # (B, heads, T, d)
        kernel, bias = self._per_head(self.k_proj)
        q_bias = ops.matmul(q, bias[:, :, None])
        q = ops.matmul(q, ops.swapaxes(kernel, 1, 2))  # (B, heads, T, d) x (heads, d, C) -> (B, heads, T, C)
        # All heads' tokens against all pixels in one product: (B, heads * T, C) x (B, C, HW).
        q, q_bias = (ops.reshape(x, (-1, heads * tokens, x.shape[-1])) for x in (q, q_bias))
        scores = ops.matmul(q, ops.swapaxes(k, 1, 2)) + q_bias  # (B, heads * T, HW)
        mixed = ops.reshape(ops.matmul(tf.nn.softmax(scores), v), (-1, heads, tokens, c))  # (B, heads, T, C)
        kernel, bias = self._per_head(self.v_proj)
        return self.out_proj(self._join_heads(ops.matmul(mixed, kernel) + bias[:, None]))


@keras.saving.register_keras_serializable(package="weightbridge")
class ImageToTokenAttention(Attention):
    """`Attention` of pixels to tokens: with few tokens, queries and output are not projected but the tokens."""

    def call(self, q: Any, k: Any, v: Any) -> Any:
        return ops.cond(self._is_few(k), lambda: self._unprojected(q, k, v), lambda: Attention.call(self, q, k, v))

    def _unprojected(self, q: Any, k: Any, v: Any) -> Any:
        heads, d, c, tokens = self.num_heads, self.head_dim, self.embedding_dim, ops.shape(k)[1]
        k = self._split_heads(self.k_proj(k)) / math.sqrt(d)  # (B, heads, T, d)
        v = self._split_heads(self.v_proj(v))  # (B, heads, T, d)
        kernel, bias = self._per_head(self.q_proj)
        k_bias = ops.reshape(ops.matmul(k, bias[:, :, None]), (-1, 1, heads * tokens))
        k = ops.matmul(k, ops.swapaxes(kernel, 1, 2))  # (B, heads, T, d) x (heads, d, C) -> (B, heads, T, C)
        k = ops.reshape(k, (-1, heads * tokens, c))
        scores = ops.matmul(q, ops.swapaxes(k, 1, 2)) + k_bias  # (B, HW, heads * T)
        pixels = ops.shape(q)[1]
        weights = tf.nn.softmax(ops.reshape(scores, (-1, pixels, heads, tokens)))
        v = ops.matmul(v, ops.reshape(self.out_proj.kernel, (heads, d, c)))  # (B, heads, T, C)
        v = ops.reshape(v, (-1, heads * tokens, c))
        return ops.matmul(ops.reshape(weights, (-1, pixels, heads * tokens)), v) + self.out_proj.bias
