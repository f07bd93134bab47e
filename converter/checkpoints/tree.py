"""What a pickle describes, once it is read: tensors by their names, tensors without, and what else stands there."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from converter.checkpoints.tensors import Entry
from converter.checkpoints.unpickle import ArrayRef, Aside, Inert, Own, Table, TensorRef, is_dict
from converter.errors import SAVE, ConversionError, printable
from converter.naming import counted, listed

OPTIMIZER = "the state of an optimizer"
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
        what: what the file is in that case, and of one that holds an optimizer's state alone.
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
    for key, table in _tables(tree) if is_dict(tree) else ():
        made, others = [], {}
        for name, value in table.items():
            one = entry(key, name, value)
            if one is not None:
                made.append(one)
            else:
                others[name] = _word(value)
        if made and key in keys:
            raise ConversionError(f"two of its state dicts are both reached by {printable(key)}")
        if made:
            keys.add(key)
            beside.objects.setdefault(key, {}).update(others)
        found += made
    if found:
        beside.unlisted += _unlisted(tree, entry)
        beside.what = OPTIMIZER if _of_optimizers(tree) else ""
    else:
        beside.bare = [one for place, value in _bare(tree) if (one := entry("", place, value)) is not None]
        beside.what = _what(tree, len(beside.bare))
        if not beside.bare and not is_dict(tree):
            raise ConversionError(f"it holds {beside.what}, not a state dict of named tensors; {SAVE}")
    return found


def _what(tree: Any, bare: int) -> str:
    if isinstance(tree, (TensorRef, ArrayRef)):
        return "one bare tensor"
    if _of_optimizers(tree):
        return OPTIMIZER
    if bare and is_dict(tree):
        return f"{counted(bare, 'tensor')} without names, under numbers or in lists"
    if bare:
        return f"a {type(tree).__name__} of {counted(bare, 'bare tensor')}"
    return _article(tree.name if isinstance(tree, (Inert, Own)) else type(tree).__name__)


def _of_optimizers(tree: Any) -> bool:
    """Whether an optimizer's state stands in the file, and no tensor outside of such."""
    near = [tree, *(value for _, value in _children(tree))]
    near += [value for one in near[1:] if isinstance(one, (list, tuple)) for value in one]
    if not any(map(_is_optimizers, near)):
        return False
    return not any(isinstance(value, (TensorRef, ArrayRef)) for _, value in _bare(tree, _is_optimizers))


def _is_optimizers(value: Any) -> bool:
    """Whether it has what `torch.optim.Optimizer.state_dict` gives, and at most numbers and text besides."""
    names = {"state", "param_groups"}
    return (
        is_dict(value)
        and names <= value.keys()
        and not any(
            isinstance(one, (Table, list, tuple, TensorRef, ArrayRef))
            for name, one in value.items()
            if name not in names
        )
    )


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
            if is_dict(value):
                if len(name) > _LONGEST_PATH:
                    raise ConversionError("the name of one of its dicts is longer than any is")
                waiting.append((f"{key}.{name}" if key else name, value, depth + 1))


def _bare(tree: Any, closed: Callable[[Any], bool] = lambda _: False) -> Iterator[tuple[str, Any]]:
    """(place, value) of everything in dicts, lists and tuples but in those that are closed; each of them once."""
    if isinstance(tree, (TensorRef, ArrayRef)):
        yield "(the tensor)", tree
    waiting: deque[tuple[str, Any, int]] = deque([("", tree, 0)])
    seen: set[int] = set()
    count = 0
    while waiting:
        place, node, depth = waiting.popleft()
        if id(node) in seen or depth > _DEEPEST or closed(node):
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
    if is_dict(value):
        return "a dict"
    if isinstance(value, (Inert, Own)):
        return f"an object of class {printable(value.name, 80)}"
    if isinstance(value, ArrayRef):
        return "a numpy array"
    return "None" if value is None else _article(type(value).__name__)


def _article(noun: str) -> str:
    return f"{'an' if noun[:1] in 'aeio' else 'a'} {printable(noun, 80)}"


def _unlisted(tree: Any, entry: Callable[[str, str, Any], Entry | None]) -> Iterator[str]:
    """What of the tree is no entry, a line for each place."""
    lines = []
    for key, table in _tables(tree) if is_dict(tree) else ():
        where = printable(key, 60) or "the file itself"
        if table.unnamed:
            count = sum(entry("", "x", value) is not None for _, inner in table.unnamed for _, value in _bare([inner]))
            keys = listed([_key(one) for one, _ in table.unnamed], 3)
            numbers = all(isinstance(one, (int, float)) for one, _ in table.unnamed)
            kind = "no text" if not numbers else "a number" if len(table.unnamed) == 1 else "numbers"
            unnamed = f"{counted(len(table.unnamed), 'key')} that {'is' if len(table.unnamed) == 1 else 'are'} {kind}"
            lines.append(f"in {where}, {unnamed} ({keys}), with {counted(count, 'tensor')}")
        plain, arrays = [], []
        for name, value in table.items():
            if is_dict(value) or entry(key, name, value) is not None:
                continue
            if isinstance(value, ArrayRef):
                arrays.append(f"{printable(name, 40)} ({_shape(value.shape)})")
                continue
            tensors = [made for _, one in _bare(value) if (made := entry("", "x", one)) is not None]
            if tensors:
                shapes = listed([_shape(one.shape) for one in tensors[:4]], 3)
                place = printable(f"{key}.{name}" if key else name, 60)
                lines.append(f"{place}, a {type(value).__name__} with {counted(len(tensors), 'tensor')} ({shapes})")
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
