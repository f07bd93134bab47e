"""Variables that no tensor fills."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import converter
from converter import Mapping, Pair, Probe, Row, kinds
from converter.kinds import Kind
from tests.support.pairs import forgetting
from tests.support.seeded import seeded

MEANS = np.array([0.5, -1.0, 2.0], np.float32)


def build_torch() -> Any:
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = torch.nn.Linear(3, 4, bias=False)

        def forward(self, x: Any) -> Any:
            return self.dense(x - torch.tensor(MEANS))

    return Net()


def build_tf() -> Any:
    import keras

    class Net(keras.Model):
        def build(self, _shape: Any) -> None:
            self.mean = self.add_weight(shape=(3,), name="mean", trainable=False)
            self.spread = self.add_weight(shape=(3,), name="spread", trainable=False)
            self.dense = keras.layers.Dense(4)
            self.dense.build((None, 3))
            self.built = True

        def call(self, x: Any) -> Any:
            return self.dense((x - self.mean) / self.spread)

    model = Net()
    model.build((None, 3))
    return model


def pair(mean: Any = MEANS, *more: Row) -> Pair:
    constants = kinds.constant("mean", mean), kinds.constant("spread", np.ones)
    rows = [
        Row("dense", kinds.DENSE.with_constants(kinds.constant("bias", 0))),
        Row("", Kind("SCALING", constants, callable_alone=False)),
        *more,
    ]
    return Pair(
        name="scaled",
        mapping=lambda config: Mapping(rows),
        probes=lambda config, rng: [Probe({"x": rng.standard_normal((5, 3)).astype(np.float32)})],
        build_tf=build_tf,
        build_torch=build_torch,
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    path = tmp_path_factory.mktemp("scaled") / "scaled.pth"
    torch.save(seeded(build_torch()).state_dict(), path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_pair_of_ones_own_has_constants(checkpoint: Path, tmp_path: Path, dtype: str):
    import torch

    with forgetting():
        report = converter.convert(pair(), checkpoint, tmp_path / "o.weights.h5", dtype=dtype)
        assert report.numerical.full
        assert report.constants == {"dense.bias": "0", "mean": "computed", "spread": "computed"}
        assert report.loading().startswith("tf_models.load(")
        converter.restore(tmp_path / "o.weights.h5", tmp_path / "back.pth")
    assert list(torch.load(tmp_path / "back.pth", weights_only=True)) == ["dense.weight"]


def test_a_wrong_constant_is_found_by_the_proof(checkpoint: Path, tmp_path: Path):
    with forgetting(), pytest.raises(converter.ProofError, match="the input of dense differs"):
        converter.convert(pair(MEANS + 1), checkpoint, tmp_path / "o.weights.h5")


@pytest.mark.parametrize(
    ("mean", "told"),
    [
        (
            np.zeros(4),
            r"constant of the kind SCALING for mean of scaled failed.*the constant has the shape \(4,\), its variable",
        ),
        (lambda shape: np.full(shape, "a"), "a constant is made of numbers"),
        (lambda shape: 1 / 0, r"failed at .*test_constants.py:\d+: ZeroDivisionError"),
        (1e39, "mean holds values too large for float32"),
    ],
)
def test_constants_that_make_no_values(checkpoint: Path, tmp_path: Path, mean: Any, told: str):
    with forgetting(), pytest.raises(converter.ConversionError, match=told):
        converter.convert(pair(mean), checkpoint, tmp_path / "o.weights.h5", "lossless")
    assert not (tmp_path / "o.weights.h5").exists()


def test_a_constant_for_a_variable_that_is_not_there_or_filled_twice(checkpoint: Path):
    def more(name: str) -> Row:
        return Row("", Kind("MORE", (kinds.constant(name, 0),), callable_alone=False))

    with forgetting(), pytest.raises(converter.PlanError, match="a constant has no variable gone"):
        converter.plan(pair(MEANS, more("gone")), checkpoint)
    with forgetting(), pytest.raises(converter.PlanError, match="bias is filled by both the constant 0 and the const"):
        converter.plan(pair(MEANS, more("dense.bias")), checkpoint)


def test_constants_take_the_place_of_tensors_one_by_one():
    assert [one.torch for one in kinds.DENSE.with_constants(kinds.constant("bias", 1)).leaves] == [("weight",), ()]
    with pytest.raises(ValueError, match=r"weight of the kind .* fills several variables, not one alone"):
        kinds.split_dense().with_constants(kinds.constant("q.kernel", 0))
    with pytest.raises(ValueError, match="bias has tensors: bias"):
        kinds.DENSE.with_constants(kinds.BIAS)
    for value in ("a", np.nan, [1.0, np.inf]):
        with pytest.raises(ValueError, match="the constant of bias is a finite number, or several"):
            kinds.constant("bias", value)
