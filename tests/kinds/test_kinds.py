"""Every kind: filled from torch's layer, Keras's computes the same; and the layout can be undone."""

import inspect

import keras
import numpy as np
import pytest
import torch
from torch import nn

from converter import Mapping, Row, kinds
from converter.kinds import Kind, leaf
from tests.kinds import test_attention, test_recurrent, test_reordered_and_folded
from tests.support.carrying import alone, carry
from tests.support.judging import channels_last
from tests.support.networks import Conv1D
from tests.support.rule import assert_allowed
from tests.support.seeded import seeded
from tf_models import layers
from tf_models.deformable_attention.model import ScalePerAxis as KerasScalePerAxis
from tf_models.layers import recurrent
from torch_refs.deformable_attention.model import ScalePerAxis

K = keras.layers


def halves_gated(x):
    """torch's GLU: it cares which axis is halved, so that channels that stay first would show."""
    a, b = keras.ops.split(x, 2, axis=-1)
    return a * keras.ops.sigmoid(b)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def image_of(*shape):
    return torch.randn(*shape).numpy()


def exact_gelu():
    return K.Activation(lambda x: keras.ops.gelu(x, approximate=False))


# name -> (kind, torch layer, Keras layer, torch input)
CASES = {
    "dense": (kinds.DENSE, lambda: nn.Linear(5, 7), lambda: K.Dense(7), (3, 4, 5)),
    "dense, no bias": (kinds.DENSE, lambda: nn.Linear(5, 5, bias=False), lambda: K.Dense(5, use_bias=False), (3, 5)),
    "GPT-2's dense": (kinds.CONV1D_GPT2, lambda: Conv1D(5, 7), lambda: K.Dense(7), (3, 4, 5)),
    "conv 1d": (kinds.CONV_1D, lambda: nn.Conv1d(4, 6, 3), lambda: K.Conv1D(6, 3), (2, 4, 9)),
    "conv 1d, groups": (
        kinds.CONV_1D,
        lambda: nn.Conv1d(4, 6, 3, groups=2),
        lambda: K.Conv1D(6, 3, groups=2),
        (2, 4, 9),
    ),
    "conv 2d": (kinds.CONV_2D, lambda: nn.Conv2d(4, 6, (3, 2)), lambda: K.Conv2D(6, (3, 2)), (2, 4, 9, 7)),
    "conv 2d, groups": (
        kinds.CONV_2D,
        lambda: nn.Conv2d(4, 6, (3, 2), groups=2),
        lambda: K.Conv2D(6, (3, 2), groups=2),
        (2, 4, 9, 7),
    ),
    "conv 3d": (kinds.CONV_3D, lambda: nn.Conv3d(4, 6, (3, 2, 1)), lambda: K.Conv3D(6, (3, 2, 1)), (2, 4, 9, 7, 5)),
    "conv 3d, groups": (
        kinds.CONV_3D,
        lambda: nn.Conv3d(4, 6, 2, groups=2),
        lambda: layers.Conv3D(6, 2, groups=2),
        (2, 4, 9, 7, 5),
    ),
    "depthwise 1d": (
        kinds.DEPTHWISE_CONV_1D,
        lambda: nn.Conv1d(4, 12, 3, groups=4),
        lambda: K.DepthwiseConv1D(3, depth_multiplier=3),
        (2, 4, 9),
    ),
    "depthwise 2d": (
        kinds.DEPTHWISE_CONV_2D,
        lambda: nn.Conv2d(4, 12, (3, 2), groups=4),
        lambda: K.DepthwiseConv2D((3, 2), depth_multiplier=3),
        (2, 4, 9, 7),
    ),
    "depthwise 3d": (
        kinds.DEPTHWISE_CONV_3D,
        lambda: nn.Conv3d(4, 4, (3, 2, 4), (2, 1, 3), (1, 0, 2), groups=4),
        lambda: layers.DepthwiseConv3D((3, 2, 4), (2, 1, 3), (1, 0, 2)),
        (2, 4, 9, 7, 8),
    ),
    "pointwise 1d": (
        kinds.POINTWISE_CONV_1D,
        lambda: nn.Conv1d(4, 6, 1, groups=2),
        lambda: layers.PointwiseConv(6, 2),
        (2, 4, 9),
    ),
    "pointwise 2d": (
        kinds.POINTWISE_CONV_2D,
        lambda: nn.Conv2d(4, 6, 1, bias=False),
        lambda: layers.PointwiseConv(6, use_bias=False),
        (2, 4, 9, 7),
    ),
    "pointwise 3d": (
        kinds.POINTWISE_CONV_3D,
        lambda: nn.Conv3d(4, 6, 1, groups=2),
        lambda: layers.PointwiseConv(6, 2),
        (2, 4, 5, 7, 6),
    ),
    "transposed 1d": (
        kinds.CONV_TRANSPOSE_1D,
        lambda: nn.ConvTranspose1d(4, 6, 3, 2),
        lambda: K.Conv1DTranspose(6, 3, 2),
        (2, 4, 9),
    ),
    "transposed 2d": (
        kinds.CONV_TRANSPOSE_2D,
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), 2),
        lambda: K.Conv2DTranspose(6, (3, 2), 2),
        (2, 4, 9, 7),
    ),
    "transposed 2d, groups": (
        kinds.CONV_TRANSPOSE_2D,
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), 2, groups=2),
        lambda: layers.Conv2DTranspose(6, (3, 2), 2, groups=2),
        (2, 4, 9, 7),
    ),
    "transposed 3d": (
        kinds.CONV_TRANSPOSE_3D,
        lambda: nn.ConvTranspose3d(4, 6, (3, 2, 1), 2),
        lambda: layers.Conv3DTranspose(6, (3, 2, 1), 2),
        (2, 4, 5, 7, 6),
    ),
    "layer norm": (
        kinds.LAYER_NORM,
        lambda: seeded(nn.LayerNorm(6)),
        lambda: K.LayerNormalization(epsilon=1e-5),
        (3, 4, 6),
    ),
    "layer norm over two axes": (
        kinds.LAYER_NORM,
        lambda: seeded(nn.LayerNorm((4, 6))),
        lambda: K.LayerNormalization(axis=(1, 2), epsilon=1e-5),
        (3, 4, 6),
    ),
    "layer norm 2d": (
        kinds.LAYER_NORM_2D,
        lambda: seeded(LayerNorm2d(6, eps=1e-6)),
        lambda: K.LayerNormalization(epsilon=1e-6),
        (2, 6, 4, 5),
    ),
    "group norm": (
        kinds.GROUP_NORM,
        lambda: seeded(nn.GroupNorm(2, 6)),
        lambda: K.GroupNormalization(2, epsilon=1e-5),
        (2, 6, 4, 5),
    ),
    "group norm, not affine": (
        kinds.GROUP_NORM,
        lambda: nn.GroupNorm(2, 6, affine=False),
        lambda: K.GroupNormalization(2, epsilon=1e-5, center=False, scale=False),
        (2, 6, 4, 5),
    ),
    "batch norm 1d": (
        kinds.BATCH_NORM,
        lambda: seeded(nn.BatchNorm1d(6)),
        lambda: K.BatchNormalization(epsilon=1e-5),
        (3, 6),
    ),
    "batch norm 2d": (
        kinds.BATCH_NORM,
        lambda: seeded(nn.BatchNorm2d(6)),
        lambda: K.BatchNormalization(epsilon=1e-5),
        (2, 6, 4, 5),
    ),
    "scale": (
        kinds.SCALE,
        lambda: ScalePerAxis((3.0, 0.5, -2.0)),
        lambda: KerasScalePerAxis((1.0, 1.0, 1.0)),
        (2, 3, 4, 5, 6),
    ),
    "activation": (kinds.ACTIVATION, lambda: nn.GELU(), exact_gelu, (3, 4, 6)),
    "activation 2d": (kinds.ACTIVATION_2D, lambda: nn.GLU(1), lambda: K.Lambda(halves_gated), (2, 6, 4, 5)),
    "prelu, shared": (kinds.PRELU, lambda: nn.PReLU(), lambda: K.PReLU(shared_axes=[1, 2, 3]), (2, 6, 4, 5)),
    "prelu 1d": (kinds.PRELU, lambda: seeded(nn.PReLU(6)), lambda: K.PReLU(), (3, 6)),
    "prelu 2d": (kinds.PRELU, lambda: seeded(nn.PReLU(6)), lambda: K.PReLU(shared_axes=[1, 2]), (2, 6, 4, 5)),
}


