"""Whether the truth is true: the Keras model as the library's own converter fills it, beside torch."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ports.port import Inputs
from converter import nested

Compared = Callable[[Any], Any] | None


class Filled:
    """A Keras model that the library's own converter filled.

    Attributes:
        model: the model.
        built: path -> the value that each variable had before.
        values: path -> the value of those that the converter filled.
    """

    def __init__(self, name: str, checkpoint: Path):
        from benchmarks.ports.pairs import fill, keras_of
        from converter.planning.variables import by_path

        self.model = keras_of(name)
        variables = by_path(self.model)
        self.built = {path: variable.numpy() for path, variable in variables.items()}
        for path, value in self.built.items():
            if value.dtype.kind == "f":
                variables[path].assign(np.full_like(value, np.nan))
        fill(name, self.model, checkpoint)
        self.values: dict[str, np.ndarray] = {}
        for path, value in self.built.items():
            now = variables[path].numpy()
            if now.dtype.kind == "f" and np.isnan(now).any():
                variables[path].assign(value)
            elif now.dtype.kind == "f":
                self.values[path] = now


def measure(name: str, checkpoint: Path) -> dict[str, Any]:
    """What a row of the table has: errors over the largest value, and the counts."""
    from benchmarks.ports.pairs import PORTS, filled_torch_of, inputs_of, read_checkpoint

    inputs = inputs_of(name)
    module = filled_torch_of(name)
    compared = PORTS[name].compared
    theirs = run_torch(module, inputs, compared)
    exact = _in_double(module, inputs, compared)
    filled = Filled(name, checkpoint)
    ours = run_keras(filled.model, inputs)
    mask = _mask(inputs)
    errors = [error for one in ours if (error := nearest(theirs, one, mask)) is not None]
    own = [error for one in theirs if exact and (error := nearest(exact, one, mask)) is not None]
    return {
        "error": max(errors, default=None),
        "torch": max(own, default=None),
        "outputs": f"{len(errors)} of {len(ours)}",
        "variables": len(filled.built),
        "filled": len(filled.values),
        "unfilled": sorted(set(filled.built) - set(filled.values)),
        "renamed": len(set(read_checkpoint(checkpoint)) - set(read_checkpoint(checkpoint, "live"))),
    }


def run_torch(module: Any, inputs: Inputs, compared: Compared = None) -> list[np.ndarray]:
    """The outputs of floats, or those that `compared` makes of them."""
    import torch

    given = nested.each(torch.as_tensor, inputs[0])
    with torch.no_grad():
        result = module(**given) if isinstance(given, dict) else module(*given)
        result = compared(result) if compared else result
    return [one.numpy() for _, one in nested.flat(result) if torch.is_tensor(one) and one.is_floating_point()]


def run_keras(model: Any, inputs: Inputs) -> list[np.ndarray]:
    """The outputs of floats."""
    given = inputs[1] if isinstance(inputs[1], dict) else inputs[1][0]
    result = model(given, training=False)
    found = [np.asarray(one) for _, one in nested.flat(result) if hasattr(one, "shape")]
    return [one for one in found if one.dtype.kind == "f"]


def _in_double(module: Any, inputs: Inputs, compared: Compared) -> list[np.ndarray]:
    """torch's outputs in float64; none where the network does not run so."""
    double = (nested.each(lambda one: one.astype(np.float64) if one.dtype.kind == "f" else one, inputs[0]), ())
    try:
        return run_torch(module.double(), double, compared)
    except Exception:  # a network with float32 written in it
        return []
    finally:
        module.float()


def _mask(inputs: Inputs) -> np.ndarray | None:
    """1 where a token is none of padding."""
    if not isinstance(inputs[0], dict):
        return None
    return inputs[0].get("attention_mask")


def nearest(theirs: list[np.ndarray], ours: np.ndarray, mask: np.ndarray | None = None) -> float | None:
    """The largest difference over the largest value, from the array and layout of `theirs` that is nearest.

    None where none has the size. What stands behind a mask is not compared.
    """
    kept = np.ones(ours.shape, bool)
    if mask is not None and ours.ndim >= 2 and ours.shape[:2] == mask.shape:
        kept &= (mask > 0).reshape(*mask.shape, *[1] * (ours.ndim - 2))
    errors = [
        float(np.abs(one - ours)[kept].max() / max(np.abs(one[kept]).max(), 1e-30))
        for array in theirs
        if array.size == ours.size
        for one in _layouts(array, ours.shape)
    ]
    return min(errors, default=None)


def _layouts(array: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    yield array.reshape(shape)
    if array.ndim > 2:
        yield np.moveaxis(array, 1, -1).reshape(shape)
