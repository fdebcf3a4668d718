"""`deepdist lab`: what somebody sees who asks the simulators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from p2p.cli.main import main
from p2p.lab import results, sweep
from p2p.lab.consensus import Consensus
from p2p.lab.grid import Grid


@pytest.fixture(autouse=True)
def _folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def lab(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["lab", *arguments])


def rows(name: str) -> list[dict[str, Any]]:
    content = json.loads(Path(name).read_text())
    assert content["complete"]
    found: list[dict[str, Any]] = content["rows"]
    return found


def refusal(*arguments: str) -> str:
    """What is said to a request that cannot be, in one line."""
    done = lab(*arguments)
    assert done.exit_code == 2, done.output
    assert not list(Path().iterdir()), "nothing is written before all is checked"
    return " ".join(done.output.split())


def test_the_measured_contraction_is_theorys_on_every_topology() -> None:
    done = lab(
        *("consensus", "--topology", "ring,torus,hypercube,exponential,one-peer-exponential,complete"),
        *("--peers", "16,64", "--rounds", "200", "--seed", "1", "--json", "out.json", "--no-html"),
    )
    assert done.exit_code == 0, done.output
    found = rows("out.json")
    assert len(found) == 12
    for row in found:
        assert {"topology", "peers", "predicted_rate", "measured_rate", "bias"} <= set(row)
        assert row["measured_rate"] == pytest.approx(row["predicted_rate"], rel=1e-6), row
        assert row["bias"] < 1e-12
    exact = {(row["topology"], row["peers"]): row["exact_after"] for row in found if row["predicted_rate"] == 0}
    assert exact == {
        ("one-peer-exponential", 16): 4,
        ("one-peer-exponential", 64): 6,
        ("complete", 16): 1,
        ("complete", 64): 1,
    }
    assert "one-peer-exponential" in done.output
    assert "0.996790" in done.output


def test_every_setting_can_be_swept_and_every_round_is_recorded() -> None:
    done = lab(
        *("consensus", "--algorithm", "push-sum", "--topology", "exponential", "--peers", "8", "--rounds", "30"),
        *("--loss", "0,0.2", "--delay", "0,2", "--churn", "0,0.1", "--crash", "0,0.2", "--json", "out.json"),
        "--no-html",
    )
    assert done.exit_code == 0, done.output
    found = rows("out.json")
    assert len(found) == 16
    steps = results.read_records(Path("out.json"))
    assert len(steps) == 16 * 31
    assert {"distance", "bias", "mass_error", "weight_error", "staleness", "bytes_per_edge"} <= set(steps[0])
    assert all(abs(row["mass_error"]) < 1e-12 and abs(row["weight_error"]) < 1e-12 for row in found)
    worst = next(row for row in found if row["loss"] and row["delay"] and not row["churn"] and not row["crash"])
    assert "lost:" in worst["staleness_histogram"]
    assert "2:" in worst["staleness_histogram"]


def test_codecs_make_packets_smaller() -> None:
    done = lab(
        *("consensus", "--algorithm", "choco", "--compression", "none,float16,TopK(0.1)", "--parameters", "100"),
        *("--rounds", "20", "--json", "out.json", "--no-html"),
    )
    assert done.exit_code == 0, done.output
    plain, half, tenth = (row["bytes_per_edge"] for row in rows("out.json"))
    assert plain == 800 + 24  # and the numbers of three copies
    assert 224 <= half < 234
    assert tenth < half


def test_the_distance_in_training_is_theorys() -> None:
    done = lab(
        *("consensus", "--algorithm", "dpsgd,combine-then-adapt", "--topology", "ring,torus", "--step", "0.1"),
        *("--rounds", "400", "--json", "out.json", "--no-html"),
    )
    assert done.exit_code == 0, done.output
    for row in rows("out.json"):
        assert row["distance"] == pytest.approx(row["predicted_distance"], rel=1e-9)
        assert row["measured_rate"] is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--topology rang", "'rang' is not known, expected one of base, complete"),
        ("--topology hypercube --peers 12", "works with 8 or 16 peers"),
        ("--loss -0.1", "loss -0.1, expected a probability"),
        ("--loss 1", "expected a probability"),
        ("--loss nan", "expected a probability"),
        ("--churn 2", "churn 2.0, expected a probability"),
        ("--crash -1", "crash -1, expected a share"),
        ("--peers 0", "ring of 0 peers"),
        ("--peers 16,16", "peers 16 is given twice"),
        ("--peers sixteen", "'sixteen' in 'sixteen', expected whole numbers with commas"),
        ("--peers 16,", "'' in '16,', expected whole numbers"),
        ("--peers 10000000", "expected at most 100000"),
        ("--topology ring,,torus", "an empty value"),
        ("--algorithm sgd", "'sgd' is not known, expected a name or an expression of"),
        ("--compression zip", "'zip' is not known"),
        ("--compression topk(0.1)", "does not compose"),
        ("--algorithm push-sum --delay -1", "delay -1, expected a number of rounds"),
        ("--delay 2", "waits for the packets of its round"),
        ("--staleness 1", "without --step nothing is trained"),
        ("--rounds 0", "rounds 0, expected at least 1"),
        ("--parameters 0", "parameters 0, expected at least 1"),
        ("--start middle", "start 'middle', expected one of slowest, normal"),
        ("--step -1", "step -1, expected 0 or more"),
        ("--json nowhere/out.json", "nowhere is not a folder"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_run(arguments: str, says: str) -> None:
    assert says in refusal("consensus", *arguments.split())


def test_combinations_that_cannot_be_are_left_out_if_one_says_so() -> None:
    done = lab(
        *("consensus", "--topology", "hypercube,ring", "--peers", "8,12", "--rounds", "3", "--skip"),
        *("--json", "out.json", "--no-html"),
    )
    assert done.exit_code == 0, done.output
    assert [(row["topology"], row["peers"]) for row in rows("out.json")] == [
        ("hypercube", 8),
        ("ring", 8),
        ("ring", 12),
    ]
    assert "left out: hypercube of 12 peers" in done.output


SMALL = (
    "consensus",
    "--topology",
    "ring,torus",
    "--peers",
    "9,16",
    "--rounds",
    "12",
    "--json",
    "out.json",
    "--no-html",
)


class StoppingAfter:
    """Ctrl-C, so many rounds later."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def __call__(self) -> None:
        self.rounds -= 1
        if self.rounds < 0:
            raise KeyboardInterrupt


