"""Spark executors on this machine, as benchmarks start them: one core each, all there before the first task.

Their Python workers are forked from `p2p.spark_daemon`, as the README advises.
"""

from __future__ import annotations

import os
import sys

from pyspark import SparkConf, SparkContext


def start(name: str, executors: int, memory_mb: int, **settings: str) -> SparkContext:
    """A context with `executors` of `memory_mb` each; `settings` are Spark's, with "_" for the dots."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    conf = (
        SparkConf()
        .set("spark.scheduler.minRegisteredResourcesRatio", "1.0")
        .set("spark.locality.wait", "0s")
        .set("spark.python.daemon.module", "p2p.spark_daemon")
        .set("spark.ui.enabled", "false")
        .set("spark.ui.showConsoleProgress", "false")
    )
    for key, value in settings.items():
        conf.set(key.replace("_", "."), value)
    context = SparkContext(f"local-cluster[{executors},1,{memory_mb}]", name, conf=conf)
    context.setLogLevel("ERROR")
    return context
