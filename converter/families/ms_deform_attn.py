"""Deformable DETR's attention: mapping, dialects, sizes and probe inputs."""

from collections.abc import Mapping as Named
from math import prod
from typing import Any

import numpy as np

from converter.errors import UsageError
from converter.kinds import DENSE, DENSE_IN_OUT
from converter.pairs.dialects import Dialect
from converter.pairs.mapping import Mapping, Row
from converter.pairs.pair import Option, Pair, Probe

_LAYERS = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")

# Hugging Face's DeformableDetr and mmcv's MultiScaleDeformableAttention spell the four layers as the original does.
# PaddleDetection's MSDeformableAttention; the kernels that are not square tell it from the original.
PADDLE = Dialect("paddle", kinds=tuple((name, DENSE_IN_OUT) for name in _LAYERS))
# The port detr-tensorflow keeps its kernels as torch does, under Keras's name.
DETR_TENSORFLOW = Dialect("detr_tensorflow", tuple((f"{name}.kernel", f"{name}.weight") for name in _LAYERS))


def config(shapes: Named[str, tuple[int, ...]], options: dict[str, Any]) -> dict[str, Any]:
    """The width, and the three factors of the number of samples as the options give them."""
    width, _ = shapes["value_proj.weight"]
    samples = shapes["attention_weights.weight"][0]
    kernels = {"sampling_offsets": 2 * samples, "attention_weights": samples, "value_proj": width, "output_proj": width}
    for name, rows in kernels.items():
        if shapes[f"{name}.weight"] != (rows, width):
            raise ValueError(f"{name}.weight is not {rows} x {width}")
    factors = {name: options[name] for name in ("n_levels", "n_heads", "n_points")}
    if min(factors.values()) < 1 or prod(factors.values()) != samples:
        given = " * ".join(f"{name}={value}" for name, value in factors.items())
        raise UsageError(f"the checkpoint has {samples} samples a query, not {given}; say which with --option")
    if width % factors["n_heads"]:
        raise UsageError(f"n_heads takes a divisor of {width}, the width, not {factors['n_heads']}")
    return {"d_model": width, **factors}


def mapping(config: dict[str, Any]) -> Mapping:
    """The four linear layers."""
    return Mapping([Row(f"{{{','.join(_LAYERS)}}}", DENSE)])


def probes(config: dict[str, Any], rng: np.random.Generator) -> list[Probe]:
    """Points in and outside the image without a mask; boxes as large as the image, with one."""
    levels, width = config["n_levels"], config["d_model"]
    shapes = np.array([(2 + 2 * (levels - i), 1 + 3 * (levels - i)) for i in range(levels)])  # (L, 2), H != W
    pixels = int(shapes.prod(1).sum())

    def probe(batch: int, queries: int, reference: np.ndarray, **more: np.ndarray) -> Probe:
        return Probe(
            {
                "query": 4 * rng.standard_normal((batch, queries, width), dtype=np.float32),
                "reference_points": reference.astype(np.float32),
                "input_flatten": rng.standard_normal((batch, pixels, width), dtype=np.float32),
                "input_spatial_shapes": shapes,
                **more,
            }
        )

    points = rng.uniform(-0.1, 1.1, (2, 11, levels, 2))
    boxes = np.concatenate([rng.uniform(0, 1, (3, 5, levels, 2)), rng.uniform(0.3, 1.5, (3, 5, levels, 2))], -1)
    return [
        probe(2, 11, points),
        probe(3, 5, boxes, input_padding_mask=rng.random((3, pixels)) < 0.3),
    ]


MS_DEFORM_ATTN = Pair(
    name="ms_deform_attn",
    summary="Deformable DETR's attention (official, Hugging Face, mmcv, PaddleDetection, detr-tensorflow)",
    mapping=mapping,
    probes=probes,
    configure=config,
    fallback={"d_model": 256, "n_levels": 4, "n_heads": 8, "n_points": 4},
    options={
        "n_heads": Option(8, "attention heads; the checkpoint holds n_heads * n_levels * n_points"),
        "n_levels": Option(4, "feature maps"),
        "n_points": Option(4, "points for each head and level"),
    },
    dialects=(PADDLE, DETR_TENSORFLOW),
)

PAIRS = (MS_DEFORM_ATTN,)
