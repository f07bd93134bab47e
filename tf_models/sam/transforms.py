"""How a picture and its prompts become SAM's input: scaled so that the longest side fits, normalised and padded."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class ResizeLongestSide:
    """Scales pictures, points and boxes so that a picture's longest side becomes `target_length` pixels.

    Follows segment-anything's class of this name.
    """

    def __init__(self, target_length: int) -> None:
        self.target_length = target_length

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """Scale one picture as Pillow does, on which the published models were trained.

        image (H, W, 3), uint8 -> (h, w, 3), uint8.

        Raises:
            ValueError: the picture is so long that its short side would vanish.
        """
        from PIL import Image

        height, width = self._target(image.shape[:2])
        picture = Image.fromarray(np.ascontiguousarray(image))
        return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))

    def apply_images(self, images: Any) -> Any:
        """Scale a batch of pictures in floating point; not the very values of `apply_image`, which rounds.

        images (N, H, W, C), float tensor -> (N, h, w, C). Equals torch's antialiased bilinear `interpolate`.
        (segment-anything's `apply_image_torch` takes the batch and channel axes for height and width; this does not.)

        Raises:
            ValueError: the pictures are so long that their short side would vanish.
        """
        from tf_models.ops import interpolate

        return interpolate(images, size=self._target(images.shape[1:3]), mode="bilinear", antialias=True)

    def apply_coords(self, coords: Any, original_size: Sequence[int]) -> np.ndarray:
        """Scale points: coords (..., 2) as (x, y) in pixels of a picture of `original_size` (H, W) -> float64."""
        old_h, old_w = original_size
        new_h, new_w = self.get_preprocess_shape(old_h, old_w, self.target_length)
        return np.asarray(coords, np.float64) * (new_w / old_w, new_h / old_h)

    def apply_boxes(self, boxes: Any, original_size: Sequence[int]) -> np.ndarray:
        """Scale boxes: (..., 4) as (x0, y0, x1, y1) in pixels of a picture of `original_size` (H, W) -> (B, 4)."""
        corners = np.asarray(boxes, np.float64).reshape(-1, 2, 2)
        return self.apply_coords(corners, original_size).reshape(-1, 4)

    def _target(self, size: Sequence[int]) -> tuple[int, int]:
        height, width = size
        target = self.get_preprocess_shape(height, width, self.target_length)
        if 0 in target:
            raise ValueError(
                f"a picture of {width} x {height} pixels is too long: scaled to {self.target_length} pixels, "
                "its short side would vanish"
            )
        return target

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """The size (h, w) that a picture of size (oldh, oldw) is scaled to."""
        scale = long_side_length * 1.0 / max(oldh, oldw)
        return int(oldh * scale + 0.5), int(oldw * scale + 0.5)


def preprocess(image: Any, size: int, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Normalise the colours and pad with zeros at the bottom and the right.

    image (..., h, w, 3), pixel values of any real dtype; mean and std of each channel in pixel values
    -> (..., size, size, 3), float32.
    """
    # In numpy, which divides; a TensorFlow graph would multiply by the reciprocal, which rounds otherwise.
    normalised = (np.asarray(image, np.float32) - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    height, width = normalised.shape[-3:-1]
    padded = np.zeros((*normalised.shape[:-3], size, size, 3), np.float32)
    padded[..., :height, :width, :] = normalised
    return padded
