"""A plan: what a match found, as a TOML file that a person reads and edits. One row a unit, braces folded.

Comments, accepted rows and reasons stay when the plan of the same networks is written again.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

from converter import kinds
from converter.checkpoints.checkpoint import Checkpoint
from converter.errors import ConversionError, one_line, printable
from converter.files.atomic import NewFile
from converter.kinds.activations import one_each
from converter.kinds.axes import pattern
from converter.kinds.kind import axes_in
from converter.matching.rows import STATUSES, Fill, Link, Outcome, rows_of
from converter.naming import counted, fold, fold_pairs, nearest
from converter.pairs.mapping import expand, join

FORMAT = 1
ENDINGS = (".toml",)
BUILT = "built"

_HEAD = "format torch keras inputs checkpoint variables tied outputs notes row left".split()
_ROW = "torch keras fills kind status evidence accepted seal".split()
_LEFT = ["torch", "reason"]
_SORTS = {str: "a text", int: "a whole number", bool: "true or false", list: "a list of texts", dict: "a table"}
_HELD = "file tensors digest".split()
_OPEN_FIRST = ("ambiguous", "unmatched", "proposed")
_MEASURED = re.compile(r"\d+\.\d*(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+")
_SIZES = re.compile(r"\s*\(((?:\s*\w+\s*=\s*\d+\s*,?)+)\)\s*$")
_UNSPEAKABLE = re.compile(r"[\s,:=?{}\"]|->")
_HEADER = re.compile(r"[ \t]*\[\[[ \t]*(\w+)[ \t]*\]\]")
_WIDEST = 110  # characters of a list that stays in one line

_OPEN = "# To do: the rows that come first are open. Mend what is wrong in them; `accepted = true` takes what is right."
_UNSAID = "# To do: say why the tensors that are left fill nothing: write a `reason`. The rows are proven or accepted."
_DONE = "# To do: nothing, all rows are proven or accepted."
_ALWAYS = (
    "# `convert --plan THIS_FILE CHECKPOINT` converts by it once each row is proven or accepted.",
    "# A row that is edited is proven no longer: accept it, or match again; comments and accepted rows stay.",
)
_COUNTS = re.compile(r"# \d+ units? with \d+ variables?: ")


@dataclass(frozen=True)
class Held:
    """Of which checkpoint a plan is: its file, how many tensors it has, and a digest of their names and shapes."""

    file: str
    tensors: int
    digest: str

    @classmethod
    def of(cls, path: str | os.PathLike) -> "Held":
        """Of the checkpoint at `path`.

        Raises:
            ConversionError: it cannot be read as one.
        """
        with Checkpoint(path) as source:
            lines = [
                f"{key}\0{name}\0{'x'.join(map(str, entry.shape))}\n"
                for key, state in source.states.items()
                for name, entry in state.items()
            ]
            return cls(os.path.basename(source.shown()), len(lines), _digest("".join(sorted(lines))))


@dataclass
class Plan:
    """What stands in the file.

    Attributes:
        torch, keras, inputs: how the networks and their inputs are named; "" where there is none.
        checkpoint: of which checkpoint it is, if any was given.
        outcome: all that was found; of a file that was read, rows are links.
        tied: tensors that may fill several variables.
    """

    torch: str
    keras: str
    inputs: str
    checkpoint: Held | None
    outcome: Outcome = field(default_factory=lambda: Outcome([], {}))
    tied: list[str] = field(default_factory=list)


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:12]


# Rows.


def folded(links: Iterable[Link]) -> list[Link]:
    """Links as a plan has them: those that are alike joined; first what is open, then what was accepted, then the rest.

    Alike are links with the same fills, status, kind and evidence; where evidence has measured numbers (those with a
    decimal point or an exponent), the joined link has the largest of each.
    """
    order: dict[tuple[str, str], int] = {}
    groups: dict[Any, dict[tuple[str, str], Link]] = {}
    for link in links:
        alike = (link.fills, link.status, link.kind, link.accepted, _MEASURED.sub("", link.evidence))
        for unit in link.units():
            groups.setdefault(alike, {})[unit] = link
            order.setdefault(unit, len(order))
    found = []
    for some in groups.values():
        apart = [unit for unit, link in some.items() if not unit[0] and any(fill.tensors for fill in link.fills)]
        for theirs, ours in [*apart, *fold_pairs([unit for unit in some if unit not in apart])]:
            names = list(replace(next(iter(some.values())), torch=theirs, keras=ours).units())
            evidence = _largest([some[unit].evidence for unit in names])
            link = replace(some[names[0]], torch=theirs, keras=ours, evidence=evidence)
            place = 3 + (link.status == "proven") if link.taken else _OPEN_FIRST.index(link.status)
            found.append((place, min(order[unit] for unit in names), link))
    return [link for *_, link in sorted(found, key=lambda one: one[:2])]


def _largest(texts: list[str]) -> str:
    """Texts that differ in measured numbers as one, with the largest of each."""
    numbers = iter([max(some, key=float) for some in zip(*map(_MEASURED.findall, texts), strict=True)])
    return _MEASURED.sub(lambda _: next(numbers), texts[0])


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
        if value != BUILT and not re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", value):
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
    for name, length in sizes:
        if name not in axes_in(axes) or length < 1:
            raise ValueError(f"({name}={length}): a size is a length from 1 of an axis that stands in the pattern")
    return Fill(tensors, variables, axes.strip(), sizes)


def _read_names(text: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not name or _UNSPEAKABLE.search(name):
            raise ValueError(f"{printable(name, 60)!r} is no name")
    return tuple("" if name == "." else name for name in names)


def is_open(link: Link) -> bool:
    """Whether it leaves open how a variable is filled, so that there is nothing to accept."""
    return not link.fills or any(not fill.axes for fill in link.fills)


def variables_of(link: Link) -> Iterator[str]:
    """Attribute path of every variable that it fills."""
    for _, ours in link.units():
        for fill in link.fills:
            for variable in fill.variables:
                yield join(ours, variable)


def tensors_of(link: Link) -> Iterator[str]:
    for theirs, _ in link.units():
        for fill in link.fills:
            for tensor in fill.tensors:
                yield join(theirs, tensor)


def _settled(link: Link) -> bool:
    """Whether it says of its tensors that they are its own; ambiguous ones name what may be."""
    return link.taken or link.status == "proposed"


def tied_in(links: Iterable[Link]) -> list[str]:
    """Tensors that several fills have, as a match found it."""
    seen: set[str] = set()
    tied: dict[str, None] = {}
    for name in (name for link in links if _settled(link) for name in tensors_of(link)):
        if name in seen:
            tied[name] = None
        seen.add(name)
    return list(tied)


def _seal(plan: Plan, link: Link) -> str:
    """By which a proven row is known as it was written."""
    digest = plan.checkpoint.digest if plan.checkpoint else ""
    said = [plan.torch, plan.keras, digest, link.torch, link.keras, [*map(fill_text, link.fills)]]
    return _digest(json.dumps([*said, link.kind, link.evidence]))[:8]


# Reading.


@dataclass
class _Block:
    """A row as it stands in the file: with the comments above it, from the line `above`; its header is at `line`."""

    what: str
    text: str
    above: int
    line: int


def _blocks(text: str) -> tuple[str, list[_Block]]:
    """What stands before the rows, and the rows. Comments directly above a header are the row's."""
    lines = text.splitlines(keepends=True)
    headers = [(at, match[1]) for at, line in enumerate(lines) if (match := _HEADER.match(line))]
    starts = []
    for at, _ in headers:
        start = at
        while start > 0 and lines[start - 1].lstrip().startswith("#"):
            start -= 1
        starts.append(start)
    ends = [*starts[1:], *([len(lines)] if starts else [])]
    found = [
        _Block(what, "".join(lines[start:end]), start + 1, at + 1)
        for (at, what), start, end in zip(headers, starts, ends, strict=True)
    ]
    return "".join(lines[: starts[0]] if starts else lines), found


