"""TinyViT as MobileSAM's image encoder: convolutions, then attention in windows, then Segment Anything's neck."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tf_models import layers
from tf_models.layers import GELU, LayerNorm, SummedConv2D
from tf_models.layers.sizes import check_sizes

STRIDE = 16  # pixels of the image along each side of one vector of the embedding

# Values of the widest map held at once (4 MiB in float32): larger maps would spend the time on fresh memory.
_STRIP = 1 << 20


def in_strips(work: Callable[..., Any], x: Any, channels: int, strides: int = 1, whole: bool | None = False) -> Any:
    """A map computed in horizontal strips, so that what is held between its layers stays small.

    `work(top, end, first, last)` gives rows `top` to `end` of the result, and is told whether they are the first and
    the last. `x` (B, H, W, C) is what it works on; its widest map has `channels` for each pixel of x, and the result
    H/strides rows. `whole` asks for one strip (a batch that is normalised by itself must not be cut), and a size that
    is unknown makes one.
    """
    batch, height, width, _ = x.shape
    if whole or None in (batch, height, width):
        return work(0, ops.shape(x)[1] // strides, True, True)
    rows, total = max(1, _STRIP // (batch * strides * width * channels)), height // strides
    spans = [(top, min(top + rows, total)) for top in range(0, total, rows)]
    parts = [work(top, end, top == 0, end == total) for top, end in spans]
    return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=1)


@keras.saving.register_keras_serializable(package="weightbridge")
class ConvBN(keras.layers.Layer):
    """A convolution without bias (`c`) and its batch normalization (`bn`).

    x (B, H, W, I) -> (B, H/strides, W/strides, O).

    The padding keeps odd kernels centered. `depthwise` filters each channel alone. In inference the normalization is
    folded into the kernel at every call, so that the variables stay torch's and no pass over the map is spent on it.
    Of a strip of a larger map, `above` and `below` say whether it ends there: if not, it brings the rows it needs.
    """

    def __init__(
        self, filters: int, kernel_size: int = 1, strides: int = 1, depthwise: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.filters, self.kernel_size, self.strides, self.depthwise = filters, kernel_size, strides, depthwise
        shared = {"padding": kernel_size // 2, "strides": strides, "use_bias": False, "dtype": self.dtype_policy}
        self.c = (
            layers.DepthwiseConv2D(kernel_size, **shared)
            if depthwise
            else layers.Conv2D(filters, kernel_size, **shared)
        )
        # torch's momentum of 0.1 is the weight of the new batch, Keras's of 0.9 that of what was known.
        self.bn = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype=self.dtype_policy)

    def build(self, x_shape: Any) -> None:
        self.c.build(x_shape)
        self.bn.build((None, None, None, self.filters))

    def call(self, x: Any, training: bool | None = None, above: bool = True, below: bool = True) -> Any:
        if training and self.bn.trainable:
            return self.bn(self.c(x), training=True)
        scale = self.bn.gamma * ops.rsqrt(self.bn.moving_variance + self.bn.epsilon)  # (O,)
        shift = self.bn.beta - self.bn.moving_mean * scale
        scale = scale[:, None] if self.depthwise else scale
        kernel = ops.cast(ops.cast(self.c.kernel, scale.dtype) * scale, x.dtype)  # (kh, kw, I, O) or (kh, kw, O, 1)
        zeros = self.kernel_size // 2
        padding = [(0, 0), (zeros * above, zeros * below), (zeros, zeros), (0, 0)]
        strides = (1, self.strides, self.strides, 1)
        if self.depthwise:
            # Padded on its own: where oneDNN is on, a graph's optimizer fuses a depthwise convolution with the bias
            # after it and loses explicit padding on the way, which aborts the process (TensorFlow 2.21).
            x = tf.nn.depthwise_conv2d(tf.pad(x, padding), kernel, strides, "VALID")
        else:
            x = tf.nn.conv2d(x, kernel, strides, padding)
        return tf.nn.bias_add(x, ops.cast(shift, x.dtype))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "depthwise": self.depthwise,
        }


@keras.saving.register_keras_serializable(package="weightbridge")
class PatchEmbed(keras.layers.Layer):
    """Two convolutions of stride 2: image (B, H, W, 3) -> (B, H/4, W/4, C)."""

    def __init__(self, embed_dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.embed_dim = embed_dim
        policy = self.dtype_policy
        self.seq: list[Any] = [
            ConvBN(embed_dim // 2, 3, strides=2, dtype=policy),
            GELU(dtype=policy),
            ConvBN(embed_dim, 3, strides=2, dtype=policy),
        ]

    def build(self, image_shape: Any = None) -> None:
        self.seq[0].build((None, None, None, 3))
        self.seq[2].build((None, None, None, self.embed_dim // 2))

    def call(self, x: Any, training: bool | None = None) -> Any:
        first, gelu, second = self.seq

        def work(top: Any, end: Any, is_first: bool, is_last: bool) -> Any:
            rows = x[:, max(4 * top - 3, 0) : 4 * end]  # which make rows 2 * top - 1 to 2 * end of the map between
            hidden = gelu(first(rows, training=training, above=is_first, below=is_last))
            return second(hidden, training=training, above=is_first, below=is_last)

        return in_strips(work, x, self.embed_dim // 8, 4, whole=training)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"embed_dim": self.embed_dim}


@keras.saving.register_keras_serializable(package="weightbridge")
class MBConv(keras.layers.Layer):
    """Inverted bottleneck: widen, filter each channel, narrow, add: x (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, hidden: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim, self.hidden = dim, hidden
        policy = self.dtype_policy
        self.conv1 = ConvBN(hidden, dtype=policy)
        self.act1 = GELU(dtype=policy)
        self.conv2 = ConvBN(hidden, 3, depthwise=True, dtype=policy)
        self.act2 = GELU(dtype=policy)
        self.conv3 = ConvBN(dim, dtype=policy)
        self.act3 = GELU(dtype=policy)

    def build(self, x_shape: Any = None) -> None:
        self.conv1.build((None, None, None, self.dim))
        self.conv2.build((None, None, None, self.hidden))
        self.conv3.build((None, None, None, self.hidden))

    def call(self, x: Any, training: bool | None = None) -> Any:
        def work(top: Any, end: Any, is_first: bool, is_last: bool) -> Any:
            hidden = self.act1(self.conv1(x[:, max(top - 1, 0) : end + 1], training=training))
            hidden = self.act2(self.conv2(hidden, training=training, above=is_first, below=is_last))
            return self.act3(x[:, top:end] + self.conv3(hidden, training=training))

        return in_strips(work, x, self.hidden, whole=training)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"dim": self.dim, "hidden": self.hidden}


