"""Recurrent layers that compute what torch's do: gates in torch's order, two biases, several layers, both directions.

Keras's own have one bias where torch has two (LSTM, SimpleRNN), other gates first (GRU), and know no projections. Here
every variable has a tensor of torch's: `kernel_l0`, `recurrent_kernel_l0`, `bias_l0`, `recurrent_bias_l0` and
`projection_l0`, and for the way back the same with `_reverse` behind it.

Axis letters: N sequences, L steps, C features, H units, P features of the projection (H where there is none), K layers,
D directions, G gates.
"""

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_models.layers.sizes import uniform

_FUNCTIONS = {"tanh": tf.tanh, "relu": tf.nn.relu}


class _Recurrent(keras.layers.Layer):
    """Layers upon one another, each with one direction or two; a subclass says what one step computes."""

    _gates: int
    _states = 1  # arrays that go from step to step

    def __init__(
        self,
        units: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        use_bias: bool = True,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if units < 1 or num_layers < 1:
            raise ValueError(f"units, num_layers: expected whole numbers from 1, got {units} and {num_layers}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout: expected a number from 0 to 1, got {dropout}")
        self.units, self.num_layers, self.bidirectional = units, num_layers, bidirectional
        self.use_bias = use_bias
        # Torch's: on what a layer gives to the next.
        self.dropping = keras.layers.Dropout(dropout) if dropout and num_layers > 1 else None
        self.dropout = dropout
        self.width = units  # P

    def _suffixes(self, layer: int) -> list[str]:
        return [f"l{layer}", f"l{layer}_reverse"] if self.bidirectional else [f"l{layer}"]

    def build(self, input_shape: Any) -> None:
        channels = input_shape[-1]
        if channels is None:
            raise ValueError("input: expected (N, L, C) with a known number of features")
        for layer in range(self.num_layers):
            for suffix in self._suffixes(layer):
                self._make("kernel", suffix, (channels, self._gates * self.units))
                self._make("recurrent_kernel", suffix, (self.width, self._gates * self.units))
                if self.use_bias:
                    self._make("bias", suffix, (self._gates * self.units,))
                    self._make("recurrent_bias", suffix, (self._gates * self.units,))
                if self.width != self.units:
                    self._make("projection", suffix, (self.units, self.width))
            channels = self.width * len(self._suffixes(layer))

    def _make(self, name: str, suffix: str, shape: tuple[int, ...]) -> None:
        name = f"{name}_{suffix}"
        setattr(self, name, self.add_weight(name=name, shape=shape, initializer=uniform(self.units)))

    def _of(self, name: str, layer: int) -> Any:
        """The variable of each direction, stacked."""
        return tf.stack([getattr(self, f"{name}_{one}").value for one in self._suffixes(layer)])

    def call(self, inputs: Any, initial_state: Any = None, lengths: Any = None, training: Any = None) -> Any:
        """(N, L, C) -> (y, state): y (N, L, D*P), state (K*D, N, P); of an LSTM (h, c), c (K*D, N, H).

        Args:
            initial_state: as the state that is returned; zeros where it is not given.
            lengths: (N,), the steps of each sequence. Behind them y is zero, and nothing there changes the state: what
                torch computes of a packed sequence.
        """
        directions = 2 if self.bidirectional else 1
        batch = tf.shape(inputs)[0]
        widths = (self.width, self.units)[: self._states]
        if initial_state is None:
            shapes = [(self.num_layers * directions, batch, width) for width in widths]
            states = [tf.zeros(shape, self.compute_dtype) for shape in shapes]
        else:
            states = list(initial_state) if self._states > 1 else [initial_state]
            if len(states) != self._states:
                raise ValueError(f"initial_state: expected {self._states} arrays, got {len(states)}")
            states = [ops.cast(state, self.compute_dtype) for state in states]
        lengths = None if lengths is None else tf.convert_to_tensor(lengths)
        ends: list[Any] = []
        for layer in range(self.num_layers):
            if layer and self.dropping is not None:
                inputs = self.dropping(inputs, training=training)
            first = layer * directions
            inputs, last = self._layer(inputs, layer, [state[first : first + directions] for state in states], lengths)
            ends.append(last)
        whole = tuple(tf.concat(parts, 0) for parts in zip(*ends, strict=True))
        return inputs, whole if self._states > 1 else whole[0]

    def _layer(self, inputs: Any, layer: int, states: list[Any], lengths: Any) -> tuple[Any, list[Any]]:
        """One layer, both directions side by side: (N, L, C) -> (N, L, D*P), and the last states, each (D, N, P)."""
        steps = tf.transpose(inputs, (1, 0, 2))  # (N, L, C) -> (L, N, C)
        # What depends on the inputs alone is one product for all steps.
        given = tf.einsum("lnc,dcg->ldng", steps, self._of("kernel", layer))
        recurrent = self._of("recurrent_kernel", layer)  # (D, P, G*H)
        projection = self._of("projection", layer) if self.width != self.units else None
        bias: Any = None
        if self.use_bias:
            given += self._of("bias", layer)[:, None]
            bias = self._of("recurrent_bias", layer)[:, None]  # (D, 1, G*H)
        given = self._turned(given, lengths)
        count = tf.shape(steps)[0]

        def step(time: Any, results: Any, states: list[Any]) -> Any:
            again = tf.matmul(states[0], recurrent)  # (D, N, P) -> (D, N, G*H)
            new = self._step(given[time], again if bias is None else again + bias, states)
            if projection is not None:
                new[0] = tf.matmul(new[0], projection)
            result = new[0]
            if lengths is not None:
                there = (time < tf.cast(lengths, time.dtype))[:, None]  # (N, 1)
                result = tf.where(there, result, tf.zeros_like(result))
                new = [tf.where(there, one, old) for one, old in zip(new, states, strict=True)]
            return time + 1, results.write(time, result), new

        shape = (len(self._suffixes(layer)), inputs.shape[0], self.width)
        results = tf.TensorArray(given.dtype, count, element_shape=shape)
        for state, width in zip(states, (self.width, self.units), strict=False):
            state.set_shape((shape[0], inputs.shape[0], width))
        # XLA must know how many steps there may be, or it has no gradient.
        _, results, states = tf.while_loop(
            lambda time, *_: time < count, step, (tf.constant(0), results, states), maximum_iterations=count
        )
        found = self._turned(results.stack(), lengths)  # (L, D, N, P)
        found = tf.transpose(found, (2, 0, 1, 3))  # (L, D, N, P) -> (N, L, D, P)
        return tf.reshape(found, (*tf.unstack(tf.shape(found)[:2]), shape[0] * self.width)), states

    def _turned(self, steps: Any, lengths: Any) -> Any:
        """(L, D, N, ...) with the steps of the second direction in reversed order, each sequence within its length."""
        if not self.bidirectional:
            return steps
        there, back = tf.unstack(steps, axis=1)
        if lengths is None:
            back = tf.reverse(back, (0,))
        else:
            back = tf.reverse_sequence(back, lengths, seq_axis=0, batch_axis=1)
        return tf.stack((there, back), 1)

    def _step(self, given: Any, again: Any, states: list[Any]) -> list[Any]:
        """The new states, out of the products of input and of state with their kernels, both (D, N, G*H)."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        names = ("units", "num_layers", "bidirectional", "use_bias", "dropout")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(package="weightbridge")
class LSTM(_Recurrent):
    """torch.nn.LSTM: (N, L, C) -> y (N, L, D*P), (h (K*D, N, P), c (K*D, N, H)); gates i f g o.

    `projection` is torch's proj_size: so many features instead of H go to the next step and out, 0 for none.
    """

    _gates, _states = 4, 2

    def __init__(self, units: int, *args: Any, projection: int = 0, **kwargs: Any) -> None:
        super().__init__(units, *args, **kwargs)
        if not 0 <= projection < units:
            raise ValueError(f"projection: expected a whole number from 0, below units ({units}), got {projection}")
        self.projection = projection
        self.width = projection or units

    def _step(self, given: Any, again: Any, states: list[Any]) -> list[Any]:
        i, f, g, o = tf.split(given + again, 4, -1)
        cell = tf.sigmoid(f) * states[1] + tf.sigmoid(i) * tf.tanh(g)
        return [tf.sigmoid(o) * tf.tanh(cell), cell]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "projection": self.projection}


@keras.saving.register_keras_serializable(package="weightbridge")
class GRU(_Recurrent):
    """torch.nn.GRU: (N, L, C) -> y (N, L, D*H), h (K*D, N, H); gates r z n."""

    _gates = 3

    def _step(self, given: Any, again: Any, states: list[Any]) -> list[Any]:
        (r, z, n), (r_again, z_again, n_again) = tf.split(given, 3, -1), tf.split(again, 3, -1)
        update = tf.sigmoid(z + z_again)
        new = tf.tanh(n + tf.sigmoid(r + r_again) * n_again)
        return [(1 - update) * new + update * states[0]]


@keras.saving.register_keras_serializable(package="weightbridge")
class RNN(_Recurrent):
    """torch.nn.RNN: (N, L, C) -> y (N, L, D*H), h (K*D, N, H); `nonlinearity` is "tanh" or "relu"."""

    _gates = 1

    def __init__(self, units: int, *args: Any, nonlinearity: str = "tanh", **kwargs: Any) -> None:
        super().__init__(units, *args, **kwargs)
        if nonlinearity not in _FUNCTIONS:
            raise ValueError(f"nonlinearity: expected one of {', '.join(_FUNCTIONS)}, got {nonlinearity!r}")
        self.nonlinearity = nonlinearity

    def _step(self, given: Any, again: Any, states: list[Any]) -> list[Any]:
        return [_FUNCTIONS[self.nonlinearity](given + again)]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "nonlinearity": self.nonlinearity}
