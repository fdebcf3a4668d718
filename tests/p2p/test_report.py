"""The table that a training prints."""

import re
from dataclasses import dataclass, replace

import pytest

from gossip.messages import PeerId
from p2p.agent.registrar_messages import Drained, Figures, LaneFigures
from p2p.driver.registrar import Member
from p2p.report import PeerReport, Report
from p2p.sessions.agents import _lost, peer_report

PEER = PeerReport("host-a:4711", "peer", 12, 34, 56_700_000, 8_900_000, 2.5, 7.0, 123_000_000)
OBSERVER = PeerReport("driver:1", "observer", 0, 34, 0, 45_600_000, 0.0, 0.0, 78_000_000)
REPORT = Report(
    peers=(PEER, OBSERVER),
    mode="p2p",
    rows=9000,
    seconds=4.5,
    updates=34,
    updates_lost=0,
    consensus_distance=1.25e-7,
)


def row_of(text: str, name: str) -> list[str]:
    """The cells of the line that begins with `name`."""
    (line,) = [line for line in text.splitlines() if name in line]
    return [cell.strip() for cell in re.split("[│|]", line) if cell.strip()]


def test_every_peer_has_a_row_with_its_figures() -> None:
    text = str(REPORT)
    assert row_of(text, "host-a") == ["host-a:4711", "peer", "12", "34", "56.7", "8.9", "2.5", "7", "123"]
    assert row_of(text, "driver") == ["driver:1", "observer", "0", "34", "0.0", "45.6", "0", "0", "78"]


def test_the_run_is_summed_up_below() -> None:
    text = str(REPORT)
    assert "mode p2p" in text
    assert "9000 rows in 4.5 s = 2000 rows/s; 34 updates, 0 lost" in text
    assert "consensus distance 1.2e-07" in text
    assert "not level" not in text


def test_agents_that_are_missing_are_named() -> None:
    text = str(replace(REPORT, updates_lost=3, missing=("host-b:5", "host-c:6")))
    assert "34 updates, 3 lost" in text
    assert "not level in time: host-b:5, host-c:6" in text


def test_causes_of_losses_stand_beside_their_number() -> None:
    text = str(replace(REPORT, updates_lost=3, lost={"agent gone": 2, "not read in time": 1}))
    assert "34 updates, 3 lost (2 agent gone, 1 not read in time)" in text


def test_weights_by_staleness_are_told_where_there_are_any() -> None:
    assert "weighed" not in str(REPORT)
    assert "updates weighed 0.667 on average, by their staleness" in str(replace(REPORT, staleness_weight=2 / 3))


@dataclass
class Heard:
    """What the registrar knows of an agent."""

    peer: str
    frontiers: dict[str, int]
    silent: bool = False
    role: str = "peer"

    @property
    def figures(self) -> Figures:
        return Figures(lanes=LaneFigures(frontiers=self.frontiers))


@pytest.mark.parametrize(
    ("gone", "published", "causes"),
    [
        (0, {"a": 5, "dead": 3}, {}),
        (2, {"a": 5, "dead": 3}, {"agent gone": 2}),  # it never said that it had published them
        (0, {"a": 5, "dead": 4}, {"agent gone": 1}),
        (0, {"a": 7, "dead": 3}, {"not read in time": 2}),
        (3, {"a": 7, "dead": 4}, {"agent gone": 1, "not read in time": 2}),
    ],
)
def test_an_update_is_lost_with_its_agent_or_was_not_read_in_time(
    gone: int, published: dict[str, int], causes: dict[str, int]
) -> None:
    observer = Heard("observer", {"a": 5, "dead": 3}, role="observer")
    members = [Heard("a", {"a": published["a"], "dead": 3}), Heard("dead", {}, silent=True), observer]
    assert _lost(members, published, gone, lambda member: member.silent) == causes


def test_staleness_is_summed_up_by_its_median_and_its_highest_twentieth() -> None:
    member = Member(
        peer=PeerId("p"),
        role="peer",
        name="p",
        pid=1,
        adverts="",
        pulls="",
        key=None,
        route=b"",
        level=True,
        shortage=None,
        heard_at=0.0,
        drained=Drained(peer=PeerId("p"), staleness=range(101)),
    )
    report = peer_report(member, published=3, applied=4)
    assert (report.staleness_median, report.staleness_p95) == (50, 95)


def test_the_text_is_plain_and_no_line_ends_in_spaces() -> None:
    text = str(REPORT)
    assert "\x1b" not in text
    assert all(line == line.rstrip() and len(line) <= 100 for line in text.splitlines())


def test_long_names_keep_their_figures() -> None:
    name = "ip-10-0-0-127.eu-central-1.compute.internal:123456"
    text = str(replace(REPORT, peers=(replace(PEER, name=name),)))
    assert name in text
    for figure in ("12", "34", "56.7", "8.9", "2.5", "123"):
        assert figure in row_of(text, name)


def test_a_training_that_took_no_time_has_no_speed() -> None:
    assert replace(REPORT, seconds=0.0).rows_per_second == 0
    assert REPORT.rows_per_second == 2000
