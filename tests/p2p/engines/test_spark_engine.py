"""Training on Spark: programs as users write them, run outside of this process, since each needs its own context."""

import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from py4j.protocol import Py4JError
from pyspark import SparkConf, TaskContext

from gossip.arrays import Layout
from p2p import DeepDist, SimulatedCluster, UsageError
from p2p.agent.client import AgentGoneError, AgentSettings
from p2p.checkpoint import reading
from p2p.engines import spark
from p2p.engines.spark import (
    _agent_that_answers,
    _attempt,
    cautions,
    cuts_rows_by_chance,
    driver_address,
    explained,
    own_address,
)
from p2p.worker.errors import PartitionError, Seal
from p2p.worker.job import Job, Rhythm

pytestmark = [pytest.mark.spark, pytest.mark.slow]

PROGRAM_TIMEOUT_S = 300.0
GONE_TIMEOUT_S = 60.0
"""Executors whose driver program was killed notice it by a closed connection."""


class Notebook:
    """Runs programs that use Spark, one after the other in one process: a JVM takes seconds to start.

    Each has a context of its own and must leave nothing but the process and its JVM. After one that fails, the next
    gets a new process.
    """

    def __init__(self, start: Callable[[Any], Any], make_place: Callable[[], Any], eventually: Any) -> None:
        self._start = start
        self._make_place = make_place
        self._eventually = eventually
        self._program: Any = None

    def results(self, name: str) -> Any:
        """What the program wrote, after a look at what it left behind."""
        if self._program is None:
            self._program = self._start(self._make_place())
        program = self._program
        try:
            return self._run(program, name)
        except BaseException:
            self._program = None
            program.process.kill()
            program.process.communicate()
            program.place.close()
            raise

    def _run(self, program: Any, name: str) -> Any:
        results = program.place.folder / f"{name}.json"
        done = Path(f"{results}.done")
        program.process.stdin.write(f"{name} {results}\n".encode())
        program.process.stdin.flush()
        self._eventually(lambda: done.exists() or program.process.poll() is not None, PROGRAM_TIMEOUT_S)
        assert done.exists(), f"{name} failed, or runs after {PROGRAM_TIMEOUT_S:g} s; it said:\n{program.output}"
        self._eventually(lambda: self._left(program) == {}, GONE_TIMEOUT_S)
        assert self._left(program) == {}, name
        return json.loads(results.read_text())

    def _left(self, program: Any) -> dict[str, object]:
        """What is left over beside the process and its JVM."""
        left = program.place.leftovers()
        left["processes"] = {
            pid: command
            for pid, command in program.place.processes().items()
            if pid != program.process.pid and "org.apache.spark.deploy.SparkSubmit" not in command
        }
        return {kind: what for kind, what in left.items() if what}

    def close(self) -> None:
        """Let the process end, which must be a good end, and look at what is left behind."""
        if self._program is None:
            return
        program, self._program = self._program, None
        program.process.stdin.close()
        try:
            code = program.wait(GONE_TIMEOUT_S)
            output = program.output
        finally:
            left = program.place.close()
        assert (code, left) == (0, {}), output


@pytest.fixture(scope="module")
def start(start_program: Any, spark_environment: Any) -> Callable[..., Any]:
    """`start(place, name, ...)` starts a program that uses Spark."""

    def start(place: Any, name: str, **options: Any) -> Any:
        return start_program(place, name, spark_environment(place), **options)

    return start


@pytest.fixture(scope="module")
def notebook(start: Any, make_place: Any, eventually: Any) -> Iterator[Notebook]:
    notebook = Notebook(lambda place: start(place, "spark_notebook", reads=True), make_place, eventually)
    yield notebook
    notebook.close()


# ----------------------------------------------------------------------------------- two executors of one core that mix


@pytest.mark.long
def test_executors_that_mix_learn_and_agree(notebook: Notebook) -> None:
    mixed = notebook.results("spark_mixing")
    assert [role for role, _, _ in mixed["peers"]] == ["peer", "peer"]
    assert all(rounds > 0 and len(edges) == 1 for _, rounds, edges in mixed["peers"])
    assert mixed["updates"] == 8 * 2 * 4
    assert mixed["updates_lost"] == 0
    assert mixed["missing"] == []
    assert mixed["consensus_distance"] < 1e-3
    assert mixed["error"] < 0.05


