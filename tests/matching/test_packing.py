"""The pattern of what is packed does at once what its parts do one by one."""

import numpy as np
import pytest

from converter.kinds.axes import pattern
from converter.matching.filling import Block, Way
from converter.matching.laying import layouts, with_sizes
from converter.matching.packing import packed_pattern

CASES = [
    # shape of what is packed, axis, shares, blocks for each of so many heads, shape of each part
    ((24, 8), 0, (1, 1, 1), 1, [(8, 8)] * 3),
    ((24, 8), 0, (1, 1, 1), 2, [(8, 8)] * 3),
    ((24, 8), 0, (1, 1, 1), 1, [(8, 2, 4)] * 3),
    ((24, 8), 0, (1, 1, 1), 2, [(8, 2, 4)] * 3),
    ((24,), 0, (1, 1, 1), 1, [(8,)] * 3),
    ((24,), 0, (1, 1, 1), 1, [(2, 4)] * 3),
    ((16, 8), 0, (1, 1), 1, [(8, 8)] * 2),
    ((16, 8), 0, (2, 1, 1), 1, [(8, 8), (8, 4), (8, 4)]),
    ((3, 8, 8), 0, (1, 1, 1), 1, [(8, 8)] * 3),
]


@pytest.mark.parametrize("packed", ["theirs", "ours"])
@pytest.mark.parametrize(("whole", "axis", "shares", "outer", "shapes"), CASES)
def test_all_parts_at_once(whole, axis, shares, outer, shapes, packed):
    value = np.arange(float(np.prod(whole))).reshape(whole)
    ways, parts = [], []
    for which, shape in enumerate(shapes):
        block = Block(axis, which, shares, outer)
        some = block.shape(whole)
        sides = (some, shape) if packed == "theirs" else (shape, some)
        text = layouts(*sides)[0]
        ways.append(Way(text, *((block, None) if packed == "theirs" else (None, block))))
        axes, sizes = with_sizes(text)
        there = pattern(axes) if packed == "theirs" else pattern(axes).reversed()
        parts.append(there.apply([block.of(value).reshape(some)], [shape], sizes)[0])
    text, sizes = packed_pattern(ways, packed)
    found = pattern(text) if packed == "theirs" else pattern(text).reversed()
    for one, other in zip(found.apply([value], shapes, sizes), parts, strict=True):
        np.testing.assert_array_equal(one, other)


def test_parts_that_lie_along_different_axes_do_not_go_together():
    ways = [Way("o i -> i o", Block(0, 0, (1, 1))), Way("o i -> i o", Block(1, 1, (1, 1)))]
    assert packed_pattern(ways, "theirs") == ("", {})
