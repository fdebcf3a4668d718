"""All promises, and the watch that checks after each event of a swarm whether they are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from gossip.events import Effect, Event, Leaving
from gossip.messages import Mark, PeerId
from gossip.sim.oracles import adoption, departures, ending, lane, pins, pulls, punctuality, questions, units
from gossip.sim.oracles.seen import Moments, Outside, Step, View
from gossip.sim.simulator import Simulation

ORACLES: Final = (
    departures.BlamesNobodyForItsOwnPause,
    departures.LooksAfterStrangers,
    pulls.NumbersItsQuestions,
    pulls.PullsInTurn,
    punctuality.IsNotBusyWithoutEnd,
    questions.AnswersPings,
    questions.AnswersPulls,
    pins.PinsWhenAsked,
    questions.GivesItsReplica,
    pins.KeepsWhatIsPinned,
    lane.KeepsItsLane,
    lane.KeepsNothingForWhoHasNoReplica,
    adoption.AdoptsForAReason,
    adoption.GivesUpInTime,
    adoption.AsksWhenAllHavePinned,
    adoption.TakesOnlyWhatItWaitsFor,
    punctuality.Advertises,
    adoption.MergesNothingWhileItAdopts,
    pulls.PullsWhatItLacks,
    departures.TakesForDeadWhomItDoesNotHear,
    lane.KnowsWhereReadersStand,
    questions.KnowsWhatItWasTold,
    units.KnowsTheUnitsItHolds,
    units.TakesBackOnlyWhatAnotherHadFirst,
    units.ReleasesOnlyWhatAllReadersHave,
    units.DropsWhatAllHave,
    ending.DrainsWhenNothingIsLeft,
    departures.ForgetsInTime,
)
"""What every peer promises, in the order in which it is looked at. Those of one moment that follow go by what those
before have seen: who is gone, which adoption began, what was let go of the own lane."""


class Watch:
    """The oracles of one peer."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._moments = Moments()
        for oracle in ORACLES:
            oracle(view, self._moments)

    def look(self, now: float, event: Event, effects: list[Effect]) -> None:
        """Let all look at an event and its effects."""
        view, step = self._view, Step(self._view, now, event, effects)
        if step.message is None:
            self._moments.look(step)
        else:
            view.hear(step.message)
            self._moments.look(step)
            view.asked.note(step.message)
        self._moments.end(step)
        view.remember(now)

    def look_between(self) -> None:
        """Let those look that need no event."""
        for look in self._moments.between:
            look()


class Oracles:
    """Looks at every event of `swarm`."""

    def __init__(self, swarm: Simulation, marks: Mapping[PeerId, Sequence[tuple[Mark, ...]]]) -> None:
        """`marks` are of each lane's entries, from the first on behind one of none; they grow before this looks."""
        self._outside = Outside(swarm, marks)
        self._watches: dict[PeerId, Watch] = {}
        self._left: set[PeerId] = set()
        swarm.observers.append(self._look)

    def look_from_outside(self) -> None:
        """At those to whom nothing happens: they must be up to date, too."""
        for me in self._outside.swarm.live():
            if me in self._watches and me not in self._left:
                self._watches[me].look_between()

    def _look(self, now: float, me: PeerId, event: Event, effects: list[Effect]) -> None:
        watch = self._watches.get(me)
        if watch is None:
            view = self._outside.views[me] = View(self._outside, me, now)
            watch = self._watches[me] = Watch(view)
        if isinstance(event, Leaving):
            self._left.add(me)
        if me not in self._left:
            watch.look(now, event, effects)
