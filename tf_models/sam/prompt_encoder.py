"""The prompt encoder of Segment Anything: points, boxes and masks in, embeddings for the mask decoder out."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_models.layers import GELU, LayerNorm, PatchConv2D
from tf_models.layers.sizes import check_sizes


@keras.saving.register_keras_serializable(package="weightbridge")
class PromptEncoder(keras.Model):
    """Embeds prompts.

    Follows segment-anything's `PromptEncoder`, channels last; every layer has the attribute path of its torch module.
    Places are encoded in float32 whatever the policy: a half type cannot tell neighbouring pixels apart.

    Args:
        embed_dim: width C of the embeddings.
        image_embedding_size: side of the square image embedding, in patches.
        input_image_size: side of the square image in whose pixels points and boxes are given.
        mask_in_chans: channels between the convolutions that shrink a mask.
        kwargs: Keras's own (`name`, `dtype`: a dtype or a policy such as "mixed_float16").
    """

    def __init__(
        self,
        embed_dim: int = 256,
        image_embedding_size: int = 64,
        input_image_size: int = 1024,
        mask_in_chans: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"autocast": False, **kwargs})
        self.embed_dim = embed_dim
        self.image_embedding_size = image_embedding_size
        self.input_image_size = input_image_size
        self.mask_in_chans = mask_in_chans
        check_sizes(
            {
                "embed_dim": embed_dim,
                "image_embedding_size": image_embedding_size,
                "input_image_size": input_image_size,
                "mask_in_chans": mask_in_chans,
            }
        )
        policy = self.dtype_policy
        self.pe_layer = PositionEmbeddingRandom(embed_dim // 2, dtype=policy)
        self.point_embeddings = [keras.layers.Embedding(1, embed_dim, dtype=policy) for _ in range(4)]
        self.not_a_point_embed = keras.layers.Embedding(1, embed_dim, dtype=policy)
        self.mask_downscaling: list[Any] = [
            PatchConv2D(mask_in_chans // 4, (2, 2), dtype=policy),
            LayerNorm(epsilon=1e-6, dtype=policy),
            GELU(dtype=policy),
            PatchConv2D(mask_in_chans, (2, 2), dtype=policy),
            LayerNorm(epsilon=1e-6, dtype=policy),
            GELU(dtype=policy),
            PatchConv2D(embed_dim, (1, 1), dtype=policy),
        ]
        self.no_mask_embed = keras.layers.Embedding(1, embed_dim, dtype=policy)

    def build(self, points_shape: Any = None, boxes_shape: Any = None, masks_shape: Any = None) -> None:
        for layer in (self.pe_layer, *self.point_embeddings, self.not_a_point_embed, self.no_mask_embed):
            layer.build(None)
        few, many = self.mask_in_chans // 4, self.mask_in_chans
        for layer, channels in zip(self.mask_downscaling, (1, few, few, few, many, many, many), strict=True):
            layer.build((None, None, None, channels))

    def call(self, points: Any = None, boxes: Any = None, masks: Any = None) -> tuple[Any, Any]:
        """Embed B prompts.

        Args:
            points: (x, y) in pixels (B, N, 2), and labels (B, N): 1 foreground, 0 background, -1 not a point.
            boxes: (B, 4), two corners (x0, y0, x1, y1) in pixels.
            masks: (B, 4G, 4G, 1), logits, where G is `image_embedding_size`.

        Returns:
            sparse (B, T, C): N points, one that is none where there are no boxes, two corners;
            dense (B, G, G, C).

        Raises:
            ValueError: an argument has another rank, or a size that does not fit the others.
        """
        sparse, dense = self.embed_sparse(points, boxes, masks), self.embed_dense(masks)
        return sparse, ops.broadcast_to(dense, (ops.shape(sparse)[0], *ops.shape(dense)[1:]))

    def embed_sparse(self, points: Any = None, boxes: Any = None, masks: Any = None) -> Any:
        """The sparse embeddings (B, T, C) of `call`; of masks only their number counts."""
        coords, labels = (None, None) if points is None else points
        self._check_shapes(coords, labels, boxes, masks)
        given = [part for part in (coords, boxes, masks) if part is not None]
        batch = ops.shape(given[0])[0] if given else 1
        sparse = [ops.zeros((batch, 0, self.embed_dim), self.compute_dtype)]
        if points is not None:
            sparse.append(self._embed_points(coords, labels, pad=boxes is None))
        if boxes is not None:
            sparse.append(self._embed_boxes(boxes))
        return ops.concatenate(sparse, axis=1)

    def embed_dense(self, masks: Any = None) -> Any:
        """The dense embeddings of masks (B, 4G, 4G, 1) -> (B, G, G, C); without masks (1, G, G, C), for all prompts."""
        if masks is None:
            grid = self.image_embedding_size
            dense = ops.cast(self.no_mask_embed.embeddings, self.compute_dtype)  # (1, C)
            return ops.broadcast_to(dense[:, None, None], (1, grid, grid, self.embed_dim))
        for layer in self.mask_downscaling:
            masks = layer(masks)
        return masks

    def get_dense_pe(self) -> Any:
        """The positional encoding of every patch's centre: (1, G, G, C)."""
        grid = self.image_embedding_size
        centres = (np.arange(grid, dtype=np.float32) + 0.5) / grid
        places = np.stack(np.meshgrid(centres, centres, indexing="xy"), axis=-1)  # (G, G, 2), (x, y)
        return ops.cast(self.pe_layer(places)[None], self.compute_dtype)

    def _embed_points(self, coords: Any, labels: Any, pad: bool) -> Any:
        """coords (B, N, 2), labels (B, N) -> (B, N, C), or one more that is not a point."""
        encoded = self._encoded(coords)  # (B, N, C)
        label = ops.expand_dims(ops.convert_to_tensor(labels), -1)  # (B, N, 1)
        background, foreground = (self._embedding(layer) for layer in self.point_embeddings[:2])
        encoded = ops.where(label == 0, encoded + background, ops.where(label == 1, encoded + foreground, encoded))
        none = self._embedding(self.not_a_point_embed)  # (1, C)
        encoded = ops.where(label == -1, none, encoded)
        if pad:
            none = ops.broadcast_to(none[None], (ops.shape(encoded)[0], 1, self.embed_dim))
            encoded = ops.concatenate([encoded, none], axis=1)
        return ops.cast(encoded, self.compute_dtype)

    def _embed_boxes(self, boxes: Any) -> Any:
        """boxes (B, 4) -> (B, 2, C)."""
        corners = ops.concatenate([self._embedding(layer) for layer in self.point_embeddings[2:]])  # (2, C)
        encoded = self._encoded(ops.reshape(boxes, (-1, 2, 2))) + corners
        return ops.cast(encoded, self.compute_dtype)

    def _encoded(self, coords: Any) -> Any:
        """Pixels (B, N, 2), (x, y) -> (B, N, C) in float32, of the pixel's centre."""
        return self.pe_layer((ops.cast(coords, "float32") + 0.5) / self.input_image_size)

    def _embedding(self, layer: Any) -> Any:
        return ops.cast(layer.embeddings, "float32")  # (1, C)

    def _check_shapes(self, coords: Any, labels: Any, boxes: Any, masks: Any) -> None:
        side = 4 * self.image_embedding_size
        batch = points = None
        for name, tensor, shape in (
            ("point coordinates", coords, (None, None, 2)),
            ("point labels", labels, (None, None)),
            ("boxes", boxes, (None, 4)),
            ("masks", masks, (None, side, side, 1)),
        ):
            if tensor is None:
                continue
            wanted = (batch, points if name == "point labels" else shape[1], *shape[2:])
            if not _fits(tuple(tensor.shape), wanted):
                raise ValueError(f"{name} have shape {tuple(tensor.shape)}; expected {wanted}")
            batch = batch if tensor.shape[0] is None else tensor.shape[0]
            points = tensor.shape[1] if name == "point coordinates" else points

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "embed_dim": self.embed_dim,
            "image_embedding_size": self.image_embedding_size,
            "input_image_size": self.input_image_size,
            "mask_in_chans": self.mask_in_chans,
        }