@keras.saving.register_keras_serializable(package="weightbridge")
class PatchMerging(keras.layers.Layer):
    """The step from one stage to the next: x (B, H, W, C) -> (B, H/strides, W/strides, C')."""

    def __init__(self, dim: int, out_dim: int, strides: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim, self.out_dim, self.strides = dim, out_dim, strides
        policy = self.dtype_policy
        self.act = GELU(dtype=policy)
        self.conv1 = ConvBN(out_dim, dtype=policy)
        self.conv2 = ConvBN(out_dim, 3, strides, depthwise=True, dtype=policy)
        self.conv3 = ConvBN(out_dim, dtype=policy)

    def build(self, x_shape: Any = None) -> None:
        self.conv1.build((None, None, None, self.dim))
        self.conv2.build((None, None, None, self.out_dim))
        self.conv3.build((None, None, None, self.out_dim))

    def call(self, x: Any, training: bool | None = None) -> Any:
        strides = self.strides

        def work(top: Any, end: Any, is_first: bool, is_last: bool) -> Any:
            rows = x[:, max(strides * top - 1, 0) : strides * (end - 1) + 2]
            hidden = self.act(self.conv1(rows, training=training))
            hidden = self.act(self.conv2(hidden, training=training, above=is_first, below=is_last))
            return self.conv3(hidden, training=training)

        return in_strips(work, x, self.out_dim, strides, whole=training)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"dim": self.dim, "out_dim": self.out_dim, "strides": self.strides}


