"""MobileSAM: the mapping of its image encoder, TinyViT, beside those of Segment Anything's other two parts."""

import math
from collections.abc import Mapping as Named
from dataclasses import replace
from typing import Any

import numpy as np

from converter.families.sam import mask_decoder, prompt_encoder
from converter.families.sam.mask_decoder import count
from converter.families.sam.whole import part, sam_full_size_probes, whole_probes
from converter.kinds import (
    ACTIVATION,
    ACTIVATION_2D,
    BATCH_NORM,
    CONV_2D,
    DENSE,
    DEPTHWISE_CONV_2D,
    LAYER_NORM,
    LAYER_NORM_2D,
    PARAMETER,
    SEQUENTIAL_2D,
    STAGE,
    STAGE_2D,
)
from converter.pairs.mapping import Drop, Mapping, Row, under
from converter.pairs.pair import Option, OptionError, Pair, Probe

_STRIDE = 16  # pixels of the image along each side of one vector of its embedding


def tiny_vit_config(shapes: Named[str, tuple[int, ...]]) -> dict[str, Any]:
    """The image encoder's sizes, read off its tensors; each stage's width is that of its first layer.

    A head has a bias for every distance of two tokens of a window, which are as many as the window has tokens.
    """
    expanded, width, _, _ = shapes["layers.0.blocks.0.conv1.c.weight"]
    heads, windows, dims = [], [], [width]
    for stage in (1, 2, 3):
        num_heads, distances = shapes[f"layers.{stage}.blocks.0.attn.attention_biases"]
        heads.append(num_heads)
        windows.append(math.isqrt(distances))
        dims.append(shapes[f"layers.{stage}.blocks.0.attn.proj.weight"][0])
    return {
        "embed_dims": dims,
        "depths": [count(shapes, f"layers.{stage}.blocks.") for stage in range(4)],
        "num_heads": heads,
        "window_sizes": windows,
        "mlp_ratio": shapes["layers.1.blocks.0.mlp.fc1.weight"][0] / dims[1],
        "mbconv_expand_ratio": expanded / width,
        "local_conv_size": shapes["layers.1.blocks.0.local_conv.c.weight"][2],
        "out_chans": shapes["neck.0.weight"][0],
    }


def tiny_vit_rows(config: dict[str, Any]) -> list[Row | Drop]:
    """The rows of the image encoder: its layers, and its stages."""
    first = f"layers.0.blocks.{{0-{config['depths'][0] - 1}}}"
    merging = "layers.{0-2}.downsample"
    rows: list[Row | Drop] = [
        Row("patch_embed.seq.{0,2}.c", CONV_2D),
        Row("patch_embed.seq.{0,2}.bn", BATCH_NORM),
        Row("patch_embed.seq.1", ACTIVATION_2D),
        Row("patch_embed", STAGE_2D),
        Row(f"{first}.conv{{1,3}}.c", CONV_2D),
        Row(f"{first}.conv2.c", DEPTHWISE_CONV_2D),
        Row(f"{first}.conv{{1-3}}.bn", BATCH_NORM),
        Row(f"{first}.act{{1-3}}", ACTIVATION_2D),
        Row(first, STAGE_2D),
    ]
    for stage in (1, 2, 3):
        block = f"layers.{stage}.blocks.{{0-{config['depths'][stage] - 1}}}"
        rows += [
            Row(f"{block}.attn.attention_biases", PARAMETER),
            Row(f"{block}.{{attn,mlp}}.norm", LAYER_NORM),
            Row(f"{block}.attn.{{qkv,proj}}", DENSE),
            Row(f"{block}.mlp.fc{{1,2}}", DENSE),
            Row(f"{block}.mlp.act", ACTIVATION),
            Row(f"{block}.local_conv.c", DEPTHWISE_CONV_2D),
            Row(f"{block}.local_conv.bn", BATCH_NORM),
            Row(block, STAGE),
            Drop(
                f"{block}.attn.attention_bias_idxs",
                "computed from the size of the window",
                equals=bias_indices(config["window_sizes"][stage - 1]),
            ),
        ]
    return [
        *rows,
        Row(f"{merging}.conv{{1,3}}.c", CONV_2D),
        Row(f"{merging}.conv2.c", DEPTHWISE_CONV_2D),
        Row(f"{merging}.conv{{1-3}}.bn", BATCH_NORM),
        Row(f"{merging}.act", ACTIVATION_2D),
        Row(merging, STAGE_2D),
        Row("layers.{0-3}", STAGE_2D),
        Row("neck.{0,2}", CONV_2D),
        Row("neck.{1,3}", LAYER_NORM_2D),
        Row("neck", SEQUENTIAL_2D),
        Drop("{norm_head,head}.{weight,bias}", "the classifier that TinyViT was trained with; no mask depends on it"),
    ]


