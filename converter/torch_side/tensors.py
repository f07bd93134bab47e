"""Nested torch values: as the network takes and gives them, and as they leave for the other side."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from converter import nested


def as_tensors(value: Any) -> Any:
    """Nested inputs with a tensor in place of each array."""

    def one(part: Any) -> Any:
        return torch.from_numpy(np.array(part)) if isinstance(part, (np.ndarray, np.generic)) else part

    return nested.each(one, value)


def rounded_once(value: Any) -> Any:
    """In float64, as float32 holds it."""
    return each_tensor(value, lambda tensor: tensor.float().double() if tensor.is_floating_point() else tensor)


def scaled(value: Any, factor: float) -> Any:
    """Times the factor, but for whole numbers and flags."""
    return each_tensor(value, lambda tensor: tensor * factor if tensor.is_floating_point() else tensor)


def double(tensor: Any) -> Any:
    """The tensor in float64, unless it holds whole numbers or flags."""
    return tensor.double() if tensor.is_floating_point() else tensor


def single(tensor: Any) -> Any:
    """The tensor in float32, unless it holds whole numbers or flags."""
    return tensor.float() if tensor.is_floating_point() else tensor


def copied(value: Any) -> Any:
    """With a copy of every tensor."""
    return each_tensor(value, lambda t: t.clone())


def as_arrays(value: Any) -> Any:
    """Plain arrays in plain tuples, lists and dicts; a complex number is two real ones, along a last axis.

    What is no value of Python's or numpy's, as a cache of keys that a network returns, is left out: None.
    """

    def array(tensor: Any) -> Any:
        tensor = tensor.detach()
        if tensor.is_complex():
            tensor = _real(tensor)
        return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).contiguous().numpy()

    def plain(part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            return array(part)
        return part if type(part).__module__ in ("builtins", "numpy") else None

    return nested.each(plain, value, plain=True)


def _real(tensor: Any) -> Any:
    return torch.view_as_real(tensor.resolve_conj())


def tensors_of(value: Any) -> list[Any]:
    """Every tensor in it, in order."""
    return [part for _, part in nested.flat(value) if isinstance(part, torch.Tensor)]


def difference(some: Any, other: Any) -> Any:
    """Tensor by tensor, of two results that are nested alike, in float32, which is enough for a difference."""
    theirs = iter(tensors_of(other))

    def minus(tensor: Any) -> Any:
        against = next(theirs)
        if tensor.is_complex():
            tensor, against = _real(tensor), _real(against)
        if not tensor.is_floating_point() or tensor.shape != against.shape:
            return tensor.new_zeros(against.shape).float()
        return (tensor - against).nan_to_num(0.0, 0.0, 0.0).float()

    return each_tensor(some, minus)


def each_tensor(value: Any, function: Callable[[Any], Any]) -> Any:
    """`value` with `function` applied to every tensor in its tuples, lists and dicts."""
    return nested.each(lambda part: function(part) if isinstance(part, torch.Tensor) else part, value)
