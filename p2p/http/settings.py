"""What a master's HTTP face is told: where it listens, who may speak to it, and how much it takes.

A token is drawn where none is given. Only on loopback may a master go without (`token=False`).
"""

from __future__ import annotations

import importlib.util
import re
import secrets
from dataclasses import dataclass, field, replace
from typing import Literal

from gossip.arguments import flag, instance, integer
from gossip.errors import UsageError
from gossip.zmq.sockets import is_loopback

LOOPBACK = "127.0.0.1"
PORT_MAX = 65535
TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,256}")
"""Of what RFC 6750 allows in a bearer token; fewer characters could be guessed."""
ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9.-]*):(?P<port>\d{1,5})")
BODY_SLACK_BYTES = 1 << 20
"""Of an update beside its numbers: names of arrays."""


@dataclass(frozen=True)
class Master:
    """Where and how a master listens to other processes: `DeepDist(model, "master", master=Master("host:5000"))`."""

    address: str
    """"host:port"; without a host 127.0.0.1, and port 0 for any free one."""
    token: str | Literal[False] | None = field(default=None, repr=False)
    """What others have to show; None: one is drawn (`dd.token`), which on loopback clients of this user find by
    themselves. False: nobody has to, on loopback."""
    allow_pickle: bool = False
    """Updates may come as pickles, too. Opening one runs code of whoever sent it."""
    update_bytes_max: int | None = None
    """Larger updates are refused; None: an eighth more than the model, for whole arrays of its dtypes."""
    connections_max: int = 64
    """At the same time; further ones are told to come later."""

    @property
    def shown(self) -> str | None:
        """What others have to show, once it is drawn; None if nothing."""
        return self.token or None

    @property
    def host(self) -> str:
        """Name or number of the interface."""
        return _parts(self.address)[0]

    @property
    def port(self) -> int:
        """0 for any free one."""
        return _parts(self.address)[1]

    def body_bytes_max(self, model_bytes: int) -> int:
        """The largest update for a model of so many bytes."""
        if self.update_bytes_max is not None:
            return self.update_bytes_max
        return model_bytes + model_bytes // 8 + BODY_SLACK_BYTES


def checked(master: str | Master | None, token: str | Literal[False] | None, mode: str) -> Master | None:
    """The settings of `DeepDist(master=..., token=...)`.

    Raises:
        UsageError: they cannot be, or the package that they need is not installed.
    """
    if master is None:
        if token is not None:
            raise UsageError('token without master, expected both: master="host:port" is where it is asked for')
        return None
    if mode != "master":
        raise UsageError(
            f"master={_shown(master)!r} with mode={mode!r}, expected mode='master': without a master nobody listens"
        )
    settings = master if isinstance(master, Master) else Master(instance("master", master, str))
    if token is not None:
        if settings.token is not None:
            raise UsageError("token in DeepDist and in Master, expected one of them")
        settings = replace(settings, token=token)
    _check(settings)
    if importlib.util.find_spec("h11") is None:
        raise UsageError("master needs the package h11, which is not installed: pip install 'deepdist-p2p[master]'")
    return settings


def drawn(settings: Master) -> Master:
    """The same with a token, unless there is one or none is wanted."""
    return replace(settings, token=secrets.token_urlsafe(32)) if settings.token is None else settings


def _check(settings: Master) -> None:
    _parts(instance("address", settings.address, str))
    flag("allow_pickle", settings.allow_pickle)
    integer("connections_max", settings.connections_max, 1)
    if settings.update_bytes_max is not None:
        integer("update_bytes_max", settings.update_bytes_max, 1)
    token = settings.token
    if token is False:
        if not is_loopback(settings.host):
            raise UsageError(
                f"token=False with master={settings.address!r}, expected a token, or None for one that is drawn: "
                "others than this machine can reach that address"
            )
    elif token is not None and not (isinstance(token, str) and TOKEN.fullmatch(token)):
        raise UsageError(
            "token is not what was expected: 16 to 256 letters, digits or ._~+/=-, such as secrets.token_urlsafe(), or "
            "None for one that is drawn"
        )


def _parts(address: str) -> tuple[str, int]:
    found = ADDRESS.fullmatch(address)
    if found is None or int(found["port"]) > PORT_MAX:
        raise UsageError(f'master={address!r:.100}, expected "host:port", such as "127.0.0.1:5000" or ":5000"')
    return found["host"].strip("[]") or LOOPBACK, int(found["port"])


def _shown(master: object) -> object:
    return master.address if isinstance(master, Master) else master
