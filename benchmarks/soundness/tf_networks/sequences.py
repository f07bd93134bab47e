"""Networks of tokens: attention, recurrence, mixing."""

from typing import Any

import keras
import numpy as np
from keras import ops

from benchmarks.soundness.tf_networks.parts import (
    Identity,
    Layer,
    Model,
    attend,
    built,
    chain,
    dense,
    exact_gelu,
    gelu,
    heads_apart,
    heads_joined,
    layer_norm,
)
from tf_models import layers


class ViTBlock(Layer):
    """torchvision's EncoderBlock, around keras.layers.MultiHeadAttention."""

    def __init__(self, heads: int, width: int, inner: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ln_1, self.self_attention = layer_norm(), keras.layers.MultiHeadAttention(heads, width // heads)
        self.ln_2 = layer_norm()
        self.mlp = [dense(inner), gelu(), keras.layers.Dropout(0.1), dense(width), keras.layers.Dropout(0.1)]

    def attended(self, x: Any) -> Any:
        x = self.ln_1(x)
        return self.self_attention(x, x, x)

    def mixed(self, x: Any) -> Any:
        return chain(self.mlp, self.ln_2(x))

    def call(self, x: Any) -> Any:
        x = x + self.attended(x)
        return x + self.mixed(x)


class ViTEncoder(Layer):
    def __init__(self, tokens: int, depth: int, heads: int, width: int, inner: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pos_embedding = self.add_weight(name="pos_embedding", shape=(1, tokens, width))
        self.dropout = keras.layers.Dropout(0.1)
        self.layers = {f"encoder_layer_{i}": ViTBlock(heads, width, inner) for i in range(depth)}
        self.ln = layer_norm()

    def positions(self) -> Any:
        return ops.convert_to_tensor(self.pos_embedding)

    def call(self, x: Any) -> Any:
        return self.ln(chain(self.layers.values(), self.dropout(x + self.positions())))


class ViT(Model):
    """torchvision's Vision Transformer."""

    def __init__(
        self, patch: int, grid: int, depth: int, heads: int, width: int, inner: int, classes: int, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.conv_proj = layers.Conv2D(width, patch, strides=patch)
        self.class_token = self.add_weight(name="class_token", shape=(1, 1, width))
        self.encoder = ViTEncoder(grid * grid + 1, depth, heads, width, inner)
        self.heads = {"head": dense(classes)}

    def tokens(self, x: Any) -> Any:
        x = self.conv_proj(x)
        n, height, width, channels = ops.shape(x)
        return ops.reshape(x, (n, height * width, channels))

    def with_class(self, x: Any) -> Any:
        return ops.concatenate([ops.repeat(ops.convert_to_tensor(self.class_token), ops.shape(x)[0], 0), x], 1)

    def call(self, x: Any) -> Any:
        return self.heads["head"](self.encoder(self.with_class(self.tokens(x)))[:, 0])


def vit(
    patch: int = 8, grid: int = 3, depth: int = 2, heads: int = 4, width: int = 24, inner: int = 40, classes: int = 7
) -> Any:
    return built(ViT(patch, grid, depth, heads, width, inner, classes), (1, patch * grid, patch * grid, 3))


class Attention(Layer):
    """timm's attention: queries, keys and values packed in one linear layer."""

    def __init__(self, heads: int, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.heads, self.qkv, self.proj = heads, dense(3 * width), dense(width)

    def three(self, x: Any) -> Any:
        return [heads_apart(part, self.heads) for part in ops.split(self.qkv(x), 3, -1)]

    def weigh(self, q: Any, k: Any, v: Any) -> Any:
        return attend(q, k, v)

    def call(self, x: Any) -> Any:
        return self.proj(heads_joined(self.weigh(*self.three(x))))


class LayerScale(Layer):
    def __init__(self, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gamma = self.add_weight(name="gamma", shape=(width,), initializer="ones")

    def call(self, x: Any) -> Any:
        return x * self.gamma


class Mlp(Layer):
    def __init__(self, inner: int, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fc1, self.act, self.fc2 = dense(inner), gelu(), dense(width)

    def call(self, x: Any) -> Any:
        return self.fc2(self.act(self.fc1(x)))


class TimmBlock(Layer):
    def __init__(self, heads: int, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.norm1, self.attn, self.ls1 = layer_norm(), Attention(heads, width), LayerScale(width)
        self.norm2, self.mlp, self.ls2 = layer_norm(), Mlp(2 * width, width), LayerScale(width)

    def call(self, x: Any) -> Any:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(Layer):
    """An image as tokens, row by row."""

    def __init__(self, patch: int, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.proj = layers.Conv2D(width, patch, strides=patch)

    def call(self, x: Any) -> Any:
        x = self.proj(x)
        n, height, width, channels = ops.shape(x)
        return ops.reshape(x, (n, height * width, channels))


class TimmViT(Model):
    def __init__(self, classes: int = 7, width: int = 24, heads: int = 3, depth: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.patch_embed = PatchEmbed(8, width)
        self.cls_token = self.add_weight(name="cls_token", shape=(1, 1, width))
        self.pos_embed = self.add_weight(name="pos_embed", shape=(1, 16, width))
        self.blocks = [TimmBlock(heads, width) for _ in range(depth)]
        self.norm, self.head = layer_norm(), dense(classes)

    def with_class(self, x: Any) -> Any:
        return ops.concatenate([ops.repeat(ops.convert_to_tensor(self.cls_token), ops.shape(x)[0], 0), x], 1)

    def call(self, x: Any) -> Any:
        x = self.with_class(self.patch_embed(x)) + self.pos_embed
        return self.head(self.norm(chain(self.blocks, x))[:, 0])


def timm_vit() -> Any:
    return built(TimmViT(), (1, 24, 40, 3))


class MixerBlock(Layer):
    def __init__(self, tokens: int, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.norm1, self.mlp_tokens = layer_norm(), Mlp(width // 2, tokens)
        self.norm2, self.mlp_channels = layer_norm(), Mlp(4 * width, width)

    def across(self, x: Any) -> Any:
        return ops.transpose(self.mlp_tokens(ops.transpose(self.norm1(x), (0, 2, 1))), (0, 2, 1))

    def call(self, x: Any) -> Any:
        x = x + self.across(x)
        return x + self.mlp_channels(self.norm2(x))


class Mixer(Model):
    def __init__(self, classes: int = 7, width: int = 24, center: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stem = PatchEmbed(8, width)
        self.blocks = [MixerBlock(15, width) for _ in range(2)]
        self.norm, self.head = keras.layers.LayerNormalization(epsilon=1e-6, center=center), dense(classes)

    def call(self, x: Any) -> Any:
        return self.head(ops.mean(self.norm(chain(self.blocks, self.stem(x))), 1))


def mixer(center: bool = True) -> Any:
    return built(Mixer(center=center), (1, 24, 40, 3))


def relative_index(window: tuple[int, int]) -> np.ndarray:
    """(T, T): which row of the table belongs to two positions of a window."""
    rows, columns = np.divmod(np.arange(window[0] * window[1]), window[1])
    down = rows[:, None] - rows[None] + window[0] - 1
    right = columns[:, None] - columns[None] + window[1] - 1
    return down * (2 * window[1] - 1) + right


class WindowAttention(Layer):
    """Swin's attention in windows, which may be shifted; positions enter as a learned bias."""

    def __init__(self, width: int, heads: int, window: tuple[int, int], shift: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.window, self.shift, self.heads = window, shift, heads
        self.qkv, self.proj = dense(3 * width), dense(width)
        rows = (2 * window[0] - 1) * (2 * window[1] - 1)
        self.relative_position_bias_table = self.add_weight(name="bias_table", shape=(rows, heads))

    def index(self) -> np.ndarray:
        return relative_index(self.window)

    def mask(self, height: int, width: int, shift: tuple[int, ...]) -> Any:
        """(windows, 1, T, T): -100 between positions that the shift brought together."""
        region = np.zeros((height, width))
        for count, (rows, columns) in enumerate(
            (r, c)
            for r in _regions(height, self.window[0], shift[0])
            for c in _regions(width, self.window[1], shift[1])
        ):
            region[rows, columns] = count
        parts = _windows(region[None, :, :, None], self.window, np)[..., 0]  # (windows, T)
        return np.where(parts[:, None, None, :] != parts[:, None, :, None], -100.0, 0.0)

    def call(self, x: Any) -> Any:
        n, height, width, channels = x.shape
        down, right = (-size % w for size, w in zip((height, width), self.window, strict=True))
        x = ops.pad(x, [(0, 0), (0, down), (0, right), (0, 0)])
        padded = (height + down, width + right)
        shift = tuple(0 if w >= size else s for s, w, size in zip(self.shift, self.window, padded, strict=True))
        if any(shift):
            x = ops.roll(x, (-shift[0], -shift[1]), (1, 2))
        tokens = _windows(x, self.window, ops)  # (N * windows, T, C)
        q, k, v = (heads_apart(part, self.heads) for part in ops.split(self.qkv(tokens), 3, -1))
        bias = ops.take(ops.convert_to_tensor(self.relative_position_bias_table), self.index(), 0)  # (T, T, h)
        bias = ops.transpose(bias, (2, 0, 1))[None]
        if any(shift):
            mask = np.tile(self.mask(*padded, shift), (n, 1, 1, 1))
            bias = bias + ops.cast(mask, bias.dtype)
        tokens = self.proj(heads_joined(attend(q, k, v, bias)))
        x = ops.reshape(tokens, (n, padded[0] // self.window[0], padded[1] // self.window[1], *self.window, channels))
        x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (n, *padded, channels))
        if any(shift):
            x = ops.roll(x, shift, (1, 2))
        return x[:, :height, :width]


def _regions(size: int, window: int, shift: int) -> tuple[slice, ...]:
    return slice(0, size - window), slice(size - window, size - shift), slice(size - shift, size if shift else 0)


def _windows(x: Any, window: tuple[int, int], module: Any) -> Any:
    """(N, H, W, C) -> (N * windows, T, C)."""
    n, height, width, channels = x.shape
    x = module.reshape(x, (n, height // window[0], window[0], width // window[1], window[1], channels))
    return module.reshape(module.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, window[0] * window[1], channels))


class SwinBlock(Layer):
    def __init__(self, width: int, heads: int, shift: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.norm1, self.attn = layer_norm(1e-5), WindowAttention(width, heads, (3, 4), shift)
        self.norm2 = layer_norm(1e-5)
        self.mlp = [dense(2 * width), gelu(), Identity(), dense(width), Identity()]

    def call(self, x: Any) -> Any:
        x = x + self.attn(self.norm1(x))
        return x + chain(self.mlp, self.norm2(x))


class PatchMerging(Layer):
    """Four neighbours become one token."""

    def __init__(self, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reduction, self.norm = dense(2 * width, use_bias=False), layer_norm(1e-5)

    def neighbours(self, x: Any) -> list:
        return [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]

    def call(self, x: Any) -> Any:
        x = ops.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)])
        return self.reduction(self.norm(ops.concatenate(self.neighbours(x), -1)))


class Swin(Model):
    def __init__(self, classes: int = 7, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.features = [
            [layers.Conv2D(12, 4, strides=4), Identity(), layer_norm(1e-5)],
            [SwinBlock(12, 3, (0, 0)), SwinBlock(12, 3, (1, 2))],
            PatchMerging(12),
            [SwinBlock(24, 4, (0, 0))],
        ]
        self.norm, self.head = layer_norm(1e-5), dense(classes)

    def call(self, x: Any) -> Any:
        for part in self.features:
            x = part(x) if callable(part) else chain(part, x)
        return self.head(ops.mean(self.norm(x), (1, 2)))


def swin() -> Any:
    return built(Swin(), (1, 28, 36, 3))


class EncoderLayer(Layer):
    """torch.nn.TransformerEncoderLayer around keras.layers.MultiHeadAttention."""

    def __init__(self, norm_first: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.norm_first = norm_first
        self.self_attn = keras.layers.MultiHeadAttention(4, 6)
        self.linear1, self.linear2 = dense(40), dense(24)
        self.norm1, self.norm2, self.dropout = layer_norm(1e-5), layer_norm(1e-5), keras.layers.Dropout(0.1)

    def attended(self, x: Any, padding: Any) -> Any:
        return self.self_attn(x, x, x, attention_mask=ops.logical_not(padding)[:, None])

    def mixed(self, x: Any) -> Any:
        return self.linear2(self.dropout(exact_gelu(self.linear1(x))))

    def call(self, x: Any, padding: Any) -> Any:
        if self.norm_first:
            x = x + self.attended(self.norm1(x), padding)
            return x + self.mixed(self.norm2(x))
        x = self.norm1(x + self.attended(x, padding))
        return self.norm2(x + self.mixed(x))


class EncoderStack(Layer):
    def __init__(self, norm_first: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layers = [EncoderLayer(norm_first) for _ in range(2)]

    def call(self, x: Any, padding: Any) -> Any:
        for layer in self.layers:
            x = layer(x, padding)
        return x


class Encoder(Model):
    def __init__(self, norm_first: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.embed, self.encoder, self.head = keras.layers.Embedding(31, 24), EncoderStack(norm_first), dense(7)
        self.positions = self.add_weight(name="positions", shape=(1, 12, 24))

    def call(self, ids: Any, padding: Any) -> Any:
        x = self.encoder(self.embed(ids) + self.positions[:, : ids.shape[1]], padding)
        counts = ops.cast(ops.logical_not(padding), x.dtype)[..., None]
        return self.head(ops.sum(x * counts, 1) / ops.sum(counts, 1)), x


def encoder(norm_first: bool = False) -> Any:
    return built(Encoder(norm_first), ops.zeros((1, 9), "int32"), ops.zeros((1, 9), "bool"))


class BertEmbeddings(Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.word_embeddings = keras.layers.Embedding(40, 24)
        self.position_embeddings = keras.layers.Embedding(16, 24)
        self.token_type_embeddings = keras.layers.Embedding(2, 24)
        self.LayerNorm = layer_norm(1e-12)

    def positions(self, length: int) -> Any:
        return ops.arange(length)[None]

    def call(self, input_ids: Any, token_type_ids: Any) -> Any:
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        return self.LayerNorm(x + self.position_embeddings(self.positions(input_ids.shape[1])))


class BertSelfAttention(Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.query, self.key, self.value = dense(24), dense(24), dense(24)

    def call(self, x: Any, mask: Any) -> Any:
        q, k, v = (heads_apart(layer(x), 4) for layer in (self.query, self.key, self.value))
        return heads_joined(attend(q, k, v, mask))


class BertOutput(Layer):
    """A linear layer, a residual sum, a normalisation."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense, self.LayerNorm = dense(24), layer_norm(1e-12)

    def call(self, x: Any, residual: Any) -> Any:
        return self.LayerNorm(self.dense(x) + residual)


class BertAttention(Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Keras has an attribute `output` of its own.
        self.inner, self.outer = BertSelfAttention(), BertOutput()

    def call(self, x: Any, mask: Any) -> Any:
        return self.outer(self.inner(x, mask), x)


class BertLayer(Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attention, self.intermediate, self.outer = BertAttention(), {"dense": dense(40)}, BertOutput()

    def between(self, x: Any) -> Any:
        return exact_gelu(self.intermediate["dense"](x))

    def call(self, x: Any, mask: Any) -> Any:
        x = self.attention(x, mask)
        return self.outer(self.between(x), x)


class Bert(Model):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.embeddings = BertEmbeddings()
        self.encoder, self.pooler = {"layer": [BertLayer() for _ in range(2)]}, {"dense": dense(24)}

    def mask(self, attention_mask: Any) -> Any:
        """(N, 1, 1, L): nothing where one may look, and the least number where not."""
        least = np.finfo(self.compute_dtype).min
        return (1 - ops.cast(attention_mask, self.compute_dtype))[:, None, None] * least

    def call(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
        x = self.embeddings(input_ids, token_type_ids)
        for layer in self.encoder["layer"]:
            x = layer(x, self.mask(attention_mask))
        return x, ops.tanh(self.pooler["dense"](x[:, 0]))


def bert() -> Any:
    zeros = ops.zeros((1, 9), "int32")
    return built(Bert(), zeros, ops.ones((1, 9), "int32"), zeros)


class GPT2Attention(Layer):
    def __init__(self, heads: int, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.heads, self.c_attn, self.c_proj = heads, dense(3 * width), dense(width)

    def causal(self, length: int, dtype: Any) -> Any:
        return ops.cast(np.triu(np.full((length, length), np.finfo(np.float32).min), 1), dtype)

    def call(self, x: Any) -> Any:
        q, k, v = (heads_apart(part, self.heads) for part in ops.split(self.c_attn(x), 3, -1))
        return self.c_proj(heads_joined(attend(q, k, v, self.causal(x.shape[1], x.dtype))))


class GPT2Mlp(Layer):
    def __init__(self, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.c_fc, self.c_proj = dense(4 * width), dense(width)

    def between(self, x: Any) -> Any:
        return keras.activations.gelu(x, approximate=True)  # GPT-2 has the approximated one

    def call(self, x: Any) -> Any:
        return self.c_proj(self.between(self.c_fc(x)))


class GPT2Block(Layer):
    def __init__(self, heads: int, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ln_1, self.attn = layer_norm(1e-5), GPT2Attention(heads, width)
        self.ln_2, self.mlp = layer_norm(1e-5), GPT2Mlp(width)

    def call(self, x: Any) -> Any:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT2Body(Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.wte, self.wpe = keras.layers.Embedding(37, 24), keras.layers.Embedding(16, 24)
        self.h, self.ln_f = [GPT2Block(3, 24) for _ in range(2)], layer_norm(1e-5)

    def call(self, input_ids: Any) -> Any:
        x = self.wte(input_ids) + self.wpe(ops.arange(input_ids.shape[1])[None])
        return self.ln_f(chain(self.h, x))


class GPT2(Model):
    """The output layer is the table of the tokens, or one of its own."""

    def __init__(self, tied: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.transformer = GPT2Body()
        self.lm_head = None if tied else dense(37, use_bias=False)

    def logits(self, x: Any) -> Any:
        if self.lm_head is not None:
            return self.lm_head(x)
        return ops.matmul(x, ops.transpose(self.transformer.wte.embeddings))

    def call(self, input_ids: Any) -> Any:
        return self.logits(self.transformer(input_ids))


def gpt2(tied: bool = True) -> Any:
    return built(GPT2(tied), ops.zeros((1, 9), "int32"))


class Tagger(Model):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        lstm = keras.layers.LSTM
        self.embed = keras.layers.Embedding(23, 10)
        self.rnn = lstm(12, return_sequences=True, use_bias=False)
        self.both = keras.layers.Bidirectional(lstm(8, return_sequences=True, use_bias=False))
        self.tags, self.head = dense(5), dense(7)

    def last(self, states: Any) -> Any:
        return states[:, -1]

    def call(self, ids: Any) -> Any:
        states = self.rnn(self.embed(ids))
        return self.tags(self.both(states)), self.head(self.last(states))


def tagger() -> Any:
    return built(Tagger(), ops.zeros((1, 9), "int32"))
