"""Pairs of a user's own: what the proof demands of them, and models of other shapes than SAM's."""

import threading

import keras
import numpy as np
import pytest
import torch
from torch import nn

import converter
import tf_models
import torch_refs
from converter import Mapping, Option, Pair, Probe, Row, kinds, nested
from converter.checkpoints.checkpoint import Checkpoint
from converter.files.atomic import scratch
from converter.planning.choosing import find_reading
from converter.proof.comparing import compare
from tests.support.checkpoints import save
from tests.support.pairs import registered
from tests.support.small_sam import OPTIONS, decoder_state, sam_state


def probe(*shape, name="input"):
    return lambda config, rng: [Probe({name: rng.standard_normal(shape, dtype=np.float32)})]


def functional(*layers, shape):
    def build(**config):
        x = inputs = keras.Input(shape)
        for layer in layers:
            x = layer()(x)
        return keras.Model(inputs, x)

    return build


class Used(nn.Module):
    """A linear layer whose weight is used without a call of the layer."""

    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 3)

    def forward(self, x):
        return nn.functional.linear(x, self.l.weight, self.l.bias)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.MultiheadAttention(12, 3)

    def forward(self, x):
        hidden = torch.triu(torch.full((5, 5), float("-inf"), dtype=x.dtype), 1)
        return self.a(x, x, x, None, False, hidden)[0]


class KerasAttention(keras.Model):
    def __init__(self):
        super().__init__()
        self.a = keras.layers.MultiHeadAttention(3, 4)

    def call(self, x):  # (L, N, C), as torch has it
        x = keras.ops.swapaxes(x, 0, 1)
        return keras.ops.swapaxes(self.a(x, x, use_causal_mask=True), 0, 1)


def build_attention(**config):
    model = KerasAttention()
    model.a.build((None, None, 12), (None, None, 12))
    model.built = True
    return model


def pair(name, build_tf, build_torch, mapping, probes, **more):
    return Pair(name, lambda config: mapping, probes, build_tf=build_tf, build_torch=build_torch, **more)


def converted(one, module, folder, **more):
    torch.manual_seed(0)
    output = folder / "out.weights.h5"
    with registered(one):
        report = converter.convert(one.name, save(module.state_dict(), folder), output, **more)
        return report, tf_models.load(output)


def linear(**config):
    return nn.Sequential(nn.Linear(4, 3))


LINEAR = Mapping([Row("0", kinds.DENSE)])


def test_a_model_with_dropout_is_loaded_again(tmp_path):
    build = functional(lambda: keras.layers.Dense(3, name="0"), lambda: keras.layers.Dropout(0.5), shape=(4,))
    one = pair("dropout", build, linear, LINEAR, probe(5, 4))
    report, model = converted(one, linear(), tmp_path)
    assert report.numerical
    assert len(model.weights) == 2


def test_a_layer_with_dots_in_its_name(tmp_path):
    def net(**config):
        return nn.ModuleDict({"features": nn.Sequential(nn.Linear(4, 3))})["features"]

    build = functional(lambda: keras.layers.Dense(3, name="head.0"), shape=(4,))
    one = pair("dotted", build, linear, Mapping([Row("0", kinds.DENSE, "head.0")]), probe(5, 4))
    report, _ = converted(one, net(), tmp_path)
    assert len(report.numerical.layers) == 1


def test_packed_attention_as_it_is_called(tmp_path):
    one = pair(
        "attention",
        build_attention,
        Attention,
        Mapping([Row("a", kinds.MULTIHEAD_ATTENTION)]),
        probe(5, 2, 12, name="x"),
    )
    report, _ = converted(one, Attention(), tmp_path)
    assert report.numerical
    assert [layer.name for layer in report.numerical.layers] == ["a"]


def test_a_tuple_option_is_recorded_and_verified(tmp_path):
    build = functional(lambda: keras.layers.Dense(3, name="0"), shape=(4,))
    one = pair(
        "tupled", lambda k: build(), lambda k: linear(), LINEAR, probe(5, 4), options={"k": Option((3, 3), "a size")}
    )
    report, _ = converted(one, linear(), tmp_path, options={"k": "2,3"})
    assert report.config == {"k": [2, 3]}
    with registered(one):
        assert converter.verify(one.name, tmp_path / "ckpt.pth", report.output)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.l(x) * self.scale


class KerasScaled(keras.Model):
    def __init__(self):
        super().__init__()
        self.l = keras.layers.Dense(3)
        self.l.build((None, 4))
        self.scale = self.add_weight(name="scale", shape=())
        self.built = True

    def call(self, x):
        return self.l(x) * self.scale


def test_a_parameter_without_axes_has_a_place_in_the_file(tmp_path):
    table = Mapping([Row("l", kinds.DENSE), Row("scale", kinds.PARAMETER)])
    one = pair("scaled", lambda **config: KerasScaled(), lambda **config: Scaled(), table, probe(5, 4, name="x"))
    report, model = converted(one, Scaled(), tmp_path)
    assert report.lossless
    assert report.numerical
    assert float(model.scale) == 1.5


def test_no_probes_prove_nothing(tmp_path):
    build = functional(lambda: keras.layers.Dense(3, name="0"), shape=(4,))
    one = pair("unprobed", build, linear, LINEAR, lambda config, rng: [])
    with pytest.raises(converter.ConversionError, match="`probes` of unprobed is empty"):
        converted(one, linear(), tmp_path)
    with registered(one), pytest.raises(converter.UsageError, match="level is one of train, full-size, full, lossless"):
        converter.verify(one.name, tmp_path / "ckpt.pth", tmp_path / "o.weights.h5", level="none")


