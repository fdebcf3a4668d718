"""A worker's own copy of the model, trained in place and kept level with the replica a few rows at a time.

An exchange looks at the rows that others have changed since the last one (`gossip.updates.stamps`), and at those that
training here should have changed enough by now (`p2p.worker.row_schedule`): it costs as much as these, whatever the
size of the model. For each of them

    w       the worker's own row, which training changes
    r       the replica's, to which the agent adds what others publish
    base    r when the row was looked at last, and what was published from here since

    own change d = w - base,    the others' m = r - base,    published: d' by the rule of `p2p.worker.combine`
    afterwards w = r + d' and base = r + what was sent of d'

Rows that have changed little here are left for later. What is left, and what the fewer bits on the wire
take away, stays in w - base and goes with the next one: nothing is lost (error feedback, Seide et al. 2014).

The replica is read without its lock, while the agent may write to it: whatever is read becomes the base, so a part
of an update that was seen too early or too late is seen right at the next look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossip.arrays import NARROW, Array, Arrays
from gossip.errors import UsageError
from gossip.updates.rows import rows_of
from p2p.adapters.model import Model
from p2p.agent.ports import Neighbor, Readable, refresh
from p2p.worker import combine, row_merge
from p2p.worker.exact import Exact, exchange_whole
from p2p.worker.pace import Pace
from p2p.worker.residual import Residual
from p2p.worker.row_schedule import RowSchedule

CODECS: dict[str, str | None] = {"int8": "|i1", "int16": "<i2", "float": None}
"""How rows travel: integers times a power of two each row, or as they are."""
EXACT_BYTES_MAX = 1 << 20
"""A model up to this size is exchanged whole and as it is."""
PIECE_BYTES = 1 << 19
"""Of rows that are looked at in one go: what is read of them is still in a cache when it is written."""
SMALL = 0.25
"""A row that has changed by less than this part of what its schedule waits for is not worth sending."""
REST = 0.01
"""At the end of its last partition a worker sends the rows that have changed by this part of what one is on average."""
REST_BETWEEN = 0.4
"""At the end of the others, after which it goes on with what it keeps; over the number of workers, each of which keeps
as much from all others."""
SAMPLE_ROWS = 1000
"""So many rows tell what one is on average."""


Merged = tuple[Array, Array, Array, Array]
"""Of rows: how much each has changed, which are sent, their values, their exponents."""


@dataclass(frozen=True)
class ExchangeSettings:
    """How updates travel and add up."""

    combine: str = "sum"
    """A rule of `p2p.worker.combine`."""
    peers: int = 1
    rows: int = 4096
    """To look at in one exchange, of all arrays together. With a clock that is where it begins."""
    codec: str | None = None
    """One of `CODECS`: of rows that wait until enough has changed; None: all that changed, exactly."""
    counts: int = 1
    """What a model's counter counts is added so many times: where replicas are averaged, their mean is then the sum."""


def exchange_settings(
    model: Model,
    rule: str | None,
    peers: int,
    rows: int = ExchangeSettings.rows,
    codec: str | None = None,
    counts: int = 1,
) -> ExchangeSettings:
    """How `peers` exchange updates of `model`; `rule` None: the one that its adapter takes for best.

    `codec` None: that of the adapter. Where it has none, or the model is small, all is exact whatever `codec` says.
    """
    adapted = model.adapter.row_codec if model.layout.nbytes > EXACT_BYTES_MAX else None
    codec = None if adapted is None else codec or adapted
    return ExchangeSettings(rule or model.adapter.combine(peers), peers, rows, codec, counts)


