"""What a match would write, beside what the library's own converter fills: right is what has the same bits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from converter.kinds.axes import pattern
from converter.matching.rows import STATUSES, Link
from converter.pairs.mapping import join

VERDICTS = ("right", "wrong", "refused")  # refused: nothing is said of what fills it


@dataclass
class Score:
    """Of one pair.

    Attributes:
        counts: status -> verdict -> how many of the variables that the truth fills.
        beyond: variables that the truth leaves as they are built, and a proven row changes.
        examples: paths of what is wrong, and of what nothing is proven of, with what the match says: the first few.
    """

    counts: dict[str, dict[str, int]] = field(
        default_factory=lambda: {status: dict.fromkeys(VERDICTS, 0) for status in STATUSES}
    )
    beyond: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    @property
    def variables(self) -> int:
        return sum(sum(one.values()) for one in self.counts.values())

    @property
    def written(self) -> int:
        """Right ones that are converted without a question."""
        return self.counts["proven"]["right"]

    @property
    def wrong(self) -> int:
        """Wrong ones that are converted without a question."""
        return self.counts["proven"]["wrong"]

    @property
    def whole(self) -> bool:
        return self.written == self.variables


def score(
    links: Sequence[Link],
    tensors: Mapping[str, np.ndarray],
    built: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
) -> Score:
    """Hold the links against the truth.

    Args:
        links: of a match.
        tensors: the checkpoint's, by every name that a link may use.
        built: path -> the value that every variable of the Keras model has as it is built.
        truth: path -> the value, of the variables that the truth fills.
    """
    found = Score()
    said = {path: (link.status, value, text) for link in links for path, value, text in written(link, tensors, built)}
    for path, right in truth.items():
        status, value, text = said.get(path, ("unmatched", None, "has no row"))
        verdict = "refused" if value is None else "right" if same(value, right) else "wrong"
        found.counts[status][verdict] += 1
        if (status, verdict) != ("proven", "right"):
            found.examples.append(f"{status}, {verdict}: {path}: {text}")
    for path, (status, value, _) in said.items():
        if status == "proven" and path not in truth and value is not None and not same(value, built[path]):
            found.beyond.append(path)
    # What would be written wrong comes first.
    found.examples.sort(key=lambda one: ("wrong:" not in one, not one.startswith("proven")))
    del found.examples[20:]
    return found


def written(
    link: Link, tensors: Mapping[str, np.ndarray], built: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray | None, str]]:
    """(path, value, in words) of every variable of a link; None where it says nothing, or what cannot be done."""
    for theirs, ours in link.units():
        for fill in link.fills:
            paths = [join(ours, name) for name in fill.variables]
            names = [join(theirs, name) for name in fill.tensors]
            text = f"{' '.join(names)} [{fill.axes}] {link.evidence}"
            values: Sequence[np.ndarray | None] = [None] * len(paths)
            sizes = dict(fill.sizes)
            start, stop, _ = (sizes.pop(name, None) for name in ("from", "to", "of"))
            if fill.axes == "= built":
                values = [built[path] for path in paths]
            elif fill.axes.startswith("="):
                values = [np.full_like(built[path], float(fill.axes[1:])) for path in paths]
            elif fill.axes:
                try:
                    shapes = [built[path].shape for path in paths]
                    values = pattern(fill.axes).apply(
                        [_rows(tensors[name], start, stop) for name in names], shapes, sizes
                    )
                except (ValueError, KeyError) as error:
                    text += f": {type(error).__name__} {error}"
            yield from ((path, value, text) for path, value in zip(paths, values, strict=True))


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.array_equal(one, other))


def _rows(tensor: np.ndarray, start: int | None, stop: int | None) -> np.ndarray:
    return tensor if stop is None else tensor[start:stop]
