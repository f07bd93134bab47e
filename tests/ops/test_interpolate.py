import importlib
import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
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
from tf_models.ops import interpolate, jit

RANKS = {
    "nearest": (1, 2, 3),
    "nearest-exact": (1, 2, 3),
    "area": (1, 2, 3),
    "linear": (1,),
    "bilinear": (2,),
    "bicubic": (2,),
    "trilinear": (3,),
}
SHAPES = {1: (2, 7, 3), 2: (2, 7, 5, 3), 3: (2, 4, 7, 5, 3)}
# All up, all down, and mixed with one axis kept and one of a single sample.
SIZES = {1: [(11,), (3,)], 2: [(11, 9), (3, 2), (1, 5)], 3: [(6, 11, 9), (2, 3, 2), (9, 1, 5)]}
SCALES = {1: [2.3, (1 / 3,)], 2: [2.3, (1 / 3, 1.9)], 3: [1.7, (1.3, 1 / 3, 2.3)]}


MODULE = importlib.import_module("tf_models.ops.interpolate")


@pytest.fixture
def untraced(monkeypatch):
    """The op without the graphs that it runs in: to trace each of many options would take minutes."""
    monkeypatch.setattr(MODULE, "_compiled_interpolate", MODULE._interpolate)


def options():
    """Every mode, rank, align_corners and antialias that torch accepts."""
    for mode, ranks in RANKS.items():
        linear = mode in ("linear", "bilinear", "bicubic", "trilinear")
        for rank, align, antialias in itertools.product(
            ranks,
            (None, False, True) if linear else (None,),
            (False, True) if mode in ("bilinear", "bicubic") else (False,),
        ):
            yield rank, {"mode": mode, "align_corners": align, "antialias": antialias}


def targets(rank):
    for size in SIZES[rank]:
        yield {"size": size}
    for scale, recompute in itertools.product(SCALES[rank], (None, False, True)):
        yield {"scale_factor": scale, "recompute_scale_factor": recompute}


def numbers(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def reference(x, upstream, dtype, **arguments):
    """torch's output and gradient, channels last, as float64."""
    function = lambda x: F.interpolate(x, **arguments)  # noqa: E731
    pair = torch_with_gradient(function, channels_first(x).to(DTYPES[dtype][1]), channels_first(upstream))
    return [channels_last(value) for value in pair]


def output_shape(x, arguments):
    return channels_last(F.interpolate(channels_first(x), **arguments)).shape


def check(shape, arguments, dtypes=("float64", "float32"), seed=0):
    x = of_every_dtype(numbers(shape, seed))
    upstream = of_every_dtype(numbers(output_shape(x, arguments), seed + 1))
    truth = lambda: reference(x, upstream, "float64", **arguments)  # noqa: E731
    for dtype in dtypes:
        ours = with_gradient(lambda x: interpolate(x, **arguments), tf.constant(x, DTYPES[dtype][0]), upstream)
        if dtype == "float64":
            assert_exact(ours, truth())
        else:
            assert_near(ours, truth, dtype)


@pytest.mark.parametrize(("rank", "mode_options"), list(options()), ids=str)
@pytest.mark.usefixtures("untraced")
def test_every_option_at_every_target(rank, mode_options):
    for target in targets(rank):
        check(SHAPES[rank], {**mode_options, **target})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("rank", "mode_options"), [o for o in options() if o[1]["align_corners"] is None], ids=str)
@pytest.mark.usefixtures("untraced")
def test_half_types(rank, mode_options, dtype):
    check(SHAPES[rank], {**mode_options, "size": SIZES[rank][0]}, [dtype])
    check(SHAPES[rank], {**mode_options, "scale_factor": SCALES[rank][1]}, [dtype])


@pytest.mark.parametrize(
    ("rank", "mode_options"), [o for o in options() if o[1]["align_corners"] is not False], ids=str
)
@pytest.mark.usefixtures("untraced")
def test_axes_of_one_sample(rank, mode_options):
    check((2, *[1] * rank, 3), {**mode_options, "size": [3, 5, 2][:rank]})
    if not mode_options["antialias"]:  # torch has a fault there: see test_antialias_to_a_single_column.
        check(SHAPES[rank], {**mode_options, "size": 1})


# --- Sizes are torch's, bit for bit ----------------------------------------------------------------------------------

