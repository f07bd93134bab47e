"""Both sides of a network by hand, without the proof: weights carried over by the mapping, outputs compared in numpy.

In float64 a right network agrees to rounding and a wrong one does not, whatever it is that is wrong.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.soundness.faults import Fault
from benchmarks.soundness.networks import Network
from converter import Mapping
from tests.support.judging import channels_last


def carried(model: Any, rows: Any, state: dict[str, Any]) -> Any:
    """The Keras model, with every tensor of the state dict in its place."""
    from tests.support.carrying import carry

    return carry(state, model, Mapping(rows))


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


@dataclass(frozen=True)
class Checked:
    """How far a network, or a planted fault, is from torch in float64 and float32 on its probe."""

    name: str
    network: str
    exact: float
    single: float


def check_network(network: Network, seed: int = 1, size: int = 0) -> Checked:
    """The right network."""
    return _check(network.name, network, network.build_tf, seed, size)


def check_fault(fault: Fault, seed: int = 1, size: int = 0) -> Checked:
    """The network with the fault planted."""
    return _check(fault.name, fault.planted(), fault.build_tf, seed, size)


def _check(name: str, network: Network, build: Any, seed: int, size: int) -> Checked:
    import keras

    state, inputs = network.seeded_state(seed), network.inputs(np.random.default_rng(seed + 2), size)
    truth = torch_outputs(network, state, inputs, "float64")
    found = {}
    policy = keras.config.dtype_policy()
    for dtype in ("float64", "float32"):
        keras.config.set_dtype_policy(dtype)
        try:
            model = carried(build(), network.rows, state)
            found[dtype] = distance(tf_outputs(model, network, inputs, dtype), truth)
        finally:
            keras.config.set_dtype_policy(policy)
    return Checked(name, network.name, found["float64"], found["float32"])


def shows(fault: Checked, right: Checked) -> bool:
    """The fault changes the outputs by more than any rounding in float64 could."""
    return fault.exact > max(1e-7, 10 * right.exact)
