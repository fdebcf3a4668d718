"""The driver program's own agent: an observer whose replica is `dd.model`.

It pulls from every peer like any other; no weight passes through it on the way between two peers. It may die or stand
still like any other, too: then `Watch` starts the next one, which adopts a living peer's replica while the training
goes on.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np

from gossip.arrays import Arrays, Payload
from gossip.errors import UsageError
from gossip.marks import NO_UNITS, Counted
from gossip.messages import PeerId
from p2p.adapters.model import Model
from p2p.agent import local_socket
from p2p.agent.client import AgentClient, AgentSettings, start_agent
from p2p.agent.replica import Replica
from p2p.agent.requests import Counting, Counts, Done, Loaded
from p2p.driver.level import Front, Stillness

log = logging.getLogger("p2p")

STOP_TIMEOUT_S = 5.0
WAIT_S = 0.001
"""While somebody reads the replica."""
ADOPT_WAIT_S = 0.02
LOOK_S = 0.25
"""How often it is looked whether the observer is well."""
RETRY_S = 5.0
"""After an observer that could not begin."""
SLEPT_S = 2.0
"""Who looked last so long ago was stopped itself, and what it has not heard meanwhile says nothing."""
AWAKE_S = 6.0
"""After that, until everybody has been heard again."""
RESTARTS_MAX = 20
"""In one training: what kills so many will kill the next one, too."""


class Observer:
    """Starts the agent; `load` or `adopt` has it begin, and `close` ends it."""

    def __init__(self, settings: AgentSettings, *, starts: bool = True) -> None:
        """Not `starts`: for who wants to know it first, so that it is ended whenever Ctrl-C comes; see `start`."""
        self._settings = settings
        self._name = f"{settings.run[:12]}-{settings.role}-{secrets.token_hex(4)}"
        """Of its folder."""
        self.folder = ""
        """Where the agent meets its tasks, once it has been started."""
        self._process: subprocess.Popen[bytes] | None = None
        self._agent: AgentClient | None = None
        if starts:
            self.start()

    def start(self) -> None:
        """Start the agent's process."""
        self.folder = local_socket.private_folder(self._name)
        self._process = start_agent(self._settings, os.getpid(), self.folder)

    @property
    def agent(self) -> AgentClient:
        """The connection to it, once it has begun."""
        assert self._agent is not None
        return self._agent

    @property
    def has_begun(self) -> bool:
        """It holds a replica."""
        return self._agent is not None

    def load(self, initial: Arrays, counted: Counted = NO_UNITS) -> None:
        """Wait for the agent, and have it begin with these arrays, in which these units count.

        `UsageError` if it could not start.
        """
        agent = AgentClient(self.folder, process=self._process)
        for name, array in agent.replica.arrays().items():
            np.copyto(array, initial[name])
        agent.replica.leave()
        agent.ask(Loaded(counted), Done)
        self._agent = agent

    def adopt(self, given_up: Callable[[], bool]) -> None:
        """Wait until the agent, of settings that adopt, has a living peer's replica.

        `UsageError` if it does not get one, or nobody wants it any more.
        """
        while not os.path.exists(os.path.join(self.folder, "agent.sock")):
            if given_up() or not self.alive:
                raise UsageError("the driver program's new agent did not begin: see its messages above")
            time.sleep(ADOPT_WAIT_S)
        self._agent = AgentClient(self.folder)

    def cut(self, model: Model) -> tuple[int, Counted | None]:
        """Copy the replica into `model`; returns how many updates are merged in it, and the units that count in it.

        All is of one moment, since nobody merges while the replica is read. No units are told while it is to be decided
        which of two attempts at one counts. `AgentGoneError` if the agent is gone.
        """
        agent = self.agent
        with agent.replica.reading():
            counted = agent.ask(Counts(), Counting)[0].counted
            model.load(agent.replica.arrays())
            return agent.replica.merged, counted

    def replace(self, payload: Payload) -> None:
        """Have the agent hold these arrays; only where it merges nothing itself."""
        while not self.agent.replica.acquire():
            time.sleep(WAIT_S)
        try:
            self.agent.replica.replace(payload)
            self.agent.replica.merged += 1
        finally:
            self.agent.replica.release()

    @property
    def peer(self) -> PeerId:
        return self.agent.about.peer

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Its process runs, or is stopped."""
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        """Wait for the agent, which was asked to stop; end it if it does not."""
        if self._agent is None:
            self._kill()  # it has not said where it is, and cannot be asked
        else:
            self._agent.close()
        self._end(STOP_TIMEOUT_S)

    def kill(self) -> None:
        """End it at once, whatever it is doing. Its replica stays readable for who has it open."""
        self._kill()
        self._end(None)

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _end(self, timeout_s: float | None) -> None:
        if self._process is not None:
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        # also one that was made a moment before Ctrl-C came
        shutil.rmtree(local_socket.private_folder(self._name), ignore_errors=True)


class Post:
    """The place of the driver program's agent, where one observer follows another."""

    def __init__(self) -> None:
        self.observer: Observer | None = None
        """The one that is there."""
        self.behind = False
        """It lacked something at the end of the last training."""
        self._stillness = Stillness()
        """Of it."""
        self._retired: Observer | None = None
        """The one before. Somebody may still read what it held."""

    def still_s(self, front: Front, all_of: Front) -> float:
        """How long it has stood at `front` though others have more."""
        return self._stillness.seconds(front, all_of, time.monotonic())

    def vacate(self) -> Observer | None:
        """Nobody is there from now on; returns who was, to be retired."""
        old, self.observer = self.observer, None
        return old

    def retire(self, old: Observer) -> None:
        """End it; its replica stays readable until the next one is retired."""
        old.kill()
        if self._retired is not None:
            self._retired.close()
        self._retired = old

    def take(self, new: Observer) -> None:
        """It is there from now on, and has moved just now."""
        self.observer = new
        self._stillness = Stillness()
        self.behind = False

    @property
    def replica(self) -> Replica | None:
        """That of the observer, if it has begun."""
        observer = self.observer
        return observer.agent.replica if observer is not None and observer.has_begun else None

    @property
    def last_replica(self) -> Replica | None:
        """The same, or that of the one before."""
        last = next((one for one in (self.observer, self._retired) if one is not None and one.has_begun), None)
        return last.agent.replica if last is not None else None

    def close(self) -> None:
        """End them; the one that is there was asked to stop."""
        for one in (self._retired, self.observer):
            if one is not None:
                one.close()


class Watch:
    """Looks after the observer for the time of one training, in a thread of its own."""

    def __init__(self, is_well: Callable[[], bool], replace: Callable[[Callable[[], bool]], None]) -> None:
        """`replace(given_up)` puts another in the place of an observer that is not well, and stops trying when
        `given_up()`; `UsageError` if that fails."""
        self._is_well = is_well
        self._replace = replace
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deepdist-watch-observer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        restarts, looked_at, slept_at = 0, time.monotonic(), float("-inf")
        while restarts < RESTARTS_MAX and not self._ended.wait(LOOK_S):
            before, looked_at = looked_at, time.monotonic()
            if looked_at - before > SLEPT_S:
                slept_at = looked_at
            if looked_at - slept_at < AWAKE_S or self._is_well():
                continue
            restarts += 1
            try:
                self._replace(self._ended.is_set)
            except UsageError as error:
                if self._ended.is_set():
                    return  # nobody waits for the next one any more
                log.warning("the driver program's own agent was not replaced: %s", error)
                self._ended.wait(RETRY_S)  # meanwhile the model is read from the peers
            looked_at = time.monotonic()