class _Reader:
    """Reads one file. `again`: edited rows that say "proven" are proposed, for a match that decides anew."""

    def __init__(self, path: Path, again: bool):
        self._shown, self._again = printable(str(path), 160), again
        try:
            self.text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConversionError(f"the plan {self._shown} cannot be read: {reason}") from None
        self._lines = self.text.splitlines()
        self.head, self.blocks = _blocks(self.text)

    def fail(self, line: int, told: str) -> NoReturn:
        raise ConversionError(f"{self._shown}, line {line}: {told}")

    def read(self) -> Plan:
        from tomlkit import parse
        from tomlkit.exceptions import ParseError, TOMLKitError

        try:
            found = parse(self.text).unwrap()
        except ParseError as error:
            told = re.sub(r" at (line|end).*", "", str(error))
            if told.startswith("Control characters"):  # the line's end, inside a text
                told = "a text lacks its closing quote"
            self.fail(error.line, f"it is not TOML: {one_line(told)}")
        except TOMLKitError as error:
            raise ConversionError(f"{self._shown}: it is not TOML: {one_line(str(error))}") from None
        self._check_head(found)
        plan = Plan(found.get("torch", ""), found["keras"], found.get("inputs", ""), None)
        if "checkpoint" in found:
            plan.checkpoint = Held(**found["checkpoint"])
        plan.outcome.outputs = [self._output(one) for one in found.get("outputs", [])]
        plan.outcome.notes = list(found.get("notes", []))
        try:
            plan.tied = [name for text in found.get("tied", []) for name in expand(text)]
        except ValueError as error:
            self.fail(self.at("tied"), one_line(str(error)))
        tables = [(what, table) for what in ("row", "left") for table in found.get(what, [])]
        blocks = [block for what in ("row", "left") for block in self.blocks if block.what == what]
        if len(tables) != len(blocks):
            raise ConversionError(f"{self._shown}: every row is written under a line of its own, [[row]] or [[left]]")
        links = [
            (self._link(plan, table, block), block)
            for (what, table), block in zip(tables, blocks, strict=True)
            if what == "row"
        ]
        plan.outcome.links = [link for link, _ in links]
        taken = {name for link in plan.outcome.links if link.taken for name in tensors_of(link)}
        for (what, table), block in zip(tables, blocks, strict=True):
            if what == "left":
                self._left(plan, table, block, taken)
        self._check_all(plan, links, found)
        return plan

    def _check_head(self, found: dict[str, Any]) -> None:
        number = found.get("format")
        if not isinstance(number, int) or isinstance(number, bool) or "keras" not in found:
            raise ConversionError(
                f"{self._shown} is no plan: it lacks `format` or `keras`; `weightbridge match` writes one"
            )
        if number > FORMAT:
            self.fail(
                self.at("format"),
                f"it was written by a later Weightbridge (format {number}, this one reads {FORMAT}): bring this one up "
                "to date, or match again",
            )
        if number < 1:
            self.fail(self.at("format"), f"there is no format {number}")
        self._check_keys(found, _HEAD, 1, len(self._lines))
        for name, kind in (
            *((name, str) for name in ("torch", "keras", "inputs")), ("checkpoint", dict), ("variables", int),
            *((name, list) for name in ("tied", "outputs", "notes", "row", "left")),
        ):  # fmt: skip
            self._check_type(found, name, kind, self.at(name))
        held = found.get("checkpoint")
        if held is not None:
            self._check_keys(held, _HELD, self.at("checkpoint"), self.at("checkpoint"))
            for name, kind in zip(_HELD, (str, int, str), strict=True):
                if name not in held:
                    self.fail(self.at("checkpoint"), f"`checkpoint` lacks `{name}`")
                self._check_type(held, name, kind, self.at("checkpoint"))

    def _check_keys(self, table: dict[str, Any], known: list[str], start: int, end: int) -> None:
        for key in table:
            if key not in known:
                near = nearest(key, known)
                meant = f"did you mean `{near}`?" if near else f"known are {', '.join(known)}"
                self.fail(self.at(key, start, end), f"`{printable(key, 60)}` is nothing that a plan has; {meant}")

    def _check_type(self, table: dict[str, Any], name: str, kind: type, line: int) -> None:
        value = table.get(name)
        wrong = not isinstance(value, kind) or (kind is int and isinstance(value, bool))
        of = dict if name in ("row", "left") else str
        if name in table and (wrong or (isinstance(value, list) and not all(isinstance(one, of) for one in value))):
            self.fail(line, f"`{name}` is {_SORTS[kind]}")

    def at(self, key: str, start: int = 1, end: int | None = None) -> int:
        """The line of `key`, from the line `start` on; that where it is not found."""
        named = re.compile(rf"""\s*["']?{re.escape(key)}["']?\s*(=|\.)|\s*\[+\s*["']?{re.escape(key)}\b""")
        lines = enumerate(self._lines[start - 1 : end], start)
        return next((number for number, line in lines if named.match(line)), start)

    def _end(self, block: _Block) -> int:
        return block.above + block.text.count("\n")

    def _link(self, plan: Plan, row: dict[str, Any], block: _Block) -> Link:
        end = self._end(block)

        def at(key: str) -> int:
            return self.at(key, block.line, end)

        self._check_keys(row, _ROW, block.line, end)
        for name in ("torch", "keras", "kind", "status", "evidence", "seal"):
            self._check_type(row, name, str, at(name))
        self._check_type(row, "fills", list, at("fills"))
        self._check_type(row, "accepted", bool, at("accepted"))
        for name in ("keras", "status", "fills"):
            if not row.get(name) and not (name == "keras" and name in row):
                self.fail(block.line, f"the row has no `{name}`")
        status, kind = row["status"], row.get("kind", "")
        if status not in STATUSES:
            near = nearest(status, STATUSES)
            meant = f"; did you mean {near}?" if near else ""
            self.fail(at("status"), f"{printable(status, 40)!r} is no status: {', '.join(STATUSES)}{meant}")
        if kind and not isinstance(getattr(kinds, kind, None), kinds.Kind):
            near = nearest(kind.upper(), kinds.__all__)
            meant = f"; did you mean {near}?" if near else "; docs/add_a_pair.md lists them"
            self.fail(at("kind"), f"no kind is named {printable(kind, 60)}{meant}")
        fills = tuple(self._fill(text, at("fills"), end) for text in row["fills"])
        if "torch" not in row and any(fill.tensors for fill in fills):
            self.fail(block.line, "the row has no `torch`, below whose path its tensors are")
        for name in ("torch", "keras"):
            try:
                expand(row.get(name, ""))
            except ValueError as error:
                self.fail(at(name), one_line(str(error)))
        link = Link(row.get("torch", ""), row["keras"], fills, status, row.get("evidence", ""), kind,
                    row.get("accepted", False))  # fmt: skip
        try:
            link.units()
        except ValueError as error:
            self.fail(at("keras"), one_line(str(error)))
        if link.accepted and is_open(link):
            self.fail(at("accepted"), "nothing can be accepted while it is open how a variable is filled (`?`)")
        if status == "proven" and row.get("seal") != _seal(plan, link):
            if not link.accepted and not self._again:
                written = "edited since it was proven" if "seal" in row else "written by hand"
                self.fail(
                    at("status"),
                    f"only a match proves, and this row (or what stands above all rows) was {written}; add `accepted = "
                    "true` where it is right, or match again",
                )
            link = replace(link, status="proposed", evidence=_edited(link.evidence))
        return link

    def _fill(self, text: str, line: int, end: int) -> Fill:
        lines = enumerate(self._lines[line - 1 : end], line)
        place = next((number for number, one in lines if text in one), line)
        try:
            return read_fill(text)
        except ValueError as error:
            self.fail(place, f"{printable(text, 100)!r}: {one_line(str(error))}")

    def _left(self, plan: Plan, table: dict[str, Any], block: _Block, taken: set[str]) -> None:
        end = self._end(block)
        self._check_keys(table, _LEFT, block.line, end)
        for name in ("torch", "reason"):
            self._check_type(table, name, str, self.at(name, block.line, end))
        if not table.get("torch"):
            self.fail(block.line, "`torch`, which tensor is left, is missing")
        try:
            names = expand(table["torch"])
        except ValueError as error:
            self.fail(self.at("torch", block.line, end), one_line(str(error)))
        for name in names:
            if name in plan.outcome.left:
                self.fail(self.at("torch", block.line, end), f"{printable(name)} is left twice")
            if name in taken:
                self.fail(self.at("torch", block.line, end), f"{printable(name)} is left, but a row takes it")
            plan.outcome.left[name] = table.get("reason", "")

    def _output(self, text: str) -> tuple[str, str, str]:
        paths, _, axes = text.partition(":")
        theirs, arrow, ours = (part.strip() for part in paths.partition("->"))
        try:
            if not (theirs and arrow and ours):
                raise ValueError("an output is `torch's path -> Keras's path: axes -> axes`")
            if axes.strip():
                one_each(axes.strip())
        except ValueError as error:
            self.fail(self.at("outputs"), f"{printable(text, 100)!r}: {one_line(str(error))}")
        return theirs.removeprefix("."), ours.removeprefix("."), axes.strip()

    def _check_all(self, plan: Plan, links: list[tuple[Link, _Block]], found: dict[str, Any]) -> None:
        """That no variable is filled twice or by nothing, and no tensor taken twice."""
        seen: dict[str, int] = {}
        taken: dict[str, int] = {}
        for link, block in links:
            for variable in variables_of(link):
                if variable in seen:
                    other = f"the row of line {seen[variable]}" if seen[variable] != block.line else "the same row"
                    self.fail(block.line, f"the variable {printable(variable)} is filled by {other} too")
                seen[variable] = block.line
            for tensor in tensors_of(link) if _settled(link) else ():
                if tensor in taken and tensor not in plan.tied:
                    other = f"the row of line {taken[tensor]}" if taken[tensor] != block.line else "the same row"
                    self.fail(
                        block.line,
                        f"the tensor {printable(tensor)} is taken by {other} too; where that is meant, list it under "
                        "`tied` above the rows",
                    )
                taken[tensor] = block.line
        if len(seen) != found.get("variables", len(seen)):
            self.fail(
                self.at("variables"),
                f"the model has {counted(found['variables'], 'variable')}, but the rows fill {len(seen)}; match again "
                "where a row was lost",
            )