# ------------------------------------------------------------------- two executors of one core that wait for each other


@pytest.mark.long
def test_executors_take_steps_together_and_average_while_some_are_killed(notebook: Notebook) -> None:
    found = notebook.results("spark_synchronous")
    for mode in ("sync", "averaging"):
        (w, updates), each = found["expected"][mode], found[mode]
        np.testing.assert_allclose(each["w"], w, rtol=0, atol=1e-14)
        assert each["rows"] == [32, 32], mode
        assert (each["mode"], each["updates"], each["lost"], each["killed"]) == (mode, updates, 0, True)
    assert found["executor"] == {"rows": [32, 32], "lost": 0, "killed": True}


# ----------------------------------------------------------------------------------- a training that goes on on Spark


@pytest.mark.long
def test_a_training_on_spark_goes_on_from_its_checkpoint(notebook: Notebook) -> None:
    found = notebook.results("spark_checkpoint")
    for name in ("p2p", "master", "shuffled"):
        each = found[name]
        assert 0 < each["began"] < 128, name
        assert each["seen"] == [2.0] * 64, name
        assert each["updates"] == 64 - each["began"] / 2, name
        assert (each["lost"], each["failed"]) == (0, 0), name
    began = found["mlp"]["began"]
    assert 0 < began < 64
    assert found["mlp"]["updates"] == [64 - began, 0]
    assert found["mlp"]["accuracy"] > 0.8
    (one,), (other,) = found["likeness"]
    assert one[0] == other[0] == -1
    assert one[1] != other[1], "the files that an RDD reads tell what it is"
    assert found["no likeness"] == []
    assert found["done"]["updates"] == 0
    assert 0 < found["done"]["workers"] < 8, "those of 8 tasks without work, which Spark ends if they leave rows unread"


# --------------------------------------------------------------------------------- two executors of one core, no master


@pytest.fixture(scope="module")
def peers(notebook: Notebook) -> Any:
    return notebook.results("spark_peers")


def test_every_executor_is_a_peer_and_learns_from_every_other(peers: Any) -> None:
    first = peers["first"]
    assert [role for role, _, _ in first["peers"]] == ["peer", "peer", "observer"]
    published = [published for role, published, _ in first["peers"] if role == "peer"]
    assert all(count > 0 for count in published)
    assert sum(published) == first["updates"] == 2 * 8 * 2
    assert [applied for _, _, applied in first["peers"]] == [32] * 3
    assert first["rows"] == 800
    assert first["updates_lost"] == 0
    assert first["missing"] == []
    assert first["consensus_distance"] < 1e-5


def test_every_replica_is_the_initial_model_and_the_sum_of_all_updates(peers: Any) -> None:
    assert len(peers["replicas"]) == 3
    assert all(distance < 1e-5 for distance in peers["replicas"].values()), peers["replicas"]


def test_an_error_of_the_user_arrives_unchanged(peers: Any) -> None:
    error = peers["error"]
    assert error["same type"]
    assert error["args"] == ["row", 123]
    (note,) = error["notes"]
    assert f"in partition 2, epoch 0, host {os.uname().nodename}, process " in note
    assert "raise UnreadableError(123)" in note
    assert error["tried"] == 4, "Spark tries a task again, as often as it is told to"


def test_user_code_that_would_end_its_worker_is_named(peers: Any) -> None:
    kind, text, note = peers["exit"]
    assert (kind, text) == ("RuntimeError", "SystemExit: out of here")
    assert 'sys.exit("out of here")' in note


def test_a_job_that_cannot_be_opened_on_a_worker_says_why(peers: Any) -> None:
    kind, text, note = peers["unreadable"]
    assert (kind, text) == ("ZeroDivisionError", "cannot be opened")
    assert "partition " in note


def test_a_training_after_an_error_is_exact(peers: Any) -> None:
    assert peers["second"]["updates"] == 8
    assert peers["second"]["updates_lost"] == 0
    assert all(distance < 1e-5 for distance in peers["replicas after the error"].values())
    assert peers["model"] < 1e-5
    assert peers["folders"] == []


# ------------------------------------------------------------------ two executors of two cores, with and without master


@pytest.fixture(scope="module")
def executors(notebook: Notebook) -> Any:
    return notebook.results("spark_executors")


