"""Segmenting as a task over very many pictures, for `tf_models.pictures`."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tf_models.pictures.reading import PictureError
from tf_models.sam import rle


@dataclass(frozen=True)
class Segmenting:
    """The masks of each picture by a whole SAM: of everything in it, or of what its entry names.

    An entry may have `points`, `background` and `boxes`, as `segment` takes them.

    Args:
        generator: arguments of `AutomaticMaskGenerator`, fit for JSON.
    """

    generator: dict[str, Any] = field(default_factory=dict)

    name = "segment"
    keys = ("points", "background", "boxes")

    @property
    def options(self) -> dict[str, Any]:
        return self.generator

    @property
    def categories(self) -> list[dict[str, Any]]:
        return [{"id": 1, "name": "object"}]

    def check(self, weights: str | os.PathLike) -> None:
        """Raises PictureError, WeightsError: not the weights of a whole SAM, or damaged."""
        from tf_models.segmenting.segment import declared_sam

        declared_sam(weights)

    def load(self, weights: str | os.PathLike) -> Callable[[Sequence[Any]], list[list[dict[str, Any]]]]:
        """Raises PictureError, WeightsError: as `check`, and of damaged values."""
        from tf_models.sam import AutomaticMaskGenerator
        from tf_models.segmenting.segment import load_sam, prompted

        generator = AutomaticMaskGenerator(load_sam(weights), **{**self.generator, "output_mode": "uncompressed_rle"})
        predictor = generator.predictor

        def masks(pictures: Sequence[Any]) -> list[list[dict[str, Any]]]:
            entries = [_prompts(picture.entry, picture.pixels) for picture in pictures]
            found = []
            encoded = predictor.encode([picture.pixels for picture in pictures])
            for picture, entry, one in zip(pictures, entries, encoded, strict=True):
                if entry:
                    predictor.set_encoded(one)
                    records = prompted(predictor, **entry)
                else:
                    records = generator.generate(picture.pixels, encoded=one)
                    records.sort(key=lambda mask: -mask["predicted_iou"])
                found.append([_annotation(record) for record in records])
            return found

        return masks


def _prompts(entry: dict[str, Any], pixels: Any) -> dict[str, Any]:
    """The prompts of an entry, checked; empty where it has none."""
    from tf_models.segmenting.segment import check_combination, check_places

    if not entry.keys() & set(Segmenting.keys):
        return {}
    lengths = {"points": 2, "background": 2, "boxes": 4}
    prompts = {key: entry.get(key, []) for key in lengths}
    for key, values in prompts.items():
        if not isinstance(values, list) or not all(
            isinstance(value, list) and len(value) == lengths[key] and all(_is_number(each) for each in value)
            for value in values
        ):
            raise PictureError(f"{key} is not a list of {lengths[key]} numbers each")
    points, background, boxes = prompts.values()
    check_combination(points, background, boxes, False, None)
    check_places(pixels, {"points": points, "background": background}, boxes)
    return prompts


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _annotation(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "category_id": 1, "iscrowd": 0, "segmentation": rle.to_coco(record["segmentation"])}
