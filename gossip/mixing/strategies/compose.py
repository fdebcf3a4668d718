"""Strategies made of strategies: `Every(4, Compressed(TopK(0.01), Choco()))`.

Strategies that do not compose are refused when they are put together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gossip.arguments import instance
from gossip.arrays import Array
from gossip.compression import Codec
from gossip.errors import UsageError
from gossip.mixing.strategy import Exchange, Outbox, Packet, Strategy
from gossip.topology import Links


class _Wrapping(Strategy[Any]):
    """A strategy that leaves everything to another."""

    _inner: Strategy[Any]

    def _wrap(self, inner: Strategy[Any]) -> None:
        for name, value in (("_inner", inner), ("needs", inner.needs), ("synchronous", inner.synchronous)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "answers", inner.answers)
        object.__setattr__(self, "every_round", inner.every_round)
        object.__setattr__(self, "is_bad_example", inner.is_bad_example)

    def start(self, x: Array) -> Any:
        return self._inner.start(x)

    def params(self, state: Any) -> Array:
        return self._inner.params(state)

    def local(self, state: Any, delta: Array, round: int) -> Any:
        return self._inner.local(state, delta, round)

    def send(self, state: Any, round: int, links: Links, chance: np.random.Generator) -> tuple[Any, Outbox]:
        return self._inner.send(state, round, links, chance)

    def receive(self, state: Any, sender: int, packet: Packet) -> tuple[Any, Outbox]:
        return self._inner.receive(state, sender, packet)

    def finish(self, state: Any, round: int, links: Links) -> Any:
        return self._inner.finish(state, round, links)

    def mixing_round(self, round: int) -> int | None:
        return self._inner.mixing_round(round)

    def rest(self, state: Any) -> Any:
        return self._inner.rest(state)

    @property
    def by_step(self) -> bool:
        return self._inner.by_step

    @property
    def interval(self) -> int:
        return self._inner.interval

    def consensus(self, state: Any) -> tuple[Strategy[Any], Any]:
        return self._inner.consensus(state)

    def mix(self, state: Any, exchange: Exchange) -> tuple[Any, int]:
        return self._inner.mix(state, exchange)

    def check_network(self, *, loss: float = 0.0, delay: int = 0, churn: float = 0.0, crash: float = 0.0) -> None:
        self._inner.check_network(loss=loss, delay=delay, churn=churn, crash=crash)

    def says_nothing(self, is_trained: bool) -> str:
        return self._inner.says_nothing(is_trained)

    def ages(self, state: Any, exchange: Exchange) -> Mapping[int, int]:
        return self._inner.ages(state, exchange)

    def weight(self, state: Any) -> float:
        return self._inner.weight(state)

    def give_up(self, state: Any, neighbor: int, taken: Packet | None = None) -> tuple[Any, Outbox]:
        return self._inner.give_up(state, neighbor, taken)

    def regroup(self, state: Any) -> Any:
        return self._inner.regroup(state)

    def mass(self, state: Any) -> tuple[Array, float]:
        return self._inner.mass(state)


@dataclass(frozen=True, repr=False)
class Every(_Wrapping):
    """Mix in every `rounds`-th round only; training goes on in between (local steps)."""

    rounds: int
    strategy: Strategy[Any]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1:
            raise UsageError(f"Every({self.rounds!r}, ...), expected a number of rounds from 1")
        instance("strategy", self.strategy, Strategy)
        if isinstance(self.strategy, Every):
            product = Every(self.rounds * self.strategy.rounds, self.strategy.strategy)
            raise UsageError(f"Every({self.rounds}, {self.strategy!r}) does not compose: write {product!r}")
        if self.strategy.every_round:
            raise UsageError(
                f"Every({self.rounds}, {self.strategy!r}) does not compose: {type(self.strategy).__name__} corrects "
                f"each local step by mixing right after it. What composes: DPsgd(), PushSum(), Choco(), DiLoCo() "
                f"and others that take a training step as it comes"
            )
        self._wrap(self.strategy)

    def mixing_round(self, round: int) -> int | None:
        return None if (round + 1) % self.rounds else round // self.rounds

    @property
    def by_step(self) -> bool:
        return True

    @property
    def interval(self) -> int:
        return self.rounds

    def compressed(self, codec: Codec) -> Strategy[Any]:
        raise UsageError(
            f"Compressed({codec!r}, {self!r}) does not compose: Every goes outside, "
            f"Every({self.rounds}, Compressed({codec!r}, {self.strategy!r}))"
        )


@dataclass(frozen=True, repr=False)
class Compressed(_Wrapping):
    """A strategy whose packets a codec makes smaller, with what it leaves out kept for later."""

    codec: Codec
    strategy: Strategy[Any]

    def __post_init__(self) -> None:
        super().__post_init__()
        instance("codec", self.codec, Codec)
        instance("strategy", self.strategy, Strategy)
        whole = self.strategy.compressed(self.codec)
        try:
            self.codec.encode(np.zeros(2), np.random.default_rng(0))
        except UsageError as error:
            raise UsageError(f"{self!r} does not compose, since packets are flat: {error}") from None
        self._wrap(whole)

    def compressed(self, codec: Codec) -> Strategy[Any]:
        raise UsageError(
            f"Compressed({codec!r}, {self!r}) does not compose: write "
            f"Compressed(Chain({self.codec!r}, {codec!r}), {self.strategy!r})"
        )
