"""What an agent is told at its start comes back as it went, and what is none is refused, in words."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from gossip.arrays import Layout
from gossip.errors import UsageError
from p2p.agent.client import AgentSettings, read_settings

SETTINGS = AgentSettings(
    "run",
    "peer",
    "tcp://127.0.0.1:1",
    Layout.of({"w": np.zeros((2, 3))}),
    "key",
    "token",
    anchor=1,
    segments_folder="/tmp",
    mixing="strategy",
    kinds="kinds",
    links=False,
    adopts=True,
    secret="secret",
)
TOLD: dict[str, Any] = msgspec.to_builtins(SETTINGS)


def test_settings_come_back_as_they_went() -> None:
    assert read_settings(msgspec.json.encode(SETTINGS)) == SETTINGS


def test_settings_may_leave_out_what_has_a_default() -> None:
    told = {name: TOLD[name] for name in ("run", "role", "registrar", "layout")}
    assert read_settings(msgspec.json.encode(told)) == AgentSettings(
        SETTINGS.run, SETTINGS.role, SETTINGS.registrar, SETTINGS.layout
    )


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (b"", "Input data was truncated"),
        (b"\xff", "JSON is malformed"),
        ([], "Expected `object`, got `array`"),
        ({name: value for name, value in TOLD.items() if name != "registrar"}, "missing required field `registrar`"),
        ({**TOLD, "dance": 1}, "unknown field `dance`"),
        ({**TOLD, "role": "king"}, "Invalid enum value 'king' - at `$.role`"),
        ({**TOLD, "layout": [["w"]]}, "Expected `array`, got `str` - at `$.layout[0][0]`"),
        ({**TOLD, "registrar_key": 1}, "Expected `str | null`, got `int` - at `$.registrar_key`"),
        ({**TOLD, "anchor": "1"}, "Expected `int`, got `str` - at `$.anchor`"),
        ({**TOLD, "links": 0}, "Expected `bool`, got `int` - at `$.links`"),
    ],
)
def test_what_are_no_settings_is_refused(told: Any, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_settings(told if isinstance(told, bytes) else msgspec.json.encode(told))
    assert str(caught.value).startswith("malformed settings of an agent: ")
    assert why in str(caught.value)
