"""Lists of names made short: indices folded into braces, the rest counted; and the nearest known name for another."""

import difflib
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

# An index as torch writes it: "01" and digits of other scripts are other names, and are not to look the same.
_NUMBER = re.compile(r"(?<!\d)(0|[1-9][0-9]*)(?!\d)")
_MOST_NUMBERS = 8  # in a name that is folded; the work grows with their square


def fold(names: Iterable[str]) -> list[str]:
    """Names that differ only by one index at a time joined: `layers.{0-11}.norm1.weight`. Order of first appearance."""
    # ("layers.", "0", ".norm", "1", ".weight"): odd places are numbers.
    folded: list[tuple] = [tuple((piece,) for piece in _pieces(name)) for name in dict.fromkeys(names)]
    width = max((len(pieces) for pieces in folded), default=0)
    for place in reversed(range(1, width, 2)):
        groups: dict[tuple, list[str]] = {}
        for pieces in folded:
            if place < len(pieces):
                groups.setdefault((*pieces[:place], None, *pieces[place + 1 :]), []).extend(pieces[place])
            else:
                groups.setdefault(pieces, [])
        folded = [
            (*key[:place], tuple(numbers), *key[place + 1 :]) if numbers else key for key, numbers in groups.items()
        ]
    return ["".join(_spell(choice) for choice in pieces) for pieces in folded]


def _pieces(name: str) -> list[str]:
    pieces = _NUMBER.split(name)
    return pieces if len(pieces) <= 2 * _MOST_NUMBERS + 1 else [name]


def _spell(choice: tuple[str, ...]) -> str:
    if len(choice) == 1:
        return choice[0]
    numbers = sorted({int(word) for word in choice})
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "{" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) + "}"


def listed(texts: Iterable[str], most: int, between: str = ", ") -> str:
    """The first `most` texts (of names: made printable) in a line, and how many more there are: `a, b and 3 more`."""
    every = list(texts)
    return between.join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def counted(count: int, noun: str) -> str:
    """`1 tensor`, `2 tensors`."""
    return f"{count} {noun}{'s' * (count != 1)}"


def globs(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Patterns (`*`) that match all `names` and none of the others, as few as whole modules and indices allow."""
    names, others = list(names), list(others)
    paths = {path for name in others for path in _paths(name)}
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(next((path for path in _paths(name) if path not in paths), name), []).append(name)
    literal = {path: re.sub(r"([*?[])", r"[\1]", path) for path in (*found, *names)}
    short = [literal[below[0]] if len(below) == 1 else f"{literal[path]}.*" for path, below in found.items()]
    alike: dict[str, list[str]] = {}
    for one in short:
        alike.setdefault(_NUMBER.sub("*", one), []).append(one)
    result: list[str] = []
    for pattern, some in alike.items():
        clear = len(some) > 1 and not any(fnmatchcase(one, pattern) for one in others)
        result += [pattern] if clear else some
    return result


def _paths(name: str) -> list[str]:
    """Every path that leads to the name, itself last: `a`, `a.b`, `a.b.c`."""
    return [name[: at.start()] for at in re.finditer(r"\.", name)] + [name]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when none is alike."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return matches[0] if matches else None
