"""The rows of a pair's table, folded, each with what speaks for it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from converter.checkpoints.tensors import FLOATS
from converter.naming import fold
from converter.scaffold.code import call, written
from converter.scaffold.guesses import Guess, alone
from converter.scaffold.tree import Module
from converter.tables.mapping import expand

_LAYER_S = ("weight", "bias", "running_mean", "running_var")
_WHOLE = "whole numbers, or yes and no, that torch keeps beside its parameters"


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        path, keras: torch's path and Keras's, folded.
        kind: as `kinds.DENSE`, or "" of a tensor that is dropped.
        certain: names and shapes leave no other kind.
        why: what speaks for it.
        count: how many modules it stands for.
    """

    path: str
    keras: str
    kind: str
    certain: bool
    why: str
    count: int

    @property
    def said(self) -> str:
        """`certain: running_mean and running_var`"""
        return f"certain: {self.why}" if self.certain else f"a guess: because {self.why}"

    def lines(self, depth: int) -> list[str]:
        """The row as code, under a comment."""
        comment = "    " * depth + f"# {self.said}"
        if not self.kind:
            return [comment, *written("", call("Drop", f'"{self.path}"', f'"{_WHOLE}"'), ",", depth)]
        keras = {} if self.keras == self.path else {"keras": f'"{self.keras}"'}
        return [comment, *written("", call("Row", f'"{self.path}"', self.kind, **keras), ",", depth)]


def table(found: Iterable[tuple[Module, Guess | None]]) -> list[Line]:
    """The rows of all modules, in the file's order."""
    groups: dict[tuple[str, bool, str], dict[str, str]] = {}
    for path, keras, kind, certain, why in _each(found):
        groups.setdefault((kind, certain, why), {})[path] = keras
    return [
        Line(path, keras, kind, certain, why, count)
        for (kind, certain, why), names in groups.items()
        for path, keras, count in _folded(names)
    ]


def _each(found: Iterable[tuple[Module, Guess | None]]) -> Iterator[tuple[str, str, str, bool, str]]:
    """(torch's path, Keras's, kind, certain, why) of every module with a guess and every tensor without one."""
    for module, guess in found:
        if guess is not None:
            yield module.path, module.keras, guess.kind, guess.certain, guess.why
            continue
        for name, entry in module.tensors.items():
            path, keras = module.joined(name), module.keras_joined(name)
            if entry.dtype not in FLOATS:
                yield path, keras, "", False, "they are no floats, so no layer learns them"
                continue
            certain, why = alone(entry.shape, name.startswith(_LAYER_S))
            yield path, keras, "kinds.PARAMETER", certain, why


def _folded(names: dict[str, str]) -> Iterator[tuple[str, str, int]]:
    """(torch's paths, Keras's, how many) folded alike."""
    theirs, ours = fold(names), fold(names.values())
    if len(theirs) == len(ours):
        both = [(path, keras, expand(path), expand(keras)) for path, keras in zip(theirs, ours, strict=True)]
        if all([names.get(one) for one in paths] == places for _, _, paths, places in both):
            yield from ((path, keras, len(paths)) for path, keras, paths, _ in both)
            return
    yield from ((path, keras, 1) for path, keras in names.items())
