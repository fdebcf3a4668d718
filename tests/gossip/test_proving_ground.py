"""Bad days, each from one seed, and what must hold on each; and that a broken swarm does not get through them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pytest

from gossip.adopt import Adopter
from gossip.arrays import Payload
from gossip.events import Deliver, Effect, Event, Forget, Joined, Negative, Received, Started, Ticked
from gossip.identity import Identities
from gossip.messages import Mark, PeerId, Pin, Range, State, StateRequest, Unit
from gossip.peer import Peer, Settings
from gossip.proving_ground import Options, Outcome, run
from gossip.replicate import Replicator


@pytest.mark.slow
def test_every_promise_holds_on_a_bad_day(over_all_cores: Callable[..., list[Outcome]]) -> None:
    outcomes = over_all_cores(run, range(300))
    assert len(outcomes) == 300
    for outcome in outcomes:
        assert outcome.violation is None, f"{outcome.violation}\n{outcome.options}"


# ------------------------------------------------------------------------------------------------------- same again


@pytest.mark.slow
def test_the_same_seed_is_the_same_day_and_another_seed_another() -> None:
    assert run(3).digest == run(3).digest
    assert run(3).digest != run(4).digest
    assert Options.draw(3) == Options.draw(3)


def test_telling_the_story_does_not_change_it() -> None:
    told = run(3, tell=True)
    assert told.story
    assert told.digest == run(3).digest


@pytest.mark.slow
def test_the_same_seed_is_the_same_day_in_another_process_with_other_hashes() -> None:
    for hashes in ("1", "2"):
        printed = subprocess.run(
            [sys.executable, "-c", "from gossip.proving_ground import run; print(run(3).digest)"],
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        assert printed.strip() == run(3).digest


@pytest.mark.slow
def test_the_days_are_bad_enough() -> None:
    """What the promises are about happens, or they would hold for nothing."""
    counts = sum((run(seed).counts for seed in range(5)), start=run(5).counts)
    for happened in ("adoptions", "withdrawn", "gated", "published"):
        assert counts[happened] > 0, happened


# ------------------------------------------------------------------------------------- these tests can fail: mutants


class ForgetsWhatIsServed(Replicator):
    """Does not wait until it is acknowledged."""

    def compact(self) -> list[Effect]:
        effects = super().compact()
        through = min((reader.served for reader in self.readers.values()), default=0)
        if self.segments and self.segments[0].hi <= through:
            self.segments = [segment for segment in self.segments if segment.hi > through]
            self.forgotten = through
            effects.append(Forget(through))
        return effects


class DropsTheOldest(Replicator):
    """Keeps three segments at most, whoever still needs the first."""

    def publish(self, payload: Payload | Negative, marks: tuple[Mark, ...]) -> list[Effect]:
        effects = super().publish(payload, marks)
        if len(self.segments) > 3:
            self.forgotten = self.segments.pop(0).hi
            effects.append(Forget(self.forgotten))
        return effects


class ForgetsWhoIsGone(Peer):
    """Keeps nothing for a peer that may only be cut off."""

    def __init__(self, me: PeerId, layout: Any, settings: Settings | None, chance: Any) -> None:
        super().__init__(me, layout, Settings(forget_s=0.0), chance)


class StartsWhereTheOthersAre(Peer):
    """Comes late, and takes what was published before for applied instead of adopting it."""

    late = False

    def handle(self, event: Event, now: float) -> list[Effect]:
        if isinstance(event, Started) and not event.ready:
            self.late = True
            event = Started({})
        if isinstance(event, Received) and self.late and event.message.peer in self.replicator.origins:
            origin = self.replicator.origins[event.message.peer]
            origin.frontier = max(origin.frontier, getattr(event.message, "n", 0) if origin.n == 0 else 0)
        return super().handle(event, now)


class KnowsItsFirstMomentOnly(Peer):
    """Comes late, and never hears of those that come later still nor of those that were dead before."""

    late_since: float | None = None

    def handle(self, event: Event, now: float) -> list[Effect]:
        if isinstance(event, Started) and not event.ready:
            self.late_since = now
        if isinstance(event, Joined) and self.late_since is not None and now > self.late_since:
            return []
        return super().handle(event, now)

    def _look_for_strangers(self, now: float) -> None:
        pass


class TakesUnknownForAnOldAnswer(Peer):
    """Asks again and again."""

    def _on_unknown(self, peer: PeerId, frontier: int) -> list[Effect]:
        return []


class PinsNothingWhileItAdopts(Peer):
    """Two that adopt wait for each other."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        assert self.adopter is not None
        if isinstance(event, Received) and isinstance(event.message, Pin) and self.adopter.under_way:
            event = Ticked()
        return super().handle(event, now)


