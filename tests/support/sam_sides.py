"""The whole of SAM on both sides, with the same seeded weights, and photographs to try it on."""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import matplotlib.cbook
import numpy as np
import skimage.data
import torch
from PIL import Image
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam

from converter.files.weights_file import sign
from converter.pairs.registry import get
from tests.support.carrying import twin
from tests.support.seeded import seeded
from tests.support.small_sam import CONFIG, upstream_sam
from tf_models.runtime.weights_format import FORMAT, datasets, digest


class Sides(NamedTuple):
    """The same network three times."""

    torch: Sam  # segment-anything's
    double: Sam  # the same in float64: the truth
    keras: Any


def in_double(sam: Sam) -> Sam:
    """The same in float64. segment-anything casts points and masks to float32; they are taken to float64 after that."""
    double = deepcopy(sam).double()
    positions = double.prompt_encoder.pe_layer
    encode = positions._pe_encoding
    positions._pe_encoding = lambda coords: encode(coords.double())
    double.prompt_encoder.mask_downscaling.register_forward_pre_hook(lambda _, masks: (masks[0].double(),))
    return double


def steep(sam: Sam) -> Sam:
    """The same with steeper logits and a better opinion of its masks, as trained weights have."""
    sam = deepcopy(sam)
    with torch.no_grad():
        for mlp in sam.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight *= 200
            mlp.layers[-1].bias *= 200
        head = sam.mask_decoder.iou_prediction_head.layers[-1]
        head.weight *= 0.1
        head.bias.fill_(0.93)
    return sam


def save_small(sam: Sam, path: Path) -> None:
    """Write a torch SAM of the small sizes as a converted file."""
    twin("sam_vit_b", CONFIG, sam.state_dict()).save_weights(path)
    with h5py.File(path, "r") as file:
        digests = {place: digest(place, dataset[()]) for place, dataset in datasets(file)}
    sign(path, {"format": FORMAT, "model": "sam_vit_b", "config": CONFIG, "dtype": "float32"}, digests)


@cache
def small_sides() -> Sides:
    """SAM of the small sizes."""
    sam = seeded(upstream_sam())
    return Sides(sam, in_double(sam), twin("sam_vit_b", CONFIG, sam.state_dict()))


@cache
def photographs() -> dict[str, np.ndarray]:
    """Photographs (H, W, 3), uint8, of different sizes and proportions."""
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        portrait = np.asarray(Image.open(file).convert("RGB"))  # 600 x 512
    astronaut = skimage.data.astronaut()  # 512 x 512
    camera = np.repeat(skimage.data.camera()[..., None], 3, axis=2)
    return {
        "portrait": portrait,
        "square": astronaut,
        "wide": camera[100:333, :],
        "small": np.ascontiguousarray(astronaut[20:157, 150:251]),
        "large": np.asarray(Image.fromarray(astronaut).resize((1500, 1100), Image.Resampling.BICUBIC)),
    }


@cache
def large_sides() -> Sides:
    """SAM with ViT-B."""
    sam = seeded(sam_model_registry["vit_b"]())
    return Sides(sam, in_double(sam), twin("sam_vit_b", get("sam_vit_b").fallback, sam.state_dict()))


def overlap(a, b):
    """The least IoU over masks (K, H, W); two empty masks agree."""
    shared, either = (a & b).sum(axis=(-2, -1)), (a | b).sum(axis=(-2, -1))
    return np.where(either == 0, 1, shared / np.maximum(either, 1)).min()
