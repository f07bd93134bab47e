import importlib
import itertools

import numpy as np
import pytest
import tensorflow as tf
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.judging import (
    DTYPES,
    assert_exact,
    assert_near,
    channels_first,
    channels_last,
    of_every_dtype,
    torch_with_gradient,
    with_gradient,
)
from tf_models.ops import roi_align

SHAPE = (2, 9, 13, 3)
ROIS = np.array(
    [
        [0, 1, 2, 7, 6],
        [1, 0.3, 0.7, 11.2, 8.9],
        [1, -4, -3, 5, 4],  # over the upper left corner
        [0, 8.5, 5.25, 20, 15],  # over the lower right corner
        [0, -20, -20, -10, -10],  # outside
        [1, 3, 3, 3, 3],  # no extent
        [0, 2, 1, 2.5, 8],  # narrower than a sample
        [1, -1, -1, 13, 9],  # corners on the last coordinates that count
    ]
)
OPTIONS = [
    {"output_size": size, "spatial_scale": scale, "sampling_ratio": ratio, "aligned": aligned}
    for size, scale, ratio, aligned in itertools.product([(2, 3), 4], [1.0, 0.3], [-1, 0, 1, 2, 3], [False, True])
]


MODULE = importlib.import_module("tf_models.ops.roi_align")


@pytest.fixture
def untraced(monkeypatch):
    """The op without the graphs that it runs in: to trace each of many options would take minutes."""
    monkeypatch.setattr(MODULE, "_roi_align", MODULE._roi_align.__wrapped__)


def numbers(shape, seed=0):
    """Numbers which every dtype holds."""
    return of_every_dtype(np.random.default_rng(seed).standard_normal(shape))


def reference(x, rois, upstream, dtype, **options):
    rois = torch.from_numpy(rois).to(DTYPES[dtype][1])
    function = lambda x: torchvision.ops.roi_align(x, rois, **options)  # noqa: E731
    pair = torch_with_gradient(function, channels_first(x).to(rois.dtype), channels_first(upstream))
    return [channels_last(value) for value in pair]


def bins(options):
    size = options["output_size"]
    return (size, size) if isinstance(size, int) else size


def check(shape, rois, options, dtype, seed=0):
    x, upstream = numbers(shape, seed), numbers((len(rois), *bins(options), shape[-1]), seed + 1)
    tf_dtype = DTYPES[dtype][0]
    ours = with_gradient(
        lambda x: roi_align(x, tf.constant(rois, tf_dtype), **options), tf.constant(x, tf_dtype), upstream
    )
    if dtype == "float64":
        assert_exact(ours, reference(x, rois, upstream, "float64", **options))
        return
    # What this dtype makes of the boxes is given.
    rois = tf.cast(tf.constant(rois, tf_dtype), tf.float64).numpy()
    assert_near(ours, lambda: reference(x, rois, upstream, "float64", **options), dtype)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.usefixtures("untraced")
def test_every_option(options):
    check(SHAPE, ROIS, options, "float64")


# Here no sample lies on the border beyond which it counts as zero, where a last bit of float32 decides.
INNER = ROIS[[0, 1, 2, 5, 6]]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("options", OPTIONS[:10:3], ids=str)
@pytest.mark.usefixtures("untraced")
def test_less_precise_types(options, dtype):
    check(SHAPE, INNER, options, dtype)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [-1, 2])
