"""Both sides of a network by hand, without the proof: weights carried over by the table, outputs compared in numpy.

In float64 a right network agrees to rounding and a wrong one does not, whatever it is that is wrong.
"""

from typing import Any

import numpy as np

from benchmarks.soundness.networks import Network
from converter import Mapping
from converter.kinds import channels_last
from converter.mapping import join


def carried(model: Any, rows: Any, state: dict[str, Any]) -> Any:
    """The Keras model, with every tensor of the state dict in its place."""
    from converter.variables import by_path

    variables = by_path(model)
    filled = set()
    for path, keras_path, kind in Mapping(rows).modules():
        for part in kind.leaves:
            name = join(path, part.torch)
            if part.optional and name not in state:
                continue
            for below, layout in part.variables:
                place = join(keras_path, below)
                if place not in variables:
                    raise ValueError(f"no variable {place}; there are {', '.join(variables)}")
                variable = variables[place]
                variable.assign(layout.to_keras(state[name].numpy(), tuple(variable.shape)))
                filled.add(place)
    if filled != set(variables):
        raise ValueError(f"not filled: {sorted(set(variables) - filled)}")
    return model


def tf_outputs(model: Any, network: Network, inputs: dict[str, np.ndarray], dtype: str) -> list[np.ndarray]:
    """The outputs, in Keras's layout."""
    import tensorflow as tf

    given = []
    for name, value in inputs.items():
        value = channels_last(value) if name in network.images else value
        given.append(tf.constant(value, dtype if value.dtype.kind == "f" else None))
    result = model(*given)
    return [np.asarray(one) for one in (result if isinstance(result, (tuple, list)) else (result,))]


def torch_outputs(network: Network, state: dict[str, Any], inputs: dict[str, np.ndarray], dtype: str) -> list:
    """The same of torch, laid out as Keras has them."""
    import torch

    module = network.build_torch().eval()
    module.load_state_dict(state)
    module = module.to(getattr(torch, dtype))
    given = {}
    for name, value in inputs.items():
        tensor = torch.from_numpy(np.ascontiguousarray(value))
        given[name] = tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor
    with torch.no_grad():
        result = module(**given)
    values = [one.numpy() for one in (result if isinstance(result, tuple) else (result,))]
    pairs = zip(network.outputs, values, strict=True)
    return [channels_last(value) if name in network.images else value for name, value in pairs]


def distance(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """The largest difference over the scale; infinite where shapes or counts differ."""
    if [one.shape for one in ours] != [one.shape for one in theirs]:
        return float("inf")
    found = [
        float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max() / max(np.abs(b).max(), 1e-30))
        for a, b in zip(ours, theirs, strict=True)
    ]
    return max(found)
