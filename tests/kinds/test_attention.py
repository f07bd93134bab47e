"""Attention in every form: there and back to the bit, forward and backward; and what is wrong is refused by name."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

from converter import Probe, Row, kinds
from tests.support.carrying import alone, carry
from tests.support.networks import built, numbers, pair, refused, state_of, there_and_back
from tf_models.layers import attention

K, ops = keras.layers, keras.ops
E, H, KD, VD = 12, 3, 8, 10
N, L, S = 2, 5, 7


class Called(nn.Module):
    """A torch network: a function of its modules and of inputs that some probes leave out."""

    def __init__(self, function, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self._function = function

    def forward(self, x, k=None, v=None, padding=None, hidden=None):
        return self._function(self, x, k, v, padding, hidden)


class Calling(keras.Model):
    """The same of Keras, of layers that are built."""

    def __init__(self, function, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._function = function
        self.built = True

    def call(self, x, k=None, v=None, padding=None, hidden=None):
        return self._function(self, x, k, v, padding, hidden)


PADDING = np.array([[False] * S, [False] * 4 + [True] * 3])
CAUSAL = np.triu(np.ones((L, S), bool), 3)
HIDDEN = np.random.default_rng(1).random((N * H, L, S)) < 0.3
HIDDEN[..., 0] = False


def minus_infinity(mask):
    return np.where(mask, np.float32(-np.inf), np.float32(0))


def swapped(batch_first, *arrays):
    return arrays if batch_first else tuple(np.ascontiguousarray(one.swapaxes(0, 1)) for one in arrays)


def probe(batch_first=True, kdim=E, vdim=E, **masks):
    x, k, v = swapped(batch_first, numbers(N, L, E), numbers(N, S, kdim), numbers(N, S, vdim))
    return Probe({"x": x, "k": k, "v": v, **masks})


# --- torch.nn.MultiheadAttention --------------------------------------------------------------------------------------


def theirs(batch_first=True, weights=0, **more):
    """The attention alone; `weights`: 0 none of them are given on, 1 averaged, 2 those of each head."""

    def forward(self, x, k, v, padding, hidden):
        asked = {"need_weights": weights > 0, "average_attn_weights": weights == 1}
        result, given = self.attn(x, k, v, key_padding_mask=padding, attn_mask=hidden, **asked)
        return (result, given) if weights else result

    return lambda: Called(forward, attn=nn.MultiheadAttention(E, H, batch_first=batch_first, **more))


def ours(batch_first=True, weights=0, kdim=E, vdim=E, bias=True, sort=K.MultiHeadAttention):
    def call(self, x, k, v, padding, hidden):
        first = (lambda one: one) if batch_first else (lambda one: ops.swapaxes(one, 0, 1))
        look = None
        if hidden is not None:
            look = ~hidden if hidden.dtype == bool else hidden == 0
            look = ops.reshape(look, (N, H, L, S)) if len(look.shape) == 3 else look
        if padding is not None:
            keys = ~padding[:, None] if look is None or len(look.shape) == 2 else ~padding[:, None, None]
            look = keys if look is None else look & keys
        more = {"return_attention_scores": True} if weights else {}
        got = self.attn(first(x), first(v), first(k), attention_mask=look, **more)
        if not weights:
            return first(got)
        return first(got[0]), ops.mean(got[1], 1) if weights == 1 else got[1]

    def build():
        layer = sort(H, E // H, use_bias=bias)
        return Calling(call, attn=built(layer, (None, None, E), (None, None, vdim), (None, None, kdim)))

    return build


def attention_pair(build_tf, build_torch, *probes, kind=kinds.MULTIHEAD_ATTENTION, **more):
    return pair(build_tf, build_torch, [Row("attn", kind)], lambda config, rng: list(probes), **more)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("widths", [{}, {"kdim": KD, "vdim": VD}, {"vdim": VD}, {"kdim": KD}])
def test_every_form_of_torch_s_attention(tmp_path, batch_first, bias, widths):
    one = attention_pair(
        ours(batch_first, bias=bias, **widths), theirs(batch_first, bias=bias, **widths), probe(batch_first, **widths)
    )
    report = there_and_back(one, tmp_path, verify="train")
    packed = "attn.in_proj_weight" in one.build_torch().state_dict()
    assert packed == (not widths)
    assert len(report.numerical.layers) == len(report.numerical.between) == 1


MASKS = {
    "padding": {"padding": PADDING},
    "2-d": {"hidden": CAUSAL},
    "3-d": {"hidden": HIDDEN},
    "2-d and padding": {"hidden": CAUSAL, "padding": PADDING},
    "3-d and padding": {"hidden": HIDDEN, "padding": PADDING},
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("floats", [False, True])
def test_masks(tmp_path, batch_first, floats):
    """Both sorts, both places; a mask of minus infinity is one too."""
    probes = [
        probe(batch_first, **{name: minus_infinity(mask) if floats else mask for name, mask in masks.items()})
        for masks in MASKS.values()
    ]

    def call(self, x, k, v, padding, hidden):
        padding = padding if padding is None or padding.dtype == bool else padding != 0
        return ours(batch_first)()._function(self, x, k, v, padding, hidden)

    def build():
        made = ours(batch_first)()
        made._function = call
        return made

    one = attention_pair(build, theirs(batch_first), *probes)
    there_and_back(one, tmp_path)


@pytest.mark.parametrize("weights", [1, 2])
def test_a_pair_may_give_the_scores_too(tmp_path, weights):
    probes = [probe(**masks) for masks in MASKS.values()]
    one = attention_pair(ours(weights=weights), theirs(weights=weights), *probes, outputs=("result", "weights"))
    report = there_and_back(one, tmp_path)
    assert [found.name for found in report.numerical.outputs] == ["result", "weights"]
    wrong = replace(one, build_tf=ours(weights=3 - weights))
    refused(wrong, state_of(one), tmp_path, r"the output weights does not \(TensorFlow's shape is")


def test_scores_are_compared_where_keras_leaves_them_to_torch(tmp_path):
    """The layer alone is asked for them, though the network is not."""

    class Wrong(K.MultiHeadAttention):
        def call(self, *args, return_attention_scores=False, **kwargs):
            found = super().call(*args, return_attention_scores=return_attention_scores, **kwargs)
            return (found[0], found[1] * 1.01) if return_attention_scores else found

    def weighed():
        return Called(
            lambda self, x, k, v, *_: self.attn(x, k, v)[0], attn=nn.MultiheadAttention(E, H, batch_first=True)
        )

    one = attention_pair(ours(), weighed, probe())
    there_and_back(one, tmp_path)
    wrong = replace(one, build_tf=ours(sort=Wrong))
    refused(wrong, state_of(one), tmp_path, "first layer that differs: attn")


def test_a_single_sequence_and_a_causal_mask(tmp_path):
    """Without a batch, and where torch only takes its word that the mask is causal."""
    causal = np.triu(np.ones((L, L), bool), 1)

    def torchs():
        def forward(self, x, k, v, padding, hidden):
            return self.attn(x, x, x, padding, need_weights=False, attn_mask=hidden, is_causal=True)[0]

        return Called(forward, attn=nn.MultiheadAttention(E, H))

    def call(self, x, k, v, padding, hidden):
        y = x[None]
        look = ~padding[None, None] if padding is not None else None
        return self.attn(y, y, y, attention_mask=look, use_causal_mask=True)[0]

    def build():
        made = ours()()
        made._function = call
        return made

    x, padding = numbers(L, E), np.array([False] * 4 + [True])
    probes = [Probe({"x": x, "hidden": causal}), Probe({"x": x, "hidden": causal, "padding": padding})]
    there_and_back(attention_pair(build, torchs, *probes), tmp_path)


# --- Planted faults ---------------------------------------------------------------------------------------------------


def relaid(axes, bias):
    """The kind with its packed tensors laid out otherwise."""
    weight, one, *rest = kinds.MULTIHEAD_ATTENTION.leaves
    sizes = {"q": 1, "k": 1, "v": 1}
    wrong = (
        kinds.leaf(weight.torch, weight.keras, axes, sizes=sizes),
        kinds.leaf(one.torch, one.keras, bias, True, sizes=sizes),
    )
    return replace(kinds.MULTIHEAD_ATTENTION, leaves=(*wrong, *rest))


FAULTS = {
    "query and key": (
        "((k + q + v) h d) i -> i h (q d), i h (k d), i h (v d)",
        "((k + q + v) h d) -> h (q d), h (k d), h (v d)",
    ),
    "heads": (
        "(h (q + k + v) d) i -> i h (q d), i h (k d), i h (v d)",
        "(h (q + k + v) d) -> h (q d), h (k d), h (v d)",
    ),
    "channels": (
        "((q + k + v) d h) i -> i h (q d), i h (k d), i h (v d)",
        "((q + k + v) d h) -> h (q d), h (k d), h (v d)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_layout_is_named(tmp_path, fault):
    one = attention_pair(ours(), theirs(), probe(), kind=relaid(*FAULTS[fault]))
    refused(one, state_of(one), tmp_path, "first layer that differs: attn.*suspect the order of its heads")


class Unscaled(K.MultiHeadAttention):
    def build(self, *shapes):
        super().build(*shapes)
        self._inverse_sqrt_key_dim = 1.0


def test_a_scale_that_is_missing_is_named(tmp_path):
    one = attention_pair(ours(sort=Unscaled), theirs(), probe())
    refused(one, state_of(one), tmp_path, "first layer that differs: attn")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda mask: None, "attn agrees, the output output does not"),
        (lambda mask: ~mask, "the input of attn differs"),
        (lambda mask: mask[:, ::-1], "the input of attn differs"),
    ],
)
def test_a_mask_that_is_forgotten_or_inverted_is_named(tmp_path, change, told):
    def build():
        made = ours()()
        made._function = lambda self, x, k, v, padding, hidden: ours()()._function(
            self, x, k, v, padding, change(hidden)
        )
        return made

    one = attention_pair(build, theirs(), probe(hidden=CAUSAL))
    refused(one, state_of(one), tmp_path, told)


def test_a_bias_that_is_dropped_and_widths_that_are_exchanged_are_named(tmp_path):
    one = attention_pair(ours(bias=False), theirs(), probe())
    refused(one, state_of(one), tmp_path, "in_proj_bias has no variable attn.query_dense.bias")
    widths = {"kdim": KD, "vdim": VD}
    one = attention_pair(ours(kdim=VD, vdim=KD), theirs(**widths), probe(**widths))
    refused(one, state_of(one), tmp_path, r"wrong shape: attn\.k_proj_weight is 12x8, expected 12x10")
    one = attention_pair(ours(), theirs(**widths), probe(**widths))
    refused(one, state_of(one), tmp_path, r"wrong shape: attn\.k_proj_weight is 12x8, expected 12x12")


def test_weights_of_a_mask_s_own_are_told_to_need_our_layer(tmp_path):
    one = attention_pair(ours(), theirs(), probe(hidden=numbers(L, S)))
    refused(one, state_of(one), tmp_path, "take tf_models.layers.MultiheadAttention")


# --- Our own layer, for what Keras's cannot ---------------------------------------------------------------------------


def own(batch_first=True, weights=0, **more):
    def call(self, x, k, v, padding, hidden):
        first = (lambda one: one) if batch_first else (lambda one: ops.swapaxes(one, 0, 1))
        asked = {"need_weights": weights > 0, "average_attn_weights": weights == 1}
        found = self.attn(first(x), first(k), first(v), key_padding_mask=padding, attn_mask=hidden, **asked)
        return (first(found[0]), found[1]) if weights else first(found)

    return lambda: Calling(call, attn=built(attention.MultiheadAttention(E, H, **more)))


OWN = {
    "plain": {},
    "no bias": {"bias": False},
    "bias_k": {"add_bias_kv": True},
    "zero": {"add_zero_attn": True},
    "all": {"add_bias_kv": True, "add_zero_attn": True, "kdim": KD, "vdim": VD},
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("form", OWN)
def test_our_layer_does_what_torch_s_does(tmp_path, form, batch_first):
    widths = {name: size for name, size in OWN[form].items() if name.endswith("dim")}
    masks = [*MASKS.values(), {"hidden": numbers(L, S)}, {"hidden": numbers(N * H, L, S)}, {"padding": numbers(N, S)}]
    masks += [{name: minus_infinity(mask) for name, mask in MASKS["3-d and padding"].items()}]
    probes = [probe(batch_first, **widths), *(probe(batch_first, **widths, **one) for one in masks)]
    weights = 1 + batch_first
    one = attention_pair(
        own(batch_first, weights, **OWN[form]),
        theirs(batch_first, weights, **OWN[form]),
        *probes,
        kind=kinds.TORCH_MULTIHEAD_ATTENTION,
        outputs=("result", "weights"),
    )
    there_and_back(one, tmp_path)
    plain = attention_pair(
        own(batch_first, **OWN[form]),
        theirs(batch_first, **OWN[form]),
        probe(batch_first, **widths, hidden=numbers(L, S)),
        kind=kinds.TORCH_MULTIHEAD_ATTENTION,
    )
    there_and_back(plain, tmp_path, verify="train")


def unbatched():
    """torch's module, our layer with its weights, and an input without a batch."""
    module = nn.MultiheadAttention(E, H).eval()
    layer = built(attention.MultiheadAttention(E, H, dtype="float64"))
    module.double()
    carry(module.state_dict(), layer, alone(kinds.TORCH_MULTIHEAD_ATTENTION))
    return module, layer, torch.randn(L, E, dtype=torch.float64)


