"""In which ways a tensor may become a variable: patterns of axes, the likeliest first, for shapes that do not tell.

Axis letters: o output channels, i input channels, k kernel taps (kd, kh, kw), c channels, m depth multiplier, a, b, ...
axes of what is no kernel.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import islice, permutations, product

Shape = tuple[int, ...]

_KERNEL_AXES = {2: "o i", 3: "o i k", 4: "o i kh kw", 5: "o i kd kh kw"}
_LETTERS = "abcdefgh"
_MOST = 24  # patterns that are tried for one tensor


def layouts(
    theirs: Shape,
    ours: Shape,
    kernel: bool = True,
    depthwise: bool = False,
    in_out: bool = False,
    factors: Sequence[Shape] = (),
) -> list[str]:
    """Patterns that make a variable of the shape `ours` of a tensor of the shape `theirs`.

    Args:
        kernel: it takes what flows through it to something else, so that Keras has its axes in another order.
        depthwise: Keras's layer is depthwise.
        in_out: torch's module holds its kernel (in, out), as transformers' Conv1D does.
        factors: what an axis of the tensor may be made of, in torch's order: (channels, height, width) where an image
            was flattened, (heads, channels of a head).
    """
    found = dict.fromkeys(islice(_every(theirs, ours, kernel, depthwise, in_out, factors), 4 * _MOST))
    return list(found)[:_MOST]


def _every(
    theirs: Shape, ours: Shape, kernel: bool, depthwise: bool, in_out: bool, factors: Sequence[Shape]
) -> Iterator[str]:
    if math.prod(theirs) != math.prod(ours):
        return
    if depthwise and len(theirs) >= 3 and theirs[1] == 1 and len(ours) == len(theirs):
        taps = _KERNEL_AXES[len(theirs)].split()[2:]
        if ours[:-2] == theirs[2:] and ours[-2] * ours[-1] == theirs[0]:
            yield f"(c m) 1 {' '.join(taps)} -> {' '.join(taps)} c m"
    if len(theirs) == len(ours) <= 1:
        yield "... -> ..."
        return
    if kernel and not in_out:
        names = _KERNEL_AXES.get(len(theirs), "").split()
        if len(ours) == len(theirs) and ours == (*theirs[2:], theirs[1], theirs[0]) and names:
            yield f"{' '.join(names)} -> {' '.join([*names[2:], 'i', 'o'])}"
        yield from _reordered(theirs, ours, True)
        yield from _split(theirs, ours, True)
    if theirs == ours and (in_out or not kernel):
        yield "... -> ..."
    yield from _reordered(theirs, ours, False)
    yield from _split(theirs, ours, kernel and not in_out)
    yield from _joined(theirs, ours)
    yield from _refactored(theirs, ours, factors)


def _names(shape: Shape) -> list[str]:
    """A name for each axis; "1" for one of that length."""
    usual = _KERNEL_AXES.get(len(shape))
    names = usual.split() if usual else list(_LETTERS[: len(shape)])
    return ["1" if length == 1 else name for name, length in zip(names, shape, strict=True)]


def _with_ones(names: Sequence[str], shape: Shape) -> str:
    """The names of axes longer than 1, in their order, with "1" for each other axis of the shape."""
    rest = iter(names)
    return " ".join("1" if length == 1 else next(rest) for length in shape)


def _reordered(theirs: Shape, ours: Shape, turned: bool) -> Iterator[str]:
    """Axes change places, and those of length 1 come and go; `turned` is the way of kernels: (o i k) to (k i o)."""
    names = _names(theirs)
    real = [name for name in names if name != "1"]
    lengths = dict(zip(names, theirs, strict=True))
    wanted = [length for length in ours if length > 1]
    if len(real) != len(wanted):
        return
    left = " ".join(names)
    orders = list(permutations(real))
    if turned:
        kernel = [name for name in ("kd", "kh", "kw", "k", "i", "o", *_LETTERS) if name in real]
        orders = [tuple(kernel)] if len(theirs) in _KERNEL_AXES else []
    for order in orders:
        if [lengths[name] for name in order] == wanted:
            yield f"{left} -> {_with_ones(order, ours)}"


def _split(theirs: Shape, ours: Shape, kernel: bool) -> Iterator[str]:
    """An axis of the tensor is several of the variable's: heads and what is in them."""
    real = [place for place, length in enumerate(theirs) if length > 1]
    wanted = [place for place, length in enumerate(ours) if length > 1]
    if not real or len(wanted) <= len(real) or len(wanted) > 6:
        return
    letters = dict(zip(wanted, _LETTERS, strict=False))
    ways = []
    for owners in product(real, repeat=len(wanted)):
        mine = {axis: [p for p, owner in zip(wanted, owners, strict=True) if owner == axis] for axis in real}
        if any(math.prod(ours[p] for p in mine[axis]) != theirs[axis] for axis in real):
            continue
        # Keras keeps what an input is made of in front, and what is made of it behind.
        turned = list(reversed(real)) if kernel else real
        order = [axis for axis in turned for _ in mine[axis]]
        ways.append((sum(one != other for one, other in zip(order, owners, strict=True)), mine))
    for _, mine in sorted(ways, key=lambda way: way[0]):
        for orders in product(*(permutations(mine[axis]) for axis in real)):
            inside = dict(zip(real, orders, strict=True))
            left = []
            for axis in range(len(theirs)):
                words = [letters[p] for p in inside.get(axis, ())]
                left.append("1" if not words else words[0] if len(words) == 1 else f"({' '.join(words)})")
            yield f"{' '.join(left)} -> {_with_ones([letters[p] for p in wanted], ours)}"


def _joined(theirs: Shape, ours: Shape) -> Iterator[str]:
    """Several axes of the tensor are one of the variable's."""
    for text in _split(ours, theirs, False):
        left, right = text.split(" -> ")
        yield f"{right} -> {left}"


def _refactored(theirs: Shape, ours: Shape, factors: Sequence[Shape]) -> Iterator[str]:
    """What an axis is made of is in another order, though its length is the same."""
    for text in list(_reordered(theirs, ours, True)) + list(_reordered(theirs, ours, False)):
        left, right = (side.split() for side in text.split(" -> "))
        for several in factors:
            for place, length in enumerate(theirs):
                if length == math.prod(several) and left[place] != "1" and len(several) > 1:
                    words = [f"{left[place]}{number}" for number in range(len(several))]
                    for order in permutations(words):
                        if list(order) != words:
                            sides = [
                                " ".join(f"({' '.join(inner)})" if word == left[place] else word for word in side)
                                for side, inner in ((left, words), (right, order))
                            ]
                            sizes = ",".join(f"{w}={n}" for w, n in zip(words, several, strict=True))
                            yield f"{' -> '.join(sides)} : {sizes}"


def with_sizes(text: str) -> tuple[str, dict[str, int]]:
    """A pattern as `layouts` writes it, and the lengths that its shapes do not tell."""
    pattern, _, sizes = text.partition(" : ")
    pairs = (word.split("=") for word in sizes.split(",")) if sizes else ()
    return pattern, {name: int(length) for name, length in pairs}
