"""What the command `weightbridge segment` does: a picture's file and prompts in; a drawing, masks and data out."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import tf_models
from tf_models.pictures.reading import PictureError, read_picture
from tf_models.runtime.loading import declared
from tf_models.runtime.weights_format import printable
from tf_models.sam import PARTS, WHOLE, rle
from tf_models.sam.regions import mask_boxes, xywh

if TYPE_CHECKING:
    from PIL import Image

Point = tuple[float, float]
Box = tuple[float, float, float, float]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")  # of the drawings that can be written
# Without these, thin lines lose their colour.
_SHARP: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
_LONGEST = {"JPEG": 65500, "WEBP": 16383}  # pixels along a side


class PromptError(ValueError):
    """Prompts that make no sense: one line that says why."""

    exit_code = 2


@dataclass(frozen=True)
class Segmentation:
    """Masks of a picture."""

    image: np.ndarray  # (H, W, 3), uint8
    # Records as the automatic generator's, with run lengths for `segmentation`; and the prompts that gave them.
    masks: list[dict[str, Any]]
    points: Sequence[Point] = ()
    background: Sequence[Point] = ()
    hint: str = ""  # where nothing was found, what the filters saw and what would let it through

    def drawing(self) -> "Image.Image":
        """The masks and prompts over the picture, each mask with its number and estimated quality."""
        from tf_models.segmenting.drawing import Drawn, draw

        drawn = [
            Drawn(mask["segmentation"], f"{number}  {mask['predicted_iou']:.2f}", mask.get("box"))
            for number, mask in enumerate(self.masks, start=1)
        ]
        return draw(self.image, drawn, self.points, self.background)

    def save_drawing(self, path: Path) -> None:
        """Write the drawing, in the format that the ending of `path` names.

        Raises:
            PictureError: it cannot be written.
        """
        kind = _format(path)
        try:
            self.drawing().save(path, kind, **_SHARP.get(kind, {}))
        except ValueError as error:  # Pillow's, of what a format cannot hold; a disk that is full is for the caller
            raise PictureError(f"a {kind} file cannot hold the drawing: {printable(str(error))}") from None

    def save_masks(self, folder: Path) -> None:
        """Write each mask as a picture of black and white: 1.png, 2.png, ...

        Raises:
            PictureError: one cannot be written.
        """
        from PIL import Image

        try:
            folder.mkdir(parents=True, exist_ok=True)
            for number, mask in enumerate(self.masks, start=1):
                Image.fromarray(np.ascontiguousarray(rle.decode(mask["segmentation"]))).save(folder / f"{number}.png")
        except OSError as error:
            raise PictureError(f"{printable(str(folder))} cannot be written: {error.strerror}") from None

    def to_dict(self) -> dict[str, Any]:
        """The same as data: masks as COCO's compressed RLE."""
        height, width = self.image.shape[:2]
        masks = [mask | {"segmentation": rle.to_coco(mask["segmentation"])} for mask in self.masks]
        return {"width": width, "height": height, "masks": masks} | ({"hint": self.hint} if self.hint else {})

    def __str__(self) -> str:
        height, width = self.image.shape[:2]
        lines = [f"{'picture':<9} {width} x {height} pixels, masks {len(self.masks)}"]
        if self.hint:
            lines.append(f"{'hint':<9} {self.hint}")
        for number, mask in enumerate(self.masks, start=1):
            x, y, w, h = mask["bbox"]
            lines.append(
                f"{'mask':<5}{number:>4} iou {mask['predicted_iou']:.2f}, {mask['area']:,} pixels "
                f"({mask['area'] / (height * width):.1%}) in {x},{y},{x + w},{y + h}"
            )
        return "\n".join(lines)