AWKWARD = [(7, 1000), (333, 1000), (1000, 333), (10, 7), (3, 77), (49, 7), (64, 65), (127, 1), (1, 130), (255, 129)]


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nearest_takes_the_very_same_samples(mode, dtype):
    tf_dtype, torch_dtype = DTYPES[dtype]
    for size_in, size_out in AWKWARD:
        theirs = F.interpolate(torch.arange(size_in, dtype=torch_dtype)[None, None], size_out, mode=mode)
        ours = interpolate(tf.range(size_in, dtype=tf_dtype)[None, :, None], size_out, mode=mode)
        np.testing.assert_array_equal(ours[0, :, 0], theirs[0, 0])


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rank", [1, 2])
def test_nearest_takes_the_very_same_samples_where_sizes_are_dynamic(mode, dtype, rank):
    tf_dtype, torch_dtype = DTYPES[dtype]
    random = np.random.default_rng(3)

    @tf.function(input_signature=[tf.TensorSpec([None] * (rank + 2), tf_dtype), tf.TensorSpec([rank], tf.int32)])
    def ours(x, size):
        return interpolate(x, size, mode=mode)

    for _ in range(150):
        shape, size = random.integers(1, 150, (2, rank))
        x = np.arange(shape.prod()).reshape(1, *shape, 1)
        theirs = F.interpolate(channels_first(x).to(torch_dtype), tuple(size.tolist()), mode=mode)
        np.testing.assert_array_equal(ours(tf.constant(x, tf_dtype), size), channels_last(theirs))


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1 / 3, 2.3, 1.1, 1.9, 2.0, 0.7])
def test_nearest_takes_the_very_same_samples_by_scale(mode, dtype, scale):
    """Below and above the output size at which torch changes its arithmetic, and where sizes are equal or doubled."""
    tf_dtype, torch_dtype = DTYPES[dtype]

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, None], tf_dtype)])
    def ours(x):
        return interpolate(x, scale_factor=scale, mode=mode)

    for size in range(3, 110, 3):
        x = np.arange(size * 5).reshape(1, size, 5, 1)
        theirs = F.interpolate(channels_first(x).to(torch_dtype), scale_factor=scale, mode=mode)
        np.testing.assert_array_equal(ours(tf.constant(x, tf_dtype)), channels_last(theirs))


@pytest.mark.parametrize("scale", [1 / 3, 2.3, 0.1, 0.7, 1.1, 3.0000001])
def test_the_output_size_is_the_floor(scale):
    for size in (10, 21, 30, 33):
        expected = math.floor(size * scale)
        assert interpolate(tf.zeros((1, size, 1)), scale_factor=scale).shape == (1, expected, 1)


# --- Images of bytes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.usefixtures("untraced")
def test_bytes_are_equal_to_torch(mode, align_corners, antialias, channels):
    x = np.random.default_rng(1).integers(0, 256, (2, 37, 23, channels), np.uint8)
    x[0, :10] = np.where(x[0, :10] > 127, 255, 0)  # Edges, where bicubic overshoots.
    arguments = {"mode": mode, "align_corners": align_corners, "antialias": antialias}
    for target in ({"size": (19, 51)}, {"size": (80, 7)}, {"size": (37, 11)}, {"scale_factor": (1 / 3, 2.3)}):
        theirs = F.interpolate(channels_first(x), **arguments, **target)
        ours = interpolate(tf.constant(x), **arguments, **target)
        assert ours.dtype == tf.uint8
        np.testing.assert_array_equal(ours, channels_last(theirs))


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_bytes_nearest(mode):
    x = np.random.default_rng(1).integers(0, 256, (2, 37, 23, 3), np.uint8)
    ours = interpolate(tf.constant(x), scale_factor=(0.7, 2.3), mode=mode)
    np.testing.assert_array_equal(
        ours, channels_last(F.interpolate(channels_first(x), scale_factor=(0.7, 2.3), mode=mode))
    )


def test_bytes_next_to_pillow():
    """How SAM shrinks a photograph. Pillow's weights have 22 bits and torch's 16: the two differ by one somewhere."""
    image = pytest.importorskip("PIL.Image")
    x = np.random.default_rng(1).integers(0, 256, (90, 120, 3), np.uint8)
    pillow = np.asarray(image.fromarray(x).resize((64, 48), image.Resampling.BILINEAR)).astype(int)
    theirs = channels_last(F.interpolate(channels_first(x[None]), (48, 64), mode="bilinear", antialias=True))[0]
    ours = interpolate(tf.constant(x[None]), (48, 64), mode="bilinear", antialias=True)[0].numpy()
    np.testing.assert_array_equal(ours, theirs)
    assert np.abs(ours - pillow).max() == np.abs(theirs - pillow).max() == 1


# --- Where torch is not followed -------------------------------------------------------------------------------------


def test_antialias_to_a_single_column():
    """There torch's contiguous kernel repeats the first row; with the image turned it is right."""
    x = numbers((1, 7, 5, 1))
    turned = channels_last(F.interpolate(channels_first(x).mT, (1, 4), mode="bilinear", antialias=True).mT)
    ours = interpolate(tf.constant(x), (4, 1), mode="bilinear", antialias=True)
    np.testing.assert_allclose(ours, turned, rtol=0, atol=1e-12)


