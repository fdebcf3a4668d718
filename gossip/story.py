"""The last steps of a peer, for whoever has to find out how it came to be as it is.

A driver hands each event to its peer by way of a `Witness`, which remembers the last ones and what the peer wanted
done. They are kept as they are, but without arrays and long lists of marks, and become text when somebody asks: in a
note of the exception that the peer raised, or as lines of a file:

    {"time": 12.5, "peer": "a", "event": "Received(message=Advert(peer='b', n=3))", "effects": ["Send(...)"]}
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, ClassVar

from gossip.arrays import Layout
from gossip.errors import UsageError
from gossip.events import (
    Adopt,
    Computed,
    Deliver,
    Effect,
    Event,
    Initialized,
    Keep,
    Negative,
    Own,
    Received,
    Retain,
    Send,
    Started,
    StateMachine,
)
from gossip.marks import Series
from gossip.messages import Header, PacketReply, PeerId, Range, State

STEPS_MAX = 50
"""That are remembered."""
MARKS_BYTES_MAX = 1024
"""Marks of a message that take more are counted only."""
TEXT_MAX = 1000
"""Characters of one value."""
HEADLINE = "its last events, and what it wanted done:"

REFERENCES = (Own, Negative)
"""To arrays that are elsewhere."""

Gist = tuple[Any, ...]
"""What is kept of an event, effect or message with arrays: its kind, and its fields, with a layout for the arrays."""


@dataclass(frozen=True)
class Line:
    """One step of a peer as text."""

    time: float
    """Seconds on the clock of the peer's driver."""
    peer: PeerId
    event: str
    effects: tuple[str, ...] | None
    """None where the peer raised an exception, or still deals with it."""

    def __str__(self) -> str:
        then = "not done" if self.effects is None else "; ".join(self.effects)
        return f"{self.time:12.3f}  {self.peer}  {self.event}" + (f"  ->  {then}" if then else "")

    def to_json(self) -> str:
        """As a line of a file."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Line:
        """And back.

        Raises:
            UsageError: it is not a line of a story.
        """
        try:
            said = json.loads(text)
            effects = said["effects"]
            told = None if effects is None else tuple(map(str, effects))
            return cls(float(said["time"]), PeerId(str(said["peer"])), str(said["event"]), told)
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{text.strip()[:80]!r} is not a line of a story: {error!r}") from None


class Witness:
    """Stands beside one peer, and sees all its steps."""

    always_checks: ClassVar[bool] = False
    """Whoever makes one wants the peer to be checked: tests do."""

    def __init__(self, peer: StateMachine, *, checks: bool = False) -> None:
        """With `checks`, it is looked after each event whether all holds that must hold between two."""
        self.peer = peer
        self.checks = checks or self.always_checks
        self._steps: deque[tuple[float, Any, Sequence[Any] | None]] = deque(maxlen=STEPS_MAX)
        self._current: tuple[float, Event] | None = None
        """What the peer deals with."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What the peer says to it. An exception of the peer, or a broken invariant, tells the story."""
        self._current = now, event
        try:
            effects = self.peer.handle(event, now)
        except Exception as error:
            self._steps.append((now, _gist(event), None))  # for those as well who ask later
            self._current = None
            self.tell(error)
            raise
        self._current = None
        self._steps.append((now, _gist(event), [*map(_gist, effects)] if effects else effects))  # mostly none
        if self.checks:
            try:
                self.peer.check()
            except Exception as error:
                self.tell(error)
                raise
        return effects

    def tell(self, error: Exception) -> None:
        """Add the story to an error that has none yet."""
        if not any(HEADLINE in note for note in getattr(error, "__notes__", ())):
            error.add_note("\n".join([f"peer {self.peer.me}, {HEADLINE}", *map(str, self.lines())]))

    def lines(self) -> list[Line]:
        """The story, the oldest step first."""
        me, current = self.peer.me, self._current
        lines = [
            Line(now, me, words(event), None if effects is None else tuple(map(words, effects)))
            for now, event, effects in list(self._steps)
        ]
        if current is not None:
            now, event = current
            lines.append(Line(now, me, words(_gist(event)), None))
        return lines


def read(lines: Iterable[str]) -> Iterator[Line]:
    """The steps in a file.

    Raises:
        UsageError: one of the lines is not of a story.
    """
    return (Line.from_json(line) for line in lines if line.strip())


# ------------------------------------------------------------------------------------------------- what is kept of it