@pytest.mark.parametrize("mode", ["p2p", "master"])
def test_all_workers_of_an_executor_share_one_agent_unless_there_is_a_master(executors: Any, mode: str) -> None:
    found = executors[mode]
    workers = len(found["workers"])
    assert workers >= 4, "Spark may have some in reserve"
    assert len({daemon for daemon, _ in found["workers"]}) == 2
    assert found["roles"] == {"p2p": ["peer", "peer", "observer"], "master": ["worker"] * workers + ["master"]}[mode]
    assert found["agents during"] == {"p2p": 3, "master": 0}[mode]


@pytest.mark.parametrize("mode", ["p2p", "master"])
def test_agents_leave_with_the_session_and_spark_stays(executors: Any, mode: str) -> None:
    assert executors[mode]["agents after"] == 0
    assert executors[mode]["folders after"] == []


@pytest.mark.parametrize("mode", ["p2p", "master"])
def test_the_model_is_exact_with_and_without_a_master(executors: Any, mode: str) -> None:
    found = executors[mode]
    assert found["rows"] == 200
    assert found["updates"] == 24
    assert found["updates_lost"] == 0
    assert found["consensus_distance"] == 0
    assert found["applied"][-1] == 24
    assert mode == "master" or found["applied"] == [24] * 3
    assert all(count > 0 for count in found["published"][:2])
    assert found["model"]["sum"] == [0.5 + 2 * 4950] * 3
    if mode == "p2p":
        assert found["model"]["descents"] == [24, 0], "descent runs where the gradient ran"
        assert found["model"]["gradients here"] == [24]
    else:
        assert found["model"]["descents"] == [24, 24], "descent runs in the driver program"
        assert found["model"]["gradients here"] == [0]


def test_a_session_of_peers_trains_with_a_master_in_between(executors: Any) -> None:
    sums = [2.0 * 4950 * count for count in (1, 2, 3)]
    assert executors["changed"] == [
        ["p2p", sums[0], 24, 0, 3],
        ["master", sums[1], 24, 0, 0],
        ["p2p", sums[2], 24, 0, 3],
    ]


# ---------------------------------------------------------------------------------- the driver program as only executor


@pytest.fixture(scope="module")
def local(notebook: Notebook) -> Any:
    return notebook.results("spark_local")


def test_a_local_master_has_one_peer(local: Any) -> None:
    assert local["roles"] == ["peer", "observer"]
    assert local["agents"] == 2


def test_trainings_of_one_session_add_up(local: Any) -> None:
    assert local["epochs"] == [3 * 190, 3 * 20, 3 * 5]
    assert local["frame"] == [3 * 190 + 45, 10]
    assert local["nothing"] == [3 * 190 + 45, 0, 0]
    assert local["empty partitions"] == [3 * 190 + 45 + 7, 1, 1]


def test_data_with_a_partitioner_is_trained_epoch_by_epoch(local: Any) -> None:
    assert local["partitioned"] == [[15, 15], 6, 30]


def test_the_job_group_of_the_user_is_the_same_after_a_training(local: Any) -> None:
    assert local["job group"] == "mine"


def test_after_ctrl_c_no_job_is_left_and_the_session_goes_on(local: Any) -> None:
    assert local["interrupted"]
    assert local["jobs after"] == 0
    assert local["training after"] == [1 + 2 + 3 + 4, 2, 0]


def test_a_session_on_spark_refuses_lists_and_a_number_of_peers(local: Any) -> None:
    assert "trains on Spark, and data is for lists" in local["list"]
    assert "on Spark every executor is a peer" in local["peers"]


def test_input_is_kept_on_the_executors_if_it_or_what_it_comes_from_is_cached(local: Any) -> None:
    assert local["kept"] == {"plain": False, "cached": True, "from cached": True, "frame": True}


# ---------------------------------------------------------------------------------------------------------- sudden ends


@pytest.fixture(scope="module")
def stopped(notebook: Notebook) -> Any:
    return notebook.results("spark_stopped")


@pytest.mark.long
def test_agents_of_executors_leave_when_spark_stops(stopped: Any) -> None:
    assert stopped["agents before"] == 3
    assert stopped["agents after stop"] == 1, "the observer stays until the session ends"
    assert stopped["agents after"] == 0


@pytest.mark.long
def test_the_model_outlives_spark(stopped: Any) -> None:
    assert stopped["model after stop"] == [45]
    assert stopped["model"] == [45]


