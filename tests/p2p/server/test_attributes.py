"""What a model has beside its arrays: seen when descent changes it, and given to a worker's copy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from p2p.adapters.model import Model
from p2p.server.attributes import Attributes, dress


def both(**parts: Any) -> tuple[Any, Any]:
    """The master's, and a worker's copy."""
    return (
        SimpleNamespace(w=np.zeros(2), **parts),
        SimpleNamespace(w=np.zeros(2), **{name: _copy(part) for name, part in parts.items()}),
    )


def _copy(part: Any) -> Any:
    return part.copy() if hasattr(part, "copy") else part


def told(attributes: Attributes, copy: Any) -> None:
    attributes.look()
    assert attributes.packed is not None
    dress(copy, attributes.packed.arrays())


def test_what_is_added_changed_and_taken_away_reaches_the_copy() -> None:
    model, copy = both(step=1, name="a", history=np.zeros(2), losses=[1.0], old=3)
    attributes = Attributes(Model(model, ["w"]))
    model.step, model.name, model.fresh = 2, "b", {"deep": [np.arange(3), None]}
    model.losses.append(0.5)
    model.history += 1
    del model.old
    told(attributes, copy)
    assert attributes.version == 1
    assert (copy.step, copy.name, copy.losses) == (2, "b", [1.0, 0.5])
    assert copy.history.tolist() == [1, 1]
    assert copy.fresh["deep"][0].tolist() == [0, 1, 2]
    assert not hasattr(copy, "old")


def test_a_dict_is_a_model_too() -> None:
    model, copy = {"w": np.zeros(2), "n": 1}, {"w": np.zeros(2), "n": 1, "gone": 2}
    model["gone"] = 2
    attributes = Attributes(Model(model, ["w"]))
    model["n"] = 5
    del model["gone"]
    told(attributes, copy)
    assert copy.keys() == {"w", "n"}
    assert copy["n"] == 5


def test_nothing_is_told_while_nothing_changes() -> None:
    model, _ = both(step=1, data=np.arange(1000.0))
    attributes = Attributes(Model(model, ["w"]))
    for _ in range(5):
        model.w += 1
        attributes.look()
    assert (attributes.version, attributes.packed) == (0, None)


def test_what_changed_once_is_looked_at_each_time_and_what_never_did_more_rarely() -> None:
    model, copy = both(history=np.zeros(1), later=np.zeros(1))
    attributes = Attributes(Model(model, ["w"]))
    for look in range(1, 33):
        model.history += 1
        model.later += look == 17
        attributes.look()
        assert attributes.version == look
    assert attributes.packed is not None
    dress(copy, attributes.packed.arrays())
    assert (copy.history[0], copy.later[0]) == (32, 1), "in place, it was seen at the 32nd"


def test_another_training_begins_with_what_there_is_by_then() -> None:
    model, copy = both(step=1)
    attributes = Attributes(Model(model, ["w"]))
    model.step = 2
    attributes.look()
    attributes.begin()
    assert attributes.packed is None
    assert attributes.version == 2, "who has the first version has another"
    model.other = 1
    told(attributes, copy)
    assert copy.step == 1, "its skeleton has it"


@pytest.mark.parametrize("what", [object(), {1, 2}, [lambda: 1]], ids=["an object", "a set", "a function in a list"])
def test_what_cannot_travel_stays_with_the_master_and_is_told(what: Any) -> None:
    model, copy = both()
    attributes = Attributes(Model(model, ["w"]))
    model.what, model.step = what, 3
    told(attributes, copy)
    assert copy.step == 3
    assert not hasattr(copy, "what")
    assert "descent changed 'what' of the model, which stays with the master" in attributes.cautions["attribute what"]
