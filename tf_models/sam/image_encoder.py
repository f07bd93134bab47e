"""The image encoder of Segment Anything: a plain vision transformer whose blocks attend in windows, a few globally."""

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_models.layers import LayerNorm, MLPBlock, PatchConv2D, SummedConv2D
from tf_models.layers.sizes import check_sizes
from tf_models.ops import interpolate
from tf_models.sam.relative_attention import RelativeAttention

# Patches that pass an MLP at once: the temporaries of all of them would not fit the allocator's pages.
_PIECE = 512


@keras.saving.register_keras_serializable(package="weightbridge")
class ImageEncoderViT(keras.Model):
    """Turns an image into its embedding: (B, H, W, 3), normalised -> (B, H/patch_size, W/patch_size, out_chans).

    Follows segment-anything's `ImageEncoderViT`, channels last; every layer has the attribute path of its torch module.
    Unlike it, this takes an image of any H and W that `patch_size` divides, whatever size the positions were trained
    for: the relative ones are resized linearly, as segment-anything resizes them in a block, and the absolute ones
    bicubically, as they are in ViTDet, of which SAM's encoder is an adaptation. A graph in which H or W is unknown
    takes them to be `img_size`. For speed call it inside `tf.function`.

    Args:
        img_size: side of the square image that the model is meant for, in pixels.
        trained_img_size: the one that the positions were trained for; `img_size` if None.
        global_attn_indexes: the blocks that attend to the whole image; the others attend in windows of `window_size`
            x `window_size` patches.
        kwargs: Keras's own (`name`, `dtype`: a dtype or a policy such as "mixed_float16").

    Raises:
        ValueError: an image with another count of channels, or a size that `patch_size` does not divide.
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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        trained_img_size = trained_img_size or img_size
        self.img_size = img_size
        self.sizes: dict[str, Any] = {
            "img_size": img_size,
            "patch_size": patch_size,
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_dim": mlp_dim,
            "out_chans": out_chans,
            "window_size": window_size,
            "global_attn_indexes": tuple(global_attn_indexes),
            "trained_img_size": trained_img_size,
        }
        check_sizes(self.sizes, {"window_size": 0, "global_attn_indexes": 0})
        if img_size % patch_size or trained_img_size % patch_size:
            raise ValueError(f"patches of {patch_size} pixels do not tile images of {img_size} and {trained_img_size}")
        if max(global_attn_indexes, default=0) >= depth or embed_dim % num_heads:
            raise ValueError(
                f"global_attn_indexes {list(global_attn_indexes)} lie below depth ({depth}), and"
                f" num_heads ({num_heads}) divides embed_dim ({embed_dim})"
            )
        policy, grid = self.dtype_policy, trained_img_size // patch_size
        self.patch_embed = PatchEmbed(patch_size, embed_dim, dtype=policy)
        self.blocks = []
        for index in range(depth):
            window = 0 if index in global_attn_indexes else window_size
            self.blocks.append(Block(embed_dim, num_heads, mlp_dim, window, window or grid, dtype=policy))
        self.neck: list[Any] = [
            PatchConv2D(out_chans, (1, 1), use_bias=False, dtype=policy),
            LayerNorm(epsilon=1e-6, dtype=policy),
            SummedConv2D(out_chans, 3, padding=1, use_bias=False, dtype=policy),
            LayerNorm(epsilon=1e-6, dtype=policy),
        ]

    def build(self, image_shape: Any = None) -> None:
        dim, out_chans = self.sizes["embed_dim"], self.sizes["out_chans"]
        grid = self.sizes["trained_img_size"] // self.sizes["patch_size"]
        self.patch_embed.build()
        self.pos_embed = self.add_weight(name="pos_embed", shape=(1, grid, grid, dim), initializer="zeros")
        for block in self.blocks:
            block.build()
        for layer, channels in zip(self.neck, (dim, out_chans, out_chans, out_chans), strict=True):
            layer.build((None, None, None, channels))

    def call(self, image: Any) -> Any:
        x = self.patch_embed(self._sized(image))  # (B, h, w, C)
        x = x + resized_pos_embed(self.pos_embed, x.shape[1:3])
        for block in (*self.blocks, *self.neck):
            x = block(x)
        return x

    def _sized(self, image: Any) -> Any:
        """The image with H and W known."""
        patch, shape = self.sizes["patch_size"], image.shape
        if len(shape) != 4 or shape[-1] not in (3, None) or any(n is not None and n % patch for n in shape[1:3]):
            raise ValueError(f"image has shape {tuple(shape)}; expected (B, H, W, 3), H and W multiples of {patch}")
        if None not in shape[1:]:
            return image
        height, width = (n or self.img_size for n in shape[1:3])
        return tf.ensure_shape(image, (None, height, width, 3))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | self.sizes


@keras.saving.register_keras_serializable(package="weightbridge")
class PatchEmbed(keras.layers.Layer):
    """Each patch of the image as a vector: (B, H, W, 3) -> (B, H/patch_size, W/patch_size, C)."""

    def __init__(self, patch_size: int, embed_dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.patch_size, self.embed_dim = patch_size, embed_dim
        self.proj = PatchConv2D(embed_dim, (patch_size, patch_size), dtype=self.dtype_policy)

    def build(self, image_shape: Any = None) -> None:
        self.proj.build((None, None, None, 3))

    def call(self, image: Any) -> Any:
        return self.proj(image)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"patch_size": self.patch_size, "embed_dim": self.embed_dim}


@keras.saving.register_keras_serializable(package="weightbridge")
class Block(keras.layers.Layer):
    """Attention, in windows or to the whole image, and an MLP: x (B, H, W, C) -> (B, H, W, C).

    `window_size` is 0 where the block attends to the whole image. `positions` is the side of the square of patches that
    the relative positions were trained for.
    """

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, window_size: int, positions: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim, self.num_heads, self.mlp_dim = dim, num_heads, mlp_dim
        self.window_size, self.positions = window_size, positions
        policy = self.dtype_policy
        self.norm1 = LayerNorm(epsilon=1e-6, dtype=policy)
        self.attn = RelativeAttention(dim, num_heads, positions, window_size, dtype=policy)
        self.norm2 = LayerNorm(epsilon=1e-6, dtype=policy)
        self.mlp = MLPBlock(dim, mlp_dim, "gelu", dtype=policy)

    def build(self, x_shape: Any = None) -> None:
        self.norm1.build((None, self.dim))
        self.attn.build()
        self.norm2.build((None, self.dim))
        self.mlp.build()

    def call(self, x: Any) -> Any:
        x = x + self.attn(self.norm1(x))
        _, height, width, dim = x.shape
        rows = max(n for n in range(1, height + 1) if height % n == 0 and (n == 1 or n * width <= _PIECE))
        if rows * width < _PIECE // 4:  # a matrix product of too few patches would mostly read its kernel
            return self._mixed(x)
        pieces = ops.reshape(x, (-1, rows, width, dim))
        mixed = tf.map_fn(self._mixed, pieces, parallel_iterations=1, fn_output_signature=self.compute_dtype)
        return ops.reshape(mixed, (-1, height, width, dim))

    def _mixed(self, x: Any) -> Any:
        """The second half of the block, which sees each patch alone: (..., C) -> (..., C)."""
        return x + self.mlp(self.norm2(x))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "dim": self.dim,
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "window_size": self.window_size,
            "positions": self.positions,
        }


def resized_pos_embed(pos_embed: Any, size: Any) -> Any:
    """Absolute positions (1, G, G, C) for a grid of (h, w) patches: (1, h, w, C), bicubic where the size differs."""
    pos_embed = ops.convert_to_tensor(pos_embed)
    if tuple(pos_embed.shape[1:3]) == tuple(size):
        return pos_embed
    return interpolate(pos_embed, size=tuple(size), mode="bicubic", align_corners=False)


def build_image_encoder(image_size: int = 1024, **config: Any) -> ImageEncoderViT:
    """Build an `ImageEncoderViT`, all its variables made, with fresh weights.

    The arguments are those of the class, with `image_size` for its `img_size`.
    """
    model = ImageEncoderViT(**{"img_size": image_size, **config})
    model.build((None, None, None, 3))
    return model