def test_the_gradient_is_the_transpose_where_torch_forgets_the_identity():
    """torch leaves an axis alone that keeps its size, but in the gradient of antialias it does not."""
    x = tf.constant(numbers((1, 5, 6, 1)))
    upstream = numbers((1, 5, 7, 1))
    output, gradient = with_gradient(
        lambda x: interpolate(x, scale_factor=(1.1, 1.2), mode="bilinear", antialias=True), x, upstream
    )
    other = numbers((1, 5, 6, 1), seed=2)
    moved = interpolate(x + other, scale_factor=(1.1, 1.2), mode="bilinear", antialias=True) - output
    np.testing.assert_allclose(np.vdot(moved, upstream), np.vdot(other, gradient), rtol=1e-12)


# --- Ways to run it --------------------------------------------------------------------------------------------------

BOTH_KERNELS = [o for o in options() if o[1]["align_corners"] is None and o[0] == min(RANKS[o[1]["mode"]])]


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(("rank", "mode_options"), BOTH_KERNELS, ids=str)
def test_graph_with_unknown_sizes(rank, mode_options, compile):
    x, size = numbers(SHAPES[rank]), SIZES[rank][0]
    upstream = numbers((2, *size, 3))
    signature = [tf.TensorSpec([None] * (rank + 2), tf.float64)] * 2

    @tf.function(jit_compile=compile, input_signature=signature)
    def graph(x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            output = interpolate(x, size, **mode_options)
        assert output.shape.as_list() == [None, *size, None]
        return output, tape.gradient(output, x, upstream)

    truth = reference(x, upstream, "float64", size=size, **mode_options)
    assert_exact([value.numpy() for value in graph(x, upstream)], truth)


@pytest.mark.parametrize(("rank", "mode_options"), BOTH_KERNELS, ids=str)
def test_size_as_a_tensor(rank, mode_options):
    x, size = numbers(SHAPES[rank]), SIZES[rank][1]
    truth = reference(x, numbers((2, *size, 3)), "float64", size=size, **mode_options)
    graph = tf.function(lambda x, size: interpolate(x, size, **mode_options))
    np.testing.assert_allclose(graph(x, tf.constant(size)), truth[0], rtol=0, atol=1e-12)
    eager = interpolate(tf.constant(x), [tf.constant(n, tf.int64) for n in size], **mode_options)
    np.testing.assert_allclose(eager, truth[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "arguments", [{"mode": "bicubic", "align_corners": True}, {"mode": "bilinear", "antialias": True}]
)
def test_large_inputs_are_compiled_and_agree(arguments):
    x = numbers((1, 96, 101, 8)).astype(np.float32)  # More than the numbers from which on the op compiles.
    upstream = numbers((1, 40, 150, 8)).astype(np.float32).astype(np.float64)

    def run():
        return with_gradient(lambda x: interpolate(x, (40, 150), **arguments), tf.constant(x), upstream)

    truth = lambda: reference(x, upstream, "float64", size=(40, 150), **arguments)  # noqa: E731
    assert_near(run(), truth, "float32")
    with jit(False):
        assert_near(run(), truth, "float32")


@pytest.mark.parametrize("mode", ["nearest", "area", "bicubic"])
def test_second_order(mode):
    x = tf.constant(numbers((1, 4, 5, 2)))
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            loss = tf.reduce_sum(interpolate(x, (7, 3), mode=mode) ** 3)
        first = inner.gradient(loss, x)
    ours = outer.gradient(first, x, x)
    parameter = channels_first(x.numpy()).requires_grad_()
    (first,) = torch.autograd.grad(
        (F.interpolate(parameter, (7, 3), mode=mode) ** 3).sum(), parameter, create_graph=True
    )
    (theirs,) = torch.autograd.grad(first, parameter, parameter.detach())
    np.testing.assert_allclose(ours, channels_last(theirs), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("rank", "mode_options"), BOTH_KERNELS, ids=str)
@pytest.mark.usefixtures("untraced")
def test_empty_batch(rank, mode_options):
    x = tf.zeros((0, *SHAPES[rank][1:]))
    output, gradient = with_gradient(
        lambda x: interpolate(x, SIZES[rank][0], **mode_options), x, np.zeros((0, *SIZES[rank][0], 3))
    )
    assert output.shape == (0, *SIZES[rank][0], 3)
    assert gradient.shape == x.shape


@pytest.mark.parametrize("options", [64, 0])  # how many sets of options may have graphs; beyond, op by op
def test_area_to_an_empty_size(options, monkeypatch):
    monkeypatch.setattr("tf_models.ops.compiling.OPTIONS", options)
    assert interpolate(tf.zeros((1, 4, 5, 2)), (0, 3), mode="area").shape == (1, 0, 3, 2)


def test_a_nan_stays_where_it_is():
    x = numbers((1, 9, 11, 1))
    x[0, 4, 5] = np.nan
    for arguments in ({"mode": "bilinear"}, {"mode": "bicubic", "antialias": True}, {"mode": "area"}):
        theirs = F.interpolate(channels_first(x), (5, 7), **arguments)
        np.testing.assert_array_equal(
            np.isnan(interpolate(tf.constant(x), (5, 7), **arguments)), np.isnan(channels_last(theirs))
        )


# --- Errors ----------------------------------------------------------------------------------------------------------

IMAGE = np.zeros((1, 4, 5, 2), np.float32)


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("mode", {"size": 3, "mode": "cubic"}),
        ("mode", {"size": 3, "mode": None}),
        ("input", {"size": 3, "input": IMAGE[0, 0]}),
        ("input", {"size": 3, "mode": "linear"}),
        ("input", {"size": 3, "mode": "trilinear"}),
        ("input", {"size": 3, "mode": "bilinear", "input": IMAGE[0]}),
        ("input", {"size": 3, "input": tf.constant(IMAGE, tf.int32)}),
        ("input", {"size": 3, "input": tf.cast(IMAGE, tf.uint8), "mode": "area"}),
        ("input", {"size": 3, "input": IMAGE[:, :0]}),
        ("input", {"size": 3, "input": "image"}),
        ("size, scale_factor", {}),
        ("size, scale_factor", {"size": 3, "scale_factor": 2.0}),
        ("size", {"size": (3,)}),
        ("size", {"size": 0}),
        ("size", {"size": (3, -1)}),
        ("size", {"size": 2.5}),
        ("size", {"size": [tf.constant(3)]}),
        ("size", {"size": [tf.constant(3.0), 4]}),
        ("scale_factor", {"scale_factor": (2.0, 2.0, 2.0)}),
        ("scale_factor", {"scale_factor": -1.0}),
        ("scale_factor", {"scale_factor": math.nan}),
        ("scale_factor", {"scale_factor": "2x"}),
        ("scale_factor", {"scale_factor": 0.1}),
        ("align_corners", {"size": 3, "mode": "nearest", "align_corners": False}),
        ("align_corners", {"size": 3, "mode": "nearest-exact", "align_corners": True}),
        ("align_corners", {"size": 3, "mode": "area", "align_corners": False}),
        ("antialias", {"size": 3, "mode": "area", "antialias": True}),
        ("antialias", {"size": 3, "mode": "nearest", "antialias": True}),
        ("recompute_scale_factor", {"size": 3, "recompute_scale_factor": True}),
    ],
)
def test_errors_name_the_argument(argument, arguments):
    with pytest.raises(ValueError, match=rf"^{argument}: expected"):
        interpolate(**{"input": IMAGE, **arguments})