NAN_IN_2_4 = pytest.mark.skipif(torch.__version__.startswith("2.4."), reason="torch 2.4 gives NaN there too")


@pytest.mark.parametrize(
    "asked", [{}, pytest.param({"need_weights": False}, marks=NAN_IN_2_4), {"average_attn_weights": False}], ids=str
)
def test_our_layer_with_nowhere_to_look(asked):
    """Where a query may look nowhere, torch gives NaN with its weights, and zeros without them."""
    module, layer, x = unbatched()
    nowhere = torch.zeros(L, L, dtype=torch.bool)
    nowhere[1] = True
    with torch.no_grad():
        expected = module(x, x, x, attn_mask=nowhere, **asked)
    got = layer(x.numpy(), x.numpy(), x.numpy(), attn_mask=nowhere.numpy(), **asked)
    got = got if isinstance(got, tuple) else (got,)
    np.testing.assert_allclose(got[0], expected[0], rtol=0, atol=1e-12)
    assert len(got) == 1 + (expected[1] is not None)
    if len(got) == 2:
        np.testing.assert_allclose(got[1], expected[1], rtol=0, atol=1e-12)


def test_our_layer_without_a_batch_looks_back_only():
    module, layer, x = unbatched()
    causal = torch.ones(L, L, dtype=torch.bool).triu(1)
    for asked in ({"need_weights": False}, {"key_padding_mask": torch.tensor([False] * 4 + [True])}):
        with torch.no_grad():
            expected = module(x, x, x, attn_mask=causal, is_causal=True, **asked)[0]
        arrays = {name: np.asarray(value) for name, value in asked.items()}
        got = layer(x.numpy(), x.numpy(), x.numpy(), attn_mask=causal.numpy(), is_causal=True, **arrays)
        got = got[0] if isinstance(got, tuple) else got
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="is_causal: expected attn_mask too"):
        layer(x.numpy(), x.numpy(), x.numpy(), is_causal=True)
    with pytest.raises(ValueError, match="num_heads: expected a divisor"):
        attention.MultiheadAttention(10, 3)