def segment(
    weights: str | os.PathLike,
    picture: str | os.PathLike,
    points: Sequence[Point] = (),
    background: Sequence[Point] = (),
    boxes: Sequence[Box] = (),
    everything: bool = False,
    progress: Any = None,
    generator: Mapping[str, Any] | None = None,
    like: str | os.PathLike | None = None,
) -> Segmentation:
    """Find masks in a picture.

    All points, and the box if there is one, describe one object; several boxes are several objects. A single point may
    mean a part or a whole: of three masks the one of the best estimated quality is taken.

    Args:
        weights: a converted file of a whole SAM.
        picture: a file that Pillow reads; it is turned as its EXIF orientation says.
        points, background: (x, y) in pixels, on the object and beside it.
        boxes: (x0, y0, x1, y1) in pixels.
        everything: find masks all over the picture, without prompts.
        progress: an object with `start(stage, total)` and `advance(count)`; a total of 0 is not known.
        generator: arguments of `AutomaticMaskGenerator` that are not to be the usual ones; for `everything`.
        like: the converted file that the model was loaded from, where `weights` is a file that Keras saved after
            training.

    Raises:
        PictureError: the picture cannot be read, or the weights are not those of a whole SAM.
        PromptError: prompts and arguments contradict each other, or prompts lie outside the picture.
        WeightsError: the weights file is damaged.
    """
    check_combination(points, background, boxes, everything, generator)
    image = read_picture(picture)
    check_places(image, {"--point": points, "--background": background}, boxes)
    start = progress.start if progress is not None else lambda _stage, _total: None
    model = load_sam(weights, like, start)
    from tf_models.sam import AutomaticMaskGenerator, Predictor

    try:
        if everything:
            finder = AutomaticMaskGenerator(model, output_mode="uncompressed_rle", **(generator or {}))
            masks = finder.generate(image, progress)
            hint = "" if masks else _hint(finder)
            return Segmentation(image, sorted(masks, key=lambda mask: -mask["predicted_iou"]), hint=hint)
        predictor = Predictor(model)
        start("encoding", 0)
        predictor.set_image(image)
        start("masks", 0)
    except ValueError as error:
        raise PictureError(f"{printable(str(picture))}: {error}") from None
    return Segmentation(image, prompted(predictor, points, background, boxes), points, background)


def check_drawing(drawing: Path, image: np.ndarray) -> None:
    """See that the format of the drawing holds as many pixels along a side as the picture has, (H, W, 3).

    Raises:
        PictureError: it does not.
    """
    longest, most = max(image.shape[:2]), _LONGEST.get(_format(drawing), math.inf)
    if longest > most:
        raise PictureError(
            f"{printable(drawing.name)} holds at most {most} pixels along a side, and the picture has {longest}; "
            "name a .png"
        )


def _format(path: Path) -> str:
    from PIL import Image

    return Image.registered_extensions()[path.suffix.lower()]


def check_folder(masks: Path) -> None:
    """See that no earlier masks would mix with the new ones.

    Raises:
        PictureError: the folder holds something.
    """
    if masks.is_file() or (masks.is_dir() and any(masks.iterdir())):
        raise PictureError(f"{printable(str(masks))} is not an empty folder; name a new one for the masks")


def check_combination(
    points: Sequence[Point],
    background: Sequence[Point],
    boxes: Sequence[Box],
    everything: bool,
    generator: Mapping[str, Any] | None,
) -> None:
    if generator and not everything:
        raise PromptError(f"--{next(iter(generator)).replace('_', '-')} is for --everything")
    if everything and (points or background or boxes):
        raise PromptError("--everything takes no --point, --background or --box")
    if not (everything or points or boxes):
        raise PromptError("give a --point, a --box, or --everything" + (" beside --background" if background else ""))
    if len(boxes) > 1 and (points or background):
        raise PromptError(f"{len(boxes)} boxes are as many objects, and points belong to one: give one --box with them")


def check_places(image: np.ndarray, points: dict[str, Sequence[Point]], boxes: Sequence[Box]) -> None:
    height, width = image.shape[:2]
    inside = f"the picture of {width} x {height} pixels"
    for option, places in points.items():
        for x, y in places:
            if not (0 <= x < width and 0 <= y < height):
                raise PromptError(f"{option} {x:g},{y:g} lies outside {inside}")
    for x0, y0, x1, y1 in boxes:
        if not all(map(math.isfinite, (x0, y0, x1, y1))) or x0 >= x1 or y0 >= y1:
            raise PromptError(f"--box {x0:g},{y0:g},{x1:g},{y1:g} is not X0,Y0,X1,Y1 with X0 < X1 and Y0 < Y1")
        if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
            raise PromptError(f"--box {x0:g},{y0:g},{x1:g},{y1:g} lies outside {inside}")


