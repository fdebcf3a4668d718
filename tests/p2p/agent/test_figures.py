"""Figures of agents travel as JSON, and are the same values afterwards."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from p2p.agent.figures import Drained, Figures, LaneFigures, MixFigures


def test_figures_are_the_same_after_their_way_to_the_driver_program() -> None:
    figures = Figures(
        question=3,
        departed=["a"],
        published=7,
        lanes=LaneFigures(frontiers={"a": 2, "b": 7}, units=9),
        mixing=MixFigures(weight=0.5, edges={"host:1": 80}, sketch=[0.25, -1.0], trouble="none"),
    )
    assert Figures.of(json.loads(json.dumps(asdict(figures)))) == figures


def test_what_an_agent_does_not_tell_is_nothing() -> None:
    assert Figures.of({"question": 1}) == Figures(question=1)


def test_an_answer_to_a_request_to_drain_is_the_same_afterwards() -> None:
    drained = Drained(missing=["host:1"], staleness=[0, 2])
    assert Drained(**json.loads(json.dumps(asdict(drained)))) == Drained(missing=["host:1"], staleness=[0, 2], torn=[])


@pytest.mark.parametrize("fields", [{"dance": 1}, {"lanes": {"dance": 1}}, {"mixing": 3}])
def test_what_is_no_figure_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        Figures.of(fields)
