"""A plan: what a match found, as a TOML file that a person reads and edits. One row a unit, braces folded.

Comments, accepted rows and reasons stay when the plan of the same networks is written again.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from converter.errors import ConversionError, printable
from converter.files.atomic import NewFile
from converter.matching.fill_text import fill_text
from converter.matching.folding import counts, folded, variables_of
from converter.matching.plan_reading import FORMAT, Block, Held, Plan, Reader, seal
from converter.matching.rows import Link, rows_of
from converter.naming import fold, fold_pairs
from converter.pairs.mapping import expand

ENDINGS = (".toml",)
_WIDEST = 110  # characters of a list that stays in one line

_OPEN = "# To do: the rows that come first are open. Mend what is wrong in them; `accepted = true` takes what is right."
_UNSAID = "# To do: say why the tensors that are left fill nothing: write a `reason`. The rows are proven or accepted."
_DONE = "# To do: nothing, all rows are proven or accepted."
_ALWAYS = (
    "# `convert --plan THIS_FILE CHECKPOINT` converts by it once each row is proven or accepted.",
    "# A row that is edited is proven no longer: accept it, or match again; comments and accepted rows stay.",
)
_COUNTS = re.compile(r"# \d+ units? with \d+ variables?: ")


def read(path: Path) -> Plan:
    """The plan in the file.

    Raises:
        ConversionError: it cannot be read, is none or of a later format, or an edit is wrong; the message has the line.
    """
    return Reader(path, again=False).read()


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
    reader = Reader(path, again=True)
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
            reader = Reader(new.path, again=True)
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


def _text(plan: Plan, reader: Reader | None) -> str:
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
        "saved": [f"{theirs} -> {ours}" for theirs, ours in fold_pairs(outcome.saved.items())],
        "notes": outcome.notes,
    }
    _update(document, values)
    said = _DONE if all(outcome.left.values()) else _UNSAID
    told = [f"# {counts(links, outcome.left)}", said if all(link.taken for link in links) else _OPEN, *_ALWAYS]
    return "\n".join(told) + "\n\n" + dumps(document).strip("\n")


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
        "seal": seal(plan, link) if link.status == "proven" else None,
    }


def _kept(links: list[Link], blocks: list[Block]) -> tuple[list[Block | None], list[list[str]]]:
    """For each link the block that was its row, and comments of rows that are no more; last, those without a home."""
    by_paths = {(link.torch, link.keras): at for at, link in enumerate(links)}
    by_unit = {ours: at for at, link in enumerate(links) for _, ours in link.units()}
    rows: list[Block | None] = [None] * len(links)
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


def _table(block: Block) -> Any:
    from tomlkit import parse

    return parse(block.text)[block.what][0]


def _comments(block: Block) -> list[str]:
    """Every comment that stands in it, a line each."""
    from tomlkit.items import Comment, Whitespace

    lines = [line.strip() for line in block.text.split("\n") if line.lstrip().startswith("#")]
    table = _table(block)
    items = [item for _, item in table.value.body if not isinstance(item, (Comment, Whitespace))]
    behind = [item.trivia.comment for item in (table, *items)]
    return [*lines, *filter(None, behind)]


def _block_text(what: str, values: dict[str, Any], before: Block | None, comments: list[str]) -> str:
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
