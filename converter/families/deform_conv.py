"""Deformable convolution with its own offsets: mapping, dialects, sizes and probe inputs."""

from collections.abc import Mapping as Named
from typing import Any

import numpy as np

from converter.errors import UsageError
from converter.kinds import CONV_2D, CONV_2D_HWIO, PARAMETERS_OF_CONV_2D
from converter.pairs.dialects import Dialect
from converter.pairs.mapping import Mapping, Row
from converter.pairs.pair import Option, Pair, Probe

# mmcv's DeformConv2dPack and ModulatedDeformConv2dPack, and what mmdetection builds of them.
MMCV = Dialect("mmcv", (("conv_offset", "conv_offset_mask"),))
# Detectron2's DeformBottleneckBlock, where conv2 also has its norm and stands beside other convolutions.
DETECTRON2 = Dialect(
    "detectron2",
    (("conv2.weight", "weight"), ("conv2.bias", "bias"), ("conv2_offset", "conv_offset_mask")),
    others_out_of_scope=True,
)
# PaddleDetection's DeformableConvV2; its convolutions are laid out as torch's. The one for the offsets never dilates.
PADDLE = Dialect(
    "paddle",
    (("conv_dcn.weight", "weight"), ("conv_dcn.bias", "bias"), ("conv_offset", "conv_offset_mask")),
    fixed=(("dilation", 1),),
)
# The arrays of Keras-YOLOv4's DCNv2 layer: `dcn_weight` is laid out as torch's, the offsets' kernel as Keras's.
KERAS_YOLOV4 = Dialect(
    "keras_yolov4",
    (
        ("offset_w", "conv_offset_mask.weight"),
        ("offset_b", "conv_offset_mask.bias"),
        ("dcn_weight", "weight"),
        ("dcn_bias", "bias"),
    ),
    kinds=(("conv_offset_mask", CONV_2D_HWIO),),
)


def _config(shapes: Named[str, tuple[int, ...]], options: dict[str, Any], per_tap: list[int]) -> dict[str, Any]:
    """The sizes; `per_tap` are the numbers of channels that a tap may have: two offsets, or with the mask three."""
    filters, group_channels, *window = shapes["weight"]
    predicted, channels, *offset_window = shapes["conv_offset_mask.weight"]
    if len(window) != 2 or window != offset_window:
        raise ValueError("its two convolutions are not two-dimensional ones with the same window")
    taps, groups = window[0] * window[1], channels // group_channels
    if groups * group_channels != channels or filters % groups:
        raise ValueError("its channels do not come in equal groups")
    fitting = [n for n in per_tap if predicted % (n * taps) == 0 and channels % (predicted // (n * taps)) == 0]
    if not fitting:
        raise ValueError(f"{predicted} channels are no offsets of {taps} taps")
    each = fitting[0]
    if options.get("modulated") is not None:
        each = 3 if options["modulated"] else 2
        if each not in fitting:
            masks = "with masks, not without" if each == 2 else "without masks, not with"
            raise UsageError(f"modulated: {predicted} channels for {taps} taps are those of a convolution {masks}")
    least = {"stride": 1, "padding": 0, "dilation": 1}
    return {
        "in_channels": channels,
        "out_channels": filters,
        "kernel_size": window,
        **{name: _pair(name, options[name], smallest) for name, smallest in least.items()},
        "groups": groups,
        "offset_groups": predicted // (each * taps),
        "bias": "bias" in shapes,
        "modulated": each == 3,
    }


def _pair(name: str, given: tuple[int, ...], least: int) -> tuple[int, ...]:
    pair = given * 2 if len(given) == 1 else given
    if len(pair) != 2 or min(pair) < least:
        raise UsageError(f"{name} takes a whole number from {least}, or one for y and one for x, as {name}=2,1")
    return pair


def mapping(config: dict[str, Any]) -> Mapping:
    """The rows of a deformable convolution; its own tensors are at the root."""
    return Mapping([Row("", PARAMETERS_OF_CONV_2D), Row("conv_offset_mask", CONV_2D)])


def probes(config: dict[str, Any], rng: np.random.Generator) -> list[Probe]:
    """Small images, odd in one length: a plain one, and one so strong that the offsets it causes leave the image."""
    sizes = [
        max(dilation * (taps - 1) + 1 - 2 * padding, 1) + extra * stride + 1
        for taps, stride, padding, dilation, extra in zip(
            config["kernel_size"], config["stride"], config["padding"], config["dilation"], (5, 8), strict=True
        )
    ]
    if sizes[0] == sizes[1]:
        sizes[1] += config["stride"][1]
    images = [rng.standard_normal((batch, config["in_channels"], *sizes), dtype=np.float32) for batch in (3, 2)]
    return [Probe({"x": images[0]}), Probe({"x": images[1] * np.float32(10)})]


# Layers with the same names that compute their offsets from another feature map than the one that they convolve:
# EDVR's (`pcd_align.L3_dcnpack`, `pcd_align.dcn_pack.l3`, `pcd_alignment.cas_dcnpack`) and FaPN's (`dcpack_L2`).
_OF_TWO_INPUTS = (
    (
        r"(^|\.)(pcd_align(ment)?\.|(L\d|cas)_dcnpack\b|dcn_pack\.l\d|dcpack_L\d)",
        "its offsets come of a second input, as in EDVR and FaPN",
    ),
)

_GEOMETRY = {
    "stride": Option((1,), "stride of both convolutions, as 2 or 2,1 (y, x)"),
    "padding": Option((0,), "zeros around the image, as 1 or 1,0; a 3x3 in a detector has 1"),
    "dilation": Option((1,), "dilation of both convolutions"),
}
_USUAL = {
    "in_channels": 256,
    "out_channels": 256,
    "kernel_size": [3, 3],
    "stride": [1, 1],
    "padding": [0, 0],
    "dilation": [1, 1],
    "groups": 1,
    "offset_groups": 1,
    "bias": True,
    "modulated": True,
}

DEFORM_CONV2D = Pair(
    name="deform_conv2d",
    summary="a module around torchvision's deform_conv2d, with or without masks (DCN v1 and v2)",
    mapping=mapping,
    probes=probes,
    channels_first=frozenset({"x", "output"}),
    configure=lambda shapes, options: _config(shapes, options, [3, 2]),
    fallback=_USUAL,
    not_at=_OF_TWO_INPUTS,
    options={**_GEOMETRY, "modulated": Option(None, "with masks (v2) or without (v1); v2 where both fit", bool)},
    dialects=(MMCV, DETECTRON2),
)

DCN_V2 = Pair(
    name="dcn_v2",
    summary="modulated deformable convolution of a detector (mmcv, Detectron2, DCNv2, PaddleDetection, Keras-YOLOv4)",
    mapping=mapping,
    probes=probes,
    channels_first=frozenset({"x", "output"}),
    configure=lambda shapes, options: _config(shapes, options, [3]),
    fallback=_USUAL,
    not_at=_OF_TWO_INPUTS,
    options=_GEOMETRY,
    dialects=(MMCV, DETECTRON2, PADDLE, KERAS_YOLOV4),
)

PAIRS = (DCN_V2, DEFORM_CONV2D)
