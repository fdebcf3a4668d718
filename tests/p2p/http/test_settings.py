"""What a master's HTTP face may be told."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from gossip.errors import UsageError
from p2p.http.settings import Master, checked, drawn

TOKEN = "a-token-of-thirty-two-characters"


def test_without_a_master_nobody_listens() -> None:
    assert checked(None, None, "p2p") is None


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        (":5000", "127.0.0.1", 5000),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("localhost:65535", "localhost", 65535),
        ("[::1]:80", "::1", 80),
    ],
)
def test_on_loopback_a_master_may_ask_for_no_token(address: str, host: str, port: int) -> None:
    found = checked(address, False, "master")
    assert found == Master(address, token=False)
    assert found is not None
    assert (found.host, found.port, drawn(found).shown) == (host, port, None)
    assert checked(Master(address, token=False), None, "master") == found


@pytest.mark.parametrize("address", [":0", "[::1]:80", "0.0.0.0:0", "[::]:0", "10.1.2.3:5000", "some-host:5000"])
def test_a_token_is_drawn_where_none_is_given(address: str) -> None:
    tokens = {drawn(found).shown for _ in range(3) if (found := checked(address, None, "master"))}
    assert len(tokens) == 3
    assert all(token is not None and len(token) >= 40 for token in tokens)
    for given in (checked(Master(address, token=TOKEN), None, "master"), checked(address, TOKEN, "master")):
        assert given is not None
        assert drawn(given).shown == TOKEN
        assert TOKEN not in repr(given)


@pytest.mark.parametrize(
    ("master", "token", "mode", "message"),
    [
        (":5000", None, "p2p", r"master=':5000' with mode='p2p', expected mode='master'"),
        (Master(":5000"), None, "p2p", r"master=':5000' with mode='p2p'"),
        (None, TOKEN, "master", "token without master, expected both"),
        (Master(":0", token=TOKEN), TOKEN, "master", "token in DeepDist and in Master"),
        (":0", "short", "master", "token is not what was expected: 16 to 256"),
        (":0", "a token of several words", "master", "token is not what was expected"),
        (":0", "line\nbreaks-in-a-header", "master", "token is not what was expected"),
        (":0", 5, "master", "token is not what was expected"),
        (":0", True, "master", "token is not what was expected"),
        (None, False, "master", "token without master, expected both"),
        (Master(":0", token=False), TOKEN, "master", "token in DeepDist and in Master"),
        ("0.0.0.0:0", False, "master", r"token=False with master='0\.0\.0\.0:0', expected a token"),
        (Master("10.1.2.3:5000", token=False), None, "master", "others than this machine can reach that address"),
        ("5000", None, "master", "master='5000', expected \"host:port\""),
        ("host:", None, "master", "master='host:'"),
        (":65536", None, "master", "master=':65536'"),
        ("http://host:5000", None, "master", "master='http://host:5000'"),
        ("::1:80", None, "master", "master='::1:80'"),
        (5000, None, "master", "master is a int, expected a str"),
        (Master(":0", allow_pickle=1), None, "master", "allow_pickle=1"),  # type: ignore[arg-type]
        (Master(":0", update_bytes_max=0), None, "master", "update_bytes_max=0"),
        (Master(":0", connections_max=0), None, "master", "connections_max=0"),
    ],
    ids=map(str, range(22)),
)
def test_what_cannot_be_is_refused_by_name(master: Any, token: Any, mode: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        checked(master, token, mode)
    assert token is None or len(str(token)) < 8 or str(token) not in str(caught.value)


def test_without_h11_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'deepdist-p2p\[master\]'"):
        checked(":0", None, "master")


def test_the_largest_update_is_a_little_more_than_the_model() -> None:
    assert Master(":0").body_bytes_max(800) == 900 + (1 << 20)
    assert Master(":0", update_bytes_max=5).body_bytes_max(800) == 5