def test_our_layer_drops_only_in_training_and_is_made_anew():
    layer = built(attention.MultiheadAttention(E, H, 0.5, add_bias_kv=True, kdim=KD))
    x, k, v = numbers(N, L, E), numbers(N, S, KD), numbers(N, S, E)
    usual = layer(x, k, v)
    assert not np.allclose(layer(x, k, v, training=True)[0], usual[0])
    again = attention.MultiheadAttention.from_config(layer.get_config())
    again.build()
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(again(x, k, v)[0], usual[0])


@pytest.mark.parametrize("wrong", [{"add_zero_attn": True}, {"add_bias_kv": True}])
def test_what_keras_s_attention_cannot_is_refused(tmp_path, wrong):
    one = attention_pair(ours(), theirs(**wrong), probe())
    told = "unexpected: attn.bias_" if "add_bias_kv" in wrong else "first layer that differs: attn"
    refused(one, state_of(one), tmp_path, told)


# --- Transformer layers -----------------------------------------------------------------------------------------------


def mish(x):
    return x * ops.tanh(ops.softplus(x))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    ("activation", "keras_activation", "norm_first"),
    [("relu", "relu", False), ("gelu", "gelu", True), (nn.functional.mish, mish, False), (torch.tanh, "tanh", True)],
)
def test_an_encoder_layer(tmp_path, batch_first, activation, keras_activation, norm_first):
    more = {"dim_feedforward": 20, "norm_first": norm_first}
    first = (lambda one: one) if batch_first else (lambda one: ops.swapaxes(one, 0, 1))
    causal = np.triu(np.ones((L, L), bool), 1)
    padding = np.array([[False] * L, [False] * 3 + [True] * 2])

    def torchs():
        def forward(self, x, k, v, padding, hidden):
            return self.layer(x, src_mask=hidden, src_key_padding_mask=padding)

        layer = nn.TransformerEncoderLayer(E, H, batch_first=batch_first, activation=activation, **more)
        return Called(forward, layer=layer)

    def build():
        def call(self, x, k, v, padding, hidden):
            return first(self.layer(first(x), src_mask=hidden, src_key_padding_mask=padding))

        return Calling(call, layer=built(attention.TransformerEncoderLayer(E, H, activation=keras_activation, **more)))

    [x] = swapped(batch_first, numbers(N, L, E))
    probes = [Probe({"x": x}), Probe({"x": x, "hidden": causal, "padding": padding}), Probe({"x": x, "hidden": causal})]
    laid = (lambda kind: kind) if batch_first else kinds.time_first
    rows = [
        Row("layer", kinds.TRANSFORMER_ENCODER_LAYER),
        Row("layer.self_attn", kinds.TORCH_MULTIHEAD_ATTENTION),
        Row("layer.linear{1,2}", laid(kinds.DENSE)),
        Row("layer.norm{1,2}", laid(kinds.LAYER_NORM)),
    ]
    one = pair(build, torchs, rows, lambda config, rng: probes)
    report = there_and_back(one, tmp_path, verify="train")
    assert len(report.numerical.layers) == 6
    assert len(report.numerical.between) == 6


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_a_decoder_layer_with_memory_and_a_causal_mask(tmp_path, batch_first, norm_first):
    more = {"dim_feedforward": 20, "norm_first": norm_first}
    first = (lambda one: one) if batch_first else (lambda one: ops.swapaxes(one, 0, 1))
    laid = (lambda kind: kind) if batch_first else kinds.time_first

    def torchs():
        def forward(self, x, k, v, padding, hidden):
            return self.layer(x, k, tgt_mask=hidden, memory_key_padding_mask=padding, tgt_is_causal=True)

        return Called(forward, layer=nn.TransformerDecoderLayer(E, H, batch_first=batch_first, **more))

    def build(causal=True):
        def call(self, x, k, v, padding, hidden):
            more = {"tgt_mask": hidden, "tgt_is_causal": True} if causal else {}
            return first(self.layer(first(x), first(k), memory_key_padding_mask=padding, **more))

        return Calling(call, layer=built(attention.TransformerDecoderLayer(E, H, **more)))

    x, k = swapped(batch_first, numbers(N, L, E), numbers(N, S, E))
    causal = nn.Transformer.generate_square_subsequent_mask(L).numpy()
    probes = [Probe({"x": x, "k": k, "hidden": causal}), Probe({"x": x, "k": k, "hidden": causal, "padding": PADDING})]
    rows = [
        Row("layer", kinds.TRANSFORMER_DECODER_LAYER),
        Row("layer.{self,multihead}_attn", kinds.TORCH_MULTIHEAD_ATTENTION),
        Row("layer.linear{1,2}", laid(kinds.DENSE)),
        Row("layer.norm{1-3}", laid(kinds.LAYER_NORM)),
    ]
    one = pair(build, torchs, rows, lambda config, rng: probes)
    there_and_back(one, tmp_path, verify="train")
    refused(replace(one, build_tf=lambda: build(False)), state_of(one), tmp_path, "layer.self_attn agrees")


