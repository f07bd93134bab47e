"""What the numerical proof must see beyond a layer alone, and what it must let pass, on networks of a few layers."""

import json
from dataclasses import replace

import h5py
import keras
import numpy as np
import pytest
import torch
from torch import nn

import converter
import tf_models
from converter import Drop, Probe, Row, kinds
from tests.support.networks import Model, converted, dense, net, normal, pair, refused
from tests.support.pairs import registered
from tf_models import layers

ops = keras.ops


# --- What a mapping drops --------------------------------------------------------------------------------------------


def shifted(shift):
    made = net(lambda self, x: self.norm(self.fc(x)) + self.shift, fc=nn.Linear(4, 6), norm=nn.LayerNorm(6))
    made.shift = nn.Parameter(torch.tensor(shift) if not callable(shift) else shift())
    return made


def unshifted():
    norm = keras.layers.LayerNormalization(epsilon=1e-5), (None, 6)
    return Model(lambda self, x: self.norm(self.fc(x)), fc=dense(6, 4), norm=norm)


SHIFTED = [Row("fc", kinds.DENSE), Row("norm", kinds.LAYER_NORM)]


def test_a_trained_tensor_that_is_dropped_is_refused(tmp_path):
    one = pair(unshifted, lambda: shifted(torch.zeros(6).tolist()), [*SHIFTED, Drop("shift", "no need")], normal(3, 4))
    refused(
        one, shifted([1.0, -2.0, 3.0, 0.5, 0.1, -1.0]).state_dict(), tmp_path, "norm agrees, the output output does not"
    )


def test_a_tensor_of_zeros_is_dropped_though_its_constructor_is_random(tmp_path):
    one = pair(unshifted, lambda: shifted(lambda: torch.randn(6)), [*SHIFTED, Drop("shift", "zero")], normal(3, 4))
    assert converted(one, shifted([0.0] * 6).state_dict(), tmp_path).numerical.full


@pytest.mark.parametrize("equals", [0, np.zeros(6)])
def test_a_dropped_tensor_equals_what_the_table_says(tmp_path, equals):
    state = shifted([0.0] * 6).state_dict()
    state["fc.bias"].zero_()
    one = pair(
        unshifted, lambda: shifted([0.0] * 6), [*SHIFTED, Drop("shift", "computed", equals=equals)], normal(3, 4)
    )
    assert converted(one, state, tmp_path).lossless.equal == ("shift",)
    state["shift"][2] = 1e-3
    refused(one, state, tmp_path, "lossless: shift is dropped, but does not equal", verify="lossless")


def test_a_dropped_tensor_may_be_another_s_equal(tmp_path):
    """TensorFlow adds the bias of another layer; with other values in both, where they are constant, too."""

    def build():
        norm = keras.layers.LayerNormalization(epsilon=1e-5), (None, 6)
        return Model(lambda self, x: self.norm(self.fc(x)) + self.fc.bias, fc=dense(6, 4), norm=norm)

    rows = [*SHIFTED, Drop("shift", "the bias of fc", equals="fc.bias")]
    one = pair(build, lambda: shifted([0.0] * 6), rows, normal(3, 4))
    for bias in (torch.zeros(6), torch.arange(6.0)):
        state = shifted(bias.tolist()).state_dict() | {"fc.bias": bias}
        report = converted(one, state, tmp_path)
        assert report.numerical.full
        assert report.lossless.equal == ("shift",)
    refused(one, state | {"fc.bias": bias + 1}, tmp_path, r"shift is dropped, but does not equal fc\.bias")


def tied():
    made = net(
        lambda self, x: self.head(self.embed(x).tanh()), embed=nn.Embedding(300, 6), head=nn.Linear(6, 300, False)
    )
    made.head.weight = made.embed.weight
    return made


def tied_keras():
    embed = keras.layers.Embedding(300, 6), None
    return Model(lambda self, x: ops.matmul(ops.tanh(self.embed(x)), ops.transpose(self.embed.embeddings)), embed=embed)


TIED = pair(
    tied_keras,
    tied,
    [Row("embed", kinds.EMBEDDING, tied="head.weight")],
    lambda config, rng: [Probe({"x": rng.integers(0, 300, (2, 5))})],
)


