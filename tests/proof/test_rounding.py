"""The rule for what float32 may be off: right results pass in any order of their sums, and wrong ones do not."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
import torch.nn.functional as F
from torch import nn

from converter import rounding
from converter.torch_side.rounded import Exact, Rounded, exactly
from tests.support.rule import assert_allowed

UNIT = rounding.UNITS["float32"]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers that float32 holds, as float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def measured(compute) -> tuple[np.ndarray, list[np.ndarray]]:
    """The truth of one torch computation, and what roundings move it by."""
    with exactly(Exact()):
        truth = np.asarray(compute().detach())
    moved = []
    for seed in range(rounding.runs_for(truth.size)):
        with exactly(Rounded(seed)) as mode:
            moved.append(np.asarray(compute().detach()) - truth)
        assert not mode.unknown
    return truth, moved


def judged(ours, compute) -> rounding.Judgement:
    """One result against one torch computation."""
    return rounding.judge(np.asarray(ours, np.float64), *measured(compute))


# --- Sums, in any order ----------------------------------------------------------------------------------------------


def one_by_one(terms: np.ndarray) -> np.ndarray:
    return np.add.accumulate(terms, axis=-1, dtype=np.float32)[..., -1]


def in_pairs(terms: np.ndarray) -> np.ndarray:
    while terms.shape[-1] > 1:
        if terms.shape[-1] % 2:
            terms = np.concatenate([terms, np.zeros_like(terms[..., :1])], -1)
        terms = terms[..., ::2] + terms[..., 1::2]
    return terms[..., 0]


ORDERS = {
    "one by one": one_by_one,
    "reversed": lambda terms: one_by_one(terms[..., ::-1]),
    "smallest first": lambda terms: one_by_one(np.sort(terms)),
    "largest magnitude first": lambda terms: one_by_one(np.take_along_axis(terms, np.argsort(-abs(terms)), -1)),
    "in pairs": in_pairs,
}
TERMS = {
    "normal": lambda x: x,
    "positive": abs,
    "one huge first": lambda x: np.concatenate([np.full_like(x[..., :1], 1e4), x[..., 1:]], -1),
    "positive, then negative": lambda x: np.concatenate([abs(x), -abs(x[..., ::-1]) * np.float32(0.999)], -1),
    "equal": lambda x: np.broadcast_to(x[..., :1], x.shape),
    "nearly equal": lambda x: (x[..., :1] + np.float32(1e-7) * x).astype(np.float32),
    "equal but for some": lambda x: np.where(x > 0.5, x, x[..., :1]),
}


def ratios(order: str, terms: str, length: int, seeds: int = 10) -> list[float]:
    found = []
    for seed in range(seeds):
        x = TERMS[terms](np.random.default_rng(seed).standard_normal((20, length)).astype(np.float32))
        found.append(judged(ORDERS[order](x), lambda: torch.from_numpy(x.astype(np.float64)).sum(-1)).ratio)  # noqa: B023
    return found


@pytest.mark.parametrize("length", [3, 30, 1000, 20000])
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("order", ORDERS)
def test_a_sum_in_any_order_is_allowed(order, terms, length):
    assert max(ratios(order, terms, length, 3 if length > 1000 else 10)) <= 1


@pytest.mark.parametrize(
    ("terms", "length"), [("normal", 30), ("normal", 1000), ("positive", 30), ("positive", 1000), ("positive", 20000)]
)
def test_a_usual_sum_uses_a_fair_part_of_what_is_allowed(terms, length):
    assert np.median(ratios("one by one", terms, length)) > 0.01


@pytest.mark.parametrize("terms", ["normal", "positive", "positive, then negative"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_product_of_matrices_is_a_sum_in_any_order(order, terms):
    for seed in range(5):
        x, w = (np.random.default_rng(seed + i).standard_normal((12, 400)).astype(np.float32) for i in (0, 50))
        x, w = TERMS[terms](x), abs(np.concatenate([w, w], -1))[:, : TERMS[terms](x).shape[-1]]
        ours = ORDERS[order](x[:, None] * w)
        assert judged(ours, lambda: torch.from_numpy(x).double() @ torch.from_numpy(w).double().T)  # noqa: B023


# --- Both frameworks' own kernels ------------------------------------------------------------------------------------


def last(value: torch.Tensor) -> np.ndarray:
    return value.detach().movedim(1, -1).numpy()


KERNEL, WIDE, MIXED = numbers(8, 6, 3, 3, seed=1), numbers(5, 40, seed=2), numbers(2, 6, 9, 11)
GRID = numbers(2, 7, 5, 2, seed=3).clamp(-1.2, 1.2)
# name -> torch's computation, and TensorFlow's where it has one; of one tensor, whose channels come second where it is
# an image.
KERNELS = {
    "convolution": (
        MIXED,
        lambda x: F.conv2d(x, KERNEL.to(x.dtype), padding=1),
        lambda x: tf.nn.conv2d(x, tf.constant(KERNEL.permute(2, 3, 1, 0).float().numpy()), 1, "SAME"),
    ),
    "product": (WIDE, lambda x: x @ x.mT, lambda x: x @ tf.transpose(x)),
    "distances": (
        WIDE + 3,
        lambda x: torch.cdist(x, x[:3].flip(0) + 0.01),
        lambda x: tf.sqrt(tf.reduce_sum((x[:, None] - x[None, 2::-1] - 0.01) ** 2, -1)),
    ),
    "distances by products": (
        numbers(30, 40) + 3,
        lambda x: torch.cdist(x, x.flip(0) + 0.01),
        lambda x: tf.norm(x[:, None] - x[None, ::-1] - 0.01, axis=-1),
    ),
    "long product": (numbers(4, 9000), lambda x: x @ x.mT, lambda x: x @ tf.transpose(x)),
    "layer norm": (WIDE + 20, lambda x: F.layer_norm(x, (40,)), keras.layers.LayerNormalization(epsilon=1e-5)),
    "group norm": (MIXED, lambda x: F.group_norm(x, 3), keras.layers.GroupNormalization(3, epsilon=1e-5)),
    "softmax": (10 * WIDE, lambda x: x.softmax(-1), tf.nn.softmax),
    "log softmax": (10 * WIDE, lambda x: x.log_softmax(-1), tf.nn.log_softmax),
    "gelu": (3 * WIDE, F.gelu, lambda x: tf.nn.gelu(x, approximate=False)),
    "tanh": (3 * WIDE, torch.tanh, tf.tanh),
    "silu": (3 * WIDE, F.silu, tf.nn.silu),
    "mean": (MIXED.abs(), lambda x: x.mean((2, 3)), lambda x: tf.reduce_mean(x, (1, 2))),
    "resize": (
        MIXED,
        lambda x: F.interpolate(x, (20, 17), mode="bilinear"),
        lambda x: tf.image.resize(x, (20, 17)),
    ),
    "bicubic": (MIXED, lambda x: F.interpolate(x, (20, 17), mode="bicubic"), None),
    "grid sample": (MIXED, lambda x: F.grid_sample(x, GRID.to(x.dtype), align_corners=False), None),
    "transposed": (MIXED, lambda x: F.conv_transpose2d(x, KERNEL[:6].to(x.dtype), stride=2), None),
}  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_of_both_frameworks_are_allowed(name):
    x, theirs, ours = KERNELS[name]
    arrange = last if x.ndim == 4 else lambda value: value.detach().numpy()
    truth = lambda: torch.from_numpy(arrange(theirs(x)))  # noqa: E731
    results = [arrange(theirs(x.float()))]
    if ours is not None:
        results.append(np.asarray(ours(tf.constant(arrange(x.float())))))
    for result in results:
        found = judged(result, truth)
        assert found
        assert found.ratio > 0.0002, "what is allowed says nothing"
        exact = np.asarray(truth())
        wrong = np.array(result, np.float64)
        place = np.unravel_index(np.abs(exact).argmax(), exact.shape)
        wrong[place] += 10 * rounding.allowance(*measured(truth))[place]
        assert not judged(wrong, truth)


def test_a_result_of_few_values_takes_enough_runs():
    assert [rounding.runs_for(values) for values in (1, 2, 5, 6, 1000)] == [6, 3, 3, 3, 1]
    for seed in range(100):
        x = numbers(50, seed=seed)
        assert judged(x.float().sum(), lambda: x.sum())  # noqa: B023


# --- The magnitudes that a rule goes by ------------------------------------------------------------------------------

CONVOLUTIONS = {
    "plain": (nn.Conv2d, {"padding": 1}),
    "groups": (nn.Conv2d, {"groups": 2}),
    "depthwise": (nn.Conv2d, {"groups": 4}),
    "dilated, strided": (nn.Conv2d, {"dilation": 2, "stride": 2, "padding": (1, 2)}),
    "no bias": (nn.Conv2d, {"bias": False}),
    "transposed": (nn.ConvTranspose2d, {"stride": 2}),
    "transposed, groups": (nn.ConvTranspose2d, {"stride": (2, 3), "groups": 2, "padding": 1, "output_padding": (1, 2)}),
    "transposed, dilated": (nn.ConvTranspose2d, {"dilation": 2}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolutions_magnitudes_bound_the_sum_of_its_terms_magnitudes(name):
    """Every value is moved by so much, up or down: by no less than the sum's rule says of the true magnitudes."""
    make, options = CONVOLUTIONS[name]
    module, magnitudes = (make(4, 8, 3, **options).double().requires_grad_(False) for _ in range(2))
    for mine, its in zip(module.parameters(), magnitudes.parameters(), strict=True):
        its.copy_(mine.abs())
    x = numbers(2, 4, 9, 11)
    with exactly(Exact()):
        truth, size = module(x), magnitudes(x.abs())
    with exactly(Rounded(0)):
        rounded = module(x)
    moved = (rounded - truth).abs() / UNIT / 0.6  # the least size of a sign
    assert (moved >= 0.2 * (size + truth.abs()) * (1 - 1e-6)).all()
    if make is nn.Conv2d:  # of a transposed one some taps fall between the pixels, but are counted
        assert moved.max() <= 4 * 0.2 * 37**0.5 * (size + truth.abs()).max(), "far more than for 36 terms"


