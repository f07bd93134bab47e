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
        tall = wide = self.window_size
        if not self.window_size:
            by_row, by_column = relative(self.rel_pos_h, height), relative(self.rel_pos_w, width)
            return self.proj(self._attend_globally(self.qkv(x), by_row, by_column))

        rows, columns = -(-height // tall), -(-width // wide)
        by_row, by_column = relative(self.rel_pos_h, tall), relative(self.rel_pos_w, wide)
        x = ops.pad(x, [(0, 0), (0, rows * tall - height), (0, columns * wide - width), (0, 0)])
        # Windows side by side go together: the temporaries of all of them would not fit the allocator's pages.
        mixed = tf.map_fn(
            lambda strip: self._attend_in_strip(self.qkv(strip), columns, by_row, by_column),
            ops.reshape(x, (-1, tall, columns * wide, self.dim)),
            parallel_iterations=1,
            fn_output_signature=self.compute_dtype,
        )  # (B * rows, tall, columns * wide, C)
        mixed = ops.reshape(mixed, (-1, rows * tall, columns * wide, self.dim))
        return self.proj(mixed[:, :height, :width])

    def _attend_in_strip(self, qkv: Any, columns: int, by_row: Any, by_column: Any) -> Any:
        """qkv (tall, columns * wide, 3C) -> (tall, columns * wide, C)."""
        tall, wide, heads, d = by_row.shape[0], by_column.shape[0], self.num_heads, self.head_dim
        qkv = ops.reshape(qkv, (tall, columns, wide, 3, heads, d))
        qkv = ops.transpose(qkv, (3, 1, 4, 0, 2, 5))  # (3, columns, heads, tall, wide, d)
        q, k, v = ops.unstack(ops.reshape(qkv, (3, columns * heads, tall * wide, d)), 3)
        mixed = ops.reshape(_attend_rows(q, k, v, by_row, by_column), (columns, heads, tall, wide, d))
        mixed = ops.transpose(mixed, (2, 0, 3, 1, 4))  # (tall, columns, wide, heads, d)
        return ops.reshape(mixed, (tall, columns * wide, self.dim))

    def _attend_globally(self, qkv: Any, by_row: Any, by_column: Any) -> Any:
        """qkv (B, H, W, 3C) -> (B, H, W, C)."""
        height, width, heads, d = by_row.shape[0], by_column.shape[0], self.num_heads, self.head_dim
        qkv = ops.reshape(qkv, (-1, height * width, 3, heads, d))
        qkv = ops.transpose(qkv, (2, 0, 3, 1, 4))  # (3, B, heads, HW, d)
        qkv = ops.reshape(qkv, (3, -1, height * width, d))
        step = max(1, _SCORES // (width * height * width))  # rows of queries at once

        def attend(parts: tuple) -> Any:
            """q, k, v (HW, d) -> (HW, d), for one head."""
            q, k, v = parts
            spans = [(top, min(top + step, height)) for top in range(0, height, step)]
            results = [
                _attend_rows(q[top * width : end * width], k, v, by_row[top:end], by_column) for top, end in spans
            ]
            return ops.concatenate(results, axis=0)

        mixed = tf.map_fn(
            attend, tuple(ops.unstack(qkv, 3)), parallel_iterations=1, fn_output_signature=self.compute_dtype
        )  # (B * heads, HW, d)
        mixed = ops.transpose(ops.reshape(mixed, (-1, heads, height * width, d)), (0, 2, 1, 3))  # (B, HW, heads, d)
        return ops.reshape(mixed, (-1, height, width, self.dim))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "dim": self.dim,
            "num_heads": self.num_heads,
            "positions": self.positions,
            "window_size": self.window_size,
        }


def _attend_rows(q: Any, k: Any, v: Any, by_row: Any, by_column: Any) -> Any:
    """Some rows of queries attend to all keys.

    q (..., rows * W, d), k, v (..., HW, d), by_row (rows, H, d), by_column (W, W, d) -> (..., rows * W, d).
    """
    before = tuple(q.shape[:-2])
    rows, height, d = by_row.shape
    width = by_column.shape[0]
    exact = keras.backend.result_type(q.dtype, "float32")
    scores = tf.matmul(q * d**-0.5, k, transpose_b=True)  # (..., rows * W, HW)
    grid = ops.reshape(q, (*before, rows, width, d))
    to_rows = ops.einsum("...yxd,ykd->...yxk", grid, by_row)  # (..., rows, W, H)
    to_columns = ops.einsum("...yxd,xkd->...yxk", grid, by_column)  # (..., rows, W, W)
    scores = ops.cast(ops.reshape(scores, (*before, rows * width, height, width)), exact)
    scores = scores + ops.cast(ops.reshape(to_rows, (*before, rows * width, height, 1)), exact)
    scores = scores + ops.cast(ops.reshape(to_columns, (*before, rows * width, 1, width)), exact)
    weights = tf.nn.softmax(ops.reshape(scores, (*before, rows * width, height * width)))
    return tf.matmul(ops.cast(weights, v.dtype), v)


def relative(table: Any, size: int) -> Any:
    """Relative positions (L, d), resized linearly to 2 * size - 1 -> (size, size, d): [query, key], by q - k."""
    table = ops.convert_to_tensor(table)
    if table.shape[0] != 2 * size - 1:
        table = interpolate(table[None], size=2 * size - 1, mode="linear")[0]
    index = np.arange(size)
    return ops.take(table, index[:, None] - index[None, :] + size - 1, axis=0)
