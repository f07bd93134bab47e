"""How sizes and flags may be given to the ops, and what is refused."""

import numpy as np
import pytest
import tensorflow as tf

from tf_models.ops import affine_grid, deform_conv2d, grid_sample, interpolate, paste_masks, roi_align

IMAGE = np.linspace(0, 1, 2 * 4 * 5 * 3, dtype=np.float32).reshape(2, 4, 5, 3)
GRID = np.zeros((2, 6, 7, 2), np.float32)
BOXES = np.array([[0, 0, 0, 3, 3]], np.float32)
THETA = np.tile(np.eye(2, 3, dtype=np.float32), (2, 1, 1))
KERNEL = np.ones((1, 1, 3, 2), np.float32)
SPELLINGS = [tuple, list, np.array, np.int64, tf.TensorShape, tf.constant, lambda sizes: [*map(tf.constant, sizes)]]
NAMES = ["tuple", "list", "array", "int64", "TensorShape", "tensor", "scalars"]


@pytest.mark.parametrize("spelled", SPELLINGS, ids=NAMES)
@pytest.mark.parametrize(
    ("call", "sizes"),
    [
        (lambda size: interpolate(IMAGE, size=size), (6, 7)),
        (lambda size: affine_grid(THETA, size), (2, 6, 7, 1)),
        (lambda size: paste_masks(IMAGE[..., 0], BOXES[[0, 0], 1:], size), (6, 7)),
        (lambda size: roi_align(IMAGE, BOXES, size), (2, 3)),
        (lambda size: deform_conv2d(IMAGE, np.zeros((2, 2, 5, 2), np.float32), KERNEL, stride=size), (2, 1)),
    ],
    ids=["interpolate", "affine_grid", "paste_masks", "roi_align", "deform_conv2d"],
)
def test_sizes_in_any_spelling(call, sizes, spelled):
    np.testing.assert_array_equal(call(spelled(sizes)), call(sizes))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grid_sample(IMAGE, GRID, align_corners="false"), "align_corners: expected True or False, got 'false'"),
        (lambda: affine_grid(THETA, IMAGE.shape, align_corners=1), "align_corners: expected True or False, got 1"),
        (lambda: interpolate(IMAGE, 4, mode="bilinear", antialias="no"), "antialias: expected True or False, got 'no'"),
        (lambda: roi_align(IMAGE, BOXES, 2, aligned="no"), "aligned: expected True or False, got 'no'"),
        (lambda: roi_align(IMAGE, BOXES, True), "output_size: expected an int or 2 ints, at least 1, got True"),
        (lambda: interpolate(IMAGE, (True, 4)), r"size: expected an int or 2 ints, at least 1, got \(True, 4\)"),
        (lambda: interpolate(IMAGE, 4.0), "size: expected an int or 2 ints, at least 1, got 4.0"),
        (lambda: interpolate(IMAGE, tf.constant(4.0)), "size: expected an int or 2 ints, at least 1, got <tf.Tensor"),
        (lambda: paste_masks(IMAGE[..., 0], BOXES[[0, 0], 1:], (-1, 4)), "image_shape: .* at least 0, got"),
        (lambda: affine_grid(THETA, (2, 3)), "size: expected .*, got"),
        (lambda: roi_align(IMAGE[:, :0], BOXES, 2), "input: expected non-empty spatial dimensions"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
