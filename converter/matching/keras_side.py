"""A Keras model as steps: traced once, whatever it is made of; any step's result can be had, and others put in."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from converter import nested
from converter.blame import where_and_what
from converter.errors import ConversionError
from converter.planning.variables import by_path, layers_by_path
from converter.torch_side.answers import Step


class KerasSide:
    """A model, traced on inputs.

    Attributes:
        variables: attribute path -> variable.
        steps: the operations of a run, in their order; they read variables by their attribute paths.
        owners: attribute path of a variable -> class of its layer.
        learnt: attribute paths of variables that training changes, unless their layer is frozen.
        homes: for each step the path of the innermost layer in whose call it stands; "" is the model itself.
        outputs: (path in the result, step) of each output.
    """

    def __init__(self, model: Any, args: tuple, kwargs: dict[str, Any]):
        """
        Raises:
            ConversionError: the model fails on these inputs.
        """
        self.model, self._args, self._kwargs = model, args, kwargs
        self._inputs = [tf.convert_to_tensor(one) for one in tf.nest.flatten((args, kwargs))]

        def run(*flat: Any) -> Any:
            some, named = tf.nest.pack_sequence_as((args, kwargs), list(flat))
            return model(*some, **named, training=False)

        try:
            eager = run(*self._inputs)  # builds what is built by its first call
            specs = [tf.TensorSpec(one.shape, one.dtype) for one in self._inputs]
            with _noted(model) as self._calls:
                self._function = tf.compat.v1.wrap_function(run, specs)
        except Exception as error:  # the user's own program
            raise ConversionError(f"the Keras model fails on its inputs: {where_and_what(error)}") from error
        self.result = eager
        self.variables: dict[str, Any] = by_path(model)
        self.owners = owners_of(model, self.variables)
        learnt = {id(one) for layer in model._flatten_layers(include_self=True) for one in layer._trainable_variables}
        self.learnt = {path for path, variable in self.variables.items() if id(variable) in learnt}
        self._read()

    def _read(self) -> None:
        """Make steps of the graph."""
        graph = self._function.graph
        held = {id(variable.value.handle): path for path, variable in self.variables.items()}
        captured = {id(inner): held.get(id(outer)) for outer, inner in graph.captures}
        self._placeholders = [one for one in self._function.inputs if id(one) not in captured]
        known: dict[str, int | str | None] = {
            one.name: f"input {place}" for place, one in enumerate(self._placeholders)
        }
        known.update({one.name: captured[id(one)] for one in self._function.inputs if id(one) in captured})
        self.steps: list[Step] = []
        self._tensors: list[Any] = []  # by step
        for operation in graph.get_operations():
            if operation.outputs and operation.outputs[0].name in known:
                continue
            number = len(self.steps)
            reads = tuple(known.get(one.name) for one in operation.inputs)
            shapes = tuple(
                tuple(one.shape.as_list()) if one.shape.rank is not None else () for one in operation.outputs
            )
            self.steps.append(Step(number, operation.type, operation.name, reads, shapes))
            floats = [one for one in operation.outputs if one.dtype.is_floating]
            self._tensors.append((floats or list(operation.outputs) or [None])[0])
            known.update({one.name: number for one in operation.outputs})
        places = {operation.name: place for place, operation in enumerate(graph.get_operations())}
        homes = [""] * len(places)
        for path, start, end in sorted(self._calls, key=lambda call: call[1] - call[2]):  # the outer ones first
            homes[start:end] = [path] * (end - start)
        self.homes = [homes[places[step.module]] for step in self.steps]
        self.outputs = [
            (path, known[one.name])
            for path, one in nested.flat(self._function.structured_outputs)
            if isinstance(known.get(getattr(one, "name", "")), int)
        ]
        self._pruned: dict[tuple, Any] = {}

    def input(self, name: str) -> np.ndarray:
        """The input that steps read by this name."""
        return np.asarray(self._inputs[int(name.rpartition(" ")[2])])

    def constant(self, step: int, place: int) -> np.ndarray | None:
        """What a step reads at this place, where the graph says it."""
        operation = self._function.graph.get_operation_by_name(self.steps[step].module)
        return tf.get_static_value(operation.inputs[place]) if place < len(operation.inputs) else None

    def values(self, steps: Sequence[int], given: Mapping[int, np.ndarray] | None = None) -> dict[int, np.ndarray]:
        """What these steps give; `given` are results that stand in the place of other steps' own."""
        given = dict(given or {})
        wanted = [step for step in steps if step not in given]
        if not wanted:
            return {step: given[step] for step in steps}
        key = tuple(wanted), tuple(given)
        if key not in self._pruned:
            feeds = [*self._placeholders, *(self._tensors[step] for step in given)]
            self._pruned[key] = self._function.prune(feeds, [self._tensors[step] for step in wanted])
            if len(self._pruned) > 64:
                self._pruned.pop(next(iter(self._pruned)))
        values = self._pruned[key](
            *self._inputs, *(tf.constant(value, self._tensors[step].dtype) for step, value in given.items())
        )
        return {**dict(zip(wanted, (np.asarray(value) for value in values), strict=True)), **given}

    def now(self) -> Any:
        """What the model gives with the values that it has."""
        some, named = tf.nest.pack_sequence_as((self._args, self._kwargs), self._inputs)
        return self.model(*some, **named, training=False)

    def assign(self, values: Mapping[str, np.ndarray]) -> None:
        """Give variables values, by their attribute paths."""
        for path, value in values.items():
            self.variables[path].assign(value)


@contextmanager
def _noted(model: Any) -> Iterator[list[tuple[str, int, int]]]:
    """In the block, calls of the model's layers are noted that are traced into a graph: (path, first operation, the one
    behind the last)."""
    calls: list[tuple[str, int, int]] = []

    def noting(path: str, call: Any) -> Any:
        @wraps(call)
        def noted(*args: Any, **kwargs: Any) -> Any:
            graph = tf.compat.v1.get_default_graph()
            start = len(graph.get_operations())
            result = call(*args, **kwargs)
            calls.append((path, start, len(graph.get_operations())))
            return result

        return noted

    changed = []
    try:
        for path, layer in layers_by_path(model).items():
            if path and "call" not in vars(layer):
                object.__setattr__(layer, "call", noting(path, layer.call))
                changed.append(layer)
        yield calls
    finally:
        for layer in changed:
            object.__delattr__(layer, "call")


def owners_of(model: Any, variables: Mapping[str, Any]) -> dict[str, str]:
    """Attribute path of each variable -> class of the layer that owns it."""
    of: dict[int, str] = {}
    for layer in model._flatten_layers(include_self=True):
        for variable in (*layer._trainable_variables, *layer._non_trainable_variables):
            of[id(variable)] = type(layer).__name__
    return {path: of.get(id(variable), "") for path, variable in variables.items()}


def is_float(variable: Any) -> bool:
    """Whether a variable holds floats, which alone are matched."""
    return keras.backend.is_float_dtype(variable.dtype)
