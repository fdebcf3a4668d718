"""The benchmark programs run and keep what does not depend on the machine's speed; their timings are not asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.slow
@pytest.mark.sockets
def test_four_agents_exchange_40_mb_updates_exactly_and_in_bounded_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run("benchmarks.exchange", "--json", str(tmp_path / "figures"))
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures").read_text())
    with capsys.disabled():
        print(f"\npeak memory of an agent with a model of 40 MB: {figures['peak_bytes'] / 1e6:.0f} MB")
    assert figures["model_bytes"] == 40_000_000
    assert figures["peak_bytes"] < 3 * 40e6 + 60e6
    assert {r["name"] for r in figures["rounds"]} == {"all", "idle", "slow"}
    assert all(r["exact"] and r["distance"] == 0 for r in figures["rounds"])
    # the slow rounds come last in each repetition: what was held for the slow reader is not in memory
    first, last = figures["rounds"][2], figures["rounds"][-1]
    assert max(last["peak_bytes"]) < max(first["peak_bytes"]) + 40e6


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.long
def test_an_exchange_with_keys_and_without_is_exact_by_files_and_by_sockets(tmp_path: Path) -> None:
    done = run("benchmarks.keys", "--quick", "--json", str(tmp_path / "figures"))
    assert done.returncode == 0, done.stdout + done.stderr
    sides = json.loads((tmp_path / "figures").read_text())
    assert [(side["links"], side["keys"]) for side in sides] == [(a, b) for a in (True, False) for b in (True, False)]
    assert all(len(side["large_s"]) == 2 and len(side["latency_s"]) == 60 for side in sides)


@pytest.mark.slow
@pytest.mark.sockets
def test_a_large_model_is_in_no_process_more_often_than_it_has_to_be() -> None:
    done = run("benchmarks.memory", "--quick", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.sockets
def test_agents_that_are_killed_and_frozen_lose_nothing_of_the_living_and_count_nothing_twice(tmp_path: Path) -> None:
    done = run("benchmarks.chaos", "--quick", "--json", str(tmp_path / "figures"))
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures").read_text())
    kill, freeze = figures["kill"], figures["freeze"]
    assert kill["accepted"] == kill["merged"] + kill["lost"] > 0
    assert set(kill["units"]) == {kill["merged"] + kill["unanswered"]}
    assert (kill["doubled"], kill["lost_of_living"]) == (0, 0)
    assert kill["equal_when_drained"]
    assert [(part["equal"], part["exact"], part["died"]) for part in (kill, freeze)] == [(True, True, 0)] * 2
    # so short a time tells nothing of growth, but hundreds of updates of 1 MB were published
    assert max(kill["peak_bytes"] + freeze["peak_bytes"]) < 120e6
    assert [window["frozen"] for window in freeze["windows"]] == [False, True]


@pytest.mark.slow
@pytest.mark.sockets
def test_a_training_whose_own_agent_is_killed_counts_every_row(tmp_path: Path) -> None:
    choice = ("--only", "lists", "--kind", "driver", "--signal", "kill", "--quick", "--check")
    done = run("benchmarks.chaos", "--processes", *choice, "--json", str(tmp_path / "figures"))
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = json.loads((tmp_path / "figures").read_text())
    assert (line["once"], line["lost"], line["twice"], line["reported"]) == (304, 0, 0, 0)


def test_a_simulated_training_of_many_peers_is_exact(tmp_path: Path) -> None:
    done = run("benchmarks.simulated", "--quick", "--json", str(tmp_path / "figures"))
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures").read_text())
    assert [r["peers"] for r in figures["rounds"]] == [4, 16]
    assert all(r["exact"] for r in figures["rounds"])


@pytest.mark.slow
def test_a_long_training_costs_a_peer_little(tmp_path: Path) -> None:
    done = run("benchmarks.units", "--quick", "--json", str(tmp_path / "figures"))
    assert done.returncode == 0, done.stdout + done.stderr
    chunks, continuous = json.loads((tmp_path / "figures").read_text())
    assert (chunks["kind"], continuous["kind"]) == ("chunks", "continuous")
    assert chunks["units"] == continuous["units"] == 200_000
    assert chunks["peer_bytes"] < 1e6
    assert continuous["peer_bytes"] < 5e6
    assert max(chunks["header_bytes"], continuous["header_bytes"]) < 4096
    assert max(chunks["dropped_bytes"], continuous["dropped_bytes"]) < 50_000


def test_word2vec_quality_says_what_to_fetch(tmp_path: Path) -> None:
    done = run("benchmarks.word2vec_quality", "--quick", "--data", str(tmp_path))
    assert done.returncode == 2
    assert "wikiVisual" in done.stderr
    assert str(tmp_path) in done.stderr


@pytest.mark.slow
def test_the_simulators_of_mixing_do_mix_and_their_cost_is_drawn(tmp_path: Path) -> None:
    done = run("benchmarks.consensus", "--quick", "--json", str(tmp_path / "figures"), "--svg", str(tmp_path / "svg"))
    assert done.returncode == 0, done.stdout + done.stderr
    figures = {
        (f["form"], f["topology"], f["peers"]): f for f in json.loads((tmp_path / "figures").read_text())["figures"]
    }
    assert {form for form, _, _ in figures} == {"vectorized", "messages", "events"}
    for (form, topology, _), figure in figures.items():
        # with messages that take their time, rounds overlap
        exact = topology == "one-peer-exponential" and form != "events"
        assert figure["distance"] < (1e-12 if exact else 0.5)
    # all at once and in lock-step is one and the same
    assert figures["vectorized", "exponential", 64]["distance"] == pytest.approx(
        figures["messages", "exponential", 64]["distance"], rel=1e-9
    )
    assert (tmp_path / "svg").read_text().startswith("<svg")
