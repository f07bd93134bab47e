"""Deformable attention in every rank: the upstream package's classes, small sizes, and the definition, in numpy."""

import itertools
import math
from typing import Any

import deformable_attention
import numpy as np
import torch

import torch_refs

UPSTREAM = {
    1: deformable_attention.DeformableAttention1D,
    2: deformable_attention.DeformableAttention2D,
    3: deformable_attention.DeformableAttention3D,
}
SPATIAL = {1: (23,), 2: (13, 18), 3: (3, 9, 11)}  # N, (H, W), (F, H, W)
# Upstream's arguments. All lengths differ: width, inner width, heads, groups, kernel, stride.
SMALL: dict[int, dict[str, Any]] = {
    1: {"dim": 12, "dim_head": 5, "heads": 6, "offset_groups": 3, "downsample_factor": 3, "offset_kernel_size": 5},
    2: {"dim": 12, "dim_head": 5, "heads": 6, "offset_groups": 3, "downsample_factor": 3, "offset_kernel_size": 5},
    3: {
        "dim": 12,
        "dim_head": 5,
        "heads": 6,
        "offset_groups": 3,
        "downsample_factor": (1, 4, 3),
        "offset_kernel_size": (3, 6, 5),
    },
}
OTHER: dict[int, dict[str, Any]] = {
    1: {"offset_groups": None, "group_queries": False, "cpb_log_distance": False, "offset_scale": 7.5},
    2: {"offset_groups": None, "group_key_values": False, "offset_scale": 2.5},
    3: {"offset_groups": 2, "group_queries": False, "group_key_values": False, "offset_scale": (1.5, 4.0, 2.0)},
}
VARIANTS = {1: ("zero_x", "zero_y"), 2: ("xy_wh", "xy_hw", "ij_hw"), 3: ("ij_fhw",)}


def upstream(axes: int, seed: int = 0, **more: Any) -> Any:
    """The package's module with seeded weights, larger than fresh ones, so that offsets leave the image."""
    torch.manual_seed(seed)
    module = UPSTREAM[axes](**{**SMALL[axes], **more}).eval()
    with torch.no_grad():
        for name in ("to_offsets.0.weight", "to_offsets.2.weight"):
            module.get_parameter(name).mul_(5)
    return module


def reference(axes: int, module: Any = None, **more: Any) -> Any:
    """The torch reference, with the weights of an upstream module."""
    ours = torch_refs.create(f"deformable_attention_{axes}d", **{**SMALL[axes], **more})
    if module is not None:
        ours.load_state_dict(module.state_dict(), strict=True)
    return ours


