"""What an audit says of a right port, and of one with faults; each fault stands at a layer of its own, and is judged on
torch's own input, so that one audit has several."""

import json
from dataclasses import replace

import keras
import ml_dtypes
import numpy as np
import pytest

import converter
from converter import Audit, ConversionError, Finding, UsageError
from converter.matching.audit import Output
from converter.matching.auditing.settings import of_unit, paddings
from converter.matching.auditing.values import Expected, difference
from converter.torch_side.answers import Module
from tests.support import audited
from tests.support.checkpoints import prefixed, save
from tests.support.one_process import OneProcess
from tests.support.running import run, run_forked

NET = "tests.support.audited"


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    import converter.matching.auditing.looking

    monkeypatch.setattr(converter.matching.auditing.looking, "TorchProcess", OneProcess)


@pytest.fixture(scope="module")
def state():
    return audited.trained()


@pytest.fixture(scope="module")
def checkpoint(state, tmp_path_factory):
    return save(state, tmp_path_factory.mktemp("audit"))


def audit(model, checkpoint):
    return converter.audit(audited.torch_net, model, audited.give, checkpoint)


def causes(found):
    """(layer, what) -> cause."""
    return {(one.layer, one.what): one.cause for one in found}


def test_a_right_port_has_no_finding(state, checkpoint):
    model = audited.filled(state)
    before = [value.copy() for value in model.get_weights()]
    found = audit(model, checkpoint)
    assert (list(found), len(found), bool(found)) == ([], 0, True)
    assert (found.units, found.judged, found.variables, found.equal) == (10, 10, 26, 26)
    (output,) = found.outputs
    assert output.error < 2e-6
    assert 0 < output.own < 2e-6
    assert "0 differences, and 0 of configuration" in str(found)
    assert all(map(np.array_equal, before, model.get_weights()))  # the match had other values in it


def test_values_that_are_not_the_checkpoint_s(state, checkpoint):
    model = audited.filled(state)
    layer = model.get_layer
    layer("conv1").kernel.assign(np.swapaxes(layer("conv1").kernel.numpy(), 0, 1))
    layer("bn1").moving_mean.assign(np.zeros(8))
    layer("bn1").moving_variance.assign(np.ones(8))
    layer("conv2").bias.assign(np.zeros(8))
    layer("bn2").gamma.assign(layer("bn2").gamma + 0.25)
    values = layer("conv3").get_weights()
    layer("conv3").set_weights(layer("conv4").get_weights())
    layer("conv4").set_weights(values)
    layer("fc1").kernel.assign(layer("fc1").kernel.numpy().astype(ml_dtypes.bfloat16).astype(np.float32))
    layer("norm").gamma.assign(2 * layer("norm").gamma)
    built = audited.keras_net()
    layer("fc2").set_weights(built.get_layer("fc2").get_weights())
    found = audit(model, checkpoint)
    assert causes(found) == {
        ("conv1", "kernel"): "transposed: height and width exchanged",
        ("bn1", "moving_mean, moving_variance"): "still at the initial value, not filled",
        ("conv2", "bias"): "the bias is lost: zeros",
        ("bn2", "gamma"): "shifted: torch's plus 0.25",
        ("conv3", "kernel, bias"): "exchanged: holds what belongs to conv4",
        ("conv4", "kernel, bias"): "exchanged: holds what belongs to conv3",
        ("fc1", "kernel"): "half precision: rounded to bfloat16",
        ("norm", "gamma"): "scaled: 2 times torch's",
        ("fc2", "kernel, bias"): "still at the initial value, not filled: spread as GlorotUniform gives them",
    }
    assert [one.layer for one in found] == ["conv1", "bn1", "conv2", "bn2", "conv3", "conv4", "fc1", "norm", "fc2"]
    assert all(one.torch == one.layer and one.size > 1e-4 for one in found)
    assert not found
    assert found.equal == 26 - 13


def test_what_is_computed_otherwise(state, checkpoint):
    options = {"rescaled": True, "epsilon": 1e-3, "momentum": 0.99, "padding": ((0, 2), (0, 2)), "approximate": True}
    found = audit(audited.filled(state, **options, end=None), checkpoint)
    said = causes(found)
    assert said.pop(("rescaling", "result")).startswith("the model rescales what it is given; torch's is 255 times")
    assert said == {
        ("bn1", "result"): "epsilon 0.001, torch 1e-05",
        ("conv2", "result"): "padding (0, 2), torch (1, 1)",
        ("bn2", "configuration"): "momentum 0.99, torch 0.1, which is 0.9 of Keras's",
        ("act3", "result"): "torch applies exact GELU, TensorFlow GELU approximated by tanh",
        ("fc2", "output"): "torch applies tanh, TensorFlow nothing",
    }
    assert {one.layer: one.torch for one in found}["act3"] == "act3"


