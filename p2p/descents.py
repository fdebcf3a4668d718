"""Descents: SGD, Momentum, Nesterov, AdaGrad, RMSProp and Adam, and schedules for their rates.

    dd.train(data, gradient, Adam(Cosine(0.01)), epochs=10)         gradient returns gradients, by the arrays' names
    dd.train(data, LocalSteps(gradient, SGD(0.1), rows=32), chunk_rows=512)    sixteen steps between two exchanges

With peers a descent runs where the gradient was computed, on a copy of the replica, and what it changes in the model's
arrays is added to all replicas. So what a descent remembers is of one of two sorts:

    travels     AdaGrad's sums of squares: they are sums, and those of all peers add up to what one process would have.
                They are arrays of the model, `w_adagrad` beside `w`; `AdaGrad(...).prepare(model)` puts them there.
    stays       velocities and running means, of Momentum, Nesterov, RMSProp and Adam. A running mean is no sum: changes
                that n peers make to it at the same time would add up to forgetting n times as fast, and stale ones
                could make a mean of squares negative. Each worker remembers its own gradients, and sends no byte of
                them. A worker in the place of one that died begins with nothing, and each training does.

With a master there is one descent, in the driver program, and all of this is as in one process. Where peers add their
whole steps, n of them go n times as far, and overshoot as soon as they are some steps apart. So steps of SGD add up as
outer steps (`p2p.worker.combine`), unless `train(combine=...)` says otherwise. Those of AdaGrad are summed, as its sums
are, which make the steps of all peers smaller. The other descents have momentum, or steps of a size of their own, at
each worker; their steps are averaged, since more momentum on top of that leads astray.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, ClassVar

import numpy as np

from gossip.arguments import function, integer, number
from gossip.arrays import Array
from gossip.errors import UsageError
from p2p.adapters import nesting
from p2p.adapters.model import Model
from p2p.adapters.sparse import dense
from p2p.adapters.watch import is_nothing
from p2p.worker.combine import OUTER
from p2p.worker.running import copy_of, current, in_place
from p2p.worker.working_copy import WorkingCopy

Schedule = Callable[[float], float]
"""The rate after this share of the training, from 0 to 1."""

SUMS = "_adagrad"
"""AdaGrad's sums of `w` are the array `w_adagrad`."""


def progress(chunks: int | None = None) -> float:
    """How much of the training was done when the running task began, of all partitions and epochs, from 0 to below 1.

    Partitions are begun in their order, so that the number of a partition tells. With `chunks`, how many of them a
    partition has, it also tells how far the task is in its own.

    Raises:
        UsageError: no task is running. A master's descent is in none.
    """
    task = current()
    if task is None:
        raise UsageError(
            "a schedule was asked for a rate outside of a task, expected a gradient or descent on a worker; with "
            "mode='master' descent runs in the driver program: give it a plain number as its rate"
        )
    within = 0.0 if chunks is None else min(task.chunk, chunks - 1) / chunks
    return (task.epoch + (task.partition + within) / task.partitions) / task.epochs


# ----------------------------------------------------------------------------------------------------------- schedules


@dataclass(frozen=True)
class Constant:
    """The same rate all the time."""

    rate: float

    def __post_init__(self) -> None:
        _rate("rate", self.rate)

    def __call__(self, done: float) -> float:
        return self.rate


@dataclass(frozen=True)
class Linear:
    """From `rate` in a straight line to `end`."""

    rate: float
    end: float = 0.0

    def __post_init__(self) -> None:
        _rate("rate", self.rate)
        _rate("end", self.end)

    def __call__(self, done: float) -> float:
        return self.rate + (self.end - self.rate) * done


@dataclass(frozen=True)
class Cosine(Linear):
    """From `rate` to `end` along half a cosine (Loshchilov and Hutter, arXiv:1608.03983, without restarts)."""

    def __call__(self, done: float) -> float:
        return super().__call__((1 - math.cos(math.pi * done)) / 2)


