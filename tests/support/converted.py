"""A small model with a converted file of its own, and converted files that were tampered with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import converter
from converter import Mapping, Option, Pair, Probe, Row, kinds
from tf_models.runtime.weights_format import DIGEST, PREFIX, SEAL, digest, seal

WIDTH = 6


def build_tf(width: int = WIDTH, depth: int = 2, more: Callable[[], Any] | None = None) -> Any:
    """`depth` Dense layers with a LayerNormalization each, all of one width; and one more layer, if given."""
    import keras

    class Stack(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = [keras.layers.Dense(width) for _ in range(depth)]
            self.norm = [keras.layers.LayerNormalization(epsilon=1e-5) for _ in range(depth)]
            self.more = [] if more is None else [more()]

        def build(self, _shape: Any) -> None:
            for layer in (*self.dense, *self.norm, *self.more):
                layer.build((None, width))
            self.built = True

        def call(self, x: Any) -> Any:
            for dense, norm in zip(self.dense, self.norm, strict=True):
                x = norm(dense(x))
            return x

    if width < 1:
        raise ValueError("width\x1b[31m\nis not positive" + "!" * 1000)
    model = Stack()
    model.build((None, width))
    return model


def build_torch(width: int = WIDTH, depth: int = 2) -> Any:
    import torch

    class Stack(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(depth))
            self.norm = torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(depth))

        def forward(self, x: Any) -> Any:
            for dense, norm in zip(self.dense, self.norm, strict=True):
                x = norm(dense(x))
            return x

    return Stack()


PAIR = Pair(
    name="stack",
    mapping=lambda config: Mapping(
        [
            Row(f"dense.{{0-{config['depth'] - 1}}}", kinds.DENSE),
            Row(f"norm.{{0-{config['depth'] - 1}}}", kinds.LAYER_NORM),
        ]
    ),
    probes=lambda config, rng: [Probe({"x": rng.standard_normal((3, config["width"])).astype(np.float32)})],
    build_tf=build_tf,
    build_torch=build_torch,
    options={"width": Option(WIDTH, "width"), "depth": Option(2, "count of layers")},
)


def state(seed: int = 0) -> dict[str, Any]:
    """Seeded weights of the torch side."""
    from tests.support.seeded import seeded

    return seeded(build_torch(), seed).state_dict()


def convert(folder: Path, seed: int = 0, dtype: str = "float32") -> Path:
    """A converted file of `state(seed)`."""
    import torch

    torch.save(state(seed), folder / f"{seed}.pth")
    output = folder / f"{seed}.weights.h5"
    converter.convert("stack", folder / f"{seed}.pth", output, "lossless", dtype=dtype)
    return output


def tampered(path: Path, change: Callable[[h5py.File], None], signed: bool = False) -> Path:
    """Change the file in place; `signed` makes every digest right again, as somebody who means harm would."""
    with h5py.File(path, "r+") as file:
        change(file)
        if signed:
            sign(file)
    return path


def sign(file: h5py.File) -> None:
    """Make the digests of an open file right."""
    held: dict[str, h5py.Dataset] = {}
    file.visititems(lambda name, node: held.update({name: node}) if isinstance(node, h5py.Dataset) else None)
    for name, dataset in held.items():
        if dataset.dtype.kind == "f" and dataset.size < 10**6:
            dataset.attrs[DIGEST] = np.uint32(digest(name, dataset[()]))
    said = {name.removeprefix(PREFIX): value for name, value in file.attrs.items() if name.startswith(PREFIX)}
    said = {name: value.decode() if isinstance(value, bytes) else value for name, value in said.items() if name != SEAL}
    digests = {name: int(dataset.attrs.get(DIGEST, 0)) for name, dataset in held.items()}
    plain = {name: value if isinstance(value, str) else int(value) for name, value in said.items()}
    file.attrs[PREFIX + SEAL] = seal(plain, digests)


def set_config(file: h5py.File, **config: Any) -> None:
    text = file.attrs[PREFIX + "config"].decode()
    file.attrs[PREFIX + "config"] = np.bytes_(json.dumps({**json.loads(text), **config}).encode())
