"""A master's training in which other processes take part over HTTP, and the faults of the first DeepDist's server."""

from __future__ import annotations

import pickle
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2p import DeepDist, Master, Patience, UsageError, fetch_model, send_gradient
from p2p.http.client import RefusedError

pytestmark = [pytest.mark.slow, pytest.mark.sockets, pytest.mark.usefixtures("place")]
TIMEOUT_S = 120.0

STRANGER = """
import sys, time
import numpy as np
from p2p import fetch_model, send_gradient
from p2p.http.client import RefusedError

master, token, updates = sys.argv[1], sys.argv[2] or None, int(sys.argv[3])
sent = 0
give_up = time.monotonic() + 120
while sent < updates and time.monotonic() < give_up:
    try:
        model = fetch_model(master, token=token)
        sent += send_gradient({"w": np.full(3, 100.0)}, master, token=token, worker="stranger")
    except RefusedError as error:
        if error.status != 409:  # no training runs yet
            raise
        time.sleep(0.02)
print(sent, "pyspark" in sys.modules, "zmq" in sys.modules)
"""


def gradient(model: Any, rows: Iterator[Any]) -> dict[str, Any]:
    return {"w": np.full(3, float(len(list(rows))))}


def until(path: Path) -> Any:
    """A gradient that ends when this file is there."""

    def gradient(model: Any, rows: Iterator[Any]) -> dict[str, Any]:
        give_up = time.monotonic() + TIMEOUT_S
        while not path.exists() and time.monotonic() < give_up:
            time.sleep(0.01)
        return {"w": np.full(3, float(len(list(rows))))}

    return gradient


def descent(model: Any, update: Any) -> None:
    model["w"] += update["w"]


def stranger(dd: DeepDist[Any], updates: int) -> subprocess.Popen[str]:
    assert dd.master is not None
    token = dd.token if dd.master.startswith("0.0.0.0") else None  # on loopback it is found
    return subprocess.Popen(
        [sys.executable, "-c", STRANGER, dd.master, token or "", str(updates)], stdout=subprocess.PIPE, text=True
    )


def beside(dd: DeepDist[Any], ended: Path, what: Any) -> Any:
    """Train while `what(master)` runs in another thread; returns (report, what it returned, or raised)."""
    assert dd.master is not None
    found: list[Any] = []

    def run() -> None:
        try:
            give_up = time.monotonic() + TIMEOUT_S
            while not dd._server.face.gate.is_open and time.monotonic() < give_up:  # type: ignore[union-attr]
                time.sleep(0.01)
            found.append(what(dd.master))
        except Exception as error:  # noqa: BLE001 - the test looks at it
            found.append(error)
        finally:
            ended.touch()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        report = dd.train([[1, 2]], until(ended), descent)
    finally:
        thread.join()
    return report, found[0]


