"""Where the automatic generator looks: a grid of points, and overlapping crops of the picture, layer by layer."""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np


def point_grid(points_per_side: int) -> np.ndarray:
    """The centres of points_per_side x points_per_side equal cells of the unit square, (n * n, 2) as (x, y)."""
    offset = 1 / (2 * points_per_side)
    side = np.linspace(offset, 1 - offset, points_per_side)
    return np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)


def point_grids(points_per_side: int, layers: int, downscale_factor: int) -> list[np.ndarray]:
    """A grid for the picture and one for each layer of crops, each by the factor sparser than that before."""
    return [point_grid(int(points_per_side / downscale_factor**layer)) for layer in range(layers + 1)]


def crop_boxes(size: Sequence[int], layers: int, overlap_ratio: float) -> list[tuple[list[int], int]]:
    """The crops of a picture of size (H, W), each as ([x0, y0, x1, y1], layer); layer n has 4**n of them.

    Layer 0 is the whole picture. In layer 1 crops overlap by `overlap_ratio` of the short side, in layer n by
    2**(1 - n) of that.
    """
    height, width = size
    crops = [([0, 0, width, height], 0)]
    for layer in range(1, layers + 1):
        per_side = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / per_side))
        # Crops of one length, that overlap and cover the whole: n * length - (n - 1) * overlap >= the whole.
        crop_width, crop_height = (math.ceil((overlap * (per_side - 1) + side) / per_side) for side in (width, height))
        for i, j in product(range(per_side), repeat=2):
            x0, y0 = (crop_width - overlap) * i, (crop_height - overlap) * j
            crops.append(([x0, y0, min(x0 + crop_width, width), min(y0 + crop_height, height)], layer))
    return crops