@keras.saving.register_keras_serializable(package="weightbridge")
class WindowAttention(keras.layers.Layer):
    """Self-attention inside windows of w x w, with a bias learned for each distance: x (B, H, W, C) -> (B, H, W, C).

    The bias of two tokens is `attention_biases[head, dy * w + dx]`, where dy and dx are the absolute distances
    of their rows and columns. `qkv` gives a head's query, key and value side by side: (heads, 3, C/heads).
    A map that windows do not tile is continued with zeros below and on the right; what is added takes part in the
    attention.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if dim % num_heads:
            raise ValueError(f"num_heads ({num_heads}) does not divide the width of its stage ({dim})")
        self.dim, self.num_heads, self.window_size = dim, num_heads, window_size
        policy = self.dtype_policy
        self.norm = LayerNorm(epsilon=1e-5, dtype=policy)
        self.qkv = keras.layers.Dense(3 * dim, dtype=policy)
        self.proj = keras.layers.Dense(dim, dtype=policy)
        apart = np.abs(np.arange(window_size)[:, None] - np.arange(window_size))  # (w, w)
        rows, columns = apart[:, None, :, None], apart[None, :, None, :]  # (w, 1, w, 1), (1, w, 1, w)
        self._bias_index = (rows * window_size + columns).reshape(window_size**2, window_size**2)

    def build(self, x_shape: Any = None) -> None:
        self.attention_biases = self.add_weight(
            name="attention_biases", shape=(self.num_heads, self.window_size**2), initializer="zeros"
        )
        self.norm.build((None, self.dim))
        self.qkv.build((None, self.dim))
        self.proj.build((None, self.dim))

    def call(self, x: Any) -> Any:
        batch, height, width, c = ops.shape(x)
        w, heads = self.window_size, self.num_heads
        d = c // heads
        rows, columns = -(-height // w), -(-width // w)
        x = tf.pad(x, [(0, 0), (0, rows * w - height), (0, columns * w - width), (0, 0)])

        def swapped(x: Any, *sizes: int) -> Any:
            """The columns of windows and the rows inside them, or back: five axes, as TensorFlow Lite knows."""
            return ops.transpose(ops.reshape(x, (batch * rows, *sizes, w, c)), (0, 2, 1, 3, 4))

        windows = ops.reshape(swapped(x, w, columns), (-1, w * w, c))
        qkv = ops.reshape(self.qkv(self.norm(windows)), (-1, w * w, heads, 3, d))
        q, k, v = ops.unstack(ops.transpose(qkv, (3, 0, 2, 1, 4)), 3)  # each (windows, heads, w * w, d)
        bias = ops.take(self.attention_biases, self._bias_index, axis=1)  # (heads, w * w, w * w)
        scores = ops.matmul(q / math.sqrt(d), ops.swapaxes(k, -2, -1)) + bias  # (windows, heads, w * w, w * w)
        mixed = ops.matmul(tf.nn.softmax(scores), v)  # (windows, heads, w * w, d)
        mixed = swapped(ops.swapaxes(mixed, 1, 2), columns, w)  # (B * rows, w, columns, w, C)
        return self.proj(ops.reshape(mixed, (batch, rows * w, columns * w, c))[:, :height, :width])

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "dim": self.dim,
            "num_heads": self.num_heads,
            "window_size": self.window_size,
        }


@keras.saving.register_keras_serializable(package="weightbridge")
class Mlp(keras.layers.Layer):
    """A layer normalization and two dense layers with a GELU between: x (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, hidden: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim, self.hidden = dim, hidden
        policy = self.dtype_policy
        self.norm = LayerNorm(epsilon=1e-5, dtype=policy)
        self.fc1 = keras.layers.Dense(hidden, dtype=policy)
        self.fc2 = keras.layers.Dense(dim, dtype=policy)
        self.act = GELU(dtype=policy)

    def build(self, x_shape: Any = None) -> None:
        self.norm.build((None, self.dim))
        self.fc1.build((None, self.dim))
        self.fc2.build((None, self.hidden))

    def call(self, x: Any) -> Any:
        def work(top: Any, end: Any, is_first: bool, is_last: bool) -> Any:
            return self.fc2(self.act(self.fc1(self.norm(x[:, top:end]))))

        return in_strips(work, x, self.hidden)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"dim": self.dim, "hidden": self.hidden}


@keras.saving.register_keras_serializable(package="weightbridge")
class TinyViTBlock(keras.layers.Layer):
    """Attention in windows, a depthwise convolution across them, and an MLP: x (B, H, W, C) -> (B, H, W, C)."""

    def __init__(
        self, dim: int, num_heads: int, window_size: int, mlp_ratio: float, local_conv_size: int, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.sizes: dict[str, Any] = {
            "dim": dim,
            "num_heads": num_heads,
            "window_size": window_size,
            "mlp_ratio": mlp_ratio,
            "local_conv_size": local_conv_size,
        }
        policy = self.dtype_policy
        self.attn = WindowAttention(dim, num_heads, window_size, dtype=policy)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dtype=policy)
        self.local_conv = ConvBN(dim, local_conv_size, depthwise=True, dtype=policy)

    def build(self, x_shape: Any = None) -> None:
        self.attn.build()
        self.mlp.build()
        self.local_conv.build((None, None, None, self.sizes["dim"]))

    def call(self, x: Any, training: bool | None = None) -> Any:
        x = self.local_conv(x + self.attn(x), training=training)
        return x + self.mlp(x)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | self.sizes