_EDITED = "edited since it was proven"


def _edited(evidence: str) -> str:
    return evidence if evidence.startswith(_EDITED) else f"{_EDITED}{'; before: ' if evidence else ''}{evidence}"


def read(path: Path) -> Plan:
    """The plan in the file.

    Raises:
        ConversionError: it cannot be read, is none or of a later format, or an edit is wrong; the message has the line.
    """
    return _Reader(path, again=False).read()


# Writing.


def new_plan(path: Path, plan: Plan, overwrite: bool) -> NewFile:
    """The file of a plan that is to be written. The plan of the same networks may stand there.

    Raises:
        ConversionError: something else stands there and is not to be replaced, or it cannot be written.
    """
    return _new(path, plan, overwrite, lambda text: text)


def check_output(path: Path, torch: str, keras: str, overwrite: bool) -> None:
    """See, before any work, that a plan of networks of these names, perhaps with more arguments, can be written.

    Raises:
        ConversionError: as `new_plan`.
    """
    _new(path.expanduser(), Plan(torch, keras, "", None), overwrite, lambda text: text.partition("?")[0])


def _new(path: Path, plan: Plan, overwrite: bool, part: Callable[[str], str]) -> NewFile:
    if overwrite or not path.is_file():
        return NewFile(path, overwrite, ENDINGS)
    new = NewFile(path, True, ENDINGS)
    reader = _Reader(path, again=True)
    old = reader.read()
    for name, one, other in (("torch", old.torch, plan.torch), ("keras", old.keras, plan.keras)):
        if part(one) != part(other):
            reader.fail(
                reader.at(name),
                f"it is the plan of another pair, with {name} = {printable(one, 80)!r}, not {printable(other, 80)!r}; "
                "name another output, or --overwrite replaces it",
            )
    if not _same(old.checkpoint, plan.checkpoint):
        reader.fail(
            reader.at("checkpoint"),
            "it is the plan of a checkpoint of other tensors; name another output, or --overwrite replaces it",
        )
    return new


