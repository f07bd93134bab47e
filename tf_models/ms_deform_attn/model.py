"""Multi-scale deformable attention as a layer: every query looks at a few points of several feature maps."""

import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_models import ops
from tf_models.ops import checks


@keras.saving.register_keras_serializable(package="weightbridge")
class MSDeformAttn(keras.Model):
    """The attention of Deformable DETR: each query samples `n_points` points of each level, for each head.

    Args:
        d_model: C, width of queries and values.
        n_levels, n_heads, n_points: feature maps, heads, and points for each head and level.

    Raises:
        ValueError: `n_heads` does not divide `d_model`.

    Follows `MSDeformAttn` of Deformable DETR (Zhu et al., 2020), whose tensors are those of `sampling_offsets`,
    `attention_weights`, `value_proj` and `output_proj`. Locations are computed in float32 or better under any policy.
    """

    def __init__(
        self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4, **kwargs: Any
    ) -> None:
        # Half precision cannot tell neighbouring pixels of a large map apart: reference points come as they are.
        super().__init__(autocast=False, **kwargs)
        if d_model % n_heads:
            raise ValueError(f"n_heads ({n_heads}) must divide d_model ({d_model})")
        self._allow_non_tensor_positional_args = True  # `input_spatial_shapes` may be plain numbers
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points
        samples, policy = n_heads * n_levels * n_points, self.dtype_policy
        self.sampling_offsets = keras.layers.Dense(
            2 * samples,
            kernel_initializer="zeros",
            bias_initializer=functools.partial(_directions, n_levels=n_levels, n_heads=n_heads, n_points=n_points),
            dtype=policy,
        )
        self.attention_weights = keras.layers.Dense(samples, kernel_initializer="zeros", dtype=policy)
        self.value_proj = keras.layers.Dense(d_model, dtype=policy)
        self.output_proj = keras.layers.Dense(d_model, dtype=policy)

    def build(
        self,
        query_shape: Any = None,
        reference_points_shape: Any = None,
        input_flatten_shape: Any = None,
        input_spatial_shapes_shape: Any = None,
        input_padding_mask_shape: Any = None,
    ) -> None:
        for projection in (self.sampling_offsets, self.attention_weights, self.value_proj, self.output_proj):
            projection.build((None, None, self.d_model))

    def call(
        self,
        query: Any,
        reference_points: Any,
        input_flatten: Any,
        input_spatial_shapes: Any,
        input_padding_mask: Any = None,
    ) -> Any:
        """Attend to the points around each query's reference point.

        Args:
            query: (N, Lq, C).
            reference_points: (N, Lq, L, 2), as (x, y), where 0 and 1 are the outer edges of the map; offsets are then
                in pixels of the level. Or (N, Lq, L, 4), boxes (x, y, w, h) by their centres; offsets are then in
                halves of the box, and divided by `n_points`.
            input_flatten: (N, S, C), the feature maps, each flattened row by row, one after another: S = sum of H*W.
            input_spatial_shapes: (L, 2), the (H, W) of each level; fastest where they are known while tracing.
            input_padding_mask: (N, S), True where there is padding, whose values count as zero; or None.

        Returns:
            (N, Lq, C).

        Raises:
            ValueError: the last axis of the reference points is neither 2 nor 4, or a shape does not fit.
        """
        self._check(query, reference_points, input_flatten, input_padding_mask)
        batch, queries = tf.shape(query)[0], tf.shape(query)[1]
        per_point = (batch, queries, self.n_heads, self.n_levels, self.n_points)
        dtype = keras.backend.result_type(self.compute_dtype, "float32")

        value = self.value_proj(input_flatten)  # (N, S, C)
        if input_padding_mask is not None:
            value = tf.where(tf.cast(input_padding_mask, tf.bool)[..., tf.newaxis], tf.zeros((), value.dtype), value)
        head_width = self.d_model // self.n_heads
        value = tf.reshape(tf.cast(value, dtype), (batch, -1, self.n_heads, head_width))  # (N, S, M, D)
        # One softmax over the points of all levels.
        weights = tf.reshape(self.attention_weights(query), (*per_point[:3], -1))  # (N, Lq, M, L*P)
        weights = tf.reshape(tf.nn.softmax(tf.cast(weights, dtype)), per_point)
        offsets = tf.reshape(tf.cast(self.sampling_offsets(query), dtype), (*per_point, 2))
        locations = self._locations(reference_points, offsets, input_spatial_shapes, dtype)
        attended = ops.ms_deform_attn(value, input_spatial_shapes, locations, weights)  # (N, Lq, C)
        return self.output_proj(attended)

    def _check(self, query: Any, reference_points: Any, input_flatten: Any, input_padding_mask: Any) -> None:
        checks.shape("query", query, "N Lq C", (None, None, self.d_model))
        batch, queries, _ = query.shape
        checks.shape("input_flatten", input_flatten, "N S C", (batch, None, self.d_model))
        coordinates = 4 if reference_points.shape[-1] == 4 else 2
        checks.shape(
            "reference_points", reference_points, f"N Lq L {coordinates}", (batch, queries, self.n_levels, coordinates)
        )
        if input_padding_mask is not None:
            checks.shape("input_padding_mask", input_padding_mask, "N S", (batch, input_flatten.shape[1]))

    def export(self, filepath: Any, format: str = "tf_saved_model", **options: Any) -> None:
        """Keras's `export`; without an `input_signature` for reference points (x, y) and no padding mask."""
        dtype = keras.backend.result_type(self.compute_dtype, "float32")
        specs = [
            keras.InputSpec(dtype, shape)
            for shape in ((None, None, self.d_model), (None, None, self.n_levels, 2), (None, None, self.d_model))
        ]
        options.setdefault("input_signature", [*specs, keras.InputSpec("int64", (self.n_levels, 2))])
        super().export(filepath, format, **options)

    def _locations(self, reference_points: Any, offsets: Any, spatial_shapes: Any, dtype: str) -> Any:
        """Where to sample, (N, Lq, M, L, P, 2); offsets are of that shape."""
        reference = tf.cast(reference_points, dtype)
        reference = reference[:, :, tf.newaxis, :, tf.newaxis]  # (N, Lq, 1, L, 1, 2|4)
        if reference.shape[-1] == 4:
            return reference[..., :2] + offsets / self.n_points * reference[..., 2:] * 0.5
        sizes = tf.reverse(tf.cast(spatial_shapes, dtype), [-1])  # (L, 2), (H, W) -> (W, H)
        return reference + offsets / sizes[:, tf.newaxis]

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "d_model": self.d_model,
            "n_levels": self.n_levels,
            "n_heads": self.n_heads,
            "n_points": self.n_points,
        }


def _directions(shape: Any, dtype: Any = None, *, n_levels: int, n_heads: int, n_points: int) -> Any:
    """The first bias of the offsets: each head goes its own way to the edge of a square, point k with k + 1 steps."""
    angle = np.arange(n_heads, dtype=np.float32) * np.float32(2 * np.pi / n_heads)
    way = np.stack([np.cos(angle), np.sin(angle)], -1)  # (M, 2), (x, y)
    way /= np.abs(way).max(-1, keepdims=True)
    steps = np.arange(1, n_points + 1, dtype=np.float32)[:, np.newaxis]  # (P, 1)
    bias = np.broadcast_to(way[:, np.newaxis, np.newaxis] * steps, (n_heads, n_levels, n_points, 2))
    return keras.ops.convert_to_tensor(bias.reshape(shape), dtype)


def build_ms_deform_attn(**config: Any) -> MSDeformAttn:
    """Build an `MSDeformAttn`, all its variables made, with fresh weights; the arguments are those of the class."""
    model = MSDeformAttn(**config)
    width, levels = model.d_model, model.n_levels
    model.build((None, None, width), (None, None, levels, 2), (None, None, width), (levels, 2))
    return model
