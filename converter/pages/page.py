"""A page of sections: one HTML file, without scripts and without anything from the network; readable on a phone."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from converter.errors import one_line
from converter.files.atomic import NewFile

ENDINGS = (".html", ".htm")
_SHORT = 16  # characters of a cell that stays in one line


class Html(str):
    """Text that is markup already."""


def tag(name: str, *inside: str, **attributes: str) -> Html:
    """An element. What is inside and is no `Html` is escaped, and so are attributes (`class_` is `class`, "" none)."""
    given = ((key.strip("_").replace("_", "-"), value) for key, value in attributes.items() if value)
    words = "".join(f' {key}="{_escaped(value)}"' for key, value in given)
    return Html(f"<{name}{words}>{join(inside)}</{name}>")


def join(pieces: Iterable[str]) -> Html:
    """Pieces one after another, those that are no markup escaped."""
    return Html("".join(piece if isinstance(piece, Html) else _escaped(piece) for piece in pieces))


def _escaped(text: str) -> str:
    # First what does not simply print: a reversed or broken text from a file would act on a page as on a terminal.
    return html.escape(one_line(text))


@dataclass(frozen=True)
class Section:
    """A heading and what is below it; a folded one shows its heading until it is opened."""

    heading: str
    body: Html
    folded: bool = False

    def markup(self) -> Html:
        if self.folded:
            return tag("details", tag("summary", self.heading), self.body)
        return tag("section", tag("h2", self.heading), self.body)


def facts(rows: Iterable[tuple[str, str]]) -> Html:
    """(word, what it is), one below the other."""
    return tag("dl", *(join((tag("dt", word), tag("dd", text))) for word, text in rows))


def counts(rows: Iterable[tuple[str, str]]) -> Html:
    """(number, of what) as one sees them first."""
    return tag("ul", *(tag("li", tag("b", number), " ", what) for number, what in rows), class_="counts")


def table(name: str, headings: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> Html:
    """Rows of (class, cells); on a phone each row is a block, with the heading before each cell.

    The first row has the id `name` + "0": links of a plot lead there.
    """
    head = tag("thead", tag("tr", *(tag("th", one) for one in headings)))
    body = []
    for number, (kind, cells) in enumerate(rows):
        row = [
            tag("td", cell, data_label=heading, class_="short" if len(cell) <= _SHORT else "")
            for heading, cell in zip(headings, cells, strict=True)
        ]
        body.append(tag("tr", *row, id=f"{name}{number}", class_=kind))
    return tag("table", head, tag("tbody", *body))


def page(title: str, verdict: str, good: bool | None, sections: Iterable[Section]) -> str:
    """The whole file. `good` colours the verdict: passed, failed, or (None) neither."""
    kind = {True: "good", False: "bad", None: "open"}[good]
    head = (
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"),
        Html('<meta name="color-scheme" content="light dark">'),
        tag("title", title),
        tag("style", Html(_STYLE)),
    )
    header = tag("header", tag("h1", title), tag("p", verdict, class_=f"verdict {kind}"))
    body = tag("body", header, tag("main", *(one.markup() for one in sections)))
    return f"<!doctype html>\n{tag('html', tag('head', *head), body, lang='en')}\n"


def save(text: str, new: NewFile) -> None:
    """Write a page; it appears whole or not at all.

    Raises:
        ConversionError: it cannot be written.
    """
    with new.written() as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


# Colours of Okabe and Ito, which differ for every eye; shapes say the same.
_STYLE = """
:root { --ink: #1b1f24; --dim: #57606a; --paper: #fff; --line: #d0d7de; --raised: #f6f8fa; --good: #00664b;
  --bad: #a33c00; --blue: #0072b2; --amber: #b97a00; --green: #009e73; --red: #d55e00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --dim: #9da7b3; --paper: #0d1117; --line: #30363d;
  --raised: #161b22; --good: #3fd6a8; --bad: #ff9a5c; --blue: #56b4e9; --amber: #e69f00; --green: #2fd0a2;
  --red: #ff7a2f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2, summary { font-size: 1.15rem; font-weight: 600; line-height: 1.3; margin: 2rem 0 .5rem; }
summary { cursor: pointer; }
.verdict { margin: .5rem 0; padding: .6rem .9rem; border-left: .4rem solid; background: var(--raised); }
.verdict.good { color: var(--good); } .verdict.bad { color: var(--bad); } .verdict.open { color: var(--dim); }
.counts { display: flex; flex-wrap: wrap; gap: .5rem; list-style: none; margin: 1rem 0; padding: 0; }
.counts li { flex: 1 0 7rem; padding: .5rem .8rem; background: var(--raised); border-radius: .4rem; color: var(--dim);
  font-size: .85rem; }
.counts b { display: block; white-space: nowrap; font-size: 1.3rem; color: var(--ink); }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .2rem 1rem; margin: 0; }
dt { color: var(--dim); } dd { margin: 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: .25rem .6rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { color: var(--dim); font-weight: 600; overflow-wrap: normal; }
td { font-variant-numeric: tabular-nums; } td.short { white-space: nowrap; }
tr.bad td { color: var(--bad); font-weight: 600; }
tr.proven td:first-child { border-left: .4rem solid var(--green); }
tr.accepted td:first-child { border-left: .4rem double var(--green); }
tr.proposed td:first-child { border-left: .4rem dotted var(--blue); }
tr.ambiguous td:first-child { border-left: .4rem dashed var(--amber); }
tr.unmatched td:first-child { border-left: .4rem solid var(--red); }
tr:is(.proven, .accepted, .proposed, .ambiguous, .unmatched) td:first-child { padding-left: .6rem; }
tr:target td { background: var(--raised); }
figure { margin: 0; } figcaption { color: var(--dim); font-size: .9rem; }
.plot { display: grid; grid-template-columns: 3rem 1fr; }
.plot svg { width: 100%; overflow: visible; } .plot text { fill: var(--dim); font-size: 12px; }
.plot line { stroke: var(--line); } .plot line.one { stroke: var(--ink); stroke-dasharray: 6 4; }
.layer { fill: var(--blue); } .between { fill: none; stroke: var(--amber); stroke-width: 2; }
.output { fill: var(--green); } .training { fill: none; stroke: var(--dim); stroke-width: 2; }
.differs { fill: none; stroke: var(--red); stroke-width: 3; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .5rem 0; padding: 0; list-style: none; }
.legend svg { width: 14px; height: 14px; vertical-align: -2px; overflow: visible; }
@media (max-width: 45rem) {
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
  thead { display: none; } table, tbody, tr, td { display: block; }
  tr { padding: .4rem 0; border-bottom: 1px solid var(--line); }
  td { display: inline-block; padding: 0 1rem 0 0; border: 0; } td:empty { display: none; }
  td:first-child { display: block; font-weight: 600; }
  td:not(:first-child)::before { content: attr(data-label) ": "; color: var(--dim); font-weight: 400; }
}
"""
