"""What a pair of a torch network and a public Keras port of it is, and how its parts are named."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

# Equal: the truth's outputs are torch's. Near: every tensor is right, and a stride, a padding, an epsilon or an
# activation is not. Unequal: a block is missing on a side. Unbuildable: it does not build with this Keras.
KINDS = ("equal", "near", "unequal", "unbuildable")

State = dict[str, np.ndarray]  # a checkpoint's tensors
Inputs = tuple[Any, Any]  # for torch, for Keras: a tuple or a dict of arrays each


@dataclass(frozen=True)
class Port:
    """A pair.

    Attributes:
        torch, keras: build either side.
        inputs: the same inputs for both.
        truth: fills the Keras model with a checkpoint's tensors by the library's own converter.
        kind: one of `KINDS`.
        heldout: nothing was developed on it.
        reason: why it is not equal.
        compared: those of torch's results, laid out anew, that the Keras model gives; None where they are the same.
        converter_reads: "disk", or "live" where the library's converter only knows names that the torch module has in
            memory and no file has.
    """

    torch: Callable[[], Any]
    keras: Callable[[], Any]
    inputs: Callable[[], Inputs]
    truth: Callable[[Any, State], None]
    kind: str = "equal"
    heldout: bool = False
    reason: str = ""
    compared: Callable[[Any], Any] | None = None
    converter_reads: str = "disk"


def torch_first() -> None:
    """Import what compiles for torch before TensorFlow, or the process aborts; nothing where TensorFlow is there."""
    if "tensorflow" not in sys.modules:
        for name in ("torch", "torchvision", "torch._dynamo"):
            import_module(name)


def settle() -> None:
    """What the libraries ask of the environment: no download, no bar, no chatter."""
    for name, value in {
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "TQDM_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
        "YOLO_AUTOINSTALL": "False",
        "YOLO_OFFLINE": "True",
    }.items():
        os.environ.setdefault(name, value)


def picture(
    size: int, batch: int = 1, scale: float = 1.0, name: str = "", keras_name: str = ""
) -> Callable[[], Inputs]:
    """Noise: (batch, 3, size, size) for torch, (batch, size, size, 3) and `scale` times it for Keras."""

    def inputs() -> Inputs:
        theirs = np.random.default_rng(1).standard_normal((batch, 3, size, size), dtype=np.float32)
        ours = np.ascontiguousarray(np.moveaxis(theirs, 1, -1)) * np.float32(scale)
        return {name: theirs} if name else (theirs,), {keras_name: ours} if keras_name else (ours,)

    return inputs
