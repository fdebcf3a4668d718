"""Fields of a message: the values that each may have, as they come from others."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

COUNT_MAX = (1 << 63) - 1
NAME_CHARACTERS_MAX = 256
DIMENSIONS_MAX = 16
SCALARS_MAX = 64
"""Of one packet; strategies have two or three."""
LANES_MAX = 1 << 13
"""Peers that one message speaks of, each incarnation by itself;"""
ARRAYS_MAX = 6000
"""and arrays of one layout: a replica's header, with as many of both as may be, is read in 10 ms."""
RUMORS_MAX = 16
"""Of one message."""
REFUSED_MAX = 64
"""Peers that one peer refuses, as it tells: of more, only so many are put out at a time."""
HEADER_RUNS_MAX = 512
"""Of marks, 12 kB: a range with more has them in a table. Links between peers of one machine carry no tables."""

Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
Name = Annotated[str, Meta(max_length=NAME_CHARACTERS_MAX)]
Shape = Annotated[tuple[Count, ...], Meta(max_length=DIMENSIONS_MAX)]