def bias_indices(window: int) -> np.ndarray:
    """(w², w²): which of a head's biases is for two tokens of a window; w times their rows apart, and their columns."""
    apart = np.abs(np.arange(window)[:, None] - np.arange(window))  # (w, w)
    return (apart[:, None, :, None] * window + apart[None, :, None, :]).reshape(window**2, window**2)


def mobile_sam_config(shapes: Named[str, tuple[int, ...]], options: dict[str, Any]) -> dict[str, Any]:
    """The sizes of all parts; `image_size` is not in them, and `num_heads` is the mask decoder's."""
    encoder = tiny_vit_config(part(shapes, "image_encoder"))  # before options, which may be right for another SAM
    image_size = options["image_size"]
    if image_size < _STRIDE or image_size % _STRIDE:
        raise OptionError("image_size", f"takes a multiple of {_STRIDE}, not {image_size}")
    decoder = mask_decoder.decoder_config(part(shapes, "mask_decoder"), options)
    return {
        "image_size": image_size,
        "num_heads": decoder.pop("num_heads"),
        "image_encoder": encoder,
        "prompt_encoder": prompt_encoder.prompt_encoder_widths(part(shapes, "prompt_encoder")),
        "mask_decoder": decoder,
    }


def mobile_sam_mapping(config: dict[str, Any]) -> Mapping:
    """The mappings of the parts, and each part as a stage."""
    return Mapping(
        [
            *under("image_encoder", tiny_vit_rows(config["image_encoder"])),
            *under("prompt_encoder", prompt_encoder.prompt_encoder_rows(config["prompt_encoder"])),
            *under("mask_decoder", mask_decoder.decoder_rows(config["mask_decoder"])),
            Row("{image_encoder,prompt_encoder,mask_decoder}", STAGE_2D),
        ]
    )


def mobile_sam_probes(config: dict[str, Any], rng: np.random.Generator) -> list[Probe]:
    """Each part alone, the image encoder's stages also on several windows; and the whole on a small image."""

    def image(rows: int, columns: int, stages_only: bool) -> Probe:
        values = rng.standard_normal((1, 3, rows * _STRIDE, columns * _STRIDE), dtype=np.float32)
        return Probe({"image": values}, part="image_encoder", stages_only=stages_only)

    window = max(config["image_encoder"]["window_sizes"])
    prompt = {**config["prompt_encoder"], "image_size": config["image_size"], "patch_size": _STRIDE}
    decoder = mask_decoder.decoder_probes(config["mask_decoder"], rng)
    return [
        image(3, 5, False),
        image(window + 3, window + 1, True),
        *prompt_encoder.prompt_encoder_probes(prompt, rng, "prompt_encoder"),
        *(replace(probe, part="mask_decoder") for probe in decoder),
        *whole_probes(config, _STRIDE, rng),
    ]


def mobile_sam_full_size_probes(config: dict[str, Any], rng: np.random.Generator) -> list[Probe]:
    """The whole on one image of its real size: prompts of every sort, then points alone; stages only."""
    return sam_full_size_probes({**config, "image_encoder": {"patch_size": _STRIDE}}, rng)


_DECODER = dict(mask_decoder.PUBLISHED_DECODER)

MOBILE_SAM = Pair(
    name="mobile_sam",
    tensors=408,
    summary="MobileSAM: TinyViT-5M image encoder, prompt encoder and mask decoder",
    mapping=mobile_sam_mapping,
    probes=mobile_sam_probes,
    full_size_probes=mobile_sam_full_size_probes,
    outputs=("masks", "iou"),
    channels_first=frozenset({"image", "mask_input", "masks"}),
    configure=mobile_sam_config,
    fallback={
        "image_size": 1024,
        "num_heads": _DECODER.pop("num_heads"),
        "image_encoder": {
            "embed_dims": [64, 128, 160, 320],
            "depths": [2, 2, 6, 2],
            "num_heads": [4, 5, 10],
            "window_sizes": [7, 14, 7],
            "mlp_ratio": 4.0,
            "mbconv_expand_ratio": 4.0,
            "local_conv_size": 3,
            "out_chans": 256,
        },
        "prompt_encoder": {"embed_dim": 256, "mask_in_chans": 16},
        "mask_decoder": _DECODER,
    },
    options={
        "image_size": Option(1024, "side of the square input image in pixels, 1024 in the published MobileSAM"),
        "num_heads": mask_decoder.NUM_HEADS,
    },
)
