"""What circulating TensorFlow versions of these layers get wrong, each by a small formula, and by how much.

All inputs are standard normal, all outputs of about unit size; the differences are those that docs/models.md names.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_models.ops import deform_conv2d, grid_sample, ms_deform_attn


def measured(right, wrong):
    """The largest difference, in standard deviations of what is right."""
    right, wrong = np.asarray(right), np.asarray(wrong)
    return float(np.abs(right - wrong).max() / right.std())


def dcn(k=3, size=(9, 11), padding=None, spread=2.0, channels=8):
    rng = np.random.default_rng(0)
    padding = (k - 1) // 2 if padding is None else padding
    out = [n + 2 * padding - k + 1 for n in size]
    x, kernel = (
        rng.standard_normal((2, *size, channels)),
        rng.standard_normal((k, k, channels, 4)) / np.sqrt(k * k * channels),
    )
    predicted = rng.standard_normal((2, *out, 3 * k * k))
    return x, spread * predicted[..., : 2 * k * k], kernel, 1 / (1 + np.exp(-predicted[..., 2 * k * k :])), padding


def found(name, value):
    """Printed with `pytest -s`, for the documentation."""
    print(f"{name}: {value:.2f}")
    return value


def test_keras_yolov4_repeats_the_edge_where_there_is_no_padding():
    x, offset, kernel, mask, padding = dcn(padding=0)
    right = deform_conv2d(x, offset, kernel, padding=padding, mask=mask)
    # Its positions are clamped to the padded image, whose border is zero only if there is any.
    ky, kx = (taps.reshape(-1) for taps in np.meshgrid(range(3), range(3), indexing="ij"))
    moved = offset.reshape(*offset.shape[:3], 9, 2)
    y = np.arange(moved.shape[1])[:, None, None] + ky + moved[..., 0]
    across = np.arange(moved.shape[2])[:, None] + kx + moved[..., 1]
    grid = np.stack([2 * across / 10 - 1, 2 * y / 8 - 1], -1).reshape(2, -1, 9, 2)  # (N, Ho*Wo, K, 2)
    columns = grid_sample(x, grid, padding_mode="border", align_corners=True) * mask.reshape(2, -1, 9, 1)
    wrong = tf.einsum("npkc,kcf->npf", columns, kernel.reshape(9, 8, 4))
    assert 1 < found("edge", measured(right, tf.reshape(wrong, right.shape))) < 10
    inside = deform_conv2d(x, offset * 0, kernel, padding=padding, mask=mask)
    np.testing.assert_allclose(  # the formula is right where nothing leaves the image
        tf.einsum(
            "npkc,kcf->npf",
            grid_sample(
                x,
                (grid - np.stack([2 * moved[..., 1] / 10, 2 * moved[..., 0] / 8], -1).reshape(grid.shape)),
                padding_mode="border",
                align_corners=True,
            )
            * mask.reshape(2, -1, 9, 1),
            kernel.reshape(9, 8, 4),
        ),
        tf.reshape(inside, (2, -1, 4)),
        rtol=0,
        atol=1e-12,
    )


def test_offsets_are_pairs_and_no_blocks():
    x, offset, kernel, mask, padding = dcn()
    right = deform_conv2d(x, offset, kernel, padding=padding, mask=mask)
    blocks = np.stack(np.split(offset, 2, -1), -1).reshape(offset.shape)
    assert 2 < found("blocks", measured(right, deform_conv2d(x, blocks, kernel, padding=padding, mask=mask))) < 10
    swapped = offset.reshape(*offset.shape[:3], 9, 2)[..., ::-1].reshape(offset.shape)
    assert 2 < found("(x, y)", measured(right, deform_conv2d(x, swapped, kernel, padding=padding, mask=mask))) < 10


@pytest.mark.parametrize("k", [3, 5, 7])
def test_keras_dcnv2_loses_the_last_rows_beyond_3x3(k):
    x, offset, kernel, _, padding = dcn(k)
    right = deform_conv2d(x, 0 * offset, kernel, padding=padding)
    # It clips rows of the padded image to height + 1, where both weights of a row vanish.
    cut = x.copy()
    lost = padding - 1
    cut[:, x.shape[1] - lost :], cut[:, :, x.shape[2] - lost :] = 0, 0
    difference = found(
        f"{k}x{k} at offset zero", measured(right, deform_conv2d(cut, 0 * offset, kernel, padding=padding))
    )
    assert difference == 0 if k == 3 else 1 < difference < 10


def test_without_a_bias_the_output_is_off_by_it():
    x, offset, kernel, mask, padding = dcn()
    bias = np.array([1.0, -2, 0.5, 3])
    right = deform_conv2d(x, offset, kernel, bias, padding=padding, mask=mask)
    wrong = deform_conv2d(x, offset, kernel, padding=padding, mask=mask)
    np.testing.assert_allclose(right - wrong, np.broadcast_to(bias, right.shape), rtol=0, atol=1e-12)


def test_weights_of_the_positions_before_the_offsets():
    x, offset, kernel, mask, padding = dcn()
    right = deform_conv2d(x, offset, kernel, padding=padding, mask=mask)
    # GridSamplerBilinear gathers around the shifted position, but weighs by where the unshifted one is: for an offset o
    # with -floor(o) and floor(o) + 1, in place of the fraction and its complement.
    whole = np.floor(offset).reshape(*offset.shape[:3], 9, 2)
    wrong, check = 0.0, 0.0
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        at = (whole + corner).reshape(offset.shape)
        fraction = offset.reshape(whole.shape) - whole
        factors = [np.where(corner, amount, 1 - amount).prod(-1) for amount in (-whole, fraction)]
        wrong += deform_conv2d(x, at, kernel, padding=padding, mask=mask * factors[0])
        check += deform_conv2d(x, at, kernel, padding=padding, mask=mask * factors[1])
    np.testing.assert_allclose(check, right, rtol=0, atol=1e-12)
    assert found("weights without offsets", measured(right, wrong)) > 5


def test_detr_tensorflow_samples_between_the_corners():
    rng = np.random.default_rng(0)
    shapes = ((12, 16), (6, 8), (3, 4))
    value = rng.standard_normal((2, sum(h * w for h, w in shapes), 4, 8))
    locations = rng.uniform(-0.05, 1.05, (2, 50, 4, 3, 4, 2))
    logits = rng.standard_normal((2, 50, 4, 12))
    weights = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).reshape(2, 50, 4, 3, 4)
    right = ms_deform_attn(value, shapes, locations, weights)

    def by_level(align_corners, order=(0, 1)):
        total, start = 0.0, 0
        for level, (h, w) in enumerate(shapes):
            maps = value[:, start : start + h * w].transpose(0, 2, 1, 3).reshape(8, h, w, 8)
            grid = 2 * locations[:, :, :, level][..., list(order)].transpose(0, 2, 1, 3, 4).reshape(8, 50, 4, 2) - 1
            sampled = tf.reshape(grid_sample(maps, grid, align_corners=align_corners), (2, 4, 50, 4, 8))
            total += tf.einsum("nmqpd,nqmp->nqmd", sampled, weights[:, :, :, level])
            start += h * w
        return tf.reshape(total, right.shape)

    np.testing.assert_allclose(by_level(False), right, rtol=0, atol=1e-12)
    assert 0.5 < found("align_corners=True", measured(right, by_level(True))) < 6
    assert 2 < found("locations as (y, x)", measured(right, by_level(False, (1, 0)))) < 10


def test_softmax_runs_over_levels_and_points_together():
    rng = np.random.default_rng(0)
    shapes = ((4, 5), (2, 3))
    value, locations = rng.standard_normal((1, 26, 2, 4)), rng.random((1, 9, 2, 2, 4, 2))
    logits = rng.standard_normal((1, 9, 2, 2, 4))
    joint = keras.ops.softmax(logits.reshape(1, 9, 2, 8)).numpy().reshape(logits.shape)
    right = ms_deform_attn(value, shapes, locations, joint)
    apart = ms_deform_attn(value, shapes, locations, keras.ops.softmax(logits).numpy())
    assert 1 < found("softmax over points alone", measured(right, apart)) < 10