def assert_computes(result, theirs: nn.Module, x: torch.Tensor, arrange) -> None:
    """As near to what torch's layer gives in float64 as the rule of the proof demands."""
    double, given = theirs.double(), x.double()

    def compute():
        with torch.no_grad():
            return [arrange(double(given).numpy())]

    assert_allowed([result], compute)


@pytest.mark.parametrize("case", CASES)
def test_keras_computes_what_torch_does(case):
    torch.manual_seed(0)
    kind, make_torch, make_keras, shape = CASES[case]
    theirs, ours = make_torch().eval(), make_keras()
    x = torch.randn(shape)
    arranged = channels_last(x.numpy()) if kind.inputs else x.numpy()
    ours.build(arranged.shape)
    carry(theirs.state_dict(), ours, alone(kind))
    assert_computes(ours(arranged), theirs, x, channels_last if kind.inputs else np.asarray)


@pytest.mark.parametrize("name", ["EMBEDDING", "TOKENS"])
def test_embedding(name):
    theirs, ours = nn.Embedding(5, 3), K.Embedding(5, 3)
    ours.build(None)
    with torch.no_grad():
        carry(theirs.state_dict(), ours, alone(getattr(kinds, name)))
        words = torch.tensor([[4, 0], [2, 2], [1, 3]])
        np.testing.assert_array_equal(ours(words.numpy()), theirs(words))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_attention(bias, batch_first):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3, bias=bias, batch_first=batch_first).eval()
    ours = K.MultiHeadAttention(3, 4, use_bias=bias)
    with torch.no_grad():
        if bias:
            theirs.in_proj_bias.normal_()
            theirs.out_proj.bias.normal_()
        query, key, value = torch.randn(2, 5, 12), torch.randn(2, 7, 12), torch.randn(2, 7, 12)
        ours.build(query.shape, value.shape, key.shape)
        carry(theirs.state_dict(), ours, alone(kinds.MULTIHEAD_ATTENTION))
        padding = torch.tensor([[False] * 7, [False] * 5 + [True] * 2])
        hidden = torch.triu(torch.ones(5, 7, dtype=torch.bool), 3)
    double = theirs.double()
    given = [(t if batch_first else t.transpose(0, 1)).double() for t in (query, key, value)]

    def compute():
        with torch.no_grad():
            expected, weights = double(*given, key_padding_mask=padding, attn_mask=hidden)
        return [expected if batch_first else expected.transpose(0, 1), weights]

    call = kinds.MULTIHEAD_ATTENTION.call
    got = call(
        ours,
        query.numpy(),
        key.numpy(),
        value.numpy(),
        key_padding_mask=padding.numpy(),
        attn_mask=hidden.numpy(),
    )
    assert_allowed(list(got), compute)