def test_a_tied_tensor_comes_back_under_every_name_it_had(tmp_path):
    state = tied().state_dict()
    for names in (["embed.weight", "head.weight"], ["embed.weight"], ["head.weight"]):
        report = converted(TIED, {name: state[name] for name in names}, tmp_path)
        assert report.numerical.full
        with registered(TIED):
            converter.restore(report.output, tmp_path / "back.pth", overwrite=True)
        back = torch.load(tmp_path / "back.pth", weights_only=True)
        assert sorted(back) == names
        assert all(torch.equal(value, state["embed.weight"]) for value in back.values())


@pytest.mark.parametrize("verify", ["full", "none"])
def test_a_checkpoint_that_unties_is_refused(tmp_path, verify):
    state = {name: value.clone() for name, value in tied().state_dict().items()}
    state["head.weight"][0, 0] += 1
    refused(TIED, state, tmp_path, r"untied: head\.weight and embed\.weight should be equal", verify=verify)


# --- Results one to one -----------------------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x), x + 1


def staged(result):
    class Stage(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.fc, shape = dense(4, 4)
            self.fc.build(shape)
            self.built = True

        def call(self, x):
            return result(self, x)

    return lambda: Model(lambda self, x: self.stage(x)[0] if self.stage(x) else x, stage=(Stage(), (None, 4)))


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (lambda self, x: (self.fc(x),), "TensorFlow returns 1 result, torch 2 results"),
        (lambda self, x: [], "TensorFlow returns nothing, torch 2 results"),
        (lambda self, x: (self.fc(x), x + 1, x), "TensorFlow returns 3 results, torch 2 results"),
    ],
)
def test_a_stage_returns_as_many_results_as_torch(tmp_path, result, told):
    one = pair(
        staged(result),
        lambda: net(lambda self, x: self.stage(x)[0], stage=Two()),
        [Row("stage", kinds.STAGE), Row("stage.fc", kinds.DENSE)],
        normal(3, 4),
    )
    refused(one, one.build_torch().state_dict(), tmp_path, told)


def test_results_in_dicts_go_by_name(tmp_path):
    def model(names):
        class Named(keras.Model):
            def __init__(self):
                super().__init__()
                self.fc, shape = dense(4, 4)
                self.fc.build(shape)
                self.built = True

            def call(self, x):
                return dict(zip(names, (self.fc(x), 2 * x), strict=True))

        return Named

    torchs = lambda: net(lambda self, x: {"double": 2 * x, "scores": self.fc(x)}, fc=nn.Linear(4, 4))  # noqa: E731
    one = pair(model(["scores", "double"]), torchs, [Row("fc", kinds.DENSE)], normal(3, 4))
    report = converted(one, torchs().state_dict(), tmp_path)
    assert [output.name for output in report.numerical.outputs] == ["double", "scores"]
    wrong = replace(one, build_tf=model(["scores", "twice"]))
    refused(wrong, torchs().state_dict(), tmp_path, "`outputs`.*TensorFlow returns scores, twice, torch double, scores")


# --- Every variable matters -------------------------------------------------------------------------------------------


def test_a_variable_on_which_nothing_depends_is_unproven(tmp_path):
    torchs = lambda: net(lambda self, x: self.fc(x), fc=nn.Linear(4, 4), unused=nn.Linear(4, 4))  # noqa: E731
    build = lambda: Model(lambda self, x: self.fc(x), fc=dense(4, 4), unused=dense(4, 4))  # noqa: E731
    one = pair(build, torchs, [Row("{fc,unused}", kinds.DENSE)], normal(3, 4))
    report = converted(one, torchs().state_dict(), tmp_path)
    assert report.numerical
    assert not report.numerical.full
    assert set(report.numerical.unproven) == {"unused.kernel", "unused.bias"}
    assert "unused" in str(report)
    with registered(one):
        assert tf_models.load(report.output, require="lossless")
        with pytest.raises(tf_models.WeightsError, match="proven to the level partial"):
            tf_models.load(report.output, require="full")
        with pytest.raises(ValueError, match="require: expected one of"):
            tf_models.load(report.output, require="everything")


def gated(activation):
    made = net(lambda self, x: x + self.gate * self.b(activation(self.a(x))), a=nn.Linear(4, 8), b=nn.Linear(8, 4))
    made.gate = nn.Parameter(torch.zeros(4))
    return made


def gated_keras(activation):
    class Gated(keras.Model):
        def __init__(self):
            super().__init__()
            (self.a, one), (self.b, two) = dense(8, 4), dense(4, 8)
            self.a.build(one), self.b.build(two)
            self.gate = self.add_weight(shape=(4,), name="gate")
            self.built = True

        def call(self, x):
            return x + self.gate * self.b(activation(self.a(x)))

    return Gated


