"""Segment Anything: the prompt encoder's mapping, names, sizes and probe inputs."""

from collections.abc import Callable
from collections.abc import Mapping as Named
from typing import Any

import numpy as np

from converter.kinds import ACTIVATION_2D, CONV_2D, LAYER_NORM_2D, PARAMETER, SEQUENTIAL_2D, TOKENS
from converter.pairs.dialects import Dialect
from converter.pairs.mapping import Drop, Mapping, Row
from converter.pairs.pair import ConfigJson, Option, OptionError, Pair, Probe

_MATRIX = "pe_layer.positional_encoding_gaussian_matrix"

# Hugging Face's SamModel, below `prompt_encoder`.
HUGGING_FACE = (
    ("shared_embedding.positional_embedding", _MATRIX),
    ("point_embed.{i}", "point_embeddings.{i}"),
    ("mask_embed.conv1", "mask_downscaling.0"),
    ("mask_embed.layer_norm1", "mask_downscaling.1"),
    ("mask_embed.conv2", "mask_downscaling.3"),
    ("mask_embed.layer_norm2", "mask_downscaling.4"),
    ("mask_embed.conv3", "mask_downscaling.6"),
)
# SamModel holds the matrix twice; files of newer versions have it under this name only.
HUGGING_FACE_MATRIX = "shared_image_embedding.positional_embedding"


def prompt_encoder_config(shapes: Named[str, tuple[int, ...]], options: dict[str, Any]) -> dict[str, Any]:
    """The prompt encoder's sizes, read off its tensors; those of the image are not in them."""
    image_size, patch_size = options["image_size"], options["patch_size"]
    if patch_size < 1 or image_size < patch_size or image_size % patch_size:
        raise OptionError("image_size", f"takes a multiple of patch_size ({patch_size}), not {image_size}")
    return {"image_size": image_size, "patch_size": patch_size, **prompt_encoder_widths(shapes)}


def prompt_encoder_widths(shapes: Named[str, tuple[int, ...]]) -> dict[str, Any]:
    """The widths that the tensors show."""
    return {
        "embed_dim": shapes["no_mask_embed.weight"][1],
        "mask_in_chans": shapes["mask_downscaling.3.weight"][0],
    }


def prompt_encoder_rows(config: dict[str, Any]) -> list[Row | Drop]:
    """The rows of the prompt encoder: its layers, and the shrinking of masks as a stage."""
    return [
        Row(_MATRIX, PARAMETER),
        Row("point_embeddings.{0-3}", TOKENS),
        Row("{not_a_point,no_mask}_embed", TOKENS),
        Row("mask_downscaling.{0,3,6}", CONV_2D),
        Row("mask_downscaling.{1,4}", LAYER_NORM_2D),
        Row("mask_downscaling.{2,5}", ACTIVATION_2D),
        Row("mask_downscaling", SEQUENTIAL_2D),
    ]


def prompt_encoder_mapping(config: dict[str, Any]) -> Mapping:
    """The mapping of the prompt encoder."""
    return Mapping(prompt_encoder_rows(config))


def prompts(image_size: int, grid: int, rng: np.random.Generator) -> dict[str, Any]:
    """Three prompts of every sort: points of every label with (x, y) that differ, boxes, masks."""

    def pixels(*shape: int) -> np.ndarray:
        return (rng.random(shape) * image_size).astype(np.float32)

    return {
        "points": (pixels(3, 4, 2), np.array([[1, 0, -1, 1], [0, 1, 1, -1], [-1, 0, 0, 1]])),
        "boxes": pixels(3, 4),
        "masks": rng.standard_normal((3, 1, 4 * grid, 4 * grid), dtype=np.float32),
    }


def prompt_encoder_probes(config: dict[str, Any], rng: np.random.Generator, part: str = "") -> list[Probe]:
    """Points alone; boxes and masks; all together. Three prompts each."""
    given = prompts(config["image_size"], config["image_size"] // config["patch_size"], rng)
    chosen = (("points",), ("boxes", "masks"), ("points", "boxes", "masks"))
    return [Probe({name: given[name] for name in names}, part=part) for names in chosen]


def config_json(ours: str, image_size: str, patch_size: str) -> dict[str, str | Callable[[Named[str, Any]], Any]]:
    """Hugging Face's words for the sizes, and where in the configuration they are: those of the prompts below `ours`,
    those of the image that prompts are given for as they are named."""
    return {
        "prompt_encoder_config.hidden_size": f"{ours}embed_dim",
        "prompt_encoder_config.mask_input_channels": f"{ours}mask_in_chans",
        "prompt_encoder_config.image_size": image_size,
        "prompt_encoder_config.patch_size": patch_size,
        "prompt_encoder_config.image_embedding_size": lambda sizes: sizes[image_size] // sizes[patch_size],
        "vision_config.num_pos_feats": lambda sizes: sizes[f"{ours}embed_dim"] // 2,
    }


# What Hugging Face's configuration could say otherwise, and this network has only so.
FIXED_JSON = {
    "prompt_encoder_config.hidden_act": "gelu",
    "prompt_encoder_config.layer_norm_eps": 1e-6,
    "prompt_encoder_config.num_point_embeddings": 4,
}


PUBLISHED_PROMPT_ENCODER = {"image_size": 1024, "patch_size": 16, "embed_dim": 256, "mask_in_chans": 16}

SAM_PROMPT_ENCODER = Pair(
    name="sam_prompt_encoder",
    summary="Segment Anything's prompt encoder (any SAM checkpoint)",
    mapping=prompt_encoder_mapping,
    probes=prompt_encoder_probes,
    outputs=("sparse", "dense"),
    channels_first=frozenset({"masks", "dense"}),
    configure=prompt_encoder_config,
    fallback=PUBLISHED_PROMPT_ENCODER,
    options={
        "image_size": Option(1024, "side of the square image that prompts are given for, in pixels"),
        "patch_size": Option(16, "pixels of that image to a patch of the image embedding, along a side"),
    },
    scopes=("prompt_encoder.", ""),
    config_json=ConfigJson(("sam",), config_json("", "image_size", "patch_size"), FIXED_JSON),
    dialects=(Dialect("hugging_face", HUGGING_FACE, shared=((HUGGING_FACE_MATRIX, _MATRIX),)),),
)