def write(new: NewFile, plan: Plan) -> Plan:
    """Write the plan; of one of the same networks that stands there, comments, accepted rows and reasons stay.

    Returns: what was written.

    Raises:
        ConversionError: it cannot be written, or the plan that stands there cannot be read.
    """
    reader = None
    if new.path.is_file():
        try:
            reader = _Reader(new.path, again=True)
            old = reader.read()
        except ConversionError:
            if not new.overwrite:
                raise
            reader = None
        if reader and (old.torch, old.keras) == (plan.torch, plan.keras) and _same(old.checkpoint, plan.checkpoint):
            plan = _merged(old, plan)
        else:
            reader = None
    text = _text(plan, reader)
    with new.written() as temporary:
        temporary.write_text(text, encoding="utf-8")
    return plan


def _same(one: Held | None, other: Held | None) -> bool:
    return one is None or other is None or one.digest == other.digest


def _merged(old: Plan, new: Plan) -> Plan:
    """The new plan with what a person accepted in the old one where nothing else was proven, and their reasons."""
    units = [replace(link, torch=theirs, keras=ours) for link in new.outcome.links for theirs, ours in link.units()]
    for link in (one for one in old.outcome.links if one.accepted):
        for theirs, ours in link.units():
            kept = replace(link, torch=theirs, keras=ours)
            mine = set(variables_of(kept))
            there = [unit for unit in units if not mine.isdisjoint(variables_of(unit))]
            same = [unit for unit in there if (unit.torch, unit.keras, unit.fills) == (theirs, ours, link.fills)]
            if same:
                units = [replace(unit, accepted=True) if unit in same else unit for unit in units]
            elif there and all(unit.status != "proven" and mine.issuperset(variables_of(unit)) for unit in there):
                at = units.index(there[0])
                status = "proposed" if kept.status == "proven" else kept.status
                units = [unit for unit in units if unit not in there]
                units.insert(at, replace(kept, status=status))
    left = {name: old.outcome.left.get(name) or reason for name, reason in new.outcome.left.items()}
    tied = list(dict.fromkeys([*old.tied, *new.tied]))
    return replace(new, outcome=replace(new.outcome, links=units, left=left), tied=tied)


