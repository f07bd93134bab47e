"""What a match says: which tensors fill which variables, with which axes, and how that is known."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from converter.pairs.mapping import expand, join

# Of a link, from the best to the worst. Only what is proven is converted, and what a person accepts.
STATUSES = ("proven", "proposed", "ambiguous", "unmatched")


@dataclass(frozen=True)
class Fill:
    """Tensors and the variables that they fill together.

    Attributes:
        tensors: names below the link's torch path; none where the variables hold a constant, or nothing is known.
        variables: attribute paths below the link's Keras path.
        axes: the pattern (`converter.kinds.axes`) of all tensors -> all variables; of a constant "= 0", or "= built"
            where the variables keep the values that the Keras builder gives them; "" where nothing is known.
        sizes: lengths of axes that no shape tells; `from`, `to` and `of` are the rows of a table that are taken, and
            how many it has.
    """

    tensors: tuple[str, ...]
    variables: tuple[str, ...]
    axes: str
    sizes: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Link:
    """A unit of the torch network and the unit of the Keras model that it fills; braces in the paths stand for several.

    Attributes:
        torch, keras: paths of the units; torch's is "" where variables hold a constant or are unmatched.
        fills: what fills what below them.
        status: one of `STATUSES`.
        evidence: how it is known, in words.
        kind: name in `converter.kinds` of the layer that both units are, where each can be called alone; "" elsewhere.
        accepted: a person has looked at it and takes it.
    """

    torch: str
    keras: str
    fills: tuple[Fill, ...]
    status: str
    evidence: str
    kind: str = ""
    accepted: bool = False

    @property
    def taken(self) -> bool:
        """Whether it may be converted by."""
        return self.status == "proven" or self.accepted

    def units(self) -> Iterator[tuple[str, str]]:
        """(torch path, Keras path) of every unit that it stands for."""
        theirs, ours = expand(self.torch), expand(self.keras)
        if not self.torch:
            theirs = [""] * len(ours)
        if len(theirs) != len(ours):
            raise ValueError(f"{self.torch!r} names {len(theirs)} units, {self.keras!r} {len(ours)}")
        return zip(theirs, ours, strict=True)


@dataclass(frozen=True)
class Row:
    """One variable of the Keras model.

    Attributes:
        variable: its attribute path.
        tensors: the torch tensors that fill it (with others, where `axes` has several arrays on the right).
        axes, evidence, status: as of a `Fill` and its `Link`.
    """

    variable: str
    tensors: tuple[str, ...]
    axes: str
    evidence: str
    status: str


def rows_of(links: list[Link], named: Mapping[str, str] | None = None) -> list[Row]:
    """A row for each variable, in the order of the links; `named` are other names of tensors."""
    known = named or {}
    return [
        Row(
            join(ours, variable),
            tuple(known.get(join(theirs, name), join(theirs, name)) for name in fill.tensors),
            fill.axes,
            link.evidence,
            link.status,
        )
        for link in links
        for theirs, ours in link.units()
        for fill in link.fills
        for variable in fill.variables
    ]


@dataclass
class Outcome:
    """All that a match found.

    Attributes:
        links: every variable of the Keras model is in one.
        left: name of a torch tensor that fills nothing -> why that is right, or "" where no reason is known.
        outputs: (path in torch's results, path in Keras's, pattern of the axes) of the outputs that are the same;
            paths are those of `converter.nested.flat`.
        notes: sentences for a person: where the two networks differ, and what to do.
        saved: name of a torch tensor -> the name that its library gives it in a file, where it is another.
        named: name of a torch tensor -> its name in the checkpoint that was given, where it is another.
    """

    links: list[Link]
    left: dict[str, str]
    outputs: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    saved: dict[str, str] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)
