"""A match: its rows, its report, its file, and the pair that is made of it."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any

from converter.errors import ConversionError, UsageError, aligned, printable
from converter.matching.builders import Builder, Place
from converter.matching.folding import folded, is_open, tensors_of, tied_in, variables_of
from converter.matching.plan_file import new_plan, read, write
from converter.matching.plan_reading import Held, Plan
from converter.matching.rows import STATUSES, Link, Outcome, Row, rows_of
from converter.naming import counted, fold, listed, nearest
from converter.pairs.mapping import expand, join
from converter.pairs.pair import Pair
from converter.progress import Progress, Silent

_MOST = 12  # rows of one status that a report lists


def match(
    torch_build: Place | None,
    keras_build: Place,
    inputs: Place | None = None,
    checkpoint: str | os.PathLike | None = None,
    options: Mapping[str, Any] | None = None,
    accept: Iterable[str] = (),
    progress: Progress | None = None,
) -> "Match":
    """Find which torch tensor fills which Keras variable, by what both networks compute of the same inputs.

    Args:
        torch_build: builds the torch network: a function, or "module:function?argument=value". None: there is none, and
            rows are proposed from the names, shapes and order in the checkpoint; none is proven.
        keras_build: builds the Keras model.
        inputs: gives (inputs for torch, inputs for Keras): each a tuple or dict of arrays or tensors, one array, or a
            list; or torch's alone, which are laid out for Keras. It is called before TensorFlow is imported.
        checkpoint: the weights, as `convert` takes them; without, the networks are matched with random ones.
        options: arguments for the builders: each goes to those that take it.
        accept: rows to accept although they are not proven, as `Match.accept` takes them.
        progress: told of each stage.

    Raises:
        UsageError: something is named that there is not.
        ConversionError: a builder fails, a side refuses the inputs, or the checkpoint is another network's.
    """
    if torch_build is None and checkpoint is None:
        raise UsageError("without a torch network there is nothing to match but a checkpoint: give one, or --torch")
    if torch_build is None and inputs is not None:
        raise UsageError("inputs are for both networks: give --torch too, or leave --inputs out")
    torch = None if torch_build is None else Builder(torch_build, "--torch")
    keras, giving = Builder(keras_build, "--keras"), None if inputs is None else Builder(inputs, "--inputs")
    giving = giving and giving.called()  # before anything imports TensorFlow
    if options:
        torch, keras = _given(torch, keras, options)
    held = None if checkpoint is None else Held.of(checkpoint)
    from converter.matching.engine import match_networks
    from converter.matching.proposing import propose

    progress = progress or Silent()
    if torch is None:
        assert checkpoint is not None
        outcome = propose(keras, checkpoint, progress)
    else:
        outcome = match_networks(torch, keras, giving, checkpoint, progress)
    found = Match(outcome, torch, keras, giving, held)
    for row in accept:
        found.accept(row)
    return found


def _given(torch: Builder | None, keras: Builder, options: Mapping[str, Any]) -> tuple[Builder | None, Builder]:
    """The builders with the arguments among the options that each takes."""
    builders = [torch, keras]
    for name, value in options.items():
        taking = [at for at, one in enumerate(builders) if one is not None and one.takes(name)]
        if not taking:
            raise UsageError(f"option {printable(name, 60)}: neither builder takes an argument of that name")
        for at in taking:
            one = builders[at]
            assert one is not None
            builders[at] = one.given({name: value})
    assert builders[1] is not None
    return builders[0], builders[1]


class Match:
    """What fills what in two networks, and how it is known.

    Attributes:
        links: the rows of the plan, folded.
        left: name of a torch tensor that fills nothing -> why that is right, or "".
        outputs, saved, notes: as of an `Outcome`.
        torch, keras, inputs: how the networks and their inputs are built; None where there is none.
        checkpoint: of which checkpoint it is, if any was given.
        tied: torch tensors that may fill several variables.
    """

    def __init__(
        self,
        outcome: Outcome,
        torch: Builder | None,
        keras: Builder,
        inputs: Builder | None = None,
        checkpoint: Held | None = None,
        tied: list[str] | None = None,
    ):
        self.links = folded(outcome.links)
        self.tied = tied_in(outcome.links) if tied is None else tied
        self.left, self.outputs, self.notes = dict(outcome.left), list(outcome.outputs), list(outcome.notes)
        self.saved, self._named = dict(outcome.saved), dict(outcome.named)
        self.torch, self.keras, self.inputs, self.checkpoint = torch, keras, inputs, checkpoint

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Match":
        """The match that a plan holds.

        Raises:
            ConversionError: it cannot be read, is no plan, is of a later format, or an edit is wrong; the message has
                the line.
        """
        path = Path(path).expanduser()
        plan = read(path)
        builders = [
            _named(text, name, path) if text else None
            for name, text in (("torch", plan.torch), ("keras", plan.keras), ("inputs", plan.inputs))
        ]
        keras = builders[1]
        if keras is None:
            raise ConversionError(f"{printable(str(path), 160)}: `keras` names no builder")
        return cls(plan.outcome, builders[0], keras, builders[2], plan.checkpoint, plan.tied)

    def save(self, path: str | os.PathLike, overwrite: bool = False) -> None:
        """Write the plan. Of a plan of the same networks that stands there, comments, accepted rows and reasons stay;
        what was accepted there is accepted here afterwards.

        Raises:
            ConversionError: something else stands there and is not to be replaced, or it cannot be written; or nothing
                of a mere proposal was accepted.
        """
        path = Path(path).expanduser()
        plan = Plan(self._torch, self.keras.text, self.inputs.text if self.inputs else "", self.checkpoint)
        plan.outcome, plan.tied = Outcome(self.links, self.left, self.outputs, self.notes, self.saved), self.tied
        new = new_plan(path, plan, overwrite)
        if self.torch is None and not any(link.accepted for link in self.links):
            raise ConversionError(
                f"{printable(str(path), 160)} was not written: names, shapes and order prove nothing; accept rows that "
                "you know to be right, as --accept ROW, or give --torch and --inputs"
            )
        written = write(new, plan)
        self.links, self.left, self.tied = folded(written.outcome.links), written.outcome.left, written.tied

    @property
    def _torch(self) -> str:
        return self.torch.text if self.torch else ""

    @property
    def rows(self) -> list[Row]:
        """A row for each variable of the Keras model; tensors have the names of the checkpoint, if one was given."""
        return rows_of(self.links, self._named)

    @property
    def name(self) -> str:
        """The name of the pair: the same for the same two builders."""
        words = re.split(r"\W", self.keras.text.partition("?")[0])
        return f"{words[-1] or 'model'}_{sha256(f'{self._torch} {self.keras.text}'.encode()).hexdigest()[:6]}"

    @property
    def pair(self) -> Pair:
        """The pair: `convert`, `verify` and `restore` take it.

        What is open (a row that is neither proven nor accepted, a tensor that is left without a reason) refuses there.

        Raises:
            ConversionError: the inputs cannot be made.
        """
        from converter.matching.arguments import Arguments, arguments_of
        from converter.matching.pairing import pair_of
        from converter.planning.variables import fresh_names

        torch = self.torch or _failing("no torch network", "the plan has no torch network to compare with")
        arguments = Arguments()
        if self.inputs is not None:
            given = self.inputs.called()  # before TensorFlow is imported, which torch must not follow
            with fresh_names():
                arguments = arguments_of(given, self.keras())
        return pair_of(self.name, torch, self.keras, arguments, self.links, self.left, self.outputs, self.saved)

    def accept(self, row: str) -> None:
        """Take a row although it is not proven.

        `row` is a torch path, a Keras path, a variable, or a row as the plan or the report prints it; `*` and `?` stand
        for others as in file names.

        Raises:
            UsageError: there is none; the nearest is named. Or it is open what fills its variables.
        """
        known: dict[str, set[str]] = {}
        for link in self.links:
            for theirs, ours in link.units():
                variables = [join(ours, name) for fill in link.fills for name in fill.variables]
                for name in (theirs, ours, f"{theirs} -> {ours}", *variables):
                    if name:
                        known.setdefault(name, set()).update(variables)
        chosen = _chosen(row, known)
        links = []
        for link in self.links:
            for theirs, ours in link.units():
                one = replace(link, torch=theirs, keras=ours)
                if not link.taken and not chosen.isdisjoint(variables_of(one)):
                    if is_open(link):
                        if any(letter in row for letter in "*?["):
                            links.append(one)
                            continue
                        raise UsageError(
                            f"--accept {printable(row, 80)}: it is open what fills {printable(_shown(one), 80)}; write "
                            "its fills into the plan, and `accepted = true`"
                        )
                    one = replace(one, accepted=True)
                links.append(one)
        self._check_taken(row, links, chosen)
        self.links = folded(links)

    def _check_taken(self, row: str, links: list[Link], chosen: set[str]) -> None:
        """That no tensor of what is accepted now is another row's."""
        taken: dict[str, Link] = {}
        for link in sorted(links, key=lambda one: not chosen.isdisjoint(variables_of(one))):
            for tensor in tensors_of(link) if link.taken else ():
                if tensor in taken and tensor not in self.tied:
                    raise UsageError(
                        f"--accept {printable(row, 80)}: the tensor {printable(tensor, 80)} is taken by the row "
                        f"{printable(_shown(taken[tensor]), 100)} already"
                    )
                taken[tensor] = link

    def to_dict(self) -> dict[str, Any]:
        """The match as JSON can hold it."""
        return {
            "torch": self._torch or None,
            "keras": self.keras.text,
            "inputs": self.inputs.text if self.inputs else None,
            "checkpoint": asdict(self.checkpoint) if self.checkpoint else None,
            "units": self._counts(lambda link: len(list(link.units()))),
            "variables": self._counts(lambda link: len(list(variables_of(link)))),
            "rows": [asdict(row) for row in self.rows],
            "links": [{**asdict(link), "taken": link.taken} for link in self.links],
            "left": self.left,
            "outputs": [list(one) for one in self.outputs],
            "notes": self.notes,
        }

    def _counts(self, count: Any) -> dict[str, int]:
        return {status: sum(count(link) for link in self.links if link.status == status) for status in STATUSES}

    def lines(self) -> list[tuple[str, str]]:
        """(heading, text) of each line for a person: counts, then what is open, then what to do next."""
        rows = [("torch", printable(self._torch or "none, so nothing can be proven", 160)),
                ("keras", printable(self.keras.text, 160))]  # fmt: skip
        for what, some in (("units", self._counts(lambda link: len(list(link.units())))),
                           ("variables", self._counts(lambda link: len(list(variables_of(link)))))):  # fmt: skip
            said = ", ".join(f"{count} {status}" for status, count in some.items() if count)
            rows.append((what, f"{sum(some.values())}: {said}" if said else "0"))
        accepted = sum(len(list(link.units())) for link in self.links if link.accepted and link.status != "proven")
        if accepted:
            rows.append(("accepted", f"{counted(accepted, 'unit')} of those that are not proven"))
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            shown = listed([printable(name, 80) for name in fold(names)], 4)
            rows.append(("left", f"{counted(len(names), 'tensor')}: {shown}: {reason or 'no reason is known'}"))
        rows += [("note", note) for note in self.notes]
        for status in ("ambiguous", "unmatched", "proposed"):
            classes = _classes(link for link in self.links if link.status == status and not link.accepted)
            for evidence, alike in classes[:_MOST]:
                members = listed([printable(_shown(link), 160) for link in alike], _MOST, "; ")
                rows.append((status, members + (f": {printable(evidence, 300)}" if evidence else "")))
            if len(classes) > _MOST:
                rows.append((status, f"and {len(classes) - _MOST} more, which the plan lists"))
        return [*rows, *self._next()]

    def _next(self) -> list[tuple[str, str]]:
        doubtful = [link for link in self.links if not link.taken]
        unsaid = not all(self.left.values())
        if not doubtful and not unsaid:
            return [("next", "all rows are proven or accepted: convert --plan PLAN CHECKPOINT -o OUTPUT.weights.h5")]
        steps = []
        if any(is_open(link) for link in doubtful):
            steps.append("write into the plan what fills the variables of open rows (?), and `accepted = true`")
        if any(not is_open(link) for link in doubtful):
            steps.append("accept rows that you know to be right: --accept ROW, or `accepted = true` in the plan")
        if unsaid:
            steps.append("write into the plan, as `reason`, why tensors that are left fill nothing")
        return [("next", step) for step in steps]

    def __str__(self) -> str:
        return "\n".join(aligned(self.lines()))