def test_a_gate_of_zero_hides_no_fault_behind_it(tmp_path):
    rows = [Row("{a,b}", kinds.DENSE), Row("gate", kinds.PARAMETER)]
    one = pair(gated_keras(ops.relu), lambda: gated(torch.relu), rows, normal(3, 4))
    report = converted(one, one.build_torch().state_dict(), tmp_path)
    assert report.numerical.full
    assert report.numerical.seeded == 1
    # The sum after the gate: with a gate of zero nothing of it reaches the output.
    wrong = replace(one, build_torch=scaled_gate)
    refused(wrong, one.build_torch().state_dict(), tmp_path, r"the output output does not.*other values in tensors")


def scaled_gate():
    made = gated(torch.relu)
    made._function = lambda self, x: x + 2 * self.gate * self.b(torch.relu(self.a(x)))
    return made


def test_the_file_says_what_was_proven(tmp_path):
    torchs = lambda: net(lambda self, x: self.fc(x), fc=nn.Linear(4, 4))  # noqa: E731
    build = lambda: Model(lambda self, x: self.fc(x), fc=dense(4, 4))  # noqa: E731
    one = pair(build, torchs, [Row("fc", kinds.DENSE)], normal(3, 4))
    for verify, level in (("none", "none"), ("lossless", "lossless"), ("full", "full"), ("train", "train")):
        report = converted(one, torchs().state_dict(), tmp_path, verify=verify)
        with h5py.File(report.output) as file:
            proof = json.loads(file.attrs["weightbridge_proof"])
        assert proof["level"] == level
        if level in ("full", "train"):
            assert (proof["layers"], proof["between"], proof["outputs"]) == (1, 1, 1)
            assert 0 < proof["worst"] < 1
            assert {"torch", "tensorflow", "keras", "numpy"} == set(proof["versions"])
        with registered(one):
            assert tf_models.load(report.output, require=None if level == "none" else level)


# --- Between the layers -----------------------------------------------------------------------------------------------


def between(tf_function, torch_function, units=12):
    """Two linear layers with something between them; both sides with an image of 2 x 3 and `units` / 6 channels."""
    return pair(
        lambda: Model(lambda self, x: self.b(tf_function(self.a(x))), a=dense(units, 4), b=dense(5, units)),
        lambda: net(lambda self, x: self.b(torch_function(self.a(x))), a=nn.Linear(4, units), b=nn.Linear(units, 5)),
        [Row("{a,b}", kinds.DENSE)],
        normal(7, 4),
    )


def shuffled(x):
    return ops.reshape(ops.transpose(ops.reshape(x, (-1, 2, 6)), (0, 2, 1)), (-1, 12))


@pytest.mark.parametrize(
    ("tf_function", "torch_function", "guess"),
    [
        (
            lambda x: ops.gelu(x, True),
            nn.functional.gelu,
            "torch applies exact GELU, TensorFlow GELU approximated by tanh",
        ),
        (lambda x: x, torch.relu, "torch applies ReLU, TensorFlow nothing"),
        (ops.silu, nn.functional.hardswish, "torch applies hard swish, TensorFlow SiLU"),
        (lambda x: ops.leaky_relu(x, 0.3), lambda x: nn.functional.leaky_relu(x, 0.2), r"LeakyReLU \(0\.2\)"),
        (shuffled, lambda x: x * 1, "the same values in another order"),
        (lambda x: ops.tanh(x), lambda x: x.tanh() * 0.5, "torch's is 0.5 times TensorFlow's"),
    ],
)
def test_what_lies_between_two_layers_is_named(tmp_path, tf_function, torch_function, guess):
    one = between(tf_function, torch_function)
    error = refused(one, one.build_torch().state_dict(), tmp_path, guess)
    assert "a agrees, the input of b does not" in str(error)
    assert all(error.report.numerical.layers)


def test_a_sum_that_is_left_out_is_named(tmp_path):
    one = pair(
        lambda: Model(lambda self, x: self.b(self.a(x)), a=dense(4, 4), b=dense(5, 4)),
        lambda: net(lambda self, x: self.b(self.a(x) + x), a=nn.Linear(4, 4), b=nn.Linear(4, 5)),
        [Row("{a,b}", kinds.DENSE)],
        normal(7, 4),
    )
    refused(one, one.build_torch().state_dict(), tmp_path, "a sum is left out: what reaches a is added in torch")


