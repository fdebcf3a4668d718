"""Files and checkpoints in HDFS, by its REST protocol: fsspec's client, and a small server on loopback.

The server has what the client asks for of https://hadoop.apache.org/docs/stable/hadoop-project-dist/hadoop-hdfs/WebHDFS.html:
a name node that redirects what has contents to a data node, statuses, and errors as it words them. No cluster of Hadoop
was tried, and `hdfs://` by pyarrow was not, which needs libhdfs of a Hadoop. The client needs requests, which
`make test-extras` has.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p import DeepDist, SimulatedCluster
from p2p.data import read_csv, read_libsvm, read_text
from p2p.models.linear import LogisticRegression, fit

pytest.importorskip("requests", reason="requests is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.sockets]

ROWS = 3000
NAMES, DATA = "/webhdfs/v1", "/data"


class Nodes(BaseHTTPRequestHandler):
    """A name node and a data node in one."""

    protocol_version = "HTTP/1.1"
    server: Hdfs

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self._answer({"GETFILESTATUS": self._status, "LISTSTATUS": self._list, "OPEN": self._open})

    def do_PUT(self) -> None:
        self._answer({"CREATE": self._create, "MKDIRS": self._mkdirs, "RENAME": self._rename})

    def do_POST(self) -> None:
        self._answer({"APPEND": self._append})

    def do_DELETE(self) -> None:
        self._answer({"DELETE": self._delete})

    def _answer(self, operations: Any) -> None:
        parts = urlsplit(self.path)
        self.options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        operation = self.options["op"].upper()
        self.on_data_node = parts.path.startswith(DATA)
        self.place = unquote(parts.path.removeprefix(DATA if self.on_data_node else NAMES)).rstrip("/") or "/"
        with self.server.lock:
            self.server.asked.add((operation, self.on_data_node))
            operations[operation]()

    def _send(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _say(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode())

    def _refuse(self, code: int, exception: str, message: str) -> None:
        self._send(code, json.dumps({"RemoteException": {"exception": exception, "message": message}}).encode())

    def _redirect(self) -> None:
        port = self.server.server_address[1]
        self._send(307, Location=f"http://127.0.0.1:{port}{DATA}{quote(self.place)}?{urlsplit(self.path).query}")

    def _missing(self) -> None:
        self._refuse(404, "FileNotFoundException", f"File {self.place} does not exist.")

    def _of(self, place: str, suffix: str) -> dict[str, Any]:
        content = self.server.files.get(place)
        kind = "DIRECTORY" if content is None else "FILE"
        return {"pathSuffix": suffix, "type": kind, "length": len(content or b""), "modificationTime": 0}

    def _status(self) -> None:
        if self.place in self.server.files or self.place in self.server.folders:
            self._say({"FileStatus": self._of(self.place, "")})
        else:
            self._missing()

    def _list(self) -> None:
        if self.place in self.server.files:
            self._say({"FileStatuses": {"FileStatus": [self._of(self.place, "")]}})
        elif self.place not in self.server.folders:
            self._missing()
        else:
            within = [each for each in (*self.server.files, *self.server.folders) if each != "/"]
            here = [each for each in sorted(within) if (each.rpartition("/")[0] or "/") == self.place]
            self._say({"FileStatuses": {"FileStatus": [self._of(each, each.rpartition("/")[2]) for each in here]}})

    def _open(self) -> None:
        if self.place not in self.server.files:
            self._missing()
        elif not self.on_data_node:
            self._redirect()
        else:
            start = int(self.options.get("offset", 0))
            content = self.server.files[self.place]
            self._send(200, content[start : start + int(self.options.get("length", len(content)))])

    def _create(self) -> None:
        if self.place.startswith("/locked/"):
            self._refuse(403, "AccessControlException", f"Permission denied: user=dr.who, access=WRITE, {self.place}")
        elif not self.on_data_node:
            self._redirect()
        else:
            self.server.add_folders(self.place.rpartition("/")[0])
            self.server.files[self.place] = self.body
            self._send(201)

    def _append(self) -> None:
        if self.place not in self.server.files:
            self._missing()
        elif not self.on_data_node:
            self._redirect()
        else:
            self.server.files[self.place] += self.body
            self._send(200)

    def _mkdirs(self) -> None:
        self.server.add_folders(self.place)
        self._say({"boolean": True})

    def _rename(self) -> None:
        self.server.files[self.options["destination"]] = self.server.files.pop(self.place)
        self._say({"boolean": True})

    def _delete(self) -> None:
        self._say({"boolean": self.server.files.pop(self.place, None) is not None})


class Hdfs(ThreadingHTTPServer):
    """Files in memory."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Nodes)
        self.lock = threading.Lock()
        self.files: dict[str, bytes] = {}
        self.folders = {"/"}
        self.asked: set[tuple[str, bool]] = set()
        """(operation, of the data node)."""

    @property
    def url(self) -> str:
        return f"webhdfs://127.0.0.1:{self.server_address[1]}"

    def add_folders(self, place: str) -> None:
        while place:
            self.folders.add(place)
            place = place.rpartition("/")[0]

    def put(self, place: str, content: str) -> None:
        self.add_folders(place.rpartition("/")[0])
        self.files[place] = content.encode()


