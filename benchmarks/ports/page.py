"""What the audit says of public ports, as a page: docs/ports.md."""

from typing import Any

from benchmarks.ports.tables import table
from converter.naming import counted, fold, listed

Found = list[dict[str, Any]]

_HEAD = """\
# Audits of public ports

Keras ports of torch networks that others published, as `weightbridge verify` sees them ([match.md](match.md)): every
layer on torch's own input, torch's weights in both. Each port was filled by its own library's converter where it has
one, and saved by Keras; the weights were drawn at random, since what is asked here is whether the two networks are the
same one. Most of these ports are right to the last digits that float32 has. Where one differs, that may be meant: a
port may follow another original, or weights that were trained so. The audit says what differs, not whose it is.

The page was made by

    python -m benchmarks.ports page > docs/ports.md

with {versions}; `--only NAME` leaves other ports out, and was given for those below.

`error` is the largest difference of an output over its largest value, `torch's own` that of torch in float32 against
torch in float64. `layers` are those with parameters, and how many results were compared one by one; the others are
judged by what they feed. `differences` are layers whose results are off on torch's own input; `configuration` are
layers that are configured otherwise, which no result shows.
"""


def page(found: Found) -> str:
    """The whole page."""
    versions = {name: number for one in found for name, number in one.get("versions", {}).items()}
    rows: list[tuple[Any, ...]] = []
    told = []
    for one in found:
        if "failed" in one:
            rows.append((one["name"], "", "", "", "", "", one["failed"][:160], ""))
            continue
        shown = [finding for finding in one["findings"] if finding["what"] != "configuration"]
        hidden = [finding for finding in one["findings"] if finding["what"] == "configuration"]
        errors = [output["error"] for output in one["outputs"]]
        own = [output["own"] for output in one["outputs"] if output["own"] is not None]
        rows.append(
            (
                one["name"],
                one["torch"],
                one["keras"],
                f"{one['judged']} of {one['units']}",
                f"{max(errors):.0e}" if errors else "",
                f"{max(own):.0e}" if own else "",
                len(shown) or "",
                len(hidden) or "",
            )
        )
        if one["findings"]:
            told.append(
                "\n".join([f"**{one['name']}** ({one['torch']}, {one['keras']}):", "", *_told(one["findings"])])
            )
    heading = ("port", "torch", "Keras", "layers", "error", "torch's own", "differences", "configuration")
    head = _HEAD.format(versions=", ".join(f"{name} {number}" for name, number in sorted(versions.items())))
    return "\n\n".join([head.rstrip(), table(heading, rows), "## What differs", *told]) + "\n"


def _told(findings: Found) -> list[str]:
    """A line for each cause."""
    groups: dict[tuple[str, str], Found] = {}
    for one in findings:
        groups.setdefault((one["what"], one["cause"]), []).append(one)
    lines = []
    for (what, cause), some in groups.items():
        names = listed([f"`{name or 'the model'}`" for name in fold(one["layer"] for one in some)], 4)
        lines.append(f"- {cause or 'no cause is known'}: {counted(len(some), 'layer')} ({names}), {_seen(what, some)}")
    return lines


def _seen(what: str, some: Found) -> str:
    if what == "configuration":
        return "in no result"
    sizes = [one["size"] for one in some]
    return "results of another size" if None in sizes else f"results off by up to {max(sizes):.0e}"
