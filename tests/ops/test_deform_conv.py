import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
import torch
import torchvision
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
from tf_models.ops import deform_conv2d, deform_conv3d

SETTINGS = {"plain": lambda _: None, "unwrapped": unwrapped, "compiled": always_compiled}


def case(
    size=(7, 9),
    channels=(6, 4),
    window=(3, 3),
    stride=(1, 1),
    padding=(1, 1),
    dilation=(1, 1),
    groups=1,
    offset_groups=1,
    bias=True,
    mask=True,
    batch=2,
):
    """The arrays (input, offset, kernel[, bias][, mask]) of a convolution, and the functions of both sides for them."""
    rng = np.random.default_rng(0)
    count, samples = len(window), math.prod(window)
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, window, stride, padding, dilation, strict=True)
    ]
    offset = rng.standard_normal((batch, *out, count * offset_groups * samples)) * 2
    chosen = rng.random(offset.shape) < 0.3  # to pixels, halves, the border, and far outside
    offset[chosen] = rng.choice([0.0, 0.5, -0.5, 1.0, -1.0, -2.0, 3.0, 40.0], chosen.sum())
    kernel = rng.standard_normal((*window, channels[0] // groups, channels[1]))
    arrays = [rng.standard_normal((batch, *size, channels[0])), offset, kernel]
    arrays += [rng.standard_normal(channels[1])] * bias
    arrays += [rng.random((batch, *out, offset_groups * samples))] * mask

    def split(rest):
        return (rest[0] if bias else None), (rest[-1] if mask else None)

    def ours(x, offset, kernel, *rest):
        function = deform_conv2d if count == 2 else deform_conv3d
        return function(x, offset, kernel, split(rest)[0], stride, padding, dilation, split(rest)[1])

    def theirs(x, offset, kernel, *rest):
        bias, mask = split(rest)
        if count == 3:
            return by_definition(x, offset, kernel, bias, stride, padding, dilation, mask)
        mask = None if mask is None else mask.movedim(-1, 1)
        weight = kernel.permute(3, 2, 0, 1)
        output = torchvision.ops.deform_conv2d(
            x.movedim(-1, 1), offset.movedim(-1, 1), weight, bias, stride, padding, dilation, mask
        )
        return output.movedim(1, -1)

    return arrays, ours, theirs


def by_definition(x, offset, kernel, bias, stride, padding, dilation, mask):
    """Deformable convolution of a volume, number by number; torch only for its gradients."""
    *window, group_channels, filters = kernel.shape
    batch, *size, channels = x.shape
    samples, groups = math.prod(window), channels // group_channels
    offset_groups = offset.shape[-1] // (3 * samples)
    out = offset.shape[1:4]
    results = []
    for n, *position in itertools.product(range(batch), *map(range, out)):
        moves = offset[n, position[0], position[1], position[2]].reshape(offset_groups, samples, 3)
        total = [0.0] * filters
        for sample, tap in enumerate(itertools.product(*map(range, window))):
            for c in range(channels):
                g = c // (channels // offset_groups)
                where = [
                    position[a] * stride[a] - padding[a] + tap[a] * dilation[a] + moves[g, sample, a] for a in range(3)
                ]
                value = 0.0
                for corner in itertools.product((0, 1), repeat=3):
                    pixel = [math.floor(w.item()) + d for w, d in zip(where, corner, strict=True)]
                    if all(0 <= p < s for p, s in zip(pixel, size, strict=True)):
                        share = math.prod(1 - abs_(w - p, d) for w, p, d in zip(where, pixel, corner, strict=True))
                        value = value + share * x[n, pixel[0], pixel[1], pixel[2], c]
                if mask is not None:
                    value = value * mask[n, position[0], position[1], position[2], g * samples + sample]
                group = c // group_channels
                for f in range(group * filters // groups, (group + 1) * filters // groups):
                    total[f] = total[f] + value * kernel[tap[0], tap[1], tap[2], c % group_channels, f]
        results.append(torch.stack([torch.as_tensor(t) for t in total]))
    output = torch.stack(results).reshape(batch, *out, filters)
    return output if bias is None else output + bias


def abs_(distance, above):
    """The distance from a pixel that lies below or above the point."""
    return -distance if above else distance


CASES = {
    "v2": {},
    "v1": {"mask": False},
    "no bias": {"bias": False},
    "neither": {"bias": False, "mask": False},
    "1x1": {"window": (1, 1), "padding": (0, 0)},
    "even": {"window": (2, 4)},
    "5x5": {"window": (5, 5), "padding": (2, 2)},
    "no padding": {"padding": (0, 0)},
    "much padding": {"padding": (3, 2)},
    "stride 2": {"stride": (2, 2)},
    "strides": {"stride": (3, 2), "padding": (0, 2)},
    "dilations": {"dilation": (2, 3), "padding": (2, 1)},
    "all unequal": {"window": (2, 3), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
    "groups": {"groups": 2},
    "depthwise": {"groups": 6, "channels": (6, 12)},
    "offset groups": {"offset_groups": 3},
    "both groups": {"groups": 2, "offset_groups": 3, "channels": (12, 8)},
    "both groups, the other way": {"groups": 4, "offset_groups": 2, "channels": (12, 8), "mask": False},
}
VOLUMES = {
    "v2": {},
    "v1": {"mask": False, "bias": False},
    "all unequal": {"window": (1, 3, 2), "stride": (1, 2, 1), "padding": (0, 1, 2), "dilation": (2, 1, 1)},
    "groups": {"groups": 2, "offset_groups": 4, "channels": (4, 6)},
}
VOLUME = {
    "size": (2, 4, 3), "channels": (2, 2), "window": (2, 2, 2), "stride": (1, 1, 1), "padding": (1, 0, 0),
    "dilation": (1, 1, 1), "batch": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_torchvisions(name, monkeypatch):
    unwrapped(monkeypatch)
    arrays, ours, theirs = case(**CASES[name])
    assert_exact(tf_side(ours, arrays), torch_side(theirs, arrays))


@pytest.mark.parametrize("setting", ["plain", "compiled"])
@pytest.mark.parametrize("name", ["v2", "v1", "all unequal", "both groups"])
def test_traced_values_and_gradients_are_torchvisions(name, setting, monkeypatch):
    SETTINGS[setting](monkeypatch)
    arrays, ours, theirs = case(**CASES[name])
    assert_exact(tf_side(ours, arrays), torch_side(theirs, arrays))


@pytest.mark.parametrize("name", VOLUMES)
def test_volumes_follow_the_definition(name, monkeypatch):
    unwrapped(monkeypatch)
    arrays, ours, theirs = case(**VOLUME | VOLUMES[name])
    assert_exact(tf_side(ours, arrays), torch_side(theirs, arrays))


def test_a_volume_of_depth_one_is_an_image(monkeypatch):
    unwrapped(monkeypatch)
    arrays, image, _ = case(window=(2, 3), stride=(2, 1), padding=(1, 0), dilation=(1, 2), offset_groups=3)

    def volume(x, offset, kernel, bias, mask):
        n, ho, wo, depth = offset.shape
        pairs = tf.reshape(offset, (n, 1, ho, wo, depth // 2, 2))
        triples = tf.concat([tf.zeros_like(pairs[..., :1]), pairs], -1)  # dz = 0
        offset = tf.reshape(triples, (n, 1, ho, wo, depth // 2 * 3))
        output = deform_conv3d(x[:, None], offset, kernel[None], bias, (1, 2, 1), (0, 1, 0), (1, 1, 2), mask[:, None])
        return output[:, 0]

    assert_exact(tf_side(volume, arrays), tf_side(image, arrays))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_other_precisions_are_as_near_to_the_truth(name, dtype, monkeypatch):
    unwrapped(monkeypatch)
    tf_dtype, torch_dtype = DTYPES[dtype]
    arrays, ours, theirs = case(**CASES[name])
    arrays = as_precise(arrays, torch_dtype)
    assert_near(tf_side(ours, arrays, tf_dtype), lambda: torch_side(theirs, arrays), dtype)


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape_and_option(monkeypatch, data):
    unwrapped(monkeypatch)

    def pair(low, high):
        return data.draw(st.integers(low, high)), data.draw(st.integers(low, high))

    window, stride, padding, dilation = pair(1, 4), pair(1, 3), pair(0, 3), pair(1, 3)
    size = tuple(
        max(1, d * (k - 1) + 1 - 2 * p) + data.draw(st.integers(0, 4))
        for k, d, p in zip(window, dilation, padding, strict=True)
    )
    groups, offset_groups = pair(1, 3)
    channels = (math.lcm(groups, offset_groups) * data.draw(st.integers(1, 2)), groups * data.draw(st.integers(1, 3)))
    arrays, ours, theirs = case(
        size, channels, window, stride, padding, dilation, groups, offset_groups,
        bias=data.draw(st.booleans()), mask=data.draw(st.booleans()), batch=data.draw(st.integers(1, 3)),
    )  # fmt: skip
    assert_equal_sums(tf_side(ours, arrays), torch_side(theirs, arrays))


@pytest.mark.parametrize("setting", SETTINGS)
def test_nan_and_infinite_offsets(setting, monkeypatch):
    SETTINGS[setting](monkeypatch)
    arrays, ours, theirs = case(window=(1, 1), padding=(0, 0))
    for value, axis in itertools.product([math.inf, -math.inf, 1e30, -1e30], (0, 1)):
        arrays[1][1, 2, 3, axis] = value
        expected = theirs(*map(torch.from_numpy, arrays))
        np.testing.assert_allclose(ours(*map(tf.constant, arrays)), expected, rtol=0, atol=1e-12)
    # For NaN torchvision reads outside of its memory. Ours says so, there and nowhere else.
    arrays[1][1, 2, 3] = [math.nan, 0]
    assert [tuple(i) for i in np.argwhere(np.isnan(ours(*map(tf.constant, arrays)))[..., 0])] == [(1, 2, 3)]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_unknown_sizes(jit_compile):
    arrays, ours, theirs = case(stride=(2, 1), offset_groups=3)
    specs = [
        tf.TensorSpec((None, None, None, array.shape[-1]) if array.ndim == 4 else array.shape, tf.float64)
        for array in arrays
    ]
    specs[2] = tf.TensorSpec(arrays[2].shape, tf.float64)

    @tf.function(input_signature=specs, autograph=False, jit_compile=jit_compile)
    def value_and_gradients(*arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            output = ours(*arguments)
        return output, *tape.gradient(output, arguments)

    leaves = [torch.from_numpy(array).requires_grad_() for array in arrays]
    output = theirs(*leaves)
    expected = [output, *torch.autograd.grad(output.sum(), leaves)]
    assert_exact([v.numpy() for v in value_and_gradients(*arrays)], [v.detach().numpy() for v in expected])


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_empty_batch(setting, monkeypatch):
    SETTINGS[setting](monkeypatch)
    arrays, ours, _ = case(batch=0)
    output, *gradients = tf_side(ours, arrays)
    assert output.shape == (0, 7, 9, 4)
    assert [g.shape for g in gradients] == [a.shape for a in arrays]
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("setting", SETTINGS)
def test_second_order_gradients(setting, monkeypatch):
    SETTINGS[setting](monkeypatch)
    arrays, ours, _ = case((3, 4), (2, 2), (2, 1), padding=(0, 0), batch=1)
    arrays[1] = np.random.default_rng(1).uniform(-1.2, 1.2, arrays[1].shape)  # where it is smooth
    assert_second_order(ours, arrays)


def test_ints_stand_for_every_axis():
    arrays, _, theirs = case(stride=(2, 2), padding=(1, 1), dilation=(2, 2), mask=False)
    expected = theirs(*map(torch.from_numpy, arrays))
    np.testing.assert_allclose(deform_conv2d(*arrays, stride=2, padding=1, dilation=2), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": np.zeros((2, 7, 9))}, r"input: expected rank 4, got rank 3"),
        ({"input": np.zeros((2, 7, 9, 6), np.int32)}, r"input: expected dtype .*, got int32"),
        ({"input": np.zeros((2, 7, 9, 5))}, r"kernel: expected \(kh, kw, Cin/groups, Cout\) with Cin = 5"),
        ({"input": np.zeros((2, 1, 9, 6)), "padding": 0}, r"input: expected room for the kernel \(3, 3\)"),
        ({"offset": np.zeros((2, 7, 9, 18), np.float32)}, r"offset: expected dtype float64, got float32"),
        ({"offset": np.zeros((2, 7, 9, 17))}, r"offset: expected its last axis to be 2 \* 9 \* G"),
        ({"offset": np.zeros((2, 7, 8, 18))}, r"offset: expected shape \(N, Ho, Wo, 2\*G\*kh\*kw\) = \(2, 7, 9, 18\)"),
        ({"kernel": np.zeros((3, 3, 6))}, r"kernel: expected rank 4"),
        ({"kernel": np.zeros((3, 3, 3, 3))}, r"kernel: expected .* and Cout a multiple of groups, got \(3, 3, 3, 3\)"),
        ({"bias": np.zeros(5)}, r"bias: expected shape \(Cout\) = \(4\), got \(5,\)"),
        ({"mask": np.zeros((2, 7, 9, 18))}, r"mask: expected shape \(N, Ho, Wo, G\*kh\*kw\) = \(2, 7, 9, 9\)"),
        ({"stride": 0}, r"stride: expected an int or 2 ints, at least 1, got 0"),
        ({"padding": (1, 1, 1)}, r"padding: expected an int or 2 ints, at least 0"),
        ({"dilation": 1.5}, r"dilation: expected an int or 2 ints, at least 1, got 1.5"),
    ],
)
def test_wrong_arguments(changes, message):
    arrays, _, _ = case()
    given = dict(zip(("input", "offset", "kernel", "bias", "mask"), arrays, strict=True)) | {"padding": 1}
    with pytest.raises(ValueError, match=message):
        deform_conv2d(**given | changes)


def test_wrong_arguments_of_a_volume():
    arrays, _, _ = case(**VOLUME)
    with pytest.raises(ValueError, match=r"offset: expected its last axis to be 3 \* 8 \* G"):
        deform_conv3d(arrays[0], arrays[1][..., 1:], arrays[2])
