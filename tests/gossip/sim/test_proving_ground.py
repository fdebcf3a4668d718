"""Bad days, each from one seed, and what must hold on each; and that a broken swarm does not get through them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from gossip.arrays import Payload
from gossip.events import Deliver, Effect, Event, Fold, Forget, Joined, Negative, Received, Send, Started, Ticked
from gossip.identity import Identities
from gossip.lanes.adopt import Adopter
from gossip.lanes.peer import Adverts, Peer
from gossip.lanes.replicate import Replicator
from gossip.lanes.units import Units
from gossip.marks import Series
from gossip.membership import Contact, Membership
from gossip.messages import (
    Advert,
    Mark,
    Nack,
    PeerId,
    Pin,
    PingRequest,
    Pinned,
    Pull,
    Range,
    Rumor,
    State,
    StateRequest,
    Unit,
    Unpin,
)
from gossip.sim.bad_day import Options
from gossip.sim.proving_ground import Outcome, run
from gossip.sim.simulator import Simulation
from gossip.sim.states import STATES

SELDOM = {
    "Ack": "alone watching draining",
    "Advert": "",
    "Closed": "needs forgetting watching congested draining",
    "Computed": "new watching congested draining",
    "Disconnected": "needs asking alone forgetting watching congested draining",
    "Exhausted": "new needs pinning asking alone suspecting watching congested draining",
    "Joined": "forgetting watching congested draining",
    "Nack": "alone watching draining",
    "Pin": "alone watching draining",
    "Ping": "alone draining",
    "PingRequest": "alone watching draining",
    "Pinned": "needs alone watching draining",
    "Progressed": "needs alone watching draining",
    "Pull": "new alone watching draining",
    "Range": "new alone watching draining",
    "State": "needs alone watching congested draining",
    "StateRequest": "new needs alone forgetting watching congested draining",
    "Ticked": "",
    "Unknown": "new needs pinning asking alone watching congested draining",
    "Unpin": "alone forgetting watching congested draining",
}
"""By event: in which states it finds no peer on these 40 days, or fewer than ten times. All others are reached."""


@pytest.mark.long
@pytest.mark.slow
def test_every_promise_holds_on_a_bad_day(over_all_cores: Callable[..., list[Outcome]]) -> None:
    # enough to catch every mutant below but two; `make soak` runs as many as one likes
    outcomes = over_all_cores(run, range(40))
    assert len(outcomes) == 40
    for outcome in outcomes:
        assert outcome.violation is None, f"{outcome.violation}\n{outcome.options}"
    counts = sum((outcome.counts for outcome in outcomes), start=Counter[str]())
    for happened in (
        "replicas adopted",
        "withdrawn",
        "gated",
        "unknown",
        "observers crashed",
        "observers started anew",
        "replicas adopted by observers",
        "epochs dropped",
    ):  # or the promises would hold for nothing
        assert counts[happened] > 0, happened
    reached = sum((outcome.reached for outcome in outcomes), start=Counter[tuple[str, str]]())
    missed = {
        (event, state)
        for event, seldom in SELDOM.items()
        for state in STATES
        if state not in seldom.split() and not reached[event, state]
    }
    assert missed == set()
    assert counts["doubled"] <= 0.003 * counts["units"]
    assert counts["absent"] <= 0.02 * counts["units"]  # with the only peer that had them


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
            [sys.executable, "-c", "from gossip.sim.proving_ground import run; print(run(3).digest)"],
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
            timeout=500,
        ).stdout
        assert printed.strip() == run(3).digest


# ------------------------------------------------------------------------------------- these tests can fail: mutants


class ForgetsWhatIsServed(Replicator):
    """Compaction past a stale frontier: does not wait until it is acknowledged."""

    def compact(self) -> list[Effect]:
        effects = super().compact()
        through = min((reader.served for reader in self.readers.values()), default=0)
        if self.segments and self.segments[0].hi <= through:
            self.segments = [segment for segment in self.segments if segment.hi > through]
            self.forgotten = through
            effects.append(Forget(through))
        return effects


class ForgetsWhoIsGone(Peer):
    """Both sides refusing after a partition: keeps nothing for a peer that may only be cut off."""

    def _forget_departed(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for peer, member in self.members.items():
            if member.departed_at is not None:
                member.forgotten = True
                effects += self.replicator.forget_reader(peer)
        return effects


class PublishesBeforeItIsReady(Peer):
    """A joiner that publishes before it is ready."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        effects = super().handle(event, now)
        self.ready = True
        return effects


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
    """A joiner that knows only the peers of its first moment: neither later ones nor those that were dead before."""

    late_since: float | None = None

    def handle(self, event: Event, now: float) -> list[Effect]:
        if isinstance(event, Started) and not event.ready:
            self.late_since = now
        if isinstance(event, Joined) and self.late_since is not None and now > self.late_since:
            return []
        return super().handle(event, now)

    def _look_after_dead_lanes(self, now: float) -> None:
        self.roster.lanes_changed = False
        super()._look_after_dead_lanes(now)


