import importlib
import itertools
import math
from functools import partial

import numpy as np
import pytest
import tensorflow as tf
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
from tf_models.ops import compiling, grid_sample, jit

PADDINGS = ("zeros", "border", "reflection")
MODES = {2: ("bilinear", "nearest", "bicubic"), 3: ("bilinear", "nearest")}
COMBINATIONS = [
    pytest.param(
        rank,
        {"mode": mode, "padding_mode": padding, "align_corners": align},
        id=f"{rank}d-{mode}-{padding}-{align}",
    )
    for rank, modes in MODES.items()
    for mode, padding, align in itertools.product(modes, PADDINGS, (False, True))
]
# Sizes for which integers and halves of pixels are exact with either align_corners, and sizes for which they are not.
# Every size, the batch of 3 and the channels are different.
EXACT = {2: ((4, 8), (5, 7)), 3: ((4, 2, 8), (5, 1, 7))}
ODD = {2: ((5, 9), (7, 2)), 3: ((5, 2, 7), (4, 1, 8))}
# The same where the centres of the outer pixels are the ends; axes of as many other lengths as there are.
ALIGNED = {2: ((5, 9), (5, 7)), 3: ((5, 3, 9), (5, 1, 7))}
SINGLE = {2: ((1, 2), (4, 5)), 3: ((2, 1, 4), (5, 8, 7))}

assert len(COMBINATIONS) == 30


def torch_grid_sample(x, grid, **options):
    return F.grid_sample(x.movedim(-1, 1), grid, **options).movedim(1, -1)


def arguments(sizes, out, batch=3, channels=6, seed=0, align=None):
    """An image, and points inside, on the border, far outside, and where a pixel or half of it begins.

    With `align`, where one begins with this align_corners and no other.
    """
    rng = np.random.default_rng(seed)
    grid = rng.uniform(-1.4, 1.4, (batch, *out, len(sizes)))
    for axis, size in enumerate(reversed(sizes)):
        edges = np.arange(-2, 2 * size + 3) / size - 1  # pixels and halves with align_corners=False
        centres = np.arange(-1, 2 * size + 1) / max(size - 1, 1) - 1  # and with align_corners=True
        special = np.concatenate([edges, centres, [-1, 1, -7.25, 30.5]])
        if align is not None:
            special = np.concatenate([centres if align else edges, [-7.25, 30.5]])
        elif not all(
            math.log2(s).is_integer() for s in sizes
        ):  # there rounding decides on which side of a pixel they lie
            special = np.array([-7.3, 30.7])
        chosen = rng.random(grid.shape[:-1]) < 0.4
        grid[..., axis][chosen] = rng.choice(special, chosen.sum())
    return [rng.standard_normal((batch, *sizes, channels)), grid]


@pytest.mark.parametrize("shapes", [EXACT, ODD, SINGLE], ids=["exact", "odd", "single"])
@pytest.mark.parametrize(("rank", "options"), COMBINATIONS)
def test_values_and_gradients_are_torchs(rank, options, shapes, monkeypatch):
    unwrapped(monkeypatch)
    arrays = arguments(*shapes[rank])
    ours = tf_side(lambda x, g: grid_sample(x, g, **options), arrays)
    assert_exact(ours, torch_side(lambda x, g: torch_grid_sample(x, g, **options), arrays))


@pytest.mark.parametrize(
    ("rank", "options"),
    # A compilation takes seconds: half of them by default.
    [pytest.param(*p.values, id=p.id, marks=[pytest.mark.slow] * p.values[1]["align_corners"]) for p in COMBINATIONS],
)
def test_compiled_values_and_gradients_are_torchs(rank, options, monkeypatch):
    always_compiled(monkeypatch)
    arrays = arguments(*EXACT[rank], batch=3, channels=2)
    ours = tf_side(lambda x, g: grid_sample(x, g, **options), arrays)
    assert_exact(ours, torch_side(lambda x, g: torch_grid_sample(x, g, **options), arrays))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("rank", "options"), COMBINATIONS)
