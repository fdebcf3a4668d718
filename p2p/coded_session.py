"""A session whose updates travel by a codec: its agents have to know the kinds of these."""

from __future__ import annotations

from dataclasses import replace

from p2p.agent_client import AgentSettings
from p2p.codec import packed
from p2p.registrar import Registrar
from p2p.session import AgentSession


class CodedSession(AgentSession):
    """The same, with agents that are told the kinds of its model's codec."""

    def _settings(self, role: str, registrar: Registrar) -> AgentSettings:
        codec = self._user_model.codec
        assert codec is not None
        return replace(super()._settings(role, registrar), kinds=packed(codec.kinds))