def declared_sam(weights: str | os.PathLike, like: str | os.PathLike | None = None) -> dict[str, Any]:
    """What the weights file of a whole SAM says of itself; TensorFlow is not needed.

    Raises:
        PictureError: it is of another model.
        WeightsError: it is damaged.
    """
    about = declared(weights, like=like)
    if about["model"] in tf_models.builders():  # else it is a model of the user's own, and shows its parts when built
        _check_whole(weights, about, about["model"] in WHOLE)
    return about


def load_sam(
    weights: str | os.PathLike,
    like: str | os.PathLike | None = None,
    start: Callable[[str, int], None] = lambda _stage, _total: None,
) -> Any:
    about = declared_sam(weights, like)
    start("loading the model", 0)
    model = tf_models.load(weights, like=like)
    _check_whole(weights, about, all(hasattr(model, part) for part in PARTS))
    return model


def _check_whole(weights: str | os.PathLike, about: Mapping[str, Any], whole: bool) -> None:
    if not whole:
        name = printable(about["model"])
        raise PictureError(f"{printable(str(weights))} holds {name}, which is not a whole SAM with an image encoder")


def _hint(finder: Any) -> str:
    """Why nothing passed the generator's filters, and with which options the nearest mask would."""
    seen, least_iou, least_stability = finder.seen, finder.pred_iou_thresh, finder.stability_score_thresh
    if seen.stable:
        return f"{seen.stable:,} of {seen.masks:,} masks pass the thresholds, and all reach the edge of a crop"
    options = []
    if not seen.good:
        options.append(f"--pred-iou-thresh {_below(seen.iou)}")
    if not seen.stability >= least_stability:
        options.append(f"--stability-score-thresh {_below(seen.stability)}")
    passing = f"{seen.good:,} are above" if seen.good else "none is above"
    return (
        f"of {seen.masks:,} masks {passing} an estimated IoU of {least_iou:g} (the best: {seen.iou:.2f}), and "
        f"{'the best stability of those' if seen.good else 'its stability'} is {seen.stability:.2f} (asked for: "
        f"{least_stability:g}); {' '.join(options)} lets one through"
    )


def _below(value: float) -> float:
    """A threshold of two digits that the value is above; 0 takes everything."""
    return max(math.floor(100 * value - 0.01) / 100, 0.0) if math.isfinite(value) else 0.0


def prompted(
    predictor: Any, points: Sequence[Point], background: Sequence[Point], boxes: Sequence[Box]
) -> list[dict[str, Any]]:
    if len(boxes) > 1:
        masks, iou, _ = predictor.predict(boxes=np.array(boxes), multimask_output=False)
        answers = zip(masks, iou, boxes, strict=True)
        return [_record(mask[0], quality[0], {"box": list(box)}) for mask, quality, box in answers]
    coords = [*points, *background]
    labels = [1] * len(points) + [0] * len(background)
    masks, iou, _ = predictor.predict(
        point_coords=np.array(coords) if coords else None,
        point_labels=np.array(labels) if coords else None,
        box=np.array(boxes[0]) if boxes else None,
        multimask_output=len(coords) == 1 and not boxes,
    )
    best = int(iou.argmax())
    prompts: dict[str, Any] = {"point_coords": [list(point) for point in coords], "point_labels": labels}
    if boxes:
        prompts["box"] = list(boxes[0])
    return [_record(masks[best], iou[best], prompts)]


def _record(mask: np.ndarray, quality: np.float32, prompts: dict[str, Any]) -> dict[str, Any]:
    encoded = rle.encode(mask)
    return {
        "segmentation": encoded,
        "area": rle.area(encoded),
        "bbox": xywh(mask_boxes(mask[None])[0].tolist()),
        "predicted_iou": float(quality),
        **prompts,
    }
