"""The rows of a pair's mapping, folded, each with what speaks for it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from converter.checkpoints.tensors import FLOATS
from converter.naming import fold_pairs
from converter.pairs.mapping import expand
from converter.scaffold.code import call, written
from converter.scaffold.guesses import Guess, alone
from converter.scaffold.tree import Module

_LAYER_S = ("weight", "bias", "running_mean", "running_var")
_WHOLE = "whole numbers, or yes and no, that torch keeps beside its parameters"


@dataclass(frozen=True)
class Line:
    """A row of the mapping.

    Attributes:
        path, keras: torch's path and Keras's, folded.
        kind: as `kinds.DENSE`, or "" of a tensor that is dropped.
        certain: names and shapes leave no other kind.
        why: what speaks for it.
    """

    path: str
    keras: str
    kind: str
    certain: bool
    why: str

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


def mapping(found: Iterable[tuple[Module, Guess | None]]) -> list[Line]:
    """The rows of all modules, in the file's order of the first that each stands for."""
    order: dict[str, int] = {}
    groups: dict[tuple[str, bool, str], dict[str, str]] = {}
    for path, keras, kind, certain, why in _each(found):
        groups.setdefault((kind, certain, why), {})[path] = keras
        order[path] = len(order)
    lines = [
        Line(path, keras, kind, certain, why)
        for (kind, certain, why), names in groups.items()
        for path, keras in fold_pairs(names.items())
    ]
    return sorted(lines, key=lambda line: min(order[path] for path in expand(line.path)))


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
