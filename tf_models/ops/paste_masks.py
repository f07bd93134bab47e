"""Paste the masks which a detector predicts inside its boxes into images."""

from typing import Any

import tensorflow as tf

from tf_models.ops import checks
from tf_models.ops.precision import opmath, rounded

# A border of zeros, in mask samples, so that a mask fades out at the edge of its box.
_PADDING = 1


@tf.autograph.experimental.do_not_convert
def paste_masks(masks: Any, boxes: Any, image_shape: Any) -> tf.Tensor:
    """Resize each mask to its box and put it into an image which is zero elsewhere.

    Args:
        masks: (N, h, w) or (N, h, w, 1), probabilities; float32, float64, float16 or bfloat16. Half types are computed
            in float32 and rounded once.
        boxes: (N, 4), corners (x1, y1, x2, y2) in pixels of the image; any of the float dtypes.
        image_shape: (H, W) of the image in pixels: ints (one for both), or int32/int64 tensors (a vector or two
            scalars), which under `jit_compile=True` must be constants.

    Returns:
        (N, H, W) or (N, H, W, 1) like `masks`, in its dtype. A box beyond the image, an inverted or a non-finite box
        gives zeros, one without extent its pixel.

    Raises:
        ValueError: an argument of a wrong rank, shape or dtype.

    Follows `torchvision.models.detection.roi_heads.paste_masks_in_image` with padding 1: the mask is padded, the box
    grown by the same ratio (that of the width, for both axes) and truncated to whole pixels, of which it covers both
    ends; then bilinear with pixel centers (align_corners=False). Differentiable with respect to `masks`.
    """
    masks = checks.tensor("masks", masks, rank=(3, 4))
    boxes = checks.tensor("boxes", boxes, rank=2)
    if masks.shape.rank == 4:
        checks.shape("masks", masks, "N h w 1", (None, None, None, 1))
        return paste_masks(tf.squeeze(masks, axis=-1), boxes, image_shape)[..., None]
    checks.shape("boxes", boxes, "N 4", (masks.shape[0], 4))
    height, width = checks.sizes("image_shape", image_shape, 2, 0)
    dtype = opmath(masks.dtype)
    mask_height, mask_width = tf.shape(masks)[1], tf.shape(masks)[2]
    x1, y1, x2, y2 = tf.unstack(_whole_pixels(boxes, mask_width), num=4, axis=1)
    rows = tf.cast(_weights(y1, y2, mask_height, height), dtype)  # (N, H, h)
    columns = tf.cast(_weights(x1, x2, mask_width, width), dtype)  # (N, W, w)
    images = tf.matmul(tf.matmul(rows, tf.cast(masks, dtype)), columns, transpose_b=True)
    return tf.cast(images, masks.dtype)


def _whole_pixels(boxes: tf.Tensor, mask_width: tf.Tensor) -> tf.Tensor:
    """Boxes grown as the padding grows a mask, truncated towards zero: (N, 4), float64."""
    boxes = tf.cast(boxes, opmath(boxes.dtype))
    low, high = boxes[:, :2], boxes[:, 2:]
    growth = tf.cast(mask_width + 2 * _PADDING, tf.float64) / tf.cast(mask_width, tf.float64)
    center = (high + low) * 0.5
    extent = rounded((high - low) * 0.5 * tf.cast(growth, boxes.dtype))
    grown = tf.concat([center - extent, center + extent], axis=1)
    return tf.cast(tf.where(grown < 0, tf.math.ceil(grown), tf.floor(grown)), tf.float64)


def _weights(first: tf.Tensor, last: tf.Tensor, mask_size: tf.Tensor, image_size: int | tf.Tensor) -> tf.Tensor:
    """What each sample of a mask gives to each pixel along one axis, (N, image_size, mask_size), float64."""
    pixel = tf.range(image_size)
    pixel = tf.cast(pixel, tf.float64)[None, :]
    first, last = first[:, None], last[:, None]  # (N, 1)
    padded = tf.cast(mask_size + 2 * _PADDING, tf.float64)
    position = (pixel - first + 0.5) * (padded / tf.maximum(last - first + 1, 1.0)) - 0.5
    position = tf.clip_by_value(position, 0.0, padded - 1)
    # Samples of the mask itself: the padding is zero and gives nothing.
    sample = tf.cast(tf.range(mask_size) + _PADDING, tf.float64)
    weights = tf.maximum(1.0 - tf.abs(position[:, :, None] - sample), 0.0)
    inside = (pixel >= first) & (pixel <= last) & tf.math.is_finite(last - first)
    return tf.where(inside[:, :, None], weights, tf.zeros_like(weights))