def test_other_precisions_are_as_near_to_the_truth(rank, options, dtype, monkeypatch):
    unwrapped(monkeypatch)
    tf_dtype, torch_dtype = DTYPES[dtype]
    align = options["align_corners"]
    arrays = as_precise(arguments(*(ALIGNED if align else EXACT)[rank], channels=5, align=align), torch_dtype)
    ours = tf_side(lambda x, g: grid_sample(x, g, **options), arrays, tf_dtype)
    assert_near(ours, lambda: torch_side(lambda x, g: torch_grid_sample(x, g, **options), arrays), dtype)


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape_and_option(monkeypatch, data):
    unwrapped(monkeypatch)
    rank = data.draw(st.sampled_from([2, 3]), "rank")
    size = st.integers(1, 6)
    sizes, out = (tuple(data.draw(size) for _ in range(rank)) for _ in range(2))
    batch, channels, seed = (data.draw(st.integers(1, 4)) for _ in range(3))
    options = {
        "mode": data.draw(st.sampled_from(MODES[rank])),
        "padding_mode": data.draw(st.sampled_from(PADDINGS)),
        "align_corners": data.draw(st.booleans()),
    }
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((batch, *sizes, channels)), rng.uniform(-2.5, 2.5, (batch, *out, rank))]
    ours = tf_side(lambda x, g: grid_sample(x, g, **options), arrays)
    assert_equal_sums(ours, torch_side(lambda x, g: torch_grid_sample(x, g, **options), arrays))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("distance", [1e10, 1e30])
def test_reflections_from_afar_in_volumes(distance, mode, align_corners, dtype):
    """The remainder of a division that leaves no digits is exact."""
    x, grid = (array.astype(dtype) for array in arguments(*ODD[3]))
    grid = np.clip(grid, -1.4, 1.4) * np.dtype(dtype).type(distance)
    options = {"mode": mode, "padding_mode": "reflection", "align_corners": align_corners}
    ours = [tf.cast(grid_sample(x, grid, **options), tf.float64).numpy()]
    image = torch.from_numpy(x).double()
    if dtype == "float64":
        assert_exact(ours, [torch_grid_sample(image, torch.from_numpy(grid), **options).numpy()])
        return
    # In another precision such a reflection lands elsewhere. Where it lands in float32 is read off a volume whose
    # values are its own coordinates; from there on float64 is the truth.
    own = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in x.shape[1:4]), indexing="ij"), -1)
    at = torch_grid_sample(own.expand(len(x), *own.shape), torch.from_numpy(grid), **options).double()
    lengths = torch.tensor(x.shape[1:4], dtype=torch.float64)
    landed = (2 * at / (lengths - 1) - 1 if align_corners else (2 * at + 1) / lengths - 1).flip(-1)
    assert_near(ours, lambda: [torch_grid_sample(image, landed, **options)], dtype)


def finite(compute):
    """What is computed, with numbers in place of NaN."""
    return [compute().nan_to_num()]