def _fits(shape: tuple, wanted: tuple) -> bool:
    """Whether the shape is as wanted; None is any size."""
    sizes = zip(shape, wanted, strict=False)
    return len(shape) == len(wanted) and all(None in pair or pair[0] == pair[1] for pair in sizes)


@keras.saving.register_keras_serializable(package="weightbridge")
class PositionEmbeddingRandom(keras.layers.Layer):
    """Random Fourier features of places: (x, y) (..., 2), from 0 to 1 -> (..., 2 * num_pos_feats), in float32."""

    def __init__(self, num_pos_feats: int, **kwargs: Any) -> None:
        super().__init__(**{"autocast": False, **kwargs})
        self.num_pos_feats = num_pos_feats

    def build(self, places_shape: Any = None) -> None:
        self.positional_encoding_gaussian_matrix = self.add_weight(
            name="positional_encoding_gaussian_matrix",
            shape=(2, self.num_pos_feats),
            initializer=keras.initializers.RandomNormal(stddev=1.0),
            trainable=False,
            autocast=False,
        )

    def call(self, places: Any) -> Any:
        matrix = ops.cast(self.positional_encoding_gaussian_matrix, "float32")
        angles = 2 * math.pi * ops.matmul(2 * ops.convert_to_tensor(places) - 1, matrix)
        return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"num_pos_feats": self.num_pos_feats}


def build_prompt_encoder(image_size: int = 1024, patch_size: int = 16, **config: Any) -> PromptEncoder:
    """Build a `PromptEncoder`, all its variables made, with fresh weights, for a square image and its patches.

    Both sizes are in pixels along a side; the other arguments are those of the class.
    """
    check_sizes({"image_size": image_size, "patch_size": patch_size})
    if image_size % patch_size:
        raise ValueError(f"patches of {patch_size} pixels do not tile an image of {image_size}")
    sizes = {"image_embedding_size": image_size // patch_size, "input_image_size": image_size}
    model = PromptEncoder(**{**sizes, **config})
    model.build()
    return model
