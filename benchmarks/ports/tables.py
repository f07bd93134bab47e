"""What was found, as markdown tables."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from benchmarks.ports.faults import FAULTS, judge, text
from benchmarks.ports.pairs import PORTS
from benchmarks.ports.scoring import Score

Found = list[dict[str, Any]]
_SHOWN = 160  # characters of an error


def table(heading: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    """Markdown."""
    lines = [heading, tuple("---" for _ in heading), *rows]
    return "\n".join(f"| {' | '.join(str(word).replace('|', '/') for word in line)} |" for line in lines)


def _small(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _kind(name: str) -> str:
    return PORTS[name].kind + (", held out" if PORTS[name].heldout else "")


def truth(found: Found) -> str:
    """Errors of the libraries' own converters."""
    rows = [
        (
            one["name"],
            _kind(one["name"]),
            _small(one.get("error")),
            _small(one.get("torch")),
            one.get("outputs", ""),
            f"{one['filled']} of {one['variables']}" if "filled" in one else "",
            one.get("renamed", ""),
            one.get("failed", PORTS[one["name"]].reason)[:_SHOWN],
        )
        for one in found
    ]
    heading = (
        "pair",
        "kind",
        "error",
        "torch's own",
        "outputs",
        "variables filled",
        "names only in the file",
        "remark",
    )
    return table(heading, rows)


# --- match ------------------------------------------------------------------------------------------------------------


def match(found: Found) -> str:
    """Each pair, then sums of pairs that are alike, then what is not right."""
    scores = {one["name"]: _score(one) for one in found if "counts" in one}
    rows = []
    for one in found:
        name = one["name"]
        if name not in scores:
            rows.append((name, _kind(name), "", "", "", "", "", "", "", one.get("failed", "")[:_SHOWN]))
            continue
        mine = scores[name]
        memory = one["memory"]["parent"] + one["memory"]["child"]
        rows.append(
            (
                name,
                _kind(name),
                f"{mine.written} of {mine.variables}",
                mine.wrong + len(mine.beyond),
                *(_split(mine.counts[status]) for status in ("proposed", "ambiguous")),
                sum(mine.counts["unmatched"].values()) + mine.counts["proven"]["refused"],
                f"{one['match_seconds']:.0f}",
                f"{memory / 2**20:.0f} ({one['models'] / 2**20:.0f})",
                "; ".join(one["notes"])[:_SHOWN],
            )
        )
    heading = (
        "pair",
        "kind",
        "proven right",
        "written wrong",
        "proposed right/wrong",
        "ambiguous right/wrong",
        "unmatched",
        "seconds",
        "MiB at the peak (of both models)",
        "notes",
    )
    sums = [
        _sum(kind, [scores.get(one["name"]) for one in found if _kind(one["name"]) == kind]) for kind in _kinds(found)
    ]
    parts = [table(heading, rows), table(_SUMS, sums)]
    for one in found:
        if one.get("examples") or one.get("beyond"):
            lines = [
                f"  {line}" for line in [*one["examples"][:6], *(f"beyond the truth: {p}" for p in one["beyond"][:6])]
            ]
            parts.append("\n".join([f"{one['name']}:", *lines]))
    return "\n\n".join(parts)


def _score(one: dict[str, Any]) -> Score:
    return Score(one["counts"], one["beyond"], one["examples"])


def _split(counts: dict[str, int]) -> str:
    return f"{counts['right']}/{counts['wrong']}" if any(counts.values()) else ""


def _kinds(found: Found) -> list[str]:
    return [*dict.fromkeys(_kind(one["name"]) for one in found)]


_SUMS = ("kind", "pairs", "fully mapped", "variables", "proven right", "written wrong", "proposed right")


def _sum(kind: str, scores: list[Score | None]) -> tuple[Any, ...]:
    """A pair that failed counts as not mapped; its variables are not known."""
    known = [one for one in scores if one is not None]
    variables = sum(one.variables for one in known)

    def share(part: int) -> str:
        return f"{part} ({part / variables:.1%})" if variables else "0"

    return (
        kind,
        len(scores),
        sum(one.whole and not one.wrong and not one.beyond for one in known),
        variables,
        share(sum(one.written for one in known)),
        sum(one.wrong + len(one.beyond) for one in known),
        share(sum(one.counts["proposed"]["right"] for one in known)),
    )


# --- audit ------------------------------------------------------------------------------------------------------------


def planted(found: Found) -> str:
    """How far each fault moves the outputs."""
    rows = [
        (FAULTS[one["name"]].port, FAULTS[one["name"]].kind, FAULTS[one["name"]].places[0], _moved(one))
        for one in found
    ]
    return table(("port", "fault", "layer", "outputs moved by"), rows)


def _moved(one: dict[str, Any]) -> str:
    if "failed" in one:
        return str(one["failed"])[:_SHOWN]
    seen = one["moved"] > 1e-5
    return _small(one["moved"]) + ("" if seen == FAULTS[one["name"]].seen else " **not as it says**")


def audit(found: Found) -> str:
    """Faults with what was named, the sums, and what is found in right ports."""
    results = {one["name"]: one for one in found}
    findings = {name: [SimpleNamespace(**f) for f in one.get("findings", [])] for name, one in results.items()}
    rows, places, causes = [], 0, 0
    faults = [name for name in results if name in FAULTS]
    for name in faults:
        fault = FAULTS[name]
        said = judge(fault, findings[name], map(text, findings.get(fault.port, [])))
        places, causes = places + said.place, causes + said.cause
        remark = results[name].get("failed") or ("" if said.cause else "; ".join(map(text, findings[name])))
        rows.append(
            (
                fault.port,
                fault.kind,
                fault.places[0],
                _yes(said.place),
                _yes(said.cause),
                len(said.others),
                remark[:_SHOWN],
            )
        )
    parts = [table(("port", "fault", "layer", "layer named", "cause named", "other findings", "remark"), rows)]
    parts.append(f"{len(faults)} faults: {places} named at their layer, {causes} with their cause")
    right = [
        (name, results[name].get("failed") or "; ".join(map(text, findings[name]))) for name in results if name in PORTS
    ]
    parts.append(table(("right port", "findings"), right))
    return "\n\n".join(parts)


def _yes(value: bool) -> str:
    return "yes" if value else "**no**"
