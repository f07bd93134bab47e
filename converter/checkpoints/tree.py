"""What a pickle describes, once it is read: tensors by their names, tensors without, and what else stands there."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from converter.checkpoints.tensors import Entry
from converter.checkpoints.unpickle import ArrayRef, Aside, Inert, Table, TensorRef
from converter.errors import ConversionError, printable
from converter.naming import listed

SAVE = "save the weights alone: torch.save(model.state_dict(), path)"
_MOST_OBJECTS = 1_000_000
_MOST_PLACES = 8  # that are told of what is not listed
_DEEPEST = 32
_LONGEST_PATH = 500


@dataclass
class Beside:
    """What a file holds besides named tensors.

    Attributes:
        aside: objects that were not built.
        bare: tensors without names, where the file has no others; by their places, as "0".
        what: what the file is in that case.
        objects: key of a state dict -> name there -> what stands there that is no tensor.
        unlisted: what stands in the file and is no entry, a line each.
    """

    aside: Aside = field(default_factory=Aside)
    bare: list[Entry] = field(default_factory=list)
    what: str = ""
    objects: dict[str, dict[str, str]] = field(default_factory=dict)
    unlisted: list[str] = field(default_factory=list)


def entries(tree: Any, entry: Callable[[str, str, Any], Entry | None], beside: Beside) -> list[Entry]:
    """Every tensor that stands by name in a dict, wherever the dict is nested.

    `entry` makes one of (key of the dict, name, value), or None of what is no tensor. `beside` is told the rest.

    Raises:
        ConversionError: there is no tensor at all.
    """
    found: list[Entry] = []
    keys: set[str] = set()
    for key, table in _tables(tree) if isinstance(tree, Table) else ():
        made, others = [], {}
        for name, value in table.items():
            one = entry(key, name, value)
            if one is not None:
                made.append(one)
            elif not isinstance(value, Table):
                others[name] = _word(value)
        if made and key in keys:
            raise ConversionError(f"two of its state dicts are both reached by {printable(key)}")
        if made:
            keys.add(key)
            beside.objects.setdefault(key, {}).update(others)
        found += made
    if found:
        beside.unlisted += _unlisted(tree, entry)
    else:
        beside.bare = [one for place, value in _bare(tree) if (one := entry("", place, value)) is not None]
        beside.what = _what(tree, len(beside.bare))
        if not beside.bare and not isinstance(tree, Table):
            raise ConversionError(f"it holds {beside.what}, not a state dict of named tensors; {SAVE}")
    return found


def _what(tree: Any, bare: int) -> str:
    if isinstance(tree, (TensorRef, ArrayRef)):
        return "one bare tensor"
    if isinstance(tree, Table) and {"state", "param_groups"} <= tree.keys():
        return "the state of an optimizer"
    if bare and isinstance(tree, Table):
        return f"{bare} tensors without names, under numbers or in lists"
    if bare:
        return f"a {type(tree).__name__} of {bare} bare tensors"
    return f"a {printable(tree.name if isinstance(tree, Inert) else type(tree).__name__, 80)}"


def _tables(tree: Table) -> Iterator[tuple[str, Table]]:
    """(dotted path of a dict, the dict), without recursion, each dict once."""
    seen: set[int] = set()
    waiting: deque[tuple[str, Table, int]] = deque([("", tree, 0)])
    count = 0
    while waiting:
        key, node, depth = waiting.popleft()
        if id(node) in seen:
            continue
        seen.add(id(node))
        count += len(node)
        if count > _MOST_OBJECTS or depth > _DEEPEST or len(key) > _LONGEST_PATH:
            raise ConversionError("its dicts are nested deeper or larger than any state dict is")
        yield key, node
        for name, value in node.items():
            if isinstance(value, Table):
                if len(name) > _LONGEST_PATH:
                    raise ConversionError("the name of one of its dicts is longer than any is")
                waiting.append((f"{key}.{name}" if key else name, value, depth + 1))


def _bare(tree: Any) -> Iterator[tuple[str, Any]]:
    """(place, value) of everything in lists, tuples and under keys that are no text; each of them once."""
    if isinstance(tree, (TensorRef, ArrayRef)):
        yield "(the tensor)", tree
    waiting: deque[tuple[str, Any, int]] = deque([("", tree, 0)])
    seen: set[int] = set()
    count = 0
    while waiting:
        place, node, depth = waiting.popleft()
        if id(node) in seen or depth > _DEEPEST:
            continue
        seen.add(id(node))
        for name, value in _children(node):
            count += 1
            if count > _MOST_OBJECTS:
                return
            below = f"{place}.{name}" if place else name
            if len(below) > _LONGEST_PATH:
                continue
            yield below, value
            if isinstance(value, (Table, list, tuple)):
                waiting.append((below, value, depth + 1))


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Table):
        yield from node.items()
        yield from ((_key(key), value) for key, value in node.unnamed)
    elif isinstance(node, (list, tuple)):
        yield from ((str(i), value) for i, value in enumerate(node))


def _key(key: Any) -> str:
    return str(key) if isinstance(key, (int, float)) and abs(key) < 1 << 64 else f"({type(key).__name__})"


def _word(value: Any) -> str:
    """What a value is, for a message."""
    if isinstance(value, Inert):
        return f"an object of class {printable(value.name, 80)}"
    if isinstance(value, ArrayRef):
        return "a numpy array"
    return "None" if value is None else f"a {type(value).__name__}"


def _unlisted(tree: Any, entry: Callable[[str, str, Any], Entry | None]) -> Iterator[str]:
    """What of the tree is no entry, a line for each place."""
    lines = []
    for key, table in _tables(tree) if isinstance(tree, Table) else ():
        where = printable(key, 60) or "the file itself"
        if table.unnamed:
            count = sum(entry("", "x", value) is not None for _, inner in table.unnamed for _, value in _bare([inner]))
            keys = listed([_key(one) for one, _ in table.unnamed], 3)
            kind = "numbers" if all(isinstance(one, (int, float)) for one, _ in table.unnamed) else "no text"
            lines.append(f"in {where}, {len(table.unnamed)} keys that are {kind} ({keys}), with {count} tensors")
        plain, arrays = [], []
        for name, value in table.items():
            if isinstance(value, Table) or entry(key, name, value) is not None:
                continue
            if isinstance(value, ArrayRef):
                arrays.append(f"{printable(name, 40)} ({_shape(value.shape)})")
                continue
            tensors = [one for _, one in _bare(value) if entry("", "x", one) is not None]
            if tensors:
                shapes = listed([_shape(entry("", "x", one).shape) for one in tensors[:4]], 3)  # type: ignore[union-attr]
                place = printable(f"{key}.{name}" if key else name, 60)
                lines.append(f"{place}, a {type(value).__name__} with {len(tensors)} tensors ({shapes})")
            else:
                plain.append(printable(name, 40))
        if arrays:
            lines.append(f"in {where}, numpy arrays: {listed(arrays, 3)}")
        if plain:
            lines.append(f"in {where}, what is no tensor: {listed(plain, 4)}")
    yield from lines[:_MOST_PLACES]
    if len(lines) > _MOST_PLACES:
        yield f"and the like in {len(lines) - _MOST_PLACES} more places"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"
