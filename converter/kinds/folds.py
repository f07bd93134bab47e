"""Folds: several tensors that become one on their way to Keras, computed in float64 and rounded once.

weight_norm       v * g / |v|       torch's weight normalisation
spectral_norm     w / (u W v)       torch's spectral normalisation, with the vectors that are stored
batch_norm        w * s, (b - mean) * s + beta, with s = gamma / sqrt(variance + epsilon)
rows              t[start:stop], of a table whose other rows nothing looks up
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Fold:
    """What several tensors become before they are laid out, where that cannot be undone, and what it costs.

    Attributes:
        forward: the tensors, in float64 -> the folded arrays, which the leaf's pattern lays out.
        back: the folded arrays -> tensors that fold to the same, or None where there are none to be had.
        shapes: the folded arrays' shapes -> the tensors'.
        cost: what comes back, for a person.
        apart: units in the last place by which what comes back, which is rounded itself, may fold to something else.
        trains: in training the tensors give the same as they do else.
    """

    name: str
    forward: Callable[[list[np.ndarray]], list[np.ndarray]]
    back: Callable[[list[np.ndarray]], list[np.ndarray]] | None
    shapes: Callable[[list[Shape]], list[Shape]]
    cost: str
    apart: int = 0
    trains: bool = True

    def __repr__(self) -> str:
        return self.name


@cache  # one Fold for each `dim`, by which a kind is known to have it
def weight_norm(dim: int | None = 0) -> Fold:
    """(g, v) -> v * g / |v|, the length taken over every axis but `dim` (None: over all, for one g)."""

    def length(v: np.ndarray) -> np.ndarray:
        if dim is None:
            return np.sqrt(np.sum(np.square(v)))
        return np.sqrt(np.sum(np.square(v), axis=_others(v.ndim, dim), keepdims=True))

    def forward(tensors: list[np.ndarray]) -> list[np.ndarray]:
        g, v = tensors
        with np.errstate(divide="ignore", invalid="ignore"):  # v of zeros gives NaN in torch too
            return [v * (g / length(v))]

    def back(folded: list[np.ndarray]) -> list[np.ndarray]:
        kernel = folded[0].astype(np.float64)
        g = np.asarray(length(kernel))
        return [g, np.where(g == 0, 1.0, kernel)]

    def shapes(folded: list[Shape]) -> list[Shape]:
        [shape] = folded
        return [() if dim is None else _along(shape, dim), shape]

    cost = "weight normalisation, folded; v comes back as the kernel and g as its length"
    return Fold("weight_norm", forward, back, shapes, cost, apart=1)


def spectral_norm(dim: int = 0) -> Fold:
    """(w, u, v) -> w / (u W v), W the matrix whose rows are along `dim`."""

    def matrix(w: np.ndarray) -> np.ndarray:
        return np.moveaxis(w, dim, 0).reshape(w.shape[dim], -1)

    def forward(tensors: list[np.ndarray]) -> list[np.ndarray]:
        w, u, v = tensors
        with np.errstate(divide="ignore", invalid="ignore"):
            return [w / (u @ (matrix(w) @ v))]

    def back(folded: list[np.ndarray]) -> list[np.ndarray]:
        kernel = folded[0].astype(np.float64)
        left, sizes, right = np.linalg.svd(matrix(kernel), full_matrices=False)
        if not sizes.size or sizes[0] == 0:
            raise ValueError("spectral normalisation gives no kernel of zeros, so there are no tensors to restore")
        return [kernel, left[:, 0] / sizes[0], right[0]]

    def shapes(folded: list[Shape]) -> list[Shape]:
        [shape] = folded
        return [shape, (shape[dim],), (prod(shape) // max(shape[dim], 1),)]

    cost = "spectral normalisation, folded; what comes back gives the same kernel, and is normalised anew in training"
    return Fold("spectral_norm", forward, back, shapes, cost, apart=2, trains=False)


@cache
def rows(start: int, stop: int, count: int) -> Fold:
    """t -> t[start:stop], of a table of `count` rows of which TensorFlow has no others."""

    def shapes(folded: list[Shape]) -> list[Shape]:
        [shape] = folded
        if shape[0] != stop - start:
            raise ValueError(f"the rows {start} to {stop} are {stop - start}, not {shape[0]}")
        return [(count, *shape[1:])]

    cost = f"only its rows from {start} up to {stop} of {count} are in TensorFlow's table; the others are lost"
    return Fold(f"rows({start}, {stop})", lambda tensors: [tensors[0][start:stop]], None, shapes, cost)


def batch_norm(dim: int, epsilon: float, bias: bool, affine: bool) -> Fold:
    """(w, b, gamma, beta, mean, variance) -> the kernel and bias that compute the same; `dim` is w's output axis.

    What comes back is the kernel, the bias as beta, and statistics that change nothing.
    """

    def forward(tensors: list[np.ndarray]) -> list[np.ndarray]:
        w, *rest = tensors
        b = rest.pop(0) if bias else 0.0
        gamma, beta = (rest.pop(0), rest.pop(0)) if affine else (1.0, 0.0)
        mean, variance = rest
        scale = gamma / np.sqrt(variance + epsilon)
        return [w * scale.reshape(_along(w.shape, dim)), (b - mean) * scale + beta]

    def back(folded: list[np.ndarray]) -> list[np.ndarray]:
        kernel, shift = folded
        zeros, ones = np.zeros_like(shift), np.ones_like(shift)
        return [
            kernel,
            *([zeros] if bias else []),
            *([ones, shift] if affine else []),
            zeros if affine else -shift,
            ones * (1 - epsilon),
        ]

    def shapes(folded: list[Shape]) -> list[Shape]:
        kernel, shift = folded
        return [kernel, *[shift] * (int(bias) + 2 * int(affine) + 2)]

    cost = (
        "batch normalisation, folded into the kernel; what comes back has its factors in the kernel and "
        "statistics that change nothing"
    )
    return Fold("batch_norm", forward, back, shapes, cost, apart=0 if affine else 1, trains=False)


def _others(rank: int, dim: int) -> tuple[int, ...]:
    return tuple(axis for axis in range(rank) if axis != dim % rank)


def _along(shape: Shape, dim: int) -> Shape:
    return tuple(n if axis == dim % len(shape) else 1 for axis, n in enumerate(shape))
