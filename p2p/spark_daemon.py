"""Spark's daemon, from which it forks its Python workers, with all modules that training needs imported beforehand.

    spark.python.daemon.module=p2p.spark_daemon

in the configuration of a Spark whose executors have this package. Spark ends workers that had nothing to do for a
minute. A new one imports everything again (numpy, numba and what that has compiled, and Spark's own module for workers,
which lies in an archive as source), for 1.5 seconds of processor time. Forked from this daemon it has all of it.

Must not start a thread: it would be missing in the forked process.
"""

from __future__ import annotations

import contextlib
import sys

from pyspark.daemon import manager

from p2p.worker.garbage import leave_out_what_stays


def preload() -> None:
    """Import what workers need, and load the compiled loops; where none have been kept, that takes some seconds."""
    import pyspark.worker  # noqa: F401

    import p2p.worker.task  # noqa: F401
    from p2p import adapters

    for adapter in adapters.everyone():
        adapter.preload()
    leave_out_what_stays()


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # Spark reads a number from the output, and nothing else
        preload()
    manager()
