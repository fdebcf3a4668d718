"""User code, while it runs in a task: its surroundings there, and how its errors leave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from p2p.worker.errors import PartitionError
from p2p.worker.job import TaskInfo
from p2p.worker.working_copy import WorkingCopy

_current: ContextVar[TaskInfo | None] = ContextVar("deepdist_task", default=None)
_in_place: ContextVar[WorkingCopy | None] = ContextVar("deepdist_working_copy", default=None)
_pause: ContextVar[Callable[[int], bool] | None] = ContextVar("deepdist_pause", default=None)


def current() -> TaskInfo | None:
    """The running task, when called by a gradient or descent on a worker; else None."""
    return _current.get()


def in_place(model: Any) -> WorkingCopy | None:
    """For a gradient that trains its model in place: what keeps track of the change, cheaper than a copy of it all.

    To be called before the first change; the gradient then returns `trained(...)` of it. None outside of a task of
    `DeepDist`, and for another model than the task's.
    """
    copy = copy_of(model)
    if copy is not None:
        copy.keep_base()
    return copy


def copy_of(model: Any) -> WorkingCopy | None:
    """The running task's copy of the model, if this is its model; it stays with the worker from task to task."""
    copy = _in_place.get()
    return None if copy is None or copy.model.model is not model else copy


def pause(untrained: int = 0) -> bool:
    """For a gradient that trains in place: say that nothing is half done, so that this is a moment to exchange.

    `untrained` of the rows that were read are not in the model yet: another attempt begins with them. Returns whether
    there was an exchange, which changes the model's arrays. There is none but with `exchange="continuous"`.
    """
    exchange = _pause.get()
    return exchange is not None and exchange(untrained)


class CountedRows:
    """Elements of a partition, counted, the rows in them, and whether reading them failed."""

    def __init__(self, rows: Iterable[Any], rows_in: Callable[[Any], int] | None = None) -> None:
        """`rows_in` tells how many rows an element is; None: each is one."""
        self._rows = iter(rows)
        self._rows_in = rows_in
        self.count = 0
        """Elements: a place in the partition."""
        self.rows = 0
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            row = next(self._rows)
        except StopIteration:
            raise
        except BaseException as error:
            self.error = error
            raise
        self.count += 1
        self.rows += 1 if self._rows_in is None else self._rows_in(row)
        return row


@contextmanager
def running(
    info: TaskInfo, rows: CountedRows, copy: WorkingCopy | None, exchange: Callable[[int], bool] | None = None
) -> Iterator[None]:
    """User code runs within: it finds the task by `current`, and its errors say where they happened.

    `copy` is what a gradient may train in place; None: nothing. `exchange(untrained)` is what `pause` calls.
    """
    tokens = ((_current, _current.set(info)), (_in_place, _in_place.set(copy)), (_pause, _pause.set(exchange)))
    try:
        yield
    except BaseException as error:  # also sys.exit(): what would end the worker without a word
        if error is rows.error:
            raise  # the rows could not be read: Spark knows best what to do
        raise PartitionError.of(error, info.epoch, info.partition) from error
    finally:
        for variable, token in tokens:
            variable.reset(token)  # type: ignore[arg-type]
