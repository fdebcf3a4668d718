"""Warnings: each once per session, and with what to do about it."""

import logging
import os
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gossip.messages import PeerId
from p2p import DeepDist, DeepDistWarning, SimulatedCluster
from p2p.agent.registrar_messages import Hello
from p2p.agent.replica import SHARED_MEMORY_SPARE_BYTES, shortage
from p2p.caution import Cautions
from p2p.driver.registrar import Registrar


def hello(host: str, pid: int, lacking: str | None) -> Hello:
    """What an agent says first."""
    return Hello(
        peer=PeerId(f"{host}{pid}"),
        run="run",
        role="peer",
        name=f"{host}:{pid}",
        pid=pid,
        adverts="",
        pulls="",
        shortage=lacking,
    )


def test_a_caution_is_given_once_per_session_by_name() -> None:
    cautions = Cautions()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cautions.give({"one": "first", "two": "second"})
        cautions.give({"one": "in other words", "three": "third"})
    assert [str(warning.message) for warning in caught] == ["first", "second", "third"]
    assert {warning.filename for warning in caught} == {__file__}


ESCAPES = "\x1b[2J\x1b]0;title\x07 \x9b31m \r\b\x00 \u202e\ud800"


def test_what_others_wrote_moves_no_cursor_where_it_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.warns(DeepDistWarning) as caught:
        Cautions().give({"one": f"naïve 模型\n\tof {ESCAPES}"})
    expected = r"\x1b[2J\x1b]0;title\x07 \x9b31m \r\x08\x00 \u202e\ud800"
    assert str(caught[0].message) == f"naïve 模型\n\tof {expected}"
    for name in ("p2p", "p2p.agent"):
        logging.getLogger(name).warning("%s: %d", ESCAPES, 3)
        assert caplog.records[-1].getMessage() == f"{expected}: 3"


def test_a_replica_and_an_update_must_fit_into_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    room = SHARED_MEMORY_SPARE_BYTES + 2 * (4096 + 50_000_000)
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=room // 4096, f_frsize=4096))
    assert shortage(49_990_000) is None
    text = shortage(100_000_000)
    assert text is not None
    assert "/dev/shm has 117 MB free, expected 217 MB for the replica and an update" in text
    assert "docker run --shm-size=1g" in text


def test_a_host_without_shared_memory_lacks_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    assert shortage(10**15) is None


def test_what_a_host_lacks_is_said_once_however_many_agents_it_has() -> None:
    registrar = Registrar("run")
    try:
        for said in (hello("a", 1, "little"), hello("a", 2, "less"), hello("b", 3, None), hello("c", 4, "nothing")):
            registrar._on_message(b"", said)
        assert list(registrar.shortages().values()) == ["on a, little", "on c, nothing"]
    finally:
        registrar.close()


@pytest.mark.slow
@pytest.mark.sockets
def test_a_training_warns_in_the_line_that_calls_it(place: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Registrar, "shortages", lambda registrar: {"shared memory of here": "too little"})
    with DeepDist({"w": np.zeros(1)}, peers=1) as dd, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dd.train([[1]], lambda model, rows: None)
        dd.train([[1]], lambda model, rows: None)
    (warning,) = [warning for warning in caught if warning.category is DeepDistWarning]
    assert str(warning.message) == "too little"
    assert warning.filename == __file__


def count(model: Any, rows: Any) -> Any:
    return {"w": np.full(2, float(len(list(rows))))}


def leave(model: Any, update: Any) -> None:
    """A descent without effect."""


@pytest.mark.parametrize(
    "session",
    [{"engine": SimulatedCluster(2)}, {"peers": 1}, {"peers": 1, "mode": "master"}, {"peers": 1, "discipline": "mix"}],
    ids=["simulated", "p2p", "master", "mix"],
)
def test_what_workers_and_master_notice_reaches_the_line_that_trains(place: object, session: dict[str, Any]) -> None:
    with DeepDist({"w": np.zeros(2)}, progress=False, **session) as dd, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dd.train([[1], [2]], count, leave)
        dd.train([[1], [2]], count, leave)
    (warning,) = (each for each in caught if each.category is DeepDistWarning)
    assert str(warning.message).startswith("an update that was not zero changed none of the model's arrays ('w')")
    assert warning.filename == __file__


def test_a_function_that_uses_the_model_it_was_not_given_is_told_of() -> None:
    w = np.zeros(2)
    model = {"w": w}

    def by_model(_: Any, rows: Any) -> Any:
        return {"w": model["w"] + len(list(rows))}

    def by_array(_: Any, update: Any) -> None:
        w[:] += update["w"]

    with DeepDist(model, engine=SimulatedCluster(1), progress=False) as dd:
        with pytest.warns(DeepDistWarning, match="gradient uses 'model', which is of the model given to DeepDist"):
            dd.train([[1]], by_model)
        with pytest.warns(DeepDistWarning, match="descent uses 'w', which is of the model given to DeepDist"):
            dd.train([[1]], count, by_array)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            dd.train([[1]], count)