@pytest.mark.long
def test_training_on_a_stopped_context_is_a_clear_error(stopped: Any) -> None:
    assert "the SparkContext has been stopped" in stopped["error"]


@pytest.mark.parametrize("how", [pytest.param("ctrl-c", marks=pytest.mark.long), "kill -9"])
def test_nothing_is_left_of_a_training_that_is_ended(start: Any, make_place: Any, eventually: Any, how: str) -> None:
    program = start(make_place(), "spark_endless")
    try:
        program.wait_for_training(PROGRAM_TIMEOUT_S)
        assert len(program.place.agents()) == 3
        if how == "ctrl-c":
            program.press_ctrl_c()
        else:
            os.kill(program.process.pid, signal.SIGKILL)
        assert program.wait(GONE_TIMEOUT_S) != 0
        assert eventually(lambda: program.place.leftovers() == {}, GONE_TIMEOUT_S), program.place.leftovers()
        if how == "ctrl-c":
            assert "KeyboardInterrupt" in program.output
    finally:
        left = program.place.close()
    assert left == {}


@pytest.mark.long
def test_ctrl_c_leaves_the_model_trained_so_far_and_a_checkpoint_that_is_gone_on_with(
    start: Any, make_place: Any, eventually: Any
) -> None:
    program = start(make_place(), "spark_interrupted")
    try:
        program.wait_for_training(PROGRAM_TIMEOUT_S)
        folder = program.place.folder / "checkpoints"
        # the first ones may be older than the first task, whose process takes seconds to start
        assert eventually(lambda: has_units(folder), GONE_TIMEOUT_S)
        program.press_ctrl_c()
        assert program.wait(GONE_TIMEOUT_S) != 0
        assert "KeyboardInterrupt" in program.output
        assert eventually(lambda: program.place.leftovers() == {}, GONE_TIMEOUT_S), program.place.leftovers()
        seen = json.loads((program.place.folder / "spark_interrupted.json").read_text())["seen"]
        last = max(folder.glob("*.json"))
        found = reading.read(str(last))
        with DeepDist.resume(last, engine=SimulatedCluster(peers=2), progress=False) as dd:
            report = dd.train([list(range(start, start + 200)) for start in range(0, 800, 200)], counting)
            whole = dd.model["seen"]
    finally:
        left = program.place.close()
    assert left == {}
    assert found.record.progress.ended == "interrupted"
    assert 0 < sum(seen) < 800
    assert 0 < found.arrays["seen"].sum() == found.record.units.count < 800
    assert report.updates == 800 - found.record.units.count
    assert (whole == 1.0).all()


def has_units(folder: Path) -> bool:
    """Whether the newest checkpoint has something of what was trained."""
    return any(folder.glob("*.json")) and reading.read(str(folder)).record.units.count > 0


def counting(model: Any, rows: Iterator[int]) -> dict[str, Any]:
    """One for each row, as in the program that was interrupted."""
    seen = np.zeros(800)
    for row in rows:
        seen[row] += 1
    return {"seen": seen}


# ------------------------------------------------------------------------------------------------------ configuration


def configured(**settings: str) -> SparkConf:
    conf = SparkConf(loadDefaults=False)
    return conf.setAll([(f"spark.{name.replace('_', '.')}", value) for name, value in settings.items()])


def test_nothing_is_said_of_a_configuration_that_suits() -> None:
    assert cautions(configured(), cached=False) == {}
    assert cautions(configured(speculation="false", dynamicAllocation_enabled="false"), cached=False) == {}


def test_speculation_is_work_for_nothing() -> None:
    (text,) = cautions(configured(speculation="true"), cached=True).values()
    assert "spark.speculation is on" in text
    assert "Every chunk counts once" in text
    assert "Set spark.speculation=false" in text


def test_dynamic_allocation_is_at_odds_with_input_that_is_not_cached() -> None:
    conf = configured(dynamicAllocation_enabled="TRUE")
    assert cautions(conf, cached=True) == {}
    (text,) = cautions(conf, cached=False).values()
    assert "spark.dynamicAllocation.enabled is on and the input is not cached" in text
    assert "rdd.cache()" in text


@pytest.mark.long
def test_what_the_warning_of_keys_in_the_clear_asks_for_trains_and_event_logs_have_no_keys(notebook: Notebook) -> None:
    found = notebook.results("spark_encrypted")
    assert (found["sum"], found["peers"]) == ([45.0], 2)
    assert (found["warnings"], found["cautions"]) == ([], {})
    assert found["events"] > 10_000
    assert found["keys"] > 0
    assert found["keys in events"] == 0


