"""Checkpoints of deformable convolutions and attention: every dialect gives the weights of the official one."""

import pickle

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import cli
import converter
import torch_refs
from tests.support.checkpoints import prefixed, save
from tests.support.seeded import seeded
from tf_models.runtime.weights_format import datasets, provenance

DCN = {"in_channels": 6, "out_channels": 10, "kernel_size": (3, 2), "offset_groups": 2, "groups": 2}
ATTENTION = {"d_model": 24, "n_levels": 2, "n_heads": 3, "n_points": 4}  # 24 samples a query: square, too
DCN_OPTIONS = ("--option", "stride=2", "--option", "padding=1,0")
ATTENTION_OPTIONS = ("--option", "n_heads=3", "--option", "n_levels=2")


def state(name, config):
    return seeded(torch_refs.create(name, **config)).state_dict()


def hwio(tensor):
    return tensor.permute(2, 3, 1, 0).contiguous()


def of_dcn(own, offsets):
    """The official tensors under two other names."""

    def spell(official):
        return {
            f"{own}weight": official["weight"],
            f"{own}bias": official["bias"],
            f"{offsets}weight": official["conv_offset_mask.weight"],
            f"{offsets}bias": official["conv_offset_mask.bias"],
        }

    return spell


def keras_yolov4(official):
    return {
        "offset_w": hwio(official["conv_offset_mask.weight"]),
        "offset_b": official["conv_offset_mask.bias"].reshape(1, 1, 1, -1),
        "dcn_weight": official["weight"],
        "dcn_bias": official["bias"],
    }


def detectron2(official):
    """A whole bottleneck block."""
    others = {f"conv{i}.norm.{leaf}": torch.rand(10) for i in (1, 2, 3) for leaf in ("weight", "bias", "running_mean")}
    return {**of_dcn("conv2.", "conv2_offset.")(official), "conv1.weight": torch.rand(6, 4, 1, 1), **others}


def in_out(official):
    return {name: tensor.T.contiguous() if tensor.ndim == 2 else tensor for name, tensor in official.items()}


def detr_tensorflow(official):
    return {name.replace(".weight", ".kernel"): tensor for name, tensor in official.items()}


def in_a_detector(prefix, spell):
    def whole(official):
        here = prefixed(spell(official), prefix)
        elsewhere = prefixed(spell({name: 2 * tensor for name, tensor in official.items()}), "neck.0.conv.")
        return {**here, **elsewhere, "head.weight": torch.rand(3, 3)}

    return whole


# pair, dialect, how it spells a state dict, further arguments
CASES = {
    "mmcv": ("dcn_v2", "mmcv", of_dcn("", "conv_offset."), ()),
    "detectron2": ("dcn_v2", "detectron2", detectron2, ()),
    "charlesshang": ("dcn_v2", "official", of_dcn("", "conv_offset_mask."), ()),
    "paddle": ("dcn_v2", "paddle", of_dcn("conv_dcn.", "conv_offset."), ()),
    "keras_yolov4": ("dcn_v2", "keras_yolov4", keras_yolov4, ()),
    "mmdetection": (
        "dcn_v2",
        "mmcv",
        in_a_detector("backbone.layer4.0.conv2.", of_dcn("", "conv_offset.")),
        ("--scope", "backbone.layer4.0.conv2"),
    ),
    "detectron2, whole": (
        "dcn_v2",
        "detectron2",
        in_a_detector("backbone.res5.0.", detectron2),
        ("--scope", "backbone.res5.0"),
    ),
    "torchvision": ("deform_conv2d", "official", dict, ()),
    "mmcv's for v1 and v2": ("deform_conv2d", "mmcv", of_dcn("", "conv_offset."), ()),
    "deformable detr": ("ms_deform_attn", "official", dict, ()),
    "hugging face": (
        "ms_deform_attn",
        "official",
        in_a_detector("model.encoder.layers.0.self_attn.", dict),
        ("--scope", "model.encoder.layers.0.self_attn"),
    ),
    "mmcv's attention": ("ms_deform_attn", "official", lambda s: prefixed(s, "module."), ()),
    "paddle's attention": ("ms_deform_attn", "paddle", in_out, ()),
    "detr_tensorflow": ("ms_deform_attn", "detr_tensorflow", detr_tensorflow, ()),
}
SETTINGS = {
    "dcn_v2": (DCN, DCN_OPTIONS),
    "deform_conv2d": (DCN, DCN_OPTIONS),
    "ms_deform_attn": (ATTENTION, ATTENTION_OPTIONS),
}


