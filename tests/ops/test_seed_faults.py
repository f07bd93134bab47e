"""Faults of earlier TensorFlow ports of these ops: for each the right numbers, and that ours gives them."""

import math

import numpy as np
import pytest
import tensorflow as tf
import torch
import torch.nn.functional as F
import torchvision

from tf_models.ops import deform_conv2d, grid_sample, ms_deform_attn, paste_masks

IMAGE = np.arange(1.0, 10).reshape(1, 3, 3, 1)  # 1 2 3 / 4 5 6 / 7 8 9


def random_case(size, k, stride=1, padding=None, channels=3, filters=4):
    """Arrays of a k x k deformable convolution, and torchvision's output for them."""
    rng = np.random.default_rng(0)
    padding = (k - 1) // 2 if padding is None else padding
    out = [(n + 2 * padding - k) // stride + 1 for n in size]
    x, kernel = rng.standard_normal((2, *size, channels)), rng.standard_normal((k, k, channels, filters))
    offset, mask = rng.standard_normal((2, *out, 2 * k * k)), rng.random((2, *out, k * k))
    first = [torch.from_numpy(a).movedim(-1, 1) for a in (x, offset, mask)]
    weight = torch.from_numpy(kernel).permute(3, 2, 0, 1)
    right = torchvision.ops.deform_conv2d(first[0], first[1], weight, None, stride, padding, 1, first[2])
    return (x, offset, kernel, mask), right.movedim(1, -1).numpy()


class TestDCNv2OfKerasYOLOv4:
    def test_outside_is_zero_and_not_the_edge(self):
        # Half a pixel above the first row, without padding: half of the pixel, where the port clamped to all of it.
        offset = np.zeros((1, 3, 3, 2))
        offset[0, 0, :, 0] = -0.5
        output = deform_conv2d(IMAGE, offset, np.ones((1, 1, 1, 1)))
        assert output.numpy()[0, 0, :, 0].tolist() == [0.5, 1, 1.5]
        clamped = np.maximum(0 + offset[0, 0, :, 0], 0)  # the port's row: 0
        assert IMAGE[0, clamped.astype(int), range(3), 0].tolist() == [1, 2, 3]

    def test_the_bias_is_added(self):
        zeros = np.zeros((1, 3, 3, 2))
        output = deform_conv2d(IMAGE, zeros, np.ones((1, 1, 1, 2)), bias=np.array([10.0, -10]))
        np.testing.assert_array_equal(output.numpy()[0], IMAGE[0] + [10, -10])

    @pytest.mark.parametrize("size", [(7, 9), (8, 9), (7, 8)])
    def test_odd_sizes_at_stride_two_keep_their_last_row_and_column(self, size):
        (x, offset, kernel, mask), right = random_case(size, 3, stride=2)
        output = deform_conv2d(x, offset, kernel, stride=2, padding=1, mask=mask)
        np.testing.assert_allclose(output, right, rtol=0, atol=1e-12)
        assert output.shape[1:3] == tuple(math.ceil(n / 2) for n in size)
        port = tuple((n + 2 * 1 - (3 - 1)) // 2 for n in size)
        assert port == tuple(n // 2 for n in size) != output.shape[1:3]

    @pytest.mark.parametrize(
        ("k", "stride", "padding"), [(5, 2, 2), (3, 3, 1), (3, 1, 0), (3, 1, 2), (2, 1, 1), (4, 2, 1)]
    )
    def test_other_kernels_strides_and_paddings(self, k, stride, padding):
        (x, offset, kernel, mask), right = random_case((9, 11), k, stride, padding)
        output = deform_conv2d(x, offset, kernel, stride=stride, padding=padding, mask=mask)
        np.testing.assert_allclose(output, right, rtol=0, atol=1e-12)


def test_chunked_offsets_are_still_interleaved():
    # torch's module predicts 27 channels, cuts them in three, and joins the first two again: pairs (dy, dx), still.
    rng = np.random.default_rng(0)
    x, predicted = rng.standard_normal((1, 6, 7, 3)), rng.standard_normal((1, 6, 7, 27)) * 2
    kernel = rng.standard_normal((3, 3, 3, 4))
    o1, o2, mask = torch.chunk(torch.from_numpy(predicted).movedim(-1, 1), 3, dim=1)
    weight = torch.from_numpy(kernel).permute(3, 2, 0, 1)
    right = torchvision.ops.deform_conv2d(
        torch.from_numpy(x).movedim(-1, 1), torch.cat([o1, o2], 1), weight, None, 1, 1, 1, mask.sigmoid()
    )
    offset, mask = tf.split(tf.constant(predicted), [18, 9], -1)
    output = deform_conv2d(x, offset, kernel, padding=1, mask=tf.sigmoid(mask))
    np.testing.assert_allclose(output, right.movedim(1, -1), rtol=0, atol=1e-12)
    # Read as a block of y and a block of x:
    blocks = tf.reshape(tf.stack(tf.split(offset, 2, -1), -1), offset.shape)
    assert np.abs(deform_conv2d(x, blocks, kernel, padding=1, mask=tf.sigmoid(mask)) - output).max() > 5


class TestKerasDCNv2:
    @pytest.mark.parametrize("k", [1, 3, 5, 7])
    def test_any_odd_kernel_is_an_ordinary_convolution_at_zero_offset(self, k):
        rng = np.random.default_rng(0)
        x, kernel = rng.standard_normal((1, 8, 9, 2)), rng.standard_normal((k, k, 2, 3))
        output = deform_conv2d(x, np.zeros((1, 8, 9, 2 * k * k)), kernel, padding=(k - 1) // 2)
        np.testing.assert_allclose(output, tf.nn.conv2d(x, kernel, 1, "SAME"), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("k", [5, 7])
    def test_its_limit_was_right_for_a_padding_of_one_only(self, k):
        # It clipped rows of the padded image to height + 1, the last row for padding 1. The last is height + 2*pad - 1.
        height, pad = 8, (k - 1) // 2
        last_used = (height - 1) + (k - 1)
        assert last_used == height + 2 * pad - 1 > height + 1

    def test_strides_dilations_and_groups(self):
        rng = np.random.default_rng(0)
        x, kernel = rng.standard_normal((1, 8, 9, 4)), rng.standard_normal((3, 3, 2, 6))
        offset = rng.standard_normal((1, 3, 7, 36))
        right = torchvision.ops.deform_conv2d(
            torch.from_numpy(x).movedim(-1, 1), torch.from_numpy(offset).movedim(-1, 1),
            torch.from_numpy(kernel).permute(3, 2, 0, 1), None, (2, 1), (1, 1), (2, 2),
        )  # fmt: skip
        output = deform_conv2d(x, offset, kernel, stride=(2, 1), padding=1, dilation=2)
        np.testing.assert_allclose(output, right.movedim(1, -1), rtol=0, atol=1e-12)


class TestGridSamplerBilinear:
    def test_weights_follow_the_offsets(self):
        # Two fifths to the right: 1.4, 2.4, ... The port took the weights of the grid before the offsets: 1, 2, ...
        offset = np.zeros((1, 3, 3, 2))
        offset[..., 1] = 0.4
        output = deform_conv2d(IMAGE, offset, np.ones((1, 1, 1, 1)))
        np.testing.assert_allclose(output.numpy()[0, :, :2, 0], [[1.4, 2.4], [4.4, 5.4], [7.4, 8.4]], rtol=1e-15)

    @pytest.mark.parametrize("channels", [3, 5])
    def test_columns_have_nine_times_the_channels_and_stay_in_their_sample(self, channels):
        # The port reshaped to 9 * 9 columns; with 3 channels three samples of a batch became one.
        (x, offset, kernel, mask), right = random_case((5, 6), 3, channels=channels)
        np.testing.assert_allclose(deform_conv2d(x, offset, kernel, padding=1, mask=mask), right, rtol=0, atol=1e-12)

    def test_an_image_that_is_not_square_keeps_its_axes(self):
        x = np.arange(12.0).reshape(1, 2, 6, 1)
        np.testing.assert_array_equal(deform_conv2d(x, np.zeros((1, 2, 6, 2)), np.ones((1, 1, 1, 1))), x)


class TestBilinearSampler:
    @pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
    def test_pixels_may_be_areas_and_the_outside_other_than_zero(self, padding_mode):
        rng = np.random.default_rng(0)
        x, grid = rng.standard_normal((2, 4, 5, 3)), rng.uniform(-1.5, 1.5, (2, 3, 7, 2))
        right = F.grid_sample(
            torch.from_numpy(x).movedim(-1, 1), torch.from_numpy(grid), padding_mode=padding_mode, align_corners=False
        ).movedim(1, -1)
        output = grid_sample(x, grid, padding_mode=padding_mode)
        np.testing.assert_allclose(output, right, rtol=0, atol=1e-12)
        # What it could do only:
        assert np.abs(grid_sample(x, grid, align_corners=True) - output).max() > 0.5

    def test_float64_works(self):
        assert grid_sample(IMAGE, np.zeros((1, 1, 1, 2))).dtype == tf.float64


class TestMSDeformAttnFunction:
    def test_locations_count_from_the_edges_of_the_map(self):
        # 0.5 pixels from the left edge is the centre of the first pixel. The port took 0 and 1 for centres.
        value = np.array([1.0, 2, 3, 4]).reshape(1, 4, 1, 1)
        for x, right, port in ((0.125, 1, 1.375), (0.25, 1.5, 1.75), (0.5, 2.5, 2.5), (0.875, 4, 3.625), (0.0, 0.5, 1)):
            location = np.array([x, 0.5]).reshape(1, 1, 1, 1, 1, 2)
            output = ms_deform_attn(value, [(1, 4)], location, np.ones((1, 1, 1, 1, 1)))
            assert output.numpy().item() == pytest.approx(right, abs=1e-15)
            corners = grid_sample(value.reshape(1, 1, 4, 1), 2 * location[:, :, 0, 0] - 1, align_corners=True)
            assert corners.numpy().item() == pytest.approx(port, abs=1e-15)

    def test_nearest_outside_is_zero(self):
        grid = np.array([[-3.0, 0], [3, 0], [0, -3], [0, 0]]).reshape(1, 1, 4, 2)
        assert grid_sample(IMAGE, grid, mode="nearest").numpy().ravel().tolist() == [0, 0, 0, 5]

    def test_locations_are_x_then_y_and_offsets_y_then_x(self):
        x = np.arange(12.0).reshape(1, 2, 6, 1)
        location = np.array([4.5 / 6, 0.5 / 2]).reshape(1, 1, 1, 1, 1, 2)
        attended = ms_deform_attn(x.reshape(1, 12, 1, 1), [(2, 6)], location, np.ones((1, 1, 1, 1, 1)))
        assert attended.numpy().item() == pytest.approx(4)
        offset = np.zeros((1, 2, 6, 2))
        offset[0, 0, 0] = [1, 3]  # a row down, three columns right
        assert deform_conv2d(x, offset, np.ones((1, 1, 1, 1))).numpy()[0, 0, 0, 0] == 9


class TestPasteMasks:
    def test_pixel_centres(self):
        rng = np.random.default_rng(0)
        masks, boxes = rng.random((3, 5, 5)), np.array([[1.0, 2, 9, 8], [-2.5, 0, 6, 7.5], [3, 3, 4, 12]])
        right = torchvision.models.detection.roi_heads.paste_masks_in_image(
            torch.from_numpy(masks)[:, None], torch.from_numpy(boxes), (11, 13)
        )[:, 0]
        np.testing.assert_allclose(paste_masks(masks, boxes, (11, 13)), right, rtol=0, atol=1e-12)

    def test_a_box_without_width_gives_no_nan(self):
        boxes = np.array([[3.0, 2, 3, 8], [4, 4, 4, 4]])
        assert np.isfinite(paste_masks(np.ones((2, 5, 5)), boxes, (11, 13))).all()
