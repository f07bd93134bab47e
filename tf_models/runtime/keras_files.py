"""A weights file that Keras saved, held against the variables of the model that a converted file holds.

Keras writes no word about where the values are from, and more beside them: what the optimizer keeps, and of a larger
model in which this one was trained all other layers.
"""

import os
from collections.abc import Mapping
from typing import Any

from tf_models.runtime.weights_format import (
    FORMAT,
    WeightsError,
    attributes_of,
    check_plain,
    datasets,
    printable,
    stored_dtype,
)

_OPTIMIZER = "optimizer"  # the group in which Keras keeps the state of a compiled model's
_HELD = ("float32", "float16", "bfloat16")  # what becomes float32 without loss
_SHOWN = 3


def matched(file: Any, shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[dict[str, Any], str]:
    """(place -> dataset, the group that they stand in) of an open file that Keras saved.

    The file holds the datasets of the model `name` and no others but an optimizer's; or one group of it does, as it is
    with a model that was trained as a part of a larger one. Of the file itself the group is "".

    Raises:
        WeightsError: it does not, or several groups do, or the converter wrote it.
    """
    if attributes_of(file).get("format") == FORMAT:
        raise WeightsError("says itself where it is from, so it is not to be read like another; leave that one out")
    found = dict(datasets(file))
    anchor = min(shapes, default="")
    groups = [place.removesuffix(anchor) for place in found if f"/{place}".endswith(f"/{anchor}")]
    fitting = [group for group in groups if not _differences(found, shapes, group)]
    if "" in fitting:
        fitting = [""]
    if len(fitting) > 1:
        told = ", ".join(printable(group.rstrip("/"), 60) for group in fitting[:_SHOWN])
        raise WeightsError(f"holds {name} {len(fitting)} times ({told}); save the model that is meant alone")
    if not fitting:
        nearest = min(["", *groups], key=lambda group: len(_differences(found, shapes, group)))
        within = f" in {printable(nearest.rstrip('/'), 60)}" if nearest else ""
        differences = _differences(found, shapes, nearest)
        more = f", and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise WeightsError(f"does not hold the variables of {name}{within}: {'; '.join(differences[:_SHOWN])}{more}")
    held = {place: found[fitting[0] + place] for place in shapes}
    size = os.path.getsize(file.filename)
    for place, dataset in held.items():
        if stored_dtype(dataset) not in _HELD:
            told = printable(str(dataset.dtype), 40)
            raise WeightsError(f"{place} has dtype {told}; what can be read are {', '.join(_HELD)}")
        check_plain(dataset, place, size)
    return held, fitting[0].rstrip("/")


def _differences(found: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], group: str) -> list[str]:
    """What keeps the group from being the model, a line each."""
    lines = [f"it lacks {place}" for place in shapes if group + place not in found]
    for place, dataset in found.items():
        inside = place.removeprefix(group)
        if not place.startswith(group) or inside.startswith(f"{_OPTIMIZER}/"):
            continue
        if inside not in shapes:
            lines.append(f"it holds {printable(inside, 60)} beside them")
        elif dataset.shape != tuple(shapes[inside]):
            lines.append(f"{inside} has shape {dataset.shape}, and not {tuple(shapes[inside])}")
    return lines


def as_float32(dataset: Any) -> Any:
    """The dataset's values in float32."""
    import numpy as np

    values = dataset[()]
    if stored_dtype(dataset) == "bfloat16":  # the upper half of a float32's bits
        return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.asarray(values, "<f4")