def inputs(axes: int, batch: int = 2, spatial: tuple[int, ...] | None = None, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn((batch, SMALL[axes]["dim"], *(spatial or SPATIAL[axes])), generator=rng)


def defined(module: Any, x: torch.Tensor, variant: str, log_distance: bool = True) -> np.ndarray:
    """The attention's output (B, dim, *S) in float64, sample by sample, from what each released grid means.

    A grid is a list of positions for each sample and for each query. What a variant changes is which of a sample's
    indices it starts from, which axis of the image each coordinate is held to lie along, and by which length it is
    divided.
    """
    state = {name: tensor.detach().double().numpy() for name, tensor in module.state_dict().items()}
    image = x.double().numpy()
    batch, _, *spatial = image.shape
    axes, groups, heads = len(spatial), module.offset_groups, module.heads

    def conv(name: str, values: np.ndarray) -> np.ndarray:
        """A convolution with kernel 1: (C, ...) -> (O, ...)."""
        kernel = state[f"{name}.weight"].reshape(len(state[f"{name}.weight"]), -1)  # (O, C/groups)
        parts = len(values) // kernel.shape[1]
        out = [np.tensordot(k, v, 1) for k, v in zip(np.split(kernel, parts), np.split(values, parts), strict=True)]
        out = np.concatenate(out)
        return out + state.get(f"{name}.bias", np.zeros(len(out))).reshape(-1, *[1] * (out.ndim - 1))

    def moved(query: np.ndarray) -> np.ndarray:
        """Offsets (axes, *T) of one group's queries (C, *S)."""
        first = module.to_offsets[0]
        padded = np.pad(query, [(0, 0), *((p, p) for p in first.padding)])
        count = [(n - k) // s + 1 for n, k, s in zip(padded.shape[1:], first.kernel_size, first.stride, strict=True)]
        hidden = np.zeros((len(query), *count))
        for at in itertools.product(*map(range, count)):
            window = tuple(slice(i * s, i * s + k) for i, s, k in zip(at, first.stride, first.kernel_size, strict=True))
            hidden[(slice(None), *at)] = (padded[(slice(None), *window)] * state["to_offsets.0.weight"][:, 0]).sum(
                tuple(range(1, axes + 1))
            )
        hidden += state["to_offsets.0.bias"].reshape(-1, *[1] * axes)
        gelu = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        scale = np.broadcast_to(state.get("to_offsets.4.scale", module.to_offsets[-1].scale), axes)
        return np.tanh(conv("to_offsets.2", gelu)) * scale.reshape(-1, *[1] * axes)

    def cells(count: list[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """(index into the offsets, position before them) of each cell of a grid, in the order they are flattened."""
        if variant == "xy_wh":
            return [((r, c), (c, r)) for r, c in itertools.product(*map(range, count))]
        if variant == "xy_hw":  # the meshgrid has W rows and H columns
            return [((r, c), (c, r)) for r, c in itertools.product(range(count[1]), range(count[0]))]
        return [(at, at) for at in itertools.product(*map(range, count))]

    def scaled(position: np.ndarray, count: list[int]) -> np.ndarray:
        lengths = count[::-1] if variant == "xy_hw" else count
        return 2 * position / np.maximum(np.array(lengths) - 1, 1) - 1

    def sample(part: np.ndarray, point: np.ndarray) -> np.ndarray:
        """Linear interpolation of (C, *S) at (x, y, z), the last axis first; outside is zero."""
        if axes == 1:
            part, point = part[..., None], np.array([0, point[0]] if variant == "zero_x" else [point[0], 0])
        sizes = part.shape[1:]
        pixel = ((point[::-1] + 1) * sizes - 1) / 2  # pixel areas, not centres
        total = np.zeros(len(part))
        for corner in itertools.product((0, 1), repeat=len(sizes)):
            at = np.floor(pixel).astype(int) + corner
            if (at >= 0).all() and (at < sizes).all():
                total += part[(slice(None), *at)] * np.prod(1 - np.abs(pixel - at))
        return total

    def bias(distance: np.ndarray) -> np.ndarray:
        hidden = np.sign(distance) * np.log(np.abs(distance) + 1) if log_distance else distance
        for index, name in enumerate(("mlp.0.0", "mlp.1.0", "mlp.2")):
            hidden = hidden @ state[f"rel_pos_bias.{name}.weight"].T + state[f"rel_pos_bias.{name}.bias"]
            hidden = np.maximum(hidden, 0) if index < 2 else hidden
        return hidden

    output = []
    for n in range(batch):
        q = conv("to_q", image[n])
        samples, points = [], []
        for part, query in zip(np.split(image[n], groups), np.split(q, groups), strict=True):
            offsets = moved(query)
            count = list(offsets.shape[1:])
            here = [scaled(np.array(base) + offsets[(slice(None), *at)], count) for at, base in cells(count)]
            points.append(np.array(here))  # (J, axes)
            samples.append(np.array([sample(part, point) for point in here]).T)  # (C/G, J)
        k, v = (conv(name, np.concatenate(samples)) for name in ("to_k", "to_v"))
        asking = np.array([scaled(np.array(base), list(spatial)) for _, base in cells(list(spatial))])  # (I, axes)
        biases = [bias(asking[:, None] - point) for point in points]  # each (I, J, heads/G)
        biases = np.concatenate(biases, -1)
        mixed = []
        parts = zip(
            *(np.split(a.reshape(len(a), -1), heads) for a in (q, k, v)), np.moveaxis(biases, -1, 0), strict=True
        )
        for q_, k_, v_, b_ in parts:
            scores = q_.T @ k_ / math.sqrt(len(q_)) + b_
            weights = np.exp(scores - scores.max(1, keepdims=True))
            mixed.append(v_ @ (weights / weights.sum(1, keepdims=True)).T)
        output.append(conv("to_out", np.concatenate(mixed).reshape(-1, *spatial)))
    return np.stack(output)
