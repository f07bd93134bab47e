"""Kinds whose values lie in another order, and kernels that are folded: results and gradients against torch."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

from converter import kinds
from converter.kinds import Kind
from converter.planning.variables import by_path
from tests.support.carrying import alone, carry
from tests.support.judging import channels_last
from tests.support.networks import Conv1D
from tests.support.seeded import seeded
from tf_models import layers

K = keras.layers
now, before = nn.utils.parametrizations, nn.utils
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm` is deprecated:FutureWarning")


# name -> (kind, torch layer, Keras layer, torch input)
CASES = {
    "instance norm 1d": (
        kinds.INSTANCE_NORM,
        lambda: nn.InstanceNorm1d(6),
        lambda: layers.InstanceNormalization(affine=False),
        (3, 6, 5),
    ),
    "instance norm 2d, affine": (
        kinds.INSTANCE_NORM,
        lambda: seeded(nn.InstanceNorm2d(6, affine=True)),
        lambda: layers.InstanceNormalization(),
        (3, 6, 5, 4),
    ),
    "instance norm 3d, statistics": (
        kinds.INSTANCE_NORM,
        lambda: seeded(nn.InstanceNorm3d(6, affine=True, track_running_stats=True)),
        lambda: layers.InstanceNormalization(track_running_stats=True),
        (3, 6, 5, 4, 2),
    ),
    "instance norm, Keras's": (
        kinds.GROUP_NORM,
        lambda: seeded(nn.InstanceNorm2d(6, affine=True)),
        lambda: K.GroupNormalization(-1, epsilon=1e-5),
        (3, 6, 5, 4),
    ),
    "group norm 1d": (
        kinds.GROUP_NORM,
        lambda: seeded(nn.GroupNorm(3, 6)),
        lambda: K.GroupNormalization(3, epsilon=1e-5),
        (3, 6, 5),
    ),
    "batch norm, not affine": (
        kinds.BATCH_NORM,
        lambda: seeded(nn.BatchNorm2d(6, affine=False)),
        lambda: K.BatchNormalization(epsilon=1e-5, center=False, scale=False),
        (3, 6, 5, 4),
    ),
    "batch norm 1d of sequences": (
        kinds.BATCH_NORM,
        lambda: seeded(nn.BatchNorm1d(6)),
        lambda: K.BatchNormalization(epsilon=1e-5),
        (3, 6, 5),
    ),
    "batch norm 3d": (
        kinds.BATCH_NORM,
        lambda: seeded(nn.BatchNorm3d(6)),
        lambda: K.BatchNormalization(epsilon=1e-5),
        (3, 6, 5, 4, 2),
    ),
    "batch norm, no statistics": (
        kinds.BATCH_NORM,
        lambda: seeded(nn.BatchNorm2d(6, track_running_stats=False)),
        lambda: layers.BatchStatisticsNormalization(),
        (3, 6, 5, 4),
    ),
    "layer norm, not affine": (
        kinds.LAYER_NORM,
        lambda: nn.LayerNorm(6, elementwise_affine=False),
        lambda: K.LayerNormalization(epsilon=1e-5, center=False, scale=False),
        (3, 4, 6),
    ),
    "layer norm, no bias": (
        kinds.LAYER_NORM,
        lambda: seeded(nn.LayerNorm(6, bias=False)),
        lambda: K.LayerNormalization(epsilon=1e-5, center=False),
        (3, 4, 6),
    ),
    "rms norm": (
        kinds.RMS_NORM,
        lambda: seeded(nn.RMSNorm(6, eps=1e-6)),
        lambda: K.RMSNormalization(epsilon=1e-6),
        (3, 4, 6),
    ),
    "rms norm, ours": (
        kinds.RMS_NORM,
        lambda: seeded(nn.RMSNorm((4, 6), eps=2.0**-23)),
        lambda: layers.RMSNormalization(2),
        (3, 4, 6),
    ),
    "rms norm, no scale": (
        kinds.RMS_NORM,
        lambda: nn.RMSNorm(6, eps=1e-3, elementwise_affine=False),
        lambda: layers.RMSNormalization(epsilon=1e-3, use_scale=False),
        (3, 4, 6),
    ),
    "linear after a flatten": (
        kinds.DENSE_FLATTENED.sized(h=2, w=3),
        lambda: nn.Linear(24, 5),
        lambda: K.Dense(5),
        (3, 24),
    ),
    "batch norm after a flatten": (
        kinds.BATCH_NORM_FLATTENED.sized(c=4, w=3),
        lambda: seeded(nn.BatchNorm1d(24)),
        lambda: K.BatchNormalization(epsilon=1e-5),
        (3, 24),
    ),
    "patches 1d": (kinds.PATCHES_1D.sized(k=3), lambda: nn.Conv1d(4, 6, 3, 3), lambda: K.Dense(6), (2, 4, 9)),
    "patches 2d": (
        kinds.PATCHES_2D.sized(kh=2, kw=3),
        lambda: nn.Conv2d(4, 6, (2, 3), (2, 3)),
        lambda: K.Dense(6),
        (2, 4, 6, 12),
    ),
    "patches 2d, channels first, in a grid": (
        kinds.patches(2, channels_first=True, grid=True).sized(kh=2, kw=3),
        lambda: nn.Conv2d(4, 6, (2, 3), (2, 3)),
        lambda: K.Dense(6),
        (2, 4, 6, 12),
    ),
    "patches 3d": (
        kinds.PATCHES_3D.sized(kd=1, kh=2, kw=3),
        lambda: nn.Conv3d(4, 6, (1, 2, 3), (1, 2, 3)),
        lambda: K.Dense(6),
        (2, 4, 5, 6, 12),
    ),
    "1x1 convolution against a dense layer": (
        kinds.POINTWISE_CONV_2D,
        lambda: nn.Conv2d(4, 6, 1),
        lambda: K.Dense(6),
        (2, 4, 6, 12),
    ),
    "convolution of size 1 against a dense layer": (
        kinds.POINTWISE_CONV_1D,
        lambda: nn.Conv1d(4, 6, 1),
        lambda: K.Dense(6),
        (2, 4, 9),
    ),
    "linear against a convolution": (
        kinds.DENSE_CONV_2D,
        lambda: nn.Linear(4, 6),
        lambda: K.Conv2D(6, 1),
        (2, 3, 5, 4),
    ),
    "linear against a convolution of sequences": (
        kinds.DENSE_CONV_1D,
        lambda: nn.Linear(4, 6),
        lambda: K.Conv1D(6, 1),
        (2, 5, 4),
    ),
    "pixel shuffle": (kinds.PIXEL_SHUFFLE, lambda: nn.PixelShuffle(2), lambda: layers.PixelShuffle(2), (2, 12, 3, 5)),
    "pixel unshuffle": (
        kinds.PIXEL_SHUFFLE,
        lambda: nn.PixelUnshuffle(2),
        lambda: layers.PixelUnshuffle(2),
        (2, 3, 4, 6),
    ),
    "convolution before a shuffle": (
        kinds.CONV_2D_SHUFFLED.sized(rh=2, rw=2),
        lambda: nn.Conv2d(3, 12, 3),
        lambda: K.Conv2D(12, 3),
        (2, 3, 5, 6),
    ),
    "convolution after an unshuffle": (
        kinds.CONV_2D_UNSHUFFLED.sized(rh=2, rw=2),
        lambda: nn.Conv2d(12, 5, 3),
        lambda: K.Conv2D(5, 3),
        (2, 12, 5, 6),
    ),
    "weight norm kept, linear": (
        kinds.weight_norm_kept(kinds.DENSE),
        lambda: now.weight_norm(nn.Linear(4, 6)),
        lambda: layers.WeightNormalization(K.Dense(6)),
        (3, 4),
    ),
    "weight norm kept, convolution": (
        kinds.weight_norm_kept(kinds.CONV_2D),
        lambda: before.weight_norm(nn.Conv2d(4, 6, 3, padding=1)),
        lambda: layers.WeightNormalization(layers.Conv2D(6, 3, padding=1)),
        (2, 4, 5, 6),
    ),
    "weight norm kept, depthwise": (
        kinds.weight_norm_kept(kinds.DEPTHWISE_CONV_2D),
        lambda: now.weight_norm(nn.Conv2d(4, 8, 3, groups=4)),
        lambda: layers.WeightNormalization(layers.DepthwiseConv2D(3, depth_multiplier=2), (-2, -1)),
        (2, 4, 5, 6),
    ),
    "weight norm kept, transposed": (
        kinds.weight_norm_kept(kinds.CONV_TRANSPOSE_1D),
        lambda: now.weight_norm(nn.ConvTranspose1d(4, 6, 3, 2)),
        lambda: layers.WeightNormalization(layers.Conv1DTranspose(6, 3, 2)),
        (2, 4, 5),
    ),
    "weight norm kept, of the inputs": (
        kinds.weight_norm_kept(kinds.CONV_2D, 1),
        lambda: now.weight_norm(nn.Conv2d(4, 6, 3), dim=1),
        lambda: layers.WeightNormalization(layers.Conv2D(6, 3), -2),
        (2, 4, 5, 6),
    ),
    "weight norm kept, counted from the end": (
        kinds.weight_norm_kept(kinds.CONV_2D, -1),
        lambda: before.weight_norm(nn.Conv2d(4, 6, 3), dim=3),
        lambda: layers.WeightNormalization(layers.Conv2D(6, 3), 1),
        (2, 4, 5, 6),
    ),
    "weight norm kept, one length": (
        kinds.weight_norm_kept(kinds.DENSE, None),
        lambda: before.weight_norm(nn.Linear(4, 6), dim=None),
        lambda: layers.WeightNormalization(K.Dense(6), ()),
        (3, 4),
    ),
    "weight norm kept, of heads": (
        kinds.weight_norm_kept(kinds.dense_from_heads(2)),
        lambda: now.weight_norm(nn.Linear(8, 6)),
        lambda: layers.WeightNormalization(K.EinsumDense("bhd,hdo->bo", (6,), bias_axes="o"), -1),
        (3, 8),
    ),
    "convolution 3d in groups": (
        kinds.CONV_3D,
        lambda: nn.Conv3d(4, 6, 3, 2, 1, 2, groups=2),
        lambda: layers.Conv3D(6, 3, 2, padding=1, dilation_rate=2, groups=2),
        (2, 4, 7, 6, 8),
    ),
    "depthwise 3d, two for each, dilated": (
        kinds.DEPTHWISE_CONV_3D,
        lambda: nn.Conv3d(4, 8, (2, 3, 2), (1, 2, 1), (1, 2, 0), (2, 3, 2), groups=4),
        lambda: layers.DepthwiseConv3D((2, 3, 2), (1, 2, 1), (1, 2, 0), depth_multiplier=2, dilation_rate=(2, 3, 2)),
        (2, 4, 5, 8, 6),
    ),
    "layer norm over images": (
        kinds.LAYER_NORM_WHOLE_2D,
        lambda: seeded(nn.LayerNorm((4, 5, 6))),
        lambda: layers.LayerNorm(axis=(1, 2, 3), epsilon=1e-5),
        (3, 4, 5, 6),
    ),
    "layer norm over images, keras": (
        kinds.LAYER_NORM_WHOLE_2D,
        lambda: seeded(nn.LayerNorm((4, 5, 6), eps=1e-3)),
        lambda: K.LayerNormalization(axis=(1, 2, 3), epsilon=1e-3),
        (3, 4, 5, 6),
    ),
    "layer norm over two axes, without a shift": (
        kinds.LAYER_NORM,
        lambda: seeded(nn.LayerNorm((5, 6), bias=False)),
        lambda: layers.LayerNorm(axis=(2, 3), epsilon=1e-5, center=False),
        (3, 4, 5, 6),
    ),
    "layer norm without factors": (
        kinds.LAYER_NORM,
        lambda: nn.LayerNorm(6, elementwise_affine=False),
        lambda: layers.LayerNorm(epsilon=1e-5, scale=False, center=False),
        (3, 4, 6),
    ),
}
for rank in (1, 2, 3):
    space = (4, 5, 6)[:rank]
    for mode in ("reflect", "replicate", "circular"):
        CASES[f"{mode} padding {rank}d"] = (
            getattr(kinds, f"CONV_{rank}D"),
            lambda rank=rank, mode=mode: getattr(nn, f"Conv{rank}d")(3, 6, 3, padding=2, padding_mode=mode),
            lambda rank=rank, mode=mode: getattr(layers, f"Conv{rank}D")(6, 3, padding=2, padding_mode=mode),
            (2, 3, *space),
        )
    CASES[f"transposed {rank}d, output padding and dilation"] = (
        getattr(kinds, f"CONV_TRANSPOSE_{rank}D"),
        lambda rank=rank: getattr(nn, f"ConvTranspose{rank}d")(3, 6, 3, 2, 1, 1, dilation=2),
        lambda rank=rank: getattr(layers, f"Conv{rank}DTranspose")(6, 3, 2, 1, 1, 2),
        (2, 3, *space),
    )
# The same of kernels that are folded: their gradients are not torch's.
MODULES = {
    "linear": (kinds.DENSE, lambda: nn.Linear(4, 6), lambda: K.Dense(6), (3, 4)),
    "conv 1d": (kinds.CONV_1D, lambda: nn.Conv1d(4, 6, 3), lambda: K.Conv1D(6, 3), (2, 4, 7)),
    "conv 2d": (kinds.CONV_2D, lambda: nn.Conv2d(4, 6, 3), lambda: K.Conv2D(6, 3), (2, 4, 5, 6)),
    "depthwise": (
        kinds.DEPTHWISE_CONV_2D,
        lambda: nn.Conv2d(4, 8, 3, groups=4),
        lambda: K.DepthwiseConv2D(3, depth_multiplier=2),
        (2, 4, 5, 6),
    ),
    "conv1d of gpt-2": (
        kinds.CONV1D_GPT2,
        lambda: Conv1D(4, 6),
        lambda: K.Dense(6),
        (3, 4),
    ),
    "to heads": (
        kinds.dense_to_heads(2),
        lambda: nn.Linear(4, 6),
        lambda: K.EinsumDense("bi,ihd->bhd", (2, 3), bias_axes="hd"),
        (3, 4),
    ),
    "transposed": (
        kinds.CONV_TRANSPOSE_2D,
        lambda: nn.ConvTranspose2d(4, 6, 3, 2),
        lambda: layers.Conv2DTranspose(6, 3, 2),
        (2, 4, 5, 6),
    ),
}


@pytest.fixture(autouse=True)
def in_float64():
    kept = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy(kept)


def near(got, wanted, name=""):
    wanted = np.asarray(wanted)
    assert got.shape == wanted.shape, name
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-11 * max(np.abs(wanted).max(initial=0), 1), err_msg=name)


def assert_computes(kind: Kind, theirs: nn.Module, ours: keras.Layer, shape: tuple[int, ...]) -> None:
    """Result, gradient of the input, and of every variable that is no fold."""
    torch.manual_seed(0)
    theirs = theirs.eval().double()
    state = theirs.state_dict()
    kind = kind.holding(state.__contains__)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    [given], _ = kind.given((x.detach().numpy(),), {})
    ours.build(given.shape)
    carry(state, ours, alone(kind))
    wanted = theirs(x)
    upstream = torch.randn(wanted.shape, dtype=torch.float64)
    (wanted * upstream).sum().backward()
    variables = by_path(ours)
    with tf.GradientTape() as tape:
        given = tf.constant(given)
        tape.watch(given)
        result = (kind.call or (lambda layer, x: layer(x)))(ours, given)
        loss = tf.reduce_sum(result * kind.returned(upstream.numpy()))
    near(result, kind.returned(wanted.detach().numpy()), "result")
    values = {path: variable.value for path, variable in variables.items()}
    gradient, others = tape.gradient(loss, [given, values])
    near(gradient, kind.given((x.grad.numpy(),), {})[0][0], "gradient of the input")
    parameters = dict(theirs.named_parameters())
    for leaf in kind.leaves:
        if leaf.fold is None and all(name in parameters for name in leaf.torch):
            grads = [parameters[name].grad.numpy() for name in leaf.torch]
            laid = leaf.to_keras(grads, [tuple(variables[path].shape) for path in leaf.keras])
            for path, value in zip(leaf.keras, laid, strict=True):
                near(others[path], value, path)
    again = type(ours).from_config(ours.get_config())
    assert again.get_config() == ours.get_config()


@pytest.mark.parametrize("case", CASES)
def test_keras_computes_what_torch_does_and_so_do_gradients(case):
    torch.manual_seed(0)
    kind, make_torch, make_keras, shape = CASES[case]
    assert_computes(kind, make_torch(), make_keras(), shape)


@pytest.mark.parametrize("wrap", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("home", [before, now])
@pytest.mark.parametrize("case", MODULES)
def test_a_normalised_kernel_is_folded_under_both_names(case, home, wrap):
    torch.manual_seed(0)
    kind, make_torch, make_keras, shape = MODULES[case]
    theirs = getattr(home, wrap)(make_torch())
    assert not any(name in theirs.state_dict() for name in ("weight",))
    assert_computes(kind, theirs, make_keras(), shape)


@pytest.mark.parametrize("dim", [1, 2, None])
def test_weight_norm_over_another_axis(dim):
    theirs = now.weight_norm(nn.Conv2d(4, 6, 3), dim=dim)
    assert_computes(kinds.weight_normed(kinds.CONV_2D, dim), theirs, K.Conv2D(6, 3), (2, 4, 5, 6))


def test_spectral_norm_over_another_axis():
    kind = kinds.weight_normed(kinds.CONV_2D, spectral=1)
    assert_computes(kind, now.spectral_norm(nn.Conv2d(4, 6, 3), dim=1), K.Conv2D(6, 3), (2, 4, 5, 6))


def test_what_has_no_kernel_is_not_normalised():
    for wrong in (kinds.weight_normed, kinds.weight_norm_kept):
        with pytest.raises(ValueError, match="LAYER_NORM has no kernel"):
            wrong(kinds.LAYER_NORM)
    for make in (kinds.weight_norm_kept, lambda kind: kinds.batch_norm_folded(kind, "0", "1")):
        with pytest.raises(ValueError, match="has several kernels"):
            make(kinds.split_dense())


def test_two_words_about_the_axis_of_weight_norm():
    with pytest.raises(ValueError, match="CONV_2D is folded along another dim than 0: give weight_norm_kept the same"):
        kinds.weight_norm_kept(kinds.weight_normed(kinds.CONV_2D, dim=1))
    assert kinds.weight_norm_kept(kinds.weight_normed(kinds.CONV_2D, 1), 1) == kinds.weight_norm_kept(kinds.CONV_2D, 1)


@pytest.mark.parametrize("case", MODULES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_is_folded_into_what_stands_before_it(case, bias, affine):
    torch.manual_seed(0)
    kind, make_torch, make_keras, shape = MODULES[case]
    conv = make_torch()
    if not bias:
        conv.bias = None
    channels = getattr(conv, "out_channels", None) or conv.out_features
    batch = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    theirs = nn.Sequential(conv, seeded(batch(channels, eps=1e-3, affine=affine)))
    folded = kinds.batch_norm_folded(kind, "0", "1", 1e-3, bias, affine, alone=True)
    assert_computes(folded, theirs, make_keras(), shape)
    # What comes back folds to the same.
    state = {name: np.float64(value) for name, value in theirs.state_dict().items()}
    [leaf] = folded.leaves
    shapes = [(tuple(one.shape)) for one in _variables(make_keras(), folded, shape, leaf)]
    values = [np.float32(one) for one in leaf.to_keras([state[name] for name in leaf.torch], shapes)]
    back = [np.float32(one) for one in leaf.to_torch(values)]
    again = leaf.to_keras([one.astype(np.float64) for one in back], shapes)
    for value, other in zip(values, again, strict=True):
        if affine:
            np.testing.assert_array_equal(np.float32(other), value)
        else:
            np.testing.assert_array_max_ulp(np.float32(other), value, 1)


def _variables(layer, kind, shape, leaf):
    layer.build(kind.given((np.zeros(shape),), {})[0][0].shape)
    return [by_path(layer)[path] for path in leaf.keras]


@pytest.mark.parametrize("fold", ["weight_norm", "spectral_norm"])
def test_what_comes_back_of_a_fold_gives_a_neighbour_at_most(fold):
    rng = np.random.default_rng(0)
    names = {"weight_norm": ("weight_g", "weight_v"), "spectral_norm": ("weight_orig", "weight_u", "weight_v")}[fold]
    leaf = kinds.CONV_1D.holding(names.__contains__).leaves[0]
    assert leaf.torch == names
    for _ in range(50):
        kernel = rng.standard_normal((3, 4, 5)).astype(np.float32)
        back = [one.astype(np.float32).astype(np.float64) for one in leaf.to_torch([kernel])]
        assert [one.shape for one in back] == leaf.torch_shapes([kernel.shape])
        [again] = leaf.to_keras(back, [kernel.shape])
        np.testing.assert_array_max_ulp(np.float32(again), kernel, leaf.fold.apart)


def test_sizes_are_for_axes_that_there_are():
    with pytest.raises(ValueError, match="DENSE_FLATTENED has no axis height"):
        kinds.DENSE_FLATTENED.sized(height=2)


@pytest.mark.parametrize("length", ["4", None, 0, -1, 2.0, True])
def test_a_length_is_a_whole_number_from_1(length):
    with pytest.raises(ValueError, match=r"length of the axis h of DENSE_FLATTENED is a whole number from 1, not "):
        kinds.DENSE_FLATTENED.sized(h=length, w=1)
    with pytest.raises(
        ValueError, match=r"length of the axis h of the pattern 'o \(h w\) -> .*' is a whole number from 1"
    ):
        kinds.leaf("weight", "kernel", "o (h w) -> (w h) o", sizes={"h": length, "w": 1})
    with pytest.raises(ValueError, match=r"the pattern 'o i -> i o' has no axis h"):
        kinds.leaf("weight", "kernel", "o i -> i o", sizes={"h": 1})
    assert kinds.DENSE_FLATTENED.sized(h=np.int64(4), w=1).sizes == {"h": 4, "w": 1}
    with pytest.raises(ValueError, match="no shape tells the length of"):
        kinds.DENSE_FLATTENED.leaves[0].torch_shapes([(12, 5)])


def test_instance_norm_keeps_the_statistics_that_torch_keeps():
    theirs = seeded(nn.InstanceNorm2d(6, affine=True, track_running_stats=True)).double().train()
    ours = layers.InstanceNormalization(track_running_stats=True)
    ours.build((None, 4, 5, 6))
    carry(theirs.state_dict(), ours, alone(kinds.INSTANCE_NORM))
    x = torch.randn(3, 6, 4, 5, dtype=torch.float64)
    near(ours(channels_last(x.numpy()), training=True), channels_last(theirs(x).detach().numpy()))
    near(ours.moving_mean, theirs.running_mean)
    near(ours.moving_variance, theirs.running_var)


@pytest.mark.parametrize("idx", [0, -1])
def test_the_row_of_padding_gets_no_gradient(idx):
    theirs, ours = nn.Embedding(5, 3, padding_idx=idx).double(), layers.Embedding(5, 3, idx)
    ours.build(None)
    carry(theirs.state_dict(), ours, alone(kinds.EMBEDDING))
    words, upstream = np.array([[4, 0, 2], [0, 1, 4]]), np.random.default_rng(0).standard_normal((2, 3, 3))
    (theirs(torch.from_numpy(words)) * torch.from_numpy(upstream)).sum().backward()
    with tf.GradientTape() as tape:
        rows = ours(words)
        loss = tf.reduce_sum(rows * upstream)
    near(rows, theirs(torch.from_numpy(words)).detach().numpy())
    near(tf.convert_to_tensor(tape.gradient(loss, ours.embeddings.value)), theirs.weight.grad.numpy())


def test_a_batch_norm_before_a_pixel_shuffle_is_folded_in_its_order():
    """The biases too go over in the order of the shuffled channels."""
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Conv2d(6, 8, 3, bias=False), seeded(nn.BatchNorm2d(8)))
    folded = kinds.batch_norm_folded(kinds.CONV_2D_SHUFFLED.sized(rh=2, rw=2), "0", "1", alone=True)
    assert_computes(folded, theirs, layers.Conv2D(8, 3), (2, 6, 5, 7))


def test_a_transposed_convolution_that_is_told_its_size():
    layer = layers.Conv2DTranspose(4, 3, strides=2, padding=1, output_padding=1)
    layer.build((None, 5, 7, 6))
    x = np.ones((2, 5, 7, 6), "float32")
    told = kinds.CONV_TRANSPOSE_2D.call(layer, x, output_size=(10, 14))
    np.testing.assert_array_equal(told, layer(x))
    np.testing.assert_array_equal(kinds.CONV_TRANSPOSE_2D.call(layer, x, (10, 14)), told)


def test_a_strided_and_dilated_convolution_of_a_sequence():
    torch.manual_seed(0)
    theirs = nn.Conv1d(6, 4, 3, stride=2, dilation=2, padding=1, groups=2)
    assert_computes(
        kinds.CONV_1D, theirs, layers.Conv1D(4, 3, strides=2, dilation_rate=2, padding=1, groups=2), (2, 6, 15)
    )
