"""ultralytics' networks and the ports of them in kyolo."""

from collections import OrderedDict
from typing import Any

import numpy as np

from benchmarks.ports.port import Inputs, Port, State


def _inputs() -> Inputs:
    """(1, 3, 160, 160) for torch, (1, 160, 160, 3) for Keras, in [0, 1)."""
    theirs = np.random.default_rng(1).random((1, 3, 160, 160), dtype=np.float32)
    return (theirs,), (np.ascontiguousarray(np.moveaxis(theirs, 1, -1)),)


def _truth(model: Any, state: State) -> None:
    # By name: by order, which its documentation recommends, it stops at a shape that does not fit.
    from kyolo.conversion.convert import transfer_torch_to_keras

    transfer_torch_to_keras(model, OrderedDict(state))


def _levels(result: Any) -> list[Any]:
    """(1, h, w, 64 + classes) for each level: torch has boxes and scores apart, and the levels one behind another."""
    import torch

    head = result[1].get("one2many", result[1])
    joined = torch.cat((head["boxes"], head["scores"]), 1)  # (1, 64 + classes, cells)
    sizes = [one.shape[-2:] for one in head["feats"]]
    levels = joined.split([height * width for height, width in sizes], -1)
    return [one.unflatten(-1, size).movedim(1, -1) for one, size in zip(levels, sizes, strict=True)]


def _port(file: str, name: str, **facts: Any) -> Port:
    def build_torch() -> Any:
        from ultralytics.nn.tasks import DetectionModel

        return DetectionModel(file, nc=80, verbose=False)

    def build_keras() -> Any:
        import kyolo

        return (getattr(kyolo.models, name, None) or getattr(kyolo, name))(input_shape=(160, 160, 3))

    return Port(build_torch, build_keras, _inputs, _truth, compared=_levels, **facts)


PORTS: dict[str, Port] = {
    "u_yolov8n": _port("yolov8n.yaml", "yolov8n"),
    "u_yolov5n": _port("yolov5nu.yaml", "yolov5n"),
    "u_yolov8s": _port("yolov8s.yaml", "yolov8s", heldout=True),
    "u_yolo11n": _port("yolo11n.yaml", "yolo11n", heldout=True),
    "u_yolo12n": _port("yolo12n.yaml", "yolo12n", heldout=True),
    "u_yolov9t": _port("yolov9t.yaml", "yolov9t", heldout=True),
    "u_yolov10n": _port(
        "yolov10n.yaml",
        "yolov10n",
        heldout=True,
        kind="unequal",
        reason="one of two heads is left out, and either fits",
    ),
}
