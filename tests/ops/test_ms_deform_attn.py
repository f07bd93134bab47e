import numpy as np
import pytest
import tensorflow as tf
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import defined
from tests.support.judging import DTYPES, assert_exact, assert_near
from tests.support.op_sides import (
    always_compiled,
    as_precise,
    assert_equal_sums,
    assert_second_order,
    tf_side,
    torch_side,
    unwrapped,
)
from tf_models.ops import ms_deform_attn

SHAPES = ((6, 4), (3, 2), (1, 5))
SPECIAL = (0.0, 1.0, 0.5, 0.25, 0.125, -1.0, 9.0)
SETTINGS = {"plain": lambda _: None, "unwrapped": unwrapped, "compiled": always_compiled}


def arguments(shapes=SHAPES, batch=2, queries=7, heads=3, points=2, channels=5, seed=0, special=SPECIAL):
    """Values, locations in and outside and on pixels and edges, and weights."""
    rng = np.random.default_rng(seed)
    locations = rng.uniform(-0.4, 1.4, (batch, queries, heads, len(shapes), points, 2))
    chosen = rng.random(locations.shape) < 0.3
    locations[chosen] = rng.choice(special, chosen.sum())
    pixels = sum(h * w for h, w in shapes)
    value = rng.standard_normal((batch, pixels, heads, channels))
    return [value, locations, rng.random((batch, queries, heads, len(shapes), points))]


@pytest.mark.parametrize("setting", SETTINGS)
def test_values_and_gradients_follow_the_definition(setting, monkeypatch):
    SETTINGS[setting](monkeypatch)
    arrays = arguments()
    ours = tf_side(lambda v, p, w: ms_deform_attn(v, SHAPES, p, w), arrays)
    assert_exact(ours, torch_side(defined.ms_deform_attn(SHAPES), arrays))


def test_values_and_gradients_are_those_of_deformable_detr(monkeypatch):
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    unwrapped(monkeypatch)
    rng = np.random.default_rng(1)
    value, locations, weights = arguments()
    # Away from where two formulas for one location may round to two sides of a pixel.
    locations = rng.uniform(-0.4, 1.4, locations.shape)
    module = MultiScaleDeformableAttention()
    starts = torch.tensor([0, 24, 30])

    def reference(v, p, w):
        return module(v, torch.tensor(SHAPES), list(SHAPES), starts, p, w, 64)

    arrays = [value, locations, weights]
    assert_exact(tf_side(lambda v, p, w: ms_deform_attn(v, SHAPES, p, w), arrays), torch_side(reference, arrays))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_other_precisions_are_as_near_to_the_truth(dtype, monkeypatch):
    unwrapped(monkeypatch)
    tf_dtype, torch_dtype = DTYPES[dtype]
    # None on a pixel: there the least rounding decides which pixels' difference a gradient is.
    arrays = as_precise(arguments(special=(-1.0, 9.0)), torch_dtype)
    ours = tf_side(lambda v, p, w: ms_deform_attn(v, SHAPES, p, w), arrays, tf_dtype)
    assert_near(ours, lambda: torch_side(defined.ms_deform_attn(SHAPES), arrays), dtype)


@given(st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(monkeypatch, data):
    unwrapped(monkeypatch)
    shapes = tuple(data.draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3)))
    batch, queries, heads, points, channels, seed = (data.draw(st.integers(1, 4)) for _ in range(6))
    arrays = arguments(shapes, batch, queries, heads, points, channels, seed)
    ours = tf_side(lambda v, p, w: ms_deform_attn(v, shapes, p, w), arrays)
    assert_equal_sums(ours, torch_side(defined.ms_deform_attn(shapes), arrays))


def test_locations_are_x_then_y():
    value = np.arange(6.0).reshape(1, 6, 1, 1)  # one level of 2 x 3
    locations = np.array([2.5 / 3, 0.5 / 2]).reshape(1, 1, 1, 1, 1, 2)  # the centre of column 2, row 0
    assert ms_deform_attn(value, [(2, 3)], locations, np.ones((1, 1, 1, 1, 1))).numpy().item() == pytest.approx(2)