# ------------------------------------------------------------------------------------------------------------ attempts


class Task:
    """Stands in for Spark's context of a task."""

    def __init__(self, attempt: int, ident: int) -> None:
        self.attemptNumber, self.taskAttemptId = lambda: attempt, lambda: ident


def test_attempts_are_told_apart_also_when_spark_counts_them_from_0_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(task: Task, stage_runs_again: bool) -> int:
        monkeypatch.setattr(TaskContext, "get", lambda: task)
        return _attempt(stage_runs_again)

    first, again, rerun = Task(0, 0), Task(1, 7), Task(0, 9)
    assert [attempt(task, False) for task in (first, again)] == [0, 1], "a first attempt need not be retained"
    numbers = [attempt(task, True) for task in (first, again, rerun)]
    assert numbers == sorted(set(numbers)), "later ones are higher"
    assert numbers[0] > 0, "any of them may have to be taken back"


# ------------------------------------------------------------------------------------------------ what errors look like


@pytest.mark.parametrize("package", ["p2p", "gossip"])
def test_executors_without_the_package_are_told_apart_from_errors_of_the_user(package: str) -> None:
    text = (
        "An error occurred while calling z:org.apache.spark.api.python.PythonRDD.collectAndServe.\n"
        ": org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 0.0 failed 4 times, most "
        "recent failure: Lost task 0.3 in stage 0.0 (TID 3) (10.0.0.7 executor 1): "
        "org.apache.spark.api.python.PythonException: Traceback (most recent call last):\n"
        '  File "/opt/spark/python/lib/pyspark.zip/pyspark/worker.py", line 1230, in main\n'
        "    func, profiler, deserializer, serializer = read_command(pickleSer, infile)\n"
        '  File "/opt/spark/python/lib/pyspark.zip/pyspark/cloudpickle/cloudpickle.py", line 602, in subimport\n'
        "    __import__(name)\n"
        f"ModuleNotFoundError: No module named '{package}'\n"
    )
    found = explained(Py4JError(text))
    assert type(found) is UsageError
    assert f"the executors' Python lacks the package '{package}'" in str(found)
    assert "PYSPARK_PYTHON" in str(found)
    assert sys.executable in str(found)


def test_the_user_s_own_missing_module_is_the_user_s_own_error() -> None:
    error = ModuleNotFoundError("No module named 'p2p'", name="p2p")
    seal = Seal()
    text = f"Job aborted: {seal.sealed(PartitionError.of(error, 1, 2))}"
    found = explained(Py4JError(text), seal)
    assert type(found) is ModuleNotFoundError
    assert "partition 2, epoch 1" in found.__notes__[0]


def test_errors_of_spark_itself_stay_as_they_are() -> None:
    error = Py4JError("Job 3 cancelled because SparkContext was shut down")
    assert explained(error) is error


# ------------------------------------------------------------------------------------ attempts and agents that die


class StandingStill:
    """A connection to an agent that is ended when somebody has waited for it long enough."""

    def __init__(self) -> None:
        self.alive = True

    def furthest(self, epoch: int, partition: int) -> int:
        self.alive = False
        raise AgentGoneError("it stood still")

    def close(self) -> None:
        pass


def test_a_training_begins_with_another_agent_where_one_stands_still_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = AgentSettings("run", "peer", "tcp://127.0.0.1:1", Layout(()))
    next_one = object()
    monkeypatch.setattr(spark, "ensure_agent", lambda *_: next_one)
    monkeypatch.setattr(spark, "_agents", {"run": StandingStill()})
    assert _agent_that_answers(settings) is next_one


@pytest.fixture(scope="module")
def faults(notebook: Notebook) -> Any:
    return notebook.results("spark_faults")


def test_attempts_that_fail_half_way_count_once(faults: Any) -> None:
    assert faults["clean"] == [faults["expected"], faults["units"], 0]


def test_when_an_agent_is_killed_another_takes_its_place_and_what_is_lost_is_counted(faults: Any) -> None:
    total, updates, lost = faults["faulty"]
    (killed,) = faults["killed"]
    assert killed in faults["missing"]
    assert len(faults["peers"]) == 3, "the two, and the one that came late"
    assert updates + lost == faults["units"]
    assert total == faults["expected"] or lost > 0
    assert faults["distance"] == 0