# --- What a mode does to the tensors ---------------------------------------------------------------------------------


def test_operations_in_place_are_rounded_and_stay_in_place():
    given = numbers(6, 7)

    def compute():
        x = given.clone()
        part = x[:2]
        part.mul_(3).add_(1).sigmoid_()
        x.div_(7)
        return x

    with exactly(Exact()):
        truth = compute()
    with exactly(Rounded(0)) as mode:
        rounded = compute()
    assert not mode.unknown
    np.testing.assert_allclose(truth[:2], (3 * given[:2] + 1).sigmoid() / 7, rtol=1e-15)
    np.testing.assert_array_equal(truth[2:], given[2:] / 7)
    assert ((rounded - truth) != 0).all()
    assert_allowed([compute().float()], lambda: [compute()])


def test_a_result_does_not_share_memory_with_its_arguments():
    x, norm = numbers(4, 6, 5, 5), nn.BatchNorm2d(6).double()
    before = x.clone()
    with exactly(Rounded(0)):
        first = norm.train()(x)
        second = first + 1
        second.mul_(0)
        F.relu(x, inplace=False).zero_()
        x.view(-1).clone().zero_()
    assert (x == before).all()
    assert first.std() > 0.5


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 100.0])
def test_indices_that_are_added_up_are_exact(value):
    x = torch.full((5,), value, dtype=torch.float64)
    with exactly(Rounded(0)):
        assert (x * 2 + 1 - 0.5 == 2 * value + 0.5).all()
        assert (x * 0.3 != 0.3 * value).all() or not value


# --- Values that differ much in size ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(400, 3), (5, 100, 1), (600,)])
def test_a_large_value_does_not_excuse_small_ones_beside_it(shape):
    """Scores with -1e9 where a mask is: what is wrong at the others shows."""
    scores = numbers(*shape)
    masked = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.1

    def compute(factor: float = 1.0) -> torch.Tensor:
        return (factor * scores / 3).masked_fill(masked, -1e9)

    assert judged(compute().float(), compute)
    assert not judged(compute(1 + 1e-5), compute)


def test_sums_that_cancel_are_judged_by_their_terms():
    """Small values that are the rest of larger ones, in a channel with large ones, and no value in between."""
    for seed in range(50):
        x = numbers(200, 40, seed=seed)
        x[:100] *= 1e5
        flat = x.float()
        assert judged(flat - flat.mean(-1, keepdim=True), lambda: x - x.mean(-1, keepdim=True))  # noqa: B023
