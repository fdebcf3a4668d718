"""The report: one HTML file with all in it; no JavaScript, and nothing is fetched."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from p2p.lab.reports.plots import Plot, svg

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 2rem auto; max-width: 70rem;
       padding: 0 1.5rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #888; } td:first-child, th:first-child { text-align: left; }
figure { margin: 1.5rem 0; } figcaption { color: #555; max-width: 50rem; }
svg { max-width: 100%; height: auto; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: 13px; }
"""


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Page:
    """All that the report says."""

    title: str
    about: str
    """One paragraph: what was asked."""
    table: Table
    notes: Sequence[str]
    plots: Sequence[Plot]
    settings: Mapping[str, object]
    repeat: str
    """The command that gives the same result again."""


def render(page: Page) -> str:
    """`page` as HTML."""
    text = html.escape
    headings = "".join(f"<th>{text(each)}</th>" for each in page.table.headings)
    rows = "\n".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in page.table.rows)
    notes = "".join(f"<p>{text(note)}</p>" for note in page.notes)
    figures = "\n".join(
        f"<figure>{svg(plot)}<figcaption>{text(plot.caption)}</figcaption></figure>" for plot in page.plots
    )
    settings = "\n".join(f"{name} = {_value(value)}" for name, value in page.settings.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{text(page.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{text(page.title)}</h1>
<p>{text(page.about)}</p>
<h2>Rows</h2>
<div class="wide"><table><thead><tr>{headings}</tr></thead><tbody>
{rows}
</tbody></table></div>
{notes}
<h2>Plots</h2>
{figures}
<h2>Settings</h2>
<pre>{text(settings)}</pre>
<p>The same again: <code>{text(page.repeat)}</code></p>
</body>
</html>
"""


def _value(value: object) -> str:
    return ", ".join(str(each) for each in value) if isinstance(value, list | tuple) else str(value)