def _text(plan: Plan, reader: _Reader | None) -> str:
    links = folded(plan.outcome.links)
    head, blocks = (reader.head, reader.blocks) if reader else ("", [])
    rows, kept = _kept(links, [block for block in blocks if block.what == "row"])
    reasons: dict[str, list[str]] = {}
    for name, reason in plan.outcome.left.items():
        reasons.setdefault(reason, []).append(name)
    left = [{"torch": name, "reason": reason} for reason, names in reasons.items() for name in fold(names)]
    old = {}
    for block in (block for block in blocks if block.what == "left"):
        old[_table(block)["torch"]] = block
    pieces = [_head(plan, links, head)]
    for link, before, comments in zip(links, rows, kept, strict=False):
        pieces.append(_block_text("row", _row(plan, link), before, comments))
    pieces += [_block_text("left", table, old.pop(table["torch"], None), []) for table in left]
    lost = [line for block in old.values() for line in _comments(block)]
    lost += kept[len(links)]
    return "\n\n".join([*pieces, *(["\n".join(lost)] if lost else [])]) + "\n"


def _head(plan: Plan, links: list[Link], before: str) -> str:
    from tomlkit import dumps, parse

    ours = {_OPEN, _UNSAID, _DONE, *_ALWAYS}
    lines = [line for line in before.strip("\n").split("\n") if line not in ours and not _COUNTS.match(line)]
    document = parse("\n".join(lines).strip("\n") + "\n") if before else parse("")
    held = plan.checkpoint
    outcome = plan.outcome
    values = {
        "format": FORMAT,
        "torch": plan.torch,
        "keras": plan.keras,
        "inputs": plan.inputs,
        "checkpoint": {"file": held.file, "tensors": held.tensors, "digest": held.digest} if held else None,
        "variables": len(rows_of(links)),
        "tied": fold(plan.tied),
        "outputs": [f"{a or '.'} -> {b or '.'}{f': {axes}' if axes else ''}" for a, b, axes in outcome.outputs],
        "notes": outcome.notes,
    }
    _update(document, values)
    said = _DONE if all(outcome.left.values()) else _UNSAID
    told = [f"# {counts(links, outcome.left)}", said if all(link.taken for link in links) else _OPEN, *_ALWAYS]
    return "\n".join(told) + "\n\n" + dumps(document).strip("\n")


