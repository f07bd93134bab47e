"""Boxes, stability and connected regions of masks, and the boxes that survive non-maximum suppression."""

from collections.abc import Sequence

import numpy as np


def mask_boxes(masks: np.ndarray) -> np.ndarray:
    """The box (x0, y0, x1, y1) of each mask, its last row and column included; zeros for an empty mask.

    masks (B, H, W), bool -> (B, 4), int64.
    """
    boxes = np.zeros((len(masks), 4), np.int64)
    for first, axis in ((0, 1), (1, 2)):  # x: columns that hold a pixel; y: rows
        held: np.ndarray = np.any(masks, axis=axis)  # (B, W) or (B, H)
        boxes[:, first] = held.argmax(axis=1)
        boxes[:, first + 2] = held.shape[1] - 1 - held[:, ::-1].argmax(axis=1)
        boxes[~held.any(axis=1)] = 0
    return boxes


def xywh(box: Sequence[int]) -> list[int]:
    """(x0, y0, x1, y1) -> [x, y, width, height]."""
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]


def near_crop_edge(boxes: np.ndarray, crop_box: Sequence[int], size: Sequence[int], atol: float = 20.0) -> np.ndarray:
    """Which boxes come within `atol` pixels of an edge of their crop that is no edge of the picture.

    boxes (B, 4) in the crop's frame, crop_box (x0, y0, x1, y1) in that of a picture of size (H, W) -> (B,), bool.
    """
    x0, y0, _, _ = crop_box
    height, width = size
    boxes = boxes + np.array([x0, y0, x0, y0])
    at_crop = abs(boxes - np.array(crop_box)) <= atol
    at_picture = abs(boxes - np.array([0, 0, width, height])) <= atol
    return (at_crop & ~at_picture).any(axis=1)


def nms(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Indices of the boxes (B, 4) that no kept box of a higher score overlaps by more than the threshold, best first.

    Of equal scores the first goes first. Areas, overlaps and their ratio are float32, and the ratio is compared with
    the threshold in float64, as torchvision's `nms` does on a CPU: so the same boxes are kept in every tie.
    """
    x0, y0, x1, y1 = np.asarray(boxes, np.float32).reshape(-1, 4).T
    areas = (x1 - x0) * (y1 - y0)
    waiting = np.argsort(-np.asarray(scores), kind="stable")
    kept = []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        kept.append(best)
        width = np.minimum(x1[best], x1[waiting]) - np.maximum(x0[best], x0[waiting])
        height = np.minimum(y1[best], y1[waiting]) - np.maximum(y0[best], y0[waiting])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        with np.errstate(invalid="ignore"):  # two boxes without area overlap by 0 / 0, which suppresses neither
            iou = shared / (areas[best] + areas[waiting] - shared)
        waiting = waiting[~(iou.astype(np.float64) > iou_threshold)]
    return np.array(kept, np.int64)


def remove_small_regions(mask: np.ndarray, area_threshold: float, mode: str) -> tuple[np.ndarray, bool]:
    """Fill the holes of a mask that have fewer pixels than the threshold, or clear such islands.

    mask (H, W), bool; mode "holes" or "islands" -> the mask, and whether it was changed. Pixels that touch at a corner
    are connected. Where every island is small, the largest stays.
    """
    holes = mode == "holes"
    regions, sizes = connected_regions(mask != holes)  # of what may be removed
    small = sizes < area_threshold
    if not small.any():
        return mask, False
    if not holes and small.all():
        small[sizes.argmax()] = False
    removed = np.concatenate([[False], small])[regions]
    return mask != removed, True


def connected_regions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the 8-connected regions of a mask from 1 on, in the order of their first pixels by row.

    mask (H, W), bool -> regions (H, W), int64, 0 outside the mask; sizes (count,), pixels of each region.

    Works on the runs of each row: runs of neighbouring rows that touch are linked, and linked runs take the lowest
    number among them until nothing changes.
    """
    height, width = mask.shape
    stride = width + 1  # an empty pixel after each row, so that no run goes on in the next
    padded = np.zeros((height, stride), np.int8)
    padded[:, :width] = mask
    change = np.diff(padded.ravel(), prepend=np.int8(0))
    starts, ends = np.flatnonzero(change == 1), np.flatnonzero(change == -1)  # of the runs, the end excluded
    # Runs of the next row which touch run i: those that end at or after its start, and start at or before its end.
    low, high = np.searchsorted(ends, starts + stride), np.searchsorted(starts, ends + stride, side="right")
    links = np.maximum(high - low, 0)
    above = np.repeat(np.arange(len(starts)), links)
    below = np.arange(links.sum()) - np.repeat(np.cumsum(links) - links, links) + np.repeat(low, links)
    labels = _lowest_linked(len(starts), above, below)
    numbers = np.unique(labels, return_inverse=True)[1]
    sizes = np.bincount(numbers, weights=ends - starts).astype(np.int64)
    regions = np.zeros(height * stride, np.int64)
    regions[starts] += numbers + 1
    regions[ends] -= numbers + 1
    return np.cumsum(regions).reshape(height, stride)[:, :width], sizes


def _lowest_linked(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For each of `count` nodes the lowest node that links a[i]-b[i] connect it with."""
    root = np.arange(count)
    while True:
        lower, higher = np.minimum(root[a], root[b]), np.maximum(root[a], root[b])
        apart = lower != higher
        if not apart.any():
            return root
        np.minimum.at(root, higher[apart], lower[apart])
        while (root != root[root]).any():
            root = root[root]
