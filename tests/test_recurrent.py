"""torch.nn.LSTM, GRU and RNN: the layers of `tf_models.recurrent`, and the kinds against those and Keras's own."""

import copy
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

import converter
from converter import Row, kinds, nested
from converter.kinds import leaf
from tests.support import carrying
from tests.support.pairs import registered
from tests.support.rule import assert_allowed
from tests.test_proof_reach import Model, converted, dense, net, normal, pair, refused
from tf_models import recurrent

K = keras.layers
C, H, N, L = 6, 5, 3, 7  # features, units, sequences, steps

# name -> (kind, torch's class and arguments, ours)
LAYERS = {
    "lstm": (kinds.LSTM, (nn.LSTM, {}), (recurrent.LSTM, {})),
    "lstm, projection": (kinds.LSTM, (nn.LSTM, {"proj_size": 4}), (recurrent.LSTM, {"projection": 4})),
    "gru": (kinds.GRU, (nn.GRU, {}), (recurrent.GRU, {})),
    "rnn": (kinds.RNN, (nn.RNN, {}), (recurrent.RNN, {})),
    "rnn, relu": (kinds.RNN, (nn.RNN, {"nonlinearity": "relu"}), (recurrent.RNN, {"nonlinearity": "relu"})),
}
# Layers, both directions, biases.
SHAPES = [(1, False, True), (2, True, True), (3, False, False)]


def both(name, layers=1, directions=False, bias=True, dtype="float32", **more):
    """Torch's layer with the batch first, and ours with its weights."""
    kind, (theirs, given), (ours, own) = LAYERS[name]
    torch.manual_seed(0)
    made = theirs(C, H, layers, bias=bias, bidirectional=directions, batch_first=True, **given, **more).eval()
    made = made.double() if dtype == "float64" else made
    layer = ours(H, layers, directions, bias, dtype=dtype, **own)
    layer.build((None, None, C))
    carrying.carry(carrying.numbers(made), layer, [("", "", kind)])
    return made, layer


def numbers(results):
    return [np.asarray(one.detach() if isinstance(one, torch.Tensor) else one) for _, one in nested.flat(results)]


def assert_equal(ours, theirs):
    """Two computations in float64: what is not a rounding shows."""
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * max(1, np.abs(other).max(initial=0)))