def counts(links: Iterable[Link], left: dict[str, str]) -> str:
    """`107 units with 320 variables: 105 proven, 2 ambiguous; 53 torch tensors are left.`"""
    units, variables, by = 0, 0, dict.fromkeys(STATUSES, 0)
    accepted = 0
    for link in links:
        count = len(list(link.units()))
        units += count
        variables += len(list(variables_of(link)))
        by[link.status] += count
        accepted += count if link.accepted and link.status != "proven" else 0
    said = ", ".join(f"{count} {status}" for status, count in by.items() if count) or "none"
    taken = f" ({accepted} of them accepted)" if accepted else ""
    rest = f"; {counted(len(left), 'torch tensor')} left over" if left else ""
    return f"{counted(units, 'unit')} with {counted(variables, 'variable')}: {said}{taken}{rest}"


def _row(plan: Plan, link: Link) -> dict[str, Any]:
    needs = link.torch or any(fill.tensors for fill in link.fills)
    return {
        "torch": link.torch if needs else None,
        "keras": link.keras,
        "fills": [fill_text(fill) for fill in link.fills],
        "kind": link.kind or None,
        "status": link.status,
        "evidence": link.evidence or None,
        "accepted": True if link.accepted else None,
        "seal": _seal(plan, link) if link.status == "proven" else None,
    }


