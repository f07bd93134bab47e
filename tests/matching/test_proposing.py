"""A file alone: where order and names agree a row is proposed, elsewhere it is ambiguous, and none is proven."""

import keras
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import converter
from converter.errors import ConversionError


def state(*names: str) -> dict[str, torch.Tensor]:
    """Kernels and biases of one size under these names, and a count."""
    found: dict[str, torch.Tensor] = {}
    for name in names:
        found |= {f"{name}.weight": torch.rand(4, 4), f"{name}.bias": torch.rand(4)}
    return {**found, "steps": torch.tensor(3)}


def twin(*names: str) -> keras.Model:
    given = keras.Input((4,))
    x = given
    for name in names:
        x = keras.layers.Dense(4, name=name)(x)
    return keras.Model(given, x)


THEIRS = ("layers.0.q_proj", "layers.0.out_proj", "layers.1.q_proj", "layers.1.out_proj")
OURS = ("layer_1_query", "layer_1_out", "layer_2_query", "layer_2_out")


def proposed(match: converter.Match) -> dict[str, str]:
    return {row.variable: row.tensors[0] for row in match.rows if row.status == "proposed"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_order_and_names_that_agree_are_proposed(folder):
    torch.save(state(*THEIRS), "net.pth")
    match = converter.match(None, lambda: twin(*OURS), checkpoint="net.pth")
    found = proposed(match)
    assert found == {
        f"{ours}.{leaf}": f"{theirs}.{name}"
        for theirs, ours in zip(THEIRS, OURS, strict=True)
        for leaf, name in (("kernel", "weight"), ("bias", "bias"))
    }
    assert match.left == {"steps": "int64: nothing that is learnt"}


def test_a_file_that_is_sorted_by_name_says_nothing_by_its_order(folder):
    save_file(state(*THEIRS), "net.safetensors")
    match = converter.match(None, lambda: twin(*OURS), checkpoint="net.safetensors")
    assert proposed(match)["layer_1_out.kernel"] == "layers.0.out_proj.weight"
    assert "its order says nothing" in match.rows[0].evidence


def test_names_against_the_order_are_ambiguous(folder):
    torch.save(state("b", "a", "c"), "net.pth")
    match = converter.match(None, lambda: twin("a", "b", "c"), checkpoint="net.pth")
    assert {row.status for row in match.rows if row.variable.startswith(("a.", "b."))} == {"ambiguous"}


def test_what_has_no_counterpart_is_unmatched(folder):
    torch.save(state("a"), "net.pth")
    match = converter.match(None, lambda: twin("a", "b"), checkpoint="net.pth")
    assert {row.status for row in match.rows} == {"unmatched"}
    assert "the checkpoint has 1 units of its size, the Keras model 2" in match.rows[0].evidence


def test_nothing_is_converted_by_it(folder):
    torch.save(state(*THEIRS), "net.pth")
    match = converter.match(None, lambda: twin(*OURS), checkpoint="net.pth")
    with pytest.raises(ConversionError, match="4 of its rows are not proven"):
        converter.convert(match.pair, "net.pth", "net.weights.h5", verify="lossless")
    assert not (folder / "net.weights.h5").exists()


def test_rows_that_are_accepted_are_converted(folder):
    torch.save(state(*THEIRS), "net.pth")
    match = converter.match(None, lambda: twin(*OURS), checkpoint="net.pth", accept=["*"])
    report = converter.convert(match.pair, "net.pth", "net.weights.h5", verify="lossless")
    assert report.lossless
    model = twin(*OURS)
    model.load_weights("net.weights.h5")
    wanted = torch.load("net.pth", weights_only=True)["layers.1.out_proj.weight"].T.numpy()
    np.testing.assert_array_equal(model.get_layer("layer_2_out").kernel, wanted)


def test_a_file_without_floats(folder):
    torch.save({"steps": torch.tensor(3)}, "net.pth")
    with pytest.raises(ConversionError, match="holds no tensors of floats"):
        converter.match(None, lambda: twin("a"), checkpoint="net.pth")
