"""What may hide a fault from the numerical proof, or a right model from being accepted: found by trying to break it."""

from collections import namedtuple
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
import torch.nn.functional as F
from torch import nn

from converter import Drop, Mapping, Probe, Row, kinds
from tests.support.networks import Model, converted, dense, net, normal, pair, refused

ops = keras.ops
AB = [Row("{a,b}", kinds.DENSE)]


def two(tf_call, torch_call, probes=None, units=12, outputs=12, **more):
    """Two linear layers, and what each side makes of them."""
    return pair(
        lambda: Model(tf_call, a=dense(units, 4), b=dense(outputs, units)),
        lambda: net(torch_call, a=nn.Linear(4, units), b=nn.Linear(units, outputs)),
        AB,
        probes or normal(7, 4),
        **more,
    )


def state(one):
    return one.build_torch().state_dict()


@pytest.mark.parametrize(
    "drawn",
    [lambda x: F.dropout(x, 0.5), lambda x: x + 0.1 * torch.randn_like(x), lambda x: F.rrelu(x, training=True)],
)
def test_a_reference_that_draws_random_numbers_shows_nothing(tmp_path, drawn):
    one = two(lambda self, x: self.b(self.a(x)), lambda self, x: self.b(drawn(self.a(x).relu())))
    refused(one, state(one), tmp_path, "draws random numbers")


def test_a_layer_that_the_whole_does_not_call_is_not_proven_by_itself(tmp_path):
    one = two(
        lambda self, x: (self.a(x), ops.zeros_like(self.a(x))),
        lambda self, x: (self.a(x), torch.relu(self.b(self.a(x)) - 100)),
    )
    report = converted(one, state(one), tmp_path)
    assert set(report.numerical.unproven) == {"b.kernel", "b.bias"}


def test_what_is_compiled_is_looked_into(tmp_path):
    def build():
        model = Model(None, a=dense(12, 4), b=dense(4, 12))
        compiled = tf.function(lambda x: x + 1e-3 * model.b(ops.gelu(model.a(x), True)))
        model._function = lambda self, x: compiled(x)
        return model

    torchs = lambda: net(  # noqa: E731
        lambda self, x: x + 1e-3 * self.b(F.gelu(self.a(x))), a=nn.Linear(4, 12), b=nn.Linear(12, 4)
    )
    one = pair(build, torchs, AB, normal(7, 4))
    refused(one, state(one), tmp_path, "torch applies exact GELU, TensorFlow GELU approximated by tanh")


def test_a_saturated_output_hides_no_input_that_differs(tmp_path):
    def large(made):
        with torch.no_grad():
            made.a.weight.mul_(6)
            made.b.weight.abs_().mul_(2)
            made.b.bias.sub_(1)
        return made.state_dict()

    one = two(
        lambda self, x: ops.clip(self.b(ops.relu(self.a(x))), -1, 1),
        lambda self, x: F.hardtanh(self.b(F.relu6(self.a(x)))),
    )
    refused(one, large(one.build_torch()), tmp_path, "the input of b does not")


def test_a_gate_that_is_nearly_closed_is_opened(tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 4)
            self.gamma = nn.Parameter(torch.full((4,), 1e-6))

        def forward(self, x):
            return x + self.gamma * F.gelu(self.b(self.a(x)))

    class Keras(keras.Model):
        def __init__(self):
            super().__init__()
            (self.a, one), (self.b, two) = dense(12, 4), dense(4, 12)
            self.a.build(one)
            self.b.build(two)
            self.gamma = self.add_weight(shape=(4,), name="gamma")
            self.built = True

        def call(self, x):
            return x + self.gamma * ops.relu(self.b(self.a(x)))

    one = pair(Keras, Scaled, [*AB, Row("gamma", kinds.PARAMETER)], normal(7, 4))
    refused(one, state(one), tmp_path, "the output output does not")


