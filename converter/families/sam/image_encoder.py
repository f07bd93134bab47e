"""Segment Anything: the image encoder's mapping, names, sizes and probe inputs."""

from collections.abc import Callable
from collections.abc import Mapping as Named
from typing import Any

import numpy as np

from converter.families.sam.mask_decoder import count
from converter.kinds import (
    ACTIVATION,
    CONV_2D,
    DENSE,
    LAYER_NORM,
    LAYER_NORM_2D,
    PARAMETER,
    SEQUENTIAL_2D,
    STAGE,
    STAGE_2D,
)
from converter.pairs.dialects import Dialect
from converter.pairs.mapping import Drop, Mapping, Row
from converter.pairs.pair import ConfigJson, Option, OptionError, Pair, Probe

# Hugging Face's SamModel, below `vision_encoder`.
HUGGING_FACE = (
    ("patch_embed.projection", "patch_embed.proj"),
    ("layers.{i}.layer_norm1", "blocks.{i}.norm1"),
    ("layers.{i}.layer_norm2", "blocks.{i}.norm2"),
    ("layers.{i}.attn", "blocks.{i}.attn"),
    ("layers.{i}.mlp", "blocks.{i}.mlp"),
    ("neck.conv1", "neck.0"),
    ("neck.layer_norm1", "neck.1"),
    ("neck.conv2", "neck.2"),
    ("neck.layer_norm2", "neck.3"),
)


def config_json(theirs: str, ours: str) -> dict[str, str | Callable[[Named[str, Any]], Any]]:
    """Hugging Face's words for the sizes, below `theirs`, and where in the configuration they are, below `ours`."""
    words = {
        "hidden_size": "embed_dim",
        "num_hidden_layers": "depth",
        "num_attention_heads": "num_heads",
        "patch_size": "patch_size",
        "image_size": "trained_img_size",
        "output_channels": "out_chans",
        "global_attn_indexes": "global_attn_indexes",
        "mlp_dim": "mlp_dim",  # not mlp_ratio: transformers writes that too, and reads it only where this is null
    }
    return {
        **{theirs + word: ours + name for word, name in words.items()},
        # Where every block attends globally, any may stand there.
        f"{theirs}window_size": lambda sizes: sizes[f"{ours}window_size"] or None,
    }


def fixed_json(theirs: str) -> dict[str, Any]:
    """What Hugging Face's configuration could say otherwise, and this network has only so."""
    fixed = {
        "num_channels": 3,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
        "use_abs_pos": True,
        "use_rel_pos": True,
    }
    return {theirs + word: value for word, value in fixed.items()}


IMAGE_SIZE = Option(0, "side of the square input image in pixels; 0: the one the positions were trained for")


def image_encoder_config(shapes: Named[str, tuple[int, ...]], options: dict[str, Any]) -> dict[str, Any]:
    """The image encoder's sizes, read off its tensors.

    A block attends globally when its relative positions cover the grid of the absolute ones.
    """
    width, _, patch, other_patch = shapes["patch_embed.proj.weight"]
    _, grid, other_grid, _ = shapes["pos_embed"]
    if patch != other_patch or grid != other_grid:
        raise ValueError("its patches and its grid of them must be square")
    lengths = [shapes[f"blocks.{i}.attn.rel_pos_h"][0] for i in range(count(shapes, "blocks."))]
    windows = sorted({(length + 1) // 2 for length in lengths if length != 2 * grid - 1})
    if len(windows) > 1:
        raise ValueError(f"its relative positions are for windows of {windows[0]} and of {windows[1]} patches")
    image_size = options["image_size"] or grid * patch
    if image_size < patch or image_size % patch:
        raise OptionError("image_size", f"takes a multiple of {patch}, the size of a patch, not {image_size}")
    return {
        "image_size": image_size,
        "patch_size": patch,
        "embed_dim": width,
        "depth": len(lengths),
        "num_heads": width // shapes["blocks.0.attn.rel_pos_h"][1],
        "mlp_dim": shapes["blocks.0.mlp.lin1.weight"][0],
        "out_chans": shapes["neck.0.weight"][0],
        "window_size": windows[0] if windows else 0,
        "global_attn_indexes": [i for i, length in enumerate(lengths) if length == 2 * grid - 1],
        "trained_img_size": grid * patch,
    }


def image_encoder_rows(config: dict[str, Any]) -> list[Row | Drop]:
    """The rows of the image encoder: its layers, and its stages."""
    block = f"blocks.{{0-{config['depth'] - 1}}}"
    return [
        Row("patch_embed.proj", CONV_2D),
        Row("pos_embed", PARAMETER),
        Row(f"{block}.norm{{1,2}}", LAYER_NORM),
        Row(f"{block}.attn.{{qkv,proj}}", DENSE),
        Row(f"{block}.attn.rel_pos_{{h,w}}", PARAMETER),
        Row(f"{block}.mlp.lin{{1,2}}", DENSE),
        Row(f"{block}.mlp.act", ACTIVATION),
        Row("neck.{0,2}", CONV_2D),
        Row("neck.{1,3}", LAYER_NORM_2D),
        Row("patch_embed", STAGE_2D),
        Row(block, STAGE),
        Row("neck", SEQUENTIAL_2D),
    ]


def image_encoder_mapping(config: dict[str, Any]) -> Mapping:
    """The mapping of the image encoder."""
    return Mapping(image_encoder_rows(config))


def image_encoder_probes(config: dict[str, Any], rng: np.random.Generator, part: str = "") -> list[Probe]:
    """Every layer on few patches, whose positions are resized; the stages on more, in several windows; H != W."""
    patch, window = config["patch_size"], config["window_size"]

    def probe(rows: int, columns: int, stages_only: bool) -> Probe:
        image = rng.standard_normal((1, 3, rows * patch, columns * patch), dtype=np.float32)
        return Probe({"image": image}, part=part, stages_only=stages_only)

    return [probe(3, 5, False), probe(window + 3, window + 1, True)]


def image_encoder_full_size_probes(config: dict[str, Any], rng: np.random.Generator) -> list[Probe]:
    """The stages on an image of the size that the model is meant for."""
    image = rng.standard_normal((1, 3, config["image_size"], config["image_size"]), dtype=np.float32)
    return [Probe({"image": image}, stages_only=True)]


# The image encoder of ViT-B.
PUBLISHED_IMAGE_ENCODER = {
    "image_size": 1024,
    "patch_size": 16,
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_dim": 3072,
    "out_chans": 256,
    "window_size": 14,
    "global_attn_indexes": [2, 5, 8, 11],
    "trained_img_size": 1024,
}

SAM_IMAGE_ENCODER = Pair(
    name="sam_image_encoder",
    tensors=177,
    summary="Segment Anything's image encoder (ViT-B, L, H or of other sizes)",
    mapping=image_encoder_mapping,
    probes=image_encoder_probes,
    full_size_probes=image_encoder_full_size_probes,
    outputs=("image_embeddings",),
    channels_first=frozenset({"image", "image_embeddings"}),
    configure=image_encoder_config,
    fallback=PUBLISHED_IMAGE_ENCODER,
    options={"image_size": IMAGE_SIZE},
    scopes=("image_encoder.", "vision_encoder.", ""),
    dialects=(Dialect("hugging_face", HUGGING_FACE),),
    config_json=ConfigJson(("sam",), config_json("vision_config.", ""), fixed_json("vision_config.")),
)
