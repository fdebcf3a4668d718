"""From the body of a post to an update, or to a refusal that says what was expected.

    safetensors                                        {name: array}, each for one of the model's arrays, of its shape
    safetensors, metadata {"deepdist": "structured"}   whatever `p2p.server.any_update.flatten` takes
    a pickle                                           only where that was allowed: whoever sends it runs code

All of it is looked at before the coordinator has it: an update that cannot be is an answer to who sent it, and does not
end the training.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from gossip.arrays import DTYPES, Array, ArraySpec, Layout, check_finite
from gossip.errors import MismatchError, UsageError
from p2p.adapters.sparse import change_of, is_sparse
from p2p.http.connection import Body
from p2p.http.messages import TENSORS_TYPE, Refused
from p2p.http.structure import FORM, STRUCTURED, check_structure
from p2p.http.tensors import TensorsError, parsed
from p2p.server.any_update import inflate

TENSORS_TYPES = (TENSORS_TYPE, "application/octet-stream")
PICKLE_TYPES = ("application/x-pickle", "application/python-pickle", "application/pickle", "application/deepdist")
"""The last one is what the first DeepDist sent."""
PICKLE_MARK = 0x80
"""The first byte of a pickle since Python 2."""
NO_PICKLES = (
    "a pickle runs code of whoever sent it, and is not opened: send safetensors, or start the master with "
    "Master(allow_pickle=True) if you trust all who can reach it"
)


_parsing = threading.Lock()
"""Held while a head is parsed: its objects take many times the memory of its text."""


def check_type(content_type: str, encoding: str, allow_pickle: bool) -> bool:
    """Whether it is a pickle. Raises `Refused` for what is not taken.

    A page in a browser may send forms and plain text to any address without asking; so these are not taken.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if encoding.strip().lower() not in ("", "identity"):
        raise Refused(415, f"Content-Encoding {encoding!r:.60}, expected none")
    if kind in PICKLE_TYPES:
        if not allow_pickle:
            raise Refused(415, NO_PICKLES)
        return True
    if kind not in TENSORS_TYPES:
        raise Refused(415, f"Content-Type {kind!r:.60}, expected {TENSORS_TYPE}")
    return False


def read(body: Body, layout: Layout, *, is_pickle: bool, strict: bool, bytes_max: int) -> Any:
    """The update. `strict`: all of it has to be of the model's arrays."""
    content = body.read(bytes_max)
    if is_pickle:
        update = _unpickled(content)
        if strict:
            _check_fit(update, layout)
        return update
    try:
        with _parsing:
            arrays, metadata = parsed(content)
    except TensorsError as error:
        if content[:1] == bytes([PICKLE_MARK]) and content[8:9] != b"{":
            raise Refused(415, NO_PICKLES) from None
        raise Refused(400, f"these are no safetensors: {error}") from None
    _check_numbers(arrays)
    if metadata.get(FORM) != STRUCTURED:
        _check_fit(arrays, layout)
        return arrays
    body.reserve(check_structure(arrays, bytes_max))
    try:
        update, _ = inflate(arrays)
    except Exception as error:  # noqa: BLE001 - what was not foreseen is the sender's fault, too
        raise Refused(400, f"the structure cannot be followed: {type(error).__name__}: {error!s:.200}") from None
    if strict:
        _check_fit(update, layout)
    return update


def _unpickled(body: bytearray) -> Any:
    try:
        return pickle.loads(body)
    except Exception as error:  # noqa: BLE001 - anything may come of it
        raise Refused(400, f"the pickle cannot be opened: {type(error).__name__}: {error!s:.200}") from None


def _check_numbers(arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        if array.dtype.str not in DTYPES:
            raise Refused(422, f"{name!r:.80} has dtype {array.dtype}, expected numbers of at most 64 bits")
    try:
        check_finite(arrays)
    except MismatchError as error:
        raise Refused(422, f"the update's {error}. A smaller learning rate may help") from None


def _check_fit(update: Any, layout: Layout) -> None:
    if update is None:
        return
    if not isinstance(update, Mapping):
        raise Refused(422, f"the update is a {type(update).__name__}, expected a dict of named arrays")
    specs = {spec.name: spec for spec in layout.specs}
    for name, value in update.items():
        if name not in specs:
            raise Refused(
                422, f"the update has {name!r:.80}, expected some of the model's arrays {sorted(specs)!s:.500}"
            )
        try:
            change = change_of(name, value, specs[name])
        except UsageError as error:
            raise Refused(422, str(error)) from None
        numbers = value if not is_sparse(value) else getattr(change, "values", None)
        _check_range(name, numbers, specs[name])


def _check_range(name: str, numbers: Any, spec: ArraySpec) -> None:
    """Numbers of more bits may be infinite in the model's."""
    if not isinstance(numbers, np.ndarray) or numbers.dtype.kind != "f":
        return
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(numbers.astype(spec.dtype)).all():
            return
    raise Refused(422, f"the update's {name!r} has numbers beyond {np.dtype(spec.dtype).name}, expected smaller ones")
