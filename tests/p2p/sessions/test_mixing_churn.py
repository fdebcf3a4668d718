"""Every strategy of mixing, with agents of which one is killed, one comes late, and one is out of reach for a while.

To start few processes, strategies that fit one topology train beside each other, each on a stretch of the same model.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from gossip import mixing, topology
from gossip.arrays import Array
from gossip.compression import TopK
from gossip.mixing import (
    Choco,
    ClippedGossip,
    CombineThenAdapt,
    Compressed,
    DiLoCo,
    DPsgd,
    EpidemicLearning,
    Every,
    GradientTracking,
    NoLoCo,
    PairwiseExchange,
    PushSum,
    RelaySum,
    Strategy,
)
from gossip.mixing.strategy import Exchange, Outbox, Packet
from gossip.topology import Links, Needs, Topology
from p2p import DeepDist

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # agents and workers cannot import this file

WAIT_S = 60.0
WIDTH = 5
"""Parameters of each strategy."""
GOAL = 2.0


def wait_until(condition: Callable[[], bool]) -> bool:
    """Look again and again, at most `WAIT_S`; what was seen last."""
    give_up = time.monotonic() + WAIT_S
    while not condition() and time.monotonic() < give_up:
        time.sleep(0.02)
    return condition()


@dataclass(frozen=True)
class Beside(Strategy[tuple[Any, ...]]):
    """Strategies side by side, each with a stretch of the parameters, and a share in every packet."""

    strategies: tuple[Strategy[Any], ...]

    needs = Needs(0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "synchronous", self.strategies[0].synchronous)
        assert len({(each.synchronous, each.by_step) for each in self.strategies}) == 1

    def _each(self) -> Any:
        return enumerate(self.strategies)

    def start(self, x: Array) -> tuple[Any, ...]:
        return tuple(each.start(x[i * WIDTH : (i + 1) * WIDTH]) for i, each in self._each())

    def params(self, state: tuple[Any, ...]) -> Array:
        return np.concatenate([each.params(state[i]) for i, each in self._each()])

    def local(self, state: tuple[Any, ...], delta: Array, round: int) -> tuple[Any, ...]:
        return tuple(each.local(state[i], delta[i * WIDTH : (i + 1) * WIDTH], round) for i, each in self._each())

    def _packed(self, outboxes: dict[int, Outbox]) -> Outbox:
        packed: dict[int, Packet] = {}
        for i, outbox in outboxes.items():
            for to, packet in outbox.items():
                before = packed.get(to, Packet({}))
                arrays = {f"{i}.{name}": array for name, array in packet.arrays.items()}
                scalars = {f"{i}.{name}": value for name, value in packet.scalars.items()}
                packed[to] = Packet({**before.arrays, **arrays}, {**before.scalars, **scalars})
        return packed

    def _unpacked(self, i: int, packet: Packet | None) -> Packet | None:
        if packet is None:
            return None
        start = f"{i}."
        arrays = {name.removeprefix(start): each for name, each in packet.arrays.items() if name.startswith(start)}
        scalars = {name.removeprefix(start): each for name, each in packet.scalars.items() if name.startswith(start)}
        return Packet(arrays, scalars) if arrays or scalars else None

    def send(
        self, state: tuple[Any, ...], round: int, links: Links, chance: np.random.Generator
    ) -> tuple[tuple[Any, ...], Outbox]:
        sent = {i: each.send(state[i], round, links, chance) for i, each in self._each()}
        return tuple(each for each, _ in sent.values()), self._packed({i: outbox for i, (_, outbox) in sent.items()})

    def receive(self, state: tuple[Any, ...], sender: int, packet: Packet) -> tuple[tuple[Any, ...], Outbox]:
        states, outboxes = list(state), {}
        for i, each in self._each():
            if (share := self._unpacked(i, packet)) is not None:
                states[i], outboxes[i] = each.receive(states[i], sender, share)
        return tuple(states), self._packed(outboxes)

    def finish(self, state: tuple[Any, ...], round: int, links: Links) -> tuple[Any, ...]:
        return tuple(each.finish(state[i], round, links) for i, each in self._each())

    def consensus(self, state: tuple[Any, ...]) -> tuple[Strategy[Any], Any]:
        agreed = [each.consensus(state[i]) for i, each in self._each()]
        return Beside(tuple(each for each, _ in agreed)), tuple(each for _, each in agreed)

    def weight(self, state: tuple[Any, ...]) -> float:
        return min(each.weight(state[i]) for i, each in self._each())

    def give_up(
        self, state: tuple[Any, ...], neighbor: int, taken: Packet | None = None
    ) -> tuple[tuple[Any, ...], Outbox]:
        given = {i: each.give_up(state[i], neighbor, self._unpacked(i, taken)) for i, each in self._each()}
        return tuple(each for each, _ in given.values()), self._packed({i: outbox for i, (_, outbox) in given.items()})

    def regroup(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(each.regroup(state[i]) for i, each in self._each())

    def mix(self, state: tuple[Any, ...], exchange: Exchange) -> tuple[tuple[Any, ...], int]:
        raise AssertionError("agents have no use for it")


GROUPS: dict[str, tuple[tuple[Strategy[Any], ...], Callable[[int], Topology]]] = {
    "tree": (
        (
            DPsgd(),
            CombineThenAdapt(),
            ClippedGossip(0.7),
            EpidemicLearning(),
            Choco(),
            Compressed(TopK(0.4), Choco(0.3)),
            GradientTracking(),
            RelaySum(),
        ),
        topology.path,
    ),
    "complete": ((DiLoCo(momentum=0.3), Compressed(TopK(0.5), DiLoCo(momentum=0.3))), topology.complete),
    "matching": ((NoLoCo(alpha=0.3, gamma=0.8),), topology.random_matching),
    "push-sum": ((PushSum(),), topology.complete),
    "pairs": ((PairwiseExchange(),), topology.complete),
    "every": ((Every(2, Choco()),), topology.path),
}


def test_no_strategy_is_left_out() -> None:
    exported = {getattr(mixing, name) for name in mixing.__all__}
    strategies = {each for each in exported if inspect.isclass(each) and issubclass(each, Strategy)} - {Strategy}
    assert {type(each) for group, _ in GROUPS.values() for each in group} == strategies


@pytest.mark.sockets
@pytest.mark.slow
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    "group", [pytest.param(name, marks=[] if name == "pairs" else [pytest.mark.long]) for name in GROUPS]
)
def test_agents_that_die_come_late_or_stand_still_leave_the_others_on_their_way(group: str, tmp_path: Path) -> None:
    """The goal is reached, which what is remembered of a neighbor that is gone would pull everybody away from."""
    strategies, build = GROUPS[group]
    strategy = strategies[0] if len(strategies) == 1 else Beside(strategies)
    over = tmp_path / "over"

    def gradient(model, rows):
        (is_after,) = rows
        give_up = time.monotonic() + WAIT_S
        while is_after and not over.exists() and time.monotonic() < give_up:
            time.sleep(0.01)
        time.sleep(0.005)
        return {"w": -0.3 * (model["w"] - GOAL)}

    model = {"w": np.zeros(len(strategies) * WIDTH)}
    seen: list[str] = []
    with DeepDist(model, discipline="mix", mixing=strategy, topology=build, peers=4, progress=False) as dd:

        def disturb() -> None:
            session: Any = dd._session
            wait_until(lambda: session._registrar is not None)

            def peers() -> list[Any]:
                return session._registrar.by_role("peer")

            def rounds() -> list[int]:
                return [member.figures.mixing.rounds for member in peers()]

            try:
                wait_until(lambda: len(peers()) == 4 and min(rounds()) >= 4)
                killed, stopped, *others = peers()
                os.kill(killed.pid, signal.SIGKILL)
                os.kill(stopped.pid, signal.SIGSTOP)
                try:
                    if wait_until(lambda: all(stopped.peer in each.figures.departed for each in others)):
                        seen.append("out of reach")
                finally:
                    os.kill(stopped.pid, signal.SIGCONT)
                if wait_until(lambda: all(stopped.peer not in each.figures.departed for each in others)):
                    seen.append("back")
            finally:
                over.touch()

        disturber = threading.Thread(target=disturb)
        disturber.start()
        try:
            report = dd.train([[False] * 20 + [True] * 60] * 8, gradient, chunk_rows=1)
        finally:
            disturber.join()
        agents = dd._session._registrar.by_role("peer")  # type: ignore[attr-defined]
    assert seen == ["out of reach", "back"]
    assert len(agents) == 5, "one has come for the one that was killed"
    # Who does not wait may be taken for dead for a moment, at the very end, by those whose machine is busy.
    exact = 1e-3 if strategy.synchronous else 0.1
    assert report.consensus_distance < exact
    np.testing.assert_allclose(model["w"].reshape(-1, WIDTH), GOAL, atol=exact)