def with_gradients(layer, x, **more):
    """The results, and the gradients of the sum of their squares: of the input and of each variable."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        results = [one for _, one in nested.flat(layer(x, **more))]
        loss = tf.add_n([tf.reduce_sum(one * one) for one in results])
    return results, tape.gradient(loss, [x, *(variable.value for variable in layer.trainable_variables)])


def torchs_gradients(made, results, x, layer, kind):
    loss = sum((one * one).sum() for _, one in nested.flat(results))
    parameters = dict(made.named_parameters())
    found = torch.autograd.grad(loss, [x, *parameters.values()])
    by_name = dict(zip(parameters, found[1:], strict=True))
    places = {part.keras[0]: part for part in kind.leaves}
    laid = [
        places[one.name].to_keras([by_name[places[one.name].torch[0]].numpy()], [tuple(one.shape)])[0]
        for one in layer.trainable_variables
    ]
    return [found[0].numpy(), *laid]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_results_and_gradients_are_torchs(name, shape):
    made, layer = both(name, *shape, dtype="float64")
    x = torch.randn(N, L, C, dtype=torch.float64, requires_grad=True)
    expected = made(x)
    results, gradients = with_gradients(layer, tf.constant(x.detach().numpy()))
    assert_equal(numbers(results), numbers(expected))
    assert_equal(numbers(gradients), torchs_gradients(made, expected, x, layer, LAYERS[name][0]))


@pytest.mark.parametrize("name", LAYERS)
def test_float32_is_within_the_rule(name):
    made, layer = both(name, 2, True)
    x = torch.randn(N, L, C)
    exact = copy.deepcopy(made).double()

    def compute():
        with torch.no_grad():
            return numbers(exact(x.double()))

    assert_allowed(numbers(layer(x.numpy())), compute)


@pytest.mark.parametrize("name", ["lstm, projection", "gru"])
@pytest.mark.parametrize("jit", [False, True])
def test_compiled_for_any_batch_and_length(name, jit):
    _, layer = both(name, 2, True, dtype="float64")
    signature = [tf.TensorSpec((None, None, C), tf.float64)]
    compiled = tf.function(lambda x: with_gradients(layer, x), input_signature=signature, jit_compile=jit)
    for shape in ((N, L, C), (2, 1, C)):
        x = tf.random.stateless_normal(shape, (0, 0), dtype=tf.float64)
        for ours, eager in zip(compiled(x), with_gradients(layer, x), strict=True):
            assert_equal(numbers(ours), numbers(eager))


@pytest.mark.parametrize("name", LAYERS)
def test_an_initial_state(name):
    made, layer = both(name, 2, True, dtype="float64")
    x = torch.randn(N, L, C, dtype=torch.float64)
    with torch.no_grad():
        state = nested.each(torch.randn_like, made(x)[1])
        assert_equal(numbers(layer(x.numpy(), nested.each(torch.Tensor.numpy, state))), numbers(made(x, state)))


@pytest.mark.parametrize("name", LAYERS)
def test_lengths_are_torchs_packed_sequences(name):
    made, layer = both(name, 2, True, dtype="float64")
    x, lengths = torch.randn(4, L, C, dtype=torch.float64), torch.tensor([3, L, 1, 5])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    with torch.no_grad():
        y, state = made(packed)
    y, _ = nn.utils.rnn.pad_packed_sequence(y, batch_first=True)
    assert_equal(numbers(layer(x.numpy(), lengths=lengths.numpy())), numbers((y, state)))


def test_dropout_is_between_layers_and_in_training_only():
    layer = recurrent.GRU(H, 2, dropout=0.5)
    x = np.ones((N, L, C), np.float32)
    np.testing.assert_array_equal(layer(x)[0], layer(x, training=False)[0])
    assert not np.allclose(layer(x)[0], layer(x, training=True)[0])
    assert recurrent.GRU(H, dropout=0.5).dropping is None


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_saved_and_loaded(name, tmp_path):
    _, layer = both(name, 2, True)
    inputs = keras.Input((None, C))
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "model.keras")
    x = np.random.default_rng(0).standard_normal((N, L, C), np.float32)
    again = keras.models.load_model(tmp_path / "model.keras")
    for ours, before in zip(numbers(again(x)), numbers(model(x)), strict=True):
        np.testing.assert_array_equal(ours, before)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: recurrent.GRU(0), "expected whole numbers from 1, got 0 and 1"),
        (lambda: recurrent.GRU(H, 0), "expected whole numbers from 1, got 5 and 0"),
        (lambda: recurrent.GRU(H, dropout=2.0), "from 0 to 1, got 2.0"),
        (lambda: recurrent.LSTM(H, projection=H), r"below units \(5\), got 5"),
        (lambda: recurrent.RNN(H, nonlinearity="gelu"), "expected one of tanh, relu, got 'gelu'"),
        (lambda: recurrent.RNN(H).build((None, None, None)), "a known number of features"),
    ],
)
def test_what_makes_no_layer(make, told):
    with pytest.raises(ValueError, match=told):
        make()


# --- Pairs ------------------------------------------------------------------------------------------------------------


def torchs(module, forward=lambda self, x: self.fc(self.rnn(x)[0]), **more):
    """A recurrent layer and a linear one behind it."""
    kind, given = module
    given = {"batch_first": True, **given}
    width = (given.get("proj_size") or H) * (2 if given.get("bidirectional") else 1)
    return lambda: net(forward, rnn=kind(C, H, **given), fc=nn.Linear(width, 4), **more)


def model(layer, call=lambda self, x: self.fc(self.rnn(x)), width=H):
    return lambda: Model(call, rnn=(layer(), (None, None, C)), fc=dense(4, width))


def rows(kind):
    return [Row("rnn", kind), Row("fc", kinds.DENSE)]


def restored(one, report, folder):
    with registered(one):
        converter.restore(report.output, folder / "back.pth", overwrite=True)
    return torch.load(folder / "back.pth")


@pytest.mark.parametrize("first", [True, False], ids=["batch first", "time first"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_result_is_proven_and_every_bit_comes_back(name, first, tmp_path):
    kind, (theirs, given), (ours, own) = LAYERS[name]
    given = {**given, "num_layers": 2, "bidirectional": True, "batch_first": first}
    # All results are outputs, the sequence through another layer.
    forward = lambda self, x: (lambda y, state: (self.fc(y), state))(*self.rnn(x))  # noqa: E731
    width = 2 * own.get("projection", H)
    build = model(lambda: ours(H, 2, True, **own), forward, width)
    axes = {} if first else {"x": "l n c -> n l c", "y": "l n c -> n l c"}
    outputs = ("y", "h", "c") if theirs is nn.LSTM else ("y", "h")
    one = pair(build, torchs((theirs, given), forward), rows(kind), normal(N, L, C), outputs=outputs, axes=axes)
    state = one.build_torch().state_dict()
    report = converted(one, state, tmp_path, verify="train")
    assert report.numerical.full
    assert {"rnn", "fc"} == {layer.name for layer in report.numerical.layers}
    back = restored(one, report, tmp_path)
    assert list(back) == list(state)
    assert all(torch.equal(back[tensor], value) for tensor, value in state.items())
