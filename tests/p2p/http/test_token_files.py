"""The token of a master on loopback: who finds it, and who does not."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p import fetch_model, send_gradient
from p2p.http import client, token_files
from p2p.http.client import RefusedError

Serve = Callable[..., Any]
ONES = {"w": np.ones((2, 3), np.float32)}
TOKEN = "a-token-of-thirty-two-characters"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temporary folder of a test, and where tokens are below it."""
    with tempfile.TemporaryDirectory(prefix="dd-", dir="/tmp") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        yield Path(short) / f"deepdist-{os.getuid()}"
        while client._links.of:
            client._links.of.popitem()[1]._connection.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", ""])
def test_a_client_of_this_user_finds_what_was_drawn(serve: Serve, folder: Path, host: str) -> None:
    serving = serve(token=None)
    serving.train()
    (path,) = folder.iterdir()
    assert path.name == f"http-{serving.server.address}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == serving.server.settings.shown
    assert serving.ask("GET", "/model").status == 401
    assert serving.ask("POST", "/update", b"").status == 401
    address = f"{host}:{serving.address[1]}"
    assert fetch_model(address)["w"].shape == (2, 3)
    assert send_gradient(ONES, address)
    serving.server.close()
    assert list(folder.iterdir()) == []


def test_it_is_found_by_the_address_that_was_reached_whatever_it_was_called(serve: Serve, folder: Path) -> None:
    try:
        serving = serve({"w": np.zeros(1)}, token=None, address="[::1]:0")
    except UsageError:
        pytest.skip("this machine has no IPv6")
    assert [path.name for path in folder.iterdir()] == [f"http-[::1]:{serving.address[1]}"]
    assert fetch_model(serving.server.address).version == 0
    other = serve({"w": np.ones(2)}, token=None, address=f"127.0.0.1:{serving.address[1]}")
    assert other.server.settings.shown != serving.server.settings.shown
    assert fetch_model(other.server.address)["w"].tolist() == [1.0, 1.0]


def test_a_token_of_ones_own_is_left_nowhere_and_one_that_is_given_is_shown(serve: Serve, folder: Path) -> None:
    serving = serve(token=TOKEN)
    assert not folder.exists()
    with pytest.raises(RefusedError, match=r"Bearer TOKEN, with dd\.token of the master .*token= has it") as caught:
        fetch_model(serving.server.address)
    assert caught.value.status == 401
    found = serve(token=None)
    with pytest.raises(RefusedError, match="no token, or another one"):
        fetch_model(found.server.address, token=TOKEN)
    assert fetch_model(serving.server.address, token=TOKEN).version == 0


def test_the_next_master_of_an_address_is_known_by_its_own_token(serve: Serve, folder: Path) -> None:
    first = serve(token=None)
    address = first.server.address
    fetch_model(address)
    (path,) = folder.iterdir()
    stale = path.read_text()
    first.server.close()
    path.write_text(stale)  # as one that was killed leaves it
    second = serve(token=None, address=address)
    assert path.read_text() == second.server.settings.shown != stale
    fetch_model(address)
    path.write_text(stale)
    second.server.close()
    assert path.read_text() == stale, "it is another master's by now"


def test_a_token_that_comes_a_moment_later_is_looked_for_again(
    serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = serve(token=None)
    serving.train()
    real, looked = token_files.find, []

    def late(address: str) -> str | None:
        looked.append(address)
        return real(address) if len(looked) > 1 else None

    monkeypatch.setattr(client, "find", late)
    assert send_gradient(ONES, serving.server.address)
    assert looked == [serving.server.address] * len(looked)


def test_a_master_that_asks_for_nothing_leaves_nothing(serve: Serve, folder: Path) -> None:
    serving = serve(token=False)
    assert fetch_model(serving.server.address).version == 0
    assert not folder.exists()


def test_where_it_cannot_be_left_nobody_listens(
    serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "none"))
    with pytest.raises(UsageError, match="the master's token could not be left in the temporary folder"):
        serve(token=None)


def test_a_folder_that_others_can_enter_is_not_believed(serve: Serve, folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = token_files.address_of(listener.getsockname())
        (folder / f"http-{address}").write_text(TOKEN)
        assert token_files.find(address) is None
        token_files.leave(address, TOKEN[::-1])
        assert token_files.find(address) == TOKEN[::-1]
        assert (folder / f"http-{address}").read_text() == TOKEN, "it is left alone"
