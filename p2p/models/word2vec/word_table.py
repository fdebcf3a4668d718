"""The open table of a lexicon's words, in machine code: text is cut into words there, and each is found or entered.

Most words have no more than eight letters: they are one number of 64 bits, which is hashed and compared at once.

    slots    a power of two of them, at most half of them taken: the upper half of the hash, and the number + 1
    heads    the first eight bytes of each word, by number; of a shorter one all of them, and then zeros
    starts   where each word begins in `blob`, by number; and where the next one will
    blob     the words in the order of their numbers, each followed by NUL

Sources: Fowler, Noll, Vo and Eastlake, The FNV Non-Cryptographic Hash Algorithm (RFC 9923), for FNV-1a, by which the
bytes behind the eighth are hashed; Knuth, The Art of Computer Programming 3, 6.4, for hashing by the golden ratio.

This module imports numba at once, so a process without text does not import it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from p2p.compiled import compiled

FNV_OFFSET, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
MIX = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio, made odd."""
HALF, LOWER = np.uint64(32), np.uint64(0xFFFFFFFF)
ONE, NONE = np.uint64(1), np.uint64(0)
HEAD = 8
"""Bytes."""


@njit(nogil=True, inline="always")  # type: ignore[untyped-decorator]
def _found(
    text: Any, begin: Any, length: Any, head: Any, hashed: Any, slots: Any, heads: Any, starts: Any, blob: Any
) -> tuple[Any, Any]:
    """(number, slot) of the word of `length` bytes that begins at `begin`; -1 and a free slot if it is not known."""
    mask = np.uint64(slots.shape[0] - 1)
    at = hashed & mask
    while slots[at] != NONE:
        if slots[at] >> HALF == hashed >> HALF:
            number = np.int64(slots[at] & LOWER) - 1
            if heads[number] == head:
                if length < HEAD:
                    return number, at  # no byte of a word is zero, so that one is as long
                start = starts[number]
                if starts[number + 1] - start == length + 1:
                    same = HEAD
                    while same < length and blob[start + same] == text[begin + same]:
                        same += 1
                    if same == length:
                        return number, at
        at = (at + ONE) & mask
    return -1, at


@compiled()
def scan(
    text: Any,
    lines: bool,
    add: bool,
    slots: Any,
    heads: Any,
    starts: Any,
    blob: Any,
    state: Any,
    numbers: Any,
    ends: Any,
) -> bool:
    """Read `text` on from `state`: words known, position in the text, words read, rows ended. False: there is no room.

    With `lines` NUL ends a row, and words stand between ASCII white space; else NUL ends a word, which may be empty.
    """
    known, position, words, rows = state[0], state[1], state[2], state[3]
    room = True
    while position < text.shape[0]:
        begin = position
        head, hashed = NONE, FNV_OFFSET
        while True:
            letter = text[position]
            if letter <= 32 and (letter == 0 or (lines and (letter == 32 or 9 <= letter <= 13 or letter >= 28))):
                break
            if position - begin < HEAD:
                head |= np.uint64(letter) << np.uint64(8 * (position - begin))
            else:
                hashed = (hashed ^ np.uint64(letter)) * FNV_PRIME
            position += 1
        if not lines or position > begin:
            length = position - begin
            hashed = (hashed ^ head) * MIX
            hashed ^= hashed >> HALF
            number, at = _found(text, begin, length, head, hashed, slots, heads, starts, blob)
            if number < 0 and add:
                start = starts[known]
                if 2 * (known + 1) > slots.shape[0] or start + length + 1 > blob.shape[0]:
                    position, room = begin, False
                    break
                number = known
                slots[at] = (hashed >> HALF << HALF) | np.uint64(number + 1)
                heads[number] = head
                for i in range(length):
                    blob[start + i] = text[begin + i]
                blob[start + length] = 0
                known += 1
                starts[known] = start + length + 1
            numbers[words] = number
            words += 1
        if lines and text[position] == 0:
            ends[rows] = words
            rows += 1
        position += 1
    state[0], state[1], state[2], state[3] = known, position, words, rows
    return room


@compiled()
def fill(slots: Any, heads: Any, starts: Any, blob: Any, known: int) -> None:
    """Enter the first `known` words of `blob` into empty `slots` and `heads`."""
    mask = np.uint64(slots.shape[0] - 1)
    for number in range(known):
        head, hashed = NONE, FNV_OFFSET
        for i in range(starts[number + 1] - 1 - starts[number]):
            letter = np.uint64(blob[starts[number] + i])
            if i < HEAD:
                head |= letter << np.uint64(8 * i)
            else:
                hashed = (hashed ^ letter) * FNV_PRIME
        heads[number] = head
        hashed = (hashed ^ head) * MIX
        hashed ^= hashed >> HALF
        at = hashed & mask
        while slots[at] != NONE:
            at = (at + ONE) & mask
        slots[at] = (hashed >> HALF << HALF) | np.uint64(number + 1)
