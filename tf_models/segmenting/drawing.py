"""Masks drawn over a picture: tinted, outlined, with the prompts and the estimated quality of each."""

import colorsys
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tf_models.sam import rle
from tf_models.sam.regions import mask_boxes

# Long side of the smallest canvas: a smaller picture is enlarged by a whole factor, so that labels can be read.
_SMALLEST = 512
_TINT = 0.45  # how much of a mask's colour covers the picture
FOREGROUND, BACKGROUND = (46, 204, 64), (255, 65, 54)

Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]  # (x0, y0, x1, y1)


class Drawn(NamedTuple):
    """A mask to draw."""

    mask: dict[str, Any]  # run lengths, as `rle.encode` makes them: of many masks only one is unpacked at a time
    label: str  # written upon it; may be empty
    box: Sequence[float] | None = None  # the prompt (x0, y0, x1, y1), in pixels of the picture


def draw(
    image: np.ndarray,
    masks: Sequence[Drawn],
    points: Sequence[Sequence[float]] = (),
    background: Sequence[Sequence[float]] = (),
) -> Image.Image:
    """Draw masks, boxes and points over a picture.

    Args:
        image: (H, W, 3), uint8.
        masks: small ones are drawn over large ones, whatever their order; the order gives the colours.
        points: foreground prompts, (x, y) in pixels of the picture.
        background: background prompts.

    Returns:
        A picture of the same size, or, where that is too small for labels, enlarged by a whole factor and, where it is
        very narrow, set in a margin. In a crowd some labels are left out.
    """
    height, width = image.shape[:2]
    factor = max(1, math.ceil(_SMALLEST / max(height, width)))
    unit = max(0.6, math.sqrt(height * width) * factor / 1000)  # lengths are in thousandths of the picture's size
    size = max(13.0, 24 * unit)
    font = ImageFont.load_default(size)

    pixels = image.repeat(factor, axis=0).repeat(factor, axis=1).astype(np.float32)
    colours = [_colour(index) for index in range(len(masks))]
    large_first = sorted(range(len(masks)), key=lambda index: -rle.area(masks[index].mask))
    for index in large_first:
        mask, view = _enlarged(masks[index].mask, pixels, factor)
        view[mask] = (1 - _TINT) * view[mask] + _TINT * np.array(colours[index], np.float32)
    for index in large_first:
        mask, view = _enlarged(masks[index].mask, pixels, factor)
        view[_edge(mask, max(2, round(2.5 * unit)))] = colours[index]

    # A margin where the picture is narrower than a label needs.
    least = math.ceil(6 * size)
    canvas_size = max(width * factor, least), max(height * factor, least)
    left, top = (canvas_size[0] - width * factor) // 2, (canvas_size[1] - height * factor) // 2
    canvas = Image.new("RGB", canvas_size, (32, 32, 32))
    canvas.paste(Image.fromarray(pixels.round().astype(np.uint8)), (left, top))
    pen = _Pen(canvas, font, unit, factor, (left, top))
    for one, colour in zip(masks, colours, strict=True):
        if one.box is not None:
            pen.box(one.box, colour)
    for point in points:
        pen.point(point, FOREGROUND)
    for point in background:
        pen.point(point, BACKGROUND)
    for one, colour in zip(masks, colours, strict=True):
        if one.label and rle.area(one.mask):
            pen.label(one.label, _inside(one.mask), colour)
    return canvas


