"""What becomes of a picture and its prompts before SAM, and of its logits after, against segment-anything."""

import numpy as np
import pytest
import tensorflow as tf
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide as Official

from tests.support.sam_sides import photographs
from tf_models.sam.mask_resize import MaskResize
from tf_models.sam.transforms import ResizeLongestSide, preprocess

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SIZES = [(1, 1), (10, 20_000), (2000, 31), (480, 641), (1024, 683), (1500, 1024), (256, 256)]


def colours(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_picture_is_scaled_to_the_last_bit(size):
    image = colours(*size)
    ours, theirs = (cls(1024).apply_image(image) for cls in (ResizeLongestSide, Official))
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, theirs)
    assert max(ours.shape) == 1024


@pytest.mark.parametrize("name", ["portrait", "small", "large"])
def test_a_photograph_with_reversed_channels_is_scaled_to_the_last_bit(name):
    image = photographs()[name][..., ::-1]
    np.testing.assert_array_equal(ResizeLongestSide(256).apply_image(image), Official(256).apply_image(image))


def test_a_picture_whose_short_side_would_vanish():
    with pytest.raises(ValueError, match="a picture of 20000 x 9 pixels is too long"):
        ResizeLongestSide(1024).apply_image(colours(9, 20_000))


def test_a_batch_is_scaled_as_by_torch():
    # The size is computed here: segment-anything's apply_image_torch computes it from the batch and channel axes.
    images = np.random.default_rng(1).uniform(0, 255, (2, 300, 410, 3)).astype(np.float32)
    first = torch.from_numpy(images).movedim(-1, 1)
    size = Official.get_preprocess_shape(300, 410, 128)

    def scaled(x):
        return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True).movedim(1, -1).numpy()

    truth = scaled(first.double())
    ours = ResizeLongestSide(128).apply_images(tf.constant(images)).numpy()
    assert ours.shape == (2, 94, 128, 3)
    assert abs(ours - truth).max() <= 4 * abs(scaled(first) - truth).max()


@pytest.mark.parametrize("size", [(480, 641), (2000, 31)], ids=str)
def test_points_and_boxes_are_scaled_to_the_last_bit(size):
    rng = np.random.default_rng(2)
    points, boxes = rng.uniform(-9, 999, (3, 5, 2)), rng.integers(0, 400, (6, 4))
    ours, theirs = ResizeLongestSide(1024), Official(1024)
    np.testing.assert_array_equal(ours.apply_coords(points, size), theirs.apply_coords(points, size))
    np.testing.assert_array_equal(ours.apply_boxes(boxes, size), theirs.apply_boxes(boxes, size))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_normalising_and_padding_to_the_last_bit(dtype):
    class Official:
        pixel_mean, pixel_std = torch.tensor(MEAN).view(-1, 1, 1), torch.tensor(STD).view(-1, 1, 1)
        image_encoder = type("Encoder", (), {"img_size": 64})

    image = colours(64, 37).astype(dtype)
    theirs = Sam.preprocess(Official, torch.from_numpy(image).movedim(-1, 0)[None])
    ours = preprocess(image[None], 64, MEAN, STD)
    assert ours.shape == (1, 64, 64, 3)
    np.testing.assert_array_equal(ours, theirs.movedim(1, -1).numpy())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_logits_are_scaled_as_by_torch_and_nearer_to_the_truth(size):
    scaled = ResizeLongestSide.get_preprocess_shape(*size, 1024)
    low = np.random.default_rng(3).standard_normal((2, 256, 256)).astype(np.float32)

    def official(logits):
        encoder = type("Encoder", (), {"img_size": 1024})
        model = type("Model", (), {"image_encoder": encoder})
        return Sam.postprocess_masks(model, torch.from_numpy(logits)[None], scaled, size)[0].numpy()

    truth = official(low.astype(np.float64))
    upscaling = MaskResize((256, 256), 1024, scaled, size)
    ours = upscaling.logits(low)
    assert ours.shape == (2, *size)
    assert abs(ours - truth).max() <= max(abs(official(low) - truth).max(), 4 * 2.0**-24 * abs(truth).max())
    masks = upscaling.masks(low, 0.25)
    assert masks.dtype == bool
    np.testing.assert_array_equal(masks, ours > 0.25)
