"""Who a peer's neighbors are, as others come and go: against the matrix of those who live."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip import topology
from gossip.errors import UsageError
from gossip.messages import PeerId
from gossip.mixing import DPsgd, NoLoCo
from gossip.mixing.neighbors import ROUNDS_MAX, Neighbors, Plan, number_of
from gossip.topology import Topology

NAMES = [PeerId(f"peer{at}") for at in range(6)]
ME = NAMES[2]


SOME = (2, 4, 5)


def hypercube_or_ring(count: int) -> Topology:
    """For 2, 4 and 5 peers; for no other number."""
    if count not in SOME:
        raise UsageError(f"no topology for {count}")
    return topology.one_peer_hypercube(count) if count in (2, 4) else topology.ring(count)


def expected(planned: list[PeerId], live: set[PeerId], round: int) -> tuple[float, dict[int, float], dict[int, float]]:
    """(own weight, row, column) of `ME` by the dense matrix, those who are gone left out."""
    if len(planned) < 2:
        return 1.0, {}, {}
    weights, me = hypercube_or_ring(len(planned)).weights(round).toarray(), planned.index(ME)
    own, hears, heard_by = weights[me, me], {}, {}
    for at, other in enumerate(planned):
        if other in live and other != ME:
            if weights[me, at]:
                hears[number_of(other)] = weights[me, at]
            if weights[at, me]:
                heard_by[number_of(other)] = weights[at, me]
        elif other != ME:
            own += weights[me, at]
    return own, hears, heard_by


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(NAMES)), max_size=12))
def test_links_are_those_of_the_topology_for_all_who_live_or_of_the_last_one_there_was(
    happens: list[tuple[bool, PeerId]],
) -> None:
    neighbors = Neighbors(ME, Plan(hypercube_or_ring, DPsgd()), NAMES[:4])
    live, planned = set(NAMES[:4]), NAMES[:4]
    for comes, peer in [(True, ME), *happens]:
        if comes:
            neighbors.add(peer)
            live.add(peer)
        else:
            neighbors.remove(peer)
            live -= {peer} - {ME}
        if len(live) in (1, *SOME):
            planned = sorted(live)
        for round in (0, 1, 2):
            links = neighbors.links(round)
            own, hears, heard_by = expected(planned, live, round)
            assert (links.me, links.hears, links.heard_by) == (number_of(ME), hears, heard_by)
            assert links.own == pytest.approx(own)
            assert links.peers == sum(each in live for each in planned)
            assert neighbors.links(round) is links, "it is remembered"
        assert neighbors.live == tuple(sorted(live))
        assert (neighbors.without is not None) == (len(live) not in (1, *SOME))
        assert neighbors.period == (1 if len(planned) == 1 else hypercube_or_ring(len(planned)).period)
        assert [neighbors.peer(number_of(each)) for each in live] == list(live)


def test_where_there_was_never_a_topology_a_peer_is_by_itself() -> None:
    def none(count: int) -> Topology:
        raise UsageError("none")

    neighbors = Neighbors(ME, Plan(none, DPsgd()), NAMES)
    assert neighbors.links(0).hears == {}
    assert (neighbors.links(0).me, neighbors.links(0).own, neighbors.links(0).peers) == (number_of(ME), 1.0, 1)
    assert "none" in str(neighbors.without)
    for peer in NAMES:
        neighbors.remove(peer)
    assert neighbors.links(1).heard_by == {}
    assert (neighbors.live, neighbors.without) == ((ME,), None)


def test_a_plan_makes_each_topology_once_and_refuses_those_that_do_not_fit() -> None:
    asked: list[int] = []

    def build(count: int) -> Topology:
        asked.append(count)
        return topology.ring(count + (count == 5))

    plan = Plan(build, DPsgd())
    assert plan.topology(3) is plan.topology(3)
    for _ in range(2):
        with pytest.raises(UsageError, match="ring is for 6 peers, and there are 5"):
            plan.topology(5)
    assert asked == [3, 5]
    with pytest.raises(UsageError, match="does not fit"):
        Plan(topology.ring, NoLoCo()).topology(6)


def test_rounds_that_repeat_are_made_once_and_of_those_that_do_not_few_are_kept() -> None:
    made: list[int] = []
    matching = topology.random_matching(4)

    def weights(round: int) -> topology.Matrix:
        made.append(round)
        return matching.weights(round)

    plan = Plan(lambda count: Topology("drawn", count, None, weights), DPsgd())
    plan.topology(4)
    made.clear()
    neighbors = Neighbors(ME, plan, NAMES[:4])
    assert neighbors.period == 4
    for _ in range(2):
        for round in range(ROUNDS_MAX):
            place = NAMES.index(ME)
            assert plan.links(4, place, round).me == place
            assert neighbors.links(round).hears.keys() == {
                number_of(NAMES[other]) for other in matching.links(place, round).hears
            }
    assert made == list(range(ROUNDS_MAX))
    plan.links(4, 0, ROUNDS_MAX)
    plan.links(4, 0, 1)
    assert made == list(range(ROUNDS_MAX + 1)), "the oldest goes"
    plan.links(4, 0, 0)
    assert made[-1] == 0
    neighbors.links(ROUNDS_MAX)
    assert neighbors.links(3).hears.keys() == {number_of(NAMES[other]) for other in matching.links(2, 3).hears}
    hypercube = Plan(topology.one_peer_hypercube, DPsgd())
    assert hypercube.links(4, 1, 0) is hypercube.links(4, 1, 2)
    assert hypercube.links(4, 1, 0) is not hypercube.links(4, 1, 1)


def test_numbers_of_peers_are_ordered_as_their_names_of_one_length() -> None:
    assert number_of(PeerId("ab")) == ord("a") * 256 + ord("b")
    assert sorted(NAMES, key=number_of) == NAMES