class WorkingCopy:
    """The copy of one worker. `model` holds the trained arrays."""

    def __init__(self, model: Model, settings: ExchangeSettings, clock: Callable[[], float] | None = None) -> None:
        """`clock` in seconds: an exchange then looks at as many rows as take a small part of the time of training."""
        self.model = model
        self.settings = settings
        averaged = settings.counts > 1
        self._rules = dict.fromkeys(model.names, "sum") if averaged else model.rules(settings.combine)
        self._exact = Exact(self._rules, settings.peers, settings.counts) if settings.codec is None else None
        self._codec = CODECS[settings.codec or "float"]
        self._base: dict[str, Array] | None = None
        self._schedules: dict[str, RowSchedule] = {}
        specs = model.layout.specs if self._exact is None else ()
        in_rows = {s.name: s.shape[0] for s in specs if len(s.shape) > 1 and s.dtype in ("<f4", "<f8")}
        rows_all = max(1, sum(in_rows.values()))
        for name, rows in in_rows.items():
            self._schedules[name] = RowSchedule(rows, -(-settings.rows * rows // rows_all))
        self._pace = Pace(self._schedules, settings.peers, clock)
        self._merged_at = 0
        self._seen = 0
        """How many updates of the replica have been taken over, or are in sight of the schedule."""
        self._replica: Readable | None = None
        self.training = 0
        """The number of the training that goes on; each begins with the copy anew."""
        self._level = False
        """All that training changed has been exchanged, or is kept for later."""
        self.residual = Residual(model)
        self.outer = combine.OuterSteps(settings.peers) if settings.combine == combine.OUTER else None

    # ------------------------------------------------------------------------------------------------- for the task

    @property
    def corrects(self) -> bool:
        """Whether the update of some array is published as another than it was computed."""
        return any(rule != "sum" for rule in self._rules.values())

    @property
    def compares(self) -> bool:
        """Whether it matters to this what others have added since the copy began."""
        return any(rule not in ("sum", combine.OUTER) for rule in self._rules.values())

    def begin_training(self, number: int) -> None:
        """A task of training `number` is next. At the first of another one the copy begins with the replica anew: what
        the user wrote into the model since then is in no row that an exchange would look at."""
        if number != self.training:
            self.training, self._level = number, False
            self.residual.drop()
            if self.outer is not None:
                self.outer.drop()

    @property
    def travels_as_rows(self) -> bool:
        """What is trained in place does, unless it is for a codec to say how, or for an outer step what."""
        return self.outer is None and self.model.codec is None

    @property
    def publishes_as_it_is(self) -> bool:
        """What a gradient returns is added just so, if there is no descent."""
        counts = self.settings.counts > 1 and bool(self.model.counters)
        return not (self.corrects or counts or self.model.codec is not None)

    @property
    def merged_at(self) -> int:
        """How many updates the copy has seen."""
        return self._merged_at

    def begin(self, replica: Readable) -> int:
        """Before a gradient. Returns how many updates the copy has seen."""
        if self._base is None or replica != self._replica or not self._level:
            self._base, self._replica = None, replica
            self._seen = replica.stamps.count
            self._merged_at = refresh(self.model, replica)
        self._level = False
        self._pace.begin()
        return self._merged_at

    def begin_with(self, arrays: Arrays, merged_at: int) -> None:
        """The same with a master's model, of which this is a copy each time anew."""
        self._base, self._level, self._merged_at = None, False, merged_at
        self.model.load(arrays)
        self._pace.begin()

    def trained(self, extra: Arrays) -> Trained:
        """The update of a gradient that trained in place; `extra` is added beside that, as it is."""
        assert self._base is not None
        return Trained(self, self.model.arrays(), self._base, extra)

    def keep_base(self) -> None:
        """Before a gradient trains in place, or what others add meanwhile matters: changes are told from this."""
        if self._base is None:
            self._base = {name: array.copy() for name, array in self.model.arrays().items()}

    def keep_anew(self) -> Arrays:
        """Before a gradient, where training goes on with what the last one came to: a copy of the arrays as they are,
        from which changes are told. It is the same memory each time."""
        if self._base is None:
            self.keep_base()
        else:
            for name, array in self.model.arrays().items():
                np.copyto(self._base[name], array)
        assert self._base is not None
        return self._base

    def exchanged(self, agent: Neighbor, extra: Arrays, all_rows: bool = False) -> Any:
        """Merge both ways, and return what is to be published, handed to `agent`. Where rows wait, some of them are
        looked at, or `all_rows`; else all that changed is exchanged, exactly."""
        if self._exact is None:
            return agent.pack((self.exchange_all if all_rows else self.exchange)(agent.replica, extra))
        assert self._base is not None
        self.model.check_unchanged()
        with agent.replica.reading():
            self._merged_at = agent.replica.merged
            self._seen = agent.replica.stamps.count
            update = self._exact.exchange(self.model, self._base, agent, extra)
        self._level = True
        return update

    def exchange(self, replica: Readable, extra: Arrays) -> dict[str, Array]:
        """Look at the rows that are due, merge them both ways, and return what is to be published of them."""
        assert self._exact is None, "all that changed is exchanged at once"
        pace = self._pace
        began = pace.now()
        self.model.check_unchanged()
        self._merged_at = replica.merged
        stamps, seen = replica.stamps, self._seen
        self._seen = stamps.count
        theirs, update, looked_at, looking_s = replica.arrays(), {}, 0, 0.0
        for name, array in self.model.arrays().items():
            schedule = self._schedules.get(name)
            if schedule is None or name in extra:
                update[name] = self._exchange_whole(name, array, theirs[name], extra.get(name))
            else:
                due = np.zeros(schedule.rows, bool)
                due[schedule.next()] = True
                wanted = due.copy()
                wanted[stamps.since(name, seen)] = True
                rows = np.flatnonzero(wanted)
                is_due = due[rows]
                small = np.where(is_due, SMALL, 1) * (0.0 if self._codec is None else schedule.threshold)
                begin = pace.now()
                part, changes = self._exchange_rows(name, array, theirs[name], rows, small)
                looking_s += pace.now() - begin
                told = is_due | (changes > small)
                schedule.looked_at(rows[told], changes[told])
                schedule.beside = int(np.count_nonzero(told & ~is_due))
                update.update(part)
                looked_at += len(rows)
        self._level = True
        pace.exchanged(began, looking_s, looked_at)
        return update

    def exchange_all(self, replica: Readable, extra: Arrays) -> dict[str, Array]:
        """The same of all rows, whatever their schedule says; only what is not worth sending is left for later."""
        assert self._base is not None
        self.model.check_unchanged()
        self._merged_at = replica.merged
        self._seen = replica.stamps.count
        theirs, update = replica.arrays(), {}
        for name, array in self.model.arrays().items():
            if name in self._schedules and name not in extra:
                small = np.sqrt(self._least(self._base[name].reshape(len(array), -1), REST))
                rows = np.arange(len(array))
                update.update(self._exchange_rows(name, array, theirs[name], rows, np.full(len(rows), small))[0])
            else:
                update[name] = self._exchange_whole(name, array, theirs[name], extra.get(name))
        self._level = True
        return update

    def published(self, replica: Readable) -> None:
        """What the last exchange gave is merged in the replica: if nothing else was since, there is nothing to see."""
        if replica.stamps.count == self._seen + 1:
            self._seen += 1
            self._merged_at += 1

    def rest(self, replica: Readable, going_on: int = 0) -> dict[str, Array]:
        """At the end of a partition: what is worth sending of all that was left for later; empty if nothing is.

        Less is if so many workers are `going_on` with other partitions, and this copy's among them.
        """
        if self._base is None or not self._level or self._exact is not None:
            return {}
        share = max(REST, REST_BETWEEN / going_on) if going_on else REST
        theirs, update, found = replica.arrays(), {}, False
        for name, array in self.model.arrays().items():
            if name in self._schedules:
                rows = self._changed(name, array, share)
                part, _ = self._exchange_rows(name, array, theirs[name], rows, np.zeros(len(rows)))
                update.update(part)
                found = found or any(len(rows) for rows in part.values())
            else:
                update[name] = self._exchange_whole(name, array, theirs[name], None)
        return update if found else {}

    def correct(self, delta: Arrays, theirs: Arrays) -> None:
        """Make an update that was computed otherwise, and of whole arrays, what is to be published, in place.

        `counted` is told what became of it.
        """
        if self.outer is not None:
            stepped = {name: change for name, change in delta.items() if self._rules[name] == combine.OUTER}
            self.outer.take(stepped, self.model.counters)
        for name, change in delta.items():
            if self._rules[name] not in ("sum", combine.OUTER):
                assert self._base is not None
                others = np.asarray(theirs[name] - self._base[name] + self.residual.of(name), change.dtype)
                change[...] = combine.combined(self._rules[name], change, others, self.settings.peers)

    def counted(self, published: bool) -> None:
        """Whether the update of the last `correct` was the first of its unit."""
        if published and self.outer is not None:
            self.outer.counted()

    def count(self, delta: Arrays) -> None:
        """Make what counters count in an update what is to be published of it, in place."""
        for name in self.model.counters.intersection(delta):
            delta[name][...] *= self.settings.counts

    # ---------------------------------------------------------------------------------------------------- the merge

    def _exchange_whole(self, name: str, mine: Array, theirs: Array, extra: Array | None) -> Array:
        assert self._base is not None
        counts = self.settings.counts if name in self.model.counters else None
        rule, base, fitted = self._rules[name], self._base[name], partial(self.model.integers.fitted, name)
        return exchange_whole(mine, base, theirs, rule, self.settings.peers, counts, extra, fitted)

    def _changed(self, name: str, mine: Array, share: float) -> NDArray[Any]:
        """The rows of which so much was left for later: this share of what a row is on average."""
        assert self._base is not None
        count, width = len(mine), int(np.prod(mine.shape[1:], dtype=np.int64))
        w, base = (array.reshape(count, width) for array in (mine, self._base[name]))
        least = self._least(base, share)
        step = max(1, PIECE_BYTES // max(1, width * mine.itemsize))
        squares = np.empty(count, mine.dtype)
        scratch = np.empty((step, width), mine.dtype)
        for start in range(0, count, step):
            piece = slice(start, min(start + step, count))
            change = np.subtract(w[piece], base[piece], out=scratch[: piece.stop - start])
            np.einsum("ij,ij->i", change, change, out=squares[piece])
        return np.flatnonzero(squares > least)

    def _least(self, base: Array, share: float) -> float:
        """The squared change that is this share of what a row is on average; 0 where rows travel as they are."""
        some = base[:: max(1, len(base) // SAMPLE_ROWS)]
        return 0.0 if self._codec is None else share**2 * float(np.einsum("ij,ij->", some, some)) / len(some)

    def _exchange_rows(
        self, name: str, mine: Array, theirs: Array, rows: NDArray[Any], small: NDArray[Any]
    ) -> tuple[dict[str, Array], NDArray[Any]]:
        """(part of the update, how much each row had changed). Those that changed by no more than `small` stay."""
        assert self._base is not None
        count, width = len(mine), int(np.prod(mine.shape[1:], dtype=np.int64))
        w, base, r = (array.reshape(count, width) for array in (mine, self._base[name], theirs))
        merge = self._exact_rows if self._codec is None else self._coded_rows
        step = max(1, PIECE_BYTES // max(1, width * mine.itemsize))
        merged = [
            merge(name, w, base, r, rows[start : start + step], small[start : start + step])
            for start in range(0, len(rows), step)
        ]
        changes, sent, values, exponents = zip(*merged, strict=True) if merged else ((), (), (), ())
        numbers = rows[_stacked(sent, (len(rows),), bool)]
        stacked = _stacked(values, (len(numbers), *mine.shape[1:]), mine.dtype if self._codec is None else self._codec)
        units = None if self._codec is None else _stacked(exponents, (len(numbers),), np.int8)
        return rows_of(name, numbers, stacked, units), _stacked(changes, (len(rows),), mine.dtype)

    def _exact_rows(
        self, name: str, w: Array, base: Array, r: Array, rows: NDArray[Any], small: NDArray[Any]
    ) -> Merged:
        """Rows that travel as they are."""
        now, before = r[rows], base[rows]
        d, m = w[rows] - before, now - before
        products = combine.products(d, m)
        changes = self._checked(name, products)
        send = changes > small
        own, others = self._coefficients(name, products, send)
        d = np.asarray(own[:, None] * d + others[:, None] * m, w.dtype)
        base[rows] = now + np.where(send[:, None], d, 0)
        w[rows] = now + d
        return changes, send, d[send], np.zeros(len(rows), np.int8)

    def _coded_rows(
        self, name: str, w: Array, base: Array, r: Array, rows: NDArray[Any], small: NDArray[Any]
    ) -> Merged:
        """Rows that travel as integers times a power of two."""
        assert self._codec is not None
        products = row_merge.products(w, base, r, rows)
        changes = self._checked(name, products)
        send = changes > small
        own, others = self._coefficients(name, products, send)
        values, exponents = row_merge.merge(w, base, r, rows, products, own, others, send, self._codec)
        return changes, send, values, exponents

    def _checked(self, name: str, products: combine.Products | Array) -> Array:
        """How much each row has changed; raises `UsageError` if that is not a number."""
        changes = np.sqrt(products[0])
        if not np.isfinite(changes).all():
            bad = int(np.count_nonzero(~np.isfinite(changes)))
            raise UsageError(
                f"training made {bad} rows of {name!r} NaN or infinite, expected numbers; nothing of it was merged. A "
                "smaller learning rate may help"
            )
        return changes

    def _coefficients(self, name: str, products: Any, send: Array) -> tuple[Array, Array]:
        """Of d and m in what is published of each row; a row that is not sent stays as it is."""
        own, others = combine.RULES[self._rules[name]](tuple(products), self.settings.peers)
        dtype = products[0].dtype
        return np.where(send, own, 1).astype(dtype, copy=False), np.where(send, others, 0).astype(dtype, copy=False)


class Trained(Mapping[str, Array]):
    """What a gradient that trained in place returns: the change of each array, computed only if somebody looks."""

    def __init__(self, copy: WorkingCopy, arrays: Arrays, base: Arrays, extra: Arrays) -> None:
        self.copy = copy
        self.extra = extra
        self._arrays = arrays
        self._base = base

    def __getitem__(self, name: str) -> Array:
        return self._change(name, None)

    def as_summed(self) -> dict[str, Array]:
        """All changes, integers in the dtype in which they are summed."""
        return {name: self._change(name, NARROW.get(array.dtype.str)) for name, array in self._arrays.items()}

    def _change(self, name: str, dtype: str | None) -> Array:
        change = np.subtract(self._arrays[name], self._base[name], dtype=dtype)
        return change + self.extra[name] if name in self.extra else change

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def _stacked(parts: Sequence[Array], shape: tuple[int, ...], dtype: Any) -> Array:
    return np.concatenate(parts).reshape(shape) if parts else np.zeros(shape, dtype)
