"""What version 0.1 wrote keeps working: it is loaded, verified and restored."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import converter
import tf_models

DATA = Path(__file__).parent / "data"
FILES = {"deform_conv2d": "deform_conv2d_0_1.pth", "ms_deform_attn": "ms_deform_attn_0_1.safetensors"}


def state(path):
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("model", FILES)
def test_a_file_of_version_0_1(model, tmp_path):
    checkpoint, weights = DATA / FILES[model], DATA / f"{model}_0_1.weights.h5"
    assert converter.inspect(weights).provenance["version"] == "0.1.0"
    assert tf_models.load(weights).count_params() > 0
    scope = {"scope": "backbone"} if model == "deform_conv2d" else {}
    assert converter.verify(model, checkpoint, weights, **scope)
    back = tmp_path / f"back{checkpoint.suffix}"
    converter.restore(weights, back)
    got, wanted = state(back), state(checkpoint)
    assert sorted(got) == sorted(wanted)
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name
