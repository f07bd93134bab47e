"""Links as the rows of a plan: folded, open ones first; and what they fill."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from converter.matching.rows import STATUSES, Link
from converter.naming import counted, fold_pairs
from converter.pairs.mapping import join

_OPEN_FIRST = ("ambiguous", "unmatched", "proposed")
_MEASURED = re.compile(r"\d+\.\d*(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+")


def folded(links: Iterable[Link]) -> list[Link]:
    """Links as a plan has them: those that are alike joined; first what is open, then what was accepted, then the rest.

    Alike are links with the same fills, status, kind and evidence; where evidence has measured numbers (those with a
    decimal point or an exponent), the joined link has the largest of each.
    """
    order: dict[tuple[str, str], int] = {}
    groups: dict[Any, dict[tuple[str, str], Link]] = {}
    for link in links:
        alike = (link.fills, link.status, link.kind, link.accepted, _MEASURED.sub("", link.evidence))
        for unit in link.units():
            groups.setdefault(alike, {})[unit] = link
            order.setdefault(unit, len(order))
    found = []
    for some in groups.values():
        apart = [unit for unit, link in some.items() if not unit[0] and any(fill.tensors for fill in link.fills)]
        for theirs, ours in [*apart, *fold_pairs([unit for unit in some if unit not in apart])]:
            names = list(replace(next(iter(some.values())), torch=theirs, keras=ours).units())
            evidence = _largest([some[unit].evidence for unit in names])
            link = replace(some[names[0]], torch=theirs, keras=ours, evidence=evidence)
            place = 3 + (link.status == "proven") if link.taken else _OPEN_FIRST.index(link.status)
            found.append((place, min(order[unit] for unit in names), link))
    return [link for *_, link in sorted(found, key=lambda one: one[:2])]


def _largest(texts: list[str]) -> str:
    """Texts that differ in measured numbers as one, with the largest of each."""
    numbers = iter([max(some, key=float) for some in zip(*map(_MEASURED.findall, texts), strict=True)])
    return _MEASURED.sub(lambda _: next(numbers), texts[0])


def is_open(link: Link) -> bool:
    """Whether it leaves open how a variable is filled, so that there is nothing to accept."""
    return not link.fills or any(not fill.axes for fill in link.fills)


def variables_of(link: Link) -> Iterator[str]:
    """Attribute path of every variable that it fills."""
    for _, ours in link.units():
        for fill in link.fills:
            for variable in fill.variables:
                yield join(ours, variable)


def tensors_of(link: Link) -> Iterator[str]:
    for theirs, _ in link.units():
        for fill in link.fills:
            for tensor in fill.tensors:
                yield join(theirs, tensor)


def settled(link: Link) -> bool:
    """Whether it says of its tensors that they are its own; ambiguous ones name what may be."""
    return link.taken or link.status == "proposed"


def tied_in(links: Iterable[Link]) -> list[str]:
    """Tensors that several fills have, as a match found it."""
    seen: set[str] = set()
    tied: dict[str, None] = {}
    for name in (name for link in links if settled(link) for name in tensors_of(link)):
        if name in seen:
            tied[name] = None
        seen.add(name)
    return list(tied)


def counts(links: Iterable[Link], left: dict[str, str]) -> str:
    """`107 units with 320 variables: 105 proven, 2 ambiguous; 53 torch tensors are left.`"""
    units, variables, by = 0, 0, dict.fromkeys(STATUSES, 0)
    accepted = 0
    for link in links:
        count = len(list(link.units()))
        units += count
        variables += len(list(variables_of(link)))
        by[link.status] += count
        accepted += count if link.accepted and link.status != "proven" else 0
    said = ", ".join(f"{count} {status}" for status, count in by.items() if count) or "none"
    taken = f" ({accepted} of them accepted)" if accepted else ""
    rest = f"; {counted(len(left), 'torch tensor')} left over" if left else ""
    return f"{counted(units, 'unit')} with {counted(variables, 'variable')}: {said}{taken}{rest}"