def test_a_variable_of_another_rank_is_an_error():
    with pytest.raises(ValueError, match="does not have the axes"):
        leaf("weight", "kernel", "o i -> i o").torch_shapes([(2, 3, 4)])


def test_parameters_of_a_convolution():
    theirs, ours = nn.Conv2d(4, 6, (3, 2)), K.Conv2D(6, (3, 2))
    ours.build((None, 9, 7, 4))
    x = torch.randn(2, 4, 9, 7)
    with torch.no_grad():
        carry(theirs.state_dict(), ours, alone(kinds.PARAMETERS_OF_CONV_2D))
    assert_computes(ours(channels_last(x.numpy())), theirs, x, channels_last)


class Table(keras.layers.Layer):
    """A parameter that stands on its own."""

    def build(self, shape):
        self.table = self.add_weight(shape=shape, name="table")


def test_a_parameter_s_own_name_is_the_row_s():
    theirs, ours = nn.ParameterDict({"table": torch.randn(3, 1, 4)}), Table()
    ours.build((3, 1, 4))
    [part] = kinds.PARAMETER.leaves
    assert (part.torch, part.keras) == (("",), ("",)), "the row's path says it all"
    carry(theirs.state_dict(), ours, Mapping([Row("table", kinds.PARAMETER)]))
    np.testing.assert_array_equal(ours.table, theirs["table"].detach())


