"""Kinds of torch's recurrent layers, against those of `tf_models.layers` and against Keras's own.

Torch's module may have several layers and two directions; its tensors end in `_l0`, `_l0_reverse`, `_l1`, ... The kinds
see by the Keras layer how many it has and which layout: one of `tf_models.layers` has a variable for each tensor;
`keras.layers.LSTM`, `GRU` and `SimpleRNN`, alone, in a `Bidirectional`, or one behind another, have theirs.

Axis letters: o gates times units, i features that come in, p features of a projection; r z n the gates of a GRU, x h
what is for the input and what for the state, u units.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from converter.kinds.folds import Fold
from converter.kinds.kind import Kind, Leaf, leaf

MOST_LAYERS = 64  # of one module; the names of more are not known
_SUSPECTS = "the order of its gates, which direction is which, its activations"
# What torch calls with, and gives, where the time is first.
_SEQUENCES = (("0", "input"), ("0",))
_MERGES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "concat": lambda there, back: np.concatenate([there, back], -1),
    "sum": np.add,
    "ave": lambda there, back: (there + back) / 2,
}

# What Keras adds as one bias.
SUM = Fold(
    "SUM",
    forward=lambda tensors: [tensors[0] + tensors[1]],
    back=lambda arrays: [arrays[0], np.zeros_like(arrays[0])],
    shapes=lambda shapes: [shapes[0], shapes[0]],
    cost="Keras has one bias, the sum of torch's two: it comes back as bias_ih, and bias_hh as zeros",
)
_GATES_FIRST = "(r + z + n) i -> i (z + r + n)"


@dataclass(frozen=True)
class _Layout:
    """How Keras's own layers hold one direction of one of torch's layers.

    Attributes:
        cell: the class of their cells.
        kernel: torch's axes of weight_ih and weight_hh -> Keras's.
    """

    cell: str
    kernel: str = "o i -> i o"

    def leaves(self, suffix: str, path: str, cell: Any) -> Iterator[Leaf]:
        """Of a cell at a path with a dot behind it.

        Raises:
            ValueError: the cell is of another sort, or computes otherwise.
        """
        if not any(base.__name__ == self.cell for base in type(cell).__mro__):
            raise ValueError(f"{path.rstrip('.') or 'it'} is a {type(cell).__name__}, no {self.cell}")
        yield leaf(f"weight_ih{suffix}", f"{path}kernel", self.kernel)
        yield leaf(f"weight_hh{suffix}", f"{path}recurrent_kernel", self.kernel)
        if not cell.use_bias:
            return
        biases = f"bias_ih{suffix}", f"bias_hh{suffix}"
        if self.cell != "GRUCell":
            yield leaf(biases, f"{path}bias", "o -> o", fold=SUM)
            return
        if not cell.reset_after:
            raise ValueError(
                f"{path.rstrip('.') or 'it'} is a GRU with reset_after=False, which is not what torch computes"
            )
        axes = "(x (r + z + n) u), (h (r + z + n) u) -> (x + h) ((z + r + n) u)"
        yield leaf(biases, f"{path}bias", axes, sizes=dict.fromkeys("xhrzn", 1))


def _own_leaves() -> Iterator[Leaf]:
    """Of the layers of `tf_models.layers`."""
    for layer in range(MOST_LAYERS):
        for suffix in (f"l{layer}", f"l{layer}_reverse"):
            absent = suffix != "l0"
            yield leaf(f"weight_ih_{suffix}", f"kernel_{suffix}", "o i -> i o", absent)
            yield leaf(f"weight_hh_{suffix}", f"recurrent_kernel_{suffix}", "o i -> i o", absent)
            yield leaf(f"bias_ih_{suffix}", f"bias_{suffix}", "o -> o", True)
            yield leaf(f"bias_hh_{suffix}", f"recurrent_bias_{suffix}", "o -> o", True)
            yield leaf(f"weight_hr_{suffix}", f"projection_{suffix}", "p o -> o p", True)


def _call_own(layer: Any, input: Any, hx: Any = None) -> Any:
    """Torch takes a packed sequence, and a single one without a batch, too."""
    if isinstance(input, (tuple, list)):
        x, lengths = _unpacked(input)
        y, state = _whole(layer(x, hx, lengths))
        return _packed(y, lengths, input), state
    if input.ndim > 2:
        return layer(input) if hx is None else layer(input, hx)
    y, state = _whole(layer(input[None]) if hx is None else layer(input[None], _each(lambda one: one[:, None], hx)))
    return y[0], _each(lambda one: one[:, 0], state)


def _whole(result: Any) -> Any:
    """(y, state) of a layer; what only notes its arguments gives one of them."""
    return result if isinstance(result, (tuple, list)) else (result, ())


def _unpacked(packed: Any) -> tuple[np.ndarray, np.ndarray]:
    """The sequences (N, L, C) of a PackedSequence, in their own order and with zeros behind them, and their lengths."""
    data, sizes, _, order = packed
    padded = np.zeros((sizes[0], len(sizes), *data.shape[1:]), data.dtype)
    there = np.arange(sizes[0])[:, None] < sizes  # (N, L)
    padded.swapaxes(0, 1)[there.T] = data  # step by step, the longest sequence first
    lengths = there.sum(1)
    return (padded, lengths) if order is None else (padded[order], lengths[order])


def _packed(y: Any, lengths: np.ndarray, like: Any) -> np.ndarray:
    """(N, L, C) -> the data of a PackedSequence."""
    _, sizes, order, _ = like
    y = np.asarray(y) if order is None else np.asarray(y)[order]
    return y.swapaxes(0, 1)[(np.arange(sizes[0])[:, None] < sizes).T]


def _data(value: Any) -> Any:
    """Torch's (y, state), of a packed y its data."""
    y, state = value
    return y[0] if isinstance(y, (tuple, list)) else y, state