class GivesNothingWhileItWaits(Adopter):
    """All waiting for state and none giving: who needs a replica has none to give, and waits until it has."""

    def tick(self, now: float, donors: Collection[PeerId], members: Collection[PeerId]) -> list[Effect]:
        if self._adoption is not None:
            self._adoption.gives_up = float("inf")
        return super().tick(now, donors, members)

    def on_request(
        self,
        request: StateRequest,
        departed: Collection[PeerId],
        members: Collection[PeerId],
        identities: Identities,
    ) -> list[Effect]:
        return [] if self.needed else super().on_request(request, departed, members, identities)


class GivesThoughItIsBehind(Adopter):
    """Adopting from a donor that is behind."""

    def on_request(
        self,
        request: StateRequest,
        departed: Collection[PeerId],
        members: Collection[PeerId],
        identities: Identities,
    ) -> list[Effect]:
        return super().on_request(structs.replace(request, frontiers={}), departed, members, identities)


class TakesUnknownForAnOldAnswer(Peer):
    """Treating an unknown frontier as a stale duplicate: asks again and again."""

    def _on_unknown(self, peer: PeerId, frontier: int) -> list[Effect]:
        return []


class PinsNothingWhileItAdopts(Peer):
    """Two joiners waiting for each other: who adopts pins nothing for others, and waits until they have for it."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        assert isinstance(self.adopter, Adopter)
        if self.adopter._adoption is not None:
            self.adopter._adoption.gives_up = float("inf")
        if isinstance(event, Received) and isinstance(event.message, Pin) and self.adopter.under_way:
            event = Ticked()
        return super().handle(event, now)


class DropsTheOldest(Replicator):
    """Dropping the oldest segment at the cap: three at most, whoever still needs the first."""

    def publish(self, payload: Payload | Negative, marks: tuple[Mark, ...]) -> list[Effect]:
        effects = super().publish(payload, marks)
        if len(self.segments) > 3:
            self.forgotten = self.segments.pop(0).hi
            effects.append(Forget(self.forgotten))
        return effects


class PinsNothing(Replicator):
    """Says that it has pinned, and has not."""

    def on_pin(self, pin: Pin) -> list[Effect]:
        return [Send(pin.peer, Pinned(self.me, pin.k))]


class PinsOnlyWhereTheDonorStands(Replicator):
    """Keeps what the donor has when it is asked to pin, and not what it has when it gives."""

    def _boundary_of(self, donor: PeerId, boundary: int) -> None:
        pass


class LetsPinsExpire(Peer):
    """Drops pins after two seconds."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        effects = super().handle(event, now)
        pins = self.replicator.pins
        self.since = {peer: since for peer, since in getattr(self, "since", {}).items() if peer in pins}
        for peer in list(pins):
            if now > self.since.setdefault(peer, now) + 2.0:
                del pins[peer]
        return effects


