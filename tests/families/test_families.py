"""Families: found where they lie, with their variants."""

import pytest

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
        ([_pair("net"), _pair("other", variants={"net": Variant({})})], "named net, which is twice there"),
        (
            [_pair(variants={"a": Variant({"depth": 2}), "b": Variant({"depth": 2})})],
            "converter/families/net: `variants` of net: a has the sizes of b",
        ),
    ],
)
def test_names_and_sizes_are_each_ones_own(pairs, told):
    with pytest.raises(converter.UsageError) as raised:
        named([("converter/families/net", pairs)])
    assert told in str(raised.value)


def test_a_users_family_has_variants_too():
    pair = _pair(variants={"net_tiny": Variant({"depth": 2})}, build_tf="nowhere:at_all")
    with registered(pair):
        assert {"net", "net_tiny"} <= set(converter.names()) & set(tf_models.names())
        tiny = registry.get("net_tiny")
        with pytest.raises(ValueError, match="its sizes are those of net_tiny"):
            _pair(
                variants={"net_tiny": Variant({"depth": 2}), "net_big": Variant({"depth": 4})},
                configure=lambda shapes, options: {"depth": 2},
            ).variant("net_big").configure({}, {})
        assert tiny.configure({}, {"depth": 3}) == {"depth": 3}
    assert "net_tiny" not in converter.names()
