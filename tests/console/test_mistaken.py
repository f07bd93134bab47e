"""Arguments in the wrong order or of another kind, and words that are nearly right: told by what was probably meant."""

import re

import keras
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import cli
import converter
import tf_models
import torch_refs
from tests.support.seeded import seeded

SIZES = {"n_heads": 3, "n_levels": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, what was converted of it, weights of Keras alone, a whole Keras model, and a picture."""
    folder = tmp_path_factory.mktemp("files")
    state = seeded(torch_refs.create("ms_deform_attn", d_model=24, n_points=4, **SIZES)).state_dict()
    torch.save({"model": state}, folder / "attention.pth")
    converter.convert("ms_deform_attn", folder / "attention.pth", folder / "a.weights.h5", "none", options=SIZES)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.save_weights(folder / "k.weights.h5")
    model.save(folder / "whole.keras")
    Image.new("RGB", (8, 8)).save(folder / "photo.png")
    (folder / "pictures").mkdir()
    return folder


NO_WEIGHTS = "attention.pth: is not a readable HDF5 file: it is a checkpoint of torch; `convert` makes the weights file"
HDF5 = "it is an HDF5 file of weights, perhaps converted already: `weightbridge inspect` tells what it holds, `weightbr"
ORDER = "is a file of weights, not a picture: the weights come first, and then the picture"


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        ("verify a.weights.h5 attention.pth", 2, "then the weights: weightbridge verify attention.pth a.weights.h5"),
        ("verify attention.pth attention.pth", 1, NO_WEIGHTS),
        ("verify a.weights.h5 a.weights.h5", 1, HDF5),
        ("restore attention.pth -o b.pth", 1, NO_WEIGHTS),
        ("export attention.pth --format tflite", 1, NO_WEIGHTS),
        ("export whole.keras --format tflite", 1, "whole.keras: is a Keras archive; take the weights out"),
        ("segment attention.pth photo.png --everything --json", 1, NO_WEIGHTS),
        ("segment photo.png a.weights.h5 --everything --json", 1, f"a.weights.h5 {ORDER}"),
        ("segment photo.png a.weights.h5 --everything -o out.png", 1, f"a.weights.h5 {ORDER}"),
        ("segment pictures a.weights.h5 --everything -o out", 1, f"a.weights.h5 {ORDER}"),
        ("segment pictures a.weights.h5 --prompts p.jsonl -o out", 1, f"a.weights.h5 {ORDER}"),
        ("segment photo.png attention.pth --everything --json", 1, f"attention.pth {ORDER}"),
        ("segment photo.png photo.png --everything --json", 1, "photo.png: is not a readable HDF5 file: it is a pict"),
        ("convert a.weights.h5", 1, HDF5),
        ("convert k.weights.h5", 1, HDF5),
        ("convert photo.png", 1, "it is a picture, not a checkpoint"),
        ("new-pair a.weights.h5 -o pair", 1, HDF5),
        ("convert attention.pth -m ms_deform_atn", 2, "no model is named ms_deform_atn; did you mean ms_deform_attn?"),
        ("convert attention.pth -m ms_deform_attn --option n_head=3", 2, "has no option n_head; did you mean n_heads?"),
        ("convert attention.pth -m ms_deform_attn --option n_heads=3 --option n_levels=2 --option n_pointz=4", 2,
         "has no option n_pointz; did you mean n_points?"),
        ("convert attention.pth -m ms_deform_attn --dialect padle", 2, "has no dialect padle; it has: official, "),
        ("convert attention.pth --key modle", 2, "no state dict at modle; it has: model; did you mean model?"),
        ("convert atention.pth", 1, "no such file; did you mean attention.pth?"),
        ("verify attention.pth aa.weights.h5", 1, "aa.weights.h5: no such file"),
        ("restore b.weights.h5 -o b.pth", 1, "b.weights.h5: no such file"),
        ("export a.weight.h5 --format tflite", 1, "a.weight.h5: no such file; did you mean a.weights.h5?"),
        ("segment a.weights.h5 phot.png --everything --json", 1, "phot.png: no such file; did you mean photo.png?"),
        ("export a.weights.h5 --format tflite --size querry.0=3", 2, "did you mean query.0?"),
        ("convert attention.pth --verfy full", 2, "--verify"),
        ("inspct attention.pth", 2, "No such command 'inspct'"),
    ],
)  # fmt: skip
def test_one_line_says_what_was_probably_meant(command, code, told, folder, monkeypatch):
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(cli.main, command.split())
    assert told in done.output
    assert (done.exit_code, len(done.output.splitlines())) == (code, 1), done.output


def test_the_part_that_was_meant():
    from converter.exporting import _chosen

    told = "holds no image_encodr, but image_encoder, mask_decoder; did you mean image_encoder?"
    with pytest.raises(converter.UsageError, match=re.escape(told)):
        _chosen({"image_encoder": (), "mask_decoder": ()}, "image_encodr", (), "saved_model")


def test_python_tells_it_too(folder):
    with pytest.raises(
        tf_models.WeightsError, match="it is a checkpoint of torch; `convert` makes the weights file of it"
    ):
        tf_models.load(folder / "attention.pth")
    with pytest.raises(tf_models.WeightsError, match=r"did you mean a\.weights\.h5"):
        tf_models.load(folder / "a.weight.h5")
    for side in (tf_models, torch_refs):
        with pytest.raises(ValueError, match=r"unknown model 'sam_vitb'; did you mean sam_vit_b\? known: dcn_v2, "):
            side.create("sam_vitb")
        with pytest.raises(ValueError, match="unknown model 'nobody'; known: dcn_v2, "):
            side.create("nobody")
