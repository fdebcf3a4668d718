"""Each effect goes to the one who owns what it is about, in order."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from gossip.arrays import Packed, Payload
from gossip.drivers import carry_out
from gossip.events import (
    Adopt,
    Congested,
    Deliver,
    Drained,
    Effect,
    Fold,
    Forget,
    Gated,
    Keep,
    Negative,
    Own,
    Publish,
    PutOut,
    Release,
    Retain,
    Send,
    Warn,
)
from gossip.messages import Advert, PeerId, Pull, Unit

A, B = PeerId("a"), PeerId("b")
UPDATE = Packed.of({"w": np.ones(3)})
PULL, ADVERT, UNIT = Pull(A, 1, 1), Advert(A, 1, {}, True, 0), Unit(0, 1, 2)

DONE: list[tuple[Effect, list[Any]]] = [
    (Send(B, PULL), ["network", "send", B, PULL]),
    (Publish(ADVERT), ["network", "publish", ADVERT]),
    (PutOut(B, "it lies"), ["network", "put_out", B, "it lies"]),
    (Deliver(B, 1, 2, UPDATE), ["host", "deliver", B, 1, 2, UPDATE]),
    (Deliver(A, 3, 4, Own(3, 4)), ["host", "deliver", A, 3, 4, ("resolved", Own(3, 4))]),
    (Adopt(UPDATE), ["host", "adopt", UPDATE]),
    (Keep(1, 2, UPDATE), ["store", "keep", 1, 2, UPDATE]),
    (Keep(3, 3, Negative(2)), ["store", "keep", 3, 3, ("resolved", Negative(2))]),
    (Fold(1, 3), ["store", "fold", 1, 3]),
    (Forget(3), ["store", "forget", 3]),
    (Retain(2, UPDATE), ["store", "retain", 2, UPDATE]),
    (Release(2), ["store", "release", 2]),
    (Congested(True), ["pace", True]),
    (Congested(False), ["pace", False]),
    (Gated(UNIT), ["host", "gated", UNIT]),
    (Drained((B,)), ["host", "drained", (B,)]),
    (Warn("so"), ["host", "warn", "so"]),
]


class Owners:
    """All four, each of which tells what it was asked for."""

    def __init__(self) -> None:
        self.told: list[list[Any]] = []

    def owner(self, name: str) -> Any:
        owners = self

        class Owner:
            def __getattr__(self, asked: str) -> Any:
                return lambda *what: owners.told.append([name, asked, *what])

            def __setattr__(self, asked: str, value: Any) -> None:
                assert asked == "congested"
                owners.told.append([name, value])

            def resolve(self, payload: Payload | Own | Negative) -> Any:
                return payload if isinstance(payload, Packed) else ("resolved", payload)

        return Owner()

    def carry_out(self, *effects: Effect) -> list[list[Any]]:
        carry_out(effects, *map(self.owner, ("network", "pace", "store", "host")))
        return self.told


@pytest.mark.parametrize(("effect", "done"), DONE, ids=[type(effect).__name__ for effect, _ in DONE])
def test_an_effect_goes_to_whoever_owns_what_it_is_about(effect: Effect, done: list[Any]) -> None:
    assert Owners().carry_out(effect) == [done]


def test_all_are_carried_out_in_order() -> None:
    assert Owners().carry_out(*(effect for effect, _ in DONE)) == [done for _, done in DONE]


def test_every_kind_of_effect_is_known() -> None:
    assert {type(effect) for effect, _ in DONE} == set(get_args(Effect))


def test_what_is_no_effect_is_not_passed_over() -> None:
    with pytest.raises(AssertionError, match="not an effect"):
        Owners().carry_out("not an effect")  # type: ignore[arg-type]
