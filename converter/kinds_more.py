"""More kinds: normalisations, kernels whose inputs or outputs lie otherwise in Keras, folds that are made to order.

Each is a name of `converter.kinds` too. Further axis letters: g positions of a grid (gd, gh, gw), r factors by which an
image grows (rh, rw).
"""

from dataclasses import replace
from typing import Any

from converter import folds
from converter.axes import pattern
from converter.kinds import (
    BIAS,
    IMAGE,
    NORM_LEAVES,
    NORM_SCALES,
    NORM_SUSPECTS,
    Kind,
    Leaf,
    leaf,
    normed,
)

_COUNT = (("num_batches_tracked", "Keras keeps no count of batches"),)
_STATISTICS = (
    leaf("running_mean", "moving_mean", "c -> c", optional=True),
    leaf("running_var", "moving_variance", "c -> c", optional=True),
)

# `tf_models.layers.InstanceNormalization`, with or without factors and statistics.
INSTANCE_NORM = Kind(
    "INSTANCE_NORM",
    (*NORM_LEAVES, *_STATISTICS),
    ignored=_COUNT,
    inputs=IMAGE,
    results=IMAGE,
    probe_scales=NORM_SCALES,
    suspects="its epsilon, or statistics that one side keeps (track_running_stats)",
)
# torch's eps=None is float32's epsilon, 1.19e-7; Keras's default is 1e-6.
RMS_NORM = Kind(
    "RMS_NORM",
    (leaf("weight", "scale", "... -> ...", optional=True),),
    probe_scales=NORM_SCALES,
    suspects="its epsilon (torch's None is 2 ** -23, Keras's default 1e-6)",
)


def _flattened(order: str) -> str:
    return f"... {order} -> ... (h w c)"


# A linear layer after a flatten, `n c h w -> n (c h w)` in torch and `n h w c -> n (h w c)` in Keras.
# `DENSE_FLATTENED.sized(h=7, w=7)`, or with c and one of them.
_FLAT = "(c h w)"
_AT_FIRST = {"0": _flattened(_FLAT), "input": _flattened(_FLAT)}
FLAT_SUSPECTS = "the sizes of what was flattened: h and w, in this order"
DENSE_FLATTENED = Kind(
    "DENSE_FLATTENED",
    (normed(leaf("weight", "kernel", "o (c h w) -> (h w c) o")), BIAS),
    inputs=_AT_FIRST,
    suspects=FLAT_SUSPECTS,
    activated=True,
)
_FLAT_VECTOR = "(c h w) -> (h w c)"
# BatchNorm1d after such a flatten.
BATCH_NORM_FLATTENED = Kind(
    "BATCH_NORM_FLATTENED",
    (
        leaf("weight", "gamma", _FLAT_VECTOR, optional=True),
        leaf("bias", "beta", _FLAT_VECTOR, optional=True),
        leaf("running_mean", "moving_mean", _FLAT_VECTOR, optional=True),
        leaf("running_var", "moving_variance", _FLAT_VECTOR, optional=True),
    ),
    ignored=_COUNT,
    inputs=_AT_FIRST,
    results={"": _flattened(_FLAT), "0": _flattened(_FLAT)},
    probe_scales=NORM_SCALES,
    suspects=f"{FLAT_SUSPECTS}, or {NORM_SUSPECTS}",
)