def test_float32_coordinates_are_torchvisions(sampling_ratio, aligned, compile):
    """Boxes of a whole number of bins, and corners on the border: the last bit decides on samples and on zeros."""
    random = np.random.default_rng(0)
    corner, size = random.integers(-3, 20, (300, 2)), 7 * random.integers(1, 5, (300, 2))
    rois = (np.concatenate([np.zeros((300, 1)), corner, corner + size], 1) * [1, 10, 10, 10, 10]).astype(np.float32)
    x = random.standard_normal((1, 17, 21, 2)).astype(np.float32)
    options = {"output_size": 7, "spatial_scale": 0.1, "sampling_ratio": sampling_ratio, "aligned": aligned}
    theirs = torchvision.ops.roi_align(channels_first(x), torch.from_numpy(rois), **options)
    ours = tf.function(lambda x, rois: roi_align(x, rois, **options), jit_compile=compile)(x, rois)
    # Against float32: in float64 other samples count as zero. One that counts on one side only would make a difference
    # of some hundredths; the sums of up to 9 samples of up to 5 that both make are off by 2e-6.
    np.testing.assert_allclose(ours, channels_last(theirs), rtol=0, atol=1e-5)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.data())
@pytest.mark.usefixtures("untraced")
def test_drawn(data):
    shape = data.draw(st.tuples(*[st.integers(1, n) for n in (3, 12, 12, 4)]))
    corner, size = st.integers(-20, 60).map(lambda n: n / 4), st.integers(0, 24).map(lambda n: n / 4)
    drawn = data.draw(
        st.lists(st.tuples(st.integers(0, shape[0] - 1), corner, corner, size, size), min_size=1, max_size=4)
    )
    rois = np.array([[n, x, y, x + w, y + h] for n, x, y, w, h in drawn], np.float64)
    check(shape, rois, data.draw(st.sampled_from(OPTIONS)), "float64")