def _kept(links: list[Link], blocks: list[_Block]) -> tuple[list[_Block | None], list[list[str]]]:
    """For each link the block that was its row, and comments of rows that are no more; last, those without a home."""
    by_paths = {(link.torch, link.keras): at for at, link in enumerate(links)}
    by_unit = {ours: at for at, link in enumerate(links) for _, ours in link.units()}
    rows: list[_Block | None] = [None] * len(links)
    comments: list[list[str]] = [[] for _ in range(len(links) + 1)]
    for block in blocks:
        table = _table(block)
        at = by_paths.get((table.get("torch", ""), table["keras"]))
        if at is not None and rows[at] is None:
            rows[at] = block
            continue
        homes = (by_unit[unit] for unit in expand(table["keras"]) if unit in by_unit)
        comments[next(homes, len(links))] += _comments(block)
    return rows, comments


def _table(block: _Block) -> Any:
    from tomlkit import parse

    return parse(block.text)[block.what][0]


def _comments(block: _Block) -> list[str]:
    """Every comment that stands in it, a line each."""
    from tomlkit.items import Comment, Whitespace

    lines = [line.strip() for line in block.text.split("\n") if line.lstrip().startswith("#")]
    table = _table(block)
    items = [item for _, item in table.value.body if not isinstance(item, (Comment, Whitespace))]
    behind = [item.trivia.comment for item in (table, *items)]
    return [*lines, *filter(None, behind)]


def _block_text(what: str, values: dict[str, Any], before: _Block | None, comments: list[str]) -> str:
    from tomlkit import dumps, parse

    document = parse(before.text if before else f"[[{what}]]\n")
    _update(document[what][0], values)
    text = dumps(document).strip("\n")
    lost = [line for line in _comments(before) if line not in text] if before else []  # of a list that is another now
    return "\n".join([*comments, *lost, text])


def _update(table: Any, values: dict[str, Any]) -> None:
    """Have the table hold the values, where None and what is empty is left out; what is as it was is not touched."""
    from tomlkit import array, inline_table

    for key, value in values.items():
        if value is None or (value in ("", [], {}) and key not in ("keras", "reason", "torch")):
            table.pop(key, None)
            continue
        if key in table and table[key] == value:
            continue
        if isinstance(value, list):
            texts = array()
            texts.extend(value)
            table[key] = texts.multiline(len(texts.as_string()) > _WIDEST)
        elif isinstance(value, dict):
            inside = inline_table()
            inside.update(value)
            table[key] = inside
        else:
            table[key] = value
