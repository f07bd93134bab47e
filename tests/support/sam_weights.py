"""Carry a torch SAM module's weights to the Keras layer of the same attribute paths, without the converter."""

from typing import Any

import keras
import numpy as np
import torch

# Keras variable name and axes per torch leaf. Every 2-d weight is a Linear's, or an Embedding's; every 4-d one a
# convolution's, whose axes are permuted alike in both directions.
_DENSE = ("kernel", (1, 0))  # (O, I) -> (I, O)
_CONV = ("kernel", (2, 3, 1, 0))  # (O, I, kh, kw) -> (kh, kw, I, O); transposed: (I, O, kh, kw) -> (kh, kw, O, I)


def at_path(root: Any, path: str) -> Any:
    """The object at an attribute path, whose numbers index containers: "transformer.layers.0.norm1"."""
    for part in path.split("."):
        root = root[int(part)] if part.isdecimal() else getattr(root, part)
    return root


def variable_and_value(model: Any, name: str, tensor: torch.Tensor) -> tuple[keras.Variable, np.ndarray]:
    """The Keras variable for the state-dict entry `name`, and the entry as that variable holds it."""
    path, _, leaf = name.rpartition(".")
    layer, value = at_path(model, path), tensor.detach().numpy()
    if isinstance(layer, keras.layers.Embedding):
        return layer.embeddings, value
    if leaf not in ("weight", "bias"):  # a parameter of the module's own
        return getattr(layer, leaf), value
    if leaf == "bias":
        return (layer.beta if hasattr(layer, "beta") else layer.bias), value
    if value.ndim == 1:
        return layer.gamma, value
    variable, axes = _DENSE if value.ndim == 2 else _CONV
    return getattr(layer, variable), value.transpose(axes)


def carry(module: torch.nn.Module, model: Any) -> None:
    """Assign every tensor of `module` to its variable of `model`; each variable is filled exactly once."""
    pairs = [variable_and_value(model, name, tensor) for name, tensor in module.state_dict().items()]
    assert {id(variable) for variable, _ in pairs} == {id(variable) for variable in model.variables}
    assert len(pairs) == len(model.variables)
    for variable, value in pairs:
        variable.assign(value)
