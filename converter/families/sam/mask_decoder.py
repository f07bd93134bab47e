"""Segment Anything: the mask decoder's mapping, names, sizes and probe inputs."""

from collections.abc import Mapping as Named
from dataclasses import replace
from typing import Any

import numpy as np

from converter.kinds import ACTIVATION_2D, CONV_TRANSPOSE_2D, DENSE, LAYER_NORM, LAYER_NORM_2D, TOKENS
from converter.pairs.dialects import Dialect
from converter.pairs.mapping import Drop, Mapping, Row
from converter.pairs.pair import ConfigJson, Option, OptionError, Pair, Probe

# The bias of keys adds the same to every score of a query, which softmax takes away. Keras leaves these layers
# out where there are fewer tokens than positions, and multiplies the queries by their kernels.
KEYS = replace(DENSE, without_effect=("bias",))

# Hugging Face's SamModel, below `mask_decoder`.
HUGGING_FACE = Dialect(
    "hugging_face",
    (
        ("transformer.layers.{i}.layer_norm{j}", "transformer.layers.{i}.norm{j}"),
        ("transformer.layer_norm_final_attn", "transformer.norm_final_attn"),
        ("upscale_conv1", "output_upscaling.0"),
        ("upscale_layer_norm", "output_upscaling.1"),
        ("upscale_conv2", "output_upscaling.3"),
        ("output_hypernetworks_mlps.{i}.proj_in", "output_hypernetworks_mlps.{i}.layers.0"),
        ("output_hypernetworks_mlps.{i}.layers.0", "output_hypernetworks_mlps.{i}.layers.1"),
        ("output_hypernetworks_mlps.{i}.proj_out", "output_hypernetworks_mlps.{i}.layers.2"),
        ("iou_prediction_head.proj_in", "iou_prediction_head.layers.0"),
        ("iou_prediction_head.layers.0", "iou_prediction_head.layers.1"),
        ("iou_prediction_head.proj_out", "iou_prediction_head.layers.2"),
    ),
)


NUM_HEADS = Option(8, "attention heads of the mask decoder, 8 in every published SAM")


def config_json(theirs: str, ours: str, heads: str) -> dict[str, str]:
    """Hugging Face's words for the sizes, below `theirs`, and where they are, below `ours`; the heads below `heads`."""
    words = {
        "hidden_size": "transformer_dim",
        "num_multimask_outputs": "num_multimask_outputs",
        "iou_head_depth": "iou_head_depth",
        "iou_head_hidden_dim": "iou_head_hidden_dim",
        "num_hidden_layers": "depth",
        "mlp_dim": "mlp_dim",
        "attention_downsample_rate": "attention_downsample_rate",
    }
    found = {theirs + word: ours + name for word, name in words.items()}
    return {**found, f"{theirs}num_attention_heads": f"{heads}num_heads"}


def fixed_json(theirs: str) -> dict[str, Any]:
    """What Hugging Face's configuration could say otherwise, and this network has only so."""
    # Not the epsilon of its normalisations: published files say 1e-6, and the network they were made of has 1e-5.
    return {f"{theirs}hidden_act": "relu"}


def decoder_config(shapes: Named[str, tuple[int, ...]], options: dict[str, Any]) -> dict[str, Any]:
    """The mask decoder's sizes, read off its tensors; `num_heads` is not in them."""
    width = shapes["transformer.layers.0.self_attn.q_proj.weight"][0]
    inner = shapes["transformer.layers.0.cross_attn_token_to_image.q_proj.weight"][0]
    heads = options["num_heads"]
    if heads < 1 or inner % heads:
        raise OptionError("num_heads", f"takes a divisor of {inner}, the width of the attention, not {heads}")
    return {
        "transformer_dim": width,
        "num_multimask_outputs": shapes["mask_tokens.weight"][0] - 1,
        "iou_head_depth": count(shapes, "iou_prediction_head.layers."),
        "iou_head_hidden_dim": shapes["iou_prediction_head.layers.0.weight"][0],
        "depth": count(shapes, "transformer.layers."),
        "num_heads": heads,
        "mlp_dim": shapes["transformer.layers.0.mlp.lin1.weight"][0],
        "attention_downsample_rate": width // inner,
    }


