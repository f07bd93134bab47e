"""Kinds of attention: torch's own, projections that are packed or apart, and what libraries keep beside them.

Axis letters: h heads, d channels of a head, q, k, v what is packed, e, i, j input channels, o output channels.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from converter.kinds.activations import SEQUENCES
from converter.kinds.folded import normed
from converter.kinds.kind import Kind, Leaf, leaf
from converter.kinds.plain import BETWEEN, DENSE_IN_OUT

# Torch's Linear of GPT-2: (in, out), as Keras has it.
CONV1D_GPT2 = replace(
    DENSE_IN_OUT,
    name="CONV1D_GPT2",
    leaves=(normed(DENSE_IN_OUT.leaves[0]), *DENSE_IN_OUT.leaves[1:]),
    of=None,
    suspects="a kernel that is transposed",
)


# --- torch.nn.MultiheadAttention --------------------------------------------------------------------------------------


def _call_attention(
    layer: Any,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    """keras.layers.MultiHeadAttention takes (query, value, key), and masks that are True where one may look.

    It is asked for its scores where torch gives them.
    """
    alone = query.ndim == 2  # torch takes a single sequence without a batch
    if alone:
        query, key, value = query[None], key[None], value[None]
        key_padding_mask = None if key_padding_mask is None else np.asarray(key_padding_mask)[None]
    if is_causal and key_padding_mask is None and not need_weights:
        # Torch then takes its word for it, and does not look at the mask.
        attn_mask = ~np.tri(query.shape[1], key.shape[1], dtype=bool)
    allowed = None
    if attn_mask is not None:
        allowed = _allowed(attn_mask)  # (L, S) or (N*h, L, S)
        if allowed.ndim == 3:
            allowed = allowed.reshape(query.shape[0], -1, *allowed.shape[1:])  # (N, h, L, S)
    if key_padding_mask is not None:
        keys = _allowed(key_padding_mask)  # (N, S)
        keys = keys[:, None, None, :] if allowed is not None and allowed.ndim == 4 else keys[:, None, :]
        allowed = keys if allowed is None else allowed & keys
    if not need_weights or "return_attention_scores" not in _parameters(layer):
        result, scores = layer(query, value, key, attention_mask=allowed), None
    else:
        result, scores = layer(query, value, key, attention_mask=allowed, return_attention_scores=True)
        scores = np.asarray(scores).mean(1) if average_attn_weights else scores  # (N, h, L, S) -> (N, L, S)
    if alone:
        return result[0], None if scores is None else scores[0]
    return result, scores


def _parameters(layer: Any) -> set[str]:
    return set(inspect.signature(getattr(layer, "call", layer)).parameters)


def _allowed(mask: Any) -> np.ndarray:
    """Where one may look, of a torch mask: True, or minus infinity, where one may not."""
    mask = np.asarray(mask)
    if mask.dtype == bool:
        return ~mask
    if not np.isin(mask, (0.0, -np.inf)).all():
        raise ValueError(
            "an attention mask with weights of its own has no counterpart in keras.layers.MultiHeadAttention; take "
            "tf_models.layers.MultiheadAttention, and the kind TORCH_MULTIHEAD_ATTENTION"
        )
    return mask == 0


_QKV = ("query_dense", "key_dense", "value_dense")
_KERNELS = tuple(f"{name}.kernel" for name in _QKV)
_BIASES = tuple(f"{name}.bias" for name in _QKV)
_HEADED = "(h q) e, (h k) i, (h v) j -> e h q, i h k, j h v"
_HEADED_BIASES = "(h q), (h k), (h v) -> h q, h k, h v"
_ORDER = "the order of its heads, or of query, key and value"
_OUT = (
    leaf("out_proj.weight", "output_dense.kernel", "o (h d) -> h d o"),
    leaf("out_proj.bias", "output_dense.bias", "o -> o", optional=True),
)
_PACKED = "((q + k + v) h d) i -> i h (q d), i h (k d), i h (v d)"
_PACKED_BIAS = "((q + k + v) h d) -> h (q d), h (k d), h (v d)"
_ONE = {"q": 1, "k": 1, "v": 1}

# In every form: `in_proj_weight` (3E, E), or one for each where `kdim` or `vdim` is another; the bias is always packed.
MULTIHEAD_ATTENTION = Kind(
    "MULTIHEAD_ATTENTION",
    (
        leaf(
            "in_proj_weight",
            _KERNELS,
            _PACKED,
            alternatives=(leaf(("q_proj_weight", "k_proj_weight", "v_proj_weight"), _KERNELS, _HEADED),),
            sizes=_ONE,
        ),
        leaf("in_proj_bias", _BIASES, _PACKED_BIAS, optional=True, sizes=_ONE),
        *_OUT,
    ),
    call=_call_attention,
    sequences=(("0", "1", "2", "query", "key", "value"), ("0",)),
    suspects=_ORDER,
    without_effect=("key_dense.bias",),  # it adds the same to every score of a query, which softmax takes away
    may_lack=("1",),  # its weights
)


def _call_as_torch(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """With torch's arguments; a mask that is True where one may not look is what the layer makes of it."""
    found = layer(*map(_added, args), **{name: _added(value) for name, value in kwargs.items()})
    return found if isinstance(found, tuple) else (found, None)