class KeepsPinsUntilTheyAreUsed(Replicator):
    """Does not take a pull or an advert for the end of an adoption that was given up."""

    def on_pull(self, pull: Pull) -> list[Effect]:
        pin = self.pins.get(pull.peer)
        effects = super().on_pull(pull)
        if pin is not None and pull.frontier not in pin.boundaries:
            self.pins[pull.peer] = pin
        return effects

    def acknowledge(self, peer: PeerId, frontier: int, k: int = 0) -> list[Effect]:
        return super().acknowledge(peer, frontier)

    def on_unpin(self, unpin: Unpin) -> list[Effect]:
        return []


class GivesAndKeepsNothing(Replicator):
    """Forgets to whom it gave its replica."""

    def give_to(self, peer: PeerId, k: int) -> bool:
        return True


class AppliesWhileItAdopts(Peer):
    """Is not frozen while a replica is on its way."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        self.replicator.frozen = False
        return super().handle(event, now)


class AdoptsWhateverComes(Adopter):
    """Takes a replica that it does not wait for any more."""

    def expects(self, state: State) -> bool:
        return True


class LosesItsOwn(Adopter):
    """Does not add its own updates that the donor had not seen."""

    def on_state(self, state: State) -> list[Effect] | None:
        effects = super().on_state(state)
        return effects and effects[:1]


class IgnoresDeadLanes(Peer):
    """Does not agree with the others on what a dead peer left."""

    def _look_after_dead_lanes(self, now: float) -> list[Effect]:
        return []


class TakesAdvertsForNothing(Replicator):
    """Waits for a pull to acknowledge what was served last."""

    def acknowledge(self, peer: PeerId, frontier: int, k: int = 0) -> list[Effect]:
        return []


class ServesWhatItLikes(Replicator):
    """Takes every pull for an acknowledgment of what was served last."""

    def on_pull(self, pull: Pull) -> list[Effect]:
        reader = self.readers.get(pull.peer)
        if reader is not None and pull.frontier == reader.acknowledged:
            pull = structs.replace(pull, frontier=reader.served)
        return super().on_pull(pull)


class FiltersWhatComesIn(Peer):
    """A filter at receivers: drops a unit that it knows."""

    def _on_range(self, message: Range) -> list[Effect]:
        marks = [mark for series in message.marks for mark in series.marks()]
        known = any(self.identities.knows(mark.unit) and not mark.withdraws for mark in marks)
        effects = super()._on_range(message)
        return [effect for effect in effects if not isinstance(effect, Deliver)] if known else effects


class HasNoGate(Identities):
    """Publishes a unit that it knows."""

    def knows(self, unit: Unit) -> bool:
        return False


class TakesNothingBack(Units):
    """Leaves both attempts of a unit in their lanes: no withdrawal."""

    def withdraw(self, now: float) -> list[Effect]:
        return []


class RetainsForever(Units):
    """Never releases an update that it need not take back."""

    def _settled(self, retained: Any) -> bool:
        return False


class ReleasesAtOnce(Units):
    """Does not wait until everybody knows the unit."""

    def _settled(self, retained: Any) -> bool:
        return True


class RemembersWhoHadAnUpdate(Units):
    """Takes a reader that had an update for one that has it for ever."""

    def _settled(self, retained: Any) -> bool:
        had = vars(retained).setdefault("had", {})
        had.update({**retained.known_to, **had})
        retained.known_to = dict(had)
        return super()._settled(retained)


class BelievesOvertakenAdverts(Peer):
    """Takes the advert that came last for the newest."""

    def _on_advert(self, advert: Advert, now: float) -> list[Effect]:
        if advert.peer in self.members:
            self.members[advert.peer].k = 0
        return super()._on_advert(advert, now)


class DropsNothing(Units):
    """Keeps all units of epochs that are over."""

    def drop_closed(self) -> None:
        pass


class DropsAtOnce(Units):
    """Drops an epoch when it is told that it is over, whoever has less."""

    def _await_everybody(self) -> None:
        super()._await_everybody()
        self.awaited = set()


class DropsWhatSomeHaveNoMore(Units):
    """Drops an epoch when each was level at some time, whoever has less again."""

    def drop_closed(self) -> None:
        for peer in self.awaited - self._roster.gone:
            theirs = self._roster.members[peer].frontiers
            if all(theirs.get(lane, 0) >= n for lane, n in self.closing.items()):
                self.awaited.discard(peer)
        super().drop_closed()


class TakesTheGoneForLevel(Units):
    """Drops an epoch though one of whom it heard enough is out of reach by now."""

    def drop_closed(self) -> None:
        gone, self._roster.gone = self._roster.gone, set()
        super().drop_closed()
        self._roster.gone = gone


class ForgetsWhatIsUndecided(Identities):
    """Drops an epoch with attempts that may have to be taken back."""

    def drop(self, epochs: int, retained: Iterable[Unit] = ()) -> None:
        super().drop(epochs)
        self._watched.clear()


class CountsNothingThatIsLate(Identities):
    """Takes what comes late of a dropped epoch for counted."""

    def _note_late(self, *arguments: Any) -> None:
        pass


class BeginsToCountWhenItAdopts(Identities):
    """Takes over the replica of its donor, and not how many units count in it."""

    @classmethod
    def told(cls, marks: Mapping[PeerId, Iterable[Series]], closed: int, units: int) -> Identities:
        return super().told(marks, closed, 0)


class ServesOldPulls(Replicator):
    """Serves a pull that is older than what came since."""

    def on_pull(self, pull: Pull) -> list[Effect]:
        pin, reader = self.pins.get(pull.peer), self.readers.get(pull.peer)
        return super().on_pull(structs.replace(pull, k=max(pull.k, pin.k if pin else 0, reader.k if reader else 0)))


class WaitsForAllPinsButOne(Adopter):
    """Asks for the replica when one origin has not pinned yet."""

    def _push(self, members: Collection[PeerId]) -> list[Effect]:
        adoption = self._adoption
        assert adoption is not None
        missing = adoption.missing
        if len(missing & set(members)) == 1:
            adoption.missing = set()
        effects = super()._push(members)
        adoption.missing = missing
        return effects


class PinsNothingWhereAnAdoptingDonorComesOut(Replicator):
    """Takes over no boundary at which the donor, which adopts itself, may come out."""

    def _renew(self, adopter: PeerId) -> None:
        pin = self.pins.get(adopter)
        donor = self.readers.get(pin.donor) if pin is not None else None
        if donor is not None:
            self._pin(adopter, {donor.acknowledged, donor.served})


class AdoptsWhatHasSeenLess(Adopter):
    """Adopts a replica that lacks own updates which are not kept any more."""

    def on_state(self, state: State) -> list[Effect] | None:
        object.__setattr__(self._replicator, "keeps", lambda after: True)
        effects = super().on_state(state)
        del self._replicator.__dict__["keeps"]
        return effects


class ForgetsItsOwnUnits(Units):
    """Does not note again, after an adoption, what its own lane carries that the donor had not seen."""

    def adopt(self, state: State) -> None:
        object.__setattr__(self._replicator, "marks", lambda after, through: ())
        super().adopt(state)
        del self._replicator.__dict__["marks"]


class TakesOldPins(Replicator):
    """Pins for an adoption that is over, as the pull says that came before the pin did."""

    def on_pin(self, pin: Pin) -> list[Effect]:
        reader = self.readers.get(pin.peer)
        if reader is not None:
            reader.k = min(reader.k, pin.k)
        return super().on_pin(pin)


class AppliesOldAnswers(Adopter):
    """Applies answers to pulls of before an adoption that it gave up."""

    def _stop(self, now: float) -> list[Effect]:
        void = self._replicator.void
        effects = super()._stop(now)
        self._replicator.void = void
        return effects


class TakesAConfirmationForAPause(Membership):
    """Takes a suspicion that is over as soon as others confirm it for a deadline that it missed."""

    def _confirm(self, rumor: Rumor, contact: Contact, now: float) -> None:
        super()._confirm(rumor, contact, float("-inf"))


class PingsForNobody(Membership):
    """Does not ping when others ask it to."""

    def on_ping_request(self, request: PingRequest, now: float) -> list[Effect]:
        return []


class IsSilentOfWhatItPinged(Membership):
    """Does not say that one for whom it was asked is silent."""

    def tick(self, now: float) -> list[Effect]:
        return [effect for effect in super().tick(now) if not isinstance(getattr(effect, "message", None), Nack)]


class DoesNotObject(Membership):
    """Lets others take it for dead."""

    def _object_to(self, rumor: Rumor, now: float) -> None:
        pass


class BlamesOthersForItsOwnPause(Membership):
    """Takes others for silent though it was stopped itself."""

    def _forgive_own_pause(self, now: float) -> None:
        pass


class PullsAgainAtOnce(Replicator):
    """Pulls again before the answer can be there."""

    def pulls(self, now: float) -> list[Effect]:
        for origin in self.origins.values():
            if origin.pull is not None:
                origin.pull.due -= self.pull_timeout_s / 2
        return super().pulls(now)


class KeepsApartWhatNobodyTellsApart(Replicator):
    """Sums nothing when a reader moves on."""

    def compact(self) -> list[Effect]:
        segments = [replace(segment) for segment in self.segments]
        effects = super().compact()
        if any(isinstance(effect, Fold) for effect in effects):
            self.segments = [segment for segment in segments if segment.hi > self.forgotten]
            effects = [effect for effect in effects if not isinstance(effect, Fold)]
        return effects


class ForgetsNobody(Peer):
    """Keeps for ever what the dead lack."""

    def _forget_departed(self, now: float) -> list[Effect]:
        return []


class ForgetsThoughItIsNotTheSmallest(Peer):
    """Forgets the departed whoever else may."""

    def _forget_departed(self, now: float) -> list[Effect]:
        me, self.roster.me = self.roster.me, PeerId("")
        effects = super()._forget_departed(now)
        self.roster.me = me
        return effects


class SaysNothingNew(Adverts):
    """Advertises every so often only, whatever changed."""

    def gap_s(self) -> float:
        return self._settings.advert_period_s


class TakesClosedEpochsForOpen(Units):
    """Knows of no more epochs that are over than its donor, after an adoption."""

    def adopt(self, state: State) -> None:
        super().adopt(state)
        self.identities.closed = state.closed


class AgreesAtOnce(Peer):
    """Adopts for a dead lane before what its peer had sent can have arrived."""

    def _look_after_dead_lanes(self, now: float) -> None:
        settings, self.settings = self.settings, replace(self.settings, settle_s=0.0)
        super()._look_after_dead_lanes(now)
        self.settings = settings


class AdoptsFromTheNext(Peer):
    """Has the same of the dead lanes as the one that has most, and adopts from the next."""

    def _look_after_dead_lanes(self, now: float) -> None:
        mine, dead = self.replicator.frontiers(), self.roster.departed()
        same = [
            self.members[peer]
            for peer in self.roster.donors()
            if all(self.members[peer].frontiers.get(lane, 0) == mine.get(lane, 0) for lane in dead)
        ]
        for member in same:
            member.ready = False
        super()._look_after_dead_lanes(now)
        for member in same:
            member.ready = True


class DrainsThoughOthersLack(Peer):
    """Says that it is drained though others have less, or more, of a dead peer's lane."""

    def _level(self) -> bool:
        return True