def test_an_agent_that_stands_still_when_a_training_begins_is_replaced_when_it_goes_on(faults: Any) -> None:
    assert faults["later"] == [faults["expected"], faults["units"], 0]
    assert faults["still"] not in faults["later peers"]
    assert len(faults["later peers"]) == 2
    assert faults["later_s"] < 100, "before START_TIMEOUT_S of the engine is over"


# ------------------------------------------------------------------------------------------- linear models by one call


@pytest.mark.long
def test_linear_models_are_trained_from_rdds_of_rows_and_of_blocks(notebook: Notebook) -> None:
    trained = notebook.results("spark_linear")
    rows, blocks = trained["rows"], trained["blocks"]
    assert rows["objective"] == pytest.approx(blocks["objective"], rel=1e-6)
    assert rows["passes"] == int(rows["passes"]) > 1, "of blocks the rows are counted"
    assert blocks["passes"] == int(blocks["passes"]) > 1
    assert rows["roles"] == ["peer", "observer"]
    assert trained["agents"] == 0


# ------------------------------------------------------------------------------------------------ word2vec by one call


@pytest.mark.long
def test_word2vec_is_trained_from_an_rdd_a_dataframe_and_files(notebook: Notebook) -> None:
    trained = notebook.results("spark_word2vec")
    for name in ("rdd", "tokens", "folder"):
        assert (trained[name]["rows"], trained[name]["words"]) == (8 * 400, 8 * 400)
        assert trained[name]["lost"] == 0
        assert trained[name]["margin"] > 0.2
    assert trained["rdd"]["roles"] == ["peer", "observer"]
    # not what it learned: a worker is some updates behind its master, and a chunk leads ten words so far that sums
    # of such updates overshoot
    text = trained["text"]
    assert (text["rows"], text["words"], text["lost"]) == (400, 8 * 400, 0)
    assert text["roles"][-1] == "master"
    assert set(text["roles"][:-1]) == {"worker"}
    assert trained["going on"]["rows"] == 400
    assert trained["going on"]["margin"] > 0.2
    assert trained["agents"] == 0
    assert trained["counted in many parts"] == {"words": True, "counts": True, "totals": [400, 3200]}
    refused = trained["refused"]
    assert refused["peers"] == "peers=2 with data on Spark, expected None: every executor is a peer"
    assert refused["column"] == "column='words', expected one of id, text"
    assert refused["type"] == "column 'id' holds int, expected array<string>, or string to be split"
    assert refused["path"].endswith(
        "/text/none.txt', expected a file, a folder of files or a glob such as 'texts/*.txt'"
    )
    assert "vocabulary of start_from (10 words), got none among 1 words in 1 rows" in refused["other words"]


# ------------------------------------------------------------------------------------- workers that find all they need


def test_workers_forked_from_our_daemon_have_what_training_needs_and_train(notebook: Notebook) -> None:
    found = notebook.results("spark_daemon")
    assert found["numba"]
    assert found["loaded"]
    assert found["frozen"] > 10_000, "objects of modules, which no collection of garbage goes through any more"
    assert found["threads"] == [1, 1], "what is forked beside a thread may hang"
    assert found["learned"]
    assert found["words"] == 1000
    assert found["distance"] < 1e-6, "the rounding of sums in another order"
    assert found["updates"] >= 4


# ------------------------------------------------------------------------------------------ exchanges within a gradient


@pytest.mark.long
def test_attempts_killed_within_a_gradient_go_on_where_they_had_published(notebook: Notebook) -> None:
    trained = notebook.results("spark_continuous")
    assert trained["killed"] == 2 * 2
    assert trained["times"] == [2.0], "every row counts once an epoch"
    assert trained["updates"] > 2 * 240 / 2, "nearly every row was exchanged by itself"
    assert trained["lost"] == 0
    assert trained["rows"] == 2 * 240


# ------------------------------------------------------------------------------------------------- behind a shuffle


@pytest.fixture(scope="module")
def shuffled(notebook: Notebook) -> Any:
    return notebook.results("spark_shuffled")


@pytest.mark.long
def test_spark_says_how_rows_come_that_it_computes_again(shuffled: Any) -> None:
    assert shuffled["orders"] == {
        "plain": "DETERMINATE",
        "mapped": "DETERMINATE",
        "shuffled": "UNORDERED",
        "cached": "UNORDERED",
        "by key": "UNORDERED",
        "shuffled twice": "INDETERMINATE",
        "frame": "UNORDERED",
        "checkpointed": "DETERMINATE",
    }