def _each(function: Callable[[Any], Any], state: Any) -> Any:
    return tuple(map(function, state)) if isinstance(state, (tuple, list)) else function(state)


def _call_in_turn(given: Any, input: Any, hx: Any = None) -> Any:
    """Keras's own layers, one behind another: each takes its states in a list, direction by direction."""
    layers = [layer for _, layer in _placed("", given)]
    packed = isinstance(input, (tuple, list))
    single = not packed and input.ndim == 2
    result, lengths = _unpacked(input) if packed else (input[None] if single else input, None)
    more = {"mask": np.arange(result.shape[1]) < lengths[:, None]} if lengths is not None else {}
    states = [] if hx is None else list(hx) if isinstance(hx, (tuple, list)) else [hx]
    count = len(states[0]) // len(layers) if states else 0
    for index, layer in enumerate(layers):
        mine = [state[place] for place in range(index * count, (index + 1) * count) for state in states]
        mine = [one[None] if single else one for one in mine]
        result = result[0] if isinstance(result, (tuple, list)) else result
        result = layer(result, initial_state=mine, **more) if mine else layer(result, **more)
    if lengths is not None:
        y, *rest = result if isinstance(result, (tuple, list)) else (result,)
        y = _packed(y, lengths, input) if len(y.shape) > 2 else y
        return [y, *rest]
    return _each(lambda one: one[0], result) if single else result


def _returned_by(last: Any) -> Callable[[Any], Any]:
    """What of torch's (y, state) the last of Keras's layers gives.

    Raises:
        ValueError: it merges its directions as torch cannot.
    """
    both = hasattr(last, "backward_layer")
    merge = getattr(last, "merge_mode", "concat")
    if merge is not None and merge not in _MERGES:
        raise ValueError(f"merge_mode: expected one of {', '.join(_MERGES)}, got {merge!r}")
    layer = last.forward_layer if both else last

    def returned(value: Any) -> Any:
        y, state = _data(value)
        states = state if isinstance(state, (tuple, list)) else [state]
        ends = [one[-2:] if both else one[-1:] for one in states]  # of the last layer
        # The last result of the way back is at the first step, so the last results are those of the state.
        halves = list(ends[0]) if not layer.return_sequences else np.split(y, len(ends[0]), -1)
        results = [_MERGES[merge](*halves)] if both and merge else halves
        if layer.return_state:
            results += [one[place] for place in range(len(ends[0])) for one in ends]
        return results[0] if len(results) == 1 else results

    return returned


