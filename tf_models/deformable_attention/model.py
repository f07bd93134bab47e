"""Deformable attention with continuous position bias (lucidrains), over sequences, images and volumes.

Each output position attends to a coarse grid of samples of its own input, which learned offsets move. Weights and
results are those of the `deformable-attention` package, release 0.0.20, channels last; `grid_variant` chooses the grid
of an earlier release.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_models.layers import GELU, DepthwiseConv1D, DepthwiseConv2D, DepthwiseConv3D, PointwiseConv
from tf_models.layers.sizes import uniform
from tf_models.ops import grid_sample
from tf_models.ops.precision import opmath

_CHUNK = 2**19  # hidden numbers of the position bias at once: what a core's cache holds


@keras.saving.register_keras_serializable(package="weightbridge")
class Scale(keras.layers.Layer):
    """Times a constant: any shape."""

    def __init__(self, scale: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = scale

    def call(self, x: Any) -> Any:
        return x * self.factor

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"scale": self.factor}


@keras.saving.register_keras_serializable(package="weightbridge")
class ScalePerAxis(keras.layers.Layer):
    """x (..., C) times a constant for each channel, kept in a variable `scale` (C,) that is not trained."""

    def __init__(self, scale: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.initial = tuple(scale)

    def build(self, x_shape: Any = None) -> None:
        self.scale = self.add_weight(
            name="scale",
            shape=(len(self.initial),),
            initializer=lambda shape, dtype: ops.convert_to_tensor(self.initial, dtype),
            trainable=False,
        )

    def call(self, x: Any) -> Any:
        return x * self.scale

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"scale": self.initial}


@keras.saving.register_keras_serializable(package="weightbridge")
class CPB(keras.layers.Layer):
    """Continuous position bias (Swin Transformer V2): an MLP of the distance between a query and a key.

    grid_q (*S, r), grid_kv (B*G, *T, r), positions in r axes, float32 or float64
    -> (B, heads, prod(S), prod(T)) in the compute dtype. Nearly all the work of the attention is here.
    """

    def __init__(
        self,
        dim: int,
        axes: int,
        heads: int,
        offset_groups: int,
        depth: int,
        log_distance: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dim, self.axes, self.heads, self.offset_groups = dim, axes, heads, offset_groups
        self.log_distance = log_distance
        inputs = [axes, *[dim] * depth]
        outputs = [*[dim] * depth, heads // offset_groups]
        self.mlp = [
            keras.layers.Dense(o, kernel_initializer=uniform(i), bias_initializer=uniform(i), dtype=self.dtype_policy)
            for i, o in zip(inputs, outputs, strict=True)
        ]

    def build(self, *shapes: Any) -> None:
        for layer, width in zip(self.mlp, [self.axes, *[self.dim] * (len(self.mlp) - 1)], strict=True):
            layer.build((None, width))

    def call(self, grid_q: Any, grid_kv: Any) -> Any:
        queries = ops.reshape(grid_q, (-1, self.axes))  # (*S, r) -> (I, r)
        keys = ops.reshape(grid_kv, (ops.shape(grid_kv)[0], -1, self.axes))  # (B*G, *T, r) -> (B*G, J, r)
        distance = queries[:, None] - keys[:, None]  # (B*G, I, J, r)
        if self.log_distance:
            distance = tf.sign(distance) * tf.math.log1p(tf.abs(distance))
        rows = ops.reshape(ops.cast(distance, self.compute_dtype), (-1, self.axes))  # (B*G*I*J, r)
        # Tensors, because a custom gradient knows variables apart from its arguments.
        weights = [tf.identity(ops.convert_to_tensor(w)) for layer in self.mlp for w in (layer.kernel, layer.bias)]
        bias = _mlp_by_chunks(rows, *weights)  # (B*G*I*J, heads/G)
        g, each = self.offset_groups, self.heads // self.offset_groups
        _, i, j, _ = ops.shape(distance)
        bias = ops.reshape(bias, (-1, g, i, j, each))
        # (B, G, I, J, heads/G) -> (B, G, heads/G, I, J) -> (B, heads, I, J)
        return ops.reshape(ops.transpose(bias, (0, 1, 4, 2, 3)), (-1, self.heads, i, j))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "dim": self.dim,
            "axes": self.axes,
            "heads": self.heads,
            "offset_groups": self.offset_groups,
            "depth": len(self.mlp) - 1,
            "log_distance": self.log_distance,
        }


def _mlp(rows: tf.Tensor, *weights: tf.Tensor) -> tf.Tensor:
    """Dense layers with a ReLU between each two: `weights` are kernel, bias, kernel, bias, ..."""
    for index in range(0, len(weights), 2):
        rows = tf.nn.bias_add(tf.matmul(rows, weights[index]), weights[index + 1])
        if index < len(weights) - 2:
            rows = tf.nn.relu(rows)
    return rows


@tf.custom_gradient
def _mlp_by_chunks(rows: tf.Tensor, *weights: tf.Tensor) -> Any:
    """`_mlp` of (R, r) a chunk at a time, and so its gradient, which works the hidden numbers out again.

    They are hundreds of megabytes for a small image. To write them to fresh memory costs more than the products.
    """
    count = rows.shape[0] if rows.shape[0] is not None else tf.shape(rows)[0]
    most = max(1, _CHUNK // weights[0].shape[1])
    chunks = -(-count // most)  # none for no rows
    chunks = max(1, chunks) if isinstance(count, int) else tf.maximum(1, chunks)
    length = -(-count // chunks)

    def cut(values: tf.Tensor) -> tf.Tensor:
        """(R, c) -> (chunks, length, c), zeros at the end."""
        padded = tf.pad(values, [(0, chunks * length - count), (0, 0)])
        return tf.reshape(padded, (chunks, length, values.shape[1]))

    parts = cut(rows)

    def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
        upstream_parts = cut(upstream)

        def body(i: Any, d_rows: Any, *d_weights: tf.Tensor) -> tuple[Any, ...]:
            part = parts[i]
            with tf.GradientTape() as tape:
                tape.watch([part, *weights])
                output = _mlp(part, *weights)
            d_part, *fresh = tape.gradient(output, [part, *weights], upstream_parts[i])
            return i + 1, d_rows.write(i, d_part), *map(tf.add, d_weights, fresh)

        start = (0, tf.TensorArray(rows.dtype, chunks), *map(tf.zeros_like, weights))
        _, d_rows, *d_weights = tf.while_loop(
            lambda i, *_: i < chunks, body, start, maximum_iterations=chunks, parallel_iterations=1
        )
        return [tf.reshape(d_rows.stack(), (-1, rows.shape[1]))[:count], *d_weights]

    outputs = tf.map_fn(lambda part: _mlp(part, *weights), parts, parallel_iterations=1)
    return tf.reshape(outputs, (-1, weights[-1].shape[0]))[:count], gradient


class _DeformableAttention(keras.Model):
    """What the three have in common; `axes` is the number of spatial axes, *S those of the input, *T of its samples.

    Arguments are those of the `deformable-attention` package, and `grid_variant`: one of `grid_variants`, of which the
    first is that of the newest release. Keyword arguments beyond these (`name`, `dtype`) are Keras's.

    Raises:
        ValueError: sizes that do not fit each other, or an unknown `grid_variant`.
    """

    axes: int
    depthwise: type[keras.layers.Layer]
    grid_variants: tuple[str, ...]

    def __init__(
        self,
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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
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
        self.sizes = {
            "dim": dim,
            "dim_head": dim_head,
            "heads": heads,
            "dropout": dropout,
            "downsample_factor": downsample_factor,
            "offset_scale": offset_scale,
            "offset_groups": offset_groups,
            "offset_kernel_size": offset_kernel_size,
            "group_queries": group_queries,
            "group_key_values": group_key_values,
            "cpb_log_distance": cpb_log_distance,
            "grid_variant": self.grid_variant,
        }
        self.dim, self.dim_head, self.heads, self.offset_groups = dim, dim_head, heads, groups
        policy, inner = self.dtype_policy, dim_head * heads
        self.width = inner // groups  # of an offset group
        taps = math.prod(kernel)
        scale: Any = downsample_factor if offset_scale is None else offset_scale
        # Where to look is never worked out in half precision: TensorFlow's depthwise kernel would even sum in it.
        precise = keras.DTypePolicy("float32") if self.compute_dtype in ("float16", "bfloat16") else policy
        self.to_offsets: list[Any] = [
            self.depthwise(
                kernel,
                strides=strides,
                padding=tuple((k - s) // 2 for k, s in zip(kernel, strides, strict=True)),
                depthwise_initializer=uniform(taps),
                bias_initializer=uniform(taps),
                dtype=precise,
            ),
            GELU(dtype=precise),
            PointwiseConv(self.axes, use_bias=False, dtype=precise),
            *([keras.layers.Reshape((-1,), dtype=precise)] if self.axes == 1 else []),
            keras.layers.Activation("tanh", dtype=precise),
            ScalePerAxis(_per_axis(scale, 3), dtype=precise) if self.axes == 3 else Scale(scale, dtype=precise),
        ]
        self.rel_pos_bias = CPB(dim // 4, self.axes, heads, groups, 2, cpb_log_distance, dtype=policy)
        self.dropout = keras.layers.Dropout(dropout, dtype=policy)
        query_groups, key_value_groups = groups if group_queries else 1, groups if group_key_values else 1
        self.to_q = PointwiseConv(inner, query_groups, use_bias=False, dtype=policy)
        self.to_k = PointwiseConv(inner, key_value_groups, use_bias=False, dtype=policy)
        self.to_v = PointwiseConv(inner, key_value_groups, use_bias=False, dtype=policy)
        self.to_out = PointwiseConv(dim, dtype=policy)

    def build(self, x_shape: Any = None) -> None:
        spatial = (None,) * self.axes
        for layer in (self.to_q, self.to_k, self.to_v):
            layer.build((None, *spatial, self.dim))
        first, _, second, *_, scale = self.to_offsets
        for layer in (first, second):
            layer.build((None, *spatial, self.width))
        scale.build((None, *spatial, self.axes))
        self.rel_pos_bias.build()
        self.to_out.build((None, *spatial, self.dim_head * self.heads))

    def call(self, x: Any, return_vgrid: bool = False, training: bool | None = None) -> Any:
        """x (B, *S, dim) -> (B, *S, dim), and with `return_vgrid` the sampled positions in pixels (B*G, *T, axes).

        G are the offset groups. *S is N for a sequence, whose positions are (B*G, T); H, W for an image; F, H, W for a
        volume. Positions are float32 in half precision.

        Raises:
            ValueError: another rank or width.
        """
        if len(x.shape) != self.axes + 2 or x.shape[-1] != self.dim:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (B, {', '.join(_AXES[self.axes])}, {self.dim})")
        x = ops.convert_to_tensor(x, self.compute_dtype)
        spatial = ops.shape(x)[1:-1]
        q = self.to_q(x)  # (B, *S, heads * d)
        offsets = self._group(q, self.width)
        for layer in self.to_offsets:
            offsets = layer(offsets)
        precise = opmath(tf.as_dtype(self.compute_dtype))
        offsets = ops.cast(ops.reshape(offsets, (*ops.shape(offsets)[: self.axes + 1], self.axes)), precise)
        vgrid = self._grid(ops.shape(offsets)[1:-1], precise) + offsets  # (B*G, *T, axes)
        points = _normalised(vgrid)
        sampled = self._ungroup(self._sample(self._group(x, self.dim // self.offset_groups), points))  # (B, *T, dim)
        k, v = self.to_k(sampled), self.to_v(sampled)
        q, k, v = (self._split_heads(part) for part in (q, k, v))  # (B, heads, I or J, d)
        queries = _normalised(self._grid(spatial, precise)[None])[0]  # (*S, axes)
        scores = ops.matmul(q * self.dim_head**-0.5, ops.swapaxes(k, -2, -1))  # (B, heads, I, J)
        scores += self.rel_pos_bias(queries, points)
        mixed = ops.matmul(self.dropout(tf.nn.softmax(scores), training=training), v)  # (B, heads, I, d)
        mixed = ops.transpose(mixed, (0, 2, 1, 3))  # (B, heads, I, d) -> (B, I, heads, d)
        output = self.to_out(ops.reshape(mixed, (-1, *spatial, self.heads * self.dim_head)))  # (B, *S, dim)
        if not return_vgrid:
            return output
        return output, vgrid[..., 0] if self.axes == 1 else vgrid

    def _grid(self, spatial: Sequence[Any], dtype: Any) -> Any:
        """The position of every pixel: (*spatial, axes)."""
        raise NotImplementedError

    def _sample(self, x: Any, points: Any) -> Any:
        """Bilinear samples of x (N, *S, C) at points (N, *T, axes): (N, *T, C). Outside is zero."""
        sampled = grid_sample(ops.cast(x, points.dtype), points, align_corners=False)
        return ops.cast(sampled, x.dtype)

    def _group(self, x: Any, width: int) -> Any:
        """(B, *S, G * width) -> (B*G, *S, width)."""
        spatial = ops.shape(x)[1:-1]
        x = ops.reshape(x, (-1, *spatial, self.offset_groups, width))
        x = ops.moveaxis(x, -2, 1)  # (B, *S, G, width) -> (B, G, *S, width)
        return ops.reshape(x, (-1, *spatial, width))

    def _ungroup(self, x: Any) -> Any:
        """(B*G, *T, C) -> (B, *T, G * C)."""
        spatial, c = ops.shape(x)[1:-1], x.shape[-1]
        x = ops.reshape(x, (-1, self.offset_groups, *spatial, c))
        x = ops.moveaxis(x, 1, -2)  # (B, G, *T, C) -> (B, *T, G, C)
        return ops.reshape(x, (-1, *spatial, self.offset_groups * c))

    def _split_heads(self, x: Any) -> Any:
        """(B, *S, heads * d) -> (B, heads, I, d)."""
        x = ops.reshape(x, (ops.shape(x)[0], -1, self.heads, self.dim_head))
        return ops.transpose(x, (0, 2, 1, 3))  # (B, I, heads, d) -> (B, heads, I, d)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | self.sizes


@keras.saving.register_keras_serializable(package="weightbridge")
class DeformableAttention1D(_DeformableAttention):
    """Deformable attention over a sequence: x (B, N, dim) -> (B, N, dim).

    Grids: "zero_x" of the releases 0.0.19 and 0.0.20; "zero_y" of 0.0.14 to 0.0.18, which reads the middle of the
    sequence wherever it means to look.
    """

    axes, depthwise, grid_variants = 1, DepthwiseConv1D, ("zero_x", "zero_y")

    def _grid(self, spatial: Sequence[Any], dtype: Any) -> Any:
        return tf.cast(tf.range(spatial[0]), dtype)[:, None]

    def _sample(self, x: Any, points: Any) -> Any:
        """The sequence is the column of an image (N, length, 1, C); `zero_y` takes the position for that in its row."""
        zero = tf.zeros_like(points)
        columns = ops.concatenate([zero, points] if self.grid_variant == "zero_x" else [points, zero], -1)  # (N, T, 2)
        return super()._sample(x[:, :, None], columns[:, :, None])[:, :, 0]


@keras.saving.register_keras_serializable(package="weightbridge")
class DeformableAttention2D(_DeformableAttention):
    """Deformable attention over an image: x (B, H, W, dim) -> (B, H, W, dim).

    Grids: "xy_wh" of the releases 0.0.18 to 0.0.20; "xy_hw" of 0.0.17, where the grid of samples must be square;
    "ij_hw" of 0.0.14 to 0.0.16, which samples the transposed image.
    """

    axes, depthwise, grid_variants = 2, DepthwiseConv2D, ("xy_wh", "xy_hw", "ij_hw")

    def _grid(self, spatial: Sequence[Any], dtype: Any) -> Any:
        """`ij_hw` has (y, x), which is then sampled as (x, y); `xy_hw` is (W, H, 2)."""
        indexing, order = self.grid_variant.split("_")
        height, width = (tf.cast(tf.range(n), dtype) for n in spatial)
        return tf.stack(tf.meshgrid(*((width, height) if order == "wh" else (height, width)), indexing=indexing), -1)


@keras.saving.register_keras_serializable(package="weightbridge")
class DeformableAttention3D(_DeformableAttention):
    """Deformable attention over a volume: x (B, F, H, W, dim) -> (B, F, H, W, dim).

    All releases have the same grid, "ij_fhw": positions are (frame, row, column), and sampled as (x, y, z). Sizes and
    the offsets' scale are a number, or one for each of F, H and W.
    """

    axes, depthwise, grid_variants = 3, DepthwiseConv3D, ("ij_fhw",)

    def _grid(self, spatial: Sequence[Any], dtype: Any) -> Any:
        return tf.stack(tf.meshgrid(*(tf.cast(tf.range(n), dtype) for n in spatial), indexing="ij"), -1)


_AXES = {1: "N", 2: "HW", 3: "FHW"}


def _normalised(vgrid: Any) -> Any:
    """Positions in pixels, (N, *T, axes) -> [-1, 1]: channel i by the length of axis i, whatever it stands for."""
    lengths = ops.shape(vgrid)[1:-1]
    parts = zip(tf.unstack(vgrid, len(lengths), -1), lengths, strict=True)
    return tf.stack([2.0 * part / tf.cast(tf.maximum(n - 1, 1), part.dtype) - 1.0 for part, n in parts], -1)


def _per_axis(value: Any, axes: int) -> tuple[Any, ...]:
    values = (value,) * axes if isinstance(value, (int, float)) else tuple(value)
    if len(values) != axes:
        raise ValueError(f"expected a number, or one for each of {axes} axes, got {value}")
    return values


def build_1d(**config: Any) -> DeformableAttention1D:
    """Build a `DeformableAttention1D`, all its variables made, with fresh weights; the arguments are the class's."""
    model = DeformableAttention1D(**config)
    model.build((None, None, model.dim))
    return model


def build_2d(**config: Any) -> DeformableAttention2D:
    """Build a `DeformableAttention2D`, all its variables made, with fresh weights; the arguments are the class's."""
    model = DeformableAttention2D(**config)
    model.build((None, None, None, model.dim))
    return model


def build_3d(**config: Any) -> DeformableAttention3D:
    """Build a `DeformableAttention3D`, all its variables made, with fresh weights; the arguments are the class's."""
    model = DeformableAttention3D(**config)
    model.build((None, None, None, None, model.dim))
    return model
