"""From pairs of units to values of variables: which tensor fills which, in which of several layouts."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product

import numpy as np

from converter.kinds.axes import pattern
from converter.matching.laying import layouts, with_sizes
from converter.matching.units import Shape, Unit, leaf_of

_ROLES = {
    "weight": ("kernel", "gamma", "embeddings", "scale", "alpha", "weight"),
    "bias": ("bias", "beta"),
    "gamma": ("gamma", "scale", "weight"),
    "beta": ("beta", "bias"),
    "running_mean": ("moving_mean",),
    "running_var": ("moving_variance",),
}
# What a variable holds that no tensor fills, where the layer is to do nothing by it.
_NEUTRAL: dict[str, float] = {"bias": 0, "beta": 0, "moving_mean": 0, "gamma": 1, "scale": 1, "moving_variance": 1}
_MOST = 24  # ways to lay out a unit that are tried


@dataclass(frozen=True)
class Piece:
    """A tensor, or a part of it, and the variable, or the part of it, that it fills; `ways` are the layouts."""

    tensor: str
    variable: str
    ways: tuple["Way", ...]


@dataclass(frozen=True)
class Way:
    """One way to make the variable of the tensor.

    Attributes:
        axes: pattern from the tensor's part to the variable's.
        theirs, ours: where the part is in the tensor and in the variable, or None where it is all of it.
        rows: (from, to, of how many) rows of the tensor that are taken, or None where all are.
    """

    axes: str
    theirs: "Block | None" = None
    ours: "Block | None" = None
    rows: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Block:
    """One of several blocks that an axis is made of.

    Attributes:
        axis: which.
        which, shares: of how many, and how large each is for the others.
        outer: how many times the blocks come one after another: 1, or the number of heads.
    """

    axis: int
    which: int
    shares: tuple[int, ...]
    outer: int = 1

    def of(self, array: np.ndarray) -> np.ndarray:
        """A view of the block."""
        length = array.shape[self.axis] // self.outer
        unit = length // sum(self.shares)
        start = unit * sum(self.shares[: self.which])
        split = array.reshape(*array.shape[: self.axis], self.outer, length, *array.shape[self.axis + 1 :])
        places = [slice(None)] * split.ndim
        places[self.axis + 1] = slice(start, start + unit * self.shares[self.which])
        return split[tuple(places)]

    def shape(self, whole: Shape) -> Shape:
        """Its shape, in an array of the shape `whole`."""
        length = whole[self.axis] * self.shares[self.which] // sum(self.shares)
        return (*whole[: self.axis], length, *whole[self.axis + 1 :])

    def fits(self, whole: Shape) -> bool:
        """Whether an array of this shape can be made of such blocks."""
        return self.axis < len(whole) and whole[self.axis] % (sum(self.shares) * self.outer) == 0


@dataclass
class Filled:
    """A pair of units, and how its variables are filled.

    Attributes:
        pieces: one for each variable, or part of it.
        constants: variable -> what it is to hold, where no tensor fills it.
        left: tensors that fill nothing.
        choices: (place of the way of each piece), the likeliest first; `chosen` is the one that is taken.
    """

    theirs: Unit
    ours: Unit
    pieces: list[Piece]
    constants: dict[str, float]
    left: list[str]
    choices: list[tuple[int, ...]] = field(default_factory=list)
    chosen: int = 0

    def ways(self) -> Iterator[tuple[Piece, Way]]:
        """Each piece with the way that is chosen."""
        for piece, place in zip(self.pieces, self.choices[self.chosen] if self.choices else (), strict=True):
            yield piece, piece.ways[place]

    def values(
        self, tensor: Callable[[str], np.ndarray], shapes: Mapping[str, Shape]
    ) -> Iterator[tuple[str, Block | None, np.ndarray]]:
        """(variable, which block of it, value) of each."""
        for piece, way in self.ways():
            value = tensor(piece.tensor)
            if way.rows is not None:
                value = value[way.rows[0] : way.rows[1]]
            if way.theirs is not None:
                value = way.theirs.of(value).reshape(way.theirs.shape(value.shape))
            shape = shapes[piece.variable] if way.ours is None else way.ours.shape(shapes[piece.variable])
            text, sizes = with_sizes(way.axes)
            yield piece.variable, way.ours, pattern(text).apply([value], [shape], sizes)[0]
        for variable, number in self.constants.items():
            yield variable, None, np.full(shapes[variable], number, np.float32)


def fill(theirs: Unit, ours: Unit, factors: list[Shape]) -> Filled:
    """How the variables of a unit are filled from its counterpart."""
    pairs, constants, left = _by_role(theirs, ours)
    pieces = []
    for name, variable in pairs:
        ways = tuple(_ways(theirs, ours, name, variable, factors))
        if ways:
            pieces.append(Piece(theirs.full(name), ours.full(variable), ways))
        else:
            left.append(theirs.full(name))
    places = [range(len(piece.ways)) for piece in pieces]
    every = islice(product(*places), 4096)
    alike = [some for some in every if _packed_alike([one.ways[at] for one, at in zip(pieces, some, strict=True)])]
    choices = sorted(alike, key=lambda some: (sum(some), some))[:_MOST]
    named = {ours.full(variable): value for variable, value in constants.items()}
    return Filled(theirs, ours, pieces, named, left, choices)


def _packed_alike(ways: list[Way]) -> bool:
    """Whether the parts of all tensors of a unit are packed alike: for each head, or one behind another."""
    outers = {(way.theirs and way.theirs.outer, way.ours and way.ours.outer) for way in ways}
    return len(outers) <= 1


def _by_role(theirs: Unit, ours: Unit) -> tuple[list[tuple[str, str]], dict[str, float], list[str]]:
    """(tensor, variable) of each pair by what they are for; variables without a tensor; tensors without a variable."""
    rest = dict(ours.tensors)
    pairs, unpaired = [], []
    for name in theirs.tensors:
        wanted = _ROLES.get(leaf_of(name), ())
        variable = next((one for role in wanted for one in rest if leaf_of(one) == role), None)
        if variable is None:
            unpaired.append(name)
        else:
            pairs.append((name, variable))
            del rest[variable]
    for name in list(unpaired):
        size = math.prod(theirs.tensors[name])
        same = [one for one, shape in rest.items() if math.prod(shape) == size or theirs.part or ours.part]
        if len(same) == 1:
            pairs.append((name, same[0]))
            unpaired.remove(name)
            del rest[same[0]]
    constants = {one: _NEUTRAL[leaf_of(one)] for one in rest if leaf_of(one) in _NEUTRAL}
    return pairs, constants, [theirs.full(name) for name in unpaired]


def _ways(theirs: Unit, ours: Unit, name: str, variable: str, factors: list[Shape]) -> Iterator[Way]:
    whole, target = theirs.tensors[name], ours.tensors[variable]
    kernel = leaf_of(name) == "weight" and leaf_of(variable) not in ("embeddings",) and theirs.owner != "Embedding"
    kernel = kernel or (leaf_of(variable) == "kernel")
    in_out = theirs.owner == "Conv1D"
    if theirs.cut and theirs.part is None and len(whole) == len(target) == 2 and whole[0] > target[0]:
        more = whole[0] - target[0]
        for start in (more, 0):
            yield Way("... -> ...", rows=(start, start + target[0], whole[0]))
        return
    heads = [shape for shape in factors if len(shape) == 2]
    found: list[tuple[int, Way]] = []  # the first layouts of each block before the last ones of any
    for block in _blocks(theirs, whole, 1 if in_out and len(whole) == 2 else 0, heads):
        for mine in _blocks(ours, target, len(target) - 1, heads):
            some = whole if block is None else block.shape(whole)
            other = target if mine is None else mine.shape(target)
            for place, axes in enumerate(layouts(some, other, kernel, "Depthwise" in ours.owner, in_out, factors)):
                found.append((place, Way(axes, block, mine)))
    yield from (way for _, way in sorted(found, key=lambda one: one[0]))


def _blocks(unit: Unit, shape: Shape, usual: int, heads: Sequence[Shape]) -> Iterator[Block | None]:
    """Where the unit's part may be in an array of this shape: along the usual axis, or another."""
    if unit.part is None:
        yield None
        return
    which, shares = unit.part
    if len(set(shares)) == 1:  # an axis that counts the parts
        for axis, length in enumerate(shape):
            if length == len(shares) and len(shape) > 1:
                yield Block(axis, which, shares)
    if len(shape) == 1:
        usual = 0
    for axis in dict.fromkeys((usual, *range(len(shape)))):
        block = Block(axis, which, shares)
        if block.fits(shape):
            yield block
    for count, _ in heads:
        block = Block(usual, which, shares, count)
        if count > 1 and block.fits(shape):
            yield block
