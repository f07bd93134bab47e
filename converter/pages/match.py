"""The page of a match: both networks as aligned lists of units, each with what is known of it."""

from collections import Counter

from converter.errors import printable
from converter.matching.fill_text import fill_text
from converter.matching.folding import variables_of
from converter.matching.match import Match
from converter.matching.rows import STATUSES, Link
from converter.naming import fold
from converter.pages.page import Section, counts, facts, page, table

_COLUMNS = ("torch", "Keras", "status", "what fills what", "evidence")


def match_page(match: Match) -> str:
    """The match as an HTML file."""
    units = Counter(_word(link) for link in match.links for _ in link.units())
    doubtful = sum(count for word, count in units.items() if word not in ("proven", "accepted"))
    unsaid = [name for name, reason in match.left.items() if not reason]
    if doubtful:
        every = sum(units.values())
        verdict = f"{doubtful} of {every} units are neither proven nor accepted, so nothing is converted by this match."
    elif unsaid:
        verdict = f"Every unit is proven or accepted; {len(unsaid)} torch tensors fill nothing, and no reason is known."
    else:
        verdict = "Every unit is proven or accepted."
    shown = [(str(units[word]), f"units {word}") for word in (*STATUSES, "accepted") if units[word]]
    variables = sum(len(list(variables_of(link))) for link in match.links)
    rows = [(_word(link), cells) for link in match.links for cells in _cells(link)]
    sections = [
        Section("Counts", counts([*shown, (str(variables), "variables"), (str(len(match.left)), "tensors left")])),
        Section("What was found", facts(match.lines())),
        Section("Units", table("unit", _COLUMNS, rows)),
    ]
    if match.left:
        left = [("", (printable(name, 1000), reason or "no reason is known")) for name, reason in _left(match)]
        sections.append(Section("Torch tensors that fill nothing", table("left", ("tensor", "why"), left)))
    title = f"{match.torch.text if match.torch else 'a checkpoint'} in {match.keras.text}"
    return page(printable(title, 300), verdict, None if doubtful or unsaid else True, sections)


def _word(link: Link) -> str:
    return "accepted" if link.accepted and link.status != "proven" else link.status


def _cells(link: Link) -> list[tuple[str, ...]]:
    fills = "; ".join(map(fill_text, link.fills))
    return [
        (printable(theirs, 1000) or "-", printable(ours, 1000) or "-", _word(link), fills, link.evidence)
        for theirs, ours in link.units()
    ]


def _left(match: Match) -> list[tuple[str, str]]:
    """(names folded, reason)."""
    reasons: dict[str, list[str]] = {}
    for name, reason in match.left.items():
        reasons.setdefault(reason, []).append(name)
    return [(name, reason) for reason, names in reasons.items() for name in fold(names)]
