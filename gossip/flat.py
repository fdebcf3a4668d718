"""A model's named arrays as one flat vector of floats, on which strategies of mixing work, and back.

packed:  | w (f4) ....... | pad | b (f8) ... | pad |        flat (f8):  | w ....... | b ... |
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from gossip.arrays import Array, Bytes, Layout, Packed, Payload
from gossip.errors import UsageError
from gossip.updates import KINDS, kind_of, read_whole
from gossip.updates.table import Kinds


class Flat:
    """How the arrays of one layout lie in a vector: one after the other, in the widest of their dtypes."""

    def __init__(self, layout: Layout, kinds: Kinds = KINDS) -> None:
        """`kinds`: of updates, which are flattened as what they add.

        Raises:
            UsageError: an array holds no floats; the mean of integers is none.
        """
        for spec in layout.specs:
            if np.dtype(spec.dtype).kind != "f":
                raise UsageError(
                    f"{spec}: mixing takes means, which integers have none of. Expected arrays of floats: convert it "
                    "(array.astype(np.float64)), leave it out with parameters=(...), or use discipline='replicate'"
                )
        self.layout = layout
        self.kinds = kinds
        self.dtype = np.result_type(*(spec.dtype for spec in layout.specs)) if layout.specs else np.dtype(np.float64)

    @cached_property
    def size(self) -> int:
        """Numbers in the vector."""
        return sum(spec.nbytes // np.dtype(spec.dtype).itemsize for spec in self.layout.specs)

    def flatten(self, payload: Payload) -> Array:
        """(size,) numbers that an update adds, of any kind: a copy.

        Raises:
            MismatchError: it is none of this model.
        """
        kind = kind_of(payload.layout, self.kinds)
        kind.check_fit(payload.layout, self.layout)
        if kind.in_blocks:
            return self.flatten_buffer(payload.read(0, self.layout.nbytes))
        packed = read_whole(payload)
        kind.check(packed, self.layout)
        whole = bytearray(self.layout.nbytes)
        kind.add(self.layout, whole, packed)
        return self.flatten_buffer(whole)

    def flatten_buffer(self, buffer: Bytes) -> Array:
        """(size,) numbers of a packed buffer of this layout: a copy."""
        arrays = self.layout.views(buffer)
        vector = np.empty(self.size, self.dtype)
        at = 0
        for spec in self.layout.specs:
            array = arrays[spec.name].reshape(-1)
            vector[at : at + array.size] = array
            at += array.size
        return vector

    def pack(self, vector: Array) -> Packed:
        """The arrays that (size,) `vector` holds, each rounded to its own dtype."""
        packed = Packed(self.layout, bytearray(self.layout.nbytes))
        arrays = packed.arrays()
        at = 0
        for spec in self.layout.specs:
            array = arrays[spec.name]
            array[...] = vector[at : at + array.size].reshape(array.shape)
            at += array.size
        return packed


class PackedLater:
    """A payload that is packed when somebody reads it: of many that are made, few are read."""

    def __init__(self, flat: Flat, vector: Callable[[], Array]) -> None:
        """`vector()` gives the same whenever it is called."""
        self.layout = flat.layout
        self._flat = flat
        self._vector = vector

    @cached_property
    def _packed(self) -> Packed:
        return self._flat.pack(self._vector())

    def read(self, start: int, stop: int) -> Bytes:
        """Bytes [start, stop) of the packed buffer."""
        return self._packed.read(start, stop)
