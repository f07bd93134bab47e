"""What is packed on one side: one pattern out of those of its parts."""

import re
from collections.abc import Sequence

from converter.matching.filling import Way
from converter.matching.laying import with_sizes

_SUM = "+"  # stands for the blocks, one behind another


def packed_pattern(ways: Sequence[Way], packed: str) -> tuple[str, dict[str, int]]:
    """The pattern of all parts together, and the lengths that no shape tells; "" where they do not go together.

    Each part has a block p0, p1, ... of the packed axis. Blocks that are equally long are of length 1, and what an axis
    is made of stands behind: `((p0 + p1) o) i -> i (p0 o), i (p1 o)`. Else the block is the axis: `(p0 + p1) i -> i p0,
    i p1`.

    Args:
        ways: those of the parts, in the order of the blocks.
        packed: "theirs" or "ours", the side that is packed.
    """
    blocks = [way.theirs if packed == "theirs" else way.ours for way in ways]
    first = blocks[0]
    if first is None or any(one is None or (one.axis, one.outer) != (first.axis, first.outer) for one in blocks):
        return "", {}
    equal = len(set(first.shares)) == 1
    heads = ["heads"] if first.outer > 1 else []
    names = [f"p{place}" for place in range(len(ways))]
    together, apart = set(), []
    for name, way in zip(names, ways, strict=True):
        text, sizes = with_sizes(way.axes)
        if sizes or way.rows is not None:
            return "", {}
        whole, single = _sides(text, packed)
        inside = whole[first.axis]
        if inside == ["1"]:  # an axis that counts the parts
            whole[first.axis] = [_SUM]
            at = next((place for place, axis in enumerate(single) if axis != ["1"]), 0)
            single[at] = [name, *(word for word in single[at] if word != "1")]
        else:
            whole[first.axis] = [*heads, _SUM, *(inside if equal else inside[1:])]
            mark = [*heads, name, *([inside[0]] if equal else [])]
            single = [[one for word in axis for one in (mark if word == inside[0] else [word])] for axis in single]
        together.add(_text(whole, names))
        apart.append(_text(single, names))
    if len(together) > 1:
        return "", {}
    sides = [together.pop(), ", ".join(apart)]
    lengths = {**(dict.fromkeys(names, 1) if equal else {}), **dict.fromkeys(heads, first.outer)}
    return " -> ".join(sides if packed == "theirs" else reversed(sides)), lengths


def _sides(text: str, packed: str) -> tuple[list[list[str]], list[list[str]]]:
    """The words of each axis, on the packed side and on the other: `(a b) c` is [[a, b], [c]]."""
    left, right = text.split(" -> ")
    if left == right == "...":
        left = right = "c"
    sides = [[word.strip("()").split() for word in re.findall(r"\([^)]*\)|\S+", side)] for side in (left, right)]
    return (sides[0], sides[1]) if packed == "theirs" else (sides[1], sides[0])


def _text(axes: list[list[str]], names: list[str]) -> str:
    total = f"({' + '.join(names)})"
    spelled = []
    for axis in axes:
        words = [total if word == _SUM else word for word in axis]
        spelled.append(words[0] if len(words) == 1 else f"({' '.join(words)})")
    return " ".join(spelled)