def convert(pair, checkpoint, output, *more):
    """Through the command, with the proof that costs no second process."""
    command = ["--model", pair, str(checkpoint), "-o", str(output), "--verify", "lossless", *more]
    done = CliRunner().invoke(cli.convert, command)
    assert done.exit_code == 0, done.output
    with h5py.File(output) as file:
        return {place: dataset[()] for place, dataset in datasets(file)}


@pytest.mark.parametrize("case", CASES)
def test_every_dialect_gives_the_weights_of_the_official_one(case, tmp_path):
    pair, dialect, spell, more = CASES[case]
    config, options = SETTINGS[pair]
    official = state(pair, config)
    expected = convert(pair, save(official, tmp_path, "a.pth"), tmp_path / "a.weights.h5", *options)
    ours = convert(pair, save(spell(official), tmp_path, "b.pth"), tmp_path / "b.weights.h5", *options, *more)
    assert provenance(tmp_path / "b.weights.h5")["dialect"] == dialect
    assert provenance(tmp_path / "b.weights.h5")["config"] == provenance(tmp_path / "a.weights.h5")["config"]
    assert ours.keys() == expected.keys()
    for place, values in expected.items():
        np.testing.assert_array_equal(ours[place], values)


@pytest.mark.parametrize("case", ["torchvision", "keras_yolov4", "paddle's attention"])
def test_the_whole_proof_is_run_by_default_and_passes(case, tmp_path):
    pair, _, spell, _ = CASES[case]
    config, options = SETTINGS[pair]
    checkpoint, output = save(spell(state(pair, config)), tmp_path), tmp_path / "o.weights.h5"
    done = CliRunner().invoke(cli.convert, ["--model", pair, str(checkpoint), "-o", str(output), *options])
    assert done.exit_code == 0, done.output
    layers = 4 if pair == "ms_deform_attn" else 1
    assert f"{layers} of {layers} agree with torch" in done.output
    assert "equal bit for bit" in done.output
    assert converter.verify(None, checkpoint, output, level="lossless"), "options and dialect are in the record"


@pytest.mark.parametrize(
    ("file", "case", "wrap"),
    [
        ("dcn.pdparams", "paddle", lambda arrays: {**arrays, "StructuredToParameterName@@": {}}),
        ("R-50.pkl", "detectron2", lambda arrays: {"model": arrays, "__author__": "x", "matching_heuristics": True}),
        ("attention.pdparams", "paddle's attention", dict),
    ],
)
def test_pickles_of_arrays_are_converted_and_proven(file, case, wrap, tmp_path):
    pair, dialect, spell, _ = CASES[case]
    config, options = SETTINGS[pair]
    official = state(pair, config)
    (tmp_path / file).write_bytes(pickle.dumps(wrap({n: t.numpy() for n, t in spell(official).items()}), 4))
    output = tmp_path / "o.weights.h5"
    done = CliRunner().invoke(cli.convert, ["--model", pair, str(tmp_path / file), "-o", str(output), *options])
    assert done.exit_code == 0, done.output
    assert "torch has no loader for pickles of numpy arrays" in done.output
    assert provenance(output)["dialect"] == dialect
    assert provenance(output)["proof"]["level"] == "full"
    report = converter.restore(output, tmp_path / "back.pth", dialect="official")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert report.output == tmp_path / "back.pth"
    for name, tensor in official.items():
        np.testing.assert_array_equal(back.get("model", back)[name], tensor)


@pytest.mark.parametrize("config", [
    {"modulated": False, "bias": False, "offset_groups": 1, "kernel_size": (1, 5)},
    {"kernel_size": 4, "bias": False, "groups": 1},
])  # fmt: skip
def test_sizes_are_read_off_the_checkpoint(config, tmp_path):
    config = DCN | config
    plan = converter.plan("deform_conv2d", save(state("deform_conv2d", config), tmp_path), {"padding": 2})
    pair = config["kernel_size"] if isinstance(config["kernel_size"], tuple) else (config["kernel_size"],) * 2
    assert plan.config == {
        "modulated": True, "bias": True, **config, "kernel_size": list(pair),
        "stride": [1, 1], "padding": [2, 2], "dilation": [1, 1],
    }  # fmt: skip