def test_a_sweep_that_is_stopped_keeps_what_it_has_and_goes_on_to_the_same_result() -> None:
    question = Consensus(Grid(topology=("ring", "torus"), peers=(9, 16)), rounds=12)
    begun = sweep.begin(question, Path("out.json"))
    done, stopped = sweep.run(begun, StoppingAfter(2 * 12 + 5))
    assert stopped
    assert len(done.rows) == 2
    assert not json.loads(Path("out.json").read_text())["complete"]
    assert {step["row"] for step in results.read_records(Path("out.json"))} == {"0", "1"}

    again = lab(*SMALL)
    assert again.exit_code == 0, again.output
    assert "2 of 4 rows are done already" in again.output
    assert lab(*SMALL[:-2], "whole.json", "--no-html").exit_code == 0
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert rows("out.json") == rows("whole.json")
    assert "4 of 4 rows are done already" in lab(*SMALL).output


def test_records_of_a_row_that_was_not_finished_are_dropped() -> None:
    assert lab(*SMALL).exit_code == 0
    whole = Path("out.csv").read_bytes()
    content = json.loads(Path("out.json").read_text())
    content["rows"].pop()  # killed after the records were written and before the row was
    Path("out.json").write_text(json.dumps(content))
    assert lab(*SMALL).exit_code == 0
    assert Path("out.csv").read_bytes() == whole


def test_another_result_is_not_overwritten_unless_one_says_so() -> None:
    assert lab(*SMALL).exit_code == 0
    other = (*SMALL, "--seed", "5")
    refused = lab(*other)
    assert refused.exit_code == 2
    assert "holds another result (seed 0, wanted 5)" in " ".join(refused.output.split())
    assert lab(*other, "--fresh").exit_code == 0
    Path("out.json").write_text("no JSON")
    assert "is not JSON" in lab(*SMALL).output
    Path("out.json").write_text('{"format": 1, "experiment": "consensus"}')
    assert "missing or wrong" in lab(*SMALL).output


def test_a_result_repeats_from_its_json() -> None:
    assert lab("faults", "--rounds", "10", "--loss", "0.1", "--json", "out.json", "--no-html").exit_code == 0
    done = lab("repeat", "out.json", "--json", "again.json")
    assert done.exit_code == 0, done.output
    assert "all the same again" in done.output
    assert rows("out.json") == rows("again.json")
    assert Path("out.csv").read_bytes() == Path("again.csv").read_bytes()

    content = json.loads(Path("out.json").read_text())
    content["rows"][1]["bias"] += 1e-15
    Path("out.json").write_text(json.dumps(content))
    wrong = lab("repeat", "out.json")
    assert wrong.exit_code == 1
    assert "row 1, bias" in wrong.output
    assert sorted(path.name for path in Path().iterdir()) == [
        "again.csv",
        "again.html",
        "again.json",
        "out.csv",
        "out.json",
    ]
    assert "cannot be read" in lab("repeat", "nowhere.json").output


