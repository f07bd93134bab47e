"""Ways in which a tensor may become a variable: the likeliest stands first, and each gives the shape that it should."""

import numpy as np
import pytest

from converter.kinds.axes import pattern
from converter.matching.laying import layouts, with_sizes

FIRST = [
    ((64, 3, 7, 7), (7, 7, 3, 64), {}, "o i kh kw -> kh kw i o"),
    ((8, 8, 1, 1), (1, 1, 8, 8), {}, "o i kh kw -> kh kw i o"),
    ((8, 8, 1, 1), (8, 8), {}, "o i 1 1 -> i o"),
    ((8, 8), (8, 8), {}, "o i -> i o"),
    ((8, 8), (8, 8), {"in_out": True}, "... -> ..."),
    ((8, 8), (8, 8), {"kernel": False}, "... -> ..."),
    ((8, 6), (6, 2, 4), {}, "(b c) a -> a b c"),
    ((6, 8), (2, 4, 6), {}, "c (a b) -> a b c"),
    ((8,), (2, 4), {}, "(a b) -> a b"),
    ((8,), (8,), {}, "... -> ..."),
    ((12, 1, 3, 3), (3, 3, 6, 2), {"depthwise": True}, "(c m) 1 kh kw -> kh kw c m"),
    ((1, 1, 8), (8,), {"kernel": False}, "1 1 k -> k"),
    ((2, 3, 5), (6, 5), {"kernel": False}, "a b c -> (a b) c"),
]


@pytest.mark.parametrize(("theirs", "ours", "how", "text"), FIRST)
def test_the_likeliest_stands_first(theirs, ours, how, text):
    assert layouts(theirs, ours, **how)[0] == text


@pytest.mark.parametrize(("theirs", "ours", "how"), [case[:3] for case in FIRST])
def test_every_way_keeps_all_values_and_gives_the_shape(theirs, ours, how):
    tensor = np.random.default_rng(0).normal(size=theirs)
    for text in layouts(theirs, ours, **how):
        axes, sizes = with_sizes(text)
        [laid] = pattern(axes).apply([tensor], [ours], sizes)
        assert laid.shape == ours
        np.testing.assert_array_equal(np.sort(laid, None), np.sort(tensor, None))


def test_an_axis_is_taken_apart_where_an_image_was_flattened():
    found = layouts((7, 40), (40, 7), factors=[(2, 4, 5)])
    assert found[0] == "o i -> i o"
    assert "o (i0 i1 i2) -> (i1 i2 i0) o : i0=2,i1=4,i2=5" in found


def test_what_holds_another_number_of_values_has_no_way():
    assert layouts((8, 6), (6, 9)) == []
