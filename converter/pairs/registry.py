"""The pairs that can be converted, by name: those of the families, which are found where they lie, and users' own."""

import functools
import pkgutil
from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import combinations
from typing import Any

from converter.errors import UsageError, printable
from converter.naming import nearest
from converter.pairs.pair import Pair

# Names that a user may well ask for, and why there is nothing to convert.
_WITHOUT_WEIGHTS = {
    "paste_masks": "paste_masks is an op without weights: there is nothing to convert; "
    "call tf_models.ops.paste_masks(masks, boxes, image_shape)",
}
_registered: dict[str, Pair] = {}


def register(pair: Pair) -> Pair:
    """Make a pair known by its name, and by those of its variants, in place of the one that was known so.

    Raises:
        UsageError: a name is a built-in one's, or another pair's.
    """
    known = named([("this pair", [pair])])
    for name in known:
        field = "`name`" if name == pair.name else "`variants`"
        if name in _families():
            raise UsageError(f"{field} of the pair {pair.name}: {name} is the name of a built-in model; choose another")
        other = _registered.get(name)
        if other is not None and family_of(other) != pair.name:
            owner = f"a variant of the pair {other.family}" if other.family else "another pair"
            raise UsageError(f"{field} of the pair {pair.name}: {name} is the name of {owner}; choose another")
    for name in [name for name, one in _registered.items() if family_of(one) == pair.name]:
        del _registered[name]
    _registered.update(known)
    return pair


def registered(name: str) -> Pair | None:
    """The user's pair of that name."""
    return _registered.get(name)


def family_of(pair: Pair) -> str:
    """The name of the pair that it is a variant of, or its own."""
    return pair.family or pair.name


def names() -> list[str]:
    """Names of all pairs and variants, sorted."""
    return sorted({*_families(), *_registered})


def get(name: str) -> Pair:
    """The pair of that name.

    Raises:
        UsageError: there is none; the known are listed.
    """
    if name in _WITHOUT_WEIGHTS and name not in _registered:
        raise UsageError(_WITHOUT_WEIGHTS[name])
    pair = _registered.get(name) or _families().get(name)
    if pair is None:
        near = nearest(name, names())
        known = f"did you mean {near}? known" if near else "known"
        raise UsageError(f"no model is named {printable(name)}; {known}: {', '.join(names())}")
    return pair


def pairs() -> Iterator[Pair]:
    """Every pair, in the order of the names; variants are in their family."""
    for name in names():
        pair = get(name)
        if not pair.family:
            yield pair


@functools.cache
def _families() -> dict[str, Pair]:
    """Name -> pair, of every file and folder in `converter/families`: its `PAIRS`, and their variants."""
    package = import_module("converter.families")
    homes = sorted(one.name for one in pkgutil.iter_modules(package.__path__))
    return named((f"converter/families/{one}", import_module(f"converter.families.{one}").PAIRS) for one in homes)


def named(homes: Iterable[tuple[str, Iterable[Pair]]]) -> dict[str, Pair]:
    """Name -> pair, of (where they are, pairs): each under its own name, and its variants under theirs.

    Raises:
        UsageError: two have one name, or two variants the same sizes.
    """
    found: dict[str, Pair] = {}
    home_of: dict[str, str] = {}
    for home, some in homes:
        for pair in some:
            for name in pair.names:
                if name in home_of:
                    where = "twice there" if home_of[name] == home else f"in {home_of[name]} too"
                    raise UsageError(f"{home}: a pair or variant is named {printable(name)}, which is {where}")
                home_of[name] = home
            for one, other in combinations(pair.variants, 2):
                if one.config == other.config:
                    raise UsageError(
                        f"{home}: `variants` of {printable(pair.name)}: {one.name} has the sizes of {other.name}"
                    )
            found.update({pair.name: pair, **{one.name: pair.variant(one) for one in pair.variants}})
    return found


def locate(place: str) -> Any:
    """The object at "module:attribute"."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)
