"""Every pair, and its parts by name, as `match` takes them: `benchmarks.ports.pairs:torch_of?name=z_vit_t`."""

import random
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ports import applications, kecam_ports, keras_hub_ports, kyolo_ports, zeromodels_ports
from benchmarks.ports.port import Inputs, Port, State, settle
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
    import keras

    keras.utils.clear_session()  # names that Keras counts start again
    keras.utils.set_random_seed(0)
    return PORTS[name].keras()


def inputs_of(name: str) -> Inputs:
    """(for torch, for Keras): arrays."""
    return PORTS[name].inputs()


def filled_torch_of(name: str) -> Any:
    """The torch module with the values of the checkpoint, where every part has its effect."""
    return seeded(torch_of(name), seed=1)


def write_checkpoint(name: str, folder: Path) -> Path:
    """The file that `torch.save` writes of that module, with the names that its library has in files.

    Where the module has others in memory, they are in a file beside it.
    """
    import torch

    module = filled_torch_of(name)
    path = folder / f"{name}.pth"
    live = module.state_dict()
    disk = on_disk(module)
    torch.save({key: tensor.clone() for key, tensor in disk.items()}, path)
    if set(disk) != set(live):
        torch.save({key: tensor.clone() for key, tensor in live.items()}, path.with_suffix(".live"))
    return path


def read_checkpoint(path: Path, names: str = "disk") -> State:
    """Its tensors, by the names of the file, or by those of the "live" module."""
    import torch

    beside = path.with_suffix(".live")
    found = torch.load(beside if names == "live" and beside.exists() else path)
    return {name: tensor.numpy() for name, tensor in found.items()}


def fill(name: str, model: Any, checkpoint: Path) -> None:
    """Fill the Keras model by the library's own converter."""
    port = PORTS[name]
    port.truth(model, read_checkpoint(checkpoint, port.converter_reads))