def _call_transformer(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """The same of a layer of a Transformer; without what asks for nothing."""
    asked = {name: _added(value) for name, value in kwargs.items() if value is not None and value is not False}
    return layer(*map(_added, args), **asked)


def _added(mask: Any) -> Any:
    """What a mask adds to the scores."""
    hides = isinstance(mask, np.ndarray) and mask.dtype == bool
    return np.where(mask, np.float32(-np.inf), np.float32(0)) if hides else mask


# The same against `tf_models.layers.MultiheadAttention`, which has all that torch's has.
TORCH_MULTIHEAD_ATTENTION = Kind(
    "TORCH_MULTIHEAD_ATTENTION",
    (
        leaf(
            "in_proj_weight",
            ("query.kernel", "key.kernel", "value.kernel"),
            "(q + k + v) i -> i q, i k, i v",
            alternatives=(
                leaf(
                    ("q_proj_weight", "k_proj_weight", "v_proj_weight"),
                    ("query.kernel", "key.kernel", "value.kernel"),
                    "q e, k i, v j -> e q, i k, j v",
                ),
            ),
        ),
        leaf("in_proj_bias", ("query.bias", "key.bias", "value.bias"), "(q + k + v) -> q, k, v", optional=True),
        leaf("bias_k", "bias_k", "1 1 c -> 1 1 c", optional=True),
        leaf("bias_v", "bias_v", "1 1 c -> 1 1 c", optional=True),
        leaf("out_proj.weight", "out_proj.kernel", "o i -> i o"),
        leaf("out_proj.bias", "out_proj.bias", "o -> o", optional=True),
    ),
    call=_call_as_torch,
    sequences=MULTIHEAD_ATTENTION.sequences,
    suspects=_ORDER,
    without_effect=("key.bias",),  # where there is neither `bias_k` nor `add_zero_attn`
)


def _transformer_layer(name: str, *sequences: str) -> Kind:
    return Kind(name, (), sequences=(sequences, ("",)), call=_call_transformer, stage=True, suspects=BETWEEN)


# torch.nn.TransformerEncoderLayer and TransformerDecoderLayer as a whole, against a Keras layer that takes the same
# arguments, as those of `tf_models.layers`; the layers in it have rows of their own (docs/add_a_pair.md). Masks are
# what is added to the scores.
TRANSFORMER_ENCODER_LAYER = _transformer_layer("TRANSFORMER_ENCODER_LAYER", "0", "src")
TRANSFORMER_DECODER_LAYER = _transformer_layer("TRANSFORMER_DECODER_LAYER", "0", "1", "tgt", "memory")


def time_first(kind: Kind) -> Kind:
    """The kind of a layer within a torch module whose `batch_first` is off, where Keras has the batch first."""
    axes = {"": SEQUENCES}
    return replace(kind, name=f"time_first({kind})", inputs=axes, results=axes)


# --- An attention that is a module of its own -------------------------------------------------------------------------


def _call_alone(layer: Any, query: Any, key: Any = None, value: Any = None, **others: Any) -> Any:
    """One input for all, or the three; what else the module received must ask for nothing."""
    asked = [name for name, given in others.items() if given is not None and given is not False]
    if asked or not all(one is None or getattr(one, "ndim", 0) == query.ndim for one in (key, value)):
        raise ValueError(f"the kind does not know what {', '.join(asked) or 'its second argument'} means; give `call`")
    key = query if key is None else key
    return layer(query, key if value is None else value, key)


def _attention(name: str, leaves: tuple[Leaf, ...], call: Callable[..., Any] | None, alone: bool) -> Kind:
    return Kind(
        name,
        leaves,
        call=call or _call_alone,
        callable_alone=alone,
        suspects=_ORDER,
        without_effect=("key_dense.bias",),
        may_lack=("1",),
    )


def _output(out: str, transposed: bool) -> tuple[Leaf, ...]:
    axes = "(h d) o -> h d o" if transposed else "o (h d) -> h d o"
    return (
        normed(leaf(f"{out}.weight", "output_dense.kernel", axes)),
        leaf(f"{out}.bias", "output_dense.bias", "o -> o", optional=True),
    )


def packed_attention(
    qkv: str = "qkv",
    out: str = "proj",
    per_head: bool = False,
    transposed: bool = False,
    call: Callable[..., Any] | None = None,
    alone: bool = True,
) -> Kind:
    """A module with one Linear for query, key and value, and one for the output: keras.layers.MultiHeadAttention.

    Args:
        qkv, out: the Linears' names in the module.
        per_head: the first one's output is (heads, 3, d), as in GPT-NeoX and BLOOM, not (3, heads, d), as in timm.
        transposed: they are (in, out), as GPT-2's Conv1D.
        call: calls the Keras layer with what torch's module receives, where that is more than its input.
        alone: the module is called; False: its tensors are proven by the whole.
    """
    packed = "(h (q + k + v) d)" if per_head else "((q + k + v) h d)"
    weight = f"i {packed}" if transposed else f"{packed} i"
    return _attention(
        f"packed_attention({qkv}, {out}{', per head' * per_head}{', transposed' * transposed})",
        (
            normed(leaf(f"{qkv}.weight", _KERNELS, f"{weight} -> i h (q d), i h (k d), i h (v d)", sizes=_ONE)),
            leaf(f"{qkv}.bias", _BIASES, f"{packed} -> h (q d), h (k d), h (v d)", optional=True, sizes=_ONE),
            *_output(out, transposed),
        ),
        call,
        alone,
    )


def separate_attention(
    q: str = "q_proj",
    k: str = "k_proj",
    v: str = "v_proj",
    out: str = "out_proj",
    call: Callable[..., Any] | None = None,
    alone: bool = True,
) -> Kind:
    """A module with four Linears of these names: keras.layers.MultiHeadAttention; `call` and `alone` as before."""
    names = (q, k, v)
    axes = ("(h d) i -> i h d", "(h d) -> h d")
    leaves: list[Leaf] = []
    for name, kernel, bias in zip(names, _KERNELS, _BIASES, strict=True):
        leaves += normed(leaf(f"{name}.weight", kernel, axes[0])), leaf(f"{name}.bias", bias, axes[1], optional=True)
    return _attention(f"separate_attention({', '.join((*names, out))})", (*leaves, *_output(out, False)), call, alone)


# --- Projections ------------------------------------------------------------------------------------------------------


def _cut(names: tuple[str, ...], heads: int | None) -> tuple[str, list[str], dict[str, int], str]:
    """The axes of the whole and of each part, the sizes of what no shape tells, and a description."""
    parts = [f"p{place}" for place in range(len(names))]
    told = ", ".join(names)
    if heads is None:
        return f"({' + '.join(parts)})", parts, {}, told
    return f"(h ({' + '.join(parts)}))", [f"(h {part})" for part in parts], {"h": heads}, f"{told}; {heads} heads"


def split_dense(names: tuple[str, ...] = ("q", "k", "v"), heads: int | None = None) -> Kind:
    """One Linear whose output is cut into several: as many Dense of these names below the row's Keras path.

    `heads` where each head's parts stand together, as in (heads, 3, d); else one part stands behind another.
    """
    whole, parts, sizes, told = _cut(names, heads)

    def call(owner: Any, x: Any) -> Any:
        found = [np.asarray(getattr(owner, name)(x)) for name in names]
        if heads is not None:
            found = [one.reshape(*one.shape[:-1], heads, -1) for one in found]
        return np.concatenate(found, -1).reshape(*x.shape[:-1], -1)

    kernels, biases = (tuple(f"{name}.{end}" for name in names) for end in ("kernel", "bias"))
    weight = f"{whole} i -> {', '.join(f'i {part}' for part in parts)}"
    leaves = (
        normed(leaf("weight", kernels, weight, sizes=sizes)),
        leaf("bias", biases, f"{whole} -> {', '.join(parts)}", optional=True, sizes=sizes),
    )
    return Kind(f"split_dense({told})", leaves, call=call, suspects=_ORDER)


def packed_dense(names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj"), heads: int | None = None) -> Kind:
    """Several Linears of these names, equally wide, below the row's path: one Dense at its Keras path.

    What `split_dense` does the other way. No module of torch computes what the Dense does: the whole proves it.
    """
    whole, parts, sizes, told = _cut(names, heads)
    weights, biases = (tuple(f"{name}.{end}" for name in names) for end in ("weight", "bias"))
    weight = f"{', '.join(f'{part} i' for part in parts)} -> i {whole}"
    leaves = (
        leaf(weights, "kernel", weight, sizes=sizes),
        leaf(biases, "bias", f"{', '.join(parts)} -> {whole}", optional=True, sizes=sizes),
    )
    return Kind(f"packed_dense({told})", leaves, callable_alone=False)


def dense_to_heads(heads: int) -> Kind:
    """A Linear against keras.layers.EinsumDense whose output has the heads apart: kernel (i, h, d).

    The weights tell the heads; what the two give is compared with this many.
    """
    return Kind(
        f"dense_to_heads({heads})",
        (normed(leaf("weight", "kernel", "(h d) i -> i h d")), leaf("bias", "bias", "(h d) -> h d", optional=True)),
        results={"": f"... ({heads} d) -> ... {heads} d"},
        suspects="the order of its heads",
        activated=True,
    )


def dense_from_heads(heads: int) -> Kind:
    """A Linear against keras.layers.EinsumDense whose input has the heads apart: kernel (h, d, o)."""
    return Kind(
        f"dense_from_heads({heads})",
        (normed(leaf("weight", "kernel", "o (h d) -> h d o")), leaf("bias", "bias", "o -> o", optional=True)),
        inputs={"": f"... ({heads} d) -> ... {heads} d"},
        suspects="the order of its heads",
        activated=True,
    )


def parameter(axes: str, **sizes: int) -> Kind:
    """A parameter that is laid out otherwise, such as a table of relative positions: `PARAMETER` with a pattern.

    `parameter("(y x) h -> h y x", y=13)` for a table that is flattened row first, `"(y x) h -> (x y) h"` for one that
    the other side flattens column first.
    """
    return Kind(f"parameter({axes})", (leaf("", "", axes, sizes=sizes),), callable_alone=False)
