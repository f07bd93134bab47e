"""torch.nn.LSTM, GRU and RNN: the layers of `tf_models.layers`, and the kinds against those and Keras's own."""

import copy
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

from converter import Row, kinds, nested
from converter.kinds import leaf
from tests.support.carrying import alone, carry
from tests.support.networks import Model, converted, dense, net, normal, pair, refused, restored, there_and_back
from tests.support.rule import assert_allowed
from tf_models.layers import recurrent

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
    carry(made.state_dict(), layer, alone(kind))
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
    # In a list, because Keras 3.10 loads a lone input as one and warns when it is given otherwise.
    model = keras.Model([inputs], layer(inputs))
    model.save(tmp_path / "model.keras")
    x = np.random.default_rng(0).standard_normal((N, L, C), np.float32)
    again = keras.models.load_model(tmp_path / "model.keras")
    for ours, before in zip(numbers(again([x])), numbers(model([x])), strict=True):
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


@pytest.mark.parametrize("first", [True, False], ids=["batch first", "time first"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_result_is_proven_and_every_bit_comes_back(name, first, tmp_path):
    kind, (theirs, given), (ours, own) = LAYERS[name]
    given = {**given, "num_layers": 2, "bidirectional": True, "batch_first": first}

    # All results are outputs, the sequence through another layer.
    def forward(self, x):
        return (lambda y, state: (self.fc(y), state))(*self.rnn(x))

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


# --- Keras's own layers -----------------------------------------------------------------------------------------------

KERAS = [(kinds.LSTM, nn.LSTM, K.LSTM), (kinds.GRU, nn.GRU, K.GRU), (kinds.RNN, nn.RNN, K.SimpleRNN)]
every_kind = pytest.mark.parametrize(("kind", "theirs", "ours"), KERAS, ids=["LSTM", "GRU", "RNN"])


def assert_back(kind, back, state):
    """To the bit, but for two biases that became one."""
    assert list(back) == list(state)
    for name, value in state.items():
        if kind is kinds.GRU or "bias" not in name or name == "fc.bias":
            assert torch.equal(back[name], value), name
        elif "bias_hh" in name:
            assert not back[name].any()
        else:
            other = state[name.replace("_ih_", "_hh_")]
            assert torch.equal(back[name], (value.double() + other.double()).float())


@every_kind
@pytest.mark.parametrize("directions", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_keras_s_own_layer(kind, theirs, ours, directions, bias, tmp_path):
    def layer():
        made = ours(H, return_sequences=True, use_bias=bias)
        return K.Bidirectional(made) if directions else made

    width = 2 * H if directions else H
    one = pair(
        model(layer, width=width),
        torchs((theirs, {"bidirectional": directions, "bias": bias})),
        rows(kind),
        normal(N, L, C),
    )
    state = one.build_torch().state_dict()
    report = converted(one, state, tmp_path, verify="train")
    assert report.numerical.full
    assert "rnn" in {compared.name for compared in report.numerical.layers}
    folded = bias and kind is not kinds.GRU
    assert folded == any("folded with others" in told for told in report.numerical.by_design)
    assert folded == any("Keras has one bias, the sum of torch's two" in told for told in report.folded.values())
    assert_back(kind, restored(one, report, tmp_path), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_sum_comes_back_as_what_it_was_written(dtype, tmp_path):
    """The sum of two halves is none."""
    one = pair(
        model(lambda: K.LSTM(H, return_sequences=True)), torchs((nn.LSTM, {})), rows(kinds.LSTM), normal(N, L, C)
    )
    state = {name: value.to(dtype) for name, value in one.build_torch().state_dict().items()}
    report = converted(one, state, tmp_path, verify="lossless")
    back = restored(one, report, tmp_path)
    biases = [f"rnn.bias_{which}_l0" for which in ("ih", "hh")]
    total = sum(state[name].double() for name in biases)
    assert torch.equal(back[biases[0]], total.float())
    assert not back[biases[1]].any()
    if dtype != torch.float64:
        assert all(torch.equal(back[name], value) for name, value in state.items() if name not in biases)


@every_kind
@pytest.mark.parametrize("merge", ["concat", "sum", "ave"])
def test_the_last_step_only(kind, theirs, ours, merge, tmp_path):
    """What torch's users take from the state: the ends of both directions."""

    def forward(self, x):
        state = self.rnn(x)[1]
        there, back = state[0] if isinstance(state, tuple) else state
        return self.fc({"concat": torch.cat([there, back], -1), "sum": there + back, "ave": (there + back) / 2}[merge])

    width = 2 * H if merge == "concat" else H

    def layer():
        return K.Bidirectional(ours(H), merge_mode=merge)

    given = {"bidirectional": True}

    def torch_side():
        return net(forward, rnn=theirs(C, H, batch_first=True, **given), fc=nn.Linear(width, 4))

    one = pair(model(layer, width=width), torch_side, rows(kind), normal(N, L, C))
    report = converted(one, torch_side().state_dict(), tmp_path)
    assert report.numerical.full


@every_kind
def test_directions_that_are_not_merged(kind, theirs, ours, tmp_path):
    """Keras then gives two results, and behind them its states."""

    def forward(self, x):
        y, state = self.rnn(x)
        there, back = y.chunk(2, -1)
        ends = state[0] if isinstance(state, tuple) else state
        return self.fc(there - back), *ends

    def call(self, x):
        there, back, *states = self.rnn(x)
        return self.fc(there - back), *states[:: len(states) // 2]

    def layer():
        return K.Bidirectional(ours(H, return_sequences=True, return_state=True), merge_mode=None)

    def build():
        return Model(call, rnn=(layer(), (None, None, C)), fc=dense(4, H))

    def torch_side():
        return net(forward, rnn=theirs(C, H, batch_first=True, bidirectional=True), fc=nn.Linear(H, 4))

    one = pair(build, torch_side, rows(kind), normal(N, L, C), outputs=("y", "there", "back"))
    report = converted(one, torch_side().state_dict(), tmp_path)
    assert report.numerical.full
    assert len(report.numerical.layers) == 2, "the recurrent layer is proven alone"


CELLS = pytest.mark.parametrize(
    ("kind", "theirs", "ours"),
    [
        (kinds.LSTM_CELL, nn.LSTMCell, K.LSTMCell),
        (kinds.GRU_CELL, nn.GRUCell, K.GRUCell),
        (kinds.RNN_CELL, nn.RNNCell, K.SimpleRNNCell),
    ],
    ids=["lstm", "gru", "rnn"],
)


def cell_pair(kind, theirs, cell, **given):
    """A cell that is called for each of three steps, first without a state."""

    def forward(self, x):
        state = None
        for step in range(3):
            state = self.cell(x[:, step], state)
        return self.fc(state[0] if isinstance(state, tuple) else state)

    def call(self, x):
        states = self.cell.get_initial_state(batch_size=keras.ops.shape(x)[0])
        states = list(states) if isinstance(states, (list, tuple)) else [states]
        for step in range(3):
            h, states = self.cell(x[:, step], states)
        return self.fc(h)

    def build():
        return Model(call, cell=(cell(), (None, C)), fc=dense(4, H))

    def torch_side():
        return net(forward, cell=theirs(C, H, **given), fc=nn.Linear(H, 4))

    return pair(build, torch_side, [Row("cell", kind), Row("fc", kinds.DENSE)], normal(N, 3, C))


def assert_proven(kind, theirs, ours, bias, folder):
    one = cell_pair(kind, theirs, lambda: ours(H, use_bias=bias), bias=bias)
    report = there_and_back(one, folder, verify="train")
    assert len(report.numerical.layers) == 2, "the cell is proven alone"
    return report


@pytest.mark.parametrize("bias", [True, False])
def test_an_lstm_cell(bias, tmp_path):
    report = assert_proven(kinds.LSTM_CELL, nn.LSTMCell, K.LSTMCell, bias, tmp_path)
    assert bool(report.folded) == bias, "two biases that become one come back as their sum"


@pytest.mark.parametrize("bias", [True, False])
def test_a_gru_cell(bias, tmp_path):
    assert not assert_proven(kinds.GRU_CELL, nn.GRUCell, K.GRUCell, bias, tmp_path).folded


@pytest.mark.parametrize("bias", [True, False])
def test_an_rnn_cell(bias, tmp_path):
    report = assert_proven(kinds.RNN_CELL, nn.RNNCell, K.SimpleRNNCell, bias, tmp_path)
    assert bool(report.folded) == bias


@CELLS
@pytest.mark.parametrize("batch", [(), (N,)], ids=["single", "batch"])
@pytest.mark.parametrize("state", [True, False])
def test_a_cell_is_called_as_torch_s_is(kind, theirs, ours, batch, state):
    torch.manual_seed(0)
    made, cell = theirs(C, H).double(), ours(H, dtype="float64")
    cell.build((None, C))
    kind = kind.fitted(kind, {"": cell})
    carry(made.state_dict(), cell, alone(kind))
    x, start = torch.randn(*batch, C).double(), torch.randn(*batch, H).double()
    given = (start, start.flip(-1)) if theirs is nn.LSTMCell else start
    with torch.no_grad():
        expected = made(x, given) if state else made(x)
    arrays = nested.each(lambda one: one.numpy(), given)
    found = kind.call(cell, x.numpy(), arrays) if state else kind.call(cell, x.numpy())
    assert_equal(numbers(found), numbers(expected))


def test_cells_that_compute_otherwise(tmp_path):
    for cell, told in (
        (lambda: K.GRUCell(H, reset_after=False), "at cell: it is a GRU with reset_after=False"),
        (lambda: K.LSTMCell(H), "at cell: it is a LSTMCell, no GRUCell"),
        (lambda: K.GRUCell(H, recurrent_activation="relu"), "the order of its gates, .*its activations"),
    ):
        one = cell_pair(kinds.GRU_CELL, nn.GRUCell, cell)
        refused(one, one.build_torch().state_dict(), tmp_path, told)


@every_kind
@pytest.mark.parametrize("directions", [False, True], ids=["one", "both"])
def test_states_that_keras_returns_and_takes(kind, theirs, ours, directions, tmp_path):
    count = 2 if directions else 1

    def layer():
        made = ours(H, return_sequences=True, return_state=True)
        return K.Bidirectional(made) if directions else made

    def forward(self, x):
        start = self.start(x[:, 0])
        start = torch.stack(start.chunk(count, -1))
        y, state = self.rnn(x, (start, start) if theirs is nn.LSTM else start)
        return self.fc(y), state

    def call(self, x):
        parts = keras.ops.split(self.start(x[:, 0]), count, -1)
        several = 2 if ours is K.LSTM else 1
        y, *states = self.rnn(x, initial_state=[part for part in parts for _ in range(several)])
        kept = [keras.ops.stack(states[place::several]) for place in range(several)]
        return self.fc(y), tuple(kept) if several > 1 else kept[0]

    def build():
        return Model(call, rnn=(layer(), (None, None, C)), fc=dense(4, count * H), start=dense(count * H, C))

    torch_side = torchs((theirs, {"bidirectional": directions}), forward, start=nn.Linear(C, count * H))
    outputs = ("y", "h", "c") if theirs is nn.LSTM else ("y", "h")
    one = pair(build, torch_side, [*rows(kind), Row("start", kinds.DENSE)], normal(N, L, C), outputs=outputs)
    report = converted(one, torch_side().state_dict(), tmp_path)
    assert report.numerical.full
    assert report.numerical.between


class Stack(keras.Model):
    """Layers in a list, by name, or in a Sequential, for one module of torch's."""

    def __init__(self, how, layers, width):
        super().__init__()
        for index, layer in enumerate(layers):
            layer.build((None, None, width if index else C))
            if how == "named":
                setattr(self, f"l{index}", layer)
        if how == "list":
            self.rnn = layers
        if how == "sequential":
            self.rnn = keras.Sequential([keras.Input((None, C)), *layers])
        self._order = how, len(layers)
        self.fc, shape = dense(4, width)
        self.fc.build(shape)
        self.built = True

    def call(self, x):
        how, count = self._order
        if how == "sequential":
            return self.fc(self.rnn(x))
        for index in range(count):
            x = (getattr(self, f"l{index}") if how == "named" else self.rnn[index])(x)
        return self.fc(x)


@pytest.mark.parametrize("how", ["named", "list", "sequential"])
@every_kind
def test_several_keras_layers_are_one_of_torchs(kind, theirs, ours, how, tmp_path):
    def build():
        return Stack(how, [K.Bidirectional(ours(H, return_sequences=True)) for _ in range(2)], 2 * H)

    table = [Row("rnn", kinds.stacked(kind, "l0", "l1"), keras=""), rows(kind)[1]] if how == "named" else rows(kind)
    one = pair(build, torchs((theirs, {"num_layers": 2, "bidirectional": True})), table, normal(N, L, C))
    state = one.build_torch().state_dict()
    # What is trained does not depend on where the layers stand.
    report = converted(one, state, tmp_path, verify="train" if how == "named" else "full")
    assert report.numerical.full
    assert {"rnn", "fc"} == {compared.name for compared in report.numerical.layers}
    assert_back(kind, restored(one, report, tmp_path), state)


def test_a_functional_model_of_two_layers(tmp_path):
    def build():
        x = inputs = keras.Input((None, C))
        for name in ("gru_a", "gru_b"):
            x = K.GRU(H, return_sequences=True, name=name)(x)
        return keras.Model(inputs, K.Dense(4, name="fc")(x))

    table = [Row("rnn", kinds.stacked(kinds.GRU, "gru_a", "gru_b"), keras=""), Row("fc", kinds.DENSE)]
    one = pair(build, torchs((nn.GRU, {"num_layers": 2})), table, normal(N, L, C))
    assert converted(one, one.build_torch().state_dict(), tmp_path).numerical.full


@pytest.mark.parametrize("own", [True, False])
def test_dropout_between_layers(own, tmp_path):
    def layer():
        if own:
            return recurrent.GRU(H, 2, dropout=0.4)
        first, second = (K.GRU(H, return_sequences=True) for _ in range(2))
        return keras.Sequential([keras.Input((None, C)), first, K.Dropout(0.4), second])

    call = (lambda self, x: self.fc(self.rnn(x)[0])) if own else (lambda self, x: self.fc(self.rnn(x)))
    one = pair(
        model(layer, call), torchs((nn.GRU, {"num_layers": 2, "dropout": 0.4})), rows(kinds.GRU), normal(N, L, C)
    )
    assert converted(one, one.build_torch().state_dict(), tmp_path, verify="train").numerical.full


@pytest.mark.parametrize("name", ["lstm", "keras lstm", "keras gru"])
def test_biases_of_zeros_are_no_obstacle(name, tmp_path):
    """The proof fills constant tensors with other values, but for those that are folded."""
    layer = {
        "lstm": lambda: recurrent.LSTM(H),
        "keras lstm": lambda: K.LSTM(H, return_sequences=True),
        "keras gru": lambda: K.GRU(H, return_sequences=True),
    }[name]
    own = name == "lstm"
    call = (lambda self, x: self.fc(self.rnn(x)[0])) if own else (lambda self, x: self.fc(self.rnn(x)))
    theirs, kind = (nn.GRU, kinds.GRU) if "gru" in name else (nn.LSTM, kinds.LSTM)
    one = pair(model(layer, call), torchs((theirs, {})), rows(kind), normal(N, L, C))
    state = one.build_torch().state_dict()
    for tensor in ("rnn.bias_ih_l0", "rnn.bias_hh_l0"):
        state[tensor].zero_()
    assert converted(one, state, tmp_path).numerical.full


def test_a_single_sequence_without_a_batch(tmp_path):
    """As torch takes it, in the middle of a network."""

    def forward(self, x):
        return self.fc(self.rnn(x[0])[0])

    for layer in (lambda: recurrent.GRU(H, 1, True), lambda: K.Bidirectional(K.GRU(H, return_sequences=True))):

        def call(self, x):
            return self.fc((self.rnn(x)[0] if isinstance(self.rnn, recurrent.GRU) else self.rnn(x))[0])

        one = pair(
            model(layer, call, 2 * H),
            torchs((nn.GRU, {"bidirectional": True}), forward),
            rows(kinds.GRU),
            normal(1, L, C),
        )
        assert converted(one, one.build_torch().state_dict(), tmp_path).numerical.full


LENGTHS = np.array([3, L, 5])


@pytest.mark.parametrize("ordered", [False, True], ids=["any order", "longest first"])
@pytest.mark.parametrize("name", ["own", "keras", "keras, last step"])
def test_packed_sequences(name, ordered, tmp_path):
    """Lengths of our layers, a mask of Keras's."""
    lengths = np.sort(LENGTHS)[::-1].copy() if ordered else LENGTHS
    last = "last" in name

    def forward(self, x):
        x = self.first(x)
        packed = nn.utils.rnn.pack_padded_sequence(
            x, torch.from_numpy(lengths), batch_first=True, enforce_sorted=ordered
        )
        y, (h, _) = self.rnn(packed)
        y, _ = nn.utils.rnn.pad_packed_sequence(y, batch_first=True)
        return self.fc(torch.cat([*h], -1) if last else y)

    def call(self, x):
        x = self.first(x)
        if name == "own":
            return self.fc(self.rnn(x, lengths=lengths)[0])
        mask = np.arange(L) < lengths[:, None]
        y = self.rnn(x, mask=mask)
        return self.fc(y if last else y * mask[..., None])

    layer = {"own": lambda: recurrent.LSTM(H, 1, True)}.get(
        name, lambda: K.Bidirectional(K.LSTM(H, return_sequences=not last))
    )

    def build():
        return Model(call, rnn=(layer(), (None, None, C)), fc=dense(4, 2 * H), first=dense(C, C))

    torch_side = torchs((nn.LSTM, {"bidirectional": True}), forward, first=nn.Linear(C, C))
    one = pair(build, torch_side, [*rows(kinds.LSTM), Row("first", kinds.DENSE)], normal(N, L, C))
    report = converted(one, torch_side().state_dict(), tmp_path)
    assert report.numerical.full
    assert {"rnn", "first", "fc"} == {layer.name for layer in report.numerical.layers}


# --- What must not pass -----------------------------------------------------------------------------------------------


def own_pair(kind, theirs, layer, **given):
    def call(self, x):
        return self.fc(self.rnn(x)[0])

    width = 2 * H if given.get("bidirectional") else H
    return pair(model(layer, call, width), torchs((theirs, given)), rows(kind), normal(N, L, C))


@pytest.mark.parametrize(
    ("layer", "given", "told"),
    [
        (lambda: recurrent.GRU(H), {"num_layers": 2}, r"rnn\.weight_ih_l1 has no variable rnn\.kernel_l1"),
        (lambda: recurrent.GRU(H, 2), {}, r"missing: .*rnn\.weight_ih_l1"),
        (lambda: recurrent.GRU(H, use_bias=False), {}, r"rnn\.bias_ih_l0 has no variable rnn\.bias_l0"),
        (lambda: recurrent.GRU(H), {"bias": False}, r"missing: .*rnn\.bias_ih_l0"),
        (lambda: recurrent.GRU(H), {"bidirectional": True}, r"rnn\.weight_ih_l0_reverse has no variable"),
        (lambda: K.GRU(H, return_sequences=True), {"num_layers": 2}, r"unexpected: rnn\..*_l1"),
        (lambda: K.GRU(H, return_sequences=True), {"bidirectional": True}, r"unexpected: rnn\..*_l0_reverse"),
        (lambda: K.GRU(H, return_sequences=True, use_bias=False), {}, r"unexpected: rnn\..*bias_[ih]h_l0"),
        (lambda: K.GRU(H, return_sequences=True), {"bias": False}, r"missing: rnn\.bias_ih_l0"),
        (lambda: K.Bidirectional(K.GRU(H, return_sequences=True)), {}, r"missing: rnn\.weight_ih_l0_reverse"),
        (lambda: K.GRU(H, reset_after=False), {}, "at rnn: cell is a GRU with reset_after=False"),
        (lambda: K.LSTM(H), {}, "at rnn: cell is a LSTMCell, no GRUCell"),
        (lambda: K.Dense(H), {}, "at rnn: it is a Dense, no recurrent layer"),
        (
            lambda: K.Bidirectional(K.GRU(H), merge_mode="mul"),
            {},
            "at rnn: merge_mode: expected one of concat, sum, ave",
        ),
    ],
)
def test_what_one_side_lacks_is_told(layer, given, told, tmp_path):
    one = own_pair(kinds.GRU, nn.GRU, layer, **given)
    refused(one, one.build_torch().state_dict(), tmp_path, told)


def test_a_projection_has_no_place_in_keras_s_lstm(tmp_path):
    one = own_pair(kinds.LSTM, nn.LSTM, lambda: K.LSTM(H, return_sequences=True), proj_size=4)
    refused(one, one.build_torch().state_dict(), tmp_path, r"unexpected: rnn\.weight_hr_l0")


def test_a_name_in_a_stack_that_is_none(tmp_path):
    def build():
        return Stack("named", [K.GRU(H, return_sequences=True) for _ in range(2)], H)

    table = [Row("rnn", kinds.stacked(kinds.GRU, "l0", "l2"), keras=""), Row("fc", kinds.DENSE)]
    one = pair(build, torchs((nn.GRU, {"num_layers": 2})), table, normal(N, L, C))
    refused(one, one.build_torch().state_dict(), tmp_path, "at GRU: l2 is no layer")


def relaid(kind, changes):
    """The kind with some leaves otherwise."""
    return replace(kind, leaves=tuple(changes.get(part.torch[0], part) for part in kind.leaves), fitted=None)


def exchanged(kind, *names):
    """With the variables of two tensors exchanged."""
    ours = {part.torch[0]: part for part in kind.leaves if part.torch[0] in names}
    one, other = names
    return relaid(
        kind, {one: replace(ours[one], keras=ours[other].keras), other: replace(ours[other], keras=ours[one].keras)}
    )


@pytest.mark.parametrize(
    "kind",
    [
        relaid(
            kinds.LSTM,
            {"weight_hh_l0": leaf("weight_hh_l0", "recurrent_kernel_l0", "(i + f + g + o) c -> c (i + g + f + o)")},
        ),
        relaid(
            kinds.LSTM, {"bias_hh_l0": leaf("bias_hh_l0", "recurrent_bias_l0", "(i + f + g + o) -> (o + f + g + i)")}
        ),
        exchanged(kinds.LSTM, "weight_ih_l0", "weight_ih_l0_reverse"),
        exchanged(kinds.LSTM, "weight_hh_l0", "weight_hh_l0_reverse"),
        exchanged(kinds.LSTM, "bias_ih_l0", "bias_hh_l0_reverse"),
    ],
    ids=["gates", "gates of a bias", "directions", "directions of the state", "biases"],
)
def test_leaves_that_are_laid_out_wrongly_are_refused(kind, tmp_path):
    one = own_pair(kind, nn.LSTM, lambda: recurrent.LSTM(H, 1, True), bidirectional=True)
    refused(one, one.build_torch().state_dict(), tmp_path, "first layer that differs: rnn")


class GatesSwapped(recurrent.GRU):
    def _step(self, given, again, states):
        r, z, n = tf.split(given, 3, -1)
        return super()._step(tf.concat([z, r, n], -1), again, states)


class BiasDropped(recurrent.GRU):
    def _step(self, given, again, states):
        return super()._step(given, again - self.recurrent_bias_l0, states)


class NotTurned(recurrent.GRU):
    """The second direction's results stay in the order in which they were computed."""

    def _turned(self, steps, lengths):
        self._times = getattr(self, "_times", 0) + 1
        return super()._turned(steps, lengths) if self._times % 2 else steps


class ResetBefore(recurrent.GRU):
    """Keras's reset_after=False, with a bias that it does not have."""

    def _step(self, given, again, states):
        r, z, _ = tf.split(given + again, 3, -1)
        update = tf.sigmoid(z)
        kernel = self.recurrent_kernel_l0[:, 2 * H :]
        new = tf.tanh(tf.split(given, 3, -1)[2] + tf.matmul(tf.sigmoid(r) * states[0], kernel))
        return [(1 - update) * new + update * states[0]]


@pytest.mark.parametrize("layer", [GatesSwapped, BiasDropped, NotTurned, ResetBefore])
def test_a_layer_that_computes_otherwise_is_refused(layer, tmp_path):
    directions = layer is NotTurned
    one = own_pair(kinds.GRU, nn.GRU, lambda: layer(H, 1, directions), bidirectional=directions)
    refused(one, one.build_torch().state_dict(), tmp_path, "first layer that differs: rnn")


@pytest.mark.parametrize(
    ("kind", "theirs", "layer"),
    [
        (kinds.RNN, (nn.RNN, {"nonlinearity": "relu"}), lambda: K.SimpleRNN(H, return_sequences=True)),
        (kinds.LSTM, (nn.LSTM, {}), lambda: K.LSTM(H, return_sequences=True, recurrent_activation="hard_sigmoid")),
        (kinds.GRU, (nn.GRU, {}), lambda: K.GRU(H, return_sequences=True, go_backwards=True)),
    ],
)
def test_keras_s_own_that_computes_otherwise_is_refused(kind, theirs, layer, tmp_path):
    one = pair(model(layer), torchs(theirs), rows(kind), normal(N, L, C))
    refused(one, one.build_torch().state_dict(), tmp_path, "first layer that differs: rnn")
