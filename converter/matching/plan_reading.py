"""A plan is read, and wrong edits are refused with the line."""

import json
import os
import re
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

from converter import kinds
from converter.checkpoints.checkpoint import Checkpoint
from converter.errors import ConversionError, one_line, printable
from converter.kinds.activations import one_each
from converter.matching.fill_text import fill_text, read_fill
from converter.matching.folding import is_open, settled, tensors_of, variables_of
from converter.matching.rows import STATUSES, Fill, Link, Outcome
from converter.naming import counted, nearest
from converter.pairs.mapping import expand

FORMAT = 1

_HEAD = "format torch keras inputs checkpoint variables tied outputs saved notes row left".split()
_ROW = "torch keras fills kind status evidence accepted seal".split()
_LEFT = ["torch", "reason"]
_SORTS = {str: "a text", int: "a whole number", bool: "true or false", list: "a list of texts", dict: "a table"}
_HELD = "file tensors digest".split()
_HEADER = re.compile(r"[ \t]*\[\[[ \t]*(\w+)[ \t]*\]\]")


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
            return cls(os.path.basename(source.shown()), len(lines), digest_of("".join(sorted(lines))))


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


def digest_of(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:12]


def seal(plan: Plan, link: Link) -> str:
    """By which a proven row is known as it was written."""
    digest = plan.checkpoint.digest if plan.checkpoint else ""
    said = [plan.torch, plan.keras, digest, link.torch, link.keras, [*map(fill_text, link.fills)]]
    return digest_of(json.dumps([*said, link.kind, link.evidence]))[:8]


@dataclass
class Block:
    """A row as it stands in the file: with the comments above it, from the line `above`; its header is at `line`."""

    what: str
    text: str
    above: int
    line: int


def _blocks(text: str) -> tuple[str, list[Block]]:
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
        Block(what, "".join(lines[start:end]), start + 1, at + 1)
        for (at, what), start, end in zip(headers, starts, ends, strict=True)
    ]
    return "".join(lines[: starts[0]] if starts else lines), found


class Reader:
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
        for text in found.get("saved", []):
            plan.outcome.saved.update(self._saved(text))
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
            *((name, list) for name in ("tied", "outputs", "saved", "notes", "row", "left")),
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

    def _end(self, block: Block) -> int:
        return block.above + block.text.count("\n")

    def _link(self, plan: Plan, row: dict[str, Any], block: Block) -> Link:
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
        if status == "proven" and row.get("seal") != seal(plan, link):
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

    def _left(self, plan: Plan, table: dict[str, Any], block: Block, taken: set[str]) -> None:
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

    def _saved(self, text: str) -> list[tuple[str, str]]:
        theirs, _, ours = (part.strip() for part in text.partition("->"))
        try:
            names = expand(theirs), expand(ours)
        except ValueError as error:
            self.fail(self.at("saved"), one_line(str(error)))
        if not (theirs and ours) or len(names[0]) != len(names[1]):
            self.fail(self.at("saved"), f"{printable(text, 100)!r} is not `names of torch's -> their names in a file`")
        return list(zip(*names, strict=True))

    def _check_all(self, plan: Plan, links: list[tuple[Link, Block]], found: dict[str, Any]) -> None:
        """That no variable is filled twice or by nothing, and no tensor taken twice."""
        seen: dict[str, int] = {}
        taken: dict[str, int] = {}
        for link, block in links:
            for variable in variables_of(link):
                if variable in seen:
                    other = f"the row of line {seen[variable]}" if seen[variable] != block.line else "the same row"
                    self.fail(block.line, f"the variable {printable(variable)} is filled by {other} too")
                seen[variable] = block.line
            for tensor in tensors_of(link) if settled(link) else ():
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
