"""Rows and their mapping: which module is of which kind. Braces in a path expand: `layers.{0-1}.{q,k}_proj`."""

import copy
import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import prod
from typing import Any

from converter.kinds import Kind
from converter.kinds.activations import one_each

_BRACES = re.compile(r"\{([^{}]*)\}")
_MOST_PATHS = 10_000  # of one row; its sizes may be read off what a stranger's file claims


def expand(path: str) -> list[str]:
    """Every plain path that `path` stands for: `{a,b}` lists words, `{0-3}` counts with both ends included.

    Raises:
        ValueError: an empty choice, a range that runs backwards, braces that do not match, or far too many paths.
    """
    pieces = _BRACES.split(path)  # plain, choice, plain, choice, ..., plain
    if any(c in "{}" for piece in pieces[::2] for c in piece):
        raise ValueError(f"unmatched brace in {path!r}")
    choices = [[piece] if i % 2 == 0 else _choices(piece, path) for i, piece in enumerate(pieces)]
    if prod(map(len, choices)) > _MOST_PATHS:
        raise ValueError(f"more than {_MOST_PATHS} paths in {path!r}")
    return ["".join(words) for words in product(*choices)]


def _choices(text: str, path: str) -> list[str]:
    words: list[str] = []
    for word in text.split(","):
        span = re.fullmatch(r"(\d+)-(\d+)", word)
        if span and int(span[1]) <= int(span[2]) < int(span[1]) + _MOST_PATHS:
            words += [str(i) for i in range(int(span[1]), int(span[2]) + 1)]
        elif word and not span and not re.search(r"\d-|-\d", word):
            words.append(word)
        else:
            raise ValueError(f"bad choice {word!r} in {path!r}")
    return words


@dataclass(frozen=True)
class Row:
    """The modules at `path` (torch's names) are of `kind`; `keras` is given only where the Keras path differs.

    `tied` names tensors that share the one tensor of the module, as an output layer does an embedding's table: a
    checkpoint may hold either name or both, and both must hold the same values.
    """

    path: str
    kind: Kind
    keras: str | None = None
    tied: str = ""

    def modules(self) -> list[tuple[str, str]]:
        """(torch path, Keras path) of every module the row stands for."""
        torch_paths = expand(self.path)
        keras_paths = torch_paths if self.keras is None else expand(self.keras)
        if len(torch_paths) != len(keras_paths):
            raise ValueError(f"{self.path!r} names {len(torch_paths)} modules, {self.keras!r} {len(keras_paths)}")
        return list(zip(torch_paths, keras_paths, strict=True))


@dataclass(frozen=True)
class Drop:
    """Tensors at `path` (braces expand) that TensorFlow does not need, and why. They may be absent.

    `equals` says what TensorFlow computes in their place: a number, an array, or the name of another tensor. The
    checkpoint's must be that. Without it the proof must show that no output depends on what they hold.
    """

    path: str
    reason: str
    equals: Any = None


