"""Errors over what is allowed, on a logarithmic scale, as an SVG whose marks keep their size on any screen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from converter.pages.page import Html, join, tag

_HEIGHT, _MARGIN = 300, 14  # pixels; the margin is above and below
_MOST_TICKS = 8
_SHAPES = {
    "layer": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z",  # a disc
    "between": "M-4-4H4V4H-4Z",
    "output": "M0-6L6 0L0 6L-6 0Z",
    "training": "M0-5L5 4H-5Z",
    "differs": "M-5-5L5 5M5-5L-5 5",  # a cross
}


@dataclass(frozen=True)
class Mark:
    """A comparison in the plot.

    Attributes:
        kind: "layer", "between", "output" or "training"; its shape and colour.
        place: where it is along the network, from 0.
        ratio: its error over what is allowed; infinite where it could not be compared.
        good: whether it passed.
        title: what is shown where one points at it.
        link: the id of the element that tells more.
    """

    kind: str
    place: int
    ratio: float
    good: bool
    title: str
    link: str


def plot(marks: Sequence[Mark], words: dict[str, str]) -> Html:
    """The marks in the order of the network; `words` name the kinds below."""
    known = [math.log10(one.ratio) for one in marks if 0 < one.ratio < math.inf]
    low, high = math.floor(min(known, default=-1)), max(1, math.ceil(max(known, default=0)))
    step = -(-(high - low) // _MOST_TICKS)
    ticks = [power for power in range(low, high + 1) if power % step == 0]

    def height(ratio: float) -> float:
        power = low if ratio <= 0 else high if ratio == math.inf else math.log10(ratio)
        return _MARGIN + (high - power) / (high - low) * (_HEIGHT - 2 * _MARGIN)

    last = max((one.place for one in marks), default=0)
    places = {one: 1 + 98 * one.place / last if last else 50.0 for one in marks}
    # Those that failed are drawn last, above the others.
    drawn = [
        tag(
            "a",
            tag(
                "use", tag("title", one.title), href=f"#{_symbol(one.kind if one.good else 'differs')}",
                x=f"{places[one]:.2f}%", y=f"{height(one.ratio):.1f}",
            ),
            href=f"#{one.link}",
        )
        for one in sorted(marks, key=lambda one: not one.good)
    ]  # fmt: skip
    lines = [
        tag("line", x1="0", x2="100%", y1=f"{y:.1f}", y2=f"{y:.1f}", class_="one" if power == 0 else "tick")
        for power in ticks
        for y in [height(10.0**power)]
    ]
    labels = [
        tag("text", _power(power), x="2.6rem", y=f"{height(10.0**power) + 4:.1f}", text_anchor="end") for power in ticks
    ]
    used = [kind for kind in words if any(one.kind == kind and one.good for one in marks)]
    shown = {kind: words[kind] for kind in used} | ({} if all(one.good for one in marks) else {"differs": "differs"})
    symbols = tag("defs", *(tag("path", id=_symbol(kind), d=shape, class_=kind) for kind, shape in _SHAPES.items()))
    size = {"height": str(_HEIGHT), "role": "img"}
    area = tag("svg", symbols, *lines, *drawn, **size, aria_label="error over what is allowed, for each comparison")
    legend = [
        tag("li", tag("svg", tag("path", d=_SHAPES[kind], class_=kind, transform="translate(7 7)")), " ", word)
        for kind, word in shown.items()
    ]
    return tag(
        "figure",
        tag("div", tag("svg", *labels, **size, aria_hidden="true"), area, class_="plot"),
        tag("ul", *legend, class_="legend"),
        tag(
            "figcaption",
            join(("Error over what roundings of float32 allow, from the first layer on the left to the outputs on the "
            "right. What is above the dashed line differs; an error of 0 stands at the lower edge.",)),
        ),
    )  # fmt: skip


def _symbol(kind: str) -> str:
    return f"mark-{kind}"


def _power(power: int) -> str:
    return "allowed" if power == 0 else f"{10.0**power:g}" if abs(power) < 4 else f"1e{power}"