def test_a_stride_that_stands_at_another_convolution(state, checkpoint):
    found = audit(audited.filled(state, strides=(1, 2)), checkpoint)
    assert causes(found) == {("conv2", "result"): "stride 1, torch 2", ("conv3", "result"): "stride 2, torch 1"}
    assert [one.size > 1 for one in found] == [True, False]
    assert next(iter(found)).size == np.inf
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["findings"][0]["size"] is None


def test_a_layer_of_one_side_alone(state, checkpoint):
    found = audit(audited.filled(state, more=True), checkpoint)
    assert found.notes == ["only Keras has more, which the audit cannot judge"]
    assert "note" in dict(found.lines())
    assert [(one.layer, one.what) for one in found] == [("more", "result")]


def test_a_difference_that_no_layer_shows(state, checkpoint, monkeypatch):
    import converter.matching.auditing.looking

    monkeypatch.setattr(converter.matching.auditing.looking, "EXPLAINED", np.inf)
    (one,) = audit(audited.filled(state, end=None), checkpoint)
    assert (one.layer, one.what, one.cause) == ("", "output", "no layer alone shows why")


def test_configuration_alone_is_no_failure(state, checkpoint):
    found = audit(audited.filled(state, epsilon=1.1e-5), checkpoint)
    assert causes(found) == {("bn1", "configuration"): "epsilon 1.1e-05, torch 1e-05"}
    assert found
    assert len(found) == 1


def test_sums_in_another_order_are_no_finding_and_their_units_are_still_judged(tmp_path):
    words = audited.words_net()
    path = save(words.state_dict(), tmp_path)
    model = audited.filled_words(words.state_dict())

    def audit_words():
        return converter.audit(audited.words_net, model, audited.give_words, path)

    assert not list(audit_words())
    table = model.get_layer("types").embeddings
    table.assign(table.numpy()[::-1])
    assert causes(audit_words()) == {("types", "embeddings"): "turned round: axis 0"}


@pytest.mark.parametrize(
    ("change", "sort", "told"),
    [
        (lambda value: value.astype(np.float16).astype(np.float32), "half", "rounded to float16"),
        (lambda value: value.reshape(6, 2, 4).swapaxes(1, 2).reshape(6, 8), "order", "2 x 4 of outputs"),
        (lambda value: value[:, ::-1], "order", "turned round: outputs"),
        (lambda value: np.roll(value, 4, 1), "order", "the 2 parts of outputs are in another order"),
        (lambda value: np.sort(value, None).reshape(6, 8), "order", "the same values in another order"),
        (lambda value: -value, "scale", "-1 times torch's"),
        (lambda value: value + 1, "shift", "plus 1"),
        (lambda value: value**3, "other", "other values"),
        (lambda value: value * (1 + 1e-7), None, None),
    ],
)
def test_what_became_of_values(change, sort, told):
    wanted = np.random.default_rng(5).standard_normal((6, 8)).astype(np.float32)
    found = difference("kernel", change(wanted), wanted, Expected(), [])
    if sort is None:
        assert found is None
    else:
        assert (found.sort, told in found.text) == (sort, True), found


def test_convolutions_that_are_configured_otherwise():
    settings = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 2}
    module = Module("c", "torch.nn.modules.conv.Conv2d", {}, {}, settings=settings)
    layer = keras.layers.Conv2D(4, 3, strides=2, dilation_rate=1, padding="same")
    assert [*map(str, of_unit(module, layer))] == ["stride 2, torch 1", "groups 1, torch 2"]
    assert str(paddings(module, layer, (8, 9), ())) == "padding ((0, 1), (1, 1)), torch (1, 1)"
    assert paddings(module, layer, (9, 9), ()) is None
    assert str(paddings(module, layer, (9, 9), [(1, 1), (1, 1)])) == "padding (2, 2), torch (1, 1)"
    wide = replace(module, settings={**settings, "padding": "same", "dilation": (2, 2)})
    assert str(next(of_unit(wide, keras.layers.Conv2D(4, 3, groups=2)))) == "dilation 1, torch 2"


