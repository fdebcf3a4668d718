"""A SparkContext for the programs beside this file, which run as scripts and find it there."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from pyspark import SparkConf, SparkContext


def spark_context(master: str, **settings: str) -> SparkContext:
    """A context of `master`, which waits for all its executors."""
    conf = SparkConf().setMaster(master).setAppName("deepdist-test")
    conf.set("spark.ui.enabled", "false")
    conf.set("spark.ui.showConsoleProgress", "false")
    conf.set("spark.scheduler.minRegisteredResourcesRatio", "1.0")
    conf.set("spark.log.level", "ERROR")
    conf.setAll(list(settings.items()))
    return SparkContext(conf=conf)


def write_results(results: dict[str, Any]) -> None:
    """To the file that the test reads."""
    Path(sys.argv[1]).write_text(json.dumps(results))


def agents() -> list[int]:
    """The pids of the agents that run now and were started by this test, wherever on this machine."""
    mark = f"DEEPDIST_TEST_MARK={os.environ['DEEPDIST_TEST_MARK']}".encode()
    found = []
    for process in Path("/proc").iterdir():
        try:
            if (
                b"p2p.agent.process" in (process / "cmdline").read_bytes()
                and mark in (process / "environ").read_bytes()
            ):
                found.append(int(process.name))
        except (OSError, ValueError):
            pass  # not a process, or it ended meanwhile
    return found


def agents_go(count: int, timeout_s: float = 10.0) -> int:
    """How many agents there are, once there are no more than `count` or the time is up."""
    give_up = time.monotonic() + timeout_s
    while len(agents()) > count and time.monotonic() < give_up:
        time.sleep(0.05)
    return len(agents())