@dataclass(frozen=True)
class Step:
    """`rate`, times `factor` after each of these shares of the training."""

    rate: float
    factor: float = 0.1
    after: tuple[float, ...] = (0.5, 0.75)

    def __post_init__(self) -> None:
        _rate("rate", self.rate)
        _rate("factor", self.factor)
        if not isinstance(self.after, tuple | list):
            raise UsageError(f"after={self.after!r}, expected shares of the training, such as (0.5, 0.75)")
        for share in self.after:
            number("after", share, "shares of the training from 0 to 1", lambda value: 0 <= value <= 1)

    def __call__(self, done: float) -> float:
        return float(self.rate * self.factor ** sum(done >= share for share in self.after))


@dataclass(frozen=True)
class WarmUp:
    """The rates of `then`, and less of them in the first `share` of the training: from the part `start` up to all."""

    then: Schedule | float
    share: float = 0.05
    start: float = 0.1

    def __post_init__(self) -> None:
        _schedule("then", self.then)
        number("share", self.share, "a share of the training, above 0 and below 1", lambda value: 0 < value < 1)
        number("start", self.start, "a part from 0 to 1", lambda value: 0 <= value <= 1)

    def __call__(self, done: float) -> float:
        part = self.start + (1 - self.start) * min(1.0, done / self.share)
        return part * (self.then(done) if callable(self.then) else self.then)


# ------------------------------------------------------------------------------------------------------------ descents


@dataclass(frozen=True)
class SGD:
    """w <- w - rate g."""

    rate: Schedule | float
    """A number, or a schedule: a function of the share of the training that is done."""
    combine: ClassVar[str] = OUTER
    """How the steps of peers add up, if `train` is not told (`p2p.worker.combine`)."""
    role: ClassVar[str] = "descent"
    """The argument of `train` that it is for."""
    chunks: int | None = field(default=None, kw_only=True)
    """How many chunks a partition has, for a schedule to fall within partitions, too; see `progress`."""

    def __post_init__(self) -> None:
        _schedule("rate", self.rate)
        if self.chunks is not None:
            integer("chunks", self.chunks, 1)

    def __call__(self, model: Any, update: Mapping[str, Any]) -> None:
        """Change the model's arrays in place, by gradients of some of them, by name.

        Raises:
            UsageError: the gradients or the rate cannot be.
        """
        rate = self._rate_now()
        for array, gradient, name in _pairs(model, update):
            array -= np.asarray(rate * self.step(model, name, array, gradient), array.dtype)

    def step(self, model: Any, name: str, array: Array, gradient: Array) -> Array:
        """What is taken off the array, at a rate of 1."""
        return gradient

    def _rate_now(self) -> float:
        if not callable(self.rate):
            return self.rate
        return _rate("the schedule's rate", self.rate(progress(self.chunks)))


@dataclass(frozen=True)
class Momentum(SGD):
    """v <- decay v + g, w <- w - rate v (Polyak 1964). The velocity stays with the worker."""

    decay: float = 0.9
    combine: ClassVar[str] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        _decay("decay", self.decay)

    def step(self, model: Any, name: str, array: Array, gradient: Array) -> Array:
        velocity = _kept(model, name, array).mean("velocity", array)
        velocity *= self.decay
        velocity += gradient
        return velocity


@dataclass(frozen=True)
class Nesterov(Momentum):
    """v <- decay v + g, w <- w - rate (g + decay v) (Nesterov 1983, as Sutskever et al. 2013 put it)."""

    def step(self, model: Any, name: str, array: Array, gradient: Array) -> Array:
        return np.asarray(gradient + self.decay * super().step(model, name, array, gradient))