def test_a_sequence_is_called_in_its_order():
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Conv2d(3, 4, 2), nn.GELU(), nn.Conv2d(4, 2, 1)).eval()
    ours = [K.Conv2D(4, 2), exact_gelu(), K.Conv2D(2, 1)]
    x = torch.randn(2, 3, 5, 7)
    shapes = [(None, 5, 7, 3), None, (None, 4, 6, 4)]
    with torch.no_grad():
        for place in (0, 2):
            ours[place].build(shapes[place])
            carry(theirs[place].state_dict(), ours[place], alone(kinds.CONV_2D))
    got = kinds.SEQUENTIAL_2D.call(ours, *kinds.SEQUENTIAL_2D.given((x.numpy(),), {})[0])
    assert_computes(got, theirs, x, kinds.SEQUENTIAL_2D.returned)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers(name):
    """What else they have is shown in test_recurrent."""
    torch.manual_seed(0)
    theirs = getattr(nn, name)(5, 4, num_layers=2, bidirectional=True, batch_first=True)
    ours = getattr(recurrent, name)(4, num_layers=2, bidirectional=True)
    x = torch.randn(2, 6, 5)
    ours.build((None, None, 5))
    with torch.no_grad():
        carry(theirs.state_dict(), ours, alone(getattr(kinds, name)))
        double = theirs.double()
        assert_allowed([ours(x.numpy())[0]], lambda: [double(x.double())[0]])


def test_what_goes_into_and_out_of_a_stage_is_arranged():
    """Images change their axes where the kind says so; tokens (N, L, C) do not, wherever they are nested."""
    image, tokens, words = image_of(2, 3, 4, 5), image_of(2, 6, 3), "text"
    nested = (image, {"tokens": tokens, "more": (image, words)})
    moved = np.moveaxis(image, 1, -1)
    for kind, wanted in ((kinds.STAGE, image), (kinds.STAGE_2D, moved)):
        got = kind.returned(nested)
        np.testing.assert_array_equal(got[0], wanted)
        np.testing.assert_array_equal(got[1]["tokens"], tokens)
        np.testing.assert_array_equal(got[1]["more"][0], wanted)
        assert got[1]["more"][1] == words


def test_every_kind_in_the_module_is_exercised():
    """In CASES, also those of test_reordered_and_folded, or by the test that is named here; layouts of other libraries
    (`of`) are those of test_dialects."""
    elsewhere = {
        "EMBEDDING": test_embedding,
        "TOKENS": test_embedding,
        "PARAMETERS_OF_CONV_2D": test_parameters_of_a_convolution,
        "MULTIHEAD_ATTENTION": test_packed_attention,
        "TORCH_MULTIHEAD_ATTENTION": test_attention.test_our_layer_does_what_torch_s_does,
        "TRANSFORMER_ENCODER_LAYER": test_attention.test_an_encoder_layer,
        "TRANSFORMER_DECODER_LAYER": test_attention.test_a_decoder_layer_with_memory_and_a_causal_mask,
        "PARAMETER": test_a_parameter_s_own_name_is_the_row_s,
        "SEQUENTIAL_2D": test_a_sequence_is_called_in_its_order,
        "LSTM": test_recurrent_layers,
        "GRU": test_recurrent_layers,
        "RNN": test_recurrent_layers,
        "LSTM_CELL": test_recurrent.test_an_lstm_cell,
        "GRU_CELL": test_recurrent.test_a_gru_cell,
        "RNN_CELL": test_recurrent.test_an_rnn_cell,
        "STAGE": test_what_goes_into_and_out_of_a_stage_is_arranged,
        "STAGE_2D": test_what_goes_into_and_out_of_a_stage_is_arranged,
    }
    everything = {name: value for name, value in vars(kinds).items() if isinstance(value, Kind) and value.of is None}
    assert len(everything) > 25
    assert all(kind.name == name for name, kind in everything.items())
    cases = (*CASES.values(), *test_reordered_and_folded.CASES.values())
    exercised = {kind.name for kind, *_ in cases} & everything.keys()  # others are made to order
    assert not exercised & elsewhere.keys()
    assert exercised | elsewhere.keys() == everything.keys()
    for name, test in elsewhere.items():
        assert name in inspect.getsource(test), f"the test named for {name} uses it"