def test_whole_numbers_are_equal(tmp_path):
    one = two(
        lambda self, x: (self.b(self.a(x)), ops.argmax(self.a(x), -1) + 10_000_001),
        lambda self, x: (self.b(self.a(x)), self.a(x).argmax(-1) + 10_000_000),
    )
    refused(one, state(one), tmp_path, "output 1: 7 of 7 whole numbers differ")


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_an_epsilon_shows_whatever_the_size_of_the_inputs(tmp_path, scale):
    one = pair(
        lambda: Model(lambda self, x: self.n(x), n=(keras.layers.LayerNormalization(epsilon=1e-6), (None, 6))),
        lambda: net(lambda self, x: self.n(x), n=nn.LayerNorm(6)),
        [Row("n", kinds.LAYER_NORM)],
        lambda config, rng: [Probe({"x": scale * rng.standard_normal((7, 6), dtype=np.float32)})],
    )
    refused(one, state(one), tmp_path, "n: error.*suspect its epsilon")


class Attending(nn.Module):
    """A layer behind an attention with a mask, and an output on which it has next to no influence."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 5)

    def forward(self, x, padded):
        y, _ = self.a(x, x, x, key_padding_mask=padded)
        return 1e-5 * self.b(x + 0.01 * y) + x[..., :5]


@pytest.mark.parametrize("mask", ["used", "forgotten", "turned around"])
def test_a_mask_is_given_as_torch_gives_it(tmp_path, mask):
    class Keras(keras.Model):
        def __init__(self):
            super().__init__()
            self.a, (self.b, shape) = keras.layers.MultiHeadAttention(2, 4), dense(5, 8)
            self.a.build((None, None, 8), (None, None, 8))
            self.b.build(shape)
            self.built = True

        def call(self, x, padded):
            padded = padded[:, None, :]
            masks = {"used": ops.logical_not(padded), "forgotten": None, "turned around": padded}
            y = self.a(x, x, attention_mask=masks[mask])
            return 1e-5 * self.b(x + 0.01 * y) + x[..., :5]

    def probes(config, rng):
        padded = np.zeros((3, 6), bool)
        padded[:2, 4:] = True
        return [Probe({"x": rng.standard_normal((3, 6, 8), dtype=np.float32), "padded": padded})]

    one = pair(Keras, Attending, [Row("a", kinds.MULTIHEAD_ATTENTION), Row("b", kinds.DENSE)], probes)
    if mask == "used":
        assert converted(one, state(one), tmp_path).numerical.full
    else:
        refused(one, state(one), tmp_path, "the input of . (differs|does not)")


def test_results_stand_at_torchs_places(tmp_path):
    one = two(lambda self, x: (None, self.b(self.a(x))), lambda self, x: (self.b(self.a(x)), None))
    refused(one, state(one), tmp_path, "TensorFlow returns something at place 1, torch at 0")


def test_a_kind_names_a_result_that_torch_has(tmp_path):
    one = two(lambda self, x: self.b(self.a(x)), lambda self, x: self.b(self.a(x)))
    one = replace(one, mapping=lambda config: Mapping([Row("{a,b}", replace(kinds.DENSE, returns=(1,)))]))
    refused(one, state(one), tmp_path, "`returns` of the kind DENSE names result 1, but torch's module returns 1")


def test_an_input_of_another_size_is_to_blame_where_what_follows_differs(tmp_path):
    def torchs(self, x):
        y = self.a(x)
        return y * self.b(y.mean(0, keepdim=True)).sigmoid()

    one = two(lambda self, x: self.a(x) * ops.sigmoid(self.b(self.a(x))), torchs)
    refused(
        one, state(one), tmp_path, r"the input of b does not \(TensorFlow's has shape \(7, 12\), torch's \(1, 12\)\)"
    )


def test_a_function_that_the_probe_does_not_bend_is_bent(tmp_path):
    one = two(lambda self, x: self.b(ops.relu(self.a(x))), lambda self, x: self.b(F.relu6(self.a(x))))
    refused(one, state(one), tmp_path, "a agrees, the input of b does not .* give 8 times as much")


@pytest.mark.parametrize("forgotten", ["all", "gelu"])
def test_what_lies_behind_a_dead_layer_is_compared(tmp_path, forgotten):
    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c, self.o = (nn.Linear(8, 8) for _ in range(4))
            with torch.no_grad():
                self.b.bias.sub_(100)

        def forward(self, x):
            return self.o(self.b(F.gelu(self.a(x))).relu() + self.c(x))

    def call(self, x):
        inside = 0.3 * x if forgotten == "all" else ops.tanh(self.a(x))
        self.a(x)
        return self.o(ops.relu(self.b(inside)) + self.c(x))

    rows = [Row("{a,b,c,o}", kinds.DENSE)]
    one = pair(lambda: Model(call, **{name: dense(8, 8) for name in "abco"}), Three, rows, normal(7, 8))
    refused(one, state(one), tmp_path, "the input of b does not")


def test_another_epsilon_than_torchs_default_of_the_dtype(tmp_path):
    """torch's RMSNorm takes the epsilon of the inputs' dtype, which is another in float64."""

    def build(epsilon):
        def call(self, x):
            y = self.a(x)
            return self.b(y * ops.rsqrt(ops.mean(y**2, -1, keepdims=True) + epsilon))

        return lambda: Model(call, a=dense(12, 4), b=dense(12, 12))

    def probes(config, rng):
        return [Probe({"x": 3e-4 * rng.standard_normal((7, 4), dtype=np.float32)})]

    def torchs():
        made = net(lambda self, x: self.b(F.rms_norm(self.a(x), (12,))), a=nn.Linear(4, 12), b=nn.Linear(12, 12))
        with torch.no_grad():
            made.a.bias.zero_()
        return made

    wrong = pair(build(0.0), torchs, AB, probes)
    refused(wrong, torchs().state_dict(), tmp_path, "the input of b does not")
    right = pair(build(float(np.finfo(np.float32).eps)), torchs, AB, probes)
    assert converted(right, torchs().state_dict(), tmp_path).numerical


def test_a_reference_that_computes_something_else_in_float64(tmp_path):
    def torchs(self, x):
        y = self.a(x)
        return self.b(y.relu() if y.dtype == torch.float32 else 3 * y)

    one = two(lambda self, x: self.b(ops.relu(self.a(x))), torchs)
    refused(one, state(one), tmp_path, "computes something else in float64|the input of b does not")
    # Keras computes what float64 does, so nothing differs from the truth, and the truth is another network.
    as_float64 = two(lambda self, x: self.b(3 * self.a(x)), torchs)
    refused(as_float64, state(as_float64), tmp_path, "build_torch computes something else in float64")


def test_whole_numbers_hide_no_fault_before_them(tmp_path):
    one = two(
        lambda self, x: {"i": ops.argmax(self.b(ops.tanh(self.a(x))), -1), "y": self.b(ops.tanh(self.a(x)))},
        lambda self, x: {"i": self.b(self.a(x).relu()).argmax(-1), "y": self.b(self.a(x).relu())},
    )
    refused(one, state(one), tmp_path, "a agrees, the input of b does not")


def test_a_gate_that_is_closed_in_part_is_opened(tmp_path):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a = nn.Linear(4, 8)
            self.gate = nn.Parameter(torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1]))

        def forward(self, x):
            return self.a(x).tanh() * self.gate

    class Keras(keras.Model):
        def __init__(self):
            super().__init__()
            (self.a, shape) = dense(8, 4)
            self.a.build(shape)
            self.gate = self.add_weight(shape=(8,), name="gate")
            self.built = True

        def call(self, x):
            y = ops.tanh(self.a(x))
            return ops.concatenate([y[..., 3::-1], y[..., 4:]], -1) * self.gate

    one = pair(Keras, Gated, [Row("a", kinds.DENSE), Row("gate", kinds.PARAMETER)], normal(7, 4))
    refused(one, state(one), tmp_path, "does not")


def test_large_channels_do_not_excuse_small_ones(tmp_path):
    one = two(
        lambda self, x: ops.concatenate([1.001 * self.b(self.a(x)), 1e8 * self.a(x)], -1),
        lambda self, x: torch.cat([self.b(self.a(x)), 1e8 * self.a(x)], -1),
        normal(64, 4),
    )
    refused(one, state(one), tmp_path, "the output output does not")


def test_training_sees_what_torch_does_not_train(tmp_path):
    def torchs():
        made = net(lambda self, x: self.b(self.a(x)), a=nn.Linear(4, 12), b=nn.Linear(12, 12))
        made.a.requires_grad_(False)
        return made

    one = pair(
        lambda: Model(lambda self, x: self.b(self.a(x)), a=dense(12, 4), b=dense(12, 12)), torchs, AB, normal(7, 4)
    )
    refused(one, torchs().state_dict(), tmp_path, "torch does not train its tensor", verify="train")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"outputs": ("p", "q")}, "`outputs` of small names 2 outputs, but both sides return 1$"),
        ({"probes": lambda config, rng: [Probe([np.zeros((3, 4))])]}, "the inputs of a Probe are a dict of arrays"),
        ({"probes": lambda config, rng: [Probe({"x": np.array([["a"]])})]}, "the input x is no array of numbers"),
        ({"probes": lambda config, rng: [Probe({"x": np.ones((3, 4))}, part="a")]}, "the part a is no stage"),
    ],
)
def test_the_field_at_fault_is_named(tmp_path, changes, told):
    one = two(lambda self, x: self.b(self.a(x)), lambda self, x: self.b(self.a(x)))
    refused(replace(one, **changes), state(one), tmp_path, told)


def test_what_is_returned_is_listed_where_outputs_names_fewer(tmp_path):
    def both(self, x):
        return {"a": self.a(x), "b": (self.b(self.a(x)), self.a(x))}

    one = replace(two(both, both), outputs=("p", "q"))
    refused(one, state(one), tmp_path, r"names 2 outputs, but both sides return 3: a, b\.0, b\.1")


# --- Right, and accepted ----------------------------------------------------------------------------------------------


def test_tensors_that_are_one_keep_one_value_when_others_are_tried(tmp_path):
    def torchs():
        made = net(
            lambda self, x: self.n2(self.a(self.n1(x))), n1=nn.LayerNorm(4), a=nn.Linear(4, 4), n2=nn.LayerNorm(4)
        )
        made.n2.weight, made.n2.bias = made.n1.weight, made.n1.bias
        return made

    def build():
        norm = keras.layers.LayerNormalization(epsilon=1e-5), (None, 4)
        return Model(lambda self, x: self.n1(self.a(self.n1(x))), n1=norm, a=dense(4, 4))

    rows = [Row("n1", kinds.LAYER_NORM), Row("a", kinds.DENSE)]
    drops = [Drop("n2.weight", "n1's", equals="n1.weight"), Drop("n2.bias", "n1's", equals="n1.bias")]
    assert converted(pair(build, torchs, [*rows, *drops], normal(7, 4)), torchs().state_dict(), tmp_path).numerical


@pytest.mark.parametrize("units", [1, 2])
@pytest.mark.parametrize("times", range(0, 14, 3))
def test_inputs_of_few_values_are_not_refused_by_luck(tmp_path, units, times):
    def between(a, x):
        x = a(x)
        for _ in range(times):
            x = x * 1.01
        return (x + 100.3 + 0.37) - 100.1

    one = two(
        lambda self, x: self.b(between(self.a, x)), lambda self, x: self.b(between(self.a, x)), normal(1, 4), units
    )
    assert converted(one, state(one), tmp_path).numerical


def test_inputs_go_by_name_into_a_functional_model(tmp_path):
    def build():
        left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
        a, b = keras.layers.Dense(6, name="a"), keras.layers.Dense(6, name="b")
        return keras.Model({"left": left, "right": right}, ops.tanh(a(left)) - b(right))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(4, 6), nn.Linear(4, 6)

        def forward(self, right, left):
            return self.a(left).tanh() - self.b(right)

    def probes(config, rng):
        return [Probe({"right": rng.standard_normal((3, 4)), "left": rng.standard_normal((3, 4))})]  # in float64

    one = pair(build, Net, AB, probes)
    assert converted(one, state(one), tmp_path).numerical.full


Named = namedtuple("Named", "x y")


def test_results_in_named_tuples(tmp_path):
    class Leaf(nn.Linear):
        def forward(self, x):
            return Named(x, super().forward(x))

    one = pair(
        lambda: Model(lambda self, x: self.b(ops.tanh(self.a(x))), a=dense(6, 4), b=dense(5, 6)),
        lambda: net(lambda self, x: self.b(self.a(x).y.tanh()), a=Leaf(4, 6), b=nn.Linear(6, 5)),
        [Row("a", replace(kinds.DENSE, returns=(1,))), Row("b", kinds.DENSE)],
        normal(3, 4),
    )
    assert converted(one, state(one), tmp_path).numerical.full


def test_training_leaves_frozen_parameters_and_pairs_outputs_by_name(tmp_path):
    def torchs():
        made = net(
            lambda self, x: {"second": self.b(x), "first": self.a(x).tanh()}, a=nn.Linear(4, 5), b=nn.Linear(4, 6)
        )
        made.a.requires_grad_(False)
        return made

    class Keras(keras.Model):
        def __init__(self):
            super().__init__()
            (self.a, one), (self.b, two) = dense(5, 4), dense(6, 4)
            self.a.build(one)
            self.b.build(two)
            self.a.trainable = False
            self.built = True

        def call(self, x):
            return {"first": ops.tanh(self.a(x)), "second": self.b(x)}

    one = pair(Keras, torchs, AB, normal(7, 4))
    report = converted(one, state(one), tmp_path, verify="train")
    assert report.numerical.full
    assert {compared.name.split()[-1] for compared in report.numerical.trained if "gradient" in compared.name} == {
        "b.kernel",
        "b.bias",
    }


def test_one_layer_for_two_inputs_in_another_order(tmp_path):
    def swapped(self, x, y):
        second = ops.tanh(self.a(y))
        return self.b(ops.tanh(self.a(x)) - 0.5 * second)

    def probes(config, rng):
        return [Probe({name: rng.standard_normal((7, 4), dtype=np.float32) for name in "xy"})]

    class Siamese(Model):
        def call(self, x, y):
            return swapped(self, x, y)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 12)

        def forward(self, x, y):
            return self.b(self.a(x).tanh() - 0.5 * self.a(y).tanh())

    one = pair(lambda: Siamese(None, a=dense(12, 4), b=dense(12, 12)), Net, AB, probes)
    assert converted(one, state(one), tmp_path).numerical.full


def test_keywords_of_a_stage_go_by_name(tmp_path):
    class Stage(keras.layers.Layer):
        def call(self, x, pos=None, scale=None):
            return x * scale + pos

    class Shifted(nn.Module):
        def forward(self, x, scale=None, pos=None):
            return x * scale + pos

    class Keras(keras.Model):
        def __init__(self):
            super().__init__()
            (self.a, shape), self.st = dense(4, 4), Stage()
            self.a.build(shape)
            self.built = True

        def call(self, x):
            y = self.a(x)
            return self.st(y, pos=ops.tanh(y), scale=ops.sigmoid(y))

    one = pair(
        Keras,
        lambda: net(
            lambda self, x: self.st(self.a(x), scale=self.a(x).sigmoid(), pos=self.a(x).tanh()),
            a=nn.Linear(4, 4),
            st=Shifted(),
        ),
        [Row("a", kinds.DENSE), Row("st", kinds.STAGE)],
        normal(7, 4),
    )
    assert converted(one, state(one), tmp_path).numerical


def test_casts_to_half_types_round_on_both_sides(tmp_path):
    one = two(
        lambda self, x: self.b(ops.cast(ops.cast(self.a(x), "float16"), "float32")),
        lambda self, x: self.b(self.a(x).half().to(torch.float32)),
    )
    assert converted(one, state(one), tmp_path).numerical


def test_whole_numbers_that_are_cut_off(tmp_path):
    one = two(
        lambda self, x: (self.b(self.a(x)), ops.cast(1e5 * self.a(x), "int32")),
        lambda self, x: (self.b(self.a(x)), (1e5 * self.a(x)).to(torch.int32)),
        normal(50, 4),
    )
    assert converted(one, state(one), tmp_path).numerical


def test_no_values_at_all_in_a_normalisation(tmp_path):
    def probes(config, rng):
        return [Probe({"x": rng.standard_normal((n, 6), dtype=np.float32)}) for n in (0, 5)]

    one = pair(
        lambda: Model(lambda self, x: self.n(x), n=(keras.layers.LayerNormalization(epsilon=1e-5), (None, 6))),
        lambda: net(lambda self, x: self.n(x), n=nn.LayerNorm(6)),
        [Row("n", kinds.LAYER_NORM)],
        probes,
    )
    assert converted(one, state(one), tmp_path).numerical.full


def test_a_name_that_is_no_input_is_noted(tmp_path):
    one = two(lambda self, x: self.b(self.a(x)), lambda self, x: self.b(self.a(x)), channels_first=frozenset({"xx"}))
    report = converted(one, state(one), tmp_path)
    assert report.numerical.full
    assert "names xx, neither an input nor an output" in str(report)


def test_mapping_refuses_what_is_no_row():
    with pytest.raises(ValueError, match="a mapping has rows Row"):
        Mapping([("a", kinds.DENSE)])
