"""Segment Anything. Importing this package does not import TensorFlow."""

from importlib import import_module
from typing import Any

_PLACES = {"Predictor": "tf_models.sam.predictor", "AutomaticMaskGenerator": "tf_models.sam.automatic"}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
