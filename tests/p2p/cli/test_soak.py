"""What somebody sees who runs many bad days."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

import p2p.cli.soak
from gossip.sim.bad_day import Options
from gossip.sim.proving_ground import Outcome, run
from gossip.sim.states import STATES
from p2p.cli.main import main
from p2p.cli.soak import branches, reached, run_counted, table


def outcome(seed: int, **counts: int) -> Outcome:
    return Outcome(Options.draw(seed), counts=Counter({name.replace("_", " "): n for name, n in counts.items()}))


def rows(outcomes: list[Outcome]) -> dict[str, str]:
    """The table as it is printed."""
    console = Console(width=100)
    with console.capture() as captured:
        console.print(table(outcomes))
    cells = [line.strip("│ ").split("│") for line in captured.get().splitlines() if line.startswith("│")]
    return {name.strip(): number.strip() for name, number in cells}


def test_counts_are_summed_and_of_peaks_the_most_is_told() -> None:
    told = rows([outcome(0, published=3, units=900, peak_segments=7), outcome(1, published=4, units=100, absent=2)])
    assert told["violations"] == "0"
    assert told["published"] == "7"
    assert told["doubled or absent, of the units"] == "0.200%"
    assert told["peak segments (most)"] == "7"


class Interrupted:
    """A pool of one, and Ctrl-C after three seeds."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.stopped = False

    def __enter__(self) -> Interrupted:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.stopped

    def map(self, function: Any, seeds: Any, chunksize: int) -> Iterator[Outcome]:
        for seed in range(3):
            yield outcome(seed, published=10)
        raise KeyboardInterrupt

    def shutdown(self, wait: bool, cancel_futures: bool) -> None:
        self.stopped = cancel_futures


def test_ctrl_c_ends_it_and_tells_what_was_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p2p.cli.soak, "ProcessPoolExecutor", Interrupted)
    result = CliRunner().invoke(main, ["soak", "--seeds", "50"])
    assert result.exit_code == 0
    assert "stopped after 3 of 50 seeds" in result.output
    assert "30" in result.output


def test_events_are_counted_by_the_states_in_which_they_found_a_peer() -> None:
    one, other = outcome(0), outcome(1)
    one.reached["Pull", "asking"] = 2
    other.reached["Pull", "asking"] = 3
    console = Console(width=240)
    with console.capture() as captured:
        console.print(reached([one, other]))
    (line,) = [line for line in captured.get().splitlines() if "Pull" in line]
    assert [cell.strip() for cell in line.strip("│ ").split("│")].count("5") == 1
    assert [cell.strip() for cell in line.strip("│ ").split("│")].count("-") == len(STATES) - 1


@pytest.mark.slow
def test_branches_are_counted_on_a_day_that_is_as_it_was() -> None:
    day = run_counted(3)
    assert day.digest == run(3).digest
    told = branches([day])
    assert any("origin.py:" in line and "LaneOrigin.on_pull: pin is not None" in line for line in told)
    assert told[-9].startswith("peer.py: ")
    assert told[-9].endswith(" branches were taken")