@pytest.fixture
def hdfs() -> Iterator[Hdfs]:
    with Hdfs() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def lines() -> str:
    chance = np.random.default_rng(0)
    return "".join(f"{chance.integers(2)} 1:{value:.3f}\n" for value in chance.normal(size=ROWS))


def test_rows_are_read_once_by_ranges(hdfs: Hdfs) -> None:
    hdfs.put("/rows/a b.libsvm", lines())
    hdfs.put("/rows/b.libsvm", lines())
    hdfs.put("/rows/_SUCCESS", "")
    parts = read_libsvm(f"{hdfs.url}/rows/a b.libsvm", 1, partitions=7)
    assert len(parts) == 7
    assert sum(len(y) for part in parts for _, y in part()) == ROWS
    both = [line for part in read_text(f"{hdfs.url}/rows/*") for line in part()]
    assert both == 2 * lines().splitlines()
    assert {("OPEN", False), ("OPEN", True), ("LISTSTATUS", False), ("GETFILESTATUS", False)} <= hdfs.asked


def test_processes_train_on_files_of_hdfs(hdfs: Hdfs) -> None:
    hdfs.put("/rows/a.libsvm", lines())
    data = read_libsvm(f"{hdfs.url}/rows/a.libsvm", 1, partitions=4)
    assert fit(LogisticRegression(1), data, peers=2, progress=False).rows % ROWS == 0


def test_what_cannot_be_read_is_told(hdfs: Hdfs) -> None:
    hdfs.put("/rows/a.csv", "x,y\n1,2\n1,z\n")
    with pytest.raises(UsageError, match=r"no file at 'webhdfs://.*/none', expected a csv file"):
        read_csv(f"{hdfs.url}/none", "y")
    with pytest.raises(UsageError, match=r"/rows' is a folder, expected a csv file"):
        read_csv(f"{hdfs.url}/rows", "y")
    with pytest.raises(UsageError, match=r"/rows/a\.csv', line 3 \(byte 8\): column 'y' is 'z'"):
        read_csv(f"{hdfs.url}/rows/a.csv", "y", partitions=1)[0]().__next__()


def test_a_server_that_is_not_there_is_told(hdfs: Hdfs) -> None:
    gone = Hdfs()
    gone.server_close()
    with pytest.raises(UsageError, match=r"'webhdfs://.*/a\.csv' cannot be read, expected a csv file.*refused"):
        read_csv(f"{gone.url}/a.csv", "y")
    with pytest.raises(UsageError, match=r"cannot be written to \(ConnectionError: .*refused"):
        trained({"seen": np.zeros(8)}, f"{gone.url}/run")


def test_an_address_without_a_host_is_told() -> None:
    with pytest.raises(UsageError, match=r"'webhdfs:///a\.csv' cannot be read with storage_options={}: .*host"):
        read_csv("webhdfs:///a.csv", "y")
    with pytest.raises(UsageError, match=r"webhdfs:///run, which fsspec does not open: .*host"):
        trained({"seen": np.zeros(8)}, "webhdfs:///run")


def counting(model: Any, rows: Any) -> Any:
    seen = np.zeros(8)
    for row in rows:
        seen[row] += 1
    return {"seen": seen}


def trained(model: Any, where: str) -> Any:
    with DeepDist(model, engine=SimulatedCluster(2, seed=1), progress=False) as dd:
        return dd.train([[0, 1, 2, 3], [4, 5, 6, 7]], counting, chunk_rows=1, checkpoint=where, every_s=1.0, keep=2)


def test_checkpoints_are_written_and_gone_on_with(hdfs: Hdfs) -> None:
    where = f"{hdfs.url}/runs/7"
    report = trained({"seen": np.zeros(8)}, where)
    assert (report.checkpoints.failed, report.checkpoints.written > 2) == (0, True)
    assert len(hdfs.files) == 4, "two are kept, and no claim"
    newest = max(name for name in hdfs.files if name.endswith(".json"))
    hdfs.files[newest] = hdfs.files[newest][:100]  # torn by a kill
    with pytest.warns(UserWarning, match="the newest checkpoint cannot be used"):
        resumed = DeepDist.resume(where, engine=SimulatedCluster(2, seed=2), progress=False)
    with resumed as dd:
        dd.train([[0, 1, 2, 3], [4, 5, 6, 7]], counting, checkpoint=where)
        assert (dd.model["seen"] == 1.0).all()
    assert {("CREATE", True), ("APPEND", True), ("DELETE", False), ("MKDIRS", False)} <= hdfs.asked


def test_a_folder_that_may_not_be_written_to_is_told_before_the_training(hdfs: Hdfs) -> None:
    with pytest.raises(UsageError, match=r"cannot be written to \(PermissionError: Permission denied: user=dr\.who"):
        trained({"seen": np.zeros(8)}, f"{hdfs.url}/locked/run")
    assert hdfs.files == {}
