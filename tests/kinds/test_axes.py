"""Patterns of axes: against einops, and against numpy where einops has no such pattern."""

import numpy as np
import pytest
from einops import rearrange

from converter.kinds.axes import Pattern, pattern


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def there_and_back(text, arrays, shapes, **sizes) -> list[np.ndarray]:
    """The arrays on the right; the way back gives the left to the bit, and the shapes of the right tell those of it."""
    found = pattern(text)
    results = found.apply(arrays, shapes, sizes)
    assert [result.shape for result in results] == list(shapes)
    left = [array.shape for array in arrays]
    assert list(found.shapes(shapes, sizes)) == left
    for array, back in zip(arrays, found.reversed().apply(results, left, sizes), strict=True):
        np.testing.assert_array_equal(back, array)
    return results


@pytest.mark.parametrize(
    ("text", "shape", "sizes"),
    [
        ("o i kh kw -> kh kw i o", (2, 3, 4, 5), {}),
        ("i o kh kw -> kh kw o i", (2, 3, 4, 5), {}),
        ("(c m) 1 kh kw -> kh kw c m", (6, 1, 2, 3), {"m": 2}),
        ("o i 1 1 -> i o", (4, 3, 1, 1), {}),
        ("o (h d) -> h d o", (5, 12), {"h": 3}),
        ("o (c h w) -> (h w c) o", (5, 24), {"c": 2, "h": 3}),
        ("o c h w -> (h w c) o", (5, 2, 3, 4), {"c": 2, "h": 3}),
        ("(w h) c -> (h w) c", (12, 5), {"h": 3}),
        ("1 c h w -> 1 h w c", (1, 2, 3, 4), {}),
        ("... c -> c ...", (2, 3, 4), {}),
    ],
)
def test_one_array_as_einops_lays_it_out(text, shape, sizes):
    x = drawn(*shape)
    expected = rearrange(x, text, **sizes)
    [got] = there_and_back(text, [x], [expected.shape], **sizes)
    np.testing.assert_array_equal(got, expected)


def test_one_array_is_a_view_where_it_can_be():
    x = drawn(4, 3, 2)
    [got] = pattern("a b c -> c a b").apply([x], [(2, 4, 3)])
    assert np.shares_memory(got, x)


def test_leading_ones():
    [got] = there_and_back("c -> * c", [drawn(3)], [(1, 1, 3)])
    np.testing.assert_array_equal(got[0, 0], drawn(3))


def test_blocks_of_different_lengths_come_apart_and_together():
    x = drawn(9, 6)
    parts = there_and_back("(q + k + v) i -> i q, i k, i v", [x], [(6, 4), (6, 3), (6, 2)])
    np.testing.assert_array_equal(np.concatenate(parts, 1).T, x)
    [packed] = there_and_back("q i, k i, v i -> i (k + q + v)", [x[:4], x[4:7], x[7:]], [(6, 9)], q=4, k=3)
    np.testing.assert_array_equal(packed.T, np.concatenate([x[4:7], x[:4], x[7:]]))


def test_blocks_in_another_order():
    x = drawn(9, 6)
    [got] = there_and_back("(r + z + n) i -> i (z + r + n)", [x], [(6, 9)])
    np.testing.assert_array_equal(got.T, np.concatenate([x[3:6], x[:3], x[6:]]))


def test_blocks_within_each_head():
    x = drawn(2 * 3 * 4, 6)
    parts = there_and_back(
        "(h (q + k + v) d) i -> i h (q d), i h (k d), i h (v d)", [x], [(6, 2, 4)] * 3, q=1, k=1, v=1
    )
    for place, part in enumerate(parts):
        np.testing.assert_array_equal(part, x.reshape(2, 3, 4, 6)[:, place].transpose(2, 0, 1))


def test_two_into_two():
    x, y = drawn(4, 3), drawn(2, 3)
    first, second = there_and_back("(a + b) i, c i -> i a, i (b + c)", [x, y], [(3, 1), (3, 5)], a=1, b=3)
    np.testing.assert_array_equal(first.T, x[:1])
    np.testing.assert_array_equal(second.T, np.concatenate([x[1:], y]))


def test_empty_arrays():
    there_and_back("o i -> i o", [np.zeros((0, 3))], [(3, 0)])
    there_and_back("(a + b) i -> i a, i b", [np.zeros((4, 0))], [(0, 3), (0, 1)])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("o i", "has two sides"),
        ("o i -> o j", "do not hold the same axes"),
        ("o i -> o", "do not hold the same axes"),
        ("(a +) b -> a b", "hold names"),
        ("(a -> a", "hold names"),
        ("a) -> a", "stands where an axis should"),
        ("o o -> o o", "stands twice"),
        ("(1 + 1) i -> i, i", "have the same axes; give each a name"),
        ("o,i; -> o, i", "is no axis"),
        ("-> a", "do not hold the same axes"),
    ],
)
def test_what_is_no_pattern(text, told):
    with pytest.raises(ValueError, match=told):
        Pattern(text)


@pytest.mark.parametrize(
    ("text", "given", "wanted", "sizes", "told"),
    [
        ("o i -> i o", (4, 3), (4, 3), {}, "the axis . of 'o i -> i o' has length"),
        ("o i -> i o", (4, 3, 2), (3, 4), {}, r"shape \(4, 3, 2\) does not have the axes \(o i\)"),
        ("o (c h w) -> (h w c) o", (5, 24), (24, 5), {}, "no shape tells the length of [chw]"),
        ("o (c h w) -> (h w c) o", (5, 24), (24, 5), {"h": 5, "w": 2}, "length 24, which is no multiple of 10"),
        ("o (c h w) -> (h w c) o", (5, 24), (24, 5), {"h": 3, "w": 2, "c": 5}, "has length 24, not 30"),
        ("(a + b) i -> i (b + a)", (5, 3), (3, 5), {}, "has length 5, which gives no length to a"),
    ],
)
def test_shapes_that_do_not_fit(text, given, wanted, sizes, told):
    with pytest.raises(ValueError, match=told):
        pattern(text).apply([np.zeros(given)], [wanted], sizes)
