"""Self-attention of the patches of an image with decomposed relative positions, in windows or of all to all."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tf_models.ops import interpolate

# Scores held at once where all attend to all (16 MiB in float32): more would spend the time on fresh memory.
_SCORES = 1 << 22


@keras.saving.register_keras_serializable(package="weightbridge")
class RelativeAttention(keras.layers.Layer):
    """Self-attention with relative positions, one table for rows and one for columns: x (B, H, W, C) -> (B, H, W, C).

    H and W are known when a graph is made. Half types are summed up and normalised in float32.
    Follows `Attention` of segment-anything's image encoder, and, with a window, what its `Block` does around it.

    Args:
        dim: width C.
        positions: side of the square that the tables were trained for. Where x, or its windows, are of another size,
            the tables are resized linearly.
        window_size: side of the windows, or 0: all patches attend to all. Windows begin at the upper left; those that
            reach beyond the image are filled up with zeros before the projection to queries, keys and values.

    Raises:
        ValueError: the number of heads does not divide the width.
    """

    def __init__(self, dim: int, num_heads: int, positions: int, window_size: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if dim % num_heads:
            raise ValueError(f"num_heads ({num_heads}) does not divide the attention's width ({dim})")
        self.dim, self.num_heads, self.positions, self.window_size = dim, num_heads, positions, window_size
        self.head_dim = dim // num_heads
        self.qkv = keras.layers.Dense(3 * dim, dtype=self.dtype_policy)
        self.proj = keras.layers.Dense(dim, dtype=self.dtype_policy)

    def build(self, x_shape: Any = None) -> None:
        self.qkv.build((None, self.dim))
        self.proj.build((None, self.dim))
        shape = (2 * self.positions - 1, self.head_dim)
        self.rel_pos_h = self.add_weight(name="rel_pos_h", shape=shape, initializer="zeros")
        self.rel_pos_w = self.add_weight(name="rel_pos_w", shape=shape, initializer="zeros")

    def call(self, x: Any) -> Any:
        height, width = x.shape[1:3]
        tall, wide = (self.window_size, self.window_size) if self.window_size else (height, width)
        rows, columns, heads, d = -(-height // tall), -(-width // wide), self.num_heads, self.head_dim

        qkv = self._padded_qkv(x, rows * tall - height, columns * wide - width)
        qkv = ops.reshape(qkv, (-1, rows, tall, columns, wide, 3, heads, d))
        qkv = ops.transpose(qkv, (5, 0, 1, 3, 6, 2, 4, 7))  # (3, B, rows, columns, heads, tall, wide, d)
        q, k, v = ops.unstack(ops.reshape(qkv, (3, -1, tall * wide, d)), 3)  # each (B * windows * heads, HW, d)
        mixed = self._attend(q, k, v, relative(self.rel_pos_h, tall), relative(self.rel_pos_w, wide))

        mixed = ops.reshape(mixed, (-1, rows, columns, heads, tall, wide, d))
        mixed = ops.transpose(mixed, (0, 1, 4, 2, 5, 3, 6))  # (B, rows, tall, columns, wide, heads, d)
        mixed = ops.reshape(mixed, (-1, rows * tall, columns * wide, self.dim))
        return self.proj(mixed[:, :height, :width])

    def _padded_qkv(self, x: Any, below: int, right: int) -> Any:
        """x (B, H, W, C) -> (B, H + below, W + right, 3C): the projection of zeros is its bias."""
        if not (below or right):
            return self.qkv(x)
        projected = ops.matmul(x, self.qkv.kernel)
        return ops.pad(projected, [(0, 0), (0, below), (0, right), (0, 0)]) + self.qkv.bias

    def _attend(self, q: Any, k: Any, v: Any, by_row: Any, by_column: Any) -> Any:
        """q, k, v (M, HW, d), by_row (H, H, d), by_column (W, W, d) -> (M, HW, d)."""
        height, width, pixels = by_row.shape[0], by_column.shape[0], q.shape[1]
        if self.window_size or self.num_heads * pixels**2 <= _SCORES:
            return _attend_rows(q, k, v, by_row, by_column)

        step = max(1, _SCORES // (width * pixels))  # rows of queries at once

        def one(parts: tuple) -> Any:
            """q, k, v (HW, d) -> (HW, d)."""
            q, k, v = (part[None] for part in parts)
            spans = [(top, min(top + step, height)) for top in range(0, height, step)]
            results = [
                _attend_rows(q[:, top * width : end * width], k, v, by_row[top:end], by_column) for top, end in spans
            ]
            return ops.concatenate(results, axis=1)[0]

        return tf.map_fn(one, (q, k, v), parallel_iterations=1, fn_output_signature=q.dtype)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "dim": self.dim,
            "num_heads": self.num_heads,
            "positions": self.positions,
            "window_size": self.window_size,
        }


def _attend_rows(q: Any, k: Any, v: Any, by_row: Any, by_column: Any) -> Any:
    """Some rows of queries attend to all keys.

    q (M, rows * W, d), k, v (M, HW, d), by_row (rows, H, d), by_column (W, W, d) -> (M, rows * W, d).
    """
    rows, height, d = by_row.shape
    width = by_column.shape[0]
    exact = keras.backend.result_type(q.dtype, "float32")
    scores = ops.matmul(q * d**-0.5, ops.swapaxes(k, 1, 2))  # (M, rows * W, HW)
    grid = ops.reshape(q, (-1, rows, width, d))
    to_rows = ops.einsum("myxd,ykd->myxk", grid, by_row)  # (M, rows, W, H)
    to_columns = ops.einsum("myxd,xkd->myxk", grid, by_column)  # (M, rows, W, W)
    scores = ops.cast(ops.reshape(scores, (-1, rows * width, height, width)), exact)
    scores = scores + ops.cast(ops.reshape(to_rows, (-1, rows * width, height, 1)), exact)
    scores = scores + ops.cast(ops.reshape(to_columns, (-1, rows * width, 1, width)), exact)
    weights = tf.nn.softmax(ops.reshape(scores, (-1, rows * width, height * width)))
    return ops.matmul(ops.cast(weights, v.dtype), v)


def relative(table: Any, size: int) -> Any:
    """Relative positions (L, d), resized linearly to 2 * size - 1 -> (size, size, d): [query, key], by q - k."""
    table = ops.convert_to_tensor(table)
    if table.shape[0] != 2 * size - 1:
        table = interpolate(table[None], size=2 * size - 1, mode="linear")[0]
    index = np.arange(size)
    return ops.take(table, index[:, None] - index[None, :] + size - 1, axis=0)