def test_faults_take_mass_from_plain_push_sum_only() -> None:
    done = lab(
        *("faults", "--rounds", "60", "--loss", "0,0.1", "--churn", "0.1", "--crash", "0.3"),
        *("--json", "out.json", "--no-html"),
    )
    assert done.exit_code == 0, done.output
    for row in rows("out.json"):
        lossy = row["loss"] > 0
        if row["algorithm"] == "PlainPushSum()":
            assert (row["weight_error"] < -0.1) == lossy
        if row["algorithm"] == "PushSum()":
            assert abs(row["weight_error"]) < 1e-12
            assert row["mass_error"] < 1e-12
        if row["algorithm"] in ("DPsgd()", "PlainPushSum()") and lossy:
            assert row["distance"] < 1e-6 < 1e-3 < row["bias"], "they agree, on something else"
        assert (row["fault"] == "none") == (not (row["loss"] or row["churn"] or row["crash"]))
        if row["crash"]:
            assert row["bias"] > 1e-3
    assert "here nothing is trained" in lab("faults", "--staleness", "1", "--json", "other.json").output


def test_compare_shows_the_settings_that_differ_and_the_rows_side_by_side() -> None:
    assert lab(*SMALL).exit_code == 0
    changed = ("consensus", "--topology", "ring", "--peers", "9", "--rounds", "6", "--json", "b.json", "--no-html")
    assert lab(*changed).exit_code == 0
    done = lab("compare", "out.json", "b.json")
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.output.splitlines()]
    assert ["rounds", "12", "6"] in lines
    assert ["topology", "ring,", "torus", "ring"] in lines
    assert not any(line[:1] == ["seed"] for line in lines)
    paired = next(line for line in done.output.splitlines() if "DPsgd() on ring of 9" in line)
    assert "0.844" in paired  # 1/3 + 2/3 cos(40 degrees), in both
    assert "only A: DPsgd() on torus of 16" in done.output
    assert "written: compare.html" in done.output
    assert "DPsgd() on ring of 9" in Path("compare.html").read_text()
    Path("compare.html").unlink()
    assert "no setting differs" in lab("compare", "b.json", "b.json", "--no-html").output
    assert not Path("compare.html").exists()
    assert lab("faults", "--rounds", "2", "--loss", "0.1", "--json", "c.json", "--no-html").exit_code == 0
    assert "consensus and faults cannot be compared" in lab("compare", "b.json", "c.json").output


def test_what_cannot_be_is_found_before_a_sweep_also_if_it_shows_under_faults_only() -> None:
    done = lab(
        *("consensus", "--algorithm", "choco,dpsgd,OneWayPull(),relay-sum", "--topology", "path", "--peers", "6"),
        *("--loss", "0,0.1", "--crash", "0,0.2", "--rounds", "5", "--skip", "--json", "out.json", "--no-html"),
    )
    assert done.exit_code == 0, done.output
    assert not any("refused" in row for row in rows("out.json"))
    assert done.output.count("left out: loss 0.1 with Choco(): its vectorized form holds one") == 2
    assert done.output.count("left out: crash 0.2 with RelaySum(), whose vectorized form needs its tree whole") == 2
    assert len(rows("out.json")) == 16 - 4
    other = ("consensus", "--algorithm", "choco,dpsgd", "--loss", "0,0.1", "--json", "other.json")
    assert "loss 0.1 with Choco()" in " ".join(lab(*other).output.split())
    assert not Path("other.json").exists()


def test_a_refusal_on_the_way_leaves_a_row_that_says_why_and_the_sweep_goes_on() -> None:
    # Steps so long that the parameters overflow, which the codec does not take.
    sweep_of = (
        "consensus",
        "--algorithm",
        "dpsgd,choco",
        "--compression",
        "none,int8",
        "--step",
        "50",
        "--rounds",
        "250",
    )
    done = lab(*sweep_of, "--skip", "--json", "out.json")
    assert done.exit_code == 0, done.output
    found = rows("out.json")
    assert [bool(row.get("refused")) for row in found] == [False, False, True]
    assert "to compress, expected at most" in found[2]["refused"]
    assert "refused: Choco(), compression Int8()" in done.output
    assert "to compress, expected at most" in Path("out.html").read_text()
    assert "3 of 3 rows are done already" in lab(*sweep_of, "--skip", "--json", "out.json", "--no-html").output


def test_records_that_are_missing_are_told_of_and_a_second_run_fills_them_in() -> None:
    assert lab(*SMALL).exit_code == 0
    whole, table = Path("out.csv").read_bytes(), Path("out.json").read_bytes()
    kept = [line for line in Path("out.csv").read_text().splitlines(keepends=True) if line[:2] not in ("1,", "3,")]
    Path("out.csv").write_text("".join(kept))
    done = lab("compare", "out.json", "out.json")
    assert "A: out.csv lacks records of 2 of 4 rows (number 1, 3)" in done.output
    assert "out.csv lacks records of 2 of 4 rows" in Path("compare.html").read_text()
    again = lab(*SMALL[:-1])
    assert again.exit_code == 0, again.output
    assert "2 of 4 rows are done already" in again.output
    assert "records of rows 1, 3 are missing in out.csv" in again.output
    assert Path("out.csv").read_bytes() == whole
    assert Path("out.json").read_bytes() == table
    assert "lacks records" not in lab("compare", "out.json", "out.json", "--no-html").output
    Path("out.csv").unlink()
    assert lab(*SMALL).exit_code == 0
    assert Path("out.csv").read_bytes() == whole


