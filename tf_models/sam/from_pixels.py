"""Segment Anything from pixels to masks in TensorFlow ops alone, as an exported graph needs it.

It does what `Predictor` does with Pillow and numpy: the picture is scaled to the same bits, and the logits by the same
linear map.
"""

from typing import Any

import numpy as np
import tensorflow as tf

_BITS = 22  # of Pillow's fixed-point weights behind the point


def segment(
    model: Any,
    image: Any,
    point_coords: Any = None,
    point_labels: Any = None,
    boxes: Any = None,
    multimask_output: bool = True,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Predict the masks of B prompts.

    Args:
        model: a `Sam`.
        image: (H, W, 3), uint8, RGB, of any size.
        point_coords: (B, N, 2), (x, y) in pixels of the picture.
        point_labels: (B, N): 1 foreground, 0 background, -1 not a point.
        boxes: (B, 4), (x0, y0, x1, y1) in pixels of the picture.
        multimask_output: three masks a prompt, or one.

    Returns:
        logits (B, K, H, W), above the model's threshold inside a mask; iou (B, K), the estimated quality of each.
    """
    side = model.image_encoder.img_size
    size = tf.shape(image)[:2]
    # As `ResizeLongestSide.get_preprocess_shape`; a long picture's short side keeps a pixel here.
    scale = tf.cast(side, tf.float64) / tf.cast(tf.reduce_max(size), tf.float64)
    inner = tf.maximum(tf.cast(tf.cast(size, tf.float64) * scale + 0.5, tf.int32), 1)  # (h, w)
    pixels = (tf.cast(scaled(image, inner), tf.float32) - model.pixel_mean) / model.pixel_std
    pixels = tf.pad(pixels, [[0, side - inner[0]], [0, side - inner[1]], [0, 0]])
    features = model.image_encoder(tf.ensure_shape(pixels, (side, side, 3))[None])

    ratio = tf.cast(inner / size, tf.float64)[::-1]  # of x and y
    if point_coords is not None:
        point_coords = tf.cast(tf.cast(point_coords, tf.float64) * ratio, tf.float32)
    if boxes is not None:
        boxes = tf.cast(tf.cast(boxes, tf.float64) * tf.tile(ratio, [2]), tf.float32)
    low, iou = model.decode(features, point_coords, point_labels, boxes, multimask_output=multimask_output)
    rows, columns = (_to_picture(low.shape[1 + axis], side, inner[axis], size[axis]) for axis in (0, 1))
    logits = tf.einsum("yh,bhwk,xw->bkyx", rows, tf.cast(low, tf.float32), columns)
    return logits, tf.cast(iou, tf.float32)


def scaled(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """image (H, W, 3), uint8, to a size (h, w), as Pillow does with its bilinear filter, bit for bit."""
    wide = _along_rows(tf.cast(image, tf.float64), size[1])
    return tf.cast(tf.transpose(_along_rows(tf.transpose(wide, (1, 0, 2)), size[0]), (1, 0, 2)), tf.uint8)


def _along_rows(image: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """(H, W, 3) -> (H, length, 3): whole numbers of 8 bits, in float64, in which Pillow's sums are exact.

    Each output is the mean of the pixels below a triangle, which is as wide as two steps of the larger grid.
    """
    old = tf.shape(image)[1]
    step = tf.cast(old, tf.float64) / tf.cast(length, tf.float64)
    reach = tf.maximum(step, 1.0)
    middle = (tf.cast(tf.range(length), tf.float64) + 0.5) * step
    first = tf.maximum(tf.cast(middle - reach + 0.5, tf.int32), 0)
    last = tf.minimum(tf.cast(middle + reach + 0.5, tf.int32), old)
    taps = first[:, None] + tf.range(tf.cast(tf.math.ceil(reach), tf.int32) * 2 + 1)  # (length, T)
    weights = tf.maximum(1 - tf.abs((tf.cast(taps, tf.float64) - middle[:, None] + 0.5) / reach), 0.0)
    weights = tf.where(taps < last[:, None], weights, 0.0)
    weights /= tf.reduce_sum(weights, axis=1, keepdims=True)
    weights = tf.floor(0.5 + weights * 2.0**_BITS)
    taps = tf.minimum(taps, old - 1)

    def add(tap: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tap + 1, total + tf.gather(image, taps[:, tap], axis=1) * weights[:, tap, None]

    start = tf.fill([tf.shape(image)[0], length, 3], tf.constant(2.0 ** (_BITS - 1), tf.float64))
    _, total = tf.while_loop(lambda tap, _: tap < tf.shape(taps)[1], add, (0, start))
    return tf.clip_by_value(tf.floor(total / 2.0**_BITS), 0.0, 255.0)


def _to_picture(low: int, side: int, inner: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Along one axis: logits (low) -> the padded input (side), cut to inner, -> the picture (size); as (size, low)."""
    first = np.zeros((side, low))
    position = np.maximum((np.arange(side) + 0.5) * (low / side) - 0.5, 0.0)
    before = np.minimum(position.astype(int), low - 1)
    fraction = position - before
    first[np.arange(side), before] += 1 - fraction
    first[np.arange(side), np.minimum(before + 1, low - 1)] += fraction

    step = tf.cast(inner, tf.float64) / tf.cast(size, tf.float64)
    place = tf.maximum((tf.cast(tf.range(size), tf.float64) + 0.5) * step - 0.5, 0.0)
    left = tf.minimum(tf.cast(place, tf.int32), inner - 1)
    part = (place - tf.cast(left, tf.float64))[:, None]
    both = (1 - part) * tf.gather(first, left) + part * tf.gather(first, tf.minimum(left + 1, inner - 1))
    return tf.cast(both, tf.float32)