def test_what_a_layer_writes_into_its_own_input_is_not_taken_for_it(tmp_path):
    """torch's SiLU may work in place; hard swish in its place is not it."""

    def pair_of(activation):
        return pair(
            lambda: Model(
                lambda self, x: self.act(self.a(x)), a=dense(6, 4), act=(keras.layers.Activation(activation), None)
            ),
            lambda: net(lambda self, x: self.act(self.a(x)), a=nn.Linear(4, 6), act=nn.SiLU(inplace=True)),
            [Row("a", kinds.DENSE), Row("act", kinds.ACTIVATION)],
            normal(7, 4),
        )

    state = pair_of("silu").build_torch().state_dict()
    assert converted(pair_of("silu"), state, tmp_path).numerical.full
    refused(pair_of("hard_silu"), state, tmp_path, "first layer that differs: act")


def test_values_behind_a_mask_may_differ(tmp_path):
    """TensorFlow holds zeros at the places that are left out of the mean, torch what the layer gives there."""
    keep = np.array([[1.0], [1], [0], [1], [0]], np.float32)

    def torchs():
        return net(
            lambda self, x: (self.b(self.a(x)) * torch.from_numpy(keep).to(x.dtype)).sum(1),
            a=nn.Linear(4, 6),
            b=nn.Linear(6, 5),
        )

    def model():
        return Model(lambda self, x: ops.sum(self.b(self.a(x) * keep) * keep, 1), a=dense(6, 4), b=dense(5, 6))

    one = pair(model, torchs, [Row("{a,b}", kinds.DENSE)], normal(2, 5, 4))
    report = converted(one, torchs().state_dict(), tmp_path)
    assert report.numerical.full
    assert any("on which no output depends" in note for note in report.numerical.notes)


# --- Keras as people write it -----------------------------------------------------------------------------------------


def image_net():
    return net(
        lambda self, x: self.fc(self.bn(self.conv(x).relu()).mean((2, 3))).softmax(1),
        conv=nn.Conv2d(3, 6, 3, stride=2, padding=1),
        bn=nn.BatchNorm2d(6),
        fc=nn.Linear(6, 5),
    ).eval()


def image_rows(names):
    table = (kinds.CONV_2D, kinds.BATCH_NORM, kinds.DENSE)
    return [Row(path, kind, keras=name) for path, kind, name in zip(("conv", "bn", "fc"), table, names, strict=True)]


def image_layers(named):
    layers = keras.layers
    name = lambda text: {"name": text} if named else {}  # noqa: E731
    return [
        layers.ZeroPadding2D(1),
        layers.Conv2D(6, 3, strides=2, activation="relu", **name("conv")),
        layers.BatchNormalization(epsilon=1e-5, **name("bn")),
        layers.GlobalAveragePooling2D(),
        layers.Dense(5, activation="softmax", **name("fc")),
    ]


def sequential():
    return keras.Sequential([keras.Input((9, 12, 3)), *image_layers(False)])