@pytest.mark.parametrize("setting", ["unwrapped", "compiled"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rank", [2, 3])
def test_nan_and_infinite_coordinates(rank, dtype, setting, monkeypatch):
    (unwrapped if setting == "unwrapped" else always_compiled)(monkeypatch)
    tf_dtype = DTYPES[dtype][0]
    sizes = EXACT[rank][0]
    x = np.random.default_rng(0).standard_normal((1, *sizes, 2)).astype(np.float32).astype(np.float64)
    # Reflections from 2^18 land on whole and half pixels, exactly in either precision.
    special = [math.nan, math.inf, -math.inf, 2.0**18, -(2.0**18), 0.25]
    grid = np.array(list(itertools.product(special, repeat=rank))).reshape(1, *(1,) * (rank - 1), -1, rank)
    for param in COMBINATIONS if setting == "unwrapped" else COMBINATIONS[1::5]:
        combination, options = param.values
        if combination != rank:
            continue
        ours = tf.cast(grid_sample(tf.cast(x, tf_dtype), tf.cast(grid, tf_dtype), **options), tf.float64).numpy()
        theirs = partial(torch_grid_sample, torch.from_numpy(x), torch.from_numpy(grid), **options)
        np.testing.assert_array_equal(np.isnan(ours), theirs().isnan(), err_msg=str(options))
        if dtype == "float64":
            assert_exact([np.nan_to_num(ours)], [theirs().nan_to_num().numpy()])
        else:
            assert_near([np.nan_to_num(ours)], partial(finite, theirs), dtype)


def test_gradients_at_nan_coordinates(monkeypatch):
    # Only under zero padding: with the others torch reads outside of its memory.
    unwrapped(monkeypatch)
    x = np.random.default_rng(0).standard_normal((1, 4, 8, 2))
    for rank, mode in ((2, "bilinear"), (2, "nearest"), (2, "bicubic"), (3, "bilinear"), (3, "nearest")):
        image = x if rank == 2 else x[:, None]
        for value in (math.nan, math.inf, -math.inf):
            grid = np.full((1, *(1,) * (rank - 1), 2, rank), 0.3)
            grid[..., 0, 0] = value
            ours = tf_side(lambda x, g, mode=mode: grid_sample(x, g, mode), [image, grid])
            theirs = torch_side(
                lambda x, g, mode=mode: torch_grid_sample(x, g, mode=mode, align_corners=False), [image, grid]
            )
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-12, err_msg=f"{rank} {mode} {value}")


def test_nearest_rounds_halves_to_even():
    x = np.arange(8.0).reshape(1, 1, 8, 1)
    pixels = np.array([0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5])
    grid = np.stack([(pixels + 0.5) / 4 - 1, np.zeros(7)], -1)[None, None]
    assert grid_sample(x, grid, mode="nearest").numpy().ravel().tolist() == [0, 2, 2, 4, 4, 6, 6]


@pytest.mark.parametrize("setting", [lambda _: None, always_compiled], ids=["plain", "compiled"])
def test_the_grid_of_nearest_has_a_gradient_of_zero(setting, monkeypatch):
    setting(monkeypatch)
    x, grid = map(tf.constant, arguments(*EXACT[2]))
    with tf.GradientTape() as tape:
        tape.watch(grid)
        output = grid_sample(x, grid, "nearest")
    gradient = tape.gradient(output, grid)
    assert gradient.shape == grid.shape
    assert not gradient.numpy().any()


@pytest.mark.parametrize("rank", [2, 3])
def test_unknown_sizes(rank):
    shape = tf.TensorSpec([None] * (rank + 2), tf.float64)

    @tf.function(input_signature=[shape, shape], autograph=False)
    def value_and_gradients(x, grid):
        with tf.GradientTape() as tape:
            tape.watch([x, grid])
            output = grid_sample(x, grid, padding_mode="reflection")
        return output, *tape.gradient(output, [x, grid])

    for shapes in (EXACT, ODD):
        arrays = arguments(*shapes[rank])
        x, grid = (torch.from_numpy(array).requires_grad_() for array in arrays)
        output = torch_grid_sample(x, grid, padding_mode="reflection", align_corners=False)
        theirs = [output, *torch.autograd.grad(output.sum(), [x, grid])]
        ours = value_and_gradients(*arrays)
        assert_exact([value.numpy() for value in ours], [value.detach().numpy() for value in theirs])


@pytest.mark.parametrize("batch", [None, 3])
def test_inside_a_compiled_function(batch):
    arrays = arguments(*EXACT[2])

    @tf.function(
        jit_compile=True,
        autograph=False,
        input_signature=[tf.TensorSpec((batch, *array.shape[1:]), tf.float64) for array in arrays],
    )
    def value_and_gradients(x, grid):
        with tf.GradientTape() as tape:
            tape.watch([x, grid])
            output = grid_sample(x, grid, mode="bicubic")
        return output, *tape.gradient(output, [x, grid])

    x, grid = (torch.from_numpy(array).requires_grad_() for array in arrays)
    output = torch_grid_sample(x, grid, mode="bicubic", align_corners=False)
    theirs = [output, *torch.autograd.grad(output.sum(), [x, grid])]
    assert_exact([v.numpy() for v in value_and_gradients(*arrays)], [v.detach().numpy() for v in theirs])


@pytest.mark.parametrize("setting", [None, unwrapped, always_compiled], ids=["plain", "unwrapped", "compiled"])
@pytest.mark.parametrize("empty", ["batch", "grid", "channels"])
def test_nothing_to_sample(empty, setting, monkeypatch):
    if setting:
        setting(monkeypatch)
    batch, points, channels = 2 * (empty != "batch"), 3 * (empty != "grid"), 4 * (empty != "channels")
    arrays = [np.ones((batch, 5, 6, channels)), np.zeros((batch, 2, points, 2))]
    output, d_input, d_grid = tf_side(grid_sample, arrays)
    assert output.shape == (batch, 2, points, channels)
    assert d_input.shape == arrays[0].shape
    assert d_grid.shape == arrays[1].shape
    assert not d_input.any()
    assert not d_grid.any()


@pytest.mark.parametrize("setting", [None, unwrapped, always_compiled], ids=["plain", "unwrapped", "compiled"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_second_order_gradients(mode, setting, monkeypatch):
    if setting:
        setting(monkeypatch)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, 5, 4, 3)), rng.uniform(-1.3, 1.3, (2, 3, 2, 2))]
    assert_second_order(lambda x, g: grid_sample(x, g, mode), arrays)


def test_gradients_in_chunks_are_the_same(monkeypatch):
    arrays = arguments(*EXACT[2], batch=2, channels=5)
    whole = tf_side(_unwrapped_bilinear, arrays)
    for chunk in (1, 333, 700):  # 1, 16 and 35 queries of 70 at a time
        monkeypatch.setattr("tf_models.ops._sampling.ROWS_CHUNK", chunk)
        monkeypatch.setattr("tf_models.ops._sampling.WEIGHTS_CHUNK", chunk)
        assert_exact(tf_side(_unwrapped_bilinear, arrays), whole)
        assert_second_order(_unwrapped_bilinear, [array[:, :2, :3] for array in arrays])


