"""Where compiling pays, an op runs as an XLA executable that lives inside it; elsewhere as plain TensorFlow ops.

XLA compiles once per shape, which takes seconds. To compile no more than is needed, an op called eagerly

- compiles only calls whose arguments hold at least WORTHWHILE numbers; the others run in one graph for every shape;
- compiles the first EXACT batch sizes of a sample shape as they are, and cuts any further batch size into powers of
  two, so that the number of executables grows with its logarithm;
- compiles the first SHAPES sample shapes, sets of options counted separately; any further one is plain.

Inside a `tf.function` the shapes are the graph's: the op is compiled if all but the batch are known, and is plain
otherwise. `jit(False)` makes every op plain.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

WORTHWHILE = 2**16
EXACT = 4
SHAPES = 32
OPTIONS = 64  # sets of options that have graphs; any further one runs op by op

_enabled = True


class jit:
    """Allow (the default) or forbid the ops to compile: `jit(False)` for good, `with jit(False):` for a while.

    Forbid it while tracing a graph that is to hold plain TensorFlow ops only, as for TensorFlow Lite.
    """

    def __init__(self, enabled: bool = True) -> None:
        global _enabled
        self._before, _enabled = _enabled, bool(enabled)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exception: Any) -> None:
        global _enabled
        _enabled = self._before


class compiled:
    """Decorate a function of tensors and keyword options, `f(*tensors, **options) -> tensor`.

    The first axis of every tensor is the batch, and the samples of a batch do not see each other. Options are hashable;
    any size that the function needs to know while it is traced is one of them.
    """

    def __init__(self, function: Callable[..., tf.Tensor]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self._variants: dict[Any, tuple[Callable[..., tf.Tensor], _Runner]] = {}
        self._batches: dict[Any, set[int]] = {}  # of each sample shape

    def __call__(self, *tensors: tf.Tensor, **options: Any) -> tf.Tensor:
        key = tuple(options.items())
        if key not in self._variants:
            if len(self._variants) >= OPTIONS:
                return self.function(*tensors, **options)
            self._variants[key] = self._variant(key)
        return self._variants[key][0](*tensors)

    def _variant(self, key: Any) -> tuple[Callable[..., tf.Tensor], "_Runner"]:
        """The function with its options bound, its gradient with it; and what runs its forward pass."""
        options = dict(key)

        def function(*tensors: tf.Tensor) -> tf.Tensor:
            return self.function(*tensors, **options)

        def gradient(*tensors: tf.Tensor) -> list[tf.Tensor]:
            *inputs, upstream = tensors
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                output = function(*inputs)
            return tape.gradient(output, inputs, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO)

        forward, backward = _Runner(function), _Runner(gradient)

        @tf.custom_gradient
        def call(*tensors: tf.Tensor) -> Any:
            pieces = self._pieces(key, tensors)
            # Recomputing in the backward pass keeps nothing between the passes but the arguments.
            # With the gradient stopped, a tape does not make the forward pass keep its intermediate results.
            output = forward(pieces, *map(tf.stop_gradient, tensors))
            return output, lambda upstream: backward(pieces, *tensors, upstream)

        return call, forward

    def _pieces(self, key: Any, tensors: Sequence[tf.Tensor]) -> list[int] | None:
        """The batch sizes to compile for, [] where the graph's own shapes are to be compiled, None for plain ops."""
        samples = tuple(tensor.shape[1:] for tensor in tensors)
        batch = tensors[0].shape[0]
        if not _enabled or not all(shape.is_fully_defined() for shape in samples):
            return None
        if sum(shape.num_elements() for shape in samples) * (1 if batch is None else batch) < WORTHWHILE:
            return None
        if not tf.executing_eagerly():
            return []
        sample = (key, tensors[0].dtype, *map(tuple, samples))
        if sample not in self._batches and len(self._batches) >= SHAPES:
            return None
        batches = self._batches.setdefault(sample, set())
        if len(batches) < EXACT:
            batches.add(batch)
        if batch in batches:
            return [batch]
        return [1 << bit for bit in reversed(range(batch.bit_length())) if batch >> bit & 1]


class _Runner:
    """Runs a function compiled in pieces, compiled as it is, or plain."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._plain = tf.function(function, autograph=False)
        self._jitted = tf.function(function, jit_compile=True, autograph=False)
        # Kept here and not by tf.function, which warns of many shapes.
        self._functions: dict[Any, Callable[..., Any]] = {}

    def __call__(self, pieces: list[int] | None, *tensors: tf.Tensor) -> Any:
        if pieces is None:
            return self._traced(tensors)(*tensors) if tf.executing_eagerly() else self._function(*tensors)
        if not pieces:
            return self._jitted(*tensors)
        if len(pieces) == 1:
            return self._executable(tensors)(*tensors)
        parts = [
            self._executable(part)(*part)
            for part in zip(*(tf.split(tensor, pieces) for tensor in tensors), strict=True)
        ]
        if isinstance(parts[0], (list, tuple)):
            return [tf.concat(part, 0) for part in zip(*parts, strict=True)]
        return tf.concat(parts, 0)

    def _traced(self, tensors: Sequence[tf.Tensor]) -> Callable[..., Any]:
        """One graph of plain ops for every shape."""
        key = tuple((tensor.dtype, tensor.shape.rank) for tensor in tensors)
        if key not in self._functions:
            specs = (tf.TensorSpec((None,) * tensor.shape.rank, tensor.dtype) for tensor in tensors)
            self._functions[key] = self._plain.get_concrete_function(*specs)
        return self._functions[key]

    def _executable(self, tensors: Sequence[tf.Tensor]) -> Callable[..., Any]:
        """The executable for these very shapes."""
        key = tuple((tensor.dtype, tuple(tensor.shape)) for tensor in tensors)
        if key not in self._functions:
            self._functions[key] = self._jitted.get_concrete_function(*tensors)
        return self._functions[key]
