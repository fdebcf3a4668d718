"""Where a master on loopback leaves the token that was drawn for it: a file that only its own user can read.

    the private folder of this user / http-127.0.0.1:5000

A client of this user has it from there, once it is connected: the name is of the address that it has come to, however
that was spelled. A master that is killed leaves its file behind, with a token that opens nothing any more; the next one
of this address takes its place.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from typing import Any

from gossip.errors import UsageError
from p2p.agent import local_socket

TOKEN_BYTES_MAX = 256


def address_of(name: Any) -> str:
    """What a socket calls itself, or the other end, as "host:port"."""
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def leave(address: str, token: str) -> str:
    """Write the token of the master at `address`; returns the path. `UsageError` where that cannot be."""
    try:
        folder = local_socket.private_folder()
        descriptor, made = tempfile.mkstemp(prefix="http-new-", dir=folder)  # for this user only, whatever the umask
        with os.fdopen(descriptor, "w") as file:
            file.write(token)
        path = os.path.join(folder, _name(address))
        os.replace(made, path)
    except OSError as error:
        raise UsageError(
            f"the master's token could not be left in the temporary folder ({error}), where clients look for it: "
            "give token=, or set TMPDIR to a folder that you can write"
        ) from None
    return path


def find(address: str) -> str | None:
    """The token of the master at `address`, if one of this user has left it."""
    path = local_socket.private_file(_name(address))
    if path is None:
        return None
    try:
        with open(path) as file:
            return file.read(TOKEN_BYTES_MAX) or None
    except (OSError, UnicodeDecodeError):
        return None


def take_back(address: str, token: str) -> None:
    """Remove what was left, unless it is another master's by now."""
    path = local_socket.private_file(_name(address))
    if path is not None and find(address) == token:
        with suppress(OSError):  # the whole folder may be gone
            os.unlink(path)


def _name(address: str) -> str:
    return f"http-{address}"
