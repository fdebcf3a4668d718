"""A master's descent gets what the gradient returned, whatever it is made of, from a worker that is another process."""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy import sparse

from gossip.errors import UsageError
from p2p import DeepDist
from p2p.adapters.matrices import FORMATS

pytestmark = [pytest.mark.slow, pytest.mark.sockets]


class Step(NamedTuple):
    w: Any
    rate: Any


def update() -> dict[Any, Any]:
    """Of all that travels."""
    matrix = np.array([[0, 1.5, 0], [0, 0, -2]])
    return {
        ("layer", 0): np.arange(6).reshape(2, 3),
        7: Step(np.ones(2, np.complex64), np.float32(0.1)),
        None: [(), [], {}, None, True, 1 << 70, -0.5, 1j, "ä\x00"],
        "numbers": (np.bool_(True), np.int8(-3), np.float64(2.5)),
        "arrays": [np.zeros((0, 3)), np.array(4.0), np.array([True, False]), np.ones(2, ">i4")],
        "counts": Counter(a=2),
        "matrices": {f"{form}_{kind}": getattr(sparse, f"{form}_{kind}")(matrix) for form in FORMATS for kind in KINDS},
    }


KINDS = ("array", "matrix")


def looks(value: Any) -> Any:
    """What tells it from all others, down to types, dtypes and bits."""
    if sparse.issparse(value):
        return type(value).__name__, looks(value.toarray())
    if isinstance(value, np.ndarray | np.generic):
        return type(value).__name__, value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return type(value).__name__, [(looks(key), looks(part)) for key, part in value.items()]
    if isinstance(value, list | tuple):
        return type(value).__name__, [looks(part) for part in value]
    return type(value).__name__, value


def test_descent_gets_what_the_gradient_returned() -> None:
    taken = []

    def gradient(model: Any, rows: Any) -> Any:
        return update()

    def descent(model: Any, update: Any) -> None:
        taken.append(update)
        model["n"] += 1

    model = {"n": np.zeros(1)}
    with DeepDist(model, "master", peers=2, progress=False) as dd:
        dd.train([[1, 2], [3]], gradient, descent, chunk_rows=1)
    assert model["n"] == [3]
    assert [looks(each) for each in taken] == [looks(update())] * 3
    assert type(taken[0][7]) is Step


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda: {"w": [np.ma.ones(2)]}, r"update\['w'\]\[0\] is a MaskedArray, expected a plain numpy array"),
        (lambda: Step(np.matrix([[1.0]]), 1), r"update.w is a matrix, expected a plain numpy array"),
        (lambda: {("a", 1): np.array([None])}, r"update\[\('a', 1\)\] has dtype object"),
    ],
)
def test_what_cannot_travel_ends_the_training_by_its_place(returned: Any, message: str) -> None:
    with (
        DeepDist({"n": np.zeros(1)}, "master", peers=1, progress=False) as dd,
        pytest.raises(UsageError, match=message),
    ):
        dd.train([[1]], lambda model, rows: returned(), lambda model, update: None)