def _unwrapped_bilinear(x, grid):
    op = importlib.import_module("tf_models.ops.grid_sample")._grid_sample
    return op.function(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class Memory:
    """An op that has compiled nothing yet, and what it has compiled since."""

    OPTIONS = {"mode": "nearest", "padding_mode": "border", "align_corners": True}  # noqa: RUF012

    def __init__(self, monkeypatch):
        always_compiled(monkeypatch)
        module = importlib.import_module("tf_models.ops.grid_sample")
        self.op = compiling.compiled(module._grid_sample.function)
        monkeypatch.setattr(module, "_grid_sample", self.op)

    def check(self, batch, size=3, **options):
        arrays = arguments((size, 4), (2, 3), batch)
        options = self.OPTIONS | options
        expected = torch_grid_sample(*map(torch.from_numpy, arrays), **options)
        np.testing.assert_allclose(grid_sample(*arrays, **options), expected, rtol=0, atol=1e-12)

    def graphs(self):
        """How many there are: executables, and graphs for every shape."""
        keys = [key for both in self.op._variants.values() for graphs in both.values() for key in graphs._graphs]
        plain = sum(isinstance(key[0][1], int) for key in keys)  # the rank, and not the shape
        return len(keys) - plain, plain


@pytest.fixture
def memory(monkeypatch):
    return Memory(monkeypatch)


def test_batch_sizes_share_executables(memory):
    for batch in range(1, 20):
        memory.check(batch)
    # 1, 2, 3 and 4 as they are, then 8 and 16.
    assert memory.graphs() == (compiling.EXACT + 2, 0)


def test_sample_shapes_beyond_the_limit_are_plain(memory, monkeypatch):
    monkeypatch.setattr(compiling, "SHAPES", 2)
    for size in range(1, 6):
        memory.check(2, size)
    assert memory.graphs() == (2, 1)


def test_options_beyond_the_limit_run_op_by_op(memory, monkeypatch):
    monkeypatch.setattr(compiling, "OPTIONS", 2)
    for mode in MODES[2]:
        memory.check(2, mode=mode)
    assert memory.graphs() == (2, 0)


def test_small_calls_are_plain(memory, monkeypatch):
    monkeypatch.setattr(compiling, "WORTHWHILE", 500)
    for batch in (1, 2, 10):  # of 84 numbers each
        memory.check(batch)
    assert memory.graphs() == (1, 1)


def test_compiling_can_be_forbidden(memory):
    with jit(False):
        for size in range(1, 4):
            memory.check(2, size)
    assert memory.graphs() == (0, 1)
    memory.check(2)
    assert memory.graphs() == (1, 1)
    before = jit(False)
    memory.check(3)
    jit(True)
    assert before._before is True
    assert memory.graphs() == (1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": np.zeros((2, 4, 5))}, r"input: expected rank 4 or 5, got rank 3"),
        ({"input": np.zeros((2, 4, 5, 3), int)}, r"input: expected dtype .*float32.*, got int64"),
        ({"input": "image"}, r"input: expected dtype|input: expected a tensor"),
        ({"input": np.zeros((2, 0, 5, 3))}, r"input: expected non-empty spatial dimensions"),
        ({"grid": np.zeros((2, 3, 2))}, r"grid: expected rank 4"),
        ({"grid": np.zeros((2, 3, 2, 2), np.float32)}, r"grid: expected dtype float64, got float32"),
        (
            {"grid": np.zeros((2, 3, 2, 3))},
            r"grid: expected shape \(N, Ho, Wo, 2\) = \(2, \?, \?, 2\), got \(2, 3, 2, 3\)",
        ),
        ({"grid": np.zeros((1, 3, 2, 2))}, r"grid: expected shape \(N, Ho, Wo, 2\)"),
        ({"mode": "linear"}, r"mode: expected 'bilinear' or 'nearest' or 'bicubic', got 'linear'"),
        ({"padding_mode": "reflect"}, r"padding_mode: expected 'zeros' or 'border' or 'reflection', got 'reflect'"),
        (
            {"input": np.zeros((2, 4, 5, 6, 3)), "grid": np.zeros((2, 1, 2, 3, 3)), "mode": "bicubic"},
            r"mode: expected 'bilinear' or 'nearest', got 'bicubic'",
        ),
    ],
)
def test_wrong_arguments(changes, message):
    given = {"input": np.zeros((2, 4, 5, 3)), "grid": np.zeros((2, 3, 2, 2))} | changes
    with pytest.raises(ValueError, match=message):
        grid_sample(**given)