@pytest.mark.long
def test_every_line_of_a_compressed_file_counts_once_when_attempts_fail(shuffled: Any) -> None:
    order, trained = shuffled["text"]
    assert order == "UNORDERED"
    assert shuffled["failed"] == 8
    assert trained == {"times": [[1.0, 1000]], "rows": 1000, "lost": 0}


def test_every_row_counts_once_when_attempts_go_on_with_them_in_another_order(shuffled: Any) -> None:
    assert shuffled["continuous"] == {"times": [[1.0, 1000]], "rows": 1000, "lost": 0}


def test_attempts_that_get_other_rows_end_the_training(shuffled: Any) -> None:
    text, where = shuffled["other rows"]
    assert "of epoch 0: Spark computed the rows again for another attempt and got different ones" in text
    assert where.startswith("in partition ")


def test_rows_that_cannot_be_put_in_order_are_refused(shuffled: Any) -> None:
    text, where = shuffled["locks"]
    assert "a row of type lock cannot be pickled" in text
    assert where.startswith("in partition ")


@pytest.mark.parametrize(
    ("order", "chunk_rows", "when", "by_chance"),
    [
        ("DETERMINATE", 5, "chunk", False),
        ("DETERMINATE", None, "continuous", False),
        ("UNORDERED", None, "chunk", False),
        ("UNORDERED", None, "partition", False),
        ("UNORDERED", 5, "chunk", True),
        ("UNORDERED", None, "continuous", True),
        ("INDETERMINATE", None, "chunk", True),
        ("INDETERMINATE", None, "partition", True),
    ],
)
def test_rows_are_put_in_order_where_chunks_hang_on_it(
    order: Any, chunk_rows: int | None, when: Any, by_chance: bool
) -> None:
    job = Job(
        run="run",
        skeleton=b"",
        gradient=print,
        partitions=1,
        chunk_rows=chunk_rows,
        peers=1,
        seed=0,
        rhythm=Rhythm(when),
    )
    assert cuts_rows_by_chance(order, job) == by_chance


# ------------------------------------------------------------------------------------------------------ addresses


def resolve(monkeypatch: pytest.MonkeyPatch, **names: list[str]) -> None:
    """Have these names stand for these addresses, and addresses for themselves."""

    def getaddrinfo(host: str, *_: Any) -> list[Any]:
        if host[0].isdigit():
            return [(0, 0, 0, "", (host, 0))]
        if host not in names:
            raise socket.gaierror("Name or service not known")
        return [(0, 0, 0, "", (address, 0)) for address in names[host]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_the_driver_program_s_host_is_an_address_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, localhost=["127.0.0.1"], both=["203.0.113.7", "127.0.0.1"])
    assert own_address("127.0.0.1") == "127.0.0.1"
    assert own_address("127.0.0.2") == "127.0.0.2"
    assert own_address("localhost") == "127.0.0.1"
    assert own_address("both") == "127.0.0.1", "the first that can be had, and not loopback if there is another"


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("203.0.113.7", "is no address of this machine .behind NAT, or in a container"),
        ("outer", "is no address of this machine"),
        ("::1", "is an IPv6 address, which agents do not speak"),
        ("[2001:db8::1]", "is an IPv6 address"),
        ("nowhere", "has no IPv4 address here"),
    ],
)
def test_a_host_that_is_no_address_here_is_refused(host: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, outer=["203.0.113.7"])
    with pytest.raises(UsageError, match=f"spark.driver.host={re.escape(host)} {message}") as caught:
        own_address(host)
    assert "set spark.driver.host to an IPv4 address of this machine" in str(caught.value)