def test_a_row_is_the_mean_over_seeds_with_its_standard_error() -> None:
    arguments = ("consensus", "--peers", "8", "--step", "0.1", "--noise", "0.5", "--rounds", "40", "--no-html")
    one = []
    for seed in (3, 4, 5):
        assert lab(*arguments, "--seed", str(seed), "--json", f"{seed}.json").exit_code == 0
        one += rows(f"{seed}.json")
    done = lab(*arguments[:-1], "--seed", "3", "--seeds", "3", "--json", "out.json")
    assert done.exit_code == 0, done.output
    (row,) = rows("out.json")
    for name in ("distance", "mean_distance", "bias", "optimum_distance"):
        values = [each[name] for each in one]
        assert row[name] == pytest.approx(sum(values) / 3)
        assert row[f"{name}_se"] == pytest.approx(np.std(values, ddof=1) / 3**0.5)
    last = results.read_records(Path("out.json"))[-1]
    assert float(last["distance_se"]) == pytest.approx(row["distance_se"])
    assert "±" in done.output
    assert "means over 3 seeds" in done.output
    assert lab("repeat", "out.json").exit_code == 0


def test_the_distance_is_averaged_over_the_last_quarter_of_a_training() -> None:
    last, late = [], []
    for seed in range(8):  # of its own optima, and so of another distance
        question = Consensus(Grid(peers=(8,)), rounds=400, step=0.1, noise=1.0, seed=seed)
        row, _ = question.answer(question.cases()[0][0], lambda: None)
        last.append(row["distance"] / row["predicted_distance"])
        late.append(row["mean_distance"] / row["predicted_distance"])
    assert np.std(late) < 0.5 * np.std(last)
    assert np.mean(late) == pytest.approx(1.0, abs=4 * np.std(late) / 8**0.5)


def test_a_training_whose_optimum_is_known_tells_how_far_from_it_peers_are() -> None:
    done = lab(
        *("consensus", "--algorithm", "dpsgd,gradient-tracking,relay-sum", "--topology", "path", "--peers", "5"),
        *("--step", "0.1", "--rounds", "800", "--json", "out.json", "--no-html"),
    )
    assert done.exit_code == 0, done.output
    averaged, tracked, relayed = rows("out.json")
    assert averaged["optimum_distance"] == pytest.approx(averaged["predicted_distance"], rel=1e-6)
    assert averaged["optimum_bias"] < 1e-9 < 0.1 < averaged["optimum_distance"]
    assert tracked["optimum_distance"] < 1e-9
    assert relayed["optimum_distance"] < 1e-9
    assert "distance to the optimum" in done.output
    assert {"optimum_distance", "optimum_bias"} <= set(results.read_records(Path("out.json"))[0])


@pytest.mark.parametrize("algorithm", ["relay-sum", "diloco"])
def test_bias_and_mass_error_are_left_blank_with_the_reason_where_they_say_nothing(algorithm: str) -> None:
    graph = "complete" if algorithm == "diloco" else "path"
    done = lab(
        *("convergence", "--algorithm", f"dpsgd,{algorithm}", "--topology", graph, "--peers", "4", "--rows", "40"),
        *("--rounds", "5", "--json", "out.json"),
    )
    assert done.exit_code == 0, done.output
    averaged, other = rows("out.json")
    assert averaged["bias"] is not None
    assert other["bias"] is None
    assert other["mass_error"] is None
    assert f"Bias and mass error of {other['algorithm']} are left blank: its" in done.output
    assert {step["bias"] == "" for step in results.read_records(Path("out.json")) if step["row"] == "1"} == {True}


def test_where_links_are_drawn_the_table_says_which_rate_is_which() -> None:
    done = lab(
        "consensus", "--topology", "random-matching,ring", "--rounds", "60", "--seeds", "3", "--json", "out.json"
    )
    assert done.exit_code == 0, done.output
    drawn, ring = rows("out.json")
    assert drawn["measured_rate"] == pytest.approx(drawn["predicted_rate"], rel=0.03)
    assert drawn["expected_rate"] == pytest.approx((14 / 30) ** 0.5)
    assert ring["expected_rate"] is None
    assert "rate of the expected square" in done.output
    assert "theory of a typical run" in Path("out.html").read_text()
