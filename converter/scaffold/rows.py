"""The rows of a pair's mapping, folded, each with what speaks for it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from converter.checkpoints.tensors import FLOATS
from converter.naming import fold
from converter.pairs.mapping import expand
from converter.scaffold.code import call, written
from converter.scaffold.guesses import Guess, alone
from converter.scaffold.tree import Module

_LAYER_S = ("weight", "bias", "running_mean", "running_var")
_WIDEST = 90  # characters of a path that lists words
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
        for path, keras in _folded(names)
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


def _folded(names: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(torch's paths, Keras's) folded alike."""
    theirs, ours = _joined(fold(names)), _joined(fold(names.values()))
    if len(theirs) == len(ours):
        both = [(path, keras, expand(path), expand(keras)) for path, keras in zip(theirs, ours, strict=True)]
        if all([names.get(one) for one in paths] == places for _, _, paths, places in both):
            yield from ((path, keras) for path, keras, _, _ in both)
            return
    yield from names.items()


def _joined(paths: list[str]) -> list[str]:
    """Paths that differ only in a last word without a number joined: `attn.{q,k,v}_proj`."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        above, dot, word = path.rpartition(".")
        plain = "{" not in word and not word.isdigit()
        groups.setdefault(above + dot if plain else path, []).extend([word] if plain else [])
    return [joined for above, words in groups.items() for joined in _words(above, words)]


def _words(above: str, words: list[str]) -> list[str]:
    if len(words) < 2:
        return [above + "".join(words)]
    ends = {word.partition("_")[2] for word in words}
    end = f"_{ends.pop()}" if len(ends) == 1 and "" not in ends else ""
    joined = f"{above}{{{','.join(word.removesuffix(end) for word in words)}}}{end}"
    starts = {word.removesuffix(end) for word in words}
    return [joined] if len(joined) <= _WIDEST and "" not in starts else [above + word for word in words]