def test_a_layer_that_torch_does_not_call_is_proven_by_the_outputs(tmp_path):
    build = functional(lambda: keras.layers.Dense(3, name="l"), shape=(4,))
    one = pair("used", build, Used, Mapping([Row("l", kinds.DENSE)]), probe(5, 4, name="x"))
    report, _ = converted(one, Used(), tmp_path)
    assert not report.numerical.layers
    assert report.numerical.full


def test_a_layer_that_fails_on_torch_s_input_is_named(tmp_path):
    class Picky(keras.layers.Dense):
        def call(self, x):
            raise RuntimeError("not today")

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.l = Picky(3)
            self.l.build((None, 4))
            self.built = True

        def call(self, x):
            return keras.ops.matmul(x, self.l.kernel) + self.l.bias

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(4, 3)

        def forward(self, x):
            return self.l(x)

    one = pair("picky", Model, Net, Mapping([Row("l", kinds.DENSE)]), probe(5, 4, name="x"))
    with pytest.raises(converter.ProofError, match=r"l: the TensorFlow layer fails on torch's input.*not today"):
        converted(one, Net(), tmp_path)


def test_infinities_of_other_signs_and_later_parts_are_compared():
    def same(ours, torchs, truth):
        ours, torchs, truth = (np.array(value, np.float64) for value in (ours, torchs, truth))
        return compare("y", ours, torchs, truth, [np.zeros_like(truth)])

    assert not same([np.inf], [-np.inf], [-np.inf])
    assert same([-np.inf, np.nan], [-np.inf, np.nan], [-np.inf, np.nan])
    assert not same([1.0], [np.inf], [1.0]), "torch's own result overflows"
    assert [part for _, part in nested.flat((1, [2, (3, 4)], {"a": 5}, None))] == [1, 2, 3, 4, 5]


def test_scratch_folders_do_not_race(tmp_path):
    errors = []

    def work():
        try:
            for _ in range(100):
                with scratch(tmp_path, "name"):
                    pass
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert list(tmp_path.iterdir()) == []


def test_each_missing_tensor_is_told_as_just_that(tmp_path):
    """Sizes are read from some of them; a wrong guess must not drown the one thing that is missing."""
    state = decoder_state()
    wrong = {}
    for name in state:
        checkpoint = save({key: value for key, value in state.items() if key != name}, tmp_path, "one.pth")
        with Checkpoint(checkpoint) as source:
            reading = find_reading(source, "sam_decoder", {})
        told = reading.missing or [name]  # whether a bias must be there, the Keras model says later
        if (told, reading.unexpected, reading.doubled, reading.dialect.name) != ([name], [], {}, "official"):
            wrong[name] = (reading.missing[:3], reading.unexpected[:3], list(reading.doubled)[:3])
    assert wrong == {}


@pytest.mark.parametrize("model", ["deformable_attention_2d", "auto"])
def test_an_option_that_the_checkpoint_determines_is_compared(model, tmp_path):
    state = torch_refs.create("deformable_attention_2d", dim=16, heads=2, dim_head=8).state_dict()
    torch.save(state, tmp_path / "c.pth")
    assert converter.plan(model, tmp_path / "c.pth", {"heads": "2"}).config["heads"] == 2
    with pytest.raises(converter.UsageError, match=r"option heads is 4, but the checkpoint is of a .* with heads 2"):
        converter.plan(model, tmp_path / "c.pth", {"heads": 4})
    with pytest.raises(converter.UsageError, match="has no option depth"):
        converter.plan(model, tmp_path / "c.pth", {"depth": 4})


def test_it_is_not_compared_where_sizes_cannot_be_read(tmp_path):
    """The sizes that problems are reported against are nobody's; what is wrong with the checkpoint is told."""
    state = torch_refs.create("deformable_attention_2d", dim=16, heads=2, dim_head=8).state_dict()
    del state["to_out.weight"]
    torch.save(state, tmp_path / "c.pth")
    for heads in (2, 4, "x"):
        with pytest.raises(converter.PlanError) as raised:
            converter.plan("deformable_attention_2d", tmp_path / "c.pth", {"heads": heads})
        assert raised.value.problems == ["missing: to_out.weight"]
    with pytest.raises(converter.UsageError, match="has no option depth"):
        converter.plan("deformable_attention_2d", tmp_path / "c.pth", {"depth": 4})


@pytest.mark.parametrize("model", ["sam", "auto"])
def test_sizes_of_a_part_are_compared_as_the_whole_s_are(model, tmp_path):
    torch.save(sam_state(), tmp_path / "c.pth")

    def planned(**given):
        return converter.plan(model, tmp_path / "c.pth", {**OPTIONS, **given})

    agreeing = {
        "image_encoder.depth": "3",
        "window_size": "4",
        "image_encoder.global_attn_indexes": "1",
        "out_chans": 32,
    }
    assert planned(**agreeing).config["image_encoder"]["depth"] == 3
    with pytest.raises(
        converter.UsageError,
        match=r"option image_encoder\.window_size is 5, but .* is of a sam with image_encoder\.window_size 4",
    ):
        planned(window_size=5)
    with pytest.raises(
        converter.UsageError,
        match=r"depth is several sizes of sam; name one: image_encoder\.depth, mask_decoder\.depth",
    ):
        planned(depth=3)
    for name in ("image_encoder", "image_encoder.nope", "nope.depth", "coder.depth"):
        with pytest.raises(converter.UsageError, match=f"has no option {name};"):
            planned(**{name: 3})