@pytest.mark.parametrize("address", [":0", "0.0.0.0:0"], ids=["loopback", "anywhere"])
def test_a_process_of_its_own_takes_part_in_the_training_of_the_workers(address: str, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    with DeepDist({"w": np.zeros(3)}, "master", master=address, peers=2, progress=False) as dd:
        assert dd.token is not None
        with stranger(dd, 20) as process:
            watcher = threading.Thread(target=lambda: (process.wait(TIMEOUT_S), ended.touch()))
            watcher.start()
            report = dd.train([[1, 2]] * 4, until(ended), descent)
            watcher.join()
            assert process.stdout is not None
            assert process.stdout.read().split() == ["20", "False", "False"]
        assert dd.model["w"].tolist() == [4 * 2.0 + 20 * 100.0] * 3
        assert (report.updates, report.updates_lost) == (24, 0)
        assert dd._server is not None
        assert dd._server.face.status()["applied"] == 20


def test_the_result_is_served_between_two_trainings_and_both_count(tmp_path: Path) -> None:
    with DeepDist({"w": np.zeros(3)}, "master", master=":0", peers=1, progress=False) as dd:
        assert dd.master is not None
        before = fetch_model(dd.master)
        assert (before.version, before["w"].tolist()) == (0, [0.0, 0.0, 0.0])
        dd.train([[1, 2]], gradient, descent)
        after = fetch_model(dd.master)
        assert (after.version, after["w"].tolist()) == (1, [2.0, 2.0, 2.0])
        dd.model["w"][:] = 50.0
        written = fetch_model(dd.master)
        assert (written.version, written["w"].tolist()) == (1, [50.0, 50.0, 50.0])
        _, seen = beside(dd, tmp_path / "ended", fetch_model)
        assert (seen.version, seen["w"].tolist()) == (2, [50.0, 50.0, 50.0]), "what was written counts as one"
        assert fetch_model(dd.master)["w"].tolist() == [52.0, 52.0, 52.0]
        address = dd.master
    with pytest.raises(ConnectionRefusedError):
        fetch_model(address, timeout_s=0.1)


def test_the_best_model_is_what_is_served_after_an_early_stop() -> None:
    worth = iter([1.0, 5.0, *[0.0] * 100])
    with DeepDist({"w": np.zeros(3)}, "master", master=":0", peers=1, progress=False) as dd:
        dd.train(
            [[1]] * 40,
            gradient,
            descent,
            evaluate=lambda model: next(worth),
            evaluate_every_s=0.05,
            stop_when=Patience("value", rounds=2, mode="max"),
        )
        assert dd.master is not None
        assert fetch_model(dd.master)["w"].tolist() == dd.model["w"].tolist()


def test_a_session_that_resumes_may_listen_as_well(tmp_path: Path) -> None:
    with DeepDist({"w": np.zeros(3)}, "master", peers=1, progress=False) as dd:
        assert (dd.master, dd.token) == (None, None)
        dd.train([[1]], gradient, descent, checkpoint=tmp_path)
    with DeepDist.resume(tmp_path, master=":0", peers=1, progress=False) as dd:
        assert dd.master is not None
        assert fetch_model(dd.master)["w"].tolist() == [1.0, 1.0, 1.0]


def test_a_master_without_mode_master_is_refused_and_a_taken_port_leaves_the_model_free() -> None:
    model = {"w": np.zeros(3)}
    with pytest.raises(UsageError, match="master=':0' with mode='p2p', expected mode='master'"):
        DeepDist(model, master=":0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UsageError, match=f"master='{address}' cannot be listened on"):
            DeepDist(model, "master", master=address).__enter__()
    with DeepDist(model, "master", master=Master(address), progress=False) as dd:
        assert dd.master == address


# ------------------------------------------------------- faults of the first DeepDist's server, each by its name


def test_no_code_is_executed_from_bytes(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Harm:
        def __reduce__(self) -> Any:
            return Path.touch, (canary,)

    def attack(master: str) -> list[int]:
        statuses = []
        for kind in ("application/deepdist", "application/x-safetensors", "text/plain", "application/x-pickle"):
            request = urllib.request.Request(
                f"http://{master}/update", pickle.dumps(Harm(), 2), {"Content-Type": kind}, method="POST"
            )
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=TIMEOUT_S)
            statuses.append(caught.value.code)
            caught.value.close()
        return statuses

    with DeepDist({"w": np.zeros(3)}, "master", master=":0", token=False, peers=1, progress=False) as dd:
        _, statuses = beside(dd, tmp_path / "ended", attack)
        assert statuses == [415] * 4
        assert not canary.exists()
        assert dd.model["w"].tolist() == [2.0, 2.0, 2.0]


def test_there_is_no_debug_console_and_no_shutdown(tmp_path: Path) -> None:
    with DeepDist({"w": np.zeros(3)}, "master", master=":0", token=False, peers=1, progress=False) as dd:
        assert dd.master is not None
        for path in ("console", "shutdown", "?__debugger__=yes&cmd=resource&f=style.css", "%2e%2e/console"):
            for body in (None, b"{}"):
                request = urllib.request.Request(f"http://{dd.master}/{path}", body)
                try:
                    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                        told, status = answer.read(), 200
                except urllib.error.HTTPError as error:
                    told, status = error.read(), error.code
                    error.close()
                assert status in (404, 405) or b"no training runs" in told.lower(), (
                    "the page takes no notice of a query"
                )
                assert b"traceback" not in told.lower()
                assert b"debugger" not in told
        assert fetch_model(dd.master).version == 0, "it is still there"


def test_the_served_model_goes_on_when_a_worker_fetches_it_and_sends_nothing(tmp_path: Path) -> None:
    def take_part(master: str) -> list[tuple[int, float]]:
        seen = []
        for _ in range(5):
            for _ in range(3):  # these take the model, and have nothing to say
                model = fetch_model(master)
                send_gradient({}, master)
            seen.append((model.version, float(model["w"][0])))
            send_gradient({"w": np.ones(3)}, master)
        return seen

    with DeepDist({"w": np.zeros(3)}, "master", master=":0", peers=1, progress=False) as dd:
        _, seen = beside(dd, tmp_path / "ended", take_part)
        assert seen == [(number, float(number)) for number in range(5)]


def test_an_exception_of_descent_leaves_no_lock_held() -> None:
    def unhurried(model: Any, rows: Iterator[Any]) -> None:
        time.sleep(0.05)

    def fails_on_request(model: Any, update: Any) -> None:
        if update["w"][0] < 0:
            raise ZeroDivisionError("by hand")
        model["w"] += update["w"]

    told: list[Any] = []

    def spoil(master: str) -> None:
        give_up = time.monotonic() + TIMEOUT_S
        while time.monotonic() < give_up:
            try:
                send_gradient({"w": np.full(3, -1.0)}, master, worker="the spoiler")
            except RefusedError as error:
                if error.status != 409:
                    told.append(error)
                    return
            time.sleep(0.01)

    with DeepDist({"w": np.zeros(3)}, "master", master=":0", peers=1, progress=False) as dd:
        assert dd.master is not None
        thread = threading.Thread(target=spoil, args=(dd.master,))
        thread.start()
        with pytest.raises(ZeroDivisionError, match="by hand") as caught:
            dd.train([[1]] * 1000, unhurried, fails_on_request)
        thread.join()
        assert told[0].status == 500, told
        assert "for an update of the spoiler" in caught.value.__notes__[0]
        assert "ZeroDivisionError: by hand" in str(told[0])
        assert fetch_model(dd.master)["w"].tolist() == [0.0, 0.0, 0.0]
        dd.train([[1]], gradient, fails_on_request)
        assert fetch_model(dd.master)["w"].tolist() == [1.0, 1.0, 1.0]


def test_a_post_that_is_tried_again_applies_once_also_in_the_next_training(tmp_path: Path) -> None:
    def post_twice(master: str) -> list[bool]:
        return [send_gradient({"w": np.full(3, 10.0)}, master, unit="the same") for _ in range(2)]

    with DeepDist({"w": np.zeros(3)}, "master", master=":0", peers=1, progress=False) as dd:
        assert beside(dd, tmp_path / "first", post_twice)[1] == [True, False]
        assert beside(dd, tmp_path / "second", post_twice)[1] == [False, False]
        assert dd.model["w"].tolist() == [2 + 10.0 + 2] * 3
