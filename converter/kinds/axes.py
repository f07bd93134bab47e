"""Patterns: which axes of which arrays become which axes of others, to be read in both directions.

    o i kh kw -> kh kw i o                                  a convolution's kernel
    o (c h w) -> (h w c) o                                  what flattens an image first
    (q + k + v) i -> i q, i k, i v                          one array into three
    (r + z + n) i -> i (z + r + n)                          blocks in another order
    (h (q + k + v) d) i -> i h (q d), i h (k d), i h (v d)  packed for each head

Names are axes, parentheses hold the factors of one that is composed (the last runs fastest), a sum the blocks that
stand one behind another, a comma separates arrays. `1` is an axis of that length, `...` whatever axes there are, the
same on both sides, and `*` leading axes of length one, as many as the array has.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from math import prod

import numpy as np

_TOKEN = re.compile(r"\s*(\.\.\.|[A-Za-z_]\w*|[1-9]\d*|[()+*])")

Factor = tuple[str, ...]  # the blocks of a sum; a single name where there is none
Axis = tuple[Factor, ...]  # the factors of an axis
Side = tuple[tuple[Axis, ...], ...]  # the axes of each array


@dataclass(frozen=True)
class Pattern:
    """Arrays on the left (torch's) and on the right (Keras's) that hold the same values.

    Raises:
        ValueError: `text` is none, or its two sides do not hold the same.
    """

    text: str
    left: Side = field(init=False, repr=False, compare=False)
    right: Side = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sides = self.text.split("->")
        if len(sides) != 2:
            raise ValueError(f"a pattern has two sides, as in `o i -> i o`; {self.text!r} has {len(sides)}")
        for name, side in zip(("left", "right"), sides, strict=True):
            object.__setattr__(self, name, tuple(_axes(one, self.text) for one in side.split(",")))
        found = [[frozenset(block) for array in side for block in _blocks(array)] for side in (self.left, self.right)]
        if sorted(map(sorted, found[0])) != sorted(map(sorted, found[1])):
            raise ValueError(f"the two sides of {self.text!r} do not hold the same axes")
        if len(set(found[0])) < len(found[0]):
            raise ValueError(f"two blocks of {self.text!r} have the same axes; give each a name of its own")

    @property
    def sides(self) -> tuple[str, str]:
        """The text of both."""
        left, right = self.text.split("->")
        return left.strip(), right.strip()

    def reversed(self) -> "Pattern":
        """Right to left."""
        return Pattern(" -> ".join(reversed(self.sides)))

    def shapes(
        self, shapes: Sequence[tuple[int, ...]], sizes: Mapping[str, int] | None = None
    ) -> tuple[tuple[int, ...], ...]:
        """The shapes on the left, of arrays of `shapes` on the right; `sizes` are lengths that those do not tell.

        Raises:
            ValueError: the shapes do not have these axes, or not enough is known.
        """
        right = self._written_out(self.right, shapes)
        lengths = _lengths(right, shapes, dict(sizes or {}), self.text)
        rest = _rest(right, shapes)
        found = []
        for array in self.left:
            shape: list[int] = []
            for axis in array:
                shape += rest if axis == (("...",),) else [_length(axis, lengths, self.text)]
            found.append(tuple(shape))
        return tuple(found)

    def apply(
        self,
        arrays: Sequence[np.ndarray],
        shapes: Sequence[tuple[int, ...]],
        sizes: Mapping[str, int] | None = None,
    ) -> list[np.ndarray]:
        """The arrays on the right, of these shapes, made of those on the left: views where numpy can make them.

        Raises:
            ValueError: the shapes do not fit.
        """
        right = self._written_out(self.right, shapes)
        known = [array.shape for array in arrays]
        left = self._written_out(self.left, known)
        lengths = _lengths((*left, *right), (*known, *shapes), dict(sizes or {}), self.text)
        for axis in (axis for array in left for axis in array if axis != (("...",),)):
            _length(axis, lengths, self.text)
        rest = _rest((*left, *right), (*known, *shapes))
        pieces: dict[frozenset[str], tuple[np.ndarray, list[str]]] = {}
        for array, axes in zip(arrays, left, strict=True):
            factors = [factor for axis in axes for factor in axis]
            whole = array.reshape(_split(factors, lengths, rest))
            for names in product(*factors):
                part = whole[_places(names, factors, lengths, rest)]
                pieces[frozenset(names) - {"1"}] = part, _dimensions(names, rest)
        results = []
        for shape, axes in zip(shapes, right, strict=True):
            factors = [factor for axis in axes for factor in axis]
            blocks = list(product(*factors))
            laid = [_turned(*pieces[frozenset(names) - {"1"}], _dimensions(names, rest)) for names in blocks]
            if len(blocks) == 1:
                results.append(laid[0].reshape(shape))
                continue
            whole = np.empty(_split(factors, lengths, rest), arrays[0].dtype)
            for names, part in zip(blocks, laid, strict=True):
                whole[_places(names, factors, lengths, rest)] = part
            results.append(whole.reshape(shape))
        return results

    def _written_out(self, side: Side, shapes: Sequence[tuple[int, ...]]) -> Side:
        """The side with a `*` as so many ones.

        Raises:
            ValueError: a shape has not as many axes as its array.
        """
        if len(shapes) != len(side):
            raise ValueError(f"{self.text!r} is for {len(side)} arrays there, not {len(shapes)}")
        found = []
        for array, shape in zip(side, shapes, strict=True):
            if (("*",),) in array:
                ones = len(shape) - len(array) + 1
                array = tuple(one for axis in array for one in ([(("1",),)] * ones if axis == (("*",),) else [axis]))
            elastic = (("...",),) in array
            if len(array) != len(shape) and not (elastic and len(shape) >= len(array) - 1):
                shown = " ".join(map(_shown, array))
                raise ValueError(f"an array of shape {shape} does not have the axes ({shown})")
            found.append(array)
        return tuple(found)


@lru_cache(maxsize=4096)
def pattern(text: str) -> Pattern:
    """The pattern of this text, read once."""
    return Pattern(text)


def _axes(text: str, whole: str) -> tuple[Axis, ...]:
    tokens, end = [], 0
    text = text.rstrip()
    while end < len(text):
        match = _TOKEN.match(text, end)
        if match is None:
            raise ValueError(f"{text[end:].strip()!r} in {whole!r} is no axis")
        tokens.append(match[1])
        end = match.end()
    axes: list[Axis] = []
    while tokens:
        token = tokens.pop(0)
        if token == "(":
            axes.append(_composed(tokens, whole))
        elif token in (")", "+"):
            raise ValueError(f"{token!r} in {whole!r} stands where an axis should")
        else:
            axes.append(((token,),))
    names = [name for axis in axes for factor in axis for name in factor if name != "1"]
    if len(set(names)) < len(names):
        raise ValueError(f"an axis stands twice in one array of {whole!r}")
    return tuple(axes)


def _composed(tokens: list[str], whole: str) -> Axis:
    """The factors up to the closing parenthesis, each a name or a sum; a sum may stand in parentheses of its own."""
    factors: list[Factor] = []
    plus = False
    while tokens:
        token = tokens.pop(0)
        if token == ")":
            if plus or not factors:
                break
            return tuple(factors)
        if token == "+":
            if plus or not factors:
                break
            plus = True
            continue
        if token == "(":
            inner = _composed(tokens, whole)
            if len(inner) != 1 or plus:
                break
            factors.append(inner[0])
            continue
        if token in ("...", "*"):
            break
        if plus:
            factors[-1] = (*factors[-1], token)
        else:
            factors.append((token,))
        plus = False
    raise ValueError(f"parentheses in {whole!r} hold names, or names with + between them")


def _blocks(array: tuple[Axis, ...]) -> Iterator[tuple[str, ...]]:
    for names in product(*(factor for axis in array for factor in axis)):
        yield tuple(name for name in names if name not in ("1", "*"))


def _lengths(side: Side, shapes: Sequence[tuple[int, ...]], known: dict[str, int], text: str) -> dict[str, int]:
    """The length of every name that the shapes tell.

    Blocks of a sum of which nothing else tells the lengths are equally long.

    Raises:
        ValueError: they contradict one another.
    """
    equations: list[tuple[Axis, int]] = []
    for array, shape in zip(side, shapes, strict=True):
        split = array.index((("...",),)) if (("...",),) in array else len(array)
        tail = len(array) - split - 1
        equations += zip(array[:split], shape[:split], strict=False)
        equations += zip(array[split + 1 :], shape[len(shape) - tail :], strict=True) if tail > 0 else ()
    known["1"] = 1
    known.update({name: int(name) for axis, _ in equations for factor in axis for name in factor if name.isdigit()})
    for equal_shares in (False, True):
        changed = True
        while changed:
            changed = False
            for axis, length in equations:
                changed |= _solve(axis, length, known, equal_shares, text)
    return known


def _solve(axis: Axis, length: int, known: dict[str, int], equal_shares: bool, text: str) -> bool:
    """Find a name that the length of this axis tells; whether there was one."""
    unknown = [factor for factor in axis if any(name not in known for name in factor)]
    rest = prod(sum(known[name] for name in factor) for factor in axis if factor not in unknown)
    if not unknown:
        if rest != length:
            raise ValueError(f"the axis {_shown(axis)} of {text!r} has length {length}, not {rest}")
        return False
    if len(unknown) > 1 or not rest:
        return False
    if length % rest:
        raise ValueError(f"the axis {_shown(axis)} of {text!r} has length {length}, which is no multiple of {rest}")
    [factor] = unknown
    names = [name for name in factor if name not in known]
    left = length // rest - sum(known[name] for name in factor if name in known)
    if left < 0 or (equal_shares and left % len(names)):
        raise ValueError(
            f"the axis {_shown(axis)} of {text!r} has length {length}, which gives no length to {names[0]}"
        )
    if len(names) > 1 and not equal_shares:
        return False
    known.update(dict.fromkeys(names, left // len(names)))
    return True


def _length(axis: Axis, lengths: Mapping[str, int], text: str) -> int:
    lacking = [name for factor in axis for name in factor if name not in lengths and not name.isdigit()]
    if lacking:
        raise ValueError(f"no shape tells the length of {lacking[0]} in {text!r}; give it as a size")
    return prod(sum(lengths.get(name, int(name) if name.isdigit() else 0) for name in factor) for factor in axis)


def _rest(side: Side, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """What `...` stands for."""
    for array, shape in zip(side, shapes, strict=True):
        if (("...",),) in array:
            split = array.index((("...",),))
            return tuple(shape[split : len(shape) - (len(array) - split - 1)])
    return ()


def _split(factors: list[Factor], lengths: Mapping[str, int], rest: tuple[int, ...]) -> list[int]:
    """The shape with an axis for each factor."""
    shape: list[int] = []
    for factor in factors:
        shape += rest if factor == ("...",) else [sum(lengths[name] for name in factor)]
    return shape


def _places(
    names: tuple[str, ...], factors: list[Factor], lengths: Mapping[str, int], rest: tuple[int, ...]
) -> tuple[slice, ...]:
    """Where the block of these names is in an array with an axis for each factor."""
    places: list[slice] = []
    for name, factor in zip(names, factors, strict=True):
        if factor == ("...",):
            places += [slice(None)] * len(rest)
            continue
        start = sum(lengths[before] for before in factor[: factor.index(name)])
        places.append(slice(start, start + lengths[name]))
    return tuple(places)


def _dimensions(names: tuple[str, ...], rest: tuple[int, ...]) -> list[str]:
    """A name for each axis of a block: those of `...` are numbered, and those of length 1 too."""
    found: list[str] = []
    for name in names:
        found += [f"...{place}" for place in range(len(rest))] if name == "..." else [name]
    return found


def _turned(part: np.ndarray, have: list[str], want: list[str]) -> np.ndarray:
    """A block with its axes in another order; axes of length one come and go."""
    kept = [place for place, name in enumerate(have) if name != "1"]
    bare = part.reshape([part.shape[place] for place in kept]) if len(kept) < len(have) else part
    names = [have[place] for place in kept]
    turned = bare.transpose([names.index(name) for name in want if name != "1"])
    if "1" not in want:
        return turned
    return turned[tuple(None if name == "1" else slice(None) for name in want)]


def _shown(axis: Axis) -> str:
    words = [" + ".join(factor) for factor in axis]
    if len(axis) == 1 and len(axis[0]) == 1:
        return words[0]
    return f"({' '.join(f'({word})' if '+' in word and len(words) > 1 else word for word in words)})"


def relaid(array: np.ndarray, text: str) -> np.ndarray:
    """One array in the other axes of a pattern, `text`; a view where numpy can make one.

    Raises:
        ValueError: it does not have the pattern's axes.
    """
    found = pattern(text)
    return found.apply([array], [relaid_shape(array.shape, text)])[0]


def relaid_shape(shape: tuple[int, ...], text: str) -> tuple[int, ...]:
    """Its shape, without the values.

    Raises:
        ValueError: it does not have the pattern's axes.
    """
    [found] = pattern(text).reversed().shapes([shape])
    return found
