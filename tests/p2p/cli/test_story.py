"""What somebody sees who reads the story of an agent."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gossip.messages import PeerId
from gossip.story import Line
from p2p.cli.main import main


@pytest.fixture
def story(tmp_path: Path) -> str:
    """Of two peers, in one file."""
    lines = [
        Line(1.0, PeerId("ab"), "Ticked()", ("Publish(message=Advert(peer='ab', n=0))", "Warn(text='oh')")),
        Line(2.0, PeerId("cd"), "Joined(peer='ab')", ()),
        Line(3.0, PeerId("ab"), "Computed(payload=...)", None),
    ]
    file = tmp_path / "story.jsonl"
    file.write_text("".join(f"{line.to_json()}\n" for line in lines))
    return str(file)


def simulate(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["simulate", *arguments])


def test_events_are_printed_with_what_the_peer_wanted_done(story: str) -> None:
    result = simulate("--story", story)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "       1.000  ab  Ticked()",
        "              ->  Publish(message=Advert(peer='ab', n=0))",
        "              ->  Warn(text='oh')",
        "       2.000  cd  Joined(peer='ab')",
        "       3.000  ab  Computed(payload=...)",
        "              ->  not done",
    ]


def test_those_of_one_peer_or_the_last_ones_alone(story: str) -> None:
    assert simulate("--story", story, "--peer", "c").output == "       2.000  cd  Joined(peer='ab')\n"
    assert simulate("--story", story, "--last", "1").output.startswith("       3.000  ab")
    assert simulate("--story", story, "--peer", "a", "--last", "2").output.startswith("       1.000  ab")


def test_what_is_no_story_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("hello\n")
    result = simulate("--story", str(tmp_path / "other"))
    assert result.exit_code == 1
    assert "'hello' is not a line of a story" in result.output


@pytest.mark.parametrize("arguments", [[], ["--seed", "1", "--story", "{story}"]])
def test_it_is_one_day_or_one_file(arguments: list[str], story: str) -> None:
    result = simulate(*(argument.format(story=story) for argument in arguments))
    assert result.exit_code == 2
    assert "expected one of --seed and --story" in result.output
