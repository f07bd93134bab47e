import numpy as np
import pytest
import tensorflow as tf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.roi_heads import paste_masks_in_image

from tests.support.judging import DTYPES, assert_exact, assert_near, of_every_dtype, torch_with_gradient, with_gradient
from tf_models.ops import paste_masks

IMAGE = (23, 31)
BOXES = np.array(
    [
        [3, 4, 17, 11],
        [2.25, 5.5, 9.75, 20.125],
        [-6.5, -3, 8, 9],  # over the upper left corner
        [20, 15, 44, 40],  # over the lower right corner
        [-9, -9, 60, 60],  # the image lies inside
        [7, 7, 7, 7],  # no extent
        [12, 3, 12, 19],  # no width
        [4.9, 6, 5.1, 6.2],  # within a pixel
    ]
)


def reference(masks, boxes, image_shape, upstream, dtype):
    """torchvision's images and gradient as float64."""
    boxes = torch.from_numpy(boxes).to(DTYPES[dtype][1])
    function = lambda masks: paste_masks_in_image(masks[:, None], boxes, image_shape)[:, 0]  # noqa: E731
    pair = torch_with_gradient(function, torch.from_numpy(masks).to(boxes.dtype), torch.from_numpy(upstream))
    return [value.detach().double().numpy() for value in pair]


def check(boxes, mask_shape, image_shape, dtype, seed=0):
    random = np.random.default_rng(seed)
    masks = of_every_dtype(random.random((len(boxes), *mask_shape)))
    upstream = of_every_dtype(random.standard_normal((len(boxes), *image_shape)))
    tf_dtype = DTYPES[dtype][0]
    boxes_dtype = "float32" if dtype in ("float16", "bfloat16") else dtype  # Where a pixel is must not be rounded away.
    boxes = boxes.astype(boxes_dtype)
    ours = with_gradient(
        lambda masks: paste_masks(masks, tf.constant(boxes), image_shape), tf.constant(masks, tf_dtype), upstream
    )
    # Truncation to pixels is part of the op: the truth is float64 with the boxes as this dtype truncates them.
    truth = lambda: reference(masks, boxes.astype(np.float64), image_shape, upstream, "float64")  # noqa: E731
    if dtype == "float64":
        assert_exact(ours, truth())
    else:
        assert_near(ours, truth, dtype)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("mask_shape", [(28, 28), (7, 5), (5, 9), (1, 1)])
def test_parity(mask_shape, dtype):
    check(BOXES, mask_shape, IMAGE, dtype)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.data())
def test_drawn(data):
    corner = st.integers(-40, 160).map(lambda n: n / 4)
    size = st.integers(0, 160).map(lambda n: n / 4)
    corners = data.draw(st.lists(st.tuples(corner, corner, size, size), min_size=1, max_size=4))
    boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in corners])
    shape = data.draw(st.tuples(*[st.integers(1, 12)] * 2))
    image = data.draw(st.tuples(*[st.integers(42, 60)] * 2))
    # torchvision fails or wraps around where a box ends before the image: see test_a_box_beyond_the_image_gives_zeros.
    boxes[:, 2:] = np.maximum(boxes[:, 2:], 1)
    for dtype in ("float64", "float32"):
        check(boxes, shape, image, dtype)


@pytest.mark.parametrize("compile", [False, True])
def test_boxes_are_truncated_as_in_float32(compile):
    """Boxes of 28 pixels and masks of 28 samples grow to whole pixels: the last bit of the product decides."""
    start = np.arange(0, 60, dtype=np.float32)
    boxes = np.stack([start, start, start + 28, start + 56], 1)
    masks = np.ones((len(boxes), 28, 28), np.float32)
    expected = paste_masks_in_image(torch.from_numpy(masks)[:, None], torch.from_numpy(boxes), (130, 100))[:, 0]
    ours = tf.function(lambda masks, boxes: paste_masks(masks, boxes, (130, 100)), jit_compile=compile)(masks, boxes)
    np.testing.assert_array_equal(ours.numpy() > 0, expected.numpy() > 0)


