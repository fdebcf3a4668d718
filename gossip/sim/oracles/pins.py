"""A pin stays until its adopter has used it or given up, and holds all boundaries at which the donor may stand."""

from __future__ import annotations

from gossip.events import Computed
from gossip.messages import Advert, PeerId, Pin, Pinned, Pull, StateRequest, Unpin
from gossip.sim.oracles.seen import Moments, Step, View, ViolationError


class PinsWhenAsked:
    """Who says that it has pinned has, where the donor stands; and whoever can pin does."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        moments.answers[Pin].append(self._asked)

    def _asked(self, step: Step, pin: Pin) -> None:
        view, me, lane, asker = self._view, self._view.me, self._view.peer.replicator, pin.peer
        answered = any(isinstance(m, Pinned) and m.k == pin.k for m in step.sent(asker))
        known = lane.pins.get(asker)
        if answered and (known is None or known.k != pin.k or known.donor != pin.donor):
            raise ViolationError(f"{me} says to have pinned for {pin}, and has pinned {known}")
        fits = asker in lane.members and (pin.donor in lane.readers or pin.donor == me)
        if fits and not answered and view.asked.is_new(asker, pin.k):
            raise ViolationError(f"{me} does not pin for {pin}")
        donor = view.outside.swarm.peers.get(pin.donor)
        if answered and donor is not None and donor.alive and known is not None and pin.donor in view.placed:
            frontier = donor.peer.replicator.origins[me].frontier
            if frontier not in known.boundaries:
                raise ViolationError(f"{me} has pinned {known} for {asker}, and the donor stands at {frontier}")


class KeepsWhatIsPinned:
    """What is pinned stays until its adopter says that it is over, and grows with its donor while that is heard."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        moments.happens[Computed].append(self._publishes)
        moments.ends.append(self._look)

    def _publishes(self, step: Step, event: Computed) -> None:
        view = self._view
        if view.pins and view.kept > view.peer.settings.segments_max:
            raise ViolationError(f"{view.me} keeps {view.kept} segments while somebody adopts, and publishes more")

    def _look(self, step: Step) -> None:
        view, lane = self._view, self._view.peer.replicator
        if not lane.pins and not view.pins:
            return
        for adopter, (k, boundaries) in view.pins.items():
            pin = lane.pins.get(adopter)
            if pin is None or pin.k != k:
                self._check_over(step, adopter, k)
            elif not boundaries <= pin.boundaries:
                raise ViolationError(f"{view.me} pinned {set(boundaries)} for {adopter}, and keeps {pin}")
            elif adopter in lane.away & view.away and len(boundaries) < len(pin.boundaries):
                raise ViolationError(f"{view.me} pins more for {adopter}, which it takes for dead: {pin}")
        self._check_places()
        before = view.pins
        view.pins = {adopter: (pin.k, frozenset(pin.boundaries)) for adopter, pin in lane.pins.items()}
        if not step.shaped and any(before[adopter] != view.pins.get(adopter) for adopter in before):
            step.shaped = isinstance(step.message, Advert | Unpin) or step.refuses

    def _check_over(self, step: Step, adopter: PeerId, k: int) -> None:
        view, lane, message = self._view, self._view.peer.replicator, step.message
        over = getattr(message, "peer", None) == adopter and (
            (isinstance(message, Unpin) and message.k == k)
            or (isinstance(message, Pull) and message.k >= k)
            or (isinstance(message, Advert | Pin | StateRequest) and message.k > k)
        )
        if over and isinstance(message, Advert) and adopter in lane.readers:
            pulls = view.asked.pulls
            pulls[adopter] = max(pulls.get(adopter, 0), k)  # pulls from before are void
        member = view.peer.members.get(adopter)
        if not over and not (member is not None and member.forgotten):
            pin = lane.pins.get(adopter)
            raise ViolationError(f"{view.me} lets go of what it pinned for {adopter} with {k}, has {pin}")

    def _check_places(self) -> None:
        """Each place is held where the donor may be."""
        me, lane = self._view.me, self._view.peer.replicator
        for adopter, pin in lane.pins.items():
            donor = lane.readers.get(pin.donor)
            if donor is not None and adopter not in lane.away:
                beyond = lane.pins[pin.donor].boundaries if pin.donor in lane.pins else set[int]()
                if not {donor.acknowledged, donor.served} | beyond <= pin.boundaries:
                    raise ViolationError(f"{me} keeps {pin} for {adopter}, and its donor may be at {donor} or {beyond}")
