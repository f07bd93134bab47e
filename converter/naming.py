"""Lists of names made short: indices folded into braces, the rest counted; and the nearest known name for another."""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

# An index as torch writes it: "01" and digits of other scripts are other names, and are not to look the same.
_NUMBER = re.compile(r"(?<!\d)(0|[1-9][0-9]*)(?!\d)")
_MOST_NUMBERS = 8  # in a name that is folded; the work grows with their square
_WORD = re.compile(r"[0-9]+|[A-Za-z]+")
_WIDEST = 90  # characters of a path that lists words


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


def fold_pairs(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pairs of names folded alike: both, expanded in their order, give the same pairs.

    Indices first, then words: `(attn.{q,k}_proj, attention.{query,key})`. A first name that is empty stays so, and the
    second is folded for itself. Order of first appearance.
    """
    folded = [
        _Pair(tuple((word,) for word in _words(first)), tuple((word,) for word in _words(second)), at)
        for at, (first, second) in enumerate(dict.fromkeys(pairs))
    ]
    lengths = {(len(pair.first), len(pair.second)) for pair in folded}
    for words in (False, True):  # words only where indices are done, so that a row is of one sort of layer
        for ours, theirs in sorted({(a, b) for m, n in lengths for a in range(m) for b in range(n)}, reverse=True):
            folded = _joined_at(folded, ours, theirs, words)
    folded.sort(key=lambda pair: pair.at)
    return [(_spelled(pair.first), _spelled(pair.second)) for pair in folded]


@dataclass(frozen=True)
class _Pair:
    """Two names in pieces, each a tuple of choices; `places` are the pieces of both that vary together."""

    first: tuple[tuple[str, ...], ...]
    second: tuple[tuple[str, ...], ...]
    at: int
    places: tuple[tuple[int, int], ...] = ()

    def varies(self, first: int, second: int, words: bool) -> bool:
        """Whether it may be joined with others there: expanding takes the places of both names in one order."""
        if first >= len(self.first) or second >= len(self.second):
            return False
        pieces = [self.second[second]] if self.alone else [self.first[first], self.second[second]]
        fit = all(len(piece) == 1 and (_WORD if words else _NUMBER).fullmatch(piece[0]) for piece in pieces)
        return fit and (self.alone or all((a < first) == (b < second) and a != first for a, b in self.places))

    @property
    def alone(self) -> bool:
        """The first name is empty, so that only the second is folded."""
        return self.first == (("",),)


def _joined_at(pairs: list[_Pair], first: int, second: int, words: bool) -> list[_Pair]:
    """Pairs that differ only there joined."""
    groups: dict[Any, list[_Pair]] = {}
    for pair in pairs:
        key: Any = pair.at
        if pair.varies(first, second, words):
            rest = pair.first if pair.alone else (*pair.first[:first], None, *pair.first[first + 1 :])
            key = (rest, *pair.second[:second], None, *pair.second[second + 1 :], pair.places)
        groups.setdefault(key, []).append(pair)
    return [one for some in groups.values() for one in _joined(some, first, second, words)]


def _joined(some: list[_Pair], first: int, second: int, words: bool) -> list[_Pair]:
    if len(some) == 1:
        return some
    one, alone = some[0], some[0].alone
    if not words:
        some = sorted(some, key=lambda pair: int((pair.second[second] if alone else pair.first[first])[0]))
    theirs = ("",) if alone else tuple(pair.first[first][0] for pair in some)
    ours = tuple(pair.second[second][0] for pair in some)
    if len(set(ours)) < len(some) or len(set(theirs)) < len(theirs):
        return some
    joined = _Pair(
        (*one.first[:first], theirs, *one.first[first + 1 :]),
        (*one.second[:second], ours, *one.second[second + 1 :]),
        min(pair.at for pair in some),
        (*one.places, (first, second)),
    )
    wide = words and max(len(_spelled(joined.first)), len(_spelled(joined.second))) > _WIDEST
    return some if wide else [joined]


def _words(name: str) -> list[str]:
    """Numbers, runs of letters, and what stands between them; a name of very many is one piece."""
    pieces = re.findall(r"[0-9]+|[A-Za-z]+|[^0-9A-Za-z]+", name)
    return pieces if pieces and len(pieces) <= 6 * _MOST_NUMBERS else [name]


def _spelled(pieces: tuple[tuple[str, ...], ...]) -> str:
    return "".join(one[0] if len(one) == 1 else "{" + ",".join(_runs(one)) + "}" for one in pieces)


def _runs(words: tuple[str, ...]) -> Iterator[str]:
    """The words in their order, numbers that count up as `0-11`."""
    start = 0
    for at, word in enumerate(words, 1):
        counts_on = at < len(words) and _NUMBER.fullmatch(word) and words[at] == str(int(word) + 1)
        if not counts_on:
            yield word if at - start == 1 else f"{words[start]}-{word}"
            start = at


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
