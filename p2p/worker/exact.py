"""The exchange of a model that is trained in place, of all that changed and exactly: an own model's default.

w, base and r are as in `p2p.worker.working_copy`. After an exchange nothing is left in w - base, so that a row changed
here is one in which they differ: that is seen in one pass, and what others changed is copied in the next. Rows travel
where they take at most half of the bytes, else whole arrays (`gossip.updates.sparse`). Both passes go piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossip.arrays import Array, Arrays, ArraySpec, Layout
from gossip.errors import UsageError
from gossip.updates.sparse import (
    SAMPLE_ROWS,
    SHARE_MAX,
    Change,
    SomeRows,
    pieces,
    row_nbytes,
    rows_where,
    smallest,
    whole,
)
from p2p.adapters.model import Model
from p2p.agent.ports import Neighbor
from p2p.worker import combine


class Exact:
    """How the copy of one worker exchanges."""

    def __init__(self, rules: Mapping[str, str], peers: int, counts: int) -> None:
        """`rules` of `p2p.worker.combine` by array; what counters count is published `counts` times."""
        self._rules, self._peers, self._counts = rules, peers, counts

    def exchange(self, model: Model, base: Arrays, agent: Neighbor, extra: Arrays) -> Any:
        """Bring the model's arrays and `base` level with the replica, in place, and return what is to be published of
        them and, beside that, of `extra`. Nobody merges meanwhile.

        Raises:
            UsageError: training made numbers that are none.
        """
        mine, theirs, layout = model.arrays(), agent.replica.arrays(), model.layout
        at_once = {s.name for s in layout.specs if s.name in extra or self._is_one(s, model)}
        rows = _changed(mine, base, layout, at_once)
        changes: dict[str, Change] = {}
        out = agent.hand_over() if rows is None else None
        into: Mapping[str, Array] = {} if out is None else out.arrays()
        for name, w in mine.items():
            if name in at_once:
                counted = self._counts if name in model.counters else None
                rule = self._rules[name]
                fitted = partial(model.integers.fitted, name)
                changes[name] = exchange_whole(
                    w, base[name], theirs[name], rule, self._peers, counted, extra.get(name), fitted
                )
            elif rows is None:
                self._merge(name, w, base[name], theirs[name], into[name])
            else:
                values = self._merge_rows(name, w, base[name], theirs[name], rows[name])
                changes[name] = SomeRows(rows[name], values)
        update = smallest(changes, layout) if out is None else None
        if update is not None:
            return agent.pack(update)
        out = out or agent.hand_over()
        for name, change in changes.items():
            whole(change, out.arrays()[name])
        return out

    def _is_one(self, spec: ArraySpec, model: Model) -> bool:
        """The array has no rows, or its rule takes it for a single one, or it is summed in another dtype."""
        counts = spec.name in model.counters and self._counts > 1
        narrow = model.arrays()[spec.name].dtype != spec.dtype
        return not spec.shape or narrow or counts or (len(spec.shape) < 2 and self._rules[spec.name] != "sum")

    def _merge(self, name: str, w: Array, base: Array, r: Array, into: Array) -> None:
        """All rows, whose changes go `into` a whole array."""
        for start, mine in pieces(w):
            piece = slice(start, start + len(mine))
            d = into[piece]
            np.subtract(mine, base[piece], out=d)
            d[...] = self._combined(name, d, r[piece], base[piece])
            np.add(r[piece], d, out=mine)
            np.copyto(base[piece], mine)

    def _merge_rows(self, name: str, w: Array, base: Array, r: Array, rows: NDArray[Any]) -> Array:
        """All rows, of which `rows` have changed here: what is to be published of them."""
        values = np.empty((len(rows), *w.shape[1:]), w.dtype)
        for start, mine in pieces(w):
            piece = slice(start, start + len(mine))
            low, high = np.searchsorted(rows, (start, start + len(mine)))
            some = rows[low:high] - start
            d = mine[some] - base[piece][some]
            d = values[low:high] = self._combined(name, d, r[piece][some], base[piece][some])
            np.copyto(mine, r[piece])
            mine[some] += d
            np.copyto(base[piece], mine)
        return values

    def _combined(self, name: str, d: Array, now: Array, before: Array) -> Array:
        if d.dtype.kind == "f" and not np.isfinite(d).all():
            bad = int(np.count_nonzero(~np.isfinite(d.reshape(len(d), -1)).all(axis=1)))
            raise UsageError(
                f"training made {bad} rows of {name!r} NaN or infinite, expected numbers; nothing of it was merged. A "
                "smaller learning rate may help"
            )
        rule = self._rules[name]
        return d if rule == "sum" or not d.size else combine.combined(rule, d, now - before, self._peers)


def exchange_whole(
    mine: Array,
    base: Array,
    theirs: Array,
    rule: str,
    peers: int,
    counts: int | None,
    extra: Array | None,
    fitted: Callable[[Array], Array],
) -> Array:
    """The same of an array that is one row to its rule; of a counter what it counted, so many times (`counts`).

    `fitted` makes of what is summed, in the dtype of `theirs`, what `mine` may hold.
    """
    now = theirs.copy()
    change = np.subtract(mine, base, dtype=now.dtype)
    if counts is not None:
        change = change * counts
    else:
        change = combine.combined(rule, change, now - base, peers)
    if extra is not None:
        change = change + np.asarray(extra, now.dtype)
    np.add(now, change, out=now)
    np.copyto(mine, fitted(now))
    np.copyto(base, mine)
    return np.asarray(change, now.dtype)


def _changed(mine: Arrays, base: Arrays, model: Layout, but: set[str]) -> dict[str, NDArray[Any]] | None:
    """The rows of each array in which the two differ; None if they take more than half of the bytes."""
    specs = [spec for spec in model.specs if spec.name not in but]
    sampled = sum(spec.nbytes * _share(mine[spec.name], base[spec.name]) for spec in specs)
    if sampled > (SHARE_MAX + 1) / 2 * model.nbytes:
        return None
    found: dict[str, NDArray[Any]] = {}
    room = SHARE_MAX * model.nbytes
    for spec in specs:
        rows = rows_where(_apart(mine[spec.name], base[spec.name]), spec, room)
        if rows is None:
            return None
        found[spec.name] = rows
        room -= len(rows) * row_nbytes(spec)
    return found


def _apart(w: Array, base: Array) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    for start, mine in pieces(w):
        yield start, _differ(mine, base[start : start + len(mine)])


def _differ(one: Array, other: Array) -> NDArray[np.bool_]:
    """(k,): which of the rows do."""
    apart = one != other
    found: NDArray[np.bool_] = apart if apart.ndim == 1 else apart.reshape(len(apart), -1).any(axis=1)
    return found


def _share(w: Array, base: Array) -> float:
    """Of some rows, those that differ."""
    some = slice(None, None, max(1, len(w) // SAMPLE_ROWS))
    return float(_differ(w[some], base[some]).mean()) if w.size else 0.0