def test_layers_as_long_as_the_batch_are_told_from_it_by_time_first(tmp_path):
    """Where no shape shows that the time is first, the kind says so."""

    def torchs():
        return Called(lambda self, x, *_: self.layer(x), layer=nn.TransformerEncoderLayer(E, H, 20))

    def build():
        def call(self, x, *_):
            return ops.swapaxes(self.layer(ops.swapaxes(x, 0, 1)), 0, 1)

        return Calling(call, layer=built(attention.TransformerEncoderLayer(E, H, 20)))

    def encoder(laid):
        rows = [
            Row("layer", kinds.TRANSFORMER_ENCODER_LAYER),
            Row("layer.self_attn", kinds.TORCH_MULTIHEAD_ATTENTION),
            Row("layer.linear{1,2}", laid(kinds.DENSE)),
            Row("layer.norm{1,2}", laid(kinds.LAYER_NORM)),
        ]
        return pair(build, torchs, rows, lambda config, rng: [Probe({"x": numbers(L, L, E)})])

    there_and_back(encoder(kinds.time_first), tmp_path, verify="train")
    refused(
        encoder(lambda kind: kind), state_of(encoder(kinds.time_first)), tmp_path, "the same values in another order"
    )


def test_our_layers_are_part_of_a_functional_model(tmp_path):
    x, memory, padding = keras.Input((None, E)), keras.Input((None, E)), keras.Input((None,), dtype="bool")
    y = attention.TransformerEncoderLayer(E, H, 20, activation="gelu")(x, src_key_padding_mask=padding)
    y = attention.TransformerDecoderLayer(E, H, 20, activation=keras.activations.silu)(y, memory)
    y, weights = attention.MultiheadAttention(E, H, add_zero_attn=True)(y, memory, memory)
    model = keras.Model([x, memory, padding], [y, weights])
    model.save(tmp_path / "model.keras")
    given = numbers(N, L, E), numbers(N, S, E), np.array([[False] * L, [False] * 3 + [True] * 2])
    results = model(given)
    assert [tuple(one.shape) for one in results] == [(N, L, E), (N, L, S + 1)]
    for one, again in zip(results, keras.models.load_model(tmp_path / "model.keras")(given), strict=True):
        np.testing.assert_array_equal(one, again)
    traced = tf.function(
        lambda *given: model(given),
        input_signature=[
            tf.TensorSpec((None, None, E)),
            tf.TensorSpec((None, None, E)),
            tf.TensorSpec((None, None), tf.bool),
        ],
    )
    np.testing.assert_allclose(traced(*given)[0], results[0], rtol=0, atol=1e-5)


