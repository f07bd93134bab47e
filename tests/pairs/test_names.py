"""Tables, dialects and lists of names: everything that works on text alone."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import printable, shorten
from converter.kinds import BATCH_NORM, DENSE
from converter.kinds.activations import arrange
from converter.naming import fold, fold_pairs, listed, nearest
from converter.pairs.dialects import Dialect, unwrapped
from converter.pairs.mapping import Drop, Mapping, Row, expand, join
from converter.pairs.pair import Pair


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.b", ["a.b"]),
        ("{q,k}_proj", ["q_proj", "k_proj"]),
        ("l.{0-2}.n{1-2}", ["l.0.n1", "l.0.n2", "l.1.n1", "l.1.n2", "l.2.n1", "l.2.n2"]),
        ("x{9-11}", ["x9", "x10", "x11"]),
        ("x{1,3-4,b}", ["x1", "x3", "x4", "xb"]),
    ],
)
def test_braces_expand(path, expected):
    assert expand(path) == expected


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        ("a b", "a pattern has two sides"),
        ("a b -> b c", "the two sides of 'a b -> b c' do not hold the same axes"),
        ("(a b -> b a", "parentheses"),
        ("a, b -> b, a", "a pattern of inputs and results is of one array"),
        (None, "a pattern is text"),
    ],
)
def test_patterns_are_read_when_they_are_given(axes, told):
    with pytest.raises(ValueError, match=f"^`axes` of the pair net, x: .*{told}"):
        Pair("net", mapping=None, probes=None, axes={"x": axes})
    for field in ("inputs", "results"):
        kind = replace(DENSE, **{field: {"0": axes}})
        with pytest.raises(ValueError, match=f"^`{field}` of the kind DENSE, '0': .*{told}"):
            Mapping([Row("l", kind)])


def test_channels_first_is_a_set():
    with pytest.raises(ValueError, match="`channels_first` of the pair net is a set of names, not 'image'"):
        Pair("net", mapping=None, probes=None, channels_first="image")


def test_an_array_that_has_not_the_axes_is_named():
    with pytest.raises(ValueError, match=r"^x\.1: an array of shape \(2, 3\) does not have the axes \(n c l\)"):
        arrange({"x": (np.ones(1), np.ones((2, 3)))}, {"x.1": "n c l -> n l c"})


@pytest.mark.parametrize("path", ["{", "a}", "{}", "{3-1}", "{a,}", "{{a}}"])
def test_bad_braces_are_errors(path):
    with pytest.raises(ValueError, match=r"brace|choice"):
        expand(path)


def test_a_table_names_modules_tensors_and_what_it_leaves_out():
    table = Mapping([Row("l.{0-1}", DENSE, "layer.{0-1}"), Row("bn", BATCH_NORM), Drop("mask", "it is rebuilt")])
    assert list(table.modules())[1] == ("l.1", "layer.1", DENSE)
    assert ("l.0.weight", False) in list(table.tensors())
    assert ("l.0.bias", True) in list(table.tensors())
    assert set(table.ignored()) == {"mask", "bn.num_batches_tracked"}


def test_a_path_in_two_rows_is_an_error():
    with pytest.raises(ValueError, match=r"two rows name 'l\.1'"):
        Mapping([Row("l.{0-1}", DENSE), Row("l.1", DENSE)])
    with pytest.raises(ValueError, match="names 2 modules"):
        Mapping([Row("l.{0-1}", DENSE, "m")])


def test_a_dialect_renames_modules_whatever_their_number():
    dialect = Dialect("theirs", (("block.{i}.ln{j}", "layers.{i}.norm{j}"), ("head.0", "head.1")))
    assert dialect.canonical("block.12.ln2.weight") == "layers.12.norm2.weight"
    assert dialect.canonical("block.12.ln2") == "layers.12.norm2"
    assert dialect.canonical("block.12.ln2x.weight") == "block.12.ln2x.weight"
    assert dialect.canonical("block.012.ln2.weight") == "block.012.ln2.weight"
    assert dialect.canonical("head.0.bias") == "head.1.bias"
    assert dialect.canonical("head.1.bias") == "head.1.bias"


def test_two_rules_for_one_name_are_an_error():
    with pytest.raises(ValueError, match="two rules claim"):
        Dialect("theirs", (("a", "b"), ("a.{i}", "c.{i}"))).canonical("a.0.weight")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("_orig_mod.a._orig_mod.weight", "a.weight"),
        ("_fsdp_wrapped_module.a._checkpoint_wrapped_module.0.weight", "a.0.weight"),
        ("_forward_module.a._module.weight", "a.weight"),
        ("a_orig_mod.weight", "a_orig_mod.weight"),
        ("module.a.weight", "module.a.weight"),
        ("_orig_mod", "_orig_mod"),
    ],
)
def test_what_programs_wrap_around_a_module_is_taken_out_of_its_path(name, expected):
    assert unwrapped(name) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([f"l.{i}.n{j}.w" for i in range(12) for j in (1, 2)], ["l.{0-11}.n{1-2}.w"]),
        (["l.0.w", "l.2.w", "l.3.w", "m"], ["l.{0,2-3}.w", "m"]),
        (["a.w", "b.w"], ["a.w", "b.w"]),
        (["l.0.a", "l.1.a", "l.0.b"], ["l.{0-1}.a", "l.0.b"]),
        ([], []),
    ],
)
def test_indices_fold(names, expected):
    assert fold(names) == expected


def test_folding_loses_no_name():
    names = [f"l.{i}.n{j}" for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    assert sorted(name for path in fold(names) for name in expand(path)) == sorted(names)


def test_nearest():
    assert nearest("transformer.layers.0.nrom1.weight", ["transformer.layers.0.norm1.weight", "x"]) == (
        "transformer.layers.0.norm1.weight"
    )
    assert nearest("abc", ["xyz"]) is None


def test_join():
    assert join("a", "b") == "a.b"
    assert join("a", "") == "a"
    assert join("", "b") == "b"


def test_untrusted_text_is_escaped_and_shortened():
    assert printable("a\n\x1b[31m\u202eb") == r"a\n\x1b[31m\u202eb"
    assert len(printable("x" * 10**6)) <= 100
    assert printable("e\u0301") != printable("\u00e9")
    assert len(shorten("y" * 10**4, 480)) <= 480
    assert "more characters" in shorten("y" * 10**4, 480)


def test_a_list_that_is_cut_says_how_many_more_there_are():
    assert listed("abc", 3) == "a, b, c"
    assert listed(iter("abcd"), 3) == "a, b, c and 1 more"
    assert listed(["one", "two", "three"], 1, "; ") == "one and 2 more"
    assert listed([], 3) == ""


def unfolded(rows):
    found = []
    for first, second in rows:
        ours = expand(second)
        found += zip(expand(first) if first else [""] * len(ours), ours, strict=True)
    return found


def test_pairs_of_names_are_folded_together():
    blocks = [
        (f"layer{i}.{j}.conv{c}", f"conv{i + 1}_block{j + 1}_{c}_conv")
        for i, depth in ((1, 3), (2, 4), (3, 3))
        for j in range(depth)
        for c in (1, 2)
    ]
    assert fold_pairs(blocks) == [
        ("layer{1,3}.{0-2}.conv{1-2}", "conv{2,4}_block{1-3}_{1-2}_conv"),
        ("layer2.{0-3}.conv{1-2}", "conv3_block{1-4}_{1-2}_conv"),
    ]
    words = [
        (f"l.{i}.{a}_proj", f"b{i + 1}.{b}")
        for i in range(2)
        for a, b in (("q", "query"), ("k", "key"), ("v", "value"))
    ]
    assert fold_pairs(words) == [("l.{0-1}.{q,k,v}_proj", "b{1-2}.{query,key,value}")]


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        # The places change sides, which no braces can say of both.
        (
            [(f"{i}.{j}", f"{j}.{i}") for i in range(2) for j in range(2)],
            [("0.{0-1}", "{0-1}.0"), ("1.{0-1}", "{0-1}.1")],
        ),
        ([("b.0", "y.2"), ("b.1", "y.0"), ("b.2", "y.1")], [("b.{0-2}", "y.{2,0-1}")]),
        ([("a.0.0", "y.0"), ("a.1.1", "y.1")], [("a.0.0", "y.0"), ("a.1.1", "y.1")]),
        ([("", f"n{i}.{j}.bias") for i in range(2) for j in range(3)], [("", "n{0-1}.{0-2}.bias")]),
        ([("tied", "e.0"), ("tied", "e.1")], [("tied", "e.0"), ("tied", "e.1")]),
        ([("a01", "b.1"), ("a02", "b.2")], [("a{01,02}", "b.{1-2}")]),
        ([("a", "b"), ("", "")], [("a", "b"), ("", "")]),
    ],
)
def test_pairs_that_fold_in_part_or_not_at_all(names, folded):
    assert fold_pairs(names) == folded
    assert sorted(unfolded(folded)) == sorted(names)


@given(
    st.lists(
        st.tuples(*[st.lists(st.sampled_from(("0", "1", "2", "01", "q", "k", "w1")), max_size=4)] * 2), max_size=30
    )
)
def test_folded_pairs_unfold_to_the_same(names):
    pairs = [(".".join(first), "_".join(second)) for first, second in names]
    assert sorted(unfolded(fold_pairs(pairs))) == sorted(set(pairs))
