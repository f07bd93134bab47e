"""The smallest pair there is: one parameter `w` of four values. Neither framework is imported before it is built."""

from typing import Any

import numpy as np

from converter import Mapping, Pair, Probe, Row, kinds


def build_tf(size: int = 4) -> Any:
    import keras

    class Vector(keras.Model):
        def build(self, _shape: Any) -> None:
            self.w = self.add_weight(shape=(size,), name="w")
            self.built = True

        def call(self, x: Any) -> Any:
            return x * self.w

    model = Vector()
    model.build((None, size))
    return model


def build_torch() -> Any:
    import torch

    class Vector(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.w

    return Vector()


PAIR = Pair(
    name="vector",
    mapping=lambda config: Mapping([Row("w", kinds.PARAMETER)]),
    probes=lambda config, rng: [Probe({"x": rng.standard_normal((3, 4)).astype(np.float32)})],
    build_tf=build_tf,
    build_torch=build_torch,
)