def test_a_stack_of_encoder_layers(tmp_path):
    """nn.TransformerEncoder, which pads its sequences otherwise where it may."""
    padding = np.array([[False] * L, [False] * 3 + [True] * 2])

    def torchs():
        layer = nn.TransformerEncoderLayer(E, 2, 20, batch_first=True)
        encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(E))
        return Called(lambda self, x, k, v, padding, hidden: self.encoder(x, None, padding), encoder=encoder)

    def build():
        def call(self, x, k, v, padding, hidden):
            for layer in self.layers_in_turn:
                x = layer(x, src_key_padding_mask=padding)
            return self.norm(x)

        each = [built(attention.TransformerEncoderLayer(E, 2, 20)) for _ in "ab"]
        return Calling(call, layers_in_turn=each, norm=built(K.LayerNormalization(epsilon=1e-5), (None, None, E)))

    place = {"path": "encoder.layers.{0,1}", "keras": "layers_in_turn.{0,1}"}
    rows = [
        Row(place["path"], kinds.TRANSFORMER_ENCODER_LAYER, place["keras"]),
        Row("encoder.norm", kinds.LAYER_NORM, "norm"),
    ]
    inner = {"self_attn": kinds.TORCH_MULTIHEAD_ATTENTION, "linear{1,2}": kinds.DENSE, "norm{1,2}": kinds.LAYER_NORM}
    rows += [Row(f"{place['path']}.{name}", kind, f"{place['keras']}.{name}") for name, kind in inner.items()]
    probes = [Probe({"x": numbers(N, L, E)}), Probe({"x": numbers(N, L, E), "padding": padding})]
    there_and_back(pair(build, torchs, rows, lambda config, rng: probes), tmp_path, verify="train")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"norm_first": True}, "the input of layer.self_attn differs"),
        ({}, None),
        ({"activation": lambda x: ops.gelu(x, True)}, "layer.linear1 agrees.* where torch computes gelu"),
        ({"layer_norm_eps": 1e-3}, "first layer that differs: layer.norm1.*suspect its epsilon"),
        ({"sort": Unscaled}, "first layer that differs: layer.self_attn"),
    ],
)
def test_what_is_wrong_in_an_encoder_layer_is_named(tmp_path, wrong, told):
    """Written by hand with Keras's own attention, as people do."""
    wrong = {"norm_first": False, "activation": "gelu", "layer_norm_eps": 1e-5, "sort": K.MultiHeadAttention} | wrong

    def torchs():
        layer = nn.TransformerEncoderLayer(E, H, 20, activation="gelu", batch_first=True)
        return Called(lambda self, x, *_: self.layer(x), layer=layer)

    def build():
        def call(self, x, *_):
            def attend(x):
                return self.self_attn(x, x, x)

            def forward(x):
                return self.linear2(self.linear1(x))

            if wrong["norm_first"]:
                x = x + attend(self.norm1(x))
                return x + forward(self.norm2(x))
            x = self.norm1(x + attend(x))
            return self.norm2(x + forward(x))

        shape = (None, None, E)
        norms = {f"norm{i}": built(K.LayerNormalization(epsilon=wrong["layer_norm_eps"]), shape) for i in (1, 2)}
        return Calling(
            call,
            self_attn=built(wrong["sort"](H, E // H), shape, shape, shape),
            linear1=built(K.Dense(20, activation=wrong["activation"]), shape),
            linear2=built(K.Dense(E), (None, None, 20)),
            **norms,
        )

    rows = [
        Row("layer.self_attn", kinds.MULTIHEAD_ATTENTION, "self_attn"),
        Row("layer.linear{1,2}", kinds.DENSE, "linear{1,2}"),
        Row("layer.norm{1,2}", kinds.LAYER_NORM, "norm{1,2}"),
    ]
    one = pair(build, torchs, rows, lambda config, rng: [Probe({"x": numbers(N, L, E)})])
    if told is None:
        there_and_back(one, tmp_path, verify="train")
    else:
        refused(one, state_of(one), tmp_path, told)
