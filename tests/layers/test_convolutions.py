"""Convolutions that pad as torch's do, against torch, at every option; the layouts are those of `converter.kinds`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

from converter import kinds
from tests.support.carrying import alone, carry
from tests.support.judging import channels_last
from tf_models import layers

SIZES = {1: (9,), 2: (9, 12), 3: (5, 6, 7)}
CONVS = {1: (nn.Conv1d, layers.Conv1D), 2: (nn.Conv2d, layers.Conv2D), 3: (nn.Conv3d, layers.Conv3D)}
TRANSPOSED = {
    1: (nn.ConvTranspose1d, layers.Conv1DTranspose, kinds.CONV_TRANSPOSE_1D),
    2: (nn.ConvTranspose2d, layers.Conv2DTranspose, kinds.CONV_TRANSPOSE_2D),
    3: (nn.ConvTranspose3d, layers.Conv3DTranspose, kinds.CONV_TRANSPOSE_3D),
}


def assert_equal(theirs: nn.Module, ours: keras.Layer, kind: kinds.Kind, x: np.ndarray) -> None:
    """Both sides on the same input, in float64."""
    ours.build(channels_last(x).shape)
    carry(theirs.state_dict(), ours, alone(kind))
    expected = channels_last(theirs(torch.from_numpy(x)).detach().numpy())
    got = ours(channels_last(x))
    assert got.shape == expected.shape
    assert tuple(ours.compute_output_shape(channels_last(x).shape)) == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
    again = type(ours).from_config(ours.get_config())
    assert again.get_config() == ours.get_config()


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"), [(3, 1, 1, 1), (3, 2, 1, 1), (2, 2, 0, 1), (3, 1, 2, 2)]
)
def test_convolution(rank, groups, kernel, stride, padding, dilation):
    torch.manual_seed(0)
    conv, layer = CONVS[rank]
    kind = (kinds.CONV_1D, kinds.CONV_2D, kinds.CONV_3D)[rank - 1]
    theirs = conv(4, 6, kernel, stride, padding, dilation, groups).double()
    ours = layer(6, kernel, strides=stride, padding=padding, dilation_rate=dilation, groups=groups, dtype="float64")
    assert_equal(theirs, ours, kind, torch.randn(3, 4, *SIZES[rank], dtype=torch.float64).numpy())


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("depthwise", [False, True])
def test_padding_modes(rank, mode, depthwise):
    torch.manual_seed(0)
    conv, layer = CONVS[rank]
    padding = (2, 3, 1)[-rank:]
    theirs = conv(4, 4, 3, 2, padding, groups=4 if depthwise else 1, padding_mode=mode).double()
    given = {"strides": 2, "padding": padding, "padding_mode": mode, "dtype": "float64"}
    ours = getattr(layers, f"DepthwiseConv{rank}D")(3, **given) if depthwise else layer(4, 3, **given)
    kind = getattr(kinds, f"{'DEPTHWISE_' * depthwise}CONV_{rank}D")
    assert_equal(theirs, ours, kind, torch.randn(3, 4, *SIZES[rank], dtype=torch.float64).numpy())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(mode, padding):
    torch.manual_seed(0)
    theirs = nn.Conv2d(4, 6, (4, 3), padding=padding, dilation=(1, 2), padding_mode=mode).double()
    ours = layers.Conv2D(6, (4, 3), padding=padding, dilation_rate=(1, 2), padding_mode=mode, dtype="float64")
    assert_equal(theirs, ours, kinds.CONV_2D, torch.randn(3, 4, 9, 12, dtype=torch.float64).numpy())


def test_paddings_that_torch_refuses():
    with pytest.raises(ValueError, match="padding_mode: expected one of zeros, reflect, replicate, circular"):
        layers.Conv2D(3, 3, padding_mode="symmetric")
    with pytest.raises(ValueError, match="padding_mode: expected one of"):
        layers.DepthwiseConv3D(3, padding_mode="mirror")
    with pytest.raises(ValueError, match='"same" is for a stride of 1'):
        layers.Conv2D(3, 3, 2, padding="same")


def test_depthwise_convolution():
    theirs = nn.Conv2d(4, 12, 3, 2, (1, 2), groups=4).double()
    ours = layers.DepthwiseConv2D(3, strides=2, depth_multiplier=3, padding=(1, 2), dtype="float64")
    assert_equal(theirs, ours, kinds.DEPTHWISE_CONV_2D, torch.randn(3, 4, 9, 12, dtype=torch.float64).numpy())


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "output_padding", "dilation"),
    [
        (2, 2, 0, 0, 1),
        (3, 2, 1, 1, 1),
        (3, 1, 1, 0, 1),
        (4, 3, 0, 2, 1),
        (3, 1, 0, 0, 2),
        (2, 3, 0, 0, 1),
        (1, 2, 0, 1, 1),
    ],
)
def test_transposed_convolution(rank, groups, kernel, stride, padding, output_padding, dilation):
    torch.manual_seed(0)
    conv, layer, kind = TRANSPOSED[rank]
    theirs = conv(4, 6, kernel, stride, padding, output_padding, groups, dilation=dilation).double()
    ours = layer(6, kernel, stride, padding, output_padding, dilation, groups, dtype="float64")
    assert_equal(theirs, ours, kind, torch.randn(3, 4, *SIZES[rank], dtype=torch.float64).numpy())


def test_a_padding_that_is_not_one_is_named():
    with pytest.raises(ValueError, match="padding: expected a whole number from 0, or 2 of them"):
        layers.Conv2D(3, 3, padding=(1, 1, 1))
    with pytest.raises(ValueError, match="groups"):
        layers.Conv2DTranspose(3, 2, groups=2)


@pytest.mark.parametrize("rank", [2, 3])
def test_a_stride_and_a_dilation_go_together(rank):
    torch.manual_seed(0)
    conv = (nn.Conv2d, nn.Conv3d)[rank - 2]
    layer = (layers.Conv2D, layers.Conv3D)[rank - 2]
    theirs = conv(4, 6, 3, 2, 2, 2, 2).double()
    ours = layer(6, 3, strides=2, padding=2, dilation_rate=2, groups=2, dtype="float64")
    kind = (kinds.CONV_2D, kinds.CONV_3D)[rank - 2]
    assert_equal(theirs, ours, kind, torch.randn(3, 4, *SIZES[rank], dtype=torch.float64).numpy())
    assert layer.from_config(ours.get_config()).dilation_rate == (2,) * rank


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_batch_of_nothing(rank):
    ours = CONVS[rank][1](6, 3, padding=1, strides=2)
    inputs = tf.zeros((0, *SIZES[rank], 4))
    with tf.GradientTape() as tape:
        outputs = ours(inputs)
    assert outputs.shape == ours.compute_output_shape((0, *SIZES[rank], 4))
    kernel, _ = tape.gradient(outputs, ours.trainable_variables)
    assert not np.any(kernel)


def test_an_input_without_room_for_the_kernel_is_refused():
    with pytest.raises(ValueError, match=r"output size would be (zero or )?negative"):
        layers.Conv2D(6, (3, 5), padding=1)(tf.zeros((1, 2, 1, 4)))


def test_a_convolution_in_groups_runs_step_by_step():
    """Where nothing is compiled, as when the proof looks between layers: TensorFlow's own kernel has no groups."""
    ours = layers.Conv3D(6, 3, groups=2, dtype="float64")
    x = tf.random.stateless_normal((2, 5, 6, 7, 4), (0, 0), dtype=tf.float64)
    ours.build(x.shape)
    compiled = ours(x)
    tf.config.run_functions_eagerly(True)
    try:
        np.testing.assert_allclose(ours(x), compiled, rtol=0, atol=1e-12)
    finally:
        tf.config.run_functions_eagerly(False)
