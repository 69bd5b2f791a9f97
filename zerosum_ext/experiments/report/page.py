"""The page: plain values in, one HTML text out. Every text of the data is escaped; the page runs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

__all__ = ["Figure", "Listed", "Page", "Section", "UserLists", "render"]


@dataclass(frozen=True)
class Figure:
    """A figure: SVG text of :mod:`svg`, and the sentence below it."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Listed:
    """An item in a list: its name, its count of interactions, and whether the user held it out."""

    name: str
    count: int
    hit: bool


@dataclass(frozen=True)
class UserLists:
    """A user's lists: items known of the user and how many more there are, and what each method recommends."""

    user: str
    known: Sequence[str]
    lists: Mapping[str, Sequence[Listed]]
    more: int = 0


@dataclass(frozen=True)
class Section:
    """A table under a heading: a head, rows of cells, and a text above it."""

    title: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    text: str = ""
    folded: bool = False
    marked: frozenset[int] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Page:
    """All that the page shows.

    Attributes:
        title: the heading.
        verdict: the first lines.
        warnings, advice: below them.
        measures: the table of measures.
        figures: the figures.
        users: lists of some users.
        sections: further tables.
    """

    title: str
    verdict: Sequence[str]
    warnings: Sequence[str]
    advice: Sequence[str]
    measures: Section
    figures: Sequence[Figure]
    users: Sequence[UserLists]
    sections: Sequence[Section]


_STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;color:#1b1b1b;background:#fff;
margin:0 auto;padding:1rem;max-width:72rem;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25;margin:.2rem 0 1rem}
h2{font-size:1.2rem;margin:2rem 0 .5rem;border-bottom:2px solid #d0d0d0;padding-bottom:.2rem}
h3{font-size:1rem;margin:1rem 0 .3rem}
.verdict{border-left:5px solid #0072B2;background:#f1f7fb;padding:.6rem .9rem;margin:0 0 .6rem}
.verdict p{margin:.3rem 0}
.warning{border-left:5px solid #D55E00;background:#fdf3ec;padding:.5rem .9rem;margin:.4rem 0}
.advice{border-left:5px solid #007A5E;background:#edf7f4;padding:.5rem .9rem;margin:.4rem 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.92rem;overflow-wrap:normal}
caption{text-align:left;padding:.2rem 0}
th,td{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right;vertical-align:top}
td{white-space:nowrap}
th:first-child,td:first-child{text-align:left;min-width:8rem}
thead th{border-bottom:2px solid #888}
tr.marked{background:#f1f7fb;font-weight:600}
td.text{text-align:left;white-space:normal;min-width:13rem;max-width:34rem;overflow-wrap:break-word}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:1.2rem}
figure{margin:0;max-width:560px}
figure>svg{width:100%;height:auto;display:block}
figcaption{font-size:.9rem;color:#333}
svg text{font:11px system-ui,"DejaVu Sans",sans-serif;fill:#333}
svg text.label{font-size:12px;fill:#1b1b1b}
svg text.name{font-size:11px;fill:#1b1b1b}
svg text.ideal{fill:#555;font-style:italic}
svg .field{fill:none;stroke:#999}
svg .grid{stroke:#e4e4e4}
svg line.ideal{stroke:#555;stroke-dasharray:5 4;stroke-width:1.5}
svg .lead{stroke:#aaa;stroke-width:.8}
svg .front{fill:none;stroke:#777;stroke-width:1.2}
.legend{margin:.1rem 0 .3rem;font-size:.88rem}
.key{display:inline-block;margin-right:.9rem;white-space:nowrap}
.users{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr));gap:1rem 1.6rem}
.user{border-top:1px solid #ccc}
.lists{display:grid;grid-template-columns:1fr 1fr;gap:.8rem}
.lists ol{margin:.2rem 0;padding-left:1.5rem;font-size:.9rem}
.lists h4{margin:.2rem 0;font-size:.9rem}
.count{color:#555}
.hit{font-weight:600}
details{margin:.6rem 0}
summary{cursor:pointer;font-weight:600}
@media print{body{font-size:11pt;max-width:none;padding:0}figure,.user,tr{break-inside:avoid}h2{break-after:avoid}
.scroll{overflow:visible}table{font-size:8.5pt}th,td{padding:.1rem .3rem}
.figures{grid-template-columns:1fr 1fr}.users{grid-template-columns:1fr 1fr}
.verdict,.warning,.advice,tr.marked{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""

# Nothing is loaded and nothing runs, whatever a name in the data may hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render(page: Page) -> str:
    """Return the page as HTML."""
    body = [
        f"<h1>{escape(page.title)}</h1>",
        '<section class="verdict" aria-label="verdict">' + "".join(f"<p>{escape(t)}</p>" for t in page.verdict),
        "</section>",
        *(f'<p class="warning"><strong>Warning:</strong> {escape(text)}</p>' for text in page.warnings),
        *(f'<p class="advice"><strong>Try:</strong> {escape(text)}</p>' for text in page.advice),
        _section(page.measures),
    ]
    if page.figures:
        shown = "".join(f"<figure>{f.svg}<figcaption>{escape(f.caption)}</figcaption></figure>" for f in page.figures)
        body.append(f'<h2>Figures</h2><div class="figures">{shown}</div>')
    if page.users:
        body.append(_users(page.users))
    body += [_section(section) for section in page.sections]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(page.title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<p>{escape(section.text)}</p>"] if section.text else []
    if section.rows:
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in section.head)
        rows = []
        for place, row in enumerate(section.rows):
            mark = ' class="marked"' if place in section.marked else ""
            first, *rest = row
            cells = "".join(f"<td{_kind(cell)}>{escape(cell)}</td>" for cell in rest)
            rows.append(f'<tr{mark}><th scope="row">{escape(first)}</th>{cells}</tr>')
        thead = f"<thead><tr>{head}</tr></thead>" if head else ""
        parts.append(f'<div class="scroll" tabindex="0"><table>{thead}<tbody>{"".join(rows)}</tbody></table></div>')
    inner = "".join(parts)
    if section.folded:
        return f"<details><summary>{escape(section.title)}</summary>{inner}</details>"
    return f"<section><h2>{escape(section.title)}</h2>{inner}</section>"


def _kind(cell: str) -> str:
    return ' class="text"' if len(cell) > 28 else ""


def _users(users: Sequence[UserLists]) -> str:
    shown = []
    for one in users:
        lists = []
        for name, items in one.lists.items():
            entries = "".join(
                f'<li{" class=hit" if item.hit else ""}>{escape(item.name)} <span class="count">'
                f"({item.count:,}{', a hit' if item.hit else ''})</span></li>"
                for item in items
            )
            lists.append(f"<div><h4>{escape(name)}</h4><ol>{entries}</ol></div>")
        known = ", ".join(escape(name) for name in one.known) or "nothing"
        known += f" and {one.more:,} more" if one.more else ""
        shown.append(
            f'<div class="user"><h3>User {escape(one.user)}</h3><p>Known of this user: {known}</p>'
            f'<div class="lists">{"".join(lists)}</div></div>'
        )
    return (
        "<section><h2>Lists of some users</h2><p>In parentheses: how many users have the item. A hit is an item that "
        f'was held out of training and that the user has.</p><div class="users">{"".join(shown)}</div></section>'
    )
