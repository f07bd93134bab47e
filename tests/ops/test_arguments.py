"""How sizes and flags may be given to the ops, and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_models.ops import affine_grid, deform_conv2d, grid_sample, interpolate, ms_deform_attn, paste_masks, roi_align

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
        (lambda: affine_grid(THETA, (3, 6, 7, 1)), r"theta: expected shape \(N, 2, 3\) = \(3, 2, 3\), got \(2, 2, 3\)"),
        (lambda: interpolate(IMAGE, 2**31), "size: expected at most 2147483647, got 2147483648"),
        (
            lambda: interpolate(IMAGE, scale_factor="2"),
            "scale_factor: expected a positive number or 2 of them, got '2'",
        ),
        (lambda: interpolate(IMAGE, scale_factor=True), "scale_factor: expected a positive number .*, got True"),
        (
            lambda: interpolate(IMAGE, scale_factor=1e9),
            "scale_factor: expected sizes of at most 2147483647, got 1000000000.0",
        ),
        (lambda: roi_align(IMAGE, BOXES * np.nan, 2), "boxes: expected the index of a batch element, 0 to 1"),
        (lambda: grid_sample(keras.Input((4, 5, 3)), GRID), "input: expected a tensor.*; call the op inside of"),
        (lambda: roi_align(IMAGE[:, :0], BOXES, 2), "input: expected non-empty spatial dimensions"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("spelled", [np.array, tf.constant, list], ids=["array", "tensor", "list"])
def test_scale_factors_in_any_spelling(spelled):
    np.testing.assert_array_equal(
        interpolate(IMAGE, scale_factor=spelled([2.0, 1.5])), interpolate(IMAGE, scale_factor=(2.0, 1.5))
    )


def unknown(*arrays, known):
    """Specs of the arrays in which only the last `known` axes have a size."""
    return [
        tf.TensorSpec((*(None,) * (a.ndim - n), *a.shape[a.ndim - n :])) for a, n in zip(arrays, known, strict=True)
    ]


def test_sizes_that_only_the_running_graph_knows_are_compared_there():
    """Unless XLA compiles it, which leaves such checks out."""

    def refused(op, right, wrong, message, known):
        call = tf.function(op, input_signature=unknown(*right, known=known))
        call(*right)
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            call(*wrong)

    image = IMAGE[:, :, :, :3]
    refused(grid_sample, (image, GRID), (image, GRID[:1]), r"grid: expected \(N\), then got", (1, 1))
    kernel = np.ones((3, 3, 3, 2), np.float32)
    offset, mask = np.zeros((2, 2, 3, 18), np.float32), np.ones((2, 2, 3, 9), np.float32)

    def deform(x, o, m):
        return deform_conv2d(x, o, kernel, mask=m)

    large, known = np.zeros((2, 4, 5, 18), np.float32), (1, 1, 1)
    refused(deform, (image, offset, mask), (image, large, mask), r"offset: expected \(N, Ho, Wo\), then got", known)
    refused(deform, (image, offset, mask), (image, offset, mask[:, 1:]), r"mask: expected \(N, Ho, Wo\)", known)
    shapes = np.array([[2, 3], [1, 2]], np.int32)
    value, locations = np.ones((2, 8, 1, 4), np.float32), np.ones((2, 5, 1, 2, 3, 2), np.float32)
    weights = np.ones((2, 5, 1, 2, 3), np.float32)
    call = tf.function(
        lambda v, s, p, w: ms_deform_attn(v, s, p, w),
        input_signature=[
            *unknown(value, known=(2,)),
            tf.TensorSpec((2, 2), tf.int32),
            *unknown(locations, weights, known=(4, 3)),
        ],
    )
    call(value, shapes, locations, weights)
    for wrong, message in [
        ((value[:, 1:], shapes, locations, weights), r"value: expected \(S\), then got"),
        ((value, shapes, locations[:1], weights), r"sampling_locations: expected \(N\), then got"),
        ((value, shapes, locations, weights[:, 1:]), r"attention_weights: expected \(N, Lq\), then got"),
    ]:
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            call(*wrong)
