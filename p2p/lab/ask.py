"""From the settings in a result back to the question, so that it can be asked again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gossip.errors import UsageError
from p2p.lab.consensus import Consensus
from p2p.lab.convergence import Convergence
from p2p.lab.faults import Faults
from p2p.lab.results import Result
from p2p.lab.sweep import Question

QUESTIONS: Mapping[str, Callable[[Mapping[str, Any]], Question]] = {
    "consensus": Consensus.from_json,
    "convergence": Convergence.from_json,
    "faults": Faults.from_json,
}


def question(result: Result) -> Question:
    """What gave `result`.

    Raises:
        UsageError: its settings are not those of a question.
    """
    try:
        return QUESTIONS[result.experiment](result.settings)
    except (TypeError, ValueError, KeyError) as error:
        raise UsageError(f"the settings of the result cannot be read: {error}") from None
