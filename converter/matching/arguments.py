"""What each side of a match is called with."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from converter import nested
from converter.errors import ConversionError
from converter.matching.builders import Builder


@dataclass(frozen=True)
class Arguments:
    """What torch's network and the Keras model are called with: numpy's arrays, in tuples, lists and dicts.

    Floats of double precision become single ones. Whole numbers are int64 for torch, int32 for Keras, and bytes and
    flags stay what they are.

    Attributes:
        torch, torch_named: positional arguments, and those by name.
        keras, keras_named: the same of the Keras model, as it lays them out.
    """

    torch: tuple[Any, ...] = ()
    torch_named: dict[str, Any] = field(default_factory=dict)
    keras: tuple[Any, ...] = ()
    keras_named: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for side, whole in (("torch", np.int64), ("keras", np.int32)):
            for name in (side, f"{side}_named"):
                object.__setattr__(self, name, nested.each(partial(_plain, whole), getattr(self, name)))

    @property
    def inputs(self) -> dict[str, Any]:
        """Torch's by name, and by place where they are positional, as a `Probe` has them."""
        return {**{str(place): value for place, value in enumerate(self.torch)}, **self.torch_named}


def _plain(whole: type[np.signedinteger], part: Any) -> Any:
    if not isinstance(part, np.ndarray):
        return part
    if part.dtype == np.float64:
        return part.astype(np.float32)
    return part.astype(whole) if part.dtype.kind in "iu" and part.dtype != np.uint8 else part


def arguments_of(inputs: Builder | None, model: Any) -> Arguments:
    """What both sides are called with.

    Raises:
        ConversionError: there is no function of inputs, or it gives something else than inputs.
    """
    if inputs is None:
        raise ConversionError("give --inputs MODULE:FUNCTION: what both networks are called with")
    given = nested.each(_array, inputs())
    both = (
        isinstance(given, tuple) and len(given) == 2 and all(isinstance(one, (tuple, list, Mapping)) for one in given)
    )
    both = both or (isinstance(given, tuple) and len(given) == 2 and _laid_out_twice(*given, model))
    theirs, ours = given if both else (given, None)
    args, kwargs = _called(theirs)
    if ours is None:
        ours = nested.each(lambda part: _for_keras(part, model), theirs)
    batches = [[len(one) for one in nested.arrays(side) if one.ndim > 1][:1] for side in (theirs, ours)]
    if batches[0] != batches[1] and all(batches):
        raise ConversionError(
            f"{inputs.text} gives torch a batch of {batches[0][0]} and Keras one of {batches[1][0]}: both get the same "
            "inputs, each in its own layout"
        )
    return Arguments(args, kwargs, *_called_keras(ours, model))


def _laid_out_twice(theirs: Any, ours: Any, model: Any) -> bool:
    """Whether two values are one input for each side rather than two inputs of torch's."""
    if len(getattr(model, "inputs", None) or ()) == 2:
        return False
    if isinstance(theirs, np.ndarray) and isinstance(ours, np.ndarray):
        return theirs.size == ours.size and sorted(theirs.shape) == sorted(ours.shape)
    return isinstance(theirs, Mapping) or isinstance(ours, Mapping) or type(theirs) is not type(ours)


def _array(part: Any) -> Any:
    if hasattr(part, "detach"):  # a tensor of torch's
        return part.detach().cpu().numpy()
    return np.asarray(part) if hasattr(part, "shape") and hasattr(part, "dtype") else part


def _called(value: Any) -> tuple[tuple, dict[str, Any]]:
    if isinstance(value, Mapping):
        return (), dict(value)
    return (tuple(value) if isinstance(value, (tuple, list)) else (value,)), {}


def _called_keras(value: Any, model: Any) -> tuple[tuple, dict[str, Any]]:
    """A Functional model takes all its inputs as one argument, a subclassed one as its `call` declares them."""
    functional = any(base.__name__ == "Functional" for base in type(model).__mro__)
    if isinstance(value, Mapping):
        names = set(inspect.signature(model.call).parameters)
        if not functional and set(value) <= names:
            return (), dict(value)
        return (dict(value),), {}
    if isinstance(value, (tuple, list)):
        if len(value) == 1:
            return (value[0],), {}
        return ((list(value),), {}) if functional else (tuple(value), {})
    return (value,), {}


def _for_keras(part: Any, model: Any) -> Any:
    """Torch's input as Keras has it: images with the channels last."""
    if not isinstance(part, np.ndarray) or part.ndim not in (4, 5) or part.dtype.kind != "f":
        return part
    turned = np.moveaxis(part, 1, -1)
    shapes = [tuple(one.shape) for one in getattr(model, "inputs", None) or ()]
    fits = [
        any(
            len(shape) == value.ndim and all(a in (None, b) for a, b in zip(shape, value.shape, strict=True))
            for shape in shapes
        )
        for value in (part, turned)
    ]
    if shapes and fits[0] and not fits[1]:
        return part
    return np.ascontiguousarray(turned)
