"""Units: what owns parameters on either side, how they feed one another, and which operation gives their results.

Both sides are read as steps (`converter.torch_side.answers.Step`), so nothing here knows a framework. A unit is what
owns a kernel with its bias, a normalisation with its statistics, or a single parameter. Its result is that of the last
operation that uses its parameters: so it does not matter how a library cuts its layers, and what it fuses with them.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from converter.torch_side.answers import Step

Shape = tuple[int, ...]
INPUT = "input"

_STATISTICS = ("running_mean", "running_var", "moving_mean", "moving_variance")
# What a name ends with, of tensors that belong to one another; what stands before tells them from others beside them.
_LEAF = re.compile(
    r"(?P<before>.*?)_?(?P<leaf>weight|kernel|gamma|beta|bias|embeddings|running_mean|running_var|moving_mean|moving_variance)"
    r"(?P<behind>(_(ih|hh)_l\d+(_reverse)?)?)"
)


@dataclass(eq=False)
class Unit:
    """What owns some tensors of one side.

    Attributes:
        path: where it is; "" is the network itself.
        tensors: name below the path -> shape, in the order of the network.
        owner: class of the module or layer.
        order: its place among the units.
        before, after: units whose results reach it, and that its result reaches, with no other between; `INPUT` is
            among `before` where an input of the network does.
        call: the first step that uses it, or None where none does.
        result: the last step that does.
        cut: how many values a table has on the other side, which has fewer rows; 0 where it is as large.
        part: (which, shares of all) where its tensors are a part of those of `whole`.
    """

    path: str
    order: int
    owner: str = ""
    tensors: dict[str, Shape] = field(default_factory=dict)
    before: "set[Unit | str]" = field(default_factory=set)
    after: "set[Unit]" = field(default_factory=set)
    call: int | None = None
    result: int | None = None
    part: tuple[int, tuple[int, ...]] | None = None
    whole: "Unit | None" = None
    cut: int = 0

    def __repr__(self) -> str:
        which = f"[{self.part[0]} of {len(self.part[1])}]" if self.part else ""
        return f"{self.name}{which}"

    @property
    def name(self) -> str:
        """Its path, and what tells it from others that are owned by the same module."""
        first = next(iter(self.tensors))
        match = _LEAF.fullmatch(first)
        word = first if match is None else f"{match['before']}{match['behind']}"
        return self.full(word) if word else self.path or first

    @property
    def place(self) -> str:
        """The path under which a person looks for it: its module's, or that of its one tensor where that is no
        module's kernel."""
        first = next(iter(self.tensors))
        return self.path if len(self.tensors) > 1 or (self.path and _LEAF.fullmatch(first)) else self.full(first)

    def full(self, name: str) -> str:
        """The full name of one of its tensors."""
        return f"{self.path}.{name}" if self.path else name

    @property
    def statistics(self) -> bool:
        return any(name in _STATISTICS for name in self.tensors)

    @property
    def size(self) -> int:
        """Values of its largest tensor."""
        whole = self.cut or max(math.prod(shape) for shape in self.tensors.values())
        return whole * self.part[1][self.part[0]] // sum(self.part[1]) if self.part else whole

    @property
    def sort(self) -> tuple:
        """What a unit and its counterpart have in common, whatever their axes."""
        main = max(self.tensors.values(), key=math.prod)
        if self.statistics:
            return "statistics", self.size
        if sum(length > 1 for length in main) <= 1:
            return "vector", self.size, len(self.tensors) > 1
        return "kernel", self.size


def leaf_of(name: str) -> str:
    """What a tensor is to its unit: "weight", "bias", ... ; its name where that does not say."""
    match = _LEAF.fullmatch(name)
    return match["leaf"] if match else name


def grouped(tensors: Mapping[str, Shape], owners: Mapping[str, str]) -> list[Unit]:
    """Units of tensors by name; `owners` has the class of each tensor's module by the same name."""
    found: dict[tuple[str, str], Unit] = {}
    for name, shape in tensors.items():
        above, _, leaf = name.rpartition(".")
        match = _LEAF.fullmatch(leaf)
        key = f"{match['before']}{match['behind']}" if match else leaf
        if leaf == "bias" and owners.get(name, "").startswith("Separable"):
            key = "pointwise"  # after both kernels
        path = above
        unit = found.setdefault((path, key), Unit(path, len(found), owners.get(name, "")))
        unit.tensors[leaf] = shape
    return list(found.values())


def connect(units: Iterable[Unit], steps: Sequence[Step]) -> None:
    """Find what feeds each unit, and which step gives its result."""
    units = list(units)
    owner = {unit.full(name): unit for unit in units for name in unit.tensors}
    nothing: frozenset = frozenset()
    flowing: dict[int, tuple[frozenset, frozenset]] = {}  # step -> (units waiting for data, units that data comes from)

    def state(read: int | str | None) -> tuple[frozenset, frozenset]:
        if isinstance(read, int):
            return flowing.get(read, (nothing, nothing))
        if isinstance(read, str) and read.startswith("input "):
            return nothing, frozenset({INPUT})
        return (frozenset({owner[read]}), nothing) if read in owner else (nothing, nothing)

    for step in steps:
        states = [state(read) for read in step.reads]
        waiting, near = (
            (frozenset().union(*side) for side in zip(*states, strict=True)) if states else (nothing, nothing)
        )
        if not near:
            flowing[step.number] = waiting, nothing
            continue
        for unit in waiting:
            unit.call = step.number if unit.call is None else unit.call
            unit.result = step.number
            unit.before |= near - {unit}
        flowing[step.number] = nothing, waiting or _met_again(near, sum(bool(one) for _, one in states), step)
    for unit in units:
        for other in unit.before:
            if isinstance(other, Unit):
                other.after.add(unit)


_SUMS = ("AddV2", "Add", "Sub", "add", "sub")


def _met_again(near: frozenset, several: int, step: Step) -> frozenset:
    """Where a normalisation is written out, its factors meet its own input again, and its parts one another: that is
    still its result."""
    for unit in near:
        if isinstance(unit, Unit) and (unit.sort[0] != "kernel" or "Norm" in unit.owner):
            normalises = len(unit.tensors) > 1 or "Norm" in unit.owner
            split = len(near) == 1 and several > 1 and normalises and step.operation in _SUMS
            if split or (len(near) > 1 and near - {unit} <= unit.before):
                unit.result = step.number
                return frozenset({unit})
    return near


def downstream(unit: Unit) -> set[Unit]:
    """All that it feeds, near or far: sums may be made in another order."""
    found: set[Unit] = set()
    open_ = list(unit.after)
    while open_:
        one = open_.pop()
        if one not in found:
            found.add(one)
            open_ += one.after
    return found
