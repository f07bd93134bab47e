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


def jit_enabled() -> bool:
    """Whether ops may compile, or hold plain TensorFlow ops only."""
    return _enabled


class compiled:
    """Decorate a function of tensors and keyword options, `f(*tensors, **options) -> tensor`.

    The first axis of every tensor is the batch, and the samples of a batch do not see each other. Options are hashable;
    any size that the function needs to know while it is traced is one of them.
    """

    def __init__(self, function: Callable[..., tf.Tensor]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self._variants: dict[Any, dict[bool, _Graphs]] = {}  # options -> is compiled -> its graphs
        self._batches: dict[Any, set[int]] = {}  # of each sample shape

    def __call__(self, *tensors: tf.Tensor, **options: Any) -> tf.Tensor:
        key = tuple(options.items())
        if key not in self._variants:
            if len(self._variants) >= OPTIONS:
                return self.function(*tensors, **options)
            bound = functools.partial(self.function, **options)
            self._variants[key] = {compiles: _Graphs(bound, compiles) for compiles in (False, True)}
        pieces = self._pieces(key, tensors)
        graphs = self._variants[key][pieces is not None]
        if not tf.executing_eagerly():
            return graphs.inline(*tensors)
        if pieces is None:
            return graphs.of_rank(tensors)(*tensors)
        if len(pieces) == 1:
            return graphs.of_shape(tensors)(*tensors)
        parts = zip(*(tf.split(tensor, pieces) for tensor in tensors), strict=True)
        return tf.concat([graphs.of_shape(part)(*part) for part in parts], 0)

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


class _Graphs:
    """A function of tensors with its gradient, in graphs of plain ops or, if it `compiles`, of XLA executables."""

    def __init__(self, function: Callable[..., tf.Tensor], compiles: bool) -> None:
        def gradient(which: slice, *tensors: tf.Tensor) -> list[tf.Tensor]:
            *inputs, upstream = tensors
            with tf.GradientTape() as tape:
                tape.watch(inputs[which])
                output = function(*inputs)
            return tape.gradient(output, inputs[which], upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO)

        def part(run: Callable[..., Any]) -> Callable[..., Any]:
            return tf.function(run, jit_compile=True, autograph=False) if compiles else run

        forward = part(function)
        # What is sampled and what says where: two executables run side by side, and one that nobody needs not at all.
        backward = [part(functools.partial(gradient, which)) for which in (slice(0, 1), slice(1, None))]

        @tf.custom_gradient
        def inline(*tensors: tf.Tensor) -> Any:
            # Recomputing in the backward pass keeps nothing between the passes but the arguments.
            # With the gradient stopped, a tape does not make the forward pass keep its intermediate results.
            output = forward(*map(tf.stop_gradient, tensors))
            return output, lambda upstream: [g for part in backward for g in part(*tensors, upstream)]

        self.inline = inline
        self._function = tf.function(inline, autograph=False)
        # Kept here and not by tf.function, which warns of many shapes and takes longer to choose.
        self._graphs: dict[Any, Callable[..., tf.Tensor]] = {}

    def of_shape(self, tensors: Sequence[tf.Tensor]) -> Callable[..., tf.Tensor]:
        """The graph for these very shapes."""
        key = tuple((tensor.dtype, tuple(tensor.shape)) for tensor in tensors)
        return self._graph(key, [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in tensors])

    def of_rank(self, tensors: Sequence[tf.Tensor]) -> Callable[..., tf.Tensor]:
        """One graph for every shape of these ranks."""
        key = tuple((tensor.dtype, tensor.shape.rank) for tensor in tensors)
        return self._graph(key, [tf.TensorSpec((None,) * tensor.shape.rank, tensor.dtype) for tensor in tensors])

    def _graph(self, key: Any, specs: list[tf.TensorSpec]) -> Callable[..., tf.Tensor]:
        if key not in self._graphs:
            self._graphs[key] = self._function.get_concrete_function(*specs)
        return self._graphs[key]