def test_a_list_of_boxes():
    x, options = tf.constant(numbers(SHAPE)), {"output_size": 3, "sampling_ratio": 2}
    parts = [ROIS[ROIS[:, 0] == n, 1:] for n in range(2)]
    rois = np.concatenate([np.insert(part, 0, n, axis=1) for n, part in enumerate(parts)])
    listed = roi_align(x, [tf.constant(part) for part in parts], **options)
    np.testing.assert_array_equal(listed, roi_align(x, tf.constant(rois), **options))
    first = roi_align(x, [tf.zeros((0, 4), tf.float64), tf.constant(parts[1])], **options)
    np.testing.assert_array_equal(first, listed[len(parts[0]) :])


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[7]], ids=str)
def test_graph_with_unknown_sizes(options, compile):
    x, upstream = numbers(SHAPE), numbers((len(ROIS), *bins(options), 3), 1)
    signature = [tf.TensorSpec(shape, tf.float64) for shape in ([None] * 4, [None, 5], [None] * 4)]

    @tf.function(jit_compile=compile, input_signature=signature)
    def graph(x, rois, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            pooled = roi_align(x, rois, **options)
        assert pooled.shape.as_list() == [None, *bins(options), None]
        return pooled, tape.gradient(pooled, x, upstream)

    ours = [value.numpy() for value in graph(x, ROIS, upstream)]
    assert_exact(ours, reference(x, ROIS, upstream, "float64", **options))


@pytest.mark.parametrize("sampling_ratio", [-1, 2])
def test_large_inputs_are_compiled_and_agree(sampling_ratio):
    shape = (2, 60, 50, 16)  # More than the numbers from which on the op compiles.
    options = {"output_size": 3, "sampling_ratio": sampling_ratio, "aligned": True}
    rois = ROIS * [1, 3, 3, 3, 3] + [0, 0.3, 0.3, 0.3, 0.3]
    check(shape, rois, options, "float64")


def test_second_order():
    x, rois = tf.constant(numbers(SHAPE)), tf.constant(ROIS)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            loss = tf.reduce_sum(roi_align(x, rois, 3, sampling_ratio=2) ** 3)
        first = inner.gradient(loss, x)
    second = outer.gradient(first, x, x)
    np.testing.assert_allclose(second, 2 * first, atol=1e-12)  # The loss is homogeneous of degree three.


def test_boxes_have_no_gradient():
    x, rois = tf.constant(numbers(SHAPE)), tf.constant(ROIS)
    with tf.GradientTape() as tape:
        tape.watch(rois)
        pooled = roi_align(x, rois, 3)
    assert tape.gradient(pooled, rois) is None


@pytest.mark.parametrize("sampling_ratio", [-1, 2])
def test_empty(sampling_ratio):
    output, gradient = with_gradient(
        lambda x: roi_align(x, tf.zeros((0, 5)), (2, 3), sampling_ratio=sampling_ratio),
        tf.ones(SHAPE),
        np.zeros((0, 2, 3, 3)),
    )
    assert output.shape == (0, 2, 3, 3)
    np.testing.assert_array_equal(gradient, np.zeros(SHAPE))
    for boxes in (tf.zeros((0, 5)), []):
        assert roi_align(tf.zeros((0, 4, 5, 3)), boxes, 2, sampling_ratio=sampling_ratio).shape == (0, 2, 2, 3)


@pytest.mark.parametrize("sampling_ratio", [-1, 2])
def test_a_box_that_is_no_number_gives_zeros(sampling_ratio):
    """And leaves the others as they are."""
    good = [0, 1, 1, 4, 5]
    bad = [[0, np.nan, 0, 4, 4], [0, 0, 0, np.nan, 4], [0, 0, 0, np.inf, 4], [0, -np.inf, 0, 4, 4], [0, 0, 0, 4, 1e30]]
    options = {"output_size": 2, "sampling_ratio": sampling_ratio, "aligned": True}
    for compiles in (False, True):
        call = tf.function(lambda x, rois: roi_align(x, rois, **options), jit_compile=compiles)
        x = tf.constant(numbers((1, 5, 6, 3)), tf.float32)
        pooled = call(x, tf.constant([good, *bad], tf.float32))
        np.testing.assert_array_equal(pooled[0], call(x, tf.constant([good], tf.float32))[0])
        np.testing.assert_array_equal(pooled[1:5], np.zeros((4, 2, 2, 3)))


def test_new_numbers_of_boxes_are_not_compiled_each():
    x, before = tf.ones((1, 128, 128, 8)), len(MODULE._roi_align._batches)
    for count in range(1, 20):
        rois = tf.repeat(tf.constant([[0.0, 1, 1, 6, 9]]), count, axis=0)
        np.testing.assert_array_equal(roi_align(x, rois, 2, sampling_ratio=2), np.ones((count, 2, 2, 8)))
    assert len(MODULE._roi_align._batches) - before == 6  # 1, 2, 4, 8, 16, 32


INPUT = np.zeros(SHAPE, np.float32)


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("input", {"input": INPUT[0]}),
        ("input", {"input": tf.zeros(SHAPE, tf.int32)}),
        ("boxes", {"boxes": ROIS[0]}),
        ("boxes", {"boxes": ROIS[:, 1:]}),
        ("boxes", {"boxes": [ROIS[:, 1:]]}),
        ("boxes", {"boxes": [ROIS, ROIS]}),
        ("boxes", {"boxes": []}),
        ("boxes", {"boxes": np.add(ROIS, [9, 0, 0, 0, 0])}),
        ("boxes", {"boxes": np.subtract(ROIS, [9, 0, 0, 0, 0])}),
        ("boxes", {"input": INPUT[:0], "boxes": [ROIS[:, 1:]]}),
        ("boxes", {"boxes": [tf.zeros((1, 4)), tf.zeros((1, 4), tf.float64)]}),
        ("output_size", {"output_size": 0}),
        ("output_size", {"output_size": (2, 3, 4)}),
        ("output_size", {"output_size": 2.5}),
        ("spatial_scale", {"spatial_scale": "half"}),
        ("sampling_ratio", {"sampling_ratio": 1.5}),
    ],
)
def test_errors_name_the_argument(argument, arguments):
    with pytest.raises(ValueError, match=rf"^{argument}: expected"):
        roi_align(**{"input": INPUT, "boxes": ROIS, "output_size": 2, **arguments})
