"""Values and bytes, changed: what a decoder is tried with.

Honest frames are taken apart, changed as values, put together again, and then changed as bytes, some of the time. So
most frames get past the first checks, and some are hardly frames any more.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

NUMBERS = (0, 1, 2, 3, -1, 7, 127, 128, 255, 256, 1 << 16, (1 << 31) - 1, 1 << 32, 1 << 53, (1 << 62), (1 << 63) - 1)
NUMBERS_OUTSIDE = (1 << 63, (1 << 64) - 1, -(1 << 63), 1e308, -1e308, 5e-324, float("inf"), float("nan"))
TEXTS = (
    "",
    "p",
    "q",
    "x" * 256,
    "x" * 257,
    "\x00",
    "\x1b[2J",
    "é",
    "\U0001f600" * 64,
    "<f4",
    "|b1",
    "dead",
    "tcp://a:1",
)
CLAIMS = (0xDC, 0xDD, 0xDE, 0xDF, 0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB)
"""First bytes of lists, maps, bytes and texts of MessagePack that say how long they are."""
REPEATS = (*[2, 3, 17, 65] * 30, *[300, 3000] * 5, 40_000)
"""How often a part is repeated; seldom more than the limits on what has few parts."""
LIKE, GROWS, GROWS_VARIED = 0, 3, 6
"""Of the ways in which a part is changed: to another of its kind, and those that make it larger."""
KINDS = (*[LIKE] * 8, 1, 2, GROWS, 4, 5, *[GROWS_VARIED] * 3, 7, 8)
GROWN_MAX = 1 << 22
"""Bytes of a frame: what is longer no socket lets in."""


def number(chance: random.Random) -> Any:
    """Some number, mostly one at an edge."""
    kind = chance.random()
    if kind < 0.6:
        return chance.choice(NUMBERS)
    return chance.choice(NUMBERS_OUTSIDE) if kind < 0.7 else chance.getrandbits(chance.randrange(1, 64))


def value(chance: random.Random, depth: int = 0) -> Any:
    """Some value."""
    kind = chance.randrange(9 if depth < 3 else 6)
    match kind:
        case 0 | 1:
            return number(chance)
        case 2:
            return chance.choice(TEXTS)
        case 3:
            return chance.choice((None, True, False))
        case 4:
            return chance.randbytes(24)
        case 5:
            return struct.pack("3q", 0, chance.choice((0, 5, 1 << 18, 1 << 62)), chance.choice((0, 1, 2)))
        case 6 | 7:
            return {chance.choice(TEXTS): value(chance, depth + 1) for _ in range(chance.randrange(4))}
        case _:
            return [value(chance, depth + 1) for _ in range(chance.randrange(4))]


def places(tree: Any) -> list[tuple[Any, Any]]:
    """(list or dict, index or key) of all its parts."""
    found: list[tuple[Any, Any]] = []
    todo = [tree]
    while todo and len(found) < 200:
        here = todo.pop()
        items = here.items() if isinstance(here, dict) else enumerate(here)
        for key, part in items:
            found.append((here, key))
            if isinstance(part, dict | list):
                todo.append(part)
    return found


def changed(chance: random.Random, tree: Any, donors: Sequence[Any]) -> Any:
    """The same with one to three parts changed. It is written to."""
    grown = False
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        where = places(tree)
        if not where:
            return value(chance)
        kind = chance.choice(KINDS)
        if kind in (GROWS, GROWS_VARIED) and grown:
            continue  # what is repeated twice may be beyond all memory
        grown |= kind in (GROWS, GROWS_VARIED)
        _change(chance, kind, *chance.choice(where), donors)
    return tree


def _change(chance: random.Random, kind: int, here: Any, key: Any, donors: Sequence[Any]) -> None:
    match kind:
        case _ if kind == LIKE:
            here[key] = _like(chance, here[key])
        case 1:
            here[key] = number(chance)
        case 2:
            here[key] = value(chance)
        case _ if kind == GROWS:  # the same again, and again
            times = chance.choice(REPEATS)
            if isinstance(here, list):
                here[key:key] = [here[key]] * times
            else:
                here.update({f"{key}{index}": here[key] for index in range(times)})
        case 4:
            del here[key]
        case 5:  # a part of another message
            donor = places(chance.choice(donors))
            if donor:
                there, its = chance.choice(donor)
                here[key] = _copy(there[its])
        case _ if kind == GROWS_VARIED:
            here[key] = _many(chance, here[key])
        case 7 if isinstance(here, dict):
            here[chance.choice(TEXTS)] = here.pop(key)
        case _:
            here[key] = [here[key]] if chance.random() < 0.5 else value(chance)


def _like(chance: random.Random, part: Any) -> Any:
    if isinstance(part, bool):
        return not part
    if isinstance(part, int | float):
        return chance.choice(NUMBERS) if chance.random() < 0.9 else number(chance)
    if isinstance(part, str):
        return chance.choice(TEXTS)
    if isinstance(part, bytes):
        return struct.pack("3q", 0, chance.choice((0, 5, 1 << 18, 1 << 62)), chance.choice((1, 1, 0, 5)))
    return value(chance) if part is None else part[:-1] if isinstance(part, list) else {}


def _many(chance: random.Random, part: Any) -> Any:
    """Many of what a list or dict has, all different; a longer text; a longer number."""
    times = chance.choice(REPEATS)
    if isinstance(part, list):
        return [*part, *(_varied(part[0] if part else f"n{index}", index) for index in range(times))]
    if isinstance(part, dict):
        like = next(iter(part.values()), 1)
        return part | {f"n{index}": like for index in range(times)}
    if isinstance(part, str | bytes):
        return part * times
    return number(chance)


def _varied(part: Any, index: int) -> Any:
    if isinstance(part, list):
        return [_varied(part[0], index), *part[1:]] if part else part
    if isinstance(part, str):
        return f"{part}{index}"
    return index if isinstance(part, int) else part


def _copy(tree: Any) -> Any:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(tree)) if isinstance(tree, dict | list) else tree


def scribbled(chance: random.Random, data: bytes) -> bytes:
    """The same with a few bytes changed, cut, doubled, or made to claim a length."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(found) + 1)
        match chance.randrange(6):
            case 0 if found:
                found[at % len(found)] = chance.randrange(256)
            case 1 if found:
                found[at % len(found)] ^= 1 << chance.randrange(8)
            case 2:
                del found[at:]
            case 3:
                claim = chance.choice((0, 15, 255, 4096, 1 << 16, 1 << 20, 1 << 24, (1 << 32) - 1))
                found[at : at + 5] = bytes([chance.choice(CLAIMS)]) + claim.to_bytes(4, "big")
            case 4:
                stop = min(len(found), at + chance.randrange(1, 64))
                found[at:at] = found[at:stop] * chance.choice((1, 2, 50))
            case _:
                found[at:at] = chance.randbytes(chance.randrange(1, 9))
    return bytes(found[:GROWN_MAX])


def packed(tree: Any) -> bytes:
    """In MessagePack; without what it cannot hold."""
    try:
        return msgspec.msgpack.encode(tree)[:GROWN_MAX]
    except (OverflowError, TypeError, ValueError, RecursionError):
        return b"\xc0"


def written(tree: Any) -> bytes:
    """In JSON, also numbers of hundreds of digits."""
    try:
        return json.dumps(tree, default=lambda part: part.decode("latin-1")).encode("utf-8", "surrogatepass")[
            :GROWN_MAX
        ]
    except (TypeError, ValueError, RecursionError):
        return b"null"


Change = Callable[[random.Random, bytes], bytes]


def of(encode: Callable[[Any], bytes], decode: Callable[[bytes], Any], samples: Sequence[bytes]) -> Change:
    """Changes messages that are values in MessagePack or JSON."""
    donors = [decode(sample) for sample in samples]

    def change(chance: random.Random, data: bytes) -> bytes:
        kind = chance.random()
        if kind < 0.75:
            try:
                tree = decode(data)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                tree = None
            if isinstance(tree, dict | list):
                data = encode(changed(chance, tree, donors))
                return scribbled(chance, data) if kind < 0.1 else data
        return scribbled(chance, data)

    return change