@dataclass(frozen=True)
class AdaGrad(SGD):
    """s <- s + g^2, w <- w - rate g / (sqrt(s) + epsilon) (Duchi, Hazan and Singer 2011). The sums s travel."""

    epsilon: float = 1e-8
    combine: ClassVar[str] = "sum"
    """Sums of all peers' squares make the steps of each smaller."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _above_zero("epsilon", self.epsilon)

    def prepare(self, model: Any) -> Any:
        """Give the model an array of sums beside each of its arrays of floats, before `DeepDist(model)`; returns it.

        Sums that are there stay as they are. Raises `UsageError` for an array in a list or tuple, beside which there
        is no place.
        """
        for name, array in Model(model).arrays().items():
            if array.dtype.kind != "f" or name.endswith(SUMS):
                continue
            *outer, last = nesting.path_of(model, name)
            owner = nesting.find(model, tuple(outer))
            if isinstance(owner, nesting.SEQUENCES):
                raise UsageError(
                    f"{name!r} is in a {type(owner).__name__}, where no sums can stand beside it, expected it in a "
                    "dict or an object"
                )
            path = (*outer, f"{last}{SUMS}")
            if nesting.find(model, path) is None:
                nesting.put(model, path, np.zeros_like(array))
        return model

    def step(self, model: Any, name: str, array: Array, gradient: Array) -> Array:
        sums = nesting.find(model, nesting.path_of(model, name + SUMS))
        if not isinstance(sums, np.ndarray) or sums.shape != array.shape:
            raise UsageError(
                f"the model has no sums {name + SUMS!r} of shape {array.shape} beside {name!r}: call "
                "AdaGrad(...).prepare(model) before DeepDist(model)"
            )
        sums += np.asarray(np.square(gradient), sums.dtype)
        return np.asarray(gradient / (np.sqrt(sums) + self.epsilon))


@dataclass(frozen=True)
class RMSProp(SGD):
    """s <- decay s + (1 - decay) g^2, w <- w - rate g / (sqrt(s) + epsilon) (Tieleman and Hinton 2012). s stays."""

    decay: float = 0.9
    epsilon: float = 1e-8
    combine: ClassVar[str] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        _decay("decay", self.decay)
        _above_zero("epsilon", self.epsilon)

    def step(self, model: Any, name: str, array: Array, gradient: Array) -> Array:
        _check_precise(self, name, array)
        squares = _kept(model, name, array).mean("squares", array)
        _move(squares, np.square(gradient), self.decay)
        return np.asarray(gradient / (np.sqrt(squares) + self.epsilon))


@dataclass(frozen=True)
class Adam(SGD):
    """Running means of g and g^2, corrected for their beginning at 0 (Kingma and Ba, arXiv:1412.6980). Both stay."""

    decay: float = 0.9
    """Of the mean of gradients,"""
    square_decay: float = 0.999
    """of that of their squares."""
    epsilon: float = 1e-8
    combine: ClassVar[str] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        _decay("decay", self.decay)
        _decay("square_decay", self.square_decay)
        _above_zero("epsilon", self.epsilon)

    def step(self, model: Any, name: str, array: Array, gradient: Array) -> Array:
        _check_precise(self, name, array)
        kept = _kept(model, name, array)
        kept.count += 1
        mean, squares = kept.mean("mean", array), kept.mean("squares", array)
        _move(mean, gradient, self.decay)
        _move(squares, np.square(gradient), self.square_decay)
        corrected = mean / (1 - self.decay**kept.count)
        return np.asarray(corrected / (np.sqrt(squares / (1 - self.square_decay**kept.count)) + self.epsilon))


# ------------------------------------------------------------------------------------------------------ what stays here


# --------------------------------------------------------------------------------------------------------- local steps


class LocalSteps:
    """A gradient that takes a step of `descent` after every so many rows, and gives what the steps came to.

    `train` is given it in the place of a gradient, with no descent. How many steps there are between two exchanges is
    for `chunk_rows` to say. What peers come to adds up as steps of the descent do, unless `train` is told otherwise.
    """

    role = "gradient"
    """The argument of `train` that it is for."""

    def __init__(
        self, gradient: Callable[[Any, Iterable[Any]], Any], descent: Callable[[Any, Any], Any], rows: int
    ) -> None:
        """`gradient(model, rows)` and `descent(model, update)` are as `DeepDist.train` takes them.

        Raises:
            UsageError: they are none, or stand in each other's place, as far as that can be told.
        """
        if isinstance(gradient, SGD) or hasattr(descent, "rows_in"):
            raise UsageError(
                f"gradient is {_called(gradient)} and descent is {_called(descent)}, expected "
                "LocalSteps(gradient, descent, rows): the gradient first"
            )
        self.gradient = function("gradient", gradient, "gradient(model, rows)")
        self.descent = function("descent", descent, "descent(model, update)")
        self.rows = integer("rows", rows, 1)
        self.rows_in = getattr(gradient, "rows_in", None)
        self.combine = getattr(descent, "combine", OUTER)

    def __call__(self, model: Any, rows: Iterable[Any]) -> Any:
        """Train `model` in place.

        Raises:
            UsageError: no task is running, in which that is a copy of the user's.
        """
        copy = in_place(model)
        if copy is None:
            raise UsageError("LocalSteps outside of a task, expected it as the gradient of DeepDist(model).train")
        rest = iter(rows)
        for first in rest:
            update = self.gradient(model, chain([first], islice(rest, self.rows - 1)))
            if not is_nothing(update):
                self.descent(model, update)
        return copy.trained({})


def _called(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


@dataclass
class _Kept:
    """What is remembered of one array."""

    count: int = 0
    """Gradients seen."""
    means: dict[str, Array] = field(default_factory=dict)

    def mean(self, name: str, array: Array) -> Array:
        """Zeros at first; to be changed in place."""
        return self.means.setdefault(name, np.zeros(array.shape, array.dtype))


@dataclass
class _Memory:
    """What is remembered in one training."""

    training: int
    kept: dict[str, _Kept] = field(default_factory=dict)


_by_copy: weakref.WeakKeyDictionary[WorkingCopy, _Memory] = weakref.WeakKeyDictionary()
"""That of workers: a gradient may give its model new arrays, but its copy stays."""
_by_array: dict[int, tuple[weakref.ref[Array], _Kept]] = {}
"""By id; that of a master, or of who calls a descent outside of any training: the model's arrays stay as they are."""


