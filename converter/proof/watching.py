"""Watching a Keras network while it runs: what reaches each layer, and what becomes of other values there."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from converter import nested

_NEAR = 1e-3  # of its size that an argument may be off and still be taken for the same


@dataclass
class Seen:
    """One call of a layer: its arguments and its result, arrays in nested tuples, lists and dicts.

    `number` is that of torch's call that it stands for; `forced`: the result is not the layer's own.
    """

    args: tuple
    kwargs: dict[str, Any]
    number: int
    result: Any = None
    forced: bool = False

    def arrays(self) -> list[np.ndarray]:
        """Every array among the arguments."""
        return nested.arrays((self.args, self.kwargs))


@dataclass(frozen=True)
class Forced:
    """A result to give instead of the layer's own, if it has its shapes and the layer is called with as many arrays.

    `sizes` are the numbers of values that each array among the arguments may have, those that are equal counted once;
    None if that is not known. A layer that is called without its mask gives its own result, so that this shows.
    """

    result: Any
    sizes: list[set[int]] | None


@dataclass
class Watch:
    """What was seen, and what is to be done to the layers.

    Attributes:
        forced: path -> what to give instead of the layer's own result, for each of torch's calls.
        added: (path, call, place of the argument) -> what to add to that argument.
        given: path -> results, by call, in place of calling the layer at all.
        look: told of (path, call, what is seen so far) before the layer computes.
        expected: path -> the first argument of each of torch's calls, of a layer that has several: Keras may make them
            in another order.
        seen: path -> every call, in the order of the layer's calls.
    """

    forced: Mapping[str, list[Forced | None]] = field(default_factory=dict)
    added: Mapping[tuple[str, int, int], np.ndarray] = field(default_factory=dict)
    given: Mapping[str, Mapping[int, Any]] = field(default_factory=dict)
    look: Callable[[str, int, Seen], None] = lambda path, call, seen: None
    expected: Mapping[str, list[np.ndarray]] = field(default_factory=dict)
    seen: dict[str, list[Seen]] = field(default_factory=dict)

    def calls(self, path: str) -> list[Seen]:
        """Every call of a layer, in torch's order."""
        return sorted(self.seen.get(path, []), key=lambda one: one.number)


@contextmanager
def watched(layers: Iterable[tuple[str, Any]], watch: Watch) -> Iterator[Watch]:
    """In the block, every call of these layers (path, layer) is noted in `watch.seen` and changed as `watch` says.

    One layer may stand for several of torch's modules, and so under several paths. Calls inside a graph that is being
    traced carry no values, and are left alone.
    """
    changed: list[tuple[Any, Any]] = []
    try:
        for path, layer in layers:
            if layer is None or not callable(getattr(layer, "call", None)):
                continue
            changed.append((layer, vars(layer).get("call")))
            object.__setattr__(layer, "call", _watching(path, layer.call, watch))
        yield watch
    finally:
        for layer, before in reversed(changed):
            if before is None:
                object.__delattr__(layer, "call")
            else:
                object.__setattr__(layer, "call", before)


def _watching(path: str, call: Callable[..., Any], watch: Watch) -> Callable[..., Any]:
    @functools.wraps(call)
    def watching(*args: Any, **kwargs: Any) -> Any:
        if not _all_known((args, kwargs)):
            return call(*args, **kwargs)
        args, kwargs = as_declared(call, args, kwargs)
        index = _number(path, (args, kwargs), watch)
        args, kwargs = _with_added(args, kwargs, path, index, watch)
        seen = Seen(nested.each(_array, args), nested.each(_array, kwargs), index)
        watch.seen.setdefault(path, []).append(seen)
        watch.look(path, index, seen)
        if index in watch.given.get(path, {}):
            seen.result = watch.given[path][index]
            return nested.each(_tensor, seen.result)
        result = call(*args, **kwargs)
        forced = watch.forced.get(path, [])
        one = forced[index] if index < len(forced) else None
        if one is not None and _called_alike(seen, one.sizes):
            result, seen.forced = _forced(result, one.result)
        seen.result = nested.each(_array, result)
        return result

    return watching


def as_declared(call: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments in the order in which `call` declares them, however they are given."""
    try:
        bound = inspect.signature(call).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return args, kwargs
    return bound.args, dict(sorted(bound.kwargs.items()))


def _number(path: str, given: Any, watch: Watch) -> int:
    """Which of torch's calls this is: the next, but of several the next one that had this first argument."""
    taken = {one.number for one in watch.seen.get(path, [])}
    free = [number for number in range(len(taken) + 1) if number not in taken]
    expected = watch.expected.get(path, [])
    first = next(iter(nested.arrays(given)), None)
    for number, wanted in enumerate(expected):
        if number not in taken and first is not None and first.shape == wanted.shape:
            size = np.abs(wanted).max(initial=0)
            if bool((np.abs(np.asarray(first, np.float64) - wanted) <= _NEAR * size).all()):
                return number
    return free[0]


def _all_known(value: Any) -> bool:
    return all(not keras.ops.is_tensor(part) or hasattr(part, "numpy") for _, part in nested.flat(value)) and not any(
        isinstance(part, keras.KerasTensor) for _, part in nested.flat(value)
    )


def _array(part: Any) -> Any:
    return np.array(part) if keras.ops.is_tensor(part) or isinstance(part, (np.ndarray, keras.Variable)) else part


def _tensor(part: Any) -> Any:
    return keras.ops.convert_to_tensor(part, dtype=part.dtype) if isinstance(part, np.ndarray) else part


def _with_added(args: tuple, kwargs: dict[str, Any], path: str, index: int, watch: Watch) -> tuple[tuple, dict]:
    if not watch.added:
        return args, kwargs
    place = -1

    def add(part: Any) -> Any:
        nonlocal place
        if not (hasattr(part, "shape") and hasattr(part, "dtype")):
            return part
        place += 1
        more = watch.added.get((path, index, place))
        return part if more is None else part + keras.ops.convert_to_tensor(more, dtype=part.dtype)

    return nested.each(add, (args, kwargs))


def distinct(values: Sequence[np.ndarray]) -> list[int]:
    """The places of all that are not equal to one before: an attention may be given its keys once or twice."""
    found: list[int] = []
    for place, value in enumerate(values):
        if not any(value is values[other] or np.array_equal(value, values[other]) for other in found):
            found.append(place)
    return found


def _called_alike(seen: Seen, sizes: list[set[int]] | None) -> bool:
    if sizes is None:
        return True
    given = seen.arrays()
    places = distinct(given)
    return len(places) == len(sizes) and all(
        given[place].size in known for place, known in zip(places, sizes, strict=True)
    )


def _forced(result: Any, values: Any) -> tuple[Any, bool]:
    """`values` in the place of the result, if they have its shapes; and whether they have.

    Where the layer gives fewer, as an attention that is not asked for its scores, they are the first.
    """
    shapes = [value.shape for value in nested.arrays(result)]
    wanted = nested.arrays(values)[: len(shapes)]
    if not shapes or [value.shape for value in wanted] != shapes:
        return result, False
    theirs = iter(wanted)

    def one(part: Any) -> Any:
        return keras.ops.convert_to_tensor(next(theirs), dtype=part.dtype) if hasattr(part, "shape") else part

    return nested.each(one, result), True