def count(shapes: Named[str, tuple[int, ...]], before: str) -> int:
    """One more than the largest index in use; a gap is then reported as what is missing."""
    indices = [name[len(before) :].split(".")[0] for name in shapes if name.startswith(before)]
    return 1 + max((int(index) for index in indices if index.isdecimal() and len(index) < 5), default=0)


def decoder_mapping(config: dict[str, Any]) -> Mapping:
    """The mapping of the mask decoder."""
    return Mapping(decoder_rows(config))


def decoder_rows(config: dict[str, Any]) -> list[Row | Drop]:
    """The rows of the mask decoder."""
    last, masks, head = config["depth"] - 1, config["num_multimask_outputs"], config["iou_head_depth"] - 1
    layer = f"transformer.layers.{{0-{last}}}"
    attention = "{self_attn,cross_attn_token_to_image,cross_attn_image_to_token}"
    return [
        Row("{iou_token,mask_tokens}", TOKENS),
        Row(f"{layer}.{attention}.{{q,v,out}}_proj", DENSE),
        Row(f"{layer}.{attention}.k_proj", KEYS),
        Row(f"{layer}.mlp.lin{{1,2}}", DENSE),
        Row(f"{layer}.norm{{1-4}}", LAYER_NORM),
        Row("transformer.final_attn_token_to_image.{q,v,out}_proj", DENSE),
        Row("transformer.final_attn_token_to_image.k_proj", KEYS),
        Row("transformer.norm_final_attn", LAYER_NORM),
        Row("output_upscaling.{0,3}", CONV_TRANSPOSE_2D),
        Row("output_upscaling.1", LAYER_NORM_2D),
        Row("output_upscaling.{2,4}", ACTIVATION_2D),
        Row(f"output_hypernetworks_mlps.{{0-{masks}}}.layers.{{0-2}}", DENSE),
        Row(f"iou_prediction_head.layers.{{0-{head}}}", DENSE),
    ]


def decoder_probes(config: dict[str, Any], rng: np.random.Generator) -> list[Probe]:
    """Six prompts of three tokens with three masks; nine, which are decoded in groups, without tokens; H != W."""
    width = config["transformer_dim"]

    def probe(prompts: int, tokens: int, height: int, breadth: int, multimask_output: bool) -> Probe:
        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, dtype=np.float32)

        return Probe(
            {
                "image_embeddings": normal(1, width, height, breadth),
                "image_pe": normal(1, width, height, breadth),
                "sparse_prompt_embeddings": normal(prompts, tokens, width),
                "dense_prompt_embeddings": normal(prompts, width, height, breadth),
            },
            {"multimask_output": multimask_output},
        )

    return [probe(6, 3, 7, 9, True), probe(9, 0, 5, 8, False)]


# The sizes of every published SAM.
PUBLISHED_DECODER = {
    "transformer_dim": 256,
    "num_multimask_outputs": 3,
    "iou_head_depth": 3,
    "iou_head_hidden_dim": 256,
    "depth": 2,
    "num_heads": 8,
    "mlp_dim": 2048,
    "attention_downsample_rate": 2,
}

SAM_DECODER = Pair(
    name="sam_decoder",
    summary="Segment Anything's mask decoder (any SAM checkpoint)",
    mapping=decoder_mapping,
    probes=decoder_probes,
    outputs=("masks", "iou"),
    channels_first=frozenset({"image_embeddings", "image_pe", "dense_prompt_embeddings", "masks"}),
    configure=decoder_config,
    fallback=PUBLISHED_DECODER,
    options={"num_heads": NUM_HEADS},
    scopes=("mask_decoder.", ""),
    dialects=(HUGGING_FACE,),
    config_json=ConfigJson(("sam",), config_json("mask_decoder_config.", "", ""), fixed_json("mask_decoder_config.")),
)
