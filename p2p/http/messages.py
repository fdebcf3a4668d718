"""Requests and replies of HTTP as values, and refusals: exceptions with a status and a sentence for the other side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

JSON_TYPE = "application/json"
TENSORS_TYPE = "application/x-safetensors"
VERSION, UNIT, WORKER = "deepdist-version", "deepdist-unit", "deepdist-worker"
"""Headers: the model's version, and of an update what tells it from others, and whose it is."""


@dataclass(frozen=True)
class Request:
    """The head of one."""

    method: str
    path: str
    """Without its query, as it came: nothing is decoded."""
    query: str
    headers: Mapping[str, str]
    """By their names in lower case; what came several times is joined by ", "."""
    http: str
    """The version that it is said to be of."""


@dataclass(frozen=True)
class Reply:
    """What is sent back."""

    status: int
    content_type: str = JSON_TYPE
    body: Any = b""
    """Bytes, or a view of them."""
    headers: Mapping[str, str] = field(default_factory=dict)
    sent: Callable[[], None] = lambda: None
    """Called when nobody needs the body any more, sent or not."""


class Refused(Exception):  # noqa: N818 - a refusal is an answer, and mostly no error of ours
    """A request is not granted; the text is told to the other side."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers or {}

    def reply(self) -> Reply:
        """What the other side gets."""
        phrase = HTTPStatus(self.status).phrase
        return told(self.status, {"error": str(self), "status": self.status, "phrase": phrase}, self.headers)


def told(status: int, content: Any, headers: Mapping[str, str] | None = None) -> Reply:
    """A reply of JSON."""
    return Reply(
        status, JSON_TYPE, json.dumps(content).encode() + b"\n", {"Cache-Control": "no-store", **(headers or {})}
    )