# --- Drawn at random -------------------------------------------------------------------------------------------------


@st.composite
def calls(draw):
    rank, arguments = draw(st.sampled_from(list(options())))
    largest = {1: 300, 2: 80, 3: 12}[rank]
    shape = (draw(st.integers(1, 3)), *(draw(st.integers(1, largest)) for _ in range(rank)), draw(st.integers(1, 5)))
    if draw(st.booleans()):
        arguments["size"] = outputs = [draw(st.integers(1, largest)) for _ in range(rank)]
    else:
        scales = [draw(st.floats(1 / size, 3).filter(lambda s, n=size: n * s >= 1)) for size in shape[1:-1]]
        outputs = [int(n * scale) for n, scale in zip(shape[1:-1], scales, strict=True)]
        arguments["scale_factor"] = scales
        arguments["recompute_scale_factor"] = draw(st.sampled_from((None, False, True)))
    same = any(n == out for n, out in zip(shape[1:-1], outputs, strict=True))
    doubled = any(2 * n == out for n, out in zip(shape[1:-1], outputs, strict=True))
    nearest = arguments["mode"].startswith("nearest")
    # The faults of torch which the tests above tell.
    arguments["forward_only"] = "scale_factor" in arguments and (same or doubled or nearest)
    if arguments["antialias"] and outputs[-1] == 1:
        arguments.update(antialias=False)
    return shape, arguments


def check_drawn(call):
    shape, arguments = call
    forward_only = arguments.pop("forward_only")
    if not forward_only:
        check(shape, arguments)
        return
    x = numbers(shape)
    ours = interpolate(tf.constant(x), **arguments).numpy()
    assert_exact([ours], [channels_last(F.interpolate(channels_first(x), **arguments))])


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(calls())
@pytest.mark.usefixtures("untraced")
def test_drawn(call):
    check_drawn(call)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(calls())
@example(
    (
        (1, 44, 3, 1),
        {"mode": "nearest", "size": [60, 2], "align_corners": None, "antialias": False, "forward_only": False},
    )
)
@pytest.mark.usefixtures("untraced")
def test_many_drawn(call):
    check_drawn(call)
