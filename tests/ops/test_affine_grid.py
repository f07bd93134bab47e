import numpy as np
import pytest
import tensorflow as tf
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.judging import DTYPES, assert_exact, assert_near, of_every_dtype, torch_with_gradient, with_gradient
from tf_models.ops import affine_grid

SPATIAL = {2: (5, 7), 3: (4, 5, 7)}


def reference(theta, size, align_corners, upstream, dtype):
    """torch's grid and gradient as float64; `size` channels last."""
    shape = (size[0], size[-1], *size[1:-1])
    function = lambda theta: F.affine_grid(theta, shape, align_corners=align_corners)  # noqa: E731
    pair = torch_with_gradient(function, torch.from_numpy(theta).to(DTYPES[dtype][1]), torch.from_numpy(upstream))
    return [value.detach().double().numpy() for value in pair]


def check(batch, spatial, align_corners, dtype, seed=0):
    random = np.random.default_rng(seed)
    rank = len(spatial)
    theta = of_every_dtype(random.standard_normal((batch, rank, rank + 1)))
    upstream = of_every_dtype(random.standard_normal((batch, *spatial, rank)))
    size = (batch, *spatial, 6)
    truth = lambda: reference(theta, size, align_corners, upstream, "float64")  # noqa: E731
    ours = with_gradient(
        lambda theta: affine_grid(theta, size, align_corners), tf.constant(theta, DTYPES[dtype][0]), upstream
    )
    if dtype == "float64":
        assert_exact(ours, truth())
    else:
        assert_near(ours, truth, dtype)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
def test_parity(rank, align_corners, dtype):
    check(3, SPATIAL[rank], align_corners, dtype)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.lists(st.integers(2, 30), min_size=2, max_size=3), st.booleans(), st.integers(0, 99))
def test_drawn(batch, spatial, align_corners, seed):
    check(batch, tuple(spatial), align_corners, "float64", seed)
    check(batch, tuple(spatial), align_corners, "float32", seed)


@pytest.mark.parametrize("align_corners", [False, True])
def test_an_axis_of_one_sample_lies_at_zero(align_corners):
    grid = affine_grid(tf.constant([[[1.0, 0, 0], [0, 1, 0]]], tf.float64), (1, 1, 3, 2), align_corners)
    expected = [-1, 0, 1] if align_corners else [-2 / 3, 0, 2 / 3]
    np.testing.assert_allclose(grid[0, 0, :, 0], expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(grid[..., 1], 0)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
def test_graph_with_unknown_batch(rank, compile):
    theta = np.random.default_rng(0).standard_normal((3, rank, rank + 1))
    upstream = np.zeros((3, *SPATIAL[rank], rank))
    truth = reference(theta, (3, *SPATIAL[rank], 2), False, upstream, "float64")

    @tf.function(jit_compile=compile, input_signature=[tf.TensorSpec([None, rank, rank + 1], tf.float64)])
    def graph(theta):
        return affine_grid(theta, (tf.shape(theta)[0], *SPATIAL[rank], 2))

    assert_exact([graph(theta).numpy()], truth[:1])


def test_size_as_a_tensor():
    theta = tf.random.normal((3, 2, 3))
    expected = affine_grid(theta, (3, 5, 7, 1))
    np.testing.assert_array_equal(affine_grid(theta, tf.constant([3, 5, 7, 1])), expected)
    graph = tf.function(affine_grid, input_signature=[tf.TensorSpec([None, 2, 3]), tf.TensorSpec([4], tf.int64)])
    np.testing.assert_array_equal(graph(theta, tf.constant([3, 5, 7, 1], tf.int64)), expected)


@pytest.mark.parametrize("size", [(0, 5, 7, 2), (3, 0, 7, 2), (3, 5, 0, 2)])
def test_empty(size):
    assert affine_grid(tf.zeros((size[0], 2, 3)), size).shape == (*size[:3], 2)


def test_second_order():
    theta = tf.ones((1, 2, 3), tf.float64)
    with tf.GradientTape() as outer:
        outer.watch(theta)
        with tf.GradientTape() as inner:
            inner.watch(theta)
            loss = tf.reduce_sum(affine_grid(theta, (1, 3, 4, 1)) ** 2)
        first = inner.gradient(loss, theta)
    points = affine_grid(tf.constant([[[1.0, 0, 0], [0, 1, 0]]], tf.float64), (1, 3, 4, 1))[0]
    points = tf.concat([points, tf.ones((3, 4, 1), tf.float64)], -1)
    expected = 2 * tf.reduce_sum(points**2, (0, 1))  # of each coefficient
    second = tf.linalg.diag_part(tf.reshape(outer.jacobian(first, theta), (6, 6)))
    np.testing.assert_allclose(second, tf.tile(expected, [2]), rtol=1e-12)


@pytest.mark.parametrize(
    ("argument", "theta", "size"),
    [
        ("theta", np.zeros((2, 3)), (1, 4, 5, 2)),
        ("theta", np.zeros((1, 3, 4)), (1, 4, 5, 2)),
        ("theta", np.zeros((1, 2, 3)), (1, 3, 4, 5, 2)),
        ("theta", np.zeros((1, 2, 3)), (2, 4, 5, 2)),
        ("theta", tf.zeros((1, 2, 3), tf.int32), (1, 4, 5, 2)),
        ("size", np.zeros((1, 2, 3)), (4, 5)),
        ("size", np.zeros((1, 2, 3)), 5),
        ("size", np.zeros((1, 2, 3)), (1, 4, -5, 2)),
        ("size", np.zeros((1, 2, 3)), (1, 4, 5.5, 2)),
        ("size", np.zeros((1, 2, 3)), tf.constant([1.0, 4, 5, 2])),
        ("size", np.zeros((1, 2, 3)), tf.constant([4, 5])),
    ],
)
def test_errors_name_the_argument(argument, theta, size):
    with pytest.raises(ValueError, match=rf"^{argument}: expected"):
        affine_grid(theta, size)
