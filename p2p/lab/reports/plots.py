"""Line plots as SVG text: measured lines solid, theory's dashed in the same color beside them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from gossip.errors import UsageError

LINES_MAX = 8
"""In one plot: more cannot be told apart."""
POINTS_MAX = 2000
"""Of one line: more are not seen, and each takes bytes."""
WIDTH_INCHES = 7.6
AXES_INCHES = (0.85, 0.65, 6.55, 3.5)
"""Left, below, width and height. Laid out by hand: to have it computed draws everything twice."""
LEGEND_LINE_INCHES = 0.19
SETTINGS = {
    "svg.fonttype": "none",  # text stays text: small, and found by a search in the page
    "svg.hashsalt": "deepdist",  # the same plot has the same ids
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Line:
    """One line of a plot."""

    label: str
    """Empty for none in the legend."""
    x: Sequence[float]
    y: Sequence[float]
    color: int = 0
    """Number in the color cycle; -1 for black."""
    is_theory: bool = False
    """Dashed."""
    is_points: bool = False
    """Points that are not joined."""
    error: Sequence[float] = ()
    """Of each y, drawn as a band, or as a bar at points; empty for none."""


@dataclass(frozen=True)
class Plot:
    """One plot."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    caption: str = ""
    is_log: bool = True
    """The y axis."""
    is_log_x: bool = False


def check_matplotlib() -> None:
    """Raise `UsageError` if plots cannot be drawn, before anybody has waited for a result."""
    try:
        import matplotlib as _  # noqa: F401
    except ImportError:
        raise UsageError(
            "the report needs matplotlib: pip install 'deepdist-p2p[lab]'; or leave the report out with --no-html"
        ) from None


def svg(plot: Plot) -> str:
    """`plot` as an <svg> element."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    with mpl.rc_context(SETTINGS):  # type: ignore[arg-type]  # its keys are a Literal of all settings
        labeled = sum(bool(line.label) for line in plot.lines)
        left, below, width, height = AXES_INCHES
        legend = LEGEND_LINE_INCHES * labeled + 0.15
        total = legend + below + height + 0.4
        figure = Figure(figsize=(WIDTH_INCHES, total))
        axes = figure.add_axes((left / WIDTH_INCHES, (legend + below) / total, width / WIDTH_INCHES, height / total))
        for line in plot.lines:
            every = max(1, len(line.x) // POINTS_MAX)
            x, y = list(line.x[::every]), list(line.y[::every])
            if plot.is_log:
                y = [value if value > 0 else float("nan") for value in y]
            color = "black" if line.color < 0 else f"C{line.color % 10}"
            if line.error:
                error = list(line.error[::every])
                if line.is_points or len(x) < 12:
                    axes.errorbar(x, y, error, color=color, linestyle="none", capsize=3, linewidth=1.2)
                else:
                    low = [at - each if at > each or not plot.is_log else at for at, each in zip(y, error, strict=True)]
                    high = [at + each for at, each in zip(y, error, strict=True)]
                    axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
            axes.plot(
                x,
                y,
                color=color,
                linestyle="none" if line.is_points else "--" if line.is_theory else "-",
                linewidth=1.2 if line.is_theory else 1.8,
                alpha=0.9 if line.is_theory else 0.75,
                marker="o" if line.is_points or len(x) < 12 else None,
                markersize=5,
                label=line.label or "_",
            )
        if plot.is_log and any(value > 0 for line in plot.lines for value in line.y):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(
                StrMethodFormatter("{x:g}")
            )  # powers as text, not as formulas: ten times faster
            axes.yaxis.set_minor_formatter(NullFormatter())
        if plot.is_log_x:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(title=plot.title, xlabel=plot.x_label, ylabel=plot.y_label)
        if labeled:
            place = (left / WIDTH_INCHES, legend / total)
            figure.legend(loc="upper left", bbox_to_anchor=place, fontsize="small", frameon=False, borderpad=0.0)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    return text[text.index("<svg") :]  # without the XML declaration, which has no place within HTML