def functional():
    x = inputs = keras.Input((None, None, 3))
    for layer in image_layers(True):
        x = layer(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize(("build", "names"), [(sequential, "124"), (functional, ("conv", "bn", "fc"))])
def test_activations_and_padding_may_stand_where_keras_has_them(tmp_path, build, names):
    one = pair(build, image_net, image_rows(names), normal(2, 3, 9, 12), channels_first=frozenset({"x"}))
    made = image_net().train()
    made(torch.randn(4, 3, 8, 8))
    report = converted(one, made.eval().state_dict(), tmp_path)
    assert report.numerical.full
    assert len(report.numerical.layers) == len(report.numerical.between) == 3


def test_a_padding_that_stands_apart_is_proven_too(tmp_path):
    def build():
        x = inputs = keras.Input((None, None, 3))
        x = keras.layers.ZeroPadding2D(((0, 2), (0, 2)))(x)
        for layer in image_layers(True)[1:]:
            x = layer(x)
        return keras.Model(inputs, x)

    one = pair(build, image_net, image_rows(("conv", "bn", "fc")), normal(2, 3, 9, 12), channels_first=frozenset({"x"}))
    refused(one, image_net().state_dict(), tmp_path, "the input of conv differs")


# --- Training ---------------------------------------------------------------------------------------------------------


def normalised(momentum):
    return lambda: Model(
        lambda self, x: self.b(self.bn(self.a(x))),
        a=dense(6, 4),
        bn=(keras.layers.BatchNormalization(epsilon=1e-5, **momentum), (None, 6)),
        b=dense(5, 6),
    )


def test_training_shows_a_momentum_and_names_what_keras_does_otherwise(tmp_path):
    torchs = lambda: net(  # noqa: E731
        lambda self, x: self.b(self.bn(self.a(x))), a=nn.Linear(4, 6), bn=nn.BatchNorm1d(6), b=nn.Linear(6, 5)
    )
    rows = [Row("{a,b}", kinds.DENSE), Row("bn", kinds.BATCH_NORM)]
    one = pair(normalised({"momentum": 0.9}), torchs, rows, normal(9, 4))
    report = converted(one, torchs().state_dict(), tmp_path, verify="train")
    assert report.numerical.full
    assert {"gradient of a.kernel", "bn.moving_mean after a step", "b.bias after 3 steps"} <= {
        compared.name for compared in report.numerical.trained
    }
    assert "1 moving variances: Keras takes a batch's variance by n, torch by n - 1" in report.numerical.by_design[0]
    default = replace(one, build_tf=normalised({}))
    refused(default, torchs().state_dict(), tmp_path, r"bn\.moving_mean after a step.*its momentum", verify="train")
    assert converted(default, torchs().state_dict(), tmp_path).numerical.full


def looking_up(layer, tied, padding_idx=3):
    """An embedding, whose table may be the output layer's too, against a Keras layer for it."""

    def torchs():
        made = net(
            lambda self, x: self.b(self.e(x)), e=nn.Embedding(9, 4, padding_idx), b=nn.Linear(4, 9, bias=not tied)
        )
        if tied:
            made.b.weight = made.e.weight
        return made

    def tied_call(self, x):
        return keras.ops.matmul(self.e(x), keras.ops.transpose(self.e.embeddings))

    def build():
        more = {} if tied else {"b": dense(9, 4)}
        return Model(tied_call if tied else lambda self, x: self.b(self.e(x)), e=(layer(), (None,)), **more)

    rows = [Row("e", kinds.EMBEDDING, tied="b.weight" if tied else "")]
    rows += [] if tied else [Row("b", kinds.DENSE)]
    return pair(build, torchs, rows, lambda config, rng: [Probe({"x": np.array([[0, 1, 2, 3], [3, 3, 4, 0]])})])


@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_that_keras_trains_throughout(tied, tmp_path):
    """Torch's padding_idx keeps a row from what looking it up would train; Keras's own layer knows no such thing."""
    one = looking_up(lambda: layers.Embedding(9, 4, padding_idx=3), tied)
    state = one.build_torch().state_dict()
    assert converted(one, state, tmp_path, verify="train").numerical.full
    plain = looking_up(lambda: keras.layers.Embedding(9, 4), tied)
    told = r"its padding_idx is None, torch's 3: tf_models\.layers\.Embedding has it"
    refused(plain, state, tmp_path, told, verify="train")
    assert converted(plain, state, tmp_path).numerical.full, "which is not for inference"


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("kept", "told"), [(7, None), (2, "its padding_idx is 2, torch's 7")])
def test_a_row_that_keras_keeps_is_the_one_that_torch_keeps(tmp_path, kept, told, sparse):
    """The probe looks row 7 up, and not row 2."""
    one = pair(
        lambda: Model(
            lambda self, x: self.b(self.e(x)), e=(layers.Embedding(9, 4, padding_idx=kept), (None,)), b=dense(5, 4)
        ),
        lambda: net(
            lambda self, x: self.b(self.e(x)), e=nn.Embedding(9, 4, padding_idx=7, sparse=sparse), b=nn.Linear(4, 5)
        ),
        [Row("e", kinds.EMBEDDING), Row("b", kinds.DENSE)],
        lambda config, rng: [Probe({"x": np.array([[0, 1, 7, 0], [3, 3, 4, 0]])})],
    )
    if told is None:
        assert converted(one, one.build_torch().state_dict(), tmp_path, verify="train").numerical.full
    else:
        refused(one, one.build_torch().state_dict(), tmp_path, told, verify="train")


def test_a_tied_tensor_is_trained_by_whichever_name_the_table_has(tmp_path):
    """Torch names a shared parameter by the module that comes first, which is the row's or the other."""

    def head_first():
        made = net(
            lambda self, x: self.head(self.embed(x).tanh()), head=nn.Linear(6, 300, False), embed=nn.Embedding(300, 6)
        )
        made.head.weight = made.embed.weight
        return made

    for build in (tied, head_first):
        report = converted(replace(TIED, build_torch=build), build().state_dict(), tmp_path, verify="train")
        assert [one.name for one in report.numerical.trained if one.name.startswith("gradient")]


