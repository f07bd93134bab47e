"""Masks of everything in a picture: a grid of single points is prompted, and the good and distinct answers are kept."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tf_models.sam import rle
from tf_models.sam.crops import crop_boxes, point_grids
from tf_models.sam.predictor import Encoded, Predictor
from tf_models.sam.regions import mask_boxes, near_crop_edge, nms, remove_small_regions, xywh

# Run lengths -> what a record's segmentation is.
_OUTPUTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "binary_mask": rle.decode,
    "uncompressed_rle": dict,
    "coco_rle": rle.to_coco,
}


@dataclass
class _Found:
    """A mask that was found, in the picture's frame."""

    rle: dict[str, Any]
    box: np.ndarray  # (4,), int64, (x0, y0, x1, y1)
    iou: np.float32
    stability: np.float32
    point: np.ndarray  # (2,), float64, (x, y)
    crop_box: list[int]


@dataclass
class Seen:
    """What the filters saw.

    Attributes:
        masks: how many there were, three for each point.
        good: how many of them have a quality above `pred_iou_thresh`.
        stable: how many of those are as stable as `stability_score_thresh` asks.
        iou: the best quality, good or not.
        stability: of the good ones, the best; where none is good, that of the one of the best quality.
    """

    masks: int = 0
    good: int = 0
    stable: int = 0
    iou: float = -math.inf
    stability: float = -math.inf