class AdoptsForOldAnswers(Peer):
    """Takes any origin that does not know a frontier for a reason to adopt, also where it stands elsewhere by now."""

    def _on_unknown(self, peer: PeerId, frontier: int) -> list[Effect]:
        origin = self.replicator.origins.get(peer)
        return super()._on_unknown(peer, origin.frontier if origin is not None else frontier)


class WaitsThoughItWasAnswered(Replicator):
    """Does not ask for what is next until the pull that was answered is over."""

    def on_range(self, message: Range) -> list[Effect]:
        pull = self.origins[message.peer].pull
        effects = super().on_range(message)
        if effects:
            self.origins[message.peer].pull = pull
        return effects


class AsksTheSameFirst(Replicator):
    """Asks by name, and not who waited longest."""

    def pulls(self, now: float) -> list[Effect]:
        for origin in self.origins.values():
            origin.pulled_at = float("-inf")
        return super().pulls(now)


class GivesToWhomNotAllHavePinned(Adopter):
    """Gives its replica though an origin that it hears has not pinned for it."""

    def on_request(
        self,
        request: StateRequest,
        departed: Collection[PeerId],
        members: Collection[PeerId],
        identities: Identities,
    ) -> list[Effect]:
        return super().on_request(request, departed, (), identities)


class TellsNobodyThatItGaveUp(Adopter):
    """Leaves it to time, what others keep for an adoption that it gave up."""

    def _stop(self, now: float) -> list[Effect]:
        super()._stop(now)
        return []


