"""Objects of S3 are read by ranges, by this process and by others, from a server on loopback.

It needs two packages that no lock names, since they bring forty others; `make test-extras` has them. Without them these
tests are skipped; what is then nearest is `memory://` in test_files.py. They are in no place of their own, since
fsspec keeps its threads until the process ends.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p import DeepDist, SimulatedCluster
from p2p.data import read_libsvm, read_text
from p2p.models.linear import LogisticRegression, fit

pytest.importorskip("s3fs", reason="s3fs is not installed")
pytest.importorskip("moto.server", reason="moto[server] is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.sockets]

ROWS = 5000


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Of a server with a bucket `rows`; all servers of a process have the same buckets."""
    import s3fs
    from moto.server import ThreadedMotoServer

    for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "y"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    found = {"endpoint_url": f"http://{host}:{port}"}
    system = s3fs.S3FileSystem(**found)
    if not system.exists("rows"):
        system.mkdir("rows")
    system.pipe("rows/a.libsvm", lines().encode())
    system.pipe("rows/b.libsvm", gzip.compress(lines().encode()))
    yield found
    system.rm("rows", recursive=True)
    server.stop()


def lines() -> str:
    chance = np.random.default_rng(0)
    return "".join(f"{chance.integers(2)} 1:{value:.3f}\n" for value in chance.normal(size=ROWS))


def test_rows_of_a_bucket_are_read_once(options: dict[str, Any]) -> None:
    parts = read_libsvm("s3://rows/a.libsvm", 1, partitions=7, storage_options=options)
    assert len(parts) == 7
    assert sum(len(y) for part in parts for _, y in part()) == ROWS
    both = [line for part in read_text("s3://rows/*", storage_options=options) for line in part()]
    assert both == 2 * lines().splitlines()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://rows/none", "no file at 's3://rows/none', expected a libsvm file"),
        ("s3://none/none", "no file at 's3://none/none', expected a libsvm file"),
        ("s3://rows", r"'s3://rows' is a folder, expected a libsvm file: name its files by a glob, as s3://rows/\*"),
    ],
)
def test_what_is_no_object_is_told(options: dict[str, Any], url: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_libsvm(url, 1, storage_options=options)


def test_processes_train_on_a_bucket_and_tell_a_damaged_line(options: dict[str, Any]) -> None:
    import s3fs

    data = read_libsvm("s3://rows/a.libsvm", 1, partitions=4, storage_options=options)
    assert fit(LogisticRegression(1), data, peers=2, progress=False).rows % ROWS == 0
    damaged = lines().splitlines()
    damaged[3000] = "1 1:x"
    s3fs.S3FileSystem(**options).pipe("rows/c.libsvm", "\n".join(damaged).encode())
    data = read_libsvm("s3://rows/c.libsvm", 1, partitions=4, storage_options=options)
    with pytest.raises(UsageError, match=r"'s3://rows/c\.libsvm', line 3001 \(byte \d+\): feature 1 is 'x', expected"):
        fit(LogisticRegression(1), data, peers=2, progress=False)


def test_checkpoints_in_a_bucket_are_gone_on_with(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs
    from fsspec.config import conf

    def counting(model: Any, rows: Any) -> Any:
        seen = np.zeros(8)
        for row in rows:
            seen[row] += 1
        return {"seen": seen}

    monkeypatch.setitem(conf, "s3", options)  # as fsspec's configuration has it
    data, model = [[0, 1, 2, 3], [4, 5, 6, 7]], {"seen": np.zeros(8)}
    with DeepDist(model, engine=SimulatedCluster(2, seed=1), progress=False) as dd:
        report = dd.train(data, counting, chunk_rows=1, checkpoint="s3://rows/run", every_s=1.0, keep=2)
    assert report.checkpoints is not None
    assert (report.checkpoints.failed, report.checkpoints.written > 2) == (0, True)
    files = s3fs.S3FileSystem(**options, skip_instance_cache=True).ls("rows/run", refresh=True)
    assert len(files) == 4, "two are kept, and no claim"
    with DeepDist.resume("s3://rows/run", engine=SimulatedCluster(2, seed=2), progress=False) as dd:
        dd.train(data, counting, checkpoint="s3://rows/run")
        assert (dd.model["seen"] == 1.0).all()
