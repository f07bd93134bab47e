"""Deformable attention with continuous position bias (lucidrains): mappings, sizes and probe inputs of the three."""

from collections.abc import Callable
from collections.abc import Mapping as Named
from typing import Any

import numpy as np

from converter import kinds
from converter.errors import UsageError
from converter.pairs.mapping import Mapping, Row
from converter.pairs.pair import Option, Pair, Probe

_DEPTHWISE = (kinds.DEPTHWISE_CONV_1D, kinds.DEPTHWISE_CONV_2D, kinds.DEPTHWISE_CONV_3D)
_POINTWISE = (kinds.POINTWISE_CONV_1D, kinds.POINTWISE_CONV_2D, kinds.POINTWISE_CONV_3D)


def _sizes(shapes: Named[str, tuple[int, ...]], axes: int) -> dict[str, Any]:
    """The arguments that shapes reveal; the strides of the offsets, their scale and the grid are not among them."""
    width, one, *kernel = shapes["to_offsets.0.weight"]
    dim, inner, *_ = shapes["to_out.weight"]
    if len(kernel) != axes or one != 1 or inner % width:
        raise ValueError(f"to_offsets.0.weight is no depthwise kernel over {axes} axes")
    groups = inner // width
    heads = shapes["rel_pos_bias.mlp.2.weight"][0] * groups
    if inner % heads:
        raise ValueError(f"{heads} heads do not divide the inner width {inner}")
    return {
        "dim": dim,
        "dim_head": inner // heads,
        "heads": heads,
        "offset_groups": groups,
        "offset_kernel_size": kernel[0] if axes < 3 else kernel,
        # With one group both are the same network.
        "group_queries": groups == 1 or shapes["to_q.weight"][1] != dim,
        "group_key_values": groups == 1 or shapes["to_k.weight"][1] != dim,
    }


def _configure(axes: int) -> Callable[[Named[str, tuple[int, ...]], dict[str, Any]], dict[str, Any]]:
    def configure(shapes: Named[str, tuple[int, ...]], options: dict[str, Any]) -> dict[str, Any]:
        config = _sizes(shapes, axes) | options
        kernel, strides = np.atleast_1d(config["offset_kernel_size"]), np.atleast_1d(options["downsample_factor"])
        if (
            len(strides) not in (1, axes)
            or (strides < 1).any()
            or (kernel < strides).any()
            or ((kernel - strides) % 2).any()
        ):
            shown = "x".join(map(str, kernel))
            raise UsageError(
                f"downsample_factor takes a number from 1 that is offset_kernel_size ({shown}) or an even number less, "
                f"not {'x'.join(map(str, strides))}"
            )
        return config | {"downsample_factor": strides.tolist() if len(strides) > 1 else int(strides[0])}

    return configure


def _mapping(axes: int) -> Callable[[dict[str, Any]], Mapping]:
    last = {1: 5, 2: 4, 3: 4}[axes]

    def mapping(config: dict[str, Any]) -> Mapping:
        return Mapping(
            [
                Row("to_q", _POINTWISE[axes - 1]),
                Row("to_offsets.0", _DEPTHWISE[axes - 1]),
                Row("to_offsets.1", kinds.ACTIVATION_2D),
                Row("to_offsets.2", _POINTWISE[axes - 1]),
                Row(f"to_offsets.{last - 1}", kinds.ACTIVATION_2D),
                Row(f"to_offsets.{last}", kinds.SCALE if axes == 3 else kinds.ACTIVATION_2D),
                Row("to_{k,v}", _POINTWISE[axes - 1]),
                Row("rel_pos_bias.mlp.{0-1}.0", kinds.DENSE, keras="rel_pos_bias.mlp.{0-1}"),
                Row("rel_pos_bias.mlp.2", kinds.DENSE),
                Row("to_out", _POINTWISE[axes - 1]),
            ]
        )

    return mapping


def _probes(axes: int) -> Callable[[dict[str, Any], np.random.Generator], list[Probe]]:
    def probes(config: dict[str, Any], rng: np.random.Generator) -> list[Probe]:
        """One input as it comes, and one so large that the offsets reach their bounds and samples leave the image."""
        shape = (3, config["dim"], *_spatial(config, axes))
        return [
            Probe({"x": rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)}, {"return_vgrid": True})
            for scale in (1, 3)
        ]

    return probes


def _spatial(config: dict[str, Any], axes: int) -> tuple[int, ...]:
    """Lengths that all differ, and are no multiples of the strides where these are above 1."""
    *_, s = strides = np.broadcast_to(config["downsample_factor"], axes).tolist()
    if config["grid_variant"] == "xy_hw":  # knows only a square grid of samples
        return 5 * s, 6 * s - 1
    times = {1: (11,), 2: (4, 6), 3: (2, 4, 5)}[axes]
    return tuple(n * stride + min(i + 1, stride - 1) for i, (n, stride) in enumerate(zip(times, strides, strict=True)))


def _pair(axes: int, summary: str, variants: tuple[str, ...], help: str, **more: Option) -> Pair:
    per_axis = ", or one for each axis" if axes == 3 else ""
    offset_scale = {"offset_scale": Option(None, "how far samples move at most, in cells of their grid", float)}
    return Pair(
        name=f"deformable_attention_{axes}d",
        tensors=15 if axes == 3 else 14,
        summary=summary,
        mapping=_mapping(axes),
        probes=_probes(axes),
        outputs=("output", "vgrid"),
        channels_first=frozenset({"x", "output", "vgrid"}),
        configure=_configure(axes),
        fallback={
            "dim": 512,
            "dim_head": 64,
            "heads": 8,
            "offset_groups": 8,
            "offset_kernel_size": 6 if axes < 3 else [6, 6, 6],
            "group_queries": True,
            "group_key_values": True,
            "downsample_factor": 4,
            "dropout": 0.0,
            "grid_variant": variants[0],
        },
        options={
            "downsample_factor": Option((4,) if axes == 3 else 4, f"strides of the samples{per_axis}"),
            **({} if axes == 3 else offset_scale),  # a volume's is in the state dict
            "dropout": Option(0.0, "of the attention, in training"),
            "grid_variant": Option(variants[0], help, choices=variants),
            **more,
        },
    )


DEFORMABLE_ATTENTION_1D = _pair(
    1,
    "deformable attention over sequences (lucidrains)",
    ("zero_x", "zero_y"),
    "which release's grid: zero_x 0.0.19 to 0.0.20, zero_y 0.0.14 to 0.0.18",
    cpb_log_distance=Option(True, "the position bias sees the logarithm of distances"),
)
DEFORMABLE_ATTENTION_2D = _pair(
    2,
    "deformable attention over images (lucidrains)",
    ("xy_wh", "xy_hw", "ij_hw"),
    "which release's grid: xy_wh 0.0.18 to 0.0.20, xy_hw 0.0.17, ij_hw 0.0.14 to 0.0.16",
)
DEFORMABLE_ATTENTION_3D = _pair(
    3,
    "deformable attention over volumes (lucidrains)",
    ("ij_fhw",),
    "which release's grid: ij_fhw, all of 0.0.14 to 0.0.20",
)

PAIRS = (DEFORMABLE_ATTENTION_1D, DEFORMABLE_ATTENTION_2D, DEFORMABLE_ATTENTION_3D)