class TellsEachRumorOnce(Membership):
    """Says what is new once, though an advert may be lost."""

    def rumors(self) -> tuple[Rumor, ...]:
        told = super().rumors()
        for rumor in told:
            self._rumors.pop(rumor.about, None)
        return told


class BuriesAtTheShortest(Membership):
    """Gives nobody the time that one has whom nobody else suspects."""

    def _dies_at(self, contact: Contact) -> float:
        return contact.suspected_at + self._patient(self.detection.suspicion_min_s)


class ObjectsAsItWas(Membership):
    """Objects without raising its incarnation, which outweighs nothing."""

    def _object_to(self, rumor: Rumor, now: float) -> None:
        super()._object_to(rumor, now)
        self.incarnation = 0


def asks_the_first_observer(swarm: Simulation, but: Container[PeerId] = ()) -> PeerId:
    """Takes the user's model from the observer of the first moment, dead or alive."""
    return min(swarm.observing, default=min(swarm.live()))


def asks_whoever_observes(swarm: Simulation, but: Container[PeerId] = ()) -> PeerId:
    """Takes the user's model from an observer that is alive and has a replica, level or not."""
    ready = {me: host for me, host in swarm.live().items() if host.peer.ready}
    awake = [me for me, host in ready.items() if swarm.now >= host.paused_until]
    observing = swarm.observing.intersection(awake)
    return min(observing) if observing else source(swarm, but)


