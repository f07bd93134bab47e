"""A fill as a line that a person reads and edits: `weight -> kernel: o i -> i o`, and read back."""

import re

from converter.errors import ConversionError, printable
from converter.kinds.axes import pattern
from converter.kinds.kind import axes_in
from converter.matching.rows import Fill
from converter.naming import counted

BUILT = "built"
ROWS = ("from", "to", "of")
_SIZES = re.compile(r"\s*\(((?:\s*\w+\s*=\s*\d+\s*,?)+)\)\s*$")
_UNSPEAKABLE = re.compile(r"[\s,:=?{}\"]|->")


def fill_text(fill: Fill) -> str:
    """`weight -> kernel: o i -> i o (i=4)`, or `bias = 0`, or `? -> kernel` where nothing is known."""
    variables = _names(fill.variables)
    if fill.axes.startswith("="):
        return f"{variables} {fill.axes}"
    sizes = f" ({', '.join(f'{name}={length}' for name, length in fill.sizes)})" if fill.sizes else ""
    axes = f": {fill.axes or '?'}{sizes}" if fill.tensors else ""
    return f"{_names(fill.tensors) if fill.tensors else '?'} -> {variables}{axes}"


def _names(names: tuple[str, ...]) -> str:
    for name in names:
        if _UNSPEAKABLE.search(name):
            raise ConversionError(
                f"{printable(name)!r} cannot stand in a plan: a name has no blanks, commas, colons, braces, = or ?"
            )
    return ", ".join(name or "." for name in names)  # "." is the unit itself


def read_fill(text: str) -> Fill:
    """`fill_text` read back.

    Raises:
        ValueError: it is none; the message says why.
    """
    names, colon, axes = text.partition(":")
    constant = re.fullmatch(r"([^=]*[^=\s])\s*=\s*(\S+)\s*", text)
    if constant and not colon:
        value = constant[2]
        if value != BUILT and not re.fullmatch(r"-?\d+(\.\d+)?(e[-+]?\d+)?", value):
            raise ValueError(f"a variable is = a number, or = {BUILT}, not = {printable(value, 40)}")
        return Fill((), _read_names(constant[1]), f"= {value}")
    left, arrow, right = names.partition("->")
    if not arrow:
        raise ValueError("a fill is `tensors -> variables: axes -> axes`, or `variable = 0`")
    variables = _read_names(right)
    if left.strip() == "?" and not colon:
        return Fill((), variables, "")
    tensors = _read_names(left)
    if not colon:
        raise ValueError("the axes are missing: `tensors -> variables: axes -> axes`, as weight -> kernel: o i -> i o")
    if axes.strip() == "?":
        return Fill(tensors, variables, "")
    sized = _SIZES.search(axes)
    sizes: tuple[tuple[str, int], ...] = ()
    if sized:
        axes = axes[: sized.start()]
        sizes = tuple((name, int(length)) for name, length in re.findall(r"(\w+)\s*=\s*(\d+)", sized[1]))
    found = pattern(axes.strip())
    for side, some, what in ((found.left, tensors, "tensor"), (found.right, variables, "variable")):
        if len(side) != len(some):
            raise ValueError(f"{counted(len(some), what)}, but axes of {len(side)}")
    taken = [name for name, _ in sizes if name in ROWS]
    if taken and taken != list(ROWS):
        raise ValueError("rows of a table are taken as (from=2, to=42, of=42)")
    for name, length in sizes:
        if name not in (*axes_in(axes), *ROWS) or (length < 1 and name != "from"):
            raise ValueError(f"({name}={length}): a size is a length from 1 of an axis that stands in the pattern")
    return Fill(tensors, variables, axes.strip(), sizes)


def _read_names(text: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not name or _UNSPEAKABLE.search(name):
            raise ValueError(f"{printable(name, 60)!r} is no name")
    return tuple("" if name == "." else name for name in names)
