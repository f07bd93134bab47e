"""Torch's tensors into a Keras model in memory, by a table's rows: the same axes as a conversion, without a file."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from converter.kinds import Kind
from converter.planning.variables import by_path
from converter.tables.mapping import join


def carry(state: Mapping[str, Any], model: Any, modules: Iterable[tuple[str, str, Kind]], dropped: Any = ()) -> Any:
    """Fill the variables of a model or a layer, every one of them, and give it back.

    Args:
        state: torch name -> tensor or array.
        modules: (torch path, Keras path, kind), as `Mapping.modules` gives them.
        dropped: names that are left out.
    """
    variables, left = by_path(model), {name for name in state if name not in dropped}
    for torch_path, keras_path, kind in modules:
        left -= {join(torch_path, name) for name, _ in kind.ignored}
        prefix = f"{torch_path}." if torch_path else ""
        present = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}
        for leaf in kind.holding(present.__contains__).leaves:
            places = [join(keras_path, name) for name in leaf.keras]
            names = [join(torch_path, name) for name in leaf.torch]
            if leaf.optional and not any(place in variables for place in places):
                assert not any(name in left for name in names), f"no variables for {names}"
                continue
            assert all(name in state for name in names), f"no tensors for {places}"
            tensors = [np.asarray(state[name]) for name in names]
            filled = [variables.pop(place) for place in places]
            shapes = [tuple(variable.shape) for variable in filled]
            assert leaf.torch_shapes(shapes) == [tensor.shape for tensor in tensors]
            for variable, value in zip(filled, leaf.to_keras(tensors, shapes), strict=True):
                variable.assign(value)
            if leaf.fold is None:
                for tensor, back in zip(tensors, leaf.to_torch([np.asarray(one) for one in filled]), strict=True):
                    np.testing.assert_array_equal(back, tensor.astype(back.dtype), err_msg=str(names))
            left -= set(names)
    assert not variables, f"not filled: {', '.join(variables)}"
    assert not left, f"neither mapped nor left out: {', '.join(left)}"
    return model


def numbers(module: Any) -> dict[str, np.ndarray]:
    """A torch module's state dict as arrays."""
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}
