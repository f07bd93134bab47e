"""Values for a network that is looked at without a checkpoint: no two tensors alike, and none that hides another.

Both sides make them from a tensor's name, shape and owner, so that they need not be sent.
"""

import re
import zlib

import numpy as np

_NORM = re.compile(r"norm|^bn|_bn$|^ln|_ln$|^gn", re.IGNORECASE)
_FACTORS = re.compile(r"(^|_)(gamma|weight|scale|lambda)", re.IGNORECASE)
_TABLE = re.compile(r"table|embed", re.IGNORECASE)


def seeded(name: str, shape: tuple[int, ...], owner: str) -> np.ndarray:
    """Float32 values for the tensor `name` of a module of the class `owner`, in the way of a trained network's.

    Factors and variances are positive, so that nothing is switched off; kernels keep the size of what they are given.
    """
    rng = np.random.default_rng([20_261_130, zlib.crc32(name.encode())])
    leaf = name.rpartition(".")[2]
    rank = sum(length > 1 for length in shape)
    if leaf == "running_var":
        values = rng.uniform(0.5, 1.5, shape)
    elif leaf == "running_mean":
        values = _normal(rng, 0.1, shape)
    elif _NORM.search(owner) and rank <= 1:
        values = rng.uniform(0.5, 1.5, shape) if _FACTORS.search(leaf) else _normal(rng, 0.1, shape)
    elif "Embedding" in owner or (rank >= 2 and _TABLE.search(leaf)):
        values = _normal(rng, 0.5, shape)
    elif rank >= 2 and len(shape) >= 2:
        fan = int(np.prod(shape[1:])) or 1
        values = _normal(rng, fan**-0.5 if fan > shape[-1] or shape[0] > 1 else 0.3, shape)
    elif _FACTORS.search(leaf):
        values = rng.uniform(0.3, 1.0, shape)
    else:
        values = _normal(rng, 0.1, shape)
    return np.asarray(values, np.float32)


def _normal(rng: np.random.Generator, scale: float, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.standard_normal(shape, dtype=np.float32)
    values *= scale
    return values