@keras.saving.register_keras_serializable(package="weightbridge")
class Stage(keras.layers.Layer):
    """Blocks, then a patch merging unless it is None: x (B, H, W, C) -> (B, H', W', C')."""

    def __init__(self, blocks: Sequence[Any], downsample: PatchMerging | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.blocks = list(blocks)
        self.downsample = downsample

    def build(self, x_shape: Any = None) -> None:
        for block in self.blocks:
            block.build()
        if self.downsample is not None:
            self.downsample.build()

    def call(self, x: Any, training: bool | None = None) -> Any:
        for block in self.blocks:
            x = block(x, training=training)
        return x if self.downsample is None else self.downsample(x, training=training)

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return super().get_config() | {
            "blocks": [serialize(block) for block in self.blocks],
            "downsample": serialize(self.downsample),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Stage":
        restore = keras.saving.deserialize_keras_object
        blocks, downsample = [restore(block) for block in config.pop("blocks")], restore(config.pop("downsample"))
        return cls(blocks, downsample, **config)


@keras.saving.register_keras_serializable(package="weightbridge")
class TinyViT(keras.layers.Layer):
    """The image encoder of MobileSAM: image (B, H, W, 3) -> embedding (B, H/16, W/16, out_chans).

    H and W are multiples of 16. `img_size` is the side of the square image that the model is meant for; no variable
    depends on it. The defaults are the sizes of TinyViT-5M. `num_heads` and `window_sizes` have an entry for each stage
    with attention, which are all but the first. For speed call it inside `tf.function`, with H and W known.

    Follows `mobile_sam/modeling/tiny_vit_sam.py` of ChaoningZhang/MobileSAM, channels last; every layer has the
    attribute path of its torch module. Unlike in TinyViT, the last patch merging does not halve the resolution.
    Called with `training=True` it normalises by the batch and updates the moving statistics; a frozen normalization
    (`trainable = False`) does neither.

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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 4 == len(embed_dims) == len(depths) == len(num_heads) + 1 == len(window_sizes) + 1:
            raise ValueError("TinyViT has four stages, and num_heads and window_sizes are of the last three")
        self.img_size = img_size
        self.sizes: dict[str, Any] = {
            "img_size": img_size,
            "embed_dims": list(embed_dims),
            "depths": list(depths),
            "num_heads": list(num_heads),
            "window_sizes": list(window_sizes),
            "mlp_ratio": mlp_ratio,
            "mbconv_expand_ratio": mbconv_expand_ratio,
            "local_conv_size": local_conv_size,
            "out_chans": out_chans,
        }
        check_sizes({name: size for name, size in self.sizes.items() if not name.endswith("ratio")})
        policy = self.dtype_policy
        self.patch_embed = PatchEmbed(embed_dims[0], dtype=policy)
        first = [
            MBConv(embed_dims[0], int(embed_dims[0] * mbconv_expand_ratio), dtype=policy) for _ in range(depths[0])
        ]
        self.layers = [Stage(first, PatchMerging(embed_dims[0], embed_dims[1], 2, dtype=policy), dtype=policy)]
        for stage in (1, 2, 3):
            sizes = (embed_dims[stage], num_heads[stage - 1], window_sizes[stage - 1], mlp_ratio, local_conv_size)
            blocks = [TinyViTBlock(*sizes, dtype=policy) for _ in range(depths[stage])]
            merging = None
            if stage < 3:
                strides = 2 if stage == 1 else 1
                merging = PatchMerging(embed_dims[stage], embed_dims[stage + 1], strides, dtype=policy)
            self.layers.append(Stage(blocks, merging, dtype=policy))
        self.neck: list[Any] = [
            layers.Conv2D(out_chans, 1, use_bias=False, dtype=policy),
            LayerNorm(epsilon=1e-6, dtype=policy),
            SummedConv2D(out_chans, 3, padding=1, use_bias=False, dtype=policy),
            LayerNorm(epsilon=1e-6, dtype=policy),
        ]

    def build(self, image_shape: Any = None) -> None:
        self.patch_embed.build()
        for stage in self.layers:
            stage.build()
        width = self.sizes["embed_dims"][-1]
        for layer in self.neck:
            layer.build((None, None, None, width))
            width = self.sizes["out_chans"]

    def call(self, image: Any, training: bool | None = None) -> Any:
        if any(size is not None and size % STRIDE for size in image.shape[1:3]):
            raise ValueError(f"image: height and width must be multiples of {STRIDE}, got {tuple(image.shape)}")
        x = self.patch_embed(image, training=training)
        for stage in self.layers:
            x = stage(x, training=training)
        for layer in self.neck:
            x = layer(x)
        return x

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | self.sizes
