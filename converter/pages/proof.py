"""The page of a conversion or a verification: what was proven, and where the two sides differ first."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from converter.errors import ProofError, printable
from converter.files.atomic import NewFile
from converter.pages.page import ENDINGS, Section, counts, facts, join, page, save, table, tag
from converter.pages.plot import Mark, plot
from converter.report import Comparison, Report, size

_MOST = 200  # names of a list that is shown whole
_KINDS = {
    "layer": "layer, on torch's own input",
    "between": "input of a layer, from the layers before it",
    "output": "output of the whole",
    "training": "gradient, statistic or weight in training",
}
_COLUMNS = ("name", "what", "error", "allowed", "of allowed", "torch's own", "verdict")


def save_html(report: Report, path: str | os.PathLike, overwrite: bool = False) -> Path:
    """Write the report of `convert` or `verify` as an HTML file that stands alone.

    Raises:
        ConversionError: the file exists and is not to be replaced, has another ending, or cannot be written.
    """
    new = NewFile(Path(path).expanduser(), overwrite, ENDINGS)
    save(proof_page(report), new)
    return new.path


@contextlib.contextmanager
def shown(path: Path | None, overwrite: bool) -> Iterator[Callable[[Report], None]]:
    """Give a function that writes a report's page; that of a proof which fails in the block is written too.

    An output that cannot be is refused at once. Without a path nothing is written.
    """
    if path is None:
        yield lambda _report: None
        return
    new = NewFile(path.expanduser(), overwrite, ENDINGS)
    try:
        yield lambda report: save(proof_page(report), new)
    except ProofError as error:
        if not isinstance(error.report, Report):
            raise
        save(proof_page(error.report), new)
        raise ProofError(f"{error}; {printable(str(path))} shows it", error.report) from error


def proof_page(report: Report) -> str:
    """The report as an HTML file."""
    numerical = report.numerical
    ran = report.lossless.ran or numerical.ran
    if not report:
        nothing = "; nothing was written" if report.action == "written" else ""
        verdict = f"The proof failed{nothing}: {report.failure()}"
    elif not ran:
        verdict = "Nothing was proven, as asked."
    elif not numerical.ran:
        verdict = "The tensors arrived bit for bit. What the networks compute was not compared, as asked."
    elif not numerical.full:
        verdict = "The proof passed, and is not full: some variables are unproven."
    else:
        verdict = "The proof passed: every layer, every output and every variable."
    source = report.source if isinstance(report.source, str) else report.source.name
    return page(f"{report.model} from {source}", verdict, bool(report) if ran else None, sections(report))


def sections(report: Report) -> Iterator[Section]:
    """What the page of `report` consists of; other pages may show these too."""
    yield Section("Counts", _counts(report))
    if not report:
        yield Section("The first difference", _difference(report))
    rows = [*_comparisons(report)]
    if rows:
        yield Section("Error over allowance", plot([*_marks(rows)], _KINDS))
    yield Section("What was done", facts(report.lines()[: -1 if not report else None]))
    yield Section("Provenance", facts(_provenance(report)))
    if rows:
        cells = [("" if one else "bad", _cells(kind, one)) for kind, one in rows]
        yield Section("The proof", table("proof", _COLUMNS, cells))
    if report.plan is not None:
        yield _plan(report.plan)


def _counts(report: Report) -> Any:
    numerical = report.numerical
    rows = [(f"{report.tensors}", "tensors"), (f"{report.variables}", "variables"), (size(report.nbytes), "of weights")]
    for what, some in (
        ("layers agree", numerical.layers),
        ("inputs agree", numerical.between),
        ("outputs agree", numerical.outputs),
        ("agree in training", numerical.trained),
    ):
        if some:
            rows.append((f"{sum(map(bool, some))} of {len(some)}", what))
    if numerical.ran and numerical.comparisons:
        rows.append((f"{numerical.worst:.2g}", "times what is allowed, at worst"))
        rows.append((f"{len(numerical.unproven)}", "variables unproven"))
    return counts(rows)


def _difference(report: Report) -> Any:
    pieces = [tag("p", report.failure())]
    first = report.numerical.first_difference
    if first is not None:
        rows = [("in", printable(first.name, 1000))]
        if first.note:
            rows.append(("why", first.note))
        else:
            rows += [
                ("error", f"{first.error:.3e}, {first.ratio:.3g} times what is allowed"),
                ("allowed", f"{first.allowed:.3e}"),
                ("torch's own error", f"{first.torch_error:.3e}"),
                ("largest value", f"{first.scale:.3e}"),
            ]
        rows += [("suspect", first.suspects)] if first.suspects else []
        pieces.append(facts(rows))
    names = [*report.lossless.differing, *report.lossless.unequal]
    if names:
        more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
        every = ", ".join(printable(one, 200) for one in names[:_MOST])
        pieces.append(tag("p", f"Tensors that differ: {every}{more}"))
    return join(pieces)


def _comparisons(report: Report) -> Iterator[tuple[str, Comparison]]:
    """(kind, comparison) in the order of the network: what reaches a layer, then the layer."""
    numerical = report.numerical
    between = {one.name: one for one in numerical.between}
    for one in numerical.layers:
        if one.name in between:
            yield "between", between.pop(one.name)
        yield "layer", one
    yield from (("between", one) for one in between.values())
    yield from (("output", one) for one in numerical.outputs)
    yield from (("training", one) for one in numerical.trained)


def _marks(rows: list[tuple[str, Comparison]]) -> Iterator[Mark]:
    places: dict[tuple[bool, str], int] = {}
    for number, (kind, one) in enumerate(rows):
        place = places.setdefault((kind in ("layer", "between"), one.name), len(places))
        ratio = float("inf") if one.note else one.ratio
        yield Mark(kind, place, ratio, bool(one), f"{one}, {_KINDS[kind]}", f"proof{number}")


def _cells(kind: str, one: Comparison) -> tuple[str, ...]:
    name, what = printable(one.name, 1000), _KINDS[kind].partition(",")[0]
    if one.note:
        return name, what, "", "", "", "", f"DIFFERS: {one.note}"
    numbers = (f"{one.error:.1e}", f"{one.allowed:.1e}", f"{one.ratio:.2g}", f"{one.torch_error:.1e}")
    return name, what, *numbers, "agrees" if one else "DIFFERS"


def _plan(plan: Any) -> Section:
    rows = [
        (
            "",
            (
                printable(step["tensor"], 1000),
                "×".join(map(str, step["shape"])),
                ", ".join(one["path"] for one in step["variables"]),
                ", ".join("×".join(map(str, one["shape"])) for one in step["variables"]),
                step["variables"][0]["axes"] if step["variables"] else "",
            ),
        )
        for step in plan.to_dict()["steps"]
    ]
    count = len(rows)
    for path, text in plan.constants.items():
        rows.append(("", ("", "", path, "×".join(map(str, plan.variables[path])), f"= {text}")))
    headings = ("tensor", "its shape", "variable", "variable's shape", "axes")
    return Section(f"The plan: {count} tensors", table("plan", headings, rows), folded=True)


def _provenance(report: Report) -> Iterator[tuple[str, str]]:
    yield "model", report.model
    yield "configuration", json.dumps(report.config)
    yield "source", str(report.source)
    yield "sha256", report.source_sha256
    yield "dialect", report.dialect
    yield "dtype", report.dtype
    if report or report.action != "written":
        yield "weights", str(report.output)
    for name in ("weightbridge", "torch", "tensorflow", "keras", "numpy"):
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
