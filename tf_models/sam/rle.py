"""Masks as run lengths, column by column: COCO's RLE, plain and as its compressed text."""

from collections.abc import Iterable
from typing import Any

import numpy as np


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths of a mask (H, W), bool -> {"size": [H, W], "counts": [...]}.

    Pixels are counted down the columns, from left to right; counts alternate and begin with that of zeros.
    """
    height, width = mask.shape
    columns = np.flatnonzero(mask.any(axis=0))
    if not len(columns):
        return {"size": [height, width], "counts": [height * width]}
    # Nothing changes outside the columns from the first to the last that hold a pixel.
    first, last = columns[0], columns[-1] + 1
    pixels = np.zeros((last - first) * height + 2, bool)
    pixels[1:-1] = mask[:, first:last].T.ravel()
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + first * height
    ends = np.append(changes, height * width)
    counts = np.diff(ends, prepend=0).tolist()
    return {"size": [height, width], "counts": counts if counts[-1] else counts[:-1]}


def decode(rle: dict[str, Any]) -> np.ndarray:
    """The mask (H, W), bool, of run lengths as `encode` makes them."""
    height, width = rle["size"]
    counts = np.asarray(rle["counts"], np.int64)
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def area(rle: dict[str, Any]) -> int:
    """The number of pixels in the mask."""
    return sum(rle["counts"][1::2])


def to_coco(rle: dict[str, Any]) -> dict[str, Any]:
    """The same with `counts` as COCO's compressed text, which pycocotools reads."""
    return {"size": list(rle["size"]), "counts": _text(rle["counts"])}


def _text(counts: Iterable[int]) -> str:
    """Each count as digits of five bits from the lowest, with a sixth bit where another follows, shifted into ASCII.

    From the fourth on, a count is written as its difference from the one before the last, which is of its own colour.
    """
    counts = list(counts)
    text = []
    for index, count in enumerate(counts):
        rest = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            digit = rest & 0x1F
            rest >>= 5
            # The fifth bit is the sign: the number ends when all that is left repeats it.
            more = rest != (-1 if digit & 0x10 else 0)
            text.append(chr((digit | 0x20 if more else digit) + 48))
    return "".join(text)
