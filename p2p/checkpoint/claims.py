"""Who writes checkpoints to a place: a program leaves a claim there while it trains, so that two notice each other.

    a claim      writer-<token>.json: whose process it is, since when, and after which others it began
    in order     write the own claim -> look for others -> train -> remove it

There is no lock, which many file systems and all object stores lack. Of two programs that begin at the same time at
least one sees the claim of the other, and neither trains that does.

    of this machine      it counts as long as its process lives
    of another one       as long as something was written not long ago. Who goes on with its checkpoints cannot know
                         whether it is gone: it warns, and the other stops writing if it lives after all
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import msgspec
from msgspec import Struct

from gossip.errors import UsageError
from p2p.caution import warn
from p2p.checkpoint.store import Store

log = logging.getLogger("p2p")

NAME = re.compile(r"writer-([0-9a-f]{8})\.json")
RECENT_TIMES, RECENT_S = 3.0, 60.0
"""A program of another machine that has written nothing for so many times its `every_s`, and so long, is gone."""


class Claim(Struct, frozen=True, kw_only=True):
    """Of one program, while it trains."""

    lineage: str
    """Of the checkpoints that it writes."""
    host: str
    machine: str
    """Where its number of a process means something: one boot of a system, and within that a namespace."""
    pid: int
    process: str
    """Tells the process from a later one of the same number."""
    program: str
    began: float
    """By the clock of its machine, in seconds since 1970."""
    every_s: float
    after: tuple[str, ...] = ()
    """Tokens of claims that it found, of programs that it took for gone."""

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.began, UTC).isoformat(timespec="seconds")
        return f"{self.program} (process {self.pid} on {self.host}, since {since})"

    @property
    def lives(self) -> bool | None:
        """Its process is there; None if it is of another machine."""
        return _process(self.pid) == self.process if self.machine == _machine() else None


@dataclass
class Claims:
    """Those of one place, for a program that is to write there."""

    store: Store
    path: str
    lineage: str
    every_s: float
    token: str = field(default_factory=partial(secrets.token_hex, 4))

    @property
    def name(self) -> str:
        """Of the own claim."""
        return f"writer-{self.token}.json"

    def take(self, last_written: float) -> None:
        """Say that this program writes here. `last_written`: when the newest checkpoint was, in seconds since 1970.

        Raises:
            UsageError: nothing can be written here, or another program does; the own claim is gone then.
        """
        try:
            self._write(())
            after = [token for token, claim in self._others().items() if self._is_over(claim, last_written)]
            if after:
                self._write(tuple(after))  # before the others go, so that who lives after all finds it
                for token in after:
                    self.store.remove(f"writer-{token}.json")
        except BaseException:
            self.give_back()
            raise

    def check(self) -> None:
        """Raise `UsageError` if another program has gone on with the checkpoints of this one."""
        for claim in self._others().values():
            if self.token in claim.after:
                raise UsageError(
                    f"{claim} goes on with these checkpoints, and took this program for gone: this one writes none any "
                    "more. End one of the two"
                )

    def give_back(self) -> None:
        """This program writes nothing any more."""
        try:
            self.store.remove(self.name)
        except Exception as error:  # noqa: BLE001 - whoever comes next sees that the process is gone
            log.info("%s at %s was not removed: %s", self.name, self.path, error)

    def _write(self, after: tuple[str, ...]) -> None:
        claim = Claim(
            lineage=self.lineage,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            process=_process(os.getpid()) or "",
            program=os.path.basename(sys.argv[0]) or "python",
            began=time.time(),
            every_s=self.every_s,
            after=after,
        )
        try:
            self.store.write(self.name, [msgspec.json.encode(claim)])
        except Exception as error:
            raise UsageError(
                f"checkpoint={self.path!r} cannot be written to ({type(error).__name__}: {error}), expected a folder "
                "or a URL that can: nothing was trained"
            ) from error

    def _others(self) -> dict[str, Claim]:
        found = {}
        for name in self.store.names():
            match = NAME.fullmatch(name)
            if match is None or match[1] == self.token:
                continue
            try:
                found[match[1]] = msgspec.json.decode(self.store.read(name), type=Claim)
            except (OSError, ValueError) as error:  # msgspec's are ValueErrors
                log.info("%s at %s is not looked at: %s", name, self.path, error)
        return found

    def _is_over(self, claim: Claim, last_written: float) -> bool:
        """Whoever claimed it is gone. `UsageError` if it is not; a warning if that cannot be known."""
        lives = claim.lives
        if lives is None:
            wrote = max(claim.began, last_written if claim.lineage == self.lineage else 0.0)
            lives = time.time() - wrote < max(RECENT_S, RECENT_TIMES * claim.every_s)
            if lives and claim.lineage == self.lineage:
                warn(
                    f"{claim} wrote checkpoints at {self.path} not long ago, and whether it still runs cannot be seen "
                    "from here: if it does, it writes none any more, and one of the two trains in vain"
                )
                return True
        if lives:
            raise UsageError(
                f"checkpoint={self.path!r} is where {claim} writes its own, expected a place that no other program "
                "writes to: choose another, or end that program and go on by DeepDist.resume(path). If it is gone, "
                "remove the file writer-*.json there"
            )
        return True


def _machine() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return socket.gethostname()


def _process(pid: int) -> str | None:
    """When a process was started, in a unit of its own; None if it is not there or has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        if os.path.exists("/proc/self/stat"):
            return None
    else:  # proc_pid_stat(5): the state is the third field, the start the 22nd
        return None if fields[0] in (b"Z", b"X") else fields[19].decode()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "it is there"