def _outline(payload: Any) -> Any:
    """What is kept of arrays; a reference to some is kept as it is."""
    return payload if isinstance(payload, REFERENCES) else payload.layout


def _few(marks: tuple[Series, ...]) -> Any:
    if sum(len(series.runs) for series in marks) <= MARKS_BYTES_MAX:
        return marks
    return f"{len(marks)} series"


def _of_received(event: Received) -> Any:
    gist = MESSAGE_GISTS.get(type(event.message))
    return event if gist is None else (Received, gist(event.message))


def _of_send(effect: Send) -> Any:
    """Of what is sent only packets have their arrays with them."""
    message = effect.message
    return (Send, effect.to, MESSAGE_GISTS[PacketReply](message)) if type(message) is PacketReply else effect


MESSAGE_GISTS: Mapping[type, Callable[[Any], Gist]] = {
    Range: lambda m: (Range, m.peer, m.lo, m.hi, m.k, m.marks and _few(m.marks), m.layout),
    State: lambda m: (State, m.peer, m.frontiers, m.k, f"of {len(m.marks)} lanes" if m.marks else {}, m.layout),
    PacketReply: lambda m: (PacketReply, m.peer, m.n, m.newest, m.round, m.k, m.scalars, m.layout),
}
GISTS: Mapping[type, Callable[[Any], Any]] = {
    Computed: lambda e: (Computed, e.payload.layout, e.unit, e.attempt),
    Initialized: lambda e: (Initialized, e.payload.layout),
    Started: lambda e: (
        Started,
        e.frontiers,
        e.ready,
        e.closed,
        e.units,
        *([f"of {len(e.marks)} lanes"] * bool(e.marks)),
    ),
    Received: _of_received,
    Send: _of_send,
    Deliver: lambda e: (Deliver, e.lane, e.lo, e.hi, _outline(e.payload)),
    Adopt: lambda e: (Adopt, e.payload.layout),
    Keep: lambda e: (Keep, e.lo, e.hi, _outline(e.payload)),
    Retain: lambda e: (Retain, e.number, e.payload.layout),
}
"""Of events and effects that may have arrays; the others are kept as they are."""


def _gist(value: Event | Effect) -> Any:
    gist = GISTS.get(type(value))
    return value if gist is None else gist(value)


# ---------------------------------------------------------------------------------------------------------- in words


def words(value: Any) -> str:
    """An event, effect or message, or what was kept of one, as people read it; what goes without saying is left out."""
    if isinstance(value, Layout):
        return _arrays(value)
    if isinstance(value, Series):
        return f"{value.epoch}/{value.partition}: {value.size} from {value.ends[0]}, attempt {value.attempt}" + (
            ", taken back" if value.withdraws else ""
        )
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{words(key)}: {words(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, tuple) and value and isinstance(value[0], type):
        return _of_kind(value[0], value[1:])
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return "(" + ", ".join(map(words, value)) + ")"
    kind = type(value)
    if issubclass(kind, Header) or is_dataclass(kind):
        layout = getattr(value, "layout", None) if not issubclass(kind, Header) else None
        if isinstance(layout, Layout):  # arrays in memory
            return _arrays(layout)
        return _of_kind(kind, [getattr(value, name) for name, _ in _fields(kind)])
    if isinstance(getattr(value, "layout", None), Layout):
        return _arrays(value.layout)
    return repr(value)[:TEXT_MAX]


def _of_kind(kind: type, values: Sequence[Any]) -> str:
    said = [
        f"{name}={words(value)}"
        for (name, default), value in zip(_fields(kind), values, strict=False)
        if default is MISSING or value != default
    ]
    return f"{kind.__name__}({', '.join(said)})"


def _arrays(layout: Layout) -> str:
    specs = layout.specs
    first = f"{specs[0]}" if specs else "no array"
    return f"<{first}{f' and {len(specs) - 1} more' if specs[1:] else ''}, {layout.nbytes} bytes>"


@cache
def _fields(kind: type[Any]) -> tuple[tuple[str, Any], ...]:
    """The fields of an event, effect or message, each with its default."""
    if issubclass(kind, Header):
        names: tuple[str, ...] = kind.__struct_fields__
        defaults = kind.__struct_defaults__
        required = len(names) - len(defaults)
        # a default that is made anew is empty
        rest = [value if not callable(getattr(value, "factory", None)) else value.factory() for value in defaults]
        return tuple(zip(names, [MISSING] * required + rest, strict=True))
    return tuple((field.name, field.default) for field in fields(kind))
