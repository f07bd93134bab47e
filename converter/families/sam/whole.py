"""Segment Anything as a whole: the mappings of its three parts under one roof, for each size of its image encoder."""

from collections.abc import Mapping as Named
from dataclasses import replace
from typing import Any

import numpy as np

from converter.families.sam import image_encoder, mask_decoder, prompt_encoder
from converter.kinds import STAGE_2D
from converter.pairs.dialects import Dialect, renamed_under
from converter.pairs.mapping import Mapping, Row, under
from converter.pairs.pair import ConfigJson, Pair, Probe, Variant

HUGGING_FACE = Dialect(
    "hugging_face",
    (
        ("vision_encoder.pos_embed", "image_encoder.pos_embed"),
        *renamed_under("vision_encoder", "image_encoder", image_encoder.HUGGING_FACE),
        *renamed_under("prompt_encoder", "prompt_encoder", prompt_encoder.HUGGING_FACE),
        *renamed_under("mask_decoder", "mask_decoder", mask_decoder.HUGGING_FACE.renames),
    ),
    shared=(
        (
            prompt_encoder.HUGGING_FACE_MATRIX,
            "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        ),
    ),
)

SMALL_GRID = 16  # patches along a side, up to which the whole model is cheap enough for every proof
_FEW = 6  # patches along a side of the image that a larger model is proven on as a whole


def sam_config(shapes: Named[str, tuple[int, ...]], options: dict[str, Any]) -> dict[str, Any]:
    """The sizes of all parts; `image_size` is for the first two, `num_heads` is the mask decoder's."""
    encoder = image_encoder.image_encoder_config(part(shapes, "image_encoder"), options)
    decoder = mask_decoder.decoder_config(part(shapes, "mask_decoder"), options)
    return {
        "image_size": encoder.pop("image_size"),
        "num_heads": decoder.pop("num_heads"),
        "image_encoder": encoder,
        "prompt_encoder": prompt_encoder.prompt_encoder_widths(part(shapes, "prompt_encoder")),
        "mask_decoder": decoder,
    }


def part(shapes: Named[str, tuple[int, ...]], part: str) -> "_Part":
    return _Part({n.removeprefix(f"{part}."): s for n, s in shapes.items() if n.startswith(f"{part}.")}, part)


class _Part(dict[str, tuple[int, ...]]):
    """Shapes of a part by the names in it; what is missing is told by its whole name."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], part: str):
        super().__init__(shapes)
        self.part = part

    def __missing__(self, name: str) -> tuple[int, ...]:
        raise KeyError(f"{self.part}.{name}")


def sam_mapping(config: dict[str, Any]) -> Mapping:
    """The mappings of the parts, and each part as a stage."""
    return Mapping(
        [
            *under("image_encoder", image_encoder.image_encoder_rows(config["image_encoder"])),
            *under("prompt_encoder", prompt_encoder.prompt_encoder_rows(config["prompt_encoder"])),
            *under("mask_decoder", mask_decoder.decoder_rows(config["mask_decoder"])),
            Row("{image_encoder,prompt_encoder,mask_decoder}", STAGE_2D),
        ]
    )


def sam_probes(config: dict[str, Any], rng: np.random.Generator) -> list[Probe]:
    """Each part alone, at sizes that its layers' inputs fit in memory, and the whole on a small image."""
    encoder = {**config["image_encoder"], "image_size": config["image_size"]}
    prompt = {**config["prompt_encoder"], "image_size": config["image_size"], "patch_size": encoder["patch_size"]}
    decoder = mask_decoder.decoder_probes(config["mask_decoder"], rng)
    return [
        *image_encoder.image_encoder_probes(encoder, rng, "image_encoder"),
        *prompt_encoder.prompt_encoder_probes(prompt, rng, "prompt_encoder"),
        *(replace(probe, part="mask_decoder") for probe in decoder),
        *whole_probes(config, encoder["patch_size"], rng),
    ]


def whole_probes(config: dict[str, Any], patch: int, rng: np.random.Generator) -> list[Probe]:
    """The whole, from image to masks: at its own size where that is small, else on an image of few patches."""
    if config["image_size"] <= SMALL_GRID * patch:
        return _prompted(config["image_size"], patch, rng)
    small = _FEW * patch
    return [replace(probe, config={"image_size": small}) for probe in _prompted(small, patch, rng)]


def sam_full_size_probes(config: dict[str, Any], rng: np.random.Generator) -> list[Probe]:
    """The whole on one image of its real size; stages only."""
    whole = _prompted(config["image_size"], config["image_encoder"]["patch_size"], rng)
    return [replace(probe, stages_only=True) for probe in whole]


def _prompted(size: int, patch: int, rng: np.random.Generator) -> list[Probe]:
    """The whole on one image: prompts of every sort, then points alone."""
    given = prompt_encoder.prompts(size, size // patch, rng)
    coords, labels = given["points"]
    image = rng.standard_normal((1, 3, size, size), dtype=np.float32)
    points = {"image": image, "point_coords": coords, "point_labels": labels}
    every = {**points, "boxes": given["boxes"], "mask_input": given["masks"]}
    return [Probe(every, {"multimask_output": True}), Probe(points, {"multimask_output": False})]


def _variant(letter: str, width: int, depth: int, heads: int, tensors: int) -> Variant:
    """A published image encoder; all else is the same in every SAM."""
    return Variant(
        f"sam_vit_{letter.lower()}",
        {
            "image_encoder": {
                "embed_dim": width,
                "depth": depth,
                "num_heads": heads,
                "mlp_dim": 4 * width,
                "global_attn_indexes": list(range(depth // 4 - 1, depth, depth // 4)),
            }
        },
        f"Segment Anything with ViT-{letter}: image encoder, prompt encoder and mask decoder",
        tensors,
    )


_ENCODER = dict(image_encoder.PUBLISHED_IMAGE_ENCODER)
_DECODER = dict(mask_decoder.PUBLISHED_DECODER)

SAM = Pair(
    name="sam",
    summary="Segment Anything of any size: image encoder, prompt encoder and mask decoder",
    mapping=sam_mapping,
    probes=sam_probes,
    full_size_probes=sam_full_size_probes,
    outputs=("masks", "iou"),
    channels_first=frozenset({"image", "mask_input", "masks"}),
    configure=sam_config,
    fallback={
        "image_size": _ENCODER.pop("image_size"),
        "num_heads": _DECODER.pop("num_heads"),
        "image_encoder": _ENCODER,
        "prompt_encoder": {"embed_dim": 256, "mask_in_chans": 16},
        "mask_decoder": _DECODER,
    },
    options={
        "image_size": image_encoder.IMAGE_SIZE,
        "num_heads": mask_decoder.NUM_HEADS,
    },
    dialects=(HUGGING_FACE,),
    variants=(
        _variant("B", 768, 12, 12, 314),
        _variant("L", 1024, 24, 16, 482),
        _variant("H", 1280, 32, 16, 594),
    ),
    config_json=ConfigJson(
        ("sam",),
        {
            **image_encoder.config_json("vision_config.", "image_encoder."),
            **mask_decoder.config_json("mask_decoder_config.", "mask_decoder.", ""),
            **prompt_encoder.config_json(
                "prompt_encoder.", "image_encoder.trained_img_size", "image_encoder.patch_size"
            ),
        },
        {
            **image_encoder.fixed_json("vision_config."),
            **mask_decoder.fixed_json("mask_decoder_config."),
            **prompt_encoder.FIXED_JSON,
        },
    ),
)
