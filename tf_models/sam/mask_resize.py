"""From the decoder's low-resolution logits to masks of the picture's size.

SAM scales its logits to the padded input, cuts the padding off, and scales what is left to the picture. Both scalings
are bilinear, so together they are one linear map per axis, in which an output pixel sees at most four logits in a row.
It is applied as products of narrow strips of that band: no picture at the size of the input is made, and all that is
needed on the way stays in the cache.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

# Strips of so many output pixels: few enough for the band in a strip to be narrow.
_ROWS, _COLUMNS = 16, 64


class _Strip(NamedTuple):
    """Outputs [output] of an axis are weights (outputs, inputs) times inputs [input]."""

    output: slice
    input: slice
    weights: np.ndarray


class MaskResize:
    """The map from logits (h, w) to those of a picture (H, W).

    Args:
        low_size: (h, w), the size of the decoder's logits.
        image_size: the side of the padded input.
        input_size: the picture's size inside the padded input, (H', W').
        original_size: the picture's size, (H, W).

    Follows segment-anything's `Sam.postprocess_masks`.
    """

    def __init__(
        self, low_size: Sequence[int], image_size: int, input_size: Sequence[int], original_size: Sequence[int]
    ) -> None:
        self.size = tuple(original_size)
        self._rows, self._columns = (
            _strips(_weights(low, image_size, inner, original), length)
            for low, inner, original, length in zip(low_size, input_size, original_size, (_ROWS, _COLUMNS), strict=True)
        )

    def logits(self, low: np.ndarray) -> np.ndarray:
        """low (N, h, w), float32 -> (N, H, W), float32."""
        output = np.empty((len(low), *self.size), np.float32)
        for each, scaled in zip(low, output, strict=True):
            for rows, logits in self.strips(each):
                scaled[rows] = logits
        return output

    def masks(self, low: np.ndarray, threshold: float) -> np.ndarray:
        """low (N, h, w), float32 -> (N, H, W), bool: where the logits exceed the threshold."""
        output = np.empty((len(low), *self.size), bool)
        for each, mask in zip(low, output, strict=True):
            for rows, logits in self.strips(each):
                np.greater(logits, threshold, out=mask[rows])
        return output

    def strips(self, low: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """low (h, w), float32 -> (rows, logits (rows, W)) from top to bottom; each is overwritten by the next."""
        height, width = self.size
        wide = np.empty((len(low), width), np.float32)  # (h, W)
        for strip in self._columns:
            np.matmul(low[:, strip.input], strip.weights.T, out=wide[:, strip.output])
        buffer = np.empty((min(_ROWS, height), width), np.float32)
        for strip in self._rows:
            yield strip.output, np.matmul(strip.weights, wide[strip.input], out=buffer[: len(strip.weights)])


def _weights(low: int, image_size: int, inner: int, original: int) -> np.ndarray:
    """Along one axis: low -> image_size, cut to inner, -> original; as a matrix (original, low), float64."""
    first = np.zeros((inner, low))
    for index, weight in _bilinear(image_size, low):
        first[np.arange(inner), index[:inner]] += weight[:inner]
    return sum(weight[:, None] * first[index] for index, weight in _bilinear(original, inner))


def _bilinear(size_out: int, size_in: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two neighbours of each output among the inputs and their weights, as torch has them without antialias."""
    position = np.maximum((np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5, 0.0)
    low = np.minimum(position.astype(int), size_in - 1)
    fraction = position - low
    return [(low, 1 - fraction), (np.minimum(low + 1, size_in - 1), fraction)]


def _strips(weights: np.ndarray, length: int) -> list[_Strip]:
    strips = []
    for start in range(0, len(weights), length):
        output = slice(start, min(start + length, len(weights)))
        seen = np.flatnonzero(weights[output].any(axis=0))
        input = slice(int(seen[0]), int(seen[-1]) + 1)
        strips.append(_Strip(output, input, np.ascontiguousarray(weights[output, input], np.float32)))
    return strips
