"""The page for people at `/`: what is trained, and how it goes. One file without scripts, and all in it is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""Of a browser that shows it: it loads nothing, and is shown in no other page."""
ARRAYS_MAX = 200
"""Rows of the table."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="refresh" content="5">
<title>DeepDist master</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse }}
td, th {{ text-align: left; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid #8884 }}
code {{ font-size: .95em }}
@media (prefers-color-scheme: dark) {{ body {{ background: #111; color: #ddd }} }}
</style>
</head>
<body>
<h1>DeepDist master</h1>
<p>{state}</p>
<table>{figures}</table>
<h2>{model}</h2>
<table><tr><th>array<th>dtype<th>shape</tr>{arrays}</table>
<p>Any process may take part: it gets <code>/model</code>, and posts to <code>/update</code>, both as safetensors.
<code>/status</code> tells these figures as JSON.</p>
</body>
</html>
"""


def page(status: Mapping[str, Any], model: str) -> bytes:
    """The page for what `/status` tells of a model of this class."""
    state = "A training runs." if status["training"] else "No training runs at the moment."
    staleness = status["staleness"]
    figures = [
        ("version", status["version"]),
        ("updates that were posted", status["applied"]),
        ("of these counted before", status["known"]),
        ("requests refused", sum(status["refused"].values())),
        ("staleness, median", staleness.get("median", "not told")),
    ]
    arrays = status["model"]["arrays"]
    rows: list[tuple[Any, ...]] = [(name, *arrays[name]) for name in list(arrays)[:ARRAYS_MAX]]
    if len(arrays) > ARRAYS_MAX:
        rows.append((f"and {len(arrays) - ARRAYS_MAX} more", "", ""))
    return PAGE.format(
        state=escape(state),
        figures=_rows(figures),
        model=escape(f"{model}, {status['model']['bytes']:,} bytes"),
        arrays=_rows(rows),
    ).encode()


def _rows(rows: Iterable[Iterable[Any]]) -> str:
    return "".join("<tr>" + "".join(f"<td>{escape(str(cell))}" for cell in row) + "</tr>" for row in rows)