def _fitted(layout: _Layout) -> Callable[[Kind, dict[str, Any]], Kind]:
    def fitted(kind: Kind, layers: dict[str, Any]) -> Kind:
        whole = layers.get("")
        if "" in layers and (whole is None or hasattr(whole, "kernel_l0")):
            return kind
        leaves: list[Leaf] = []
        flat = [one for part, given in layers.items() for one in _placed(f"{part}." if part else "", given)]
        if not flat:
            raise ValueError("there is no layer")
        for index, (path, layer) in enumerate(flat):
            for suffix, below, one in _directions(f"l{index}", path, layer):
                if not hasattr(one, "cell"):
                    told = f"is a {type(one).__name__}, no recurrent layer that is known" if one else "is no layer"
                    raise ValueError(f"{below.rstrip('.') or 'it'} {told}")
                leaves += layout.leaves(f"_{suffix}", f"{below}cell.", one.cell)
        returns = _returned_by(flat[-1][1]) if kind.returns is _data else kind.returns
        return replace(kind, leaves=tuple(leaves), call=_call_in_turn, returns=returns, fitted=None)

    return fitted


def _directions(suffix: str, path: str, layer: Any) -> list[tuple[str, str, Any]]:
    """(end of torch's names, path with a dot behind it, layer) of each direction."""
    if not hasattr(layer, "backward_layer"):
        return [(suffix, path, layer)]
    return [
        (suffix, f"{path}forward_layer.", layer.forward_layer),
        (f"{suffix}_reverse", f"{path}backward_layer.", layer.backward_layer),
    ]


def _placed(path: str, given: Any) -> Iterator[tuple[str, Any]]:
    """(path with a dot behind it, layer) of each in its turn; dropout between them is torch's own argument."""
    several = getattr(given, "layers", given)  # of a Sequential; no recurrent layer has such a list
    if isinstance(several, (list, tuple)):
        for index, one in enumerate(several):
            yield from _placed(f"{path}{index}.", one)
    elif type(given).__name__ != "Dropout":
        yield path, given


def _call_cell(cell: Any, input: Any, hx: Any = None) -> Any:
    """Torch's cell: (N, C), or (C,) without a batch; the state is zeros where it is not given."""
    single = input.ndim < 2
    x = input[None] if single else input
    if hx is None:
        states = [np.zeros((len(x), cell.units), x.dtype) for _ in range(np.size(cell.state_size))]
    else:
        states = [one[None] if single else one for one in (hx if isinstance(hx, (tuple, list)) else (hx,))]
    _, states = cell(x, states)
    states = list(states) if isinstance(states, (tuple, list)) else [states]
    states = [one[0] if single else one for one in states]
    return tuple(states) if len(states) > 1 else states[0]


def _cell_kind(layout: _Layout) -> Kind:
    name = {"LSTMCell": "LSTM_CELL", "GRUCell": "GRU_CELL", "SimpleRNNCell": "RNN_CELL"}[layout.cell]
    leaves = [
        leaf(f"weight_{one}", place, layout.kernel) for one, place in (("ih", "kernel"), ("hh", "recurrent_kernel"))
    ]
    leaves.append(leaf(("bias_ih", "bias_hh"), "bias", "o -> o", optional=True, fold=SUM))

    def fitted(kind: Kind, layers: dict[str, Any]) -> Kind:
        return replace(kind, leaves=tuple(layout.leaves("", "", layers[""])), fitted=None)

    return Kind(name, tuple(leaves), call=_call_cell, suspects=_SUSPECTS, fitted=fitted)


def _kind(name: str, layout: _Layout) -> Kind:
    leaves = tuple(_own_leaves())
    return Kind(
        name, leaves, sequences=_SEQUENCES, call=_call_own, returns=_data, suspects=_SUSPECTS, fitted=_fitted(layout)
    )


def stacked(kind: Kind, *paths: str) -> Kind:
    """The kind of a module that is several Keras layers, which stand at these paths below the row's, in their order.

    `Row("rnn", kinds.stacked(kinds.GRU, "l0", "l1"), keras="")`
    """
    return replace(kind, parts=paths)


_LSTM, _GRU, _RNN = _Layout("LSTMCell"), _Layout("GRUCell", _GATES_FIRST), _Layout("SimpleRNNCell")
# torch.nn.LSTM, GRU and RNN.
LSTM, GRU, RNN = _kind("LSTM", _LSTM), _kind("GRU", _GRU), _kind("RNN", _RNN)
# torch.nn.LSTMCell, GRUCell and RNNCell, against Keras's of these names (of RNNCell, SimpleRNNCell).
LSTM_CELL, GRU_CELL, RNN_CELL = _cell_kind(_LSTM), _cell_kind(_GRU), _cell_kind(_RNN)