def _colour(index: int) -> Colour:
    """Colours far apart from those just before: hues a golden ratio apart, in two lightnesses."""
    hue = (0.58 + index * 0.618034) % 1
    red, green, blue = colorsys.hls_to_rgb(hue, (0.55, 0.68)[index // 5 % 2], 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def _enlarged(mask: dict[str, Any], pixels: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """The mask within its box, enlarged, and the view of the pixels (H, W, 3) that it covers."""
    dense = rle.decode(mask)
    x0, y0, x1, y1 = mask_boxes(dense[None])[0]
    inside = np.ascontiguousarray(dense[y0 : y1 + 1, x0 : x1 + 1])
    view = pixels[factor * y0 : factor * (y1 + 1), factor * x0 : factor * (x1 + 1)]
    return inside.repeat(factor, axis=0).repeat(factor, axis=1), view


def _edge(mask: np.ndarray, radius: int) -> np.ndarray:
    """The mask's inner edge, `radius` pixels wide."""
    inside = np.pad(mask, 1)
    for _ in range(radius):
        shrunk = inside.copy()
        shrunk[1:] &= inside[:-1]
        shrunk[:-1] &= inside[1:]
        shrunk[:, 1:] &= inside[:, :-1]
        shrunk[:, :-1] &= inside[:, 1:]
        inside = shrunk
    return mask & ~inside[1:-1, 1:-1]


def _inside(run_lengths: dict[str, Any]) -> tuple[float, float]:
    """A point (x, y) well inside the mask: the middle of the longest run of the row through the mask's centre."""
    mask = rle.decode(run_lengths)
    weights = np.cumsum(np.count_nonzero(mask, axis=1))
    row = int(np.searchsorted(weights, (weights[-1] + 1) // 2))
    change = np.diff(np.concatenate([[0], mask[row].astype(np.int8), [0]]))
    starts, ends = np.flatnonzero(change == 1), np.flatnonzero(change == -1)
    longest = (ends - starts).argmax()
    return (starts[longest] + ends[longest]) / 2, row + 0.5


class _Pen:
    """Draws on the canvas what is given in pixels of the picture."""

    def __init__(self, canvas: Image.Image, font: Any, unit: float, factor: int, origin: tuple[int, int]) -> None:
        self._canvas, self._draw, self._font = canvas, ImageDraw.Draw(canvas), font
        self._unit, self._factor, self._origin = unit, factor, origin
        self._taken: list[Rectangle] = []  # by points and labels

    def _place(self, point: Sequence[float]) -> tuple[float, float]:
        x, y = point
        return self._origin[0] + x * self._factor, self._origin[1] + y * self._factor

    def box(self, box: Sequence[float], colour: Colour) -> None:
        corners = [*self._place(box[:2]), *self._place(box[2:])]
        width = max(2, round(3 * self._unit))
        for grow, stroke, outline in ((1, width + 2, (0, 0, 0)), (0, width, colour)):
            x0, y0, x1, y1 = (side + sign * grow for side, sign in zip(corners, (-1, -1, 1, 1), strict=True))
            self._draw.rectangle([x0, y0, max(x0, x1), max(y0, y1)], outline=outline, width=stroke)

    def point(self, point: Sequence[float], colour: Colour) -> None:
        """A disc with a plus or, for the background, a minus."""
        x, y = self._place([side + 0.5 for side in point])  # the middle of the pixel
        radius, stroke = max(6.0, 11 * self._unit), max(2, round(3 * self._unit))
        for extra, fill in ((stroke + 1, (0, 0, 0)), (stroke / 2, (255, 255, 255)), (0, colour)):
            r = radius + extra
            self._draw.ellipse([x - r, y - r, x + r, y + r], fill=fill)
        arm = 0.55 * radius
        self._draw.line([x - arm, y, x + arm, y], fill=(255, 255, 255), width=stroke)
        if colour == FOREGROUND:
            self._draw.line([x, y - arm, x, y + arm], fill=(255, 255, 255), width=stroke)
        r = radius + stroke + 1
        self._taken.append((x - r, y - r, x + r, y + r))

    def label(self, text: str, point: tuple[float, float], colour: Colour) -> None:
        """A dark plate with a bar of the mask's colour, at the point or as near above or below it as there is room."""
        x, y = self._place(point)
        pad, bar = 0.35 * self._font.size, 0.3 * self._font.size
        width = self._draw.textlength(text, font=self._font) + 3 * pad + bar
        height = 1.25 * self._font.size + pad
        x = min(max(x - width / 2, 0), self._canvas.width - width)
        y = min(max(y - height / 2, 0), self._canvas.height - height)
        for step in range(9):
            top = y + (step + 1) // 2 * 0.5 * height * (1 if step % 2 else -1)
            plate = (x, top, x + width, top + height)
            on_canvas = plate[1] >= 0 and plate[3] <= self._canvas.height
            if on_canvas and not any(_overlap(plate, other) for other in self._taken):
                break
        else:
            return
        self._taken.append(plate)
        self._draw.rounded_rectangle(
            plate, radius=pad, fill=(20, 20, 20), outline=colour, width=max(1, round(self._unit))
        )
        x, y = plate[:2]
        self._draw.rectangle([x + pad, y + pad, x + pad + bar, y + height - pad], fill=colour)
        self._draw.text((x + 2 * pad + bar, y + height / 2), text, font=self._font, fill=(255, 255, 255), anchor="lm")


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