@pytest.mark.parametrize(
    "box",
    [
        (-30, 5, -10, 20),
        (50, 5, 60, 20),
        (5, -30, 9, -10),
        (5, 60, 9, 70),
        (9, 9, 2, 2),
        (np.nan, 1, 5, 5),
        (0, 0, np.inf, 4),
    ],
)
def test_a_box_beyond_the_image_gives_zeros(box):
    image = paste_masks(tf.ones((1, 4, 4)), tf.constant([box], tf.float32), IMAGE)
    np.testing.assert_array_equal(image, np.zeros((1, *IMAGE)))


def test_trailing_axis():
    masks, boxes = tf.random.uniform((8, 6, 5)), tf.constant(BOXES)
    image = paste_masks(masks[..., None], boxes, IMAGE)
    assert image.shape == (8, *IMAGE, 1)
    np.testing.assert_array_equal(image[..., 0], paste_masks(masks, boxes, IMAGE))


def test_no_masks():
    assert paste_masks(tf.zeros((0, 4, 4)), tf.zeros((0, 4)), IMAGE).shape == (0, *IMAGE)
    assert paste_masks(tf.zeros((2, 4, 4)), tf.zeros((2, 4)), (0, 5)).shape == (2, 0, 5)


@pytest.mark.parametrize("compile", [False, True])
def test_graph_with_unknown_sizes(compile):
    random = np.random.default_rng(0)
    masks, upstream = random.random((8, 6, 5)), random.standard_normal((8, *IMAGE))
    signature = [tf.TensorSpec(shape, tf.float64) for shape in ([None] * 3, [None, 4], [None] * 3)]

    @tf.function(jit_compile=compile, input_signature=signature)
    def graph(masks, boxes, upstream):
        with tf.GradientTape() as tape:
            tape.watch(masks)
            images = paste_masks(masks, boxes, IMAGE)
        return images, tape.gradient(images, masks, upstream)

    ours = [value.numpy() for value in graph(masks, BOXES, upstream)]
    assert_exact(ours, reference(masks, BOXES, IMAGE, upstream, "float64"))


def test_image_shape_as_a_tensor():
    masks, boxes = tf.random.uniform((8, 6, 5)), tf.constant(BOXES)
    graph = tf.function(
        paste_masks, input_signature=[*map(tf.TensorSpec.from_tensor, (masks, boxes)), tf.TensorSpec([2], tf.int32)]
    )
    np.testing.assert_array_equal(graph(masks, boxes, IMAGE), paste_masks(masks, boxes, IMAGE))


def test_second_order():
    masks = tf.constant(np.random.default_rng(0).random((1, 4, 3)))
    with tf.GradientTape() as outer:
        outer.watch(masks)
        with tf.GradientTape() as inner:
            inner.watch(masks)
            loss = tf.reduce_sum(paste_masks(masks, BOXES[:1], IMAGE) ** 3)
        first = inner.gradient(loss, masks)
    second = outer.gradient(first, masks, masks)
    np.testing.assert_allclose(second, 2 * first, rtol=1e-12)  # The loss is homogeneous of degree three.


MASKS = np.zeros((2, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("argument", "masks", "boxes", "image_shape"),
    [
        ("masks", MASKS[0], BOXES[:2], IMAGE),
        ("masks", np.zeros((2, 4, 4, 3)), BOXES[:2], IMAGE),
        ("masks", tf.zeros((2, 4, 4), tf.int32), BOXES[:2], IMAGE),
        ("boxes", MASKS, BOXES[:3], IMAGE),
        ("boxes", MASKS, BOXES[:2, :3], IMAGE),
        ("boxes", MASKS, BOXES[0], IMAGE),
        ("image_shape", MASKS, BOXES[:2], (5,)),
        ("image_shape", MASKS, BOXES[:2], (5, 6, 7)),
        ("image_shape", MASKS, BOXES[:2], (5, -6)),
        ("image_shape", MASKS, BOXES[:2], (5, 6.5)),
    ],
)
def test_errors_name_the_argument(argument, masks, boxes, image_shape):
    with pytest.raises(ValueError, match=rf"^{argument}: expected"):
        paste_masks(masks, boxes, image_shape)
