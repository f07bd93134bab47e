"""What was found, as markdown tables."""

from typing import Any

Found = list[dict[str, Any]]


def table(heading: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Markdown."""
    lines = [heading, tuple("---" for _ in heading), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _small(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def truth(found: Found) -> str:
    """Errors of the libraries' own converters."""
    from benchmarks.ports.pairs import PORTS

    rows = []
    for one in found:
        port = PORTS[one["name"]]
        kind = port.kind + (", held out" if port.heldout else "")
        if "failed" in one:
            rows.append((one["name"], kind, "", "", "", "", one["failed"][:120]))
            continue
        rows.append(
            (
                one["name"],
                kind,
                _small(one["error"]),
                _small(one["torch"]),
                one["outputs"],
                f"{one['filled']} of {one['variables']}",
                port.reason,
            )
        )
    return table(("pair", "kind", "error", "torch's own", "outputs compared", "variables filled", "remark"), rows)