def _classes(links: Iterable[Link]) -> list[tuple[str, list[Link]]]:
    """(evidence, links) of those that are known alike."""
    found: dict[str, list[Link]] = {}
    for link in links:
        found.setdefault(link.evidence, []).append(link)
    return list(found.items())


def _shown(link: Link) -> str:
    return f"{link.torch or '.'} -> {link.keras or '.'}" if any(fill.tensors for fill in link.fills) else link.keras


def _chosen(row: str, known: Mapping[str, set[str]]) -> set[str]:
    """The variables of the rows that are so named."""
    try:
        halves = [expand(half.strip()) for half in row.split(" -> ")]
    except ValueError as error:
        raise UsageError(f"--accept {printable(row, 80)}: {error}") from None
    names = halves[0]
    if len(halves) > 1:
        ours = halves[-1]
        theirs = names if names != [""] else [""] * len(ours)
        names = [f"{one} -> {other}" for one, other in zip(theirs, ours, strict=False)]
    chosen: set[str] = set()
    for name in names:
        found = [one for one in known if one == name or fnmatchcase(one, name)]
        if not found:
            near = nearest(name, known)
            meant = f"; did you mean {printable(near, 80)}?" if near else "; the plan and the report list them"
            raise UsageError(f"--accept {printable(row, 80)}: no row, unit or variable is named so{meant}")
        chosen.update(*(known[one] for one in found))
    return chosen


def _named(text: str, name: str, path: Path) -> Builder:
    """The builder of that text; that of a program's own function is one that says what to do when it is called."""
    try:
        return Builder(text, f"--{name}")
    except UsageError:
        return _failing(
            text, f"`{name}` in {path.name} is a function of the program that wrote it; write MODULE:FUNCTION there"
        )


def _failing(text: str, why: str) -> Builder:
    def build() -> Any:
        raise ConversionError(why)

    build.__qualname__ = text
    return Builder(build, "the plan's")