class Mapping:
    """The mapping of a pair: rows and drops, each torch path at most once.

    Raises:
        ValueError: a path stands in two rows.
    """

    def __init__(self, rows: Iterable[Row | Drop]):
        rows = list(rows)
        for row in rows:
            if not isinstance(row, (Row, Drop)) or (isinstance(row, Row) and not isinstance(row.kind, Kind)):
                raise ValueError(f"a mapping has rows Row(path, kind) and Drop(path, reason), not {row!r}")
        self.rows = [row for row in rows if isinstance(row, Row)]
        drops = {path: row for row in rows if isinstance(row, Drop) for path in expand(row.path)}
        self.dropped = {path: row.reason for path, row in drops.items()}
        self.equals = {path: row.equals for path, row in drops.items() if row.equals is not None}
        for row in self.rows:
            for field, axes in (("inputs", row.kind.inputs), ("results", row.kind.results)):
                for path, text in axes.items():
                    try:
                        one_each(text)
                    except ValueError as error:
                        raise ValueError(f"`{field}` of the kind {row.kind}, {path!r}: {error}") from None
        seen: set[Any] = set()
        for path, keras, kind in self.modules():
            # Tensors that lie beside one another may be in several rows, a module that is called in one. A constant is
            # no tensor, and is known by its variable.
            parts = (part.torch or (join(keras, part.keras[0]),) for part in kind.leaves)
            key = path if kind.callable_alone else (path, *parts)
            if key in seen:
                raise ValueError(f"two rows name {path!r}")
            seen.add(key)

    def modules(self) -> Iterator[tuple[str, str, Kind]]:
        """(torch path, Keras path, kind) of every module, in the mapping's order."""
        for row in self.rows:
            for torch_path, keras_path in row.modules():
                yield torch_path, keras_path, row.kind

    def holding(self, names: Container[str]) -> "Mapping":
        """The mapping of a checkpoint that has tensors of these names, where kinds let it hold others instead."""
        rows = []
        for row in self.rows:
            modules, tied = row.modules(), expand(row.tied) if row.tied else []
            kinds = [row.kind.holding(partial(_held, names, path)) for path, _ in modules]
            if all(kind is row.kind for kind in kinds):
                rows.append(row)
                continue
            ties = tied if len(tied) == len(modules) else [""] * len(modules)
            rows += [Row(path, kind, keras, tie) for (path, keras), kind, tie in zip(modules, kinds, ties, strict=True)]
        found = copy.copy(self)
        found.rows = rows
        return found

    def tensors(self) -> Iterator[tuple[str, bool]]:
        """(torch name, is optional) of every tensor the mapping maps."""
        for path, _, kind in self.modules():
            for part in kind.leaves:
                for name in part.torch:
                    yield join(path, name), part.optional

    def ties(self) -> dict[str, str]:
        """Torch name -> the name of the tensor that it shares.

        Raises:
            ValueError: a row ties more or fewer names than it has modules, or a module has more tensors than one.
        """
        found = {}
        for row in self.rows:
            names = expand(row.tied) if row.tied else []
            needed = [part for part in row.kind.leaves if part.torch and not part.optional]
            if names and (len(names) != len(row.modules()) or len(needed) != 1 or len(needed[0].torch) != 1):
                raise ValueError(
                    f"`tied` of the row {row.path!r}: {row.tied!r} does not name one tensor for the one of each of its "
                    "modules; of a module with several, drop each: Drop(name, reason, equals=the name that stays)"
                )
            found.update(
                {name: join(path, needed[0].torch[0]) for name, (path, _) in zip(names, row.modules(), strict=False)}
            )
        return found

    def shared(self) -> dict[str, str]:
        """Torch name -> the name of the mapped tensor whose values it has: ties, and what is dropped as another's."""
        shared = {**self.ties(), **{name: kept for name, kept in self.equals.items() if isinstance(kept, str)}}
        for name, kept in shared.items():
            seen = {name}
            while kept in shared and kept not in seen:
                seen.add(kept)
                kept = shared[kept]
            shared[name] = kept
        return shared

    def ignored(self) -> dict[str, str]:
        """Torch name -> reason, of every tensor the mapping drops."""
        ignored = dict(self.dropped)
        for path, _, kind in self.modules():
            ignored.update({join(path, name): reason for name, reason in kind.ignored})
        ignored.update({name: f"shares the values of {kept}" for name, kept in self.ties().items()})
        return ignored


def _held(names: Container[str], path: str, name: str) -> bool:
    return join(path, name) in names


def under(prefix: str, rows: Iterable[Row | Drop]) -> list[Row | Drop]:
    """The rows of a network that is the part `prefix` of another."""
    return [
        replace(row, path=join(prefix, row.path))
        if isinstance(row, Drop)
        else replace(
            row,
            path=join(prefix, row.path),
            keras=None if row.keras is None else join(prefix, row.keras),
            tied=join(prefix, row.tied) if row.tied else "",
        )
        for row in rows
    ]


def join(path: str, name: str) -> str:
    """`path.name`, where either may be empty."""
    return f"{path}.{name}" if path and name else path or name