@pytest.mark.parametrize(
    ("master", "executors", "far"),
    [
        ("spark://127.0.0.1:7077", [], ""),
        ("spark://127.0.0.1:7077", ["127.0.0.1", "127.0.0.2"], ""),
        ("spark://127.0.0.1:7077", ["127.0.0.1", "203.0.113.9"], "203.0.113.9"),
        ("spark://127.0.0.1:7077,203.0.113.8:7077", [], "203.0.113.8"),
        ("yarn", ["127.0.0.1", "203.0.113.9"], "203.0.113.9"),
    ],
)
def test_a_name_that_is_loopback_here_is_for_executors_of_this_machine(
    master: str, executors: list[str], far: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, debian=["127.0.1.1"])
    infos = [SimpleNamespace(host=lambda host=host: host) for host in executors]
    scala = SimpleNamespace(statusTracker=lambda: SimpleNamespace(getExecutorInfos=lambda: infos))
    context: Any = SimpleNamespace(
        master=master,
        getConf=lambda: {"spark.driver.host": "debian"},
        _jsc=SimpleNamespace(sc=lambda: scala),
    )
    if not far:
        assert driver_address(context) == "127.0.1.1"
        return
    with pytest.raises(UsageError, match=f"=debian is 127.0.1.1 on this machine, which {far} cannot reach: set spark"):
        driver_address(context)


# ------------------------------------------------------------------------------------------------- what people have


@pytest.fixture(scope="module")
def inputs(notebook: Notebook) -> Any:
    return notebook.results("spark_inputs")


WORDS = {"the": 2, "cat": 1, "sat": 1, "on": 1, "mat": 1}
UTF_16 = "'/utf-16' is UTF-16, expected UTF-8: convert it, as by iconv -f UTF-16 -t UTF-8"
LATIN_1 = "'/latin/text' is not in UTF-8 (byte 0 is 0xe9): say its encoding=, such as"


@pytest.mark.long
def test_files_are_read_on_spark_as_without_or_refused_as_without(inputs: Any) -> None:
    files = inputs["files"]
    assert files.pop("utf-16") == UTF_16
    assert files.pop("latin-1").startswith(LATIN_1)
    assert files == dict.fromkeys(files, WORDS)
    assert inputs["in latin-1"] == {"é": 1, **WORDS}


@pytest.mark.long
def test_files_of_other_machines_are_found_and_looked_at_by_name(inputs: Any) -> None:
    files = inputs["by Hadoop"]
    assert "/upper.GZ' would be read as plain text by Hadoop, expected its ending in lower case" in files["upper case"]
    assert {name: files[name] for name in ("mark", "comma", "brackets", "within")} == dict.fromkeys(
        ("mark", "comma", "brackets", "within"), WORDS
    )
    assert files["colon"].startswith("Spark cannot read 'file:///colon/g:h.txt'")
    assert inputs["by Hadoop in latin-1"].endswith(
        "which Hadoop reads as UTF-8: convert the files, or give an RDD of texts"
    )
    assert "/array.npy' is no text by its name, expected a text file" in inputs["array"]


@pytest.mark.long
def test_columns_may_have_dots_in_their_names_and_lie_in_structs(inputs: Any) -> None:
    assert inputs["columns"] == {"a.b": WORDS, "doc.text": WORDS}
    assert inputs["no columns"] == [
        "column='a', expected one of a.b, doc",
        "column 'doc.id' holds int, expected array<string>, or string to be split",
        "column='doc.other', expected one of a.b, doc",
    ]


@pytest.mark.long
def test_rows_that_are_no_text_are_refused_by_the_error_that_names_them(inputs: Any) -> None:
    expected = {
        "rows": "got a dict {'text': 'a'}",
        "rows of many parts": "got int 7",
        "rows to go on with": "got a Row",
    }
    for name, what in expected.items():
        text, notes = inputs["refused"][name]
        assert what in text
        assert notes == 1


@pytest.mark.long
def test_barriers_and_stopped_contexts_are_refused_before_anything_is_started(inputs: Any) -> None:
    for name in ("barrier", "barrier of a training"):
        assert inputs["refused"][name][0].startswith("data is a RDDBarrier, expected an RDD")
    assert inputs["agents"] == 0
    for text, _ in inputs["stopped"]:
        assert text.startswith("the SparkContext has been stopped")


@pytest.mark.long
def test_an_accumulator_counts_every_task_of_a_worker(inputs: Any) -> None:
    assert inputs["accumulated"] == [40, 40 + 40 * 100, [2 * 190, 40]]
    assert inputs["accumulated more"] == [60, 60 + 60 * 100, [3 * 190, 60]]


@pytest.mark.long
def test_workers_that_were_forked_alike_draw_other_numbers_and_the_same_in_every_run(inputs: Any) -> None:
    first, again = inputs["drawn"]
    assert first == again
    assert len(set(first)) == len(first)