def test_offsets_that_fit_v1_and_v2_are_read_with_masks_unless_told(tmp_path):
    checkpoint = save(state("deform_conv2d", DCN), tmp_path)  # 2 groups of 3, or 3 of 2
    assert converter.plan("deform_conv2d", checkpoint).config["offset_groups"] == 2
    config = converter.plan("deform_conv2d", checkpoint, {"modulated": "false"}).config
    assert (config["modulated"], config["offset_groups"]) == (False, 3)
    without = save(state("deform_conv2d", DCN | {"offset_groups": 1, "modulated": False}), tmp_path, "v1.pth")
    with pytest.raises(converter.UsageError, match="12 channels for 6 taps are those of a convolution without masks"):
        converter.plan("deform_conv2d", without, {"modulated": True})
    masked = save(state("deform_conv2d", DCN | {"offset_groups": 1}), tmp_path, "v2.pth")
    with pytest.raises(converter.UsageError, match="18 channels for 6 taps are those of a convolution with masks"):
        converter.plan("deform_conv2d", masked, {"modulated": False})
    with pytest.raises(converter.PlanError, match="12 channels are no offsets of 6 taps"):
        converter.plan("dcn_v2", without)


def test_paddles_offsets_are_never_dilated(tmp_path):
    """With a dilation theirs is another network, and the same names and shapes."""
    official = state("dcn_v2", DCN)
    theirs = save(of_dcn("conv_dcn.", "conv_offset.")(official), tmp_path, "theirs.pth")
    assert converter.plan("dcn_v2", theirs, {"padding": 1}).dialect.name == "paddle"
    with pytest.raises(converter.PlanError, match="in the dialect paddle dilation is always 1"):
        converter.plan("dcn_v2", theirs, {"dilation": (1, 2)})
    output = tmp_path / "o.weights.h5"
    converter.convert("dcn_v2", save(official, tmp_path), output, "lossless", options={"dilation": 2})
    with pytest.raises(converter.ConversionError, match="in the dialect paddle dilation is always 1"):
        converter.restore(output, tmp_path / "back.pth", dialect="paddle")


def test_samples_are_factored_by_the_options(tmp_path):
    checkpoint = save(state("ms_deform_attn", ATTENTION), tmp_path)
    told = "the checkpoint has 24 samples a query, not n_levels=4 . n_heads=8 . n_points=4; say which with --option"
    with pytest.raises(converter.UsageError, match=told):
        converter.plan("ms_deform_attn", checkpoint)
    odd = save(state("ms_deform_attn", ATTENTION | {"d_model": 30}), tmp_path, "odd.pth")
    with pytest.raises(converter.UsageError, match="n_heads takes a divisor of 30, the width, not 4"):
        converter.plan("ms_deform_attn", odd, {"n_heads": 4, "n_levels": 3, "n_points": 2})
    usual = save(state("ms_deform_attn", {"d_model": 32}), tmp_path, "usual.pth")
    assert converter.plan("auto", usual).config == {"d_model": 32, "n_levels": 4, "n_heads": 8, "n_points": 4}
    plan = converter.plan("ms_deform_attn", save(in_out(state("ms_deform_attn", {"d_model": 32})), tmp_path, "in.pth"))
    assert plan.to_dict()["dialect"] == "paddle"


def test_what_is_missing_is_named(tmp_path):
    official = state("dcn_v2", DCN)
    del official["conv_offset_mask.bias"]
    with pytest.raises(converter.PlanError, match=r"missing: conv_offset_mask\.bias"):
        converter.plan("dcn_v2", save(official, tmp_path))
    with pytest.raises(converter.UsageError, match=r"stride takes a whole number from 1, or one for y and one for x"):
        converter.plan("dcn_v2", save(state("dcn_v2", DCN), tmp_path), {"stride": 0})
    with pytest.raises(converter.ConversionError, match="holds no tensor of dcn_v2"):
        converter.plan("dcn_v2", save(state("dcn_v2", DCN), tmp_path), scope="elsewhere")


def test_two_models_that_fit_are_both_named(tmp_path):
    with pytest.raises(converter.ConversionError, match="several models fit this checkpoint: dcn_v2, deform_conv2d"):
        converter.plan("auto", save(state("dcn_v2", DCN), tmp_path))
    v1 = state("deform_conv2d", DCN | {"offset_groups": 1, "modulated": False})
    assert converter.plan("auto", save(v1, tmp_path)).pair.name == "deform_conv2d"


def test_paste_masks_has_nothing_to_convert(tmp_path):
    done = CliRunner().invoke(cli.convert, ["--model", "paste_masks", str(save({"masks": torch.ones(2)}, tmp_path))])
    assert done.exit_code == 2
    assert "an op without weights: there is nothing to convert; call tf_models.ops.paste_masks" in done.output