source = Simulation.source

REPLICATOR, PEER, ADVERTS, UNITS, ADOPTER, IDENTITIES, MEMBERSHIP, SOURCE = (
    "gossip.lanes.peer.Replicator",
    "gossip.sim.simulator.Peer",
    "gossip.lanes.peer.Adverts",
    "gossip.lanes.peer.Units",
    "gossip.lanes.peer.Adopter",
    "gossip.lanes.units.Identities",
    "gossip.lanes.peer.Membership",
    "gossip.sim.simulator.Simulation.source",
)
"""Where a mutant takes the place of the real one."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mutant", "seed"),
    [
        (REPLICATOR, ForgetsWhatIsServed, 0),
        (PEER, ForgetsWhoIsGone, 0),
        (PEER, PublishesBeforeItIsReady, 1),
        (PEER, StartsWhereTheOthersAre, 0),
        (PEER, KnowsItsFirstMomentOnly, 1),
        (ADOPTER, GivesNothingWhileItWaits, 1),
        (ADOPTER, GivesThoughItIsBehind, 5),
        (PEER, TakesUnknownForAnOldAnswer, 38),
        (PEER, PinsNothingWhileItAdopts, 0),
        (REPLICATOR, DropsTheOldest, 1),
        (REPLICATOR, PinsNothing, 0),
        (REPLICATOR, PinsOnlyWhereTheDonorStands, 0),
        (PEER, LetsPinsExpire, 1),
        (REPLICATOR, KeepsPinsUntilTheyAreUsed, 0),
        (REPLICATOR, GivesAndKeepsNothing, 0),
        (PEER, AppliesWhileItAdopts, 0),
        (ADOPTER, AdoptsWhateverComes, 0),
        (ADOPTER, LosesItsOwn, 5),
        (PEER, IgnoresDeadLanes, 2),
        (REPLICATOR, TakesAdvertsForNothing, 0),
        (REPLICATOR, ServesWhatItLikes, 0),
        (PEER, FiltersWhatComesIn, 0),
        (IDENTITIES, HasNoGate, 0),
        (UNITS, TakesNothingBack, 1),
        (UNITS, RetainsForever, 1),
        (UNITS, ReleasesAtOnce, 1),
        (UNITS, RemembersWhoHadAnUpdate, 101),
        (PEER, BelievesOvertakenAdverts, 16),
        (UNITS, DropsNothing, 1),
        (UNITS, DropsAtOnce, 0),
        (UNITS, DropsWhatSomeHaveNoMore, 4),
        (UNITS, TakesTheGoneForLevel, 1),
        (IDENTITIES, ForgetsWhatIsUndecided, 141),
        (IDENTITIES, CountsNothingThatIsLate, 4),
        (IDENTITIES, BeginsToCountWhenItAdopts, 0),
        (REPLICATOR, ServesOldPulls, 12),
        (ADOPTER, WaitsForAllPinsButOne, 0),
        (REPLICATOR, PinsNothingWhereAnAdoptingDonorComesOut, 5),
        (ADOPTER, AdoptsWhatHasSeenLess, 3),
        (UNITS, ForgetsItsOwnUnits, 5),
        (REPLICATOR, TakesOldPins, 38),
        (ADOPTER, AppliesOldAnswers, 0),
        (MEMBERSHIP, TakesAConfirmationForAPause, 21),
        (MEMBERSHIP, PingsForNobody, 0),
        (MEMBERSHIP, IsSilentOfWhatItPinged, 0),
        (MEMBERSHIP, DoesNotObject, 10),
        (MEMBERSHIP, BlamesOthersForItsOwnPause, 0),
        (REPLICATOR, PullsAgainAtOnce, 0),
        (REPLICATOR, KeepsApartWhatNobodyTellsApart, 0),
        (PEER, ForgetsNobody, 9),
        (PEER, ForgetsThoughItIsNotTheSmallest, 9),
        (ADVERTS, SaysNothingNew, 0),
        (UNITS, TakesClosedEpochsForOpen, 0),
        (PEER, AgreesAtOnce, 0),
        (PEER, AdoptsFromTheNext, 38),
        (PEER, DrainsThoughOthersLack, 1),
        (PEER, AdoptsForOldAnswers, 4),
        (REPLICATOR, WaitsThoughItWasAnswered, 0),
        (REPLICATOR, AsksTheSameFirst, 1),
        (ADOPTER, GivesToWhomNotAllHavePinned, 1),
        (ADOPTER, TellsNobodyThatItGaveUp, 0),
        (MEMBERSHIP, TellsEachRumorOnce, 0),
        (MEMBERSHIP, BuriesAtTheShortest, 0),
        (MEMBERSHIP, ObjectsAsItWas, 0),
        (SOURCE, asks_the_first_observer, 0),
        (SOURCE, asks_whoever_observes, 0),
    ],
)
def test_a_broken_swarm_is_caught(name: str, mutant: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`seed` catches it: so many days at the most have to be run to find it. An earlier one may catch it, too."""
    monkeypatch.setattr(name, mutant)
    assert run(seed).violation is not None