class AutomaticMaskGenerator:
    """Finds masks all over a picture, without prompts.

    The arguments and the records are those of segment-anything's `SamAutomaticMaskGenerator`.

    Args:
        model: a SAM as `Predictor` takes it.
        points_per_side: the grid has the square of this many points; None where `point_grids` gives the points.
        points_per_batch: points prompted at once; more need more memory.
        pred_iou_thresh: keep masks whose estimated quality is above this, 0 to 1.
        stability_score_thresh: keep masks that are at least so stable, 0 to 1: the overlap of the masks with the
            threshold raised and lowered by `stability_score_offset`.
        stability_score_offset: see above, in logits.
        box_nms_thresh: of masks whose boxes overlap by more than this ratio, keep the one of the best quality.
        crop_n_layers: look at crops of the picture too, 4**n of them in layer n.
        crop_nms_thresh: as `box_nms_thresh`, between crops; smaller crops go first.
        crop_overlap_ratio: how far crops of the first layer overlap, as a part of the picture's short side.
        crop_n_points_downscale_factor: `points_per_side` in layer n is divided by the n-th power of this.
        point_grids: points (P, 2) in the unit square for each layer, in place of `points_per_side`.
        min_mask_region_area: fill holes and clear islands of fewer pixels than this.
        output_mode: masks as "binary_mask", "uncompressed_rle" or "coco_rle", whose counts are compressed.

    Attributes:
        seen: what the filters saw in the last picture.

    Raises:
        ValueError: not exactly one of `points_per_side` and `point_grids`, or an unknown output mode.
    """

    def __init__(
        self,
        model: Any,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[np.ndarray] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
    ) -> None:
        if (points_per_side is None) == (point_grids is None):
            raise ValueError("points_per_side, point_grids: expected exactly one of the two")
        if output_mode not in _OUTPUTS:
            raise ValueError(f"output_mode: expected one of {', '.join(_OUTPUTS)}, got {output_mode!r}")
        self.predictor = Predictor(model)
        self.point_grids = _grids(points_per_side, crop_n_layers, crop_n_points_downscale_factor, point_grids)
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.crop_n_points_downscale_factor = crop_n_points_downscale_factor
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode
        self.seen = Seen()

    def generate(self, image: np.ndarray, progress: Any = None, encoded: Encoded | None = None) -> list[dict[str, Any]]:
        """Find the masks of a picture.

        Args:
            image: (H, W, 3), uint8, RGB.
            progress: an object with `start(stage, total)` and `advance(count)`, which is told of each crop's encoding,
                whose total is not known (0), and of its points.
            encoded: what `predictor.encode` gave for this picture, if it is encoded already.

        Returns:
            A record for each mask: `segmentation`, (H, W) of bool or its RLE; `area` in pixels; `bbox` as
            [x, y, width, height]; `predicted_iou` and `stability_score`, numbers; `point_coords`, [[x, y]] of the point
            that found it; `crop_box`, [x, y, width, height] of the crop it was found in.

        Raises:
            ValueError: as `Predictor.set_image`.
        """
        crops = crop_boxes(image.shape[:2], self.crop_n_layers, self.crop_overlap_ratio)
        self.seen = Seen()
        found: list[_Found] = []
        for number, (crop_box, layer) in enumerate(crops, start=1):
            where = f", crop {number} of {len(crops)}" if len(crops) > 1 else ""
            if encoded is not None and layer == 0:  # the first crop is the whole picture
                self.predictor.set_encoded(encoded)
            else:
                if progress is not None:
                    progress.start(f"encoding{where}", 0)
                x0, y0, x1, y1 = crop_box
                self.predictor.set_image(image[y0:y1, x0:x1])
            found += self._in_crop(image, crop_box, self.point_grids[layer], where, progress)
        if len(crops) > 1:
            # Small crops first: they show more.
            areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (one.crop_box for one in found)]
            found = _distinct(found, 1 / np.array(areas, np.float32), self.crop_nms_thresh)
        if self.min_mask_region_area > 0:
            found = self._without_small_regions(found)
        return [self._record(one) for one in found]

    def _in_crop(
        self, image: np.ndarray, crop_box: list[int], grid: np.ndarray, where: str, progress: Any
    ) -> list[_Found]:
        x0, y0, x1, y1 = crop_box
        points = np.asarray(grid) * (x1 - x0, y1 - y0)
        if progress is not None:
            progress.start(f"points{where}", len(points))
        found: list[_Found] = []
        for start in range(0, len(points), self.points_per_batch):
            batch = points[start : start + self.points_per_batch]
            found += self._at_points(batch, crop_box, image.shape[:2])
            if progress is not None:
                progress.advance(len(batch))
        self.predictor.reset_image()
        return _distinct(found, np.array([one.iou for one in found]), self.box_nms_thresh)

    def _at_points(self, points: np.ndarray, crop_box: list[int], size: Sequence[int]) -> list[_Found]:
        """The masks at points (P, 2) of a crop that pass the filters."""
        predictor = self.predictor
        coords = predictor.transform.apply_coords(points, predictor.original_size)
        low, iou = predictor.decode(coords[:, None], np.ones((len(points), 1), np.int32))
        good = np.argwhere((iou > self.pred_iou_thresh) | (self.pred_iou_thresh <= 0))
        self._look(low, iou, len(good))
        found = []
        for i, k in good:
            # Only here, when most masks are dropped, is one scaled to the picture.
            mask, stability = self._stable_mask(low[i, k])
            self.seen.stability = max(self.seen.stability, float(np.nan_to_num(stability)))
            if not (stability >= self.stability_score_thresh or self.stability_score_thresh <= 0):
                continue
            self.seen.stable += 1
            box = mask_boxes(mask[None])
            if near_crop_edge(box, crop_box, size)[0]:
                continue
            x0, y0, x1, y1 = crop_box
            whole = mask
            if mask.shape != tuple(size):
                whole = np.zeros(size, bool)
                whole[y0:y1, x0:x1] = mask
            offset = np.array([x0, y0, x0, y0])
            found.append(
                _Found(rle.encode(whole), box[0] + offset, iou[i, k], stability, points[i] + offset[:2], crop_box)
            )
        return found

    def _look(self, low: np.ndarray, iou: np.ndarray, good: int) -> None:
        """Note masks of logits low (P, K, h, w) and quality iou (P, K), of which so many are good."""
        seen = self.seen
        if good and not seen.good:
            seen.stability = -math.inf  # that of one that is not good
        seen.masks += iou.size
        seen.good += good
        best = np.unravel_index(iou.argmax(), iou.shape)
        if iou[best] > seen.iou:
            seen.iou = float(iou[best])
            if not seen.good:
                seen.stability = float(np.nan_to_num(self._stable_mask(low[best])[1]))

    def _stable_mask(self, low: np.ndarray) -> tuple[np.ndarray, np.float32]:
        """low (h, w), logits -> the mask (H, W), bool, and its stability."""
        mask_resize, threshold = self.predictor.mask_resize, self.predictor.model.mask_threshold
        mask = np.empty(mask_resize.size, bool)
        inner = outer = 0
        for rows, logits in mask_resize.strips(low):
            np.greater(logits, threshold, out=mask[rows])
            inner += int(np.count_nonzero(logits > threshold + self.stability_score_offset))
            outer += int(np.count_nonzero(logits > threshold - self.stability_score_offset))
        return mask, np.float32(inner) / np.float32(outer) if outer else np.float32(np.nan)

    def _without_small_regions(self, found: list[_Found]) -> list[_Found]:
        """Clean the masks, and drop the duplicates that this makes; masks which were clean before go first."""
        clean = []
        for one in found:
            mask = rle.decode(one.rle)
            mask, filled = remove_small_regions(mask, self.min_mask_region_area, "holes")
            mask, cleared = remove_small_regions(mask, self.min_mask_region_area, "islands")
            clean.append(not filled and not cleared)
            if not clean[-1]:
                one.rle, one.box = rle.encode(mask), mask_boxes(mask[None])[0]
        return _distinct(found, np.array(clean, np.float32), max(self.box_nms_thresh, self.crop_nms_thresh))

    def _record(self, one: _Found) -> dict[str, Any]:
        return {
            "segmentation": _OUTPUTS[self.output_mode](one.rle),
            "area": rle.area(one.rle),
            "bbox": xywh(one.box.tolist()),
            "predicted_iou": float(one.iou),
            "point_coords": [one.point.tolist()],
            "stability_score": float(one.stability),
            "crop_box": xywh(one.crop_box),
        }


def _grids(
    points_per_side: int | None, layers: int, factor: int, given: Sequence[np.ndarray] | None
) -> Sequence[np.ndarray]:
    if points_per_side is not None:
        return point_grids(points_per_side, layers, factor)
    assert given is not None
    if len(given) <= layers:
        raise ValueError(f"point_grids: expected one for each of {layers + 1} layers, got {len(given)}")
    return given


def _distinct(found: list[_Found], scores: np.ndarray, iou_threshold: float) -> list[_Found]:
    boxes = np.array([one.box for one in found], np.float32).reshape(-1, 4)
    return [found[index] for index in nms(boxes, scores, iou_threshold)]