def test_names_under_a_prefix_and_ones_beside(state, tmp_path):
    beside = {**prefixed(state, "model._orig_mod.net."), "model.head.weight": state["fc2.weight"]}
    assert not list(audit(audited.filled(state), save({"state_dict": beside}, tmp_path)))


def test_checkpoints_and_inputs_of_something_else(state, checkpoint, tmp_path):
    less = {name: value for name, value in state.items() if not name.startswith("fc")}
    with pytest.raises(ConversionError, match=r"of another network .* has no fc\{1-2\}\.weight, .* \(4 tensors\)"):
        audit(audited.filled(state), save(less, tmp_path))
    wider = {**state, "fc2.weight": state["fc2.weight"][:9]}
    with pytest.raises(ConversionError, match=r"fc2\.weight \(9, 16\), where the network has \(16, 16\)"):
        audit(audited.filled(state), save(wider, tmp_path, "wider.pth"))
    with pytest.raises(ConversionError, match=r"torch network of .* fails on its inputs"):
        converter.audit(audited.torch_net, audited.filled(state), audited.refused, checkpoint)
    with pytest.raises(UsageError, match="MODULE:FUNCTION"):
        converter.audit("nets", audited.filled(state), audited.give, checkpoint)
    with pytest.raises(ConversionError, match="has no torch_nett; did you mean torch_net"):
        converter.audit(f"{NET}:torch_nett", f"{NET}:keras_net", f"{NET}:give", checkpoint)


def test_a_port_and_its_file_as_a_command(state, checkpoint, tmp_path):
    names = ("--torch", f"{NET}:torch_net", "--keras", f"{NET}:keras_net", "--inputs", f"{NET}:give")
    model = audited.filled(state)
    model.get_layer("conv2").bias.assign(np.zeros(8))
    model.save_weights(tmp_path / "port.weights.h5")
    done = run_forked("weightbridge", "verify", checkpoint, tmp_path / "port.weights.h5", *names, "--json", cwd=".")
    assert done.returncode == 1
    assert done.stderr == "error: the audit found 1 difference (conv2)\n"
    said = json.loads(done.stdout)
    assert said["right"] is False
    assert [one["cause"] for one in said["findings"]] == ["the bias is lost: zeros"]
    (tmp_path / "empty.weights.h5").write_bytes(b"")
    audited.other_keras_net().save_weights(tmp_path / "other.weights.h5")
    for name, told in (("empty", "cannot be read"), ("missing", "cannot be read"), ("other", "does not load into")):
        with pytest.raises(ConversionError, match=f"{name}.weights.h5 {told}"):
            converter.audit(*names[1::2], checkpoint, weights=tmp_path / f"{name}.weights.h5")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--torch", "a:b"), "an audit needs all of --torch, --keras and --inputs"),
        (("--torch", "a:b", "--keras", "a:b", "--inputs", "a:b", "--key", "x"), "only --json and --quiet"),
    ],
)
def test_options_of_two_sorts(words, told, tmp_path):
    done = run("weightbridge", "verify", "ckpt.pth", "port.weights.h5", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr


def test_the_report_folds_what_is_alike():
    one = Finding("blocks_0_norm", "result", "epsilon 0.001, torch 1e-05", 2e-4, "layers.0.norm")
    found = Audit("net:torch", "net:keras", units=3, judged=3, variables=6, equal=6)
    found.findings = [
        *(replace(one, layer=f"blocks_{i}_norm", torch=f"layers.{i}.norm", size=(i + 1) * 1e-4) for i in range(3)),
        Finding("head", "configuration", "momentum 0.99, torch 0.1", 0.0, "head"),
    ]
    found.outputs = [Output("", "", 1e-3, 2e-7)]
    assert str(found).splitlines()[2:] == [
        "layers        3 of 3 compared on torch's own input",
        "variables     6 of 6 hold what the checkpoint gives them",
        "findings      3 differences, and 1 of configuration that no result shows",
        "output        error 1.0e-03 (torch's own in float32 2.0e-07)",
        "differs       blocks_{0-2}_norm (layers.{0-2}.norm)  result  epsilon 0.001, torch 1e-05  up to 3.0e-04",
        "configuration head (head)  momentum 0.99, torch 0.1",
    ]
    assert found.failure() == "3 differences (blocks_{0-2}_norm)"
