"""Fields of a message: the values that each may have, as they come from others."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

COUNT_MAX = (1 << 63) - 1
NAME_CHARACTERS_MAX = 256
DIMENSIONS_MAX = 16
SCALARS_MAX = 64
"""Of one packet; strategies have two or three."""

Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
Name = Annotated[str, Meta(max_length=NAME_CHARACTERS_MAX)]
Shape = Annotated[tuple[Count, ...], Meta(max_length=DIMENSIONS_MAX)]