class GivesNothingWhileItWaits(Adopter):
    """Who needs a replica has none to give: all wait, and nobody gives."""

    def on_request(
        self, request: StateRequest, departed: Collection[PeerId], marks: Mapping[PeerId, tuple[Mark, ...]]
    ) -> list[Effect]:
        return [] if self.needed else super().on_request(request, departed, marks)


class LosesItsOwn(Adopter):
    """Does not add its own updates that the donor had not seen."""

    def on_state(self, state: State, now: float) -> list[Effect] | None:
        effects = super().on_state(state, now)
        return effects and effects[:1]


class IgnoresDeadLanes(Peer):
    """Does not agree with the others on what a dead peer left."""

    def _look_after_dead_lanes(self, now: float) -> list[Effect]:
        return []


class FiltersWhatComesIn(Peer):
    """Drops a unit that it knows."""

    def _on_range(self, message: Range) -> list[Effect]:
        known = any(self.identities.knows(mark.unit) and not mark.withdraws for mark in message.marks)
        effects = super()._on_range(message)
        return [effect for effect in effects if not isinstance(effect, Deliver)] if known else effects


class HasNoGate(Identities):
    """Publishes a unit that it knows."""

    def knows(self, unit: Unit) -> bool:
        return False


class TakesNothingBack(Peer):
    """Leaves both attempts of a unit in their lanes."""

    def _withdraw(self, now: float) -> list[Effect]:
        return []


class GivesNoMarks(Adopter):
    """Gives the replica without the units that are in it."""

    def on_request(
        self, request: StateRequest, departed: Collection[PeerId], marks: Mapping[PeerId, tuple[Mark, ...]]
    ) -> list[Effect]:
        return super().on_request(request, departed, {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mutant", "first", "seeds"),
    [
        ("gossip.peer.Replicator", ForgetsWhatIsServed, 0, 1),
        ("gossip.peer.Replicator", DropsTheOldest, 0, 1),
        ("gossip.simulator.Peer", ForgetsWhoIsGone, 0, 1),
        ("gossip.simulator.Peer", StartsWhereTheOthersAre, 0, 1),
        ("gossip.simulator.Peer", KnowsItsFirstMomentOnly, 4, 1),
        ("gossip.simulator.Peer", TakesUnknownForAnOldAnswer, 0, 1),
        ("gossip.simulator.Peer", PinsNothingWhileItAdopts, 10, 1),
        ("gossip.peer.Adopter", GivesNothingWhileItWaits, 10, 1),
        ("gossip.peer.Adopter", LosesItsOwn, 0, 1),
        ("gossip.simulator.Peer", IgnoresDeadLanes, 8, 1),
        ("gossip.simulator.Peer", FiltersWhatComesIn, 0, 1),
        ("gossip.peer.Identities", HasNoGate, 25, 1),
        ("gossip.simulator.Peer", TakesNothingBack, 0, 1),
        ("gossip.peer.Adopter", GivesNoMarks, 29, 1),
    ],
)
def test_a_broken_swarm_is_caught(
    name: str, mutant: type[Any], first: int, seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name, mutant)
    assert any(run(seed).violation is not None for seed in range(first, first + seeds))
