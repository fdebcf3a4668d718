"""The driver program's own agent: an observer (or the hub, in master mode) whose replica is `dd.model`.

It pulls from every peer like any other; no weight passes through it on the way between two peers.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time

import numpy as np

from gossip.arrays import Arrays, Payload
from gossip.messages import PeerId
from p2p import localhost
from p2p.agent_client import AgentClient, AgentSettings, start_agent

STOP_TIMEOUT_S = 5.0
WAIT_S = 0.001
"""While somebody reads the replica."""


class Observer:
    """Starts the agent; `load` gives it the initial model, and `close` ends it."""

    def __init__(self, settings: AgentSettings) -> None:
        self.folder = localhost.private_folder(f"{settings.run[:12]}-{settings.role}-{secrets.token_hex(4)}")
        self._process: subprocess.Popen[bytes] = start_agent(settings, os.getpid(), self.folder)
        self._agent: AgentClient | None = None

    @property
    def agent(self) -> AgentClient:
        """The connection to it, once it is loaded."""
        assert self._agent is not None
        return self._agent

    def load(self, initial: Arrays) -> None:
        """Wait for the agent, and have it begin with these arrays; `UsageError` if it could not start."""
        self._agent = AgentClient(self.folder, process=self._process)
        for name, array in self.agent.replica.arrays().items():
            np.copyto(array, initial[name])
        self.agent.ask({"op": "loaded"})

    def replace(self, payload: Payload) -> None:
        """Have the agent hold these arrays; only where it merges nothing itself."""
        while not self.agent.replica.acquire():
            time.sleep(WAIT_S)
        try:
            self.agent.replica.replace(payload)
        finally:
            self.agent.replica.release()

    @property
    def peer(self) -> PeerId:
        return PeerId(self.agent.about["peer"])

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """Wait for the agent, which was asked to stop; end it if it does not."""
        if self._agent is None:
            self._process.kill()  # it has not said where it is, and cannot be asked
        else:
            self._agent.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
