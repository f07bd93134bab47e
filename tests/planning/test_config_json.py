"""The `config.json` beside a checkpoint: an authority, and held against the tensors."""

import json

import pytest
import torch
from transformers import SamConfig, SamModel

import converter
import torch_refs

HEADS = {"num_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small SAM as Hugging Face saves it."""
    torch.manual_seed(0)
    config = SamConfig(
        vision_config={
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "mlp_dim": 40,
            "image_size": 64,
            "patch_size": 8,
            "window_size": 3,
            "global_attn_indexes": [1],
            "output_channels": 16,
            "num_pos_feats": 8,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 8},
        mask_decoder_config={
            "hidden_size": 16,
            "mlp_dim": 24,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 16,
        },
    )
    path = tmp_path_factory.mktemp("sam")
    SamModel(config).save_pretrained(path)
    return path


def _said(folder, tmp_path, place, value):
    """The same folder, whose `config.json` says something else."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    said = json.loads((folder / "config.json").read_text())
    *parts, last = place.split(".")
    table = said
    for part in parts:
        table = table[part]
    table[last] = value
    (tmp_path / "config.json").write_text(json.dumps(said))
    return tmp_path


def test_config_json_tells_what_shapes_do_not(folder):
    """Heads, which no shape shows: 4 in the file, 8 by default."""
    plan = converter.plan("auto", folder)
    assert plan.pair.name == "sam"
    assert plan.config["num_heads"] == 4
    assert converter.plan("sam_decoder", folder / "model.safetensors").config["num_heads"] == 4
    assert converter.plan("sam_prompt_encoder", folder).config["image_size"] == 64


def test_what_it_gave_is_told(folder, tmp_path):
    taken = "num_heads 4: from the config.json beside the checkpoint"
    plan = converter.plan("sam_decoder", folder)
    assert taken in str(plan).splitlines()
    assert plan.to_dict()["from_config_json"] == {"num_heads": 4}
    report = converter.convert("sam_decoder", folder, tmp_path / "o.weights.h5", verify="none")
    assert ("note", taken) in report.lines()
    assert "config.json" not in str(converter.plan("sam_decoder", folder, {"num_heads": 4}))


def test_an_option_against_it_is_refused(folder):
    with pytest.raises(converter.UsageError, match=r"num_attention_heads is 4, and --option num_heads is 2"):
        converter.plan("auto", folder, HEADS)
    assert converter.plan("auto", folder, {"num_heads": 4}).config["num_heads"] == 4


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("vision_config.num_hidden_layers", 5, "vision_config.num_hidden_layers is 5, and its tensors are those of 2"),
        ("vision_config.use_rel_pos", False, "vision_config.use_rel_pos is False; sam has True only"),
        ("mask_decoder_config.num_attention_heads", "four", "num_attention_heads: option num_heads takes a whole"),
        ("mask_decoder_config.num_attention_heads", 5, "num_heads takes a divisor of 8"),
    ],
)
def test_one_that_lies_is_refused_by_its_field(folder, tmp_path, place, value, told):
    with pytest.raises(converter.ConversionError) as raised:
        converter.plan("sam", _said(folder, tmp_path, place, value))
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_one_of_another_network_is_not_read(folder, tmp_path):
    """It is the whole's, of which this may be a part."""
    said = _said(folder, tmp_path, "model_type", "detector")
    assert converter.plan("sam_decoder", said, HEADS).config["num_heads"] == 2


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 1, "a": 2}', "\udcff"])
def test_one_that_is_no_table_is_named(folder, tmp_path, text):
    said = _said(folder, tmp_path, "model_type", "sam")
    (said / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(converter.ConversionError, match=r"config\.json beside the checkpoint cannot be read"):
        converter.plan("sam_decoder", said)
    # To a network that has no words of it, it is another's.
    other = torch_refs.create("deformable_attention_1d", dim=24, heads=3, offset_groups=3)
    torch.save(other.state_dict(), tmp_path / "d.pth")
    assert converter.plan("auto", tmp_path / "d.pth").pair.name == "deformable_attention_1d"
