"""Every pair, and its parts by name, as `match` takes them: `benchmarks.ports.pairs:torch_of?name=z_vit_t`."""

import random
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ports import applications, kecam_ports, keras_hub_ports, kyolo_ports, zeromodels_ports
from benchmarks.ports.port import Inputs, Port, State, settle, torch_first
from benchmarks.ports.weights import on_disk, seeded

PORTS: dict[str, Port] = {
    **applications.PORTS,
    **zeromodels_ports.PORTS,
    **keras_hub_ports.PORTS,
    **kyolo_ports.PORTS,
    **kecam_ports.PORTS,
}


def torch_of(name: str) -> Any:
    """The torch module, in evaluation mode, with the values that its library gives it."""
    settle()
    import torch

    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    return PORTS[name].torch().eval()


def keras_of(name: str) -> Any:
    """The Keras model, with the values that its library gives it."""
    settle()
    torch_first()
    import keras

    keras.utils.set_random_seed(0)
    return PORTS[name].keras()


def inputs_of(name: str) -> Inputs:
    """(for torch, for Keras): arrays."""
    return PORTS[name].inputs()


def filled_torch_of(name: str) -> Any:
    """The torch module with the values of the checkpoint, where every part has its effect."""
    return seeded(torch_of(name), seed=1)


def write_checkpoint(name: str, folder: Path) -> Path:
    """The file that `torch.save` writes of that module, with the names that its library has in files."""
    import torch

    path = folder / f"{name}.pth"
    torch.save({key: tensor.clone() for key, tensor in on_disk(filled_torch_of(name)).items()}, path)
    return path


def read_checkpoint(path: Path) -> State:
    """Its tensors."""
    import torch

    return {name: tensor.numpy() for name, tensor in torch.load(path).items()}


def fill(name: str, model: Any, state: State) -> None:
    """Fill the Keras model by the library's own converter.

    `state` has the names of the file; a converter that only knows those in memory gets these.
    """
    port = PORTS[name]
    if port.converter_reads == "live":
        # The names differ, the values do not.
        state = {key: tensor.detach().numpy() for key, tensor in filled_torch_of(name).state_dict().items()}
    port.truth(model, state)
