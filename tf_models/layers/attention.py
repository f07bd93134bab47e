"""Attention and the layers of a Transformer as torch.nn has them, where Keras's own cannot do what torch's do."""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

_NAMES = ("query", "key", "value")


class _Masked(keras.layers.Layer):
    """Has masks among its arguments, each of which is True where one may not look, or is added to the scores."""

    _arguments: tuple[str, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Both sorts become one before `call`, so that whoever watches it sees what they mean.
        first = next(place for place, name in enumerate(self._arguments) if name.endswith("mask"))
        kwargs.update(zip((*self._arguments[first:], "training"), args[first:], strict=False))
        for name, mask in kwargs.items():
            if name.endswith("mask") and mask is not None:
                kwargs[name] = added(mask, self.compute_dtype)
        return super().__call__(*args[:first], **kwargs)


@keras.saving.register_keras_serializable(package="weightbridge")
class MultiheadAttention(_Masked):
    """torch.nn.MultiheadAttention: query (N, L, E), key (N, S, kdim), value (N, S, vdim) -> (N, L, E) and its weights.

    The arguments are torch's, in its order. A mask is True where one may not look, or is added to the scores. The
    weights are (N, L, S), or (N, heads, L, S) with `average_attn_weights` off; with `bias_k` and `add_zero_attn` S is
    longer by one for each. With `need_weights` off the result comes alone. A single sequence may come without a batch.
    The batch is always first, which in torch is a choice.
    """

    _arguments = (*_NAMES, "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"num_heads: expected a divisor of embed_dim ({embed_dim}), got {num_heads}")
        self.embed_dim, self.num_heads, self.dropout, self.use_bias = embed_dim, num_heads, dropout, bias
        self.add_bias_kv, self.add_zero_attn = add_bias_kv, add_zero_attn
        self.kdim, self.vdim = kdim or embed_dim, vdim or embed_dim
        more = {"use_bias": bias, "dtype": self.dtype_policy}
        self.query, self.key, self.value = (keras.layers.Dense(embed_dim, name=name, **more) for name in _NAMES)
        self.out_proj = keras.layers.Dense(embed_dim, name="out_proj", **more)
        self.dropped = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def build(self, query_shape: Any = None, key_shape: Any = None, value_shape: Any = None) -> None:
        self.query.build((None, None, self.embed_dim))
        self.key.build((None, None, self.kdim))
        self.value.build((None, None, self.vdim))
        self.out_proj.build((None, None, self.embed_dim))
        extra = {"shape": (1, 1, self.embed_dim), "initializer": "glorot_normal"}
        self.bias_k = self.add_weight(name="bias_k", **extra) if self.add_bias_kv else None
        self.bias_v = self.add_weight(name="bias_v", **extra) if self.add_bias_kv else None

    def call(
        self,
        query: Any,
        key: Any,
        value: Any,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        training: bool = False,
    ) -> Any:
        alone = len(query.shape) == 2
        if alone:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        if is_causal and attn_mask is None:
            raise ValueError("is_causal: expected attn_mask too, as torch does")
        queries, keys, values = self.query(query), self.key(key), self.value(value)
        more = self.add_bias_kv + self.add_zero_attn  # keys that no argument has
        ones = ops.ones((ops.shape(keys)[0], 1, 1), keys.dtype)
        if self.add_bias_kv:
            keys = ops.concatenate([keys, ones * ops.cast(self.bias_k, keys.dtype)], 1)
            values = ops.concatenate([values, ones * ops.cast(self.bias_v, keys.dtype)], 1)
        if self.add_zero_attn:
            keys, values = (ops.pad(one, [(0, 0), (0, 1), (0, 0)]) for one in (keys, values))
        queries, keys, values = map(self._heads, (queries, keys, values))
        scores = ops.matmul(queries * (self.embed_dim // self.num_heads) ** -0.5, ops.swapaxes(keys, -1, -2))
        sure = is_causal and key_padding_mask is None and not need_weights
        if sure:  # torch takes its word for it, and does not look at the mask
            length, width = ops.shape(scores)[-2:]
            scores += added(ops.arange(width)[None] > ops.arange(length)[:, None], scores.dtype)
        elif attn_mask is not None:
            mask = added(attn_mask, scores.dtype)
            if len(mask.shape) == 3:  # (N*heads, L, S) -> (N, heads, L, S)
                mask = ops.reshape(mask, (-1, self.num_heads, *ops.shape(mask)[1:]))
            scores += ops.pad(mask, [*[(0, 0)] * (len(mask.shape) - 1), (0, more)])
        if key_padding_mask is not None:
            mask = added(key_padding_mask, scores.dtype)
            scores += ops.pad(mask, [(0, 0), (0, more)])[:, None, None]
        weights = ops.softmax(scores)
        if not need_weights:  # of a query that may look nowhere torch then makes zeros, and NaN where it gives weights
            nowhere = ops.all(scores == -math.inf, -1, keepdims=True)
            weights = ops.where(nowhere, ops.zeros_like(weights), weights)
        weights = self.dropped(weights, training=training)
        found = ops.transpose(ops.matmul(weights, values), (0, 2, 1, 3))  # (N, h, L, d) -> (N, L, h, d)
        result = self.out_proj(ops.reshape(found, (*ops.shape(found)[:2], self.embed_dim)))
        result = result[0] if alone else result
        if not need_weights:
            return result
        weights = ops.mean(weights, 1) if average_attn_weights else weights
        return result, weights[0] if alone else weights

    def _heads(self, x: Any) -> Any:
        """(N, S, E) -> (N, h, S, d)"""
        batch, length = ops.shape(x)[:2]
        x = ops.reshape(x, (batch, length, self.num_heads, self.embed_dim // self.num_heads))
        return ops.transpose(x, (0, 2, 1, 3))

    def get_config(self) -> dict[str, Any]:
        names = ("embed_dim", "num_heads", "dropout", "add_bias_kv", "add_zero_attn", "kdim", "vdim")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}, "bias": self.use_bias}


def added(mask: Any, dtype: Any) -> Any:
    """What a mask adds to the scores: nothing, or minus infinity where it is True; numbers as they are."""
    if keras.backend.standardize_dtype(getattr(mask, "dtype", "bool")) == "bool":
        return ops.where(mask, ops.cast(-math.inf, dtype), ops.cast(0.0, dtype))
    return ops.cast(mask, dtype)


class _TransformerLayer(_Masked):
    """What both sorts share: attentions, two linear layers, and a normalisation for each."""

    _attentions: tuple[str, ...]

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Any], Any] = "relu",
        layer_norm_eps: float = 1e-5,
        norm_first: bool = False,
        bias: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sizes = d_model, nhead, dim_feedforward
        self.dropout, self.layer_norm_eps, self.norm_first, self.use_bias = dropout, layer_norm_eps, norm_first, bias
        self.activation = activation
        dtype = {"dtype": self.dtype_policy}
        for name in self._attentions:
            setattr(self, name, MultiheadAttention(d_model, nhead, dropout, bias, name=name, **dtype))
        self.linear1 = keras.layers.Dense(dim_feedforward, use_bias=bias, name="linear1", **dtype)
        self.linear2 = keras.layers.Dense(d_model, use_bias=bias, name="linear2", **dtype)
        for place in range(1, len(self._attentions) + 2):
            norm = keras.layers.LayerNormalization(epsilon=layer_norm_eps, center=bias, name=f"norm{place}", **dtype)
            setattr(self, f"norm{place}", norm)
        self.dropped = keras.layers.Dropout(dropout, **dtype)

    def build(self, *shapes: Any, **more: Any) -> None:
        width, _, hidden = self.sizes
        for name in self._attentions:
            getattr(self, name).build()
        self.linear1.build((None, None, width))
        self.linear2.build((None, None, hidden))
        for place in range(1, len(self._attentions) + 2):
            getattr(self, f"norm{place}").build((None, None, width))
        self.built = True

    def _joined(self, x: Any, place: int, part: Callable[[Any], Any], training: bool) -> Any:
        """x with what `part` makes of it, normalised before or after."""
        norm = getattr(self, f"norm{place}")
        if self.norm_first:
            return x + self.dropped(part(norm(x)), training=training)
        return norm(x + self.dropped(part(x), training=training))

    def _forward(self, x: Any, training: bool) -> Any:
        x = self.linear1(x)
        if self.activation == "relu":
            x = ops.relu(x)
        elif self.activation == "gelu":
            x = ops.gelu(x, approximate=False)  # torch's is the exact one
        else:
            x = keras.activations.get(self.activation)(x)
        return self.linear2(self.dropped(x, training=training))

    def get_config(self) -> dict[str, Any]:
        names = ("dropout", "layer_norm_eps", "norm_first")
        activation = self.activation
        return {
            **super().get_config(),
            **dict(zip(("d_model", "nhead", "dim_feedforward"), self.sizes, strict=True)),
            **{name: getattr(self, name) for name in names},
            "bias": self.use_bias,
            "activation": keras.activations.serialize(activation) if callable(activation) else activation,
        }


@keras.saving.register_keras_serializable(package="weightbridge")
class TransformerEncoderLayer(_TransformerLayer):
    """torch.nn.TransformerEncoderLayer: (N, L, E) -> (N, L, E), the batch always first; masks are torch's."""

    _attentions = ("self_attn",)
    _arguments = ("src", "src_mask", "src_key_padding_mask", "is_causal")

    def call(
        self,
        src: Any,
        src_mask: Any = None,
        src_key_padding_mask: Any = None,
        is_causal: bool = False,
        training: bool = False,
    ) -> Any:
        def attend(x: Any) -> Any:
            more = {"attn_mask": src_mask, "key_padding_mask": src_key_padding_mask, "is_causal": is_causal}
            return self.self_attn(x, x, x, need_weights=False, training=training, **more)

        x = self._joined(src, 1, attend, training)
        return self._joined(x, 2, lambda x: self._forward(x, training), training)


@keras.saving.register_keras_serializable(package="weightbridge")
class TransformerDecoderLayer(_TransformerLayer):
    """torch.nn.TransformerDecoderLayer: (N, L, E), memory (N, S, E) -> (N, L, E), batch first; masks are torch's."""

    _attentions = ("self_attn", "multihead_attn")
    _arguments = (
        *("tgt", "memory", "tgt_mask", "memory_mask", "tgt_key_padding_mask", "memory_key_padding_mask"),
        *("tgt_is_causal", "memory_is_causal"),
    )

    def call(
        self,
        tgt: Any,
        memory: Any,
        tgt_mask: Any = None,
        memory_mask: Any = None,
        tgt_key_padding_mask: Any = None,
        memory_key_padding_mask: Any = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
        training: bool = False,
    ) -> Any:
        def attend(x: Any) -> Any:
            more = {"attn_mask": tgt_mask, "key_padding_mask": tgt_key_padding_mask, "is_causal": tgt_is_causal}
            return self.self_attn(x, x, x, need_weights=False, training=training, **more)

        def look(x: Any) -> Any:
            masks = {"attn_mask": memory_mask, "key_padding_mask": memory_key_padding_mask}
            more = {**masks, "is_causal": memory_is_causal, "need_weights": False, "training": training}
            return self.multihead_attn(x, memory, memory, **more)

        x = self._joined(tgt, 1, attend, training)
        x = self._joined(x, 2, look, training)
        return self._joined(x, 3, lambda x: self._forward(x, training), training)
