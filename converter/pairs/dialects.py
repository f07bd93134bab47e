"""Dialects: the names of other libraries, and the wrappings around them, undone before the plan is made.

A dialect is a list of renames from another library's paths to the canonical ones. `{i}` in a path stands for any
number and carries over. The rules have no order: a name that two rules claim is an error of the dialect. Where a
library also lays a module's tensors out otherwise, the dialect names the kind that says how.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from converter.kinds import Kind
from converter.pairs.mapping import join

# What torch.compile, FSDP, activation checkpointing, Lightning's Fabric and Opacus put into a path where they wrap.
WRAPPERS = {
    "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module", "_module",
}  # fmt: skip

_Rules = tuple[tuple[re.Pattern, str], ...]


@dataclass(frozen=True)
class Dialect:
    """How another library spells a network's names, and lays its tensors out.

    Attributes:
        name: what the report calls it, and what `--dialect` takes.
        renames: (foreign path, canonical path), of modules or of single tensors.
        kinds: (canonical module path, kind), of modules whose tensors are laid out otherwise than torch's.
        others_out_of_scope: names that no rename claims are of other modules, which stand beside this one's.
        shared: (foreign name, canonical name) of tensors that another part of the checkpoint holds as well, or instead.
            The foreign name is that in the whole checkpoint, whatever part of it is in scope. Where both are there,
            they must be equal.
        fixed: (option, value) of what this library's network knows at one value only, whichever axis it is for.
    """

    name: str
    renames: tuple[tuple[str, str], ...] = ()
    kinds: tuple[tuple[str, Kind], ...] = ()
    others_out_of_scope: bool = False
    shared: tuple[tuple[str, str], ...] = ()
    fixed: tuple[tuple[str, int], ...] = ()
    _to_canonical: _Rules = field(init=False, repr=False, compare=False, default=())
    _to_foreign: _Rules = field(init=False, repr=False, compare=False, default=())
    _modules: tuple[tuple[re.Pattern, Kind], ...] = field(init=False, repr=False, compare=False, default=())
    _axes: _Rules = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "_to_canonical", tuple((_pattern(theirs), ours) for theirs, ours in self.renames))
        object.__setattr__(self, "_to_foreign", tuple((_pattern(ours), theirs) for theirs, ours in self.renames))
        object.__setattr__(self, "_modules", tuple((_pattern(path), kind) for path, kind in self.kinds))
        axes = tuple((_pattern(join(path, leaf)), axes) for path, kind in self.kinds for leaf, axes in kind.relaid())
        object.__setattr__(self, "_axes", axes)

    def canonical(self, name: str) -> str:
        """The canonical name of the tensor that this dialect calls `name`.

        Raises:
            ValueError: two rules claim the name.
        """
        return self._renamed(name, self._to_canonical)

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        """Why a network of this configuration cannot be this library's, or None."""
        for name, value in self.fixed:
            if any(given != value for given in config[name]):
                return f"in the dialect {self.name} {name} is always {value}: at any other it is another network"
        return None

    def claims(self, name: str) -> bool:
        """Whether the tensor that this dialect calls `name` may be of this network."""
        return not self.others_out_of_scope or any(pattern.fullmatch(name) for pattern, _ in self._to_canonical)

    def foreign(self, name: str) -> str:
        """The name that this dialect gives to the tensor of the canonical `name`: `canonical` undone.

        Raises:
            ValueError: two rules claim the name, or what it becomes is another tensor's name.
        """
        foreign = self._renamed(name, self._to_foreign)
        if self.canonical(foreign) != name:
            raise ValueError(f"dialect {self.name}: there is no name for {name!r}")
        return foreign

    def _renamed(self, name: str, rules: _Rules) -> str:
        hits = []
        for pattern, path in rules:
            match = pattern.fullmatch(name)
            if match:
                hits.append(path.format(**match.groupdict()) + (match["rest"] or ""))
        if len(hits) > 1:
            raise ValueError(f"dialect {self.name}: two rules claim {name!r}")
        return hits[0] if hits else name

    def kind(self, path: str, kind: Kind) -> Kind:
        """The kind of the module at the canonical `path` as this dialect lays it out; `kind` is the canonical one.

        Raises:
            ValueError: the dialect names a layout of another kind.
        """
        for pattern, theirs in self._modules:
            match = pattern.fullmatch(path)
            if match and not match["rest"]:
                if theirs.of is None or theirs.of.name != kind.name:
                    raise ValueError(f"dialect {self.name}: {theirs} is no layout of {kind}, the kind of {path!r}")
                return theirs
        return kind

    def axes(self, name: str) -> str | None:
        """ "foreign axes -> torch axes" of the tensor of the canonical `name`, or None where the two are the same."""
        hits = (axes for pattern, axes in self._axes if (match := pattern.fullmatch(name)) and not match["rest"])
        return next(hits, None)


CANONICAL = Dialect("official")


def renamed_under(theirs: str, ours: str, renames: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The renames of a network that is the part `theirs` of another, canonically `ours`."""
    return tuple((f"{theirs}.{before}", f"{ours}.{after}") for before, after in renames)


def _pattern(path: str) -> re.Pattern:
    """A regular expression of a path, in which `{i}` is a number, and of what follows it."""
    escaped = re.escape(path).replace(r"\{", "{").replace(r"\}", "}")
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>0|[1-9][0-9]*)", escaped) + r"(?P<rest>\..+)?", re.ASCII)


def unwrapped(name: str, words: Collection[str] = WRAPPERS) -> str:
    """`name` without these words, which stand at any depth where a program wraps a module."""
    if not any(word in name for word in words):
        return name
    return ".".join(part for part in name.split(".") if part not in words) or name
