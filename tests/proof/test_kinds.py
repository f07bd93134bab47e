"""Whole networks with kernels that are folded or in another order: converted with proof and restored; faults named."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

from converter import Probe, Row, kinds
from tests.support.networks import Model, converted, net, normal, pair, refused, restored, state_of, there_and_back
from tf_models import layers

K = keras.layers
now, before = nn.utils.parametrizations, nn.utils
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm` is deprecated:FutureWarning")


# --- Another order of values ------------------------------------------------------------------------------------------


def flattening(dense, order, flatten=None):
    """A convolution, a flatten, a batch normalisation, two linear layers."""

    def build():
        return Model(
            lambda self, x: self.b(self.a(self.bn((flatten or K.Flatten())(keras.ops.relu(self.conv(x)))))),
            conv=(K.Conv2D(4, 3), (None, 4, 6, 3)),
            bn=(K.BatchNormalization(epsilon=1e-5), (None, 32)),
            a=(K.Dense(6), (None, 32)),
            b=(K.Dense(5), (None, 6)),
        )

    def torchs():
        return net(
            lambda self, x: self.b(self.a(self.bn(self.conv(x).relu().flatten(1)))),
            conv=nn.Conv2d(3, 4, 3),
            bn=nn.BatchNorm1d(32),
            a=nn.Linear(32, 6),
            b=nn.Linear(6, 5),
        )

    rows = [Row("conv", kinds.CONV_2D), Row("bn", order), Row("a", dense), Row("b", kinds.DENSE)]
    return pair(build, torchs, rows, normal(3, 3, 4, 6), channels_first=frozenset({"x"}))


FLAT = kinds.DENSE_FLATTENED.sized(h=2, w=4), kinds.BATCH_NORM_FLATTENED.sized(h=2, w=4)


def test_a_linear_layer_after_a_flatten(tmp_path):
    there_and_back(flattening(*FLAT), tmp_path)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (
            (kinds.DENSE, kinds.BATCH_NORM),
            r"input of bn does not.*torch flattens \(4 channels, h, w\).*DENSE_FLATTENED",
        ),
        (tuple(kind.sized(h=2, w=2) for kind in FLAT), "input of bn does not.*the same values in another order"),
        (
            (kinds.DENSE_FLATTENED, FLAT[1]),
            r"does not fit the model at a\.kernel: no shape tells the length of c.*of the kind DENSE_FLATTENED",
        ),
        ((kinds.DENSE, FLAT[1]), r"input of a does not.*torch flattens \(4 channels, h, w\)"),
    ],
)
def test_the_wrong_order_after_a_flatten_is_named(tmp_path, table, told):
    one = flattening(*table)
    refused(one, state_of(one), tmp_path, told)


def patched(kind, order="(kh kw i)"):
    def patches(x):
        x = keras.ops.reshape(x, (-1, 2, 2, 4, 3, 3))  # (N, gh, kh, gw, kw, C)
        x = keras.ops.transpose(x, (0, 1, 3, 2, 4, 5) if order == "(kh kw i)" else (0, 1, 3, 5, 2, 4))
        return keras.ops.reshape(x, (-1, 8, 18))

    def build():
        return Model(
            lambda self, x: self.head(keras.ops.gelu(self.mlp(self.patch(patches(x))), False)),
            patch=(K.Dense(6), (None, 8, 18)),
            mlp=(K.Conv1D(7, 1), (None, 8, 6)),
            head=(K.Dense(5), (None, 8, 7)),
        )

    def torchs():
        return net(
            lambda self, x: self.head(nn.functional.gelu(self.mlp(self.patch(x).flatten(2).transpose(1, 2)))),
            patch=nn.Conv2d(3, 6, (2, 3), (2, 3)),
            mlp=nn.Linear(6, 7),
            head=nn.Linear(7, 5),
        )

    rows = [Row("patch", kind), Row("mlp", kinds.DENSE_CONV_1D), Row("head", kinds.DENSE)]
    return pair(build, torchs, rows, normal(2, 3, 4, 12), channels_first=frozenset({"x"}))


PATCHES = kinds.PATCHES_2D.sized(kh=2, kw=3)


def test_patches_and_dense_layers_that_are_convolutions(tmp_path):
    there_and_back(patched(PATCHES), tmp_path)
    there_and_back(patched(kinds.patches(2, channels_first=True).sized(kh=2, kw=3), "(i kh kw)"), tmp_path)


def test_the_wrong_order_in_a_patch_is_named(tmp_path):
    one = patched(PATCHES, "(i kh kw)")
    refused(one, one.build_torch().state_dict(), tmp_path, "input of patch differs.*the same values in another order")


def shuffling(grow, shrink, up=tf.nn.depth_to_space, down=tf.nn.space_to_depth):
    def build():
        return Model(
            lambda self, x: self.last(self.unshuffled(down(up(self.shuffled(x), 2), 2))),
            shuffled=(K.Conv2D(12, 3, padding="same"), (None, None, None, 3)),
            unshuffled=(K.Conv2D(6, 1), (None, None, None, 12)),
            last=(K.Conv2D(5, 1), (None, None, None, 6)),
        )

    def torchs():
        def forward(self, x):
            return self.last(self.unshuffled(nn.functional.pixel_unshuffle(self.shuffle(self.shuffled(x)), 2)))

        return net(
            forward,
            shuffled=nn.Conv2d(3, 12, 3, padding=1),
            shuffle=nn.PixelShuffle(2),
            unshuffled=nn.Conv2d(12, 6, 1),
            last=nn.Conv2d(6, 5, 1),
        )

    rows = [Row("shuffled", grow), Row("unshuffled", shrink), Row("last", kinds.CONV_2D)]
    return pair(build, torchs, rows, normal(2, 3, 4, 6), channels_first=frozenset({"x", "output"}))


GROW, SHRINK = kinds.CONV_2D_SHUFFLED.sized(rh=2, rw=2), kinds.CONV_2D_UNSHUFFLED.sized(rh=2, rw=2)


def test_convolutions_around_pixel_shuffles(tmp_path):
    there_and_back(shuffling(GROW, SHRINK), tmp_path)
    ours = (lambda x, factor: layers.PixelShuffle(factor)(x)), (lambda x, factor: layers.PixelUnshuffle(factor)(x))
    there_and_back(shuffling(kinds.CONV_2D, kinds.CONV_2D, *ours), tmp_path)


def test_a_shuffle_of_the_other_order_is_named(tmp_path):
    def built(up):
        return pair(
            lambda: Model(
                lambda self, x: self.b(up(self.a(x))),
                a=(K.Conv2D(12, 1), (None, None, None, 3)),
                b=(K.Conv2D(5, 1), (None, None, None, 3)),
            ),
            lambda: net(
                lambda self, x: self.b(nn.functional.pixel_shuffle(self.a(x), 2)),
                a=nn.Conv2d(3, 12, 1),
                b=nn.Conv2d(3, 5, 1),
            ),
            [Row("{a,b}", kinds.CONV_2D)],
            normal(2, 3, 4, 6),
            channels_first=frozenset({"x", "output"}),
        )

    there_and_back(built(layers.PixelShuffle(2)), tmp_path)
    one = built(lambda x: tf.nn.depth_to_space(x, 2))
    refused(
        one, one.build_torch().state_dict(), tmp_path, r"input of b does not.*pixel shuffle counts the channels \(c,"
    )
    one = shuffling(GROW, kinds.CONV_2D)
    told = r"input of unshuffled does not.*pixel unshuffle counts the channels \(c,"
    refused(one, one.build_torch().state_dict(), tmp_path, told)


# --- Normalisations, paddings, tables ---------------------------------------------------------------------------------


def normalised(epsilon=2.0**-23):
    def build():
        image = (None, None, None, 4)
        return Model(
            lambda self, x: self.rms(self.batch(self.plain(self.pad(self.instance(x))))),
            instance=(layers.InstanceNormalization(track_running_stats=True), (None, None, None, 3)),
            pad=(layers.Conv2D(4, 3, padding=1, padding_mode="circular"), (None, None, None, 3)),
            plain=(layers.InstanceNormalization(affine=False), image),
            batch=(layers.BatchStatisticsNormalization(), image),
            rms=(layers.RMSNormalization(epsilon=epsilon), image),
        )

    def torchs():
        return net(
            lambda self, x: self.rms(self.batch(self.plain(self.pad(self.instance(x)))).permute(0, 2, 3, 1)),
            instance=nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
            pad=nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
            plain=nn.InstanceNorm2d(4),
            batch=nn.BatchNorm2d(4, track_running_stats=False),
            rms=nn.RMSNorm(4),
        )

    rows = [
        Row("{instance,plain}", kinds.INSTANCE_NORM),
        Row("pad", kinds.CONV_2D),
        Row("batch", kinds.BATCH_NORM),
        Row("rms", kinds.RMS_NORM),
    ]
    return pair(build, torchs, rows, normal(2, 3, 5, 6), channels_first=frozenset({"x"}))


@pytest.mark.parametrize("verify", ["full", "train"])
def test_normalisations(tmp_path, verify):
    there_and_back(normalised(), tmp_path, verify=verify)


def test_the_epsilon_of_rms_norm_shows(tmp_path):
    one = normalised(1e-6)
    told = "first layer that differs: rms.*its epsilon"
    refused(one, state_of(one), tmp_path, told)


def test_another_mode_of_padding_is_named(tmp_path):
    one = pair(
        lambda: Model(
            lambda self, x: self.conv(x),
            conv=(layers.Conv2D(4, 3, padding=1, padding_mode="replicate"), (None, None, None, 3)),
        ),
        lambda: net(lambda self, x: self.conv(x), conv=nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")),
        [Row("conv", kinds.CONV_2D)],
        normal(2, 3, 5, 6),
        channels_first=frozenset({"x", "output"}),
    )
    refused(one, one.build_torch().state_dict(), tmp_path, "first layer that differs: conv.*suspect its padding")


def looked_up(**more):
    return pair(
        lambda: Model(
            lambda self, x: self.b(self.e(x)), e=(layers.Embedding(9, 4, 0), (None,)), b=(K.Dense(5), (None, 4))
        ),
        lambda: net(lambda self, x: self.b(self.e(x)), e=nn.Embedding(9, 4, 0, **more), b=nn.Linear(4, 5)),
        [Row("e", kinds.EMBEDDING), Row("b", kinds.DENSE)],
        lambda config, rng: [Probe({"x": np.array([[0, 1, 2, 0], [3, 3, 4, 0], [5, 6, 7, 8]])})],
    )


def test_a_row_of_padding_trains_as_torchs_does(tmp_path):
    report = there_and_back(looked_up(), tmp_path, verify="train")
    assert not report.numerical.by_design


def test_rows_that_torch_shortens_are_named(tmp_path):
    one = looked_up(max_norm=0.5)
    state = one.build_torch().state_dict()
    refused(one, state, tmp_path, "first layer that differs: e.*suspect max_norm")


# --- Folds ------------------------------------------------------------------------------------------------------------


def folded(wraps):
    """Layers, each normalised in its way."""
    images = (None, None, None)

    def build():
        return Model(
            lambda self, x: self.fc(keras.ops.mean(self.up(self.depth(self.conv(x))), (1, 2))),
            conv=(layers.Conv2D(4, 3), (*images, 3)),
            depth=(layers.DepthwiseConv2D(3, depth_multiplier=2), (*images, 4)),
            up=(layers.Conv2DTranspose(6, 2, 2), (*images, 8)),
            fc=(K.Dense(5), (None, 6)),
        )

    def torchs():
        conv, depth, up, fc = wraps
        return net(
            lambda self, x: self.fc(self.up(self.depth(self.conv(x))).mean((2, 3))),
            conv=conv(nn.Conv2d(3, 4, 3)),
            depth=depth(nn.Conv2d(4, 8, 3, groups=4)),
            up=up(nn.ConvTranspose2d(8, 6, 2, 2)),
            fc=fc(nn.Linear(6, 5)),
        )

    table = zip(
        ("conv", "depth", "up", "fc"),
        (kinds.CONV_2D, kinds.DEPTHWISE_CONV_2D, kinds.CONV_TRANSPOSE_2D, kinds.DENSE),
        strict=True,
    )
    rows = [Row(path, kind) for path, kind in table]
    return pair(build, torchs, rows, normal(2, 3, 7, 8), channels_first=frozenset({"x"}))


WRAPS = before.weight_norm, now.weight_norm, before.spectral_norm, now.spectral_norm


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_normalised_kernels_fold_and_come_back(tmp_path, turn):
    one = folded([*WRAPS[turn:], *WRAPS[:turn]])
    state = one.build_torch().state_dict()
    report = converted(one, state, tmp_path)
    assert report.numerical.full
    assert len(report.folded) == 10
    assert "weight normalisation, folded; v comes back as the kernel and g as its length" in str(report)
    assert not report.narrowed
    back = restored(one, report, tmp_path)
    assert sorted(back) == sorted(state)
    again = one.build_torch().eval()
    again.load_state_dict(back)
    before_, x = one.build_torch().eval(), torch.randn(2, 3, 7, 8)
    before_.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(again(x), before_(x))
    (tmp_path / "again").mkdir()
    assert converted(one, back, tmp_path / "again").numerical.full


def test_a_checkpoint_of_the_old_names_fits_a_reference_of_the_new(tmp_path):
    old, one = folded([before.weight_norm] * 4), folded([now.weight_norm] * 4)
    state = old.build_torch().state_dict()
    report = converted(one, state, tmp_path)
    assert report.numerical.full
    assert sorted(restored(one, report, tmp_path)) == sorted(state)


def test_a_fold_of_halves_comes_back_in_float32(tmp_path):
    one = folded([now.weight_norm] * 4)
    state = {name: tensor.half() for name, tensor in one.build_torch().state_dict().items()}
    report = converted(one, state, tmp_path)
    assert report.numerical.full
    back = restored(one, report, tmp_path)
    assert back["conv.bias"].dtype == torch.float16
    assert back["conv.parametrizations.weight.original0"].dtype == torch.float32


def test_a_kernel_of_another_length_is_refused(tmp_path):
    """The row says that torch was given another dim."""
    one = folded([now.weight_norm] * 4)
    state = one.build_torch().state_dict()
    wrong = kinds.weight_normed(kinds.DENSE, None)
    bad = pair(one.build_tf, one.build_torch, [*one.mapping({}).rows[:3], Row("fc", wrong)], one.probes)
    refused(
        bad, state, tmp_path, r"wrong shape: fc\.parametrizations\.weight\.original0 is 5x1, expected a single value"
    )


def test_a_fold_that_gives_no_number_is_refused_before_anything_is_written(tmp_path):
    """Each of the tensors is finite, and so no look at them shows it."""
    one = folded([now.weight_norm] * 4)
    state = one.build_torch().state_dict()
    state["conv.parametrizations.weight.original1"][0] = 0
    told = r"conv\.parametrizations\.weight\.original0 gives NaN or Inf where it is folded \(weight_norm\)"
    refused(one, state, tmp_path, told, verify="none")
    report = converted(one, state, tmp_path, verify="none", allow_nonfinite=True)
    assert "1 tensors hold NaN or Inf, as allowed" in str(report)


def test_what_is_folded_is_not_trained(tmp_path):
    plain = [lambda x: x] * 3
    one = folded([now.weight_norm, *plain])
    report = converted(one, one.build_torch().state_dict(), tmp_path, verify="train")
    assert report.numerical.full
    assert "2 tensors are folded with others: neither side trains them" in str(report)
    one = folded([before.weight_norm, *plain])
    assert converted(one, one.build_torch().state_dict(), tmp_path, verify="train").numerical.full
    one = folded([now.spectral_norm, *plain])
    told = r"conv\.parametrizations\.weight\.original is folded with what torch computes anew in training"
    refused(one, one.build_torch().state_dict(), tmp_path, told, verify="train")


def test_weight_normalisation_that_keras_has_too(tmp_path):
    def build():
        return Model(
            lambda self, x: self.fc(keras.ops.mean(self.conv(x), (1, 2))),
            conv=(layers.WeightNormalization(layers.Conv2D(4, 3, activation="relu")), (None, None, None, 3)),
            fc=(layers.WeightNormalization(K.Dense(5)), (None, 4)),
        )

    def torchs():
        return net(
            lambda self, x: self.fc(self.conv(x).relu().mean((2, 3))),
            conv=before.weight_norm(nn.Conv2d(3, 4, 3)),
            fc=now.weight_norm(nn.Linear(4, 5)),
        )

    rows = [Row("conv", kinds.weight_norm_kept(kinds.CONV_2D)), Row("fc", kinds.weight_norm_kept(kinds.DENSE))]
    one = pair(build, torchs, rows, normal(2, 3, 7, 8), channels_first=frozenset({"x"}))
    assert not there_and_back(one, tmp_path, verify="train").folded


def without_norms(epsilon=1e-5):
    def build():
        return Model(
            lambda self, x: self.fc(self.c(keras.ops.mean(keras.ops.relu(self.b(keras.ops.relu(self.a(x)))), (1, 2)))),
            a=(layers.Conv2D(4, 3), (None, None, None, 3)),
            b=(layers.Conv2D(6, 3), (None, None, None, 4)),
            c=(K.Dense(6), (None, 6)),
            fc=(K.Dense(5), (None, 6)),
        )

    def torchs():
        return net(
            lambda self, x: self.fc(self.bn2(self.fc2(self.part(self.bn1(self.conv1(x)).relu()).relu().mean((2, 3))))),
            conv1=nn.Conv2d(3, 4, 3, bias=False),
            bn1=nn.BatchNorm2d(4),
            fc2=nn.Linear(6, 6),
            bn2=nn.BatchNorm1d(6, affine=False),
            part=nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)),
            fc=nn.Linear(6, 5),
        )

    rows = [
        Row("", kinds.batch_norm_folded(kinds.CONV_2D, "conv1", "bn1", epsilon), keras="a"),
        Row("", kinds.batch_norm_folded(kinds.DENSE, "fc2", "bn2", epsilon, bias=True, affine=False), keras="c"),
        Row("part", kinds.batch_norm_folded(kinds.CONV_2D, "0", "1", epsilon, bias=True, alone=True), keras="b"),
        Row("fc", kinds.DENSE),
    ]
    return pair(build, torchs, rows, normal(2, 3, 7, 8), channels_first=frozenset({"x"}))


def test_batch_normalisation_folds_into_convolutions(tmp_path):
    one = without_norms()
    state = state_of(one)
    report = converted(one, state, tmp_path)
    assert report.numerical.full
    assert [layer.name for layer in report.numerical.layers] == ["part", "fc"]
    assert "batch normalisation, folded into the kernel" in str(report)
    assert "equal bit for bit, 15 of them to what they fold to" in str(report)
    back = restored(one, report, tmp_path)
    assert sorted(back) == sorted(state)
    (tmp_path / "again").mkdir()
    assert converted(one, back, tmp_path / "again").numerical.full


def test_another_epsilon_in_a_fold_is_named(tmp_path):
    one = without_norms(1e-3)
    state = state_of(one)
    refused(one, state, tmp_path, "the input of part differs|suspect the epsilon of the normalisation that was folded")
