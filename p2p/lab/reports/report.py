"""From a result on disk to a report for people: the table, and the page with its plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from p2p.lab import rates, results
from p2p.lab.grid import Case
from p2p.lab.recording import ages_of
from p2p.lab.reports import page
from p2p.lab.reports.page import Page, Table
from p2p.lab.reports.plots import LINES_MAX, Line, Plot
from p2p.lab.results import Result, Row
from p2p.lab.seeds import SE

Series = Mapping[int, tuple[list[int], list[float]]]

CASE = tuple(each.name for each in fields(Case))
ALWAYS = ("topology", "peers")
"""Settings of a case that a table shows even if all rows agree on them."""
BIAS_SEEN = 1e-9
"""A mean that is off by less is not worth a plot: it is rounding."""
ROUNDING_SEEN = 1e-12
"""Of a value: a standard error below is that of nothing drawn."""
BARS_MAX = 40
"""Rows whose bands fit into one plot."""


@dataclass(frozen=True)
class Column:
    """One measured column of a table."""

    name: str
    heading: str
    show: Callable[[Any], str]

    def cell(self, row: Row) -> str:
        """What `row` has of it, with its standard error where it is a mean."""
        value, error = row.get(self.name), row.get(f"{self.name}{SE}")
        shown = self.show(value)
        if value is None or error is None or error <= ROUNDING_SEEN * abs(value):
            return shown
        unit = " %" if shown.endswith(" %") else ""
        return f"{shown.removesuffix(unit)} ± {100 * error if unit else error:.2g}{unit}"


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.3g}"


def _loss(value: Any) -> str:
    return "–" if value is None else f"{value:.4f}"


def _rate(value: Any) -> str:
    return "–" if value is None else f"{value:.6f}"


def _percent(value: Any) -> str:
    return "–" if value is None else f"{100 * value:.2g} %"


def _signed_percent(value: Any) -> str:
    return "–" if value is None else f"{100 * value:+.2f} %"


def _count(value: Any) -> str:
    return "–" if value is None else str(value)


def _mark(value: Any) -> str:
    return "best" if value else ""


LEDGER = (
    Column("distance", "distance", _number),
    Column("mean_distance", "mean distance", _number),
    Column("bias", "bias", _number),
    Column("mass_error", "mass error", _number),
    Column("bytes_per_edge", "bytes per edge", _number),
)
COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "consensus": (
        Column("predicted_rate", "predicted rate", _rate),
        Column("measured_rate", "measured rate", _rate),
        Column("rate_error", "standard error", _number),
        Column("off", "off", _percent),
        Column("expected_rate", "rate of the expected square", _rate),
        Column("exact_after", "exact after", _count),
        *LEDGER,
        Column("predicted_distance", "predicted distance", _number),
        Column("optimum_distance", "distance to the optimum", _number),
        Column("optimum_bias", "of their mean", _number),
    ),
    "convergence": (
        Column("best", "best rate", _mark),
        Column("final_loss", "final loss", _loss),
        Column("mean_loss", "mean loss", _loss),
        Column("worst_loss", "worst peer's loss", _loss),
        Column("centralized_loss", "centralized SGD", _loss),
        Column("above_centralized", "above it", _signed_percent),
        Column("worst_above_centralized", "worst above it", _signed_percent),
        *LEDGER,
    ),
    "faults": (
        LEDGER[0],
        *LEDGER[2:4],
        Column("weight_error", "weight error", _number),
        Column("bias_in_errors", "bias / sampling error", _number),
        Column("bytes_per_edge", "bytes per edge", _number),
    ),
}
HIDDEN: Mapping[str, float | None] = {
    "mean_distance": None,
    "optimum_distance": None,
    "optimum_bias": None,
    "expected_rate": None,
    "best": None,
    "exact_after": None,
    "predicted_distance": None,
    "predicted_rate": None,
    "measured_rate": None,
    "off": None,
    "rate_error": 0.0,
}
"""Columns that are left out where every row has this value."""


def table(result: Result) -> Table:
    """One line per row: the settings in which rows differ, and what was measured."""
    settings = [name for name in CASE if name in ALWAYS or name in _varying(result.rows)]
    if result.experiment == "faults" and any("fault" in row for row in result.rows):
        settings = [name for name in settings if name not in ("loss", "churn", "crash")] + ["fault"]
    columns = [column for column in COLUMNS[result.experiment] if _is_shown(column.name, result)]
    headings = [*settings, *(column.heading for column in columns)]
    rows = [
        [*(_setting(row.get(name)) for name in settings), *(column.cell(row) for column in columns)]
        for row in result.rows
    ]
    return Table(headings, rows)


def _is_shown(name: str, result: Result) -> bool:
    if name == "rate_error" and result.settings.get("seeds", 1) > 1:  # that of one run; the rates have their own
        return False
    return name not in HIDDEN or any(row.get(name) not in (None, HIDDEN[name]) for row in result.rows)


def best(result: Result) -> Table | None:
    """The table of those rows only that have the best rate; None where no rates are tried."""
    rows = tuple(row for row in result.rows if row.get("best"))
    shown = tuple({name: value for name, value in row.items() if name != "best"} for row in rows)
    return table(replace(result, rows=shown)) if rows and len(rows) < len(result.rows) else None


def notes(result: Result) -> list[str]:
    """What the table leaves out: the settings that all rows share, and how to read it."""
    rows = result.rows
    if not rows:
        return ["No row is done."]
    shared = [
        f"{name} {_setting(rows[0].get(name))}"
        for name in CASE
        if name not in _varying(rows) + ALWAYS and rows[0].get(name) is not None
    ]
    seed, seeds = result.settings["seed"], result.settings.get("seeds", 1)
    of_seeds = f"seed {seed}" if seeds == 1 else f"seeds {seed} to {seed + seeds - 1}"
    found = [f"In all rows: {', '.join(shared)}; {result.settings['rounds']} rounds, {of_seeds}."]
    if seeds > 1:
        found.append(f"Values are means over {seeds} seeds, ± their standard error.")
    for row in rows:
        if row.get("refused"):
            found.append(f"refused: {_label(row, _varying(rows) or CASE[:3])}: {row['refused']}")
    blank = {row["algorithm"]: row["blank"] for row in rows if row.get("blank")}
    found += [f"Bias and mass error of {name} are left blank: {why}." for name, why in blank.items()]
    if any(row.get("mean_distance") is not None for row in rows):
        found.append("Means of distance, loss and distance to the optimum are over the last quarter of the rounds.")
    if any(row.get("best") is not None for row in rows):
        found.append("The best rate of each is that with the lowest mean loss.")
    if not result.is_complete:
        found.append(f"{len(rows)} of {result.total} rows are done.")
    if result.experiment == "consensus" and not result.settings.get("step"):
        found.append(
            "The measured rate is the contraction of the distance per round in the later half of the rounds above "
            "rounding, in all of them where links are drawn; 0 means that the mean was exact, to rounding, within the "
            "first period of the topology."
        )
        if any(row.get("expected_rate") is not None for row in rows):
            found.append(
                "Where links are drawn, measured and predicted rate are those of a typical run (the mean logarithm); "
                "the dashed line is the prediction; the expected square of the distance is a mean over all draws, made "
                "up by few that contract late, and falls more slowly."
            )
        late = [number for number, row in enumerate(rows) if row.get("settled") is False]
        if late:
            names = ", ".join(_label(rows[number], _varying(rows)) for number in late)
            found.append(f"Still slowing down when the rounds were over, for want of rounds: {names}.")
    if result.experiment == "convergence":
        found.append("Losses are of the mean of all replicas; the worst peer's is that of its own replica.")
    if result.experiment == "faults":
        found.append(
            "Mass counts what is in flight and what crashed peers took along; bias does not. The sampling error is "
            "that of the mean of as many numbers as there are peers."
        )
    return found


def write_page(path: Path, to: Path, measure: str = "loss") -> None:
    """Write the report of the result at `path`, as it is on disk, to `to`."""
    result = results.read(path)
    records = results.read_records(path)
    drawn = list(PLOTS[result.experiment](result, records, measure))
    text = page.render(
        Page(
            TITLES[result.experiment],
            ABOUT[result.experiment],
            table(result),
            [*notes(result), *results.complaint(result, path)],
            drawn,
            {
                **result.settings,
                "version": result.version,
                **{f"version of {k}": v for k, v in result.packages.items()},
            },
            f"deepdist lab repeat {path.name}",
        )
    )
    to.write_text(text, encoding="utf-8")


TITLES = {
    "consensus": "Consensus: how fast peers come to agree, and on what",
    "convergence": "Convergence: decentralized training beside training in one place",
    "faults": "Faults: what becomes of mass and mean when things fail",
}
ABOUT = {
    "consensus": "Every line is one setting, measured in the vectorized simulator; theory's line is dashed beside it "
    "in the same color.",
    "convergence": "A model trained by peers that each see their own rows only; the dashed line is SGD in one place, "
    "which takes the mean of the same steps.",
    "faults": "Each row has one kind of fault at most. An algorithm that loses mass still agrees, but not on the mean.",
}


# ---- plots -----------------------------------------------------------------------------------------------------


def _drawn(result: Result, records: Sequence[Mapping[str, str]]) -> list[Row | None]:
    """Its rows, None for those without records (refused, or lost), and where rates are tried for all but the best."""
    known = results.series(records, "distance")
    return [row if number in known and row.get("best") is not False else None for number, row in enumerate(result.rows)]


class _Recorded:
    """One column of the records, with its standard errors."""

    def __init__(self, records: Sequence[Mapping[str, str]], name: str) -> None:
        self.of = results.series(records, name)
        self._errors = results.series(records, f"{name}{SE}")

    def line(self, number: int, label: str, color: int) -> Line:
        """Of the row with this number."""
        rounds, values = self.of.get(number, ([], []))
        _, errors = self._errors.get(number, ([], []))
        return Line(label, rounds, values, color, error=errors if len(errors) == len(values) else ())


def _consensus_plots(result: Result, records: Sequence[Mapping[str, str]], _: str) -> Iterator[Plot]:
    distances = _Recorded(records, "distance")
    for peers, chunk in _chunks(_drawn(result, records)):
        varying = _varying([result.rows[number] for number in chunk])
        lines: list[Line] = []
        for color, number in enumerate(chunk):
            row, line = result.rows[number], distances.line(number, _label(result.rows[number], varying), color)
            lines.append(line)
            lines += _theory(row, line.y, color, len(line.x))
        yield Plot(
            f"Distance to the mean, {peers} peers",
            "round",
            "root mean square distance",
            tuple(lines),
            "Dashed: theory"
            + (" of a typical run" if any(result.rows[number].get("expected_rate") for number in chunk) else "")
            + ("." if _all_ideal(result.rows, chunk) else ", without faults where it has no other."),
        )
    rates_known = [row for row in result.rows if row.get("predicted_rate") and row.get("measured_rate")]
    if rates_known:
        points = [(row["predicted_rate"], row["measured_rate"]) for row in rates_known]
        low = min(min(point) for point in points)
        yield Plot(
            "Contraction per round",
            "predicted",
            "measured",
            (
                Line("theory", [low, 1.0], [low, 1.0], -1, is_theory=True),
                Line("rows", [x for x, _ in points], [y for _, y in points], 0, is_points=True),
            ),
            "Rows that reach the mean exactly are not shown: theory and measurement are both 0.",
            is_log=False,
        )
    yield from _ledger_plots(result, records)


def _convergence_plots(result: Result, records: Sequence[Mapping[str, str]], measure: str) -> Iterator[Plot]:
    losses, central = _Recorded(records, "loss"), _Recorded(records, "centralized_loss")
    distances, shown = _Recorded(records, "distance"), _drawn(result, records)
    yield from _rate_plots(result, measure)
    for peers, chunk in _chunks(shown):
        varying = _varying([result.rows[number] for number in chunk])
        lines = [losses.line(number, _label(result.rows[number], varying), at) for at, number in enumerate(chunk)]
        lines.append(replace(central.line(chunk[0], "centralized SGD", -1), is_theory=True))
        yield Plot(f"Loss, {peers} peers", "round", measure, tuple(lines), "Of the mean of all replicas.", is_log=False)
        yield Plot(
            f"How far replicas are apart, {peers} peers",
            "round",
            "root mean square distance",
            tuple(distances.line(number, _label(result.rows[number], varying), at) for at, number in enumerate(chunk)),
        )
    names = [name for name in (records[0] if records else {}) if name.startswith("distance[") and ", " in name]
    with_bands = [(number, row) for number, row in enumerate(shown) if row is not None]
    if names and 0 < len(with_bands) <= BARS_MAX:
        varying, lines = _varying([row for _, row in with_bands]), []
        bands = {name: results.series(records, name) for name in names}
        for number, row in with_bands[:LINES_MAX]:
            values = [bands[name][number][1][-1] for name in names if number in bands[name]]
            lines.append(Line(_label(row, varying), list(range(len(values))), values, number, is_points=True))
        listed = ", ".join(f"{at} {name.removeprefix('distance[').removesuffix(']')}" for at, name in enumerate(names))
        yield Plot(
            "Distance by how often a row is used, at the end",
            "band",
            "root mean square distance",
            tuple(lines),
            f"Bands: {listed}. A wider band has more numbers in it, and so a larger distance.",
        )
    yield from _ledger_plots(result, records)


def _rate_plots(result: Result, measure: str) -> Iterator[Plot]:
    """The loss by rate, where several are tried."""
    tried = [row for row in result.rows if row.get("best") is not None and row.get("mean_loss") is not None]
    varying = tuple(name for name in _varying(tried) if name != "rate")
    groups: dict[str, list[Row]] = {}
    for row in tried:
        groups.setdefault(_label(row, varying), []).append(row)
    for begin in range(0, len(groups), LINES_MAX):
        lines = []
        for color, (label, rows) in enumerate(list(groups.items())[begin : begin + LINES_MAX]):
            rows = sorted(rows, key=lambda row: float(row["rate"]))
            rates_tried, means = [row["rate"] for row in rows], [row["mean_loss"] for row in rows]
            lines.append(Line(label, rates_tried, means, color, error=_errors(rows, "mean_loss")))
        yield Plot("Loss by rate", "learning rate", measure, tuple(lines), "Mean of the last quarter.", is_log_x=True)


def _fault_plots(result: Result, records: Sequence[Mapping[str, str]], _: str) -> Iterator[Plot]:
    for kind in ("loss", "churn", "crash"):
        groups: dict[str, list[Row]] = {}
        varying = tuple(name for name in _varying(result.rows) if name not in ("loss", "churn", "crash"))
        for row in result.rows:
            if row.get("fault") == "none" or row.get("fault", "").startswith(kind):
                groups.setdefault(_label(row, varying), []).append(row)
        if not any(row[kind] for rows in groups.values() for row in rows):
            continue
        for name, label in (("bias", "bias of the mean"), ("mass_error", "mass error")):
            lines = tuple(
                Line(group, [row[kind] for row in rows], [row[name] for row in rows], color, error=_errors(rows, name))
                for color, (group, rows) in enumerate(groups.items())
                if all(row[name] is not None for row in rows)
            )
            if any(value > BIAS_SEEN for line in lines for value in line.y):
                yield Plot(f"{label.capitalize()} by {kind}", kind, label, lines, "At the end.", is_log=False)
    weights = results.series(records, "weight_error")
    left: list[Line] = []
    for number, row in enumerate(result.rows):
        rounds, errors = weights.get(number, ([], [0.0]))
        if row["loss"] and min(errors) < -BIAS_SEEN and len(left) < 2 * LINES_MAX:
            color = len(left) // 2
            left.append(Line(_label(row, _varying(result.rows)), rounds, [1.0 + error for error in errors], color))
            expected = _expected_weight(row, rounds)
            left.append(Line("theory" if color == 0 else "", rounds, expected, color, is_theory=True))
    if left:
        yield Plot(
            "Mass that is left",
            "round",
            "sum of push-sum weights / peers",
            tuple(left),
            "Dashed: (1 - q s)^t, loss q, s the share of its mass that a peer sends in a round; (1 - q/2)^t where it "
            "has one receiver.",
        )
    yield from _ledger_plots(result, records)


def _errors(rows: Sequence[Row], name: str) -> list[float]:
    errors = [row.get(f"{name}{SE}") for row in rows]
    return [float(error) for error in errors if error is not None] if None not in errors else []


def _expected_weight(row: Row, rounds: Sequence[int]) -> list[float]:
    sent = float(row["sent_share"])
    return [(1.0 - row["loss"] * sent) ** round for round in rounds]


def _ledger_plots(result: Result, records: Sequence[Mapping[str, str]]) -> Iterator[Plot]:
    """Bias and mass by round, where there is any, and the ages of packets."""
    for name, label in (("bias", "bias of the mean"), ("mass_error", "mass error")):
        found = _Recorded(records, name)
        rows = [row if _seen(found.of.get(number)) else None for number, row in enumerate(_drawn(result, records))]
        for peers, chunk in _chunks(rows):
            varying = _varying([result.rows[number] for number in chunk])
            lines = tuple(found.line(n, _label(result.rows[n], varying), color) for color, n in enumerate(chunk))
            yield Plot(f"{label.capitalize()}, {peers} peers", "round", label, lines, "Rows without any are left out.")
    ages = [(row, _ages(row.get("staleness_histogram", ""))) for row in result.rows]
    late = [(row, counts) for row, counts in ages if set(counts) - {0}][:LINES_MAX]
    if late:
        varying = _varying([row for row, _ in late])
        yield Plot(
            "Packets by age when they are used",
            "rounds after they were sent",
            "packets",
            tuple(
                Line(_label(row, varying), sorted(counts), [float(counts[age]) for age in sorted(counts)], color)
                for color, (row, counts) in enumerate(late)
            ),
            "Lost packets are counted in the rows of the result, not here.",
        )


PLOTS: Mapping[str, Callable[[Result, Sequence[Mapping[str, str]], str], Iterator[Plot]]] = {
    "consensus": _consensus_plots,
    "convergence": _convergence_plots,
    "faults": _fault_plots,
}


def _theory(row: Row, values: Sequence[float], color: int, rounds: int) -> Iterator[Line]:
    if row.get("predicted_distance") is not None:
        yield Line("", [0, rounds - 1], [row["predicted_distance"]] * 2, color, is_theory=True)
        return
    rate = row["predicted_rate"] if row.get("predicted_rate") is not None else row.get("theory_rate")
    if rate is None or not values or row.get("measured_rate") is None:
        return
    if rate == 0.0:
        end = row.get("exact_after") or 1
        yield Line("", [0, end], [values[0], rates.ROUNDING * values[0]], color, is_theory=True)
        return
    drawn = [round for round in range(rounds) if rate**round > rates.ROUNDING]
    yield Line("", drawn, [values[0] * rate**round for round in drawn], color, is_theory=True)


def _seen(series: tuple[list[int], list[float]] | None) -> bool:
    return series is not None and any(value > BIAS_SEEN and math.isfinite(value) for value in series[1])


def _ages(text: str) -> dict[int, int]:
    return {age: count for age, count in ages_of(text).items() if age >= 0}


def _chunks(rows: Sequence[Row | None]) -> Iterator[tuple[int, list[int]]]:
    """(peers, numbers of up to LINES_MAX rows with so many peers), None left out."""
    by_peers: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        if row is not None:
            by_peers.setdefault(row["peers"], []).append(number)
    for peers, numbers in by_peers.items():
        for begin in range(0, len(numbers), LINES_MAX):
            yield peers, numbers[begin : begin + LINES_MAX]


def _varying(rows: Sequence[Row]) -> tuple[str, ...]:
    """The settings of a case in which `rows` differ."""
    return tuple(name for name in CASE if len({row.get(name) for row in rows}) > 1)


def _label(row: Row, varying: Sequence[str]) -> str:
    """What tells this row from the others; what is 0 is not said."""
    named = [
        str(row[name]) if name in ("algorithm", "topology") else f"{name} {_setting(row[name])}"
        for name in varying
        if row[name] != 0
    ]
    return ", ".join(named) or ("nothing wrong" if varying else f"{row['algorithm']} on {row['topology']}")


def _setting(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _all_ideal(rows: Sequence[Row], chunk: Sequence[int]) -> bool:
    return all(rows[number].get("predicted_rate") is not None for number in chunk)
