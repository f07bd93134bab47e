"""The `config.json` beside a checkpoint: an authority, and held against the tensors."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import PretrainedConfig, SamConfig, SamModel

import converter
import torch_refs
from converter import ConfigJson, Option
from tests.support.pairs import registered
from tests.support.smallest_pair import PAIR

HEADS = {"num_heads": 2}


SMALL = {
    "vision_config": {
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
    "prompt_encoder_config": {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 8},
    "mask_decoder_config": {
        "hidden_size": 16,
        "mlp_dim": 24,
        "num_attention_heads": 4,
        "iou_head_hidden_dim": 16,
    },
}


def _saved(path, **changes):
    """A small SAM as Hugging Face saves it, with changes to its parts."""
    torch.manual_seed(0)
    SamModel(SamConfig(**{part: {**words, **changes.get(part, {})} for part, words in SMALL.items()})).save_pretrained(
        path
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return _saved(tmp_path_factory.mktemp("sam"))


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
        ("vision_config.use_rel_pos", "no", "vision_config.use_rel_pos is no; sam has True only"),
        ("vision_config.hidden_size", "[24]", "vision_config.hidden_size is [24], and its tensors are those of 24"),
        ("vision_config.global_attn_indexes", "[1]", "global_attn_indexes is '[1]', and its tensors are those of [1]"),
        ("vision_config", [], "config.json beside the checkpoint says vision_config is [], which is no object"),
        ("mask_decoder_config.num_attention_heads", "four", "num_attention_heads is four: option num_heads takes a wh"),
        *(
            (
                "mask_decoder_config.num_attention_heads",
                heads,
                f"config.json beside the checkpoint says mask_decoder_config.num_attention_heads is {heads}: "
                "option num_heads takes a divisor of 8",
            )
            for heads in (5, 0, -4)
        ),
    ],
)
@pytest.mark.parametrize("model", ["sam", "auto"])
def test_one_that_lies_is_refused_by_its_field(folder, tmp_path, model, place, value, told):
    with pytest.raises(converter.ConversionError) as raised:
        converter.plan(model, _said(folder, tmp_path, place, value))
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 1


# What is the same whatever stands there: names, training, and what the other words say already.
FREE = {
    "vision_config": {"attention_dropout", "initializer_range", "mlp_ratio", "scale"},
    "prompt_encoder_config": set(),
    "mask_decoder_config": {"layer_norm_eps"},
}
WORDS = [
    f"{part}.{word}"
    for part, free in FREE.items()
    for word in SamConfig().to_dict()[part]
    if word not in {*free, *PretrainedConfig().to_dict()}
]


@pytest.mark.parametrize("place", WORDS)
def test_every_word_that_tensors_or_the_network_decide_is_held_against_them(folder, tmp_path, place):
    part, word = place.split(".")
    value = json.loads((folder / "config.json").read_text())[part][word]
    other = [0] if isinstance(value, list) else not value if isinstance(value, bool) else "other"
    with pytest.raises(converter.ConversionError, match=f"beside the checkpoint says {place} is "):
        converter.plan("sam", _said(folder, tmp_path, place, other))


def test_text_is_read_as_what_it_must_be(folder, tmp_path):
    for place, text in (
        ("vision_config.hidden_size", "24"),
        ("vision_config.use_rel_pos", "true"),
        ("mask_decoder_config.num_attention_heads", "2"),
    ):
        plan = converter.plan("sam", _said(folder, tmp_path, place, text))
    assert plan.config["num_heads"] == 2


def test_where_every_block_attends_globally_no_window_is_meant(tmp_path):
    path = _saved(tmp_path, vision_config={"global_attn_indexes": [0, 1], "window_size": 14})
    assert converter.plan("sam", path).config["image_encoder"]["window_size"] == 0


def test_its_options_are_not_held_against_another_network(tmp_path):
    """MobileSAM, which `auto` tries first, has the same mask decoder, whose heads are 8 where nothing else is said."""
    decoder = {"hidden_size": 24, "num_attention_heads": 3}
    path = _saved(tmp_path, prompt_encoder_config={"hidden_size": 24}, mask_decoder_config=decoder,
                  vision_config={"output_channels": 24, "num_pos_feats": 12})  # fmt: skip
    plan = converter.plan("auto", path, {"image_size": 72})
    assert (plan.pair.name, plan.config["num_heads"], plan.config["image_size"]) == ("sam", 3, 72)


def test_a_later_one_is_held_against_the_weights_file_and_no_option_is_blamed(tmp_path):
    pair = replace(
        PAIR,
        name="beside",
        configure=lambda shapes, options: dict(options),
        build_tf=lambda heads: PAIR.build_tf(),
        build_torch=lambda heads: PAIR.build_torch(),
        options={"heads": Option(1, "heads")},
        config_json=ConfigJson(("net",), {"heads": "heads"}),
    )
    checkpoint, weights = tmp_path / "c.pth", tmp_path / "o.weights.h5"
    torch.save(PAIR.build_torch().state_dict(), checkpoint)
    with registered(pair):
        converter.convert("beside", checkpoint, weights, options={"heads": 2}, verify="lossless")
        (tmp_path / "config.json").write_text('{"model_type": "net", "heads": "3"}')
        with pytest.raises(
            converter.ConversionError, match=r"says heads is 3, and the weights file records heads 2"
        ) as raised:
            converter.verify("beside", checkpoint, weights, level="lossless")
        assert raised.value.exit_code == 1
        with pytest.raises(converter.UsageError, match=r"says heads is 3, and --option heads is 2"):
            converter.verify("beside", checkpoint, weights, {"heads": 2}, level="lossless")
        (tmp_path / "config.json").write_text('{"model_type": "net", "heads": 2}')
        assert converter.verify("beside", checkpoint, weights, level="lossless")


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
