"""One member of a group of masters, as a state machine without sockets, clocks or threads.

The protocol is Viewstamped Replication (Oki and Liskov 1988; Liskov and Cowling, "Viewstamped Replication Revisited",
MIT 2012). Of n members n // 2 may be lost at a time, and nothing that was committed is.

    propose -> Prepare to all -> Prepared by most -> Commit: to be applied, in order, by everybody
    silence -> Silent by most -> Suspect          -> Report by most -> the furthest log of these -> Lead

What differs from the paper: entries carry the view in which they got their number, so that only those travel in a
change of view which somebody lacks; a member takes part in the new view only when it has them all; and nobody leaves a
view for the silence of its leader alone, but when most members do not hear it (as in the PreVote of Raft: Ongaro 2014,
section 9.6). A member that was cut off would otherwise bring the others to a later view when it returns.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from p2p.standby.log import Entries, Kept
from p2p.standby.messages import (
    Committed,
    Copy,
    Entry,
    Fetch,
    Lead,
    Log,
    Message,
    Place,
    Prepare,
    Prepared,
    Recover,
    Recovered,
    Report,
    Silent,
    Suspect,
)

BEAT_S = 0.25
"""How often a leader is heard."""
SILENCE_S = 1.5
"""A leader that is not heard for so long is suspected."""
BEGIN_S = 10.0
"""The first one, until it has been heard: its process may have much to import."""
FETCH_AGAIN_S = 0.5
WINDOW = 64
"""Entries on the way to one member; who lags further behind fetches them."""
FETCHED_MAX = 16
"""Entries that are asked for at once."""
KEPT_MAX = 1024
"""Entries, and"""
KEPT_BYTES = 64 << 20
"""their bytes, that are kept after they were applied, for members that lag behind."""

NOWHERE = Place()
Status = Literal["normal", "changing", "recovering"]


@dataclass(frozen=True)
class Send:
    """To the member of this index."""

    to: int
    message: Message
    data: bytes | None = None


@dataclass(frozen=True)
class Commit:
    """This entry is safe: apply it. They come in order."""

    number: int
    data: bytes


@dataclass(frozen=True)
class GiveCopy:
    """A member needs a copy of the state as it is when all commits so far are applied: to `Member.copied`."""

    to: int
    view: int


@dataclass(frozen=True)
class TakeCopy:
    """The state is this one, after entry `number`."""

    number: int
    data: bytes


@dataclass(frozen=True)
class Leads:
    """Who leads has changed: this member, or another, or nobody for now."""

    leader: int | None


Effect = Send | Commit | GiveCopy | TakeCopy | Leads


@dataclass
class Change:
    """The log of a view that this member is to take part in."""

    source: int
    """Who has it."""
    log: Log
    leads: bool
    """This member is to lead the view."""
    entries: dict[int, Kept] = field(default_factory=dict)
    """What is there of it, by number."""
    asked: set[int] = field(default_factory=set)
    """What was asked for and has not come."""
    asked_at: float = -1e9

    def missing(self, committed: int) -> list[int]:
        """Numbers of what is not there; those up to `committed` are."""
        first = max(self.log.base, committed) + 1
        return [number for number in range(first, self.log.last + 1) if number not in self.entries]


class Member:
    """Give it what is said, and the time; carry out what it returns, in order."""

    def __init__(self, me: int, members: int, seed: int = 0) -> None:
        """It begins in view 0 with an empty log, which member 0 leads."""
        self.me = me
        self.members = members
        self.view = 0
        self.status: Status = "normal"
        self.committed = 0
        self._normal_view = 0
        self._entries = Entries()
        self._applied = 0
        self._held: dict[int, int] = {}
        """As a leader: up to which entry each of the others holds all."""
        self._suspects: set[int] = set()
        """Who has joined the view that begins."""
        self._reports: dict[int, Report | Recovered] = {}
        self._change: Change | None = None
        self._nonce = 0
        self._times = Times(random.Random(f"{seed} {me}"))

    # ------------------------------------------------------------------------------------------------------ for all

    @property
    def leads(self) -> bool:
        """It is the one that proposes."""
        return self.status == "normal" and self._leader_of(self.view) == self.me

    @property
    def leader(self) -> int | None:
        """Who leads, as far as this one knows."""
        return self._leader_of(self.view) if self.status == "normal" else None

    def is_led(self, now: float) -> bool:
        """Entries can become safe, as far as this one knows: it hears the leader, or, as that, most others."""
        if self.status != "normal":
            return False
        return self._is_followed(now) if self.leads else not self._times.is_silent(now)

    @property
    def last(self) -> int:
        """The number of the last entry."""
        return self._entries.last

    def propose(self, data: bytes, now: float) -> list[Effect]:
        """As the leader: the next entry."""
        assert self.leads
        self._entries.append(Kept(self.view, data))
        effects: list[Effect] = []
        if self._is_followed(now):
            within = (to for to in self._others() if self.last - self._held.get(to, 0) <= WINDOW)
            effects += [self._prepare(to, self.last) for to in within]
        return effects + self._commit_what_most_hold()

    def applied(self, number: int) -> None:
        """All up to this entry are applied here, and need not be kept for long."""
        self._applied = max(self._applied, number)
        log = self._entries
        while log.base < self._applied and (log.nbytes > KEPT_BYTES or len(log) > KEPT_MAX):
            log.forget(log.base + 1)

    def copied(self, to: int, view: int, number: int, data: bytes) -> list[Effect]:
        """The copy that somebody asked for, of the state after entry `number`."""
        return [Send(to, Copy(view=view, number=number), data)] if view == self.view else []

    def recover(self, nonce: int, place: Place, now: float) -> list[Effect]:
        """It begins with nothing, in the place of a member that was lost."""
        self.status, self._nonce, self._reports = "recovering", nonce, {}
        self._times.place = place
        return [Leads(None), *self._ask_to_recover(now)]

    def tick(self, now: float) -> list[Effect]:
        """To be called some times in `BEAT_S`, after what has come was given to `receive`."""
        times = self._times
        if now - times.ticked_at > SILENCE_S / 2:
            times.heard_at = times.since = now  # it was this member that stood still
        times.ticked_at = now
        if self.status == "recovering" and now - times.heard_at > times.patience_s:
            self._change, self._reports, times.heard_at = None, {}, now  # that view is over by now, or its leader gone
        if self._change is not None and now - self._change.asked_at > FETCH_AGAIN_S:
            return self._suspect_if_silent(now) or self._fetch(now)
        if self.status == "recovering":
            return self._ask_to_recover(now) if now >= times.beat_at else []
        if self.leads:
            if now < times.beat_at or not self._is_followed(now):
                return []  # whom most do not answer is no leader: where it is silent, they choose another
            times.beat_at = now + BEAT_S
            beat = Committed(view=self.view, number=self.committed, last=self.last)
            return [Send(to, beat) for to in self._others()]
        return self._suspect_if_silent(now) or self._insist(now)

    def receive(self, sender: int, message: Message, data: bytes | None, now: float) -> list[Effect]:
        """What a member says."""
        if isinstance(message, Recover):
            return self._on_recover(sender, message)
        if self.status == "recovering":
            if isinstance(message, Recovered):
                return self._on_recovered(sender, message, now)
            if self._change is not None and isinstance(message, Entry | Copy) and message.view == self.view:
                return self._on_fetched(sender, message, data, now)
            return []
        if isinstance(message, Silent | Suspect | Report) and message.view > self.view:
            return self._change_to(message.view, now) + self.receive(sender, message, data, now)
        if message.view < self.view:
            # who is behind hears which view it is
            asks = isinstance(message, Silent | Suspect | Prepare | Committed)
            return [self._lead_to(sender)] if self.leads and asks else []
        if message.view > self.view and not isinstance(message, Lead | Prepare | Committed):
            return []
        return self._receive(sender, message, data, now)

    def _receive(self, sender: int, message: Message, data: bytes | None, now: float) -> list[Effect]:
        match message:
            case Silent():
                return self._on_silent(sender, now)
            case Suspect():
                return self._on_suspect(sender, now)
            case Report():
                return self._on_report(sender, message, now)
            case Lead():
                return self._on_lead(sender, message, now)
            case Fetch():
                return self._on_fetch(sender, message)
            case Entry() | Copy():
                return self._on_fetched(sender, message, data, now)
            case Prepare() | Committed() if message.view > self.view or self.status == "changing":
                return self._join_late(sender, message, now)
            case Prepare():
                return self._on_prepare(sender, message, data, now)
            case Committed():
                return self._on_committed(sender, message, now)
            case Prepared():
                return self._on_prepared(sender, message, now)
            case _:
                return []

    # -------------------------------------------------------------------------------------------------- normal days

    def _on_prepare(self, leader: int, message: Prepare, data: bytes | None, now: float) -> list[Effect]:
        assert data is not None
        self._times.heard_at = now
        if message.number == self.last + 1:
            self._entries.append(Kept(message.tag, data))
        return self._follow(leader, message.committed, message.number, now)

    def _on_committed(self, leader: int, message: Committed, now: float) -> list[Effect]:
        self._times.heard_at = now
        return self._follow(leader, message.number, message.last, now)

    def _follow(self, leader: int, committed: int, last: int, now: float) -> list[Effect]:
        """Commit so far as this member has it, and ask for what it lacks of the leader's entries."""
        self._times.wanted, self._times.safe, self._times.patience_s = max(last, committed), committed, SILENCE_S
        effects: list[Effect] = [Send(leader, Prepared(view=self.view, number=self.last))]
        effects += self._commit_to(min(committed, self.last))
        if self._times.wanted > self.last and now - self._times.asked_at > FETCH_AGAIN_S:
            effects.append(self._ask_for_more(leader, now))
        return effects

    def _ask_for_more(self, leader: int, now: float) -> Send:
        times = self._times
        times.asked_at, times.asked_to = now, min(times.wanted, self.last + FETCHED_MAX)
        times.ahead.clear()
        return Send(leader, Fetch(view=self.view, numbers=tuple(range(self.last + 1, times.asked_to + 1))))

    def _on_prepared(self, sender: int, message: Prepared, now: float) -> list[Effect]:
        if not self.leads:
            return []
        self._times.answered[sender] = now
        if len(self._times.answered) >= self.members // 2:
            self._times.patience_s = SILENCE_S  # the group is there
        self._held[sender] = max(self._held.get(sender, 0), message.number)
        return self._commit_what_most_hold()

    def _commit_what_most_hold(self) -> list[Effect]:
        held = sorted([self.last, *(self._held.get(to, 0) for to in self._others())], reverse=True)
        return self._commit_to(held[self.members // 2])

    def _commit_to(self, number: int) -> list[Effect]:
        effects: list[Effect] = []
        while self.committed < number:
            self.committed += 1
            effects.append(Commit(self.committed, self._entries[self.committed].data))
        return effects

    def _prepare(self, to: int, number: int) -> Send:
        entry = self._entries[number]
        message = Prepare(view=self.view, number=number, tag=entry.tag, committed=self.committed)
        return Send(to, message, entry.data)

    # --------------------------------------------------------------------------------------------- a change of view

    def _suspect_if_silent(self, now: float) -> list[Effect]:
        if self.status == "recovering" or not self._times.is_silent(now):
            return []
        if self.status == "changing":
            return self._change_to(self.view + 1, now)  # most members have left the view before
        if now < self._times.beat_at:
            return []
        self._times.beat_at = now + BEAT_S
        said: list[Effect] = [Send(to, Silent(view=self.view)) for to in self._others()]
        return said + self._on_silent(self.me, now)

    def _on_silent(self, sender: int, now: float) -> list[Effect]:
        """Somebody does not hear the leader of this view. Where most do not, among them this one, the next begins."""
        self._times.deaf[sender] = now
        deaf = [at for at in self._times.deaf.values() if now - at < SILENCE_S]
        if self.status != "normal" or self.leads or not self._times.is_silent(now) or len(deaf) <= self.members // 2:
            return []
        return self._change_to(self.view + 1, now)

    def _change_to(self, view: int, now: float) -> list[Effect]:
        """Leave the view for a later one."""
        had = self.leader
        self.view, self.status, self._change = view, "changing", None
        self._suspects, self._reports = {self.me}, {}
        self._times.hear(now)
        self._times.beat_at = now + 2 * BEAT_S
        effects: list[Effect] = [Leads(None)] if had is not None else []
        return effects + [Send(to, Suspect(view=view)) for to in self._others()] + self._report_if_most_join(now)

    def _insist(self, now: float) -> list[Effect]:
        """Say again what the others may not have heard."""
        if self.status != "changing" or self._change is not None or now < self._times.beat_at:
            return []
        self._times.beat_at = now + 2 * BEAT_S
        again: list[Effect] = [Send(to, Suspect(view=self.view)) for to in self._others()]
        return again + self._report_if_most_join(now)

    def _on_suspect(self, sender: int, now: float) -> list[Effect]:
        if self.status != "changing":
            return [self._lead_to(sender)] if self.leads else []
        self._suspects.add(sender)
        return self._report_if_most_join(now)

    def _report_if_most_join(self, now: float) -> list[Effect]:
        if len(self._suspects) <= self.members // 2:
            return []
        report = Report(view=self.view, normal_view=self._normal_view, log=self._entries.told(self.committed))
        leader = self._leader_of(self.view)
        if leader == self.me:
            return self._on_report(self.me, report, now)
        return [Send(leader, report)]

    def _on_report(self, sender: int, message: Report, now: float) -> list[Effect]:
        if self.status != "changing" or self._leader_of(self.view) != self.me or self._change is not None:
            return [self._lead_to(sender)] if self.leads else []
        self._reports[sender] = message
        if self.me not in self._reports:
            self._suspects.add(sender)
            return self._report_if_most_join(now)
        if len(self._reports) <= self.members // 2:
            return []
        reports = {who: report for who, report in self._reports.items() if isinstance(report, Report)}
        best = max(reports, key=lambda who: (reports[who].normal_view, reports[who].log.last, who == self.me, -who))
        committed = max(report.log.committed for report in reports.values())
        log = reports[best].log
        return self._begin_change(best, Log(log.base, log.tags, committed), True, now)

    def _on_lead(self, sender: int, message: Lead, now: float) -> list[Effect]:
        if message.view == self.view and (self.status == "normal" or self._change is not None):
            return []
        effects: list[Effect] = []
        if message.view > self.view:
            if self.leader is not None:
                effects.append(Leads(None))
            self.view, self.status = message.view, "changing"
        self._times.hear(now)
        return effects + self._begin_change(sender, message.log, False, now)

    def _join_late(self, sender: int, message: Prepare | Committed, now: float) -> list[Effect]:
        """A view has begun without this member: its leader says how, when it hears of an older one."""
        if self._change is not None and message.view == self.view:
            self._times.heard_at = now
            return []
        return [Send(sender, Suspect(view=min(self.view, message.view)))]

    def _begin_change(self, source: int, log: Log, leads: bool, now: float) -> list[Effect]:
        """Get what is lacking of the log of the view."""
        change = self._change = Change(source, log, leads)
        for number, tag in enumerate(log.tags, log.base + 1):
            if self._entries.has(number) and self._entries[number].tag == tag:
                change.entries[number] = self._entries[number]
        return self._fetch(now)

    def _fetch(self, now: float) -> list[Effect]:
        change = self._change
        assert change is not None
        if change.source == self.me or (self.committed >= change.log.base and not change.missing(self.committed)):
            return self._take_part(now)
        change.asked_at = now
        numbers = change.missing(self.committed)[:FETCHED_MAX]
        if self.committed < change.log.base:
            numbers = [change.log.base]  # which is no longer kept: a copy comes
        change.asked = set(numbers)
        return [Send(change.source, Fetch(view=self.view, numbers=tuple(numbers)))]

    def _on_fetch(self, sender: int, message: Fetch) -> list[Effect]:
        entries = self._entries
        if any(number <= entries.base for number in message.numbers):
            return [GiveCopy(sender, self.view)]
        return [
            Send(sender, Entry(view=self.view, number=number, tag=entries[number].tag), entries[number].data)
            for number in message.numbers
            if number <= entries.last
        ]

    def _on_fetched(self, sender: int, message: Entry | Copy, data: bytes | None, now: float) -> list[Effect]:
        assert data is not None
        self._times.heard_at = now
        change = self._change
        if isinstance(message, Copy):
            return self._on_copy(message.number, data, now)
        if change is None:
            return self._on_more(sender, message.number, Kept(message.tag, data), now)
        place = message.number - change.log.base - 1
        if 0 <= place < len(change.log.tags) and change.log.tags[place] == message.tag:
            change.entries[message.number] = Kept(message.tag, data)
            if message.number in change.asked:
                change.asked.discard(message.number)
                return [] if change.asked else self._fetch(now)
        return []

    def _on_more(self, sender: int, number: int, entry: Kept, now: float) -> list[Effect]:
        """Of the leader's entries, one that was asked for. Others of them may come first."""
        times = self._times
        if self.status != "normal" or not self.last < number <= times.asked_to:
            return []
        times.ahead[number] = entry
        if number != self.last + 1:
            return []
        while (following := times.ahead.pop(self.last + 1, None)) is not None:
            self._entries.append(following)
        effects: list[Effect] = [Send(sender, Prepared(view=self.view, number=self.last))]
        effects += self._commit_to(min(times.safe, self.last))
        if self.last == times.asked_to < times.wanted:
            effects.append(self._ask_for_more(sender, now))
        return effects

    def _on_copy(self, number: int, data: bytes, now: float) -> list[Effect]:
        """Of the state after a committed entry."""
        if number <= self.committed:
            return []
        if self._change is None and self.status != "normal":
            return []
        self._entries.forget(number)
        self.committed = self._applied = number
        effects: list[Effect] = [TakeCopy(number, data)]
        return effects if self._change is None else effects + self._fetch(now)

    def _take_part(self, now: float) -> list[Effect]:
        """All of the view's log is there."""
        change, self._change = self._change, None
        assert change is not None
        if change.source != self.me:
            first = max(change.log.base, self.committed)
            tail = (change.entries[number] for number in range(first + 1, change.log.last + 1))
            self._entries.go_on_behind(self.committed, tail)
        self.status, self._normal_view = "normal", self.view
        self._times.settle(now)
        effects: list[Effect] = [Leads(self.leader)]
        if change.leads:
            self._held = {}
            effects += [self._lead_to(to) for to in self._others()]
            return effects + self._commit_to(min(change.log.committed, self.last)) + self._commit_what_most_hold()
        effects += self._commit_to(min(change.log.committed, self.last))
        leader = self.leader
        assert leader is not None
        return [*effects, Send(leader, Prepared(view=self.view, number=self.last))]

    def _lead_to(self, to: int) -> Send:
        return Send(to, Lead(view=self.view, log=self._entries.told(self.committed)))

    # ------------------------------------------------------------------------------------------- who has lost it all

    def _ask_to_recover(self, now: float) -> list[Effect]:
        self._times.beat_at = now + 2 * BEAT_S
        ask = Recover(view=self.view, nonce=self._nonce, place=self._times.place)
        return [Send(to, ask) for to in self._others()]

    def _on_recover(self, sender: int, message: Recover) -> list[Effect]:
        if self.status != "normal":
            return []
        log = self._entries.told(self.committed) if self.leads else None
        return [Send(sender, Recovered(view=self.view, nonce=message.nonce, log=log))]

    def _on_recovered(self, sender: int, message: Recovered, now: float) -> list[Effect]:
        if message.nonce != self._nonce or self._change is not None:
            return []
        self._reports[sender] = message
        answers: Mapping[int, Recovered] = {w: r for w, r in self._reports.items() if isinstance(r, Recovered)}
        view = max(answer.view for answer in answers.values())
        leader = self._leader_of(view)
        from_leader = answers.get(leader)
        if len(answers) <= self.members // 2 or from_leader is None or from_leader.view != view:
            return []
        assert from_leader.log is not None
        self.view = view
        self._times.hear(now)
        return self._begin_change(leader, from_leader.log, False, now)

    # -------------------------------------------------------------------------------------------------------- parts

    def _is_followed(self, now: float) -> bool:
        return sum(self._times.answers(to, now) for to in self._others()) >= self.members // 2

    def _leader_of(self, view: int) -> int:
        return view % self.members

    def _others(self) -> Iterator[int]:
        return (to for to in range(self.members) if to != self.me)


@dataclass
class Times:
    """When this member heard of others, and is heard."""

    random: random.Random
    heard_at: float = 0.0
    ticked_at: float = 0.0
    beat_at: float = 0.0
    asked_at: float = -1e9
    """When this member asked for entries,"""
    asked_to: int = 0
    """up to this one,"""
    ahead: dict[int, Kept] = field(default_factory=dict)
    """of which these came before those in front of them,"""
    wanted: int = 0
    """of so many,"""
    safe: int = 0
    """of which so many are safe, as its leader said last."""
    patience_s: float = BEGIN_S
    deaf: dict[int, float] = field(default_factory=dict)
    """When each member last said that it does not hear the leader of this view."""
    answered: dict[int, float] = field(default_factory=dict)
    """When each member last answered this one, as the leader of this view,"""
    since: float = 0.0
    """which it is since then, or has not stood still since then."""
    place: Place = NOWHERE

    def answers(self, member: int, now: float) -> bool:
        """It has, or may yet."""
        return now - max(self.answered.get(member, 0.0), self.since) < self.patience_s

    def is_silent(self, now: float) -> bool:
        """Whoever should be heard was not, for too long."""
        return now - self.heard_at >= self.patience_s

    def hear(self, now: float) -> None:
        """A change of view is under way: it gets its time, each member another."""
        self.heard_at = now
        self.patience_s = SILENCE_S * (1 + self.random.random())
        self.deaf.clear()

    def settle(self, now: float) -> None:
        """It is over."""
        self.heard_at, self.patience_s, self.beat_at, self.asked_at = now, SILENCE_S, now, -1e9
        self.wanted = self.safe = 0
        self.since = now
        self.deaf.clear()
        self.answered.clear()
        self.ahead.clear()
