"""Who may speak to a master: who shows its token. Where there is none, who is on this machine and no page of the web.

A page that a browser shows may send requests to loopback. So the name of the host has to be one of loopback's (a name
that was bent to it is not), and a post from a page of elsewhere is refused.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping

from p2p.http.messages import Refused

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
TOKEN_WANTED = "no token, or another one, expected the header Authorization: Bearer TOKEN, with dd.token of the master"
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="deepdist", Basic realm="deepdist: the token is the password"'}


def check(headers: Mapping[str, str], token: str | None, host: str, *, reads: bool) -> None:
    """Raise `Refused` for who may not. `host` is where the master listens; `reads`: the request changes nothing."""
    if token is None:
        _check_host(headers.get("host"), host)
    elif not _has(headers.get("authorization", ""), token, reads):
        raise Refused(401, TOKEN_WANTED, CHALLENGE)
    origin = headers.get("origin")
    if not reads and origin is not None and origin != f"http://{headers.get('host')}":
        raise Refused(403, f"a post from a page of {origin!r:.80}, expected none from a browser")


def _has(authorization: str, token: str, reads: bool) -> bool:
    """It takes the same time, whatever differs."""
    scheme, _, shown = authorization.partition(" ")
    if scheme.lower() == "basic" and reads:  # which a browser can be told by a person, and adds to posts unasked
        try:
            shown = base64.b64decode(shown.strip(), validate=True).decode().partition(":")[2]
        except ValueError:
            shown = ""
    elif scheme.lower() != "bearer":
        shown = ""
    return hmac.compare_digest(shown.strip().encode(), token.encode())


def _check_host(asked: str | None, host: str) -> None:
    if asked is None:
        return  # HTTP/1.0, which no browser speaks
    name, separator, port = asked.rpartition(":")
    if not separator or not port.isdigit():
        name = asked
    if name.lower() not in (*LOOPBACK_NAMES, host, f"[{host}]"):
        raise Refused(421, f"Host {asked!r:.80}, expected one of {', '.join(LOOPBACK_NAMES)}: there is no token")
