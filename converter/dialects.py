"""Foreign spellings of names, and the wrappings around them, undone before the plan is made.

A dialect is a table of renames from another library's module paths to the canonical ones. `{i}` in a path stands for
any number and carries over. The rules have no order: a name that two rules claim is an error in the table.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

# Keys that training scripts, DataParallel and torch.compile put before every name.
WRAPPERS = ("module", "_orig_mod", "model", "state_dict")
_DEEPEST = 8  # of wrappers within one another


@dataclass(frozen=True)
class Dialect:
    """A spelling: its name, and its renames (foreign module path -> canonical module path)."""

    name: str
    renames: tuple[tuple[str, str], ...] = ()
    _rules: tuple[tuple[re.Pattern, str], ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rules", tuple((_pattern(theirs), ours) for theirs, ours in self.renames))

    def canonical(self, name: str) -> str:
        """The canonical name of the tensor that this dialect calls `name`.

        Raises:
            ValueError: two rules claim the name.
        """
        hits = []
        for pattern, ours in self._rules:
            match = pattern.fullmatch(name)
            if match:
                hits.append(ours.format(**match.groupdict()) + (match["rest"] or ""))
        if len(hits) > 1:
            raise ValueError(f"dialect {self.name}: two rules claim {name!r}")
        return hits[0] if hits else name


CANONICAL = Dialect("official")


def _pattern(path: str) -> re.Pattern:
    """A regular expression of a module path, in which `{i}` is a number, and of what follows it."""
    escaped = re.escape(path).replace(r"\{", "{").replace(r"\}", "}")
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>0|[1-9][0-9]*)", escaped) + r"(?P<rest>\..+)?", re.ASCII)


def strip_compiled(name: str) -> str:
    """`name` without the `_orig_mod` that torch.compile puts at any depth."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod") if "_orig_mod" in name else name


def prefixes(names: Iterable[str]) -> list[str]:
    """Every run of wrapper words that some name starts with, "" first: "", "module.", "module.model.", ..."""
    found = {""}
    for name in names:
        run = ""
        for part in name.split(".")[:_DEEPEST]:
            if part not in WRAPPERS or len(run) + len(part) + 1 >= len(name):
                break
            run += f"{part}."
            found.add(run)
    return sorted(found, key=len)