@pytest.mark.parametrize("kind", [np.array, lambda s: tf.constant(s, tf.int64), list], ids=["numpy", "tensor", "list"])
def test_spatial_shapes_of_any_kind(kind):
    value, locations, weights = arguments()
    expected = ms_deform_attn(value, SHAPES, locations, weights)
    np.testing.assert_array_equal(ms_deform_attn(value, kind(SHAPES), locations, weights), expected)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_spatial_shapes_known_only_when_run(jit_compile):
    arrays = arguments()
    specs = [tf.TensorSpec((None, None, 3, 5), tf.float64), tf.TensorSpec((3, 2), tf.int32)]
    specs += [tf.TensorSpec((None, None, 3, 3, 2, 2), tf.float64), tf.TensorSpec((None, None, 3, 3, 2), tf.float64)]

    @tf.function(input_signature=specs, autograph=False, jit_compile=jit_compile)
    def value_and_gradients(value, shapes, locations, weights):
        sources = [value, locations, weights]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            output = ms_deform_attn(value, shapes, locations, weights)
        return output, *tape.gradient(output, sources)

    leaves = [torch.from_numpy(array).requires_grad_() for array in arrays]
    output = defined.ms_deform_attn(SHAPES)(*leaves)
    theirs = [output, *torch.autograd.grad(output.sum(), leaves)]
    ours = value_and_gradients(arrays[0], np.array(SHAPES, np.int32), *arrays[1:])
    assert_exact([v.numpy() for v in ours], [v.detach().numpy() for v in theirs])


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("empty", ["batch", "queries", "points"])
def test_nothing_to_attend(empty, setting, monkeypatch):
    SETTINGS[setting](monkeypatch)
    arrays = arguments(**{empty: 0})
    output, *gradients = tf_side(lambda v, p, w: ms_deform_attn(v, SHAPES, p, w), arrays)
    assert output.shape == (*arrays[1].shape[:2], 15)
    assert not output.any()
    assert [g.shape for g in gradients] == [a.shape for a in arrays]
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("setting", SETTINGS)
def test_second_order_gradients(setting, monkeypatch):
    SETTINGS[setting](monkeypatch)
    rng = np.random.default_rng(0)
    shapes = ((3, 2), (1, 2))
    arrays = [
        rng.standard_normal((1, 8, 2, 3)),
        rng.uniform(-0.2, 1.2, (1, 3, 2, 2, 1, 2)),
        rng.random((1, 3, 2, 2, 1)),
    ]
    assert_second_order(lambda v, p, w: ms_deform_attn(v, shapes, p, w), arrays)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": np.zeros((2, 35, 3))}, r"value: expected rank 4"),
        ({"value": np.zeros((2, 35, 3, 5), int)}, r"value: expected dtype .*, got int64"),
        ({"value": np.zeros((2, 36, 3, 5))}, r"value: expected shape \(N, S, M, D\) = \(\?, 35, \?, \?\)"),
        ({"spatial_shapes": [(6, 4), (3, 2)]}, r"spatial_shapes: expected shape \(L, 2\) = \(3, 2\)"),
        ({"spatial_shapes": [(6, 4), (3, 2), (0, 5)]}, r"spatial_shapes: expected sizes of at least 1"),
        ({"spatial_shapes": np.ones((3, 2))}, r"spatial_shapes: expected dtype int32 or int64, got float64"),
        ({"sampling_locations": np.zeros((2, 7, 3, 3, 4))}, r"sampling_locations: expected rank 6"),
        (
            {"sampling_locations": np.zeros((2, 7, 2, 3, 2, 2))},
            r"sampling_locations: expected shape \(N, Lq, M, L, P, 2\)",
        ),
        (
            {"sampling_locations": np.zeros((2, 7, 3, 3, 2, 2), np.float32)},
            r"sampling_locations: expected dtype float64",
        ),
        ({"attention_weights": np.zeros((2, 7, 3, 3, 1))}, r"attention_weights: expected shape \(N, Lq, M, L, P\)"),
    ],
)
def test_wrong_arguments(changes, message):
    value, locations, weights = arguments()
    given = {"value": value, "spatial_shapes": SHAPES, "sampling_locations": locations, "attention_weights": weights}
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(**given | changes)
