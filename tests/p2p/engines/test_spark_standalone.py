"""Training on a standalone cluster of two hosts, on a bad day: slow tasks get speculative copies, tasks fail, and an
executor is killed while updates flow, with files of the input's shuffle."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.long]

HOSTS = ("127.0.0.1", "127.0.0.2")
"""Spark runs speculative copies on another host only; on Linux all of 127.* is this machine."""
START_TIMEOUT_S = 180.0
PROGRAM_TIMEOUT_S = 400.0
GONE_TIMEOUT_S = 60.0


class Cluster:
    """A master and a worker per host, on free ports, from the installed package's `spark-class`."""

    def __init__(self, place: Any, environment: dict[str, str], eventually: Any) -> None:
        self._folder = place.folder
        self._environment = {**os.environ, **place.environment, **environment, "SPARK_DAEMON_MEMORY": "256m"}
        self._eventually = eventually
        self.processes: list[subprocess.Popen[bytes]] = []
        try:
            master = self._start("master", "--host", HOSTS[0], "--port", "0")
            self.url = self._wait(master, r"Starting Spark master at (spark://\S+)")
            options = ("--cores", "2", "--memory", "1g", "--work-dir", str(place.folder / "work"))
            for log in [self._start("worker", "--host", host, *options, self.url) for host in HOSTS]:
                self._wait(log, r"(Successfully registered with master)")
        except BaseException:
            self.stop()
            raise

    def _start(self, role: str, *options: str) -> Path:
        """Start a daemon; the file that it logs to."""
        log = Path(self._folder, f"{role}-{len(self.processes)}.txt")
        spark_class = Path(self._environment["SPARK_HOME"], "bin", "spark-class")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [spark_class, f"org.apache.spark.deploy.{role}.{role.capitalize()}", "--webui-port", "0", *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=self._environment,
            )
        self.processes.append(process)
        return log

    def _wait(self, log: Path, ready: str) -> str:
        """Until a daemon has logged what matches `ready`; the part in parentheses."""
        self._eventually(lambda: re.search(ready, log.read_text()) is not None, START_TIMEOUT_S)
        found = re.search(ready, log.read_text())
        assert found, f"Spark's {log.stem} is not ready after {START_TIMEOUT_S:g} s; it said:\n{log.read_text()}"
        return found.group(1)

    def stop(self) -> None:
        """End the daemons, workers first, and wait for them."""
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(GONE_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def bad_day(make_place: Any, start_program: Any, spark_environment: Any, eventually: Any) -> Iterator[dict[str, Any]]:
    """What the program wrote, and what of its processes was left when it had ended."""
    place = make_place()
    try:
        environment = spark_environment(place)
        cluster = Cluster(place, environment, eventually)
        try:
            where = {"MASTER": cluster.url, "VICTIM": HOSTS[1], "DELAY_S": "0.3"}
            results = start_program(place, "spark_standalone", {**environment, **where}).results(PROGRAM_TIMEOUT_S)
            daemons = {process.pid for process in cluster.processes}
            eventually(lambda: place.processes().keys() == daemons, GONE_TIMEOUT_S)
            left = {pid: command for pid, command in place.processes().items() if pid not in daemons}
            yield {**results, "processes": left}
        finally:
            cluster.stop()
    finally:
        left = place.close()
    assert left == {}


def test_attempts_failed_work_was_done_twice_and_an_executor_died(bad_day: Any) -> None:
    """Which of the two ways Spark takes to do work twice hangs on who is quicker on the day."""
    assert bad_day["attempts"]["speculative"] > 0 or bad_day["attempts"]["stage runs"] > 1, bad_day
    assert bad_day["failed"] > 0, bad_day
    assert len(bad_day["missing"]) == 1, bad_day


def test_every_row_counts_once_or_is_in_an_update_that_is_reported_lost(bad_day: Any) -> None:
    times, lost = dict(bad_day["times"]), sum(bad_day["lost"].values())
    assert set(times) <= {0.0, 1.0}, bad_day
    missing = times.get(0.0, 0)
    assert (missing > 0) == (lost > 0), bad_day
    assert missing <= lost * bad_day["chunk rows"], bad_day
    assert bad_day["lost"].keys() <= {"agent gone"}, bad_day


def test_all_replicas_are_equal_after_a_bad_day(bad_day: Any) -> None:
    assert bad_day["distance"] == 0


def test_nothing_is_left_of_a_bad_day(bad_day: Any) -> None:
    assert bad_day["processes"] == {}
