"""Under which prefixes of a state dict a network may stand: where names end as the network's own do."""

import re
from collections.abc import Collection

from converter.errors import ConversionError
from converter.pairs.dialects import Dialect
from converter.pairs.mapping import Mapping

_MOST = 1_000  # places for one network: beyond any model here, and tried within seconds
_DEEPEST = 3  # words of a prefix, where the network's own names are not known beforehand
_INDEX = re.compile(r"(?<![^.])[0-9]+(?![^.])")


def where_it_ends(names: Collection[str], mapping: Mapping | None, dialect: Dialect) -> list[str]:
    """Prefixes of `names`, each with its last dot, under which most of the network's names stand, whatever their index.

    How many layers a network has is not known before its place is: of `blocks.0.norm.weight` and
    `blocks.11.norm.weight` either stands for both. Without a mapping they are the first words of all names.

    Raises:
        ConversionError: there are too many to try.
    """
    if mapping is None:
        found = {name[: at.end()] for name in names for at in [*re.finditer(r"\.", name)][:_DEEPEST]}
        return sorted(found)[:_MOST]
    wanted = {_INDEX.sub("#", _foreign(dialect, name)) for name, optional in mapping.tensors() if not optional}
    lengths = sorted({name.count(".") + 1 for name in wanted})
    held: dict[str, set[str]] = {}
    for name in names:
        words = name.split(".")
        for length in lengths:
            if length > len(words):
                break
            end = _INDEX.sub("#", ".".join(words[-length:]))
            if end in wanted:
                held.setdefault("".join(f"{word}." for word in words[:-length]), set()).add(end)
    found = {prefix for prefix, ends in held.items() if 2 * len(ends) > len(wanted)}
    if len(found) > _MOST:
        raise ConversionError(f"there are {len(found)} places where it may stand; say which with --scope")
    return sorted(found)


def named(names: Collection[str], scope: str) -> list[str]:
    """The prefixes that `scope` may mean: itself, else those that end with it: `module.backbone.` for `backbone`."""
    asked = scope.strip(".")
    if not asked:
        return [""]
    exact = f"{asked}."
    if any(name.startswith(exact) for name in names):
        return [exact]
    inside = f".{exact}"
    return sorted({name[: name.index(inside) + len(inside)] for name in names if inside in name})


def _foreign(dialect: Dialect, name: str) -> str:
    try:
        return dialect.foreign(name)
    except ValueError:  # this library has no such tensor
        return name
