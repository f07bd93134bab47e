"""Every kind: filled from torch's layer, Keras's computes the same; and the layout can be undone."""

import keras
import numpy as np
import pytest
import torch
from torch import nn

from converter import kinds
from converter.kinds import Kind, Layout, channels_last
from converter.variables import by_path
from tf_models import layers

K = keras.layers


def norm(layer: nn.Module) -> nn.Module:
    """Statistics and affine parameters that are not the trivial ones."""
    for name, tensor in layer.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(
                torch.rand(tensor.shape) + 0.5 if "weight" in name or "var" in name else torch.randn(tensor.shape)
            )
    return layer


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def image(*shape):
    return torch.randn(*shape).numpy()


# name -> (kind, torch layer, Keras layer, torch input)
CASES = {
    "dense": (kinds.DENSE, lambda: nn.Linear(5, 7), lambda: K.Dense(7), (3, 4, 5)),
    "dense, no bias": (kinds.DENSE, lambda: nn.Linear(5, 5, bias=False), lambda: K.Dense(5, use_bias=False), (3, 5)),
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
        lambda: norm(nn.LayerNorm(6)),
        lambda: K.LayerNormalization(epsilon=1e-5),
        (3, 4, 6),
    ),
    "layer norm, no bias": (
        kinds.LAYER_NORM,
        lambda: norm(nn.LayerNorm(6, bias=False)),
        lambda: K.LayerNormalization(epsilon=1e-5, center=False),
        (3, 4, 6),
    ),
    "layer norm over two axes": (
        kinds.LAYER_NORM,
        lambda: norm(nn.LayerNorm((4, 6))),
        lambda: K.LayerNormalization(axis=(1, 2), epsilon=1e-5),
        (3, 4, 6),
    ),
    "layer norm 2d": (
        kinds.LAYER_NORM_2D,
        lambda: norm(LayerNorm2d(6, eps=1e-6)),
        lambda: K.LayerNormalization(epsilon=1e-6),
        (2, 6, 4, 5),
    ),
    "group norm": (
        kinds.GROUP_NORM,
        lambda: norm(nn.GroupNorm(2, 6)),
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
        lambda: norm(nn.BatchNorm1d(6)),
        lambda: K.BatchNormalization(epsilon=1e-5),
        (3, 6),
    ),
    "batch norm 2d": (
        kinds.BATCH_NORM,
        lambda: norm(nn.BatchNorm2d(6)),
        lambda: K.BatchNormalization(epsilon=1e-5),
        (2, 6, 4, 5),
    ),
    "prelu, shared": (kinds.PRELU, lambda: nn.PReLU(), lambda: K.PReLU(shared_axes=[1, 2, 3]), (2, 6, 4, 5)),
    "prelu 1d": (kinds.PRELU, lambda: norm(nn.PReLU(6)), lambda: K.PReLU(), (3, 6)),
    "prelu 2d": (kinds.PRELU, lambda: norm(nn.PReLU(6)), lambda: K.PReLU(shared_axes=[1, 2]), (2, 6, 4, 5)),
}


def carry(theirs: nn.Module, ours: keras.Layer, kind: Kind) -> None:
    """Fill the Keras layer as the kind says, and see that undoing gives back torch's tensors to the bit."""
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    variables = by_path(ours)
    ignored = dict(kind.ignored)
    for leaf in kind.leaves:
        if leaf.torch not in state:
            assert leaf.optional
            assert not any(name in variables for name, _ in leaf.variables)
            continue
        tensor = state.pop(leaf.torch)
        back = []
        for name, layout in leaf.variables:
            variable = variables.pop(name)
            assert layout.torch_shape(tuple(variable.shape)) == tensor.shape
            variable.assign(layout.to_keras(tensor, tuple(variable.shape)))
            back.append(layout.to_torch(variable.numpy()))
        np.testing.assert_array_equal(np.concatenate(back), tensor)
    assert set(state) <= set(ignored), "every tensor is mapped or left out by name"
    assert not variables, "every variable is filled"


@pytest.mark.parametrize("case", CASES)
def test_keras_computes_what_torch_does(case):
    torch.manual_seed(0)
    kind, make_torch, make_keras, shape = CASES[case]
    theirs, ours = make_torch().eval(), make_keras()
    x = torch.randn(shape)
    arranged = channels_last(x.numpy()) if kind.channels_first else x.numpy()
    ours.build(arranged.shape)
    carry(theirs, ours, kind)
    with torch.no_grad():
        expected = theirs(x).numpy()
    if kind.channels_first:
        expected = channels_last(expected)
    np.testing.assert_allclose(ours(arranged), expected, rtol=1e-5, atol=2e-6)


def test_embedding():
    theirs, ours = nn.Embedding(5, 3), K.Embedding(5, 3)
    ours.build(None)
    with torch.no_grad():
        carry(theirs, ours, kinds.EMBEDDING)
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
        carry(theirs, ours, kinds.MULTIHEAD_ATTENTION)
        padding = torch.tensor([[False] * 7, [False] * 5 + [True] * 2])
        hidden = torch.triu(torch.ones(5, 7, dtype=torch.bool), 3)
        given = [t if batch_first else t.transpose(0, 1) for t in (query, key, value)]
        expected = theirs(*given, key_padding_mask=padding, attn_mask=hidden)[0]
        expected = expected if batch_first else expected.transpose(0, 1)
    call = kinds.MULTIHEAD_ATTENTION.call
    got = call(
        ours,
        query.numpy(),
        key.numpy(),
        value.numpy(),
        key_padding_mask=padding.numpy(),
        attn_mask=hidden.numpy(),
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_a_variable_of_another_rank_is_an_error():
    with pytest.raises(ValueError, match="does not have the axes"):
        Layout("o i -> i o").torch_shape((2, 3, 4))


def test_every_kind_in_the_module_is_exercised():
    exercised = {kind for kind, *_ in CASES.values()} | {kinds.EMBEDDING, kinds.MULTIHEAD_ATTENTION}
    # TOKENS and PARAMETERS_OF_CONV_2D share others' leaves; PARAMETER, SCALE and the activations arrange no axes.
    exercised |= {kinds.TOKENS, kinds.PARAMETERS_OF_CONV_2D, kinds.PARAMETER, kinds.SCALE}
    exercised |= {kinds.ACTIVATION, kinds.ACTIVATION_2D}
    exercised |= {kinds.STAGE, kinds.STAGE_2D, kinds.SEQUENTIAL_2D}  # no tensors of their own
    # Layouts of other libraries (`of`) are held against torch's in test_spellings.
    everything = {value for value in vars(kinds).values() if isinstance(value, Kind) and value.of is None}
    assert {kind.name for kind in everything} == {kind.name for kind in exercised}
