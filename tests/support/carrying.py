"""Torch's tensors into a Keras model in memory, by a pair's mapping: the axes of a conversion, without its files.

Tests compare what the model then computes with torch, so a wrong mapping fails them as a wrong model does.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

import converter
import tf_models
from converter import Row
from converter.kinds import Kind
from converter.pairs.mapping import join
from converter.pairs.registry import get
from converter.planning.variables import by_path


def twin(name: str, config: dict[str, Any], state: Mapping[str, Any], **more: Any) -> Any:
    """The pair's Keras model of this configuration, with the weights of a state dict."""
    return carry(state, tf_models.create(name, **config, **more), get(name).mapping(config))


def carry(state: Mapping[str, Any], model: Any, mapping: converter.Mapping) -> Any:
    """Fill the variables of a model or a layer, every one of them, and give it back.

    `state` is torch's names -> tensors or arrays.
    """
    values = laid_out(state, model, mapping)
    for path, variable in by_path(model).items():
        variable.assign(values[path])
    return model


def laid_out(state: Mapping[str, Any], model: Any, mapping: converter.Mapping) -> dict[str, np.ndarray]:
    """Attribute path -> array, for every variable, of a state dict or of the gradients to one.

    Every tensor is used once or dropped by the mapping, and comes back to the bit where nothing is folded.
    """
    mapping = mapping.holding(state)
    variables, left = by_path(model), state.keys() - mapping.ignored().keys()
    found: dict[str, np.ndarray] = {}
    for torch_path, keras_path, kind in mapping.modules():
        for leaf in kind.leaves:
            places = [join(keras_path, name) for name in leaf.keras]
            names = [join(torch_path, name) for name in leaf.torch]
            if leaf.optional and not any(place in variables for place in places):
                assert not any(name in left for name in names), f"no variables for {names}"
                continue
            assert all(name in state for name in names), f"no tensors for {places}"
            tensors = [np.asarray(state[name]) for name in names]
            shapes = [tuple(variables.pop(place).shape) for place in places]
            assert leaf.torch_shapes(shapes) == [tensor.shape for tensor in tensors]
            values = leaf.to_keras(tensors, shapes)
            if leaf.fold is None:
                for tensor, back in zip(tensors, leaf.to_torch(values), strict=True):
                    np.testing.assert_array_equal(back, tensor, err_msg=str(names))
            found.update(zip(places, values, strict=True))
            left -= set(names)
    assert not variables, f"not filled: {', '.join(variables)}"
    assert not left, f"neither mapped nor dropped: {', '.join(left)}"
    return found


def alone(kind: Kind) -> converter.Mapping:
    """The mapping of a module that is all there is."""
    return converter.Mapping([Row("", kind)])
