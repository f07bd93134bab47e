"""What each side of a match is called with."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from converter import nested


@dataclass(frozen=True)
class Arguments:
    """What torch's network and the Keras model are called with: numpy's arrays, in tuples, lists and dicts.

    Floats of double precision become single ones. Whole numbers are int64 for torch, int32 for Keras, and bytes and
    flags stay what they are.

    Attributes:
        torch, torch_named: positional arguments, and those by name.
        keras, keras_named: the same of the Keras model, as it lays them out.
    """

    torch: tuple[Any, ...] = ()
    torch_named: dict[str, Any] = field(default_factory=dict)
    keras: tuple[Any, ...] = ()
    keras_named: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for side, whole in (("torch", np.int64), ("keras", np.int32)):
            for name in (side, f"{side}_named"):
                object.__setattr__(self, name, nested.each(partial(_plain, whole), getattr(self, name)))

    @property
    def inputs(self) -> dict[str, Any]:
        """Torch's by name, and by place where they are positional, as a `Probe` has them."""
        return {**{str(place): value for place, value in enumerate(self.torch)}, **self.torch_named}


def _plain(whole: type[np.signedinteger], part: Any) -> Any:
    if not isinstance(part, np.ndarray):
        return part
    if part.dtype == np.float64:
        return part.astype(np.float32)
    return part.astype(whole) if part.dtype.kind in "iu" and part.dtype != np.uint8 else part
