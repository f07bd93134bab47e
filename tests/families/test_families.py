"""Families: found where they lie, with their variants."""

import pytest
import torch

import converter
import tf_models
import torch_refs
from converter.pairs import registry
from converter.pairs.pair import Variant
from converter.pairs.registry import named
from tests.support.pairs import registered


def _pair(name="net", **more):
    return converter.Pair(name=name, mapping=lambda config: converter.Mapping([]), probes=lambda *_: [], **more)


def test_every_family_has_both_sides():
    assert converter.names() == tf_models.names() == torch_refs.names()


def test_variants_are_names_of_their_family():
    sam, large = (registry.get(name) for name in ("sam", "sam_vit_l"))
    assert large.family == sam.name
    assert not sam.family
    assert large.fallback["image_encoder"]["depth"] == 24
    assert sam.fallback["image_encoder"]["depth"] == 12
    assert large.fallback["mask_decoder"] == sam.fallback["mask_decoder"]
    assert [one.name for one in registry.pairs() if one.name.startswith("sam_vit")] == []


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ([_pair("net"), _pair("net")], "converter/families/net: a pair or variant is named net, which is twice there"),
        ([_pair("net"), _pair("other", variants=(Variant("net", {}),))], "named net, which is twice there"),
        (
            [_pair(variants=(Variant("a", {"depth": 2}), Variant("b", {"depth": 2})))],
            "converter/families/net: `variants` of net: a has the sizes of b",
        ),
    ],
)
def test_names_and_sizes_are_each_ones_own(pairs, told):
    with pytest.raises(converter.UsageError) as raised:
        named([("converter/families/net", pairs)])
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("variants", "told"),
    [
        ((Variant("v", {"depth": 2}), Variant("v", {"depth": 3})), "`variants` of the pair net: v is a name twice"),
        ((Variant("net", {"depth": 2}),), "`variants` of the pair net: net is a name twice"),
        ({"v": {"depth": 2}}, r"`variants` of the pair net is a tuple of Variant\(name, config\), not {'v'"),
        (({"depth": 2},), r"`variants` of the pair net is a tuple of Variant\(name, config\), not \({'depth'"),
    ],
)
def test_variants_of_a_pair_have_different_names(variants, told):
    with pytest.raises(ValueError, match=told):
        _pair(variants=variants)


def test_a_name_is_one_pair_s_among_those_of_users_too():
    with registered(_pair(variants=(Variant("net_tiny", {"depth": 2}),), build_tf="nowhere:net")):
        for pair, told in (
            (
                _pair("other", variants=(Variant("net_tiny", {"depth": 2}),)),
                "`variants` of the pair other: net_tiny is the name of a variant of the pair net",
            ),
            (
                _pair("other", variants=(Variant("net", {}),)),
                "`variants` of the pair other: net is the name of another",
            ),
            (_pair("net_tiny"), "`name` of the pair net_tiny: net_tiny is the name of a variant of the pair net"),
            (_pair("sam_vit_b"), "`name` of the pair sam_vit_b: sam_vit_b is the name of a built-in model"),
            (
                _pair("other", variants=(Variant("sam", {}),)),
                "`variants` of the pair other: sam is the name of a built",
            ),
        ):
            with pytest.raises(converter.UsageError, match=told):
                converter.register(pair)
        assert registry.get("net_tiny").family == "net"
        assert "other" not in {*converter.names(), *tf_models.names(), *torch_refs.names()}


def test_a_pair_takes_the_place_of_the_one_of_its_name():
    before = [set(names()) for names in (converter.names, tf_models.names, torch_refs.names)]
    sides = {"build_tf": "nowhere:net", "build_torch": "nowhere:net"}
    with registered(_pair(variants=(Variant("net_a", {"depth": 2}), Variant("net_b", {"depth": 3})), **sides)):
        converter.register(_pair(variants=(Variant("net_a", {"depth": 4}),), **sides))
        for names, known in zip((converter.names, tf_models.names, torch_refs.names), before, strict=True):
            assert set(names()) - known == {"net", "net_a"}
        assert registry.get("net").published({"depth": 2}) is None
        converter.register(_pair())
        for names, known in zip((tf_models.names, torch_refs.names), before[1:], strict=True):
            assert set(names()) == known
    for names, known in zip((converter.names, tf_models.names, torch_refs.names), before, strict=True):
        assert set(names()) == known


def test_the_count_of_tensors_is_that_of_published_files():
    """Of every built-in pair, the torch network's of the usual sizes; a family of several sizes has none."""
    wrong = {}
    for name in converter.names():
        pair = registry.get(name)
        if pair.variants:
            assert pair.tensor_count() is None
            continue
        with torch.device("meta"):
            held = set(torch_refs.create(name, **pair.fallback).state_dict())
        held &= {tensor for tensor, _ in pair.mapping(pair.fallback).tensors()}
        if pair.tensor_count() != len(held):
            wrong[name] = (pair.tensor_count(), len(held))
    assert wrong == {}
    assert [registry.get(f"sam_vit_{letter}").tensor_count() for letter in "blh"] == [314, 482, 594]


def test_a_users_family_has_variants_too():
    pair = _pair(variants=(Variant("net_tiny", {"depth": 2}),), build_tf="nowhere:at_all")
    with registered(pair):
        assert {"net", "net_tiny"} <= set(converter.names()) & set(tf_models.names())
        tiny = registry.get("net_tiny")
        with pytest.raises(ValueError, match="its sizes are those of net_tiny"):
            _pair(
                variants=(Variant("net_tiny", {"depth": 2}), big := Variant("net_big", {"depth": 4})),
                configure=lambda shapes, options: {"depth": 2},
            ).variant(big).configure({}, {})
        assert tiny.configure({}, {"depth": 3}) == {"depth": 3}
    assert "net_tiny" not in converter.names()