def _kept(model: Any, name: str, array: Array) -> _Kept:
    copy = copy_of(model)
    if copy is not None:
        memory = _by_copy.get(copy)
        if memory is None or memory.training != copy.training:
            memory = _by_copy[copy] = _Memory(copy.training)
        return memory.kept.setdefault(name, _Kept())
    found = _by_array.get(id(array))
    if found is None or found[0]() is not array:
        key = id(array)
        found = _by_array[key] = (weakref.ref(array, lambda gone: _forget(key, gone)), _Kept())
    return found[1]


def _forget(key: int, gone: weakref.ref[Array]) -> None:
    if key in _by_array and _by_array[key][0] is gone:
        del _by_array[key]


def _move(mean: Array, new: Array, decay: float) -> None:
    """A running mean, in place."""
    mean *= decay
    mean += (1 - decay) * new


# -------------------------------------------------------------------------------------------------------------- checks


def _pairs(model: Any, update: Any) -> list[tuple[Array, Array, str]]:
    """(array, its gradient, its name), all of them looked at before any is changed."""
    named = nesting.by_name(model, update)
    if named is None:
        raise UsageError(f"gradient returned a {type(update).__name__}, expected a dict of gradients by array name")
    found = []
    for name, value in named.items():
        array = nesting.find(model, nesting.path_of(model, name))
        if not isinstance(array, np.ndarray):
            raise UsageError(f"a gradient of {name!r}, expected the name of an array of the model")
        if array.dtype.kind != "f":
            raise UsageError(f"a gradient of {name!r}, which is of {array.dtype}, expected an array of floats")
        gradient = dense(name, value, array)
        if gradient.shape != array.shape:
            raise UsageError(f"the gradient of {name!r}: shape {gradient.shape}, expected {array.shape}")
        if not np.can_cast(gradient.dtype, array.dtype, "same_kind"):
            raise UsageError(f"the gradient of {name!r}: dtype {gradient.dtype}, expected {array.dtype}")
        found.append((array, gradient, name))
    return found


def _check_precise(descent: SGD, name: str, array: Array) -> None:
    if array.dtype.itemsize < 4:
        raise UsageError(
            f"{type(descent).__name__} with {name!r} of {array.dtype}, expected float32 or float64: squares of small "
            "gradients are 0 there"
        )


def _rate(name: str, value: Any) -> float:
    return number(name, value, "a finite number, at least 0", lambda rate: 0 <= rate < math.inf)


def _schedule(name: str, value: Any) -> None:
    if not callable(value):
        number(
            name, value, "a finite number, at least 0, or a schedule such as Cosine(0.1)", lambda r: 0 <= r < math.inf
        )


def _decay(name: str, value: Any) -> None:
    number(name, value, "a number from 0 to below 1", lambda decay: 0 <= decay < 1)


def _above_zero(name: str, value: Any) -> None:
    number(name, value, "a number above 0", lambda size: 0 < size < math.inf)