def test_training_shows_a_gradient_that_is_stopped(tmp_path):
    def build():
        return Model(lambda self, x: self.b(ops.relu(ops.stop_gradient(self.a(x)))), a=dense(6, 4), b=dense(5, 6))

    torchs = lambda: net(lambda self, x: self.b(self.a(x).relu()), a=nn.Linear(4, 6), b=nn.Linear(6, 5))  # noqa: E731
    one = pair(build, torchs, [Row("{a,b}", kinds.DENSE)], normal(9, 4))
    refused(one, torchs().state_dict(), tmp_path, r"training: gradient of a\.kernel", verify="train")


# --- Pairs that prove nothing, or cannot be run -----------------------------------------------------------------------


def test_outputs_that_do_not_vary_prove_nothing(tmp_path):
    one = pair(
        lambda: Model(lambda self, x: self.fc(x) * 0, fc=dense(4, 4)),
        lambda: net(lambda self, x: self.fc(x) * 0, fc=nn.Linear(4, 4)),
        [Row("fc", kinds.DENSE)],
        normal(3, 4),
    )
    refused(one, one.build_torch().state_dict(), tmp_path, "`probes` of small prove nothing")


def test_other_numbers_of_outputs_are_told_by_the_field(tmp_path):
    one = pair(
        lambda: Model(lambda self, x: (self.fc(x), x), fc=dense(4, 4)),
        lambda: net(lambda self, x: self.fc(x), fc=nn.Linear(4, 4)),
        [Row("fc", kinds.DENSE)],
        normal(3, 4),
    )
    refused(one, one.build_torch().state_dict(), tmp_path, "`outputs`.*TensorFlow returns 2 results, torch 1 result")


def test_a_reference_that_does_not_run_in_float64_is_told(tmp_path):
    def forward(self, x):
        if x.dtype == torch.float64:
            raise RuntimeError("single precision only")
        return self.fc(x)

    one = pair(
        lambda: Model(lambda self, x: self.fc(x), fc=dense(4, 4)),
        lambda: net(forward, fc=nn.Linear(4, 4)),
        [Row("fc", kinds.DENSE)],
        normal(3, 4),
    )
    told = r"reference of small \(build_torch\) fails on its probe inputs in float64.*single precision only"
    refused(one, one.build_torch().state_dict(), tmp_path, told)


def test_without_memory_for_a_copy_the_proof_is_the_same(tmp_path, monkeypatch):
    one = pair(
        functional, image_net, image_rows(("conv", "bn", "fc")), normal(2, 3, 9, 12), channels_first=frozenset({"x"})
    )
    state = image_net().state_dict()
    usual = converted(one, state, tmp_path).numerical
    monkeypatch.setattr("converter.proof.asking.available_memory", lambda: 0)
    assert converted(one, state, tmp_path).numerical == usual


def test_the_report_says_where_torchs_own_loader_was_not_used(tmp_path):
    torchs = lambda: net(lambda self, x: self.fc(x), fc=nn.Linear(4, 4))  # noqa: E731
    build = lambda: Model(lambda self, x: self.fc(x), fc=dense(4, 4))  # noqa: E731
    one = pair(build, torchs, [Row("fc", kinds.DENSE)], normal(3, 4))
    report = converted(one, {"state_dict": torchs().state_dict(), "loss": np.float64(0.5)}, tmp_path)
    assert any("torch's own loader refuses this file" in note for note in report.numerical.notes)


def test_another_configuration_for_a_probe_is_run_with_the_same_weights(tmp_path):
    """A factor that the configuration names, at another value."""

    def probes(config, rng):
        x = rng.standard_normal((3, 4), dtype=np.float32)
        return [Probe({"x": x}), Probe({"x": x}, config={"factor": 5})]

    def torchs(factor):
        return net(lambda self, x: self.fc(x) * factor, fc=nn.Linear(4, 4))

    def build(wrong=0):
        return lambda factor: Model(lambda self, x: self.fc(x) * (wrong or factor), fc=dense(4, 4))

    one = pair(
        build(), torchs, [Row("fc", kinds.DENSE)], probes, options={"factor": converter.Option(2, "of the output")}
    )
    assert converted(one, torchs(2).state_dict(), tmp_path).numerical.full
    refused(replace(one, build_tf=build(2)), torchs(2).state_dict(), tmp_path, "fc agrees, the output output does not")
