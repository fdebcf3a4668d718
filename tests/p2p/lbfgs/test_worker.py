"""What a worker makes of the user's function: the gradient as a vector, and errors that say what was expected."""

from __future__ import annotations

import random
import sys
from typing import Any

import cloudpickle
import numpy as np
import pytest
from scipy import sparse

from gossip.errors import UsageError
from p2p import current
from p2p.adapters.model import Model
from p2p.lbfgs.rows import Chunk
from p2p.lbfgs.worker import Computer, Job
from p2p.worker.errors import PartitionError

cloudpickle.register_pickle_by_value(sys.modules[__name__])

ROWS = [1.0, 2.0, 3.0]


def computer(function: Any, model: Any = None, seed: int = 0) -> Computer:
    user = Model({"b": np.zeros(2), "a": np.zeros((2, 3))} if model is None else model)
    return Computer(Job("run", user.skeleton(), function, None, 9, 4, 2, seed))


def compute(function: Any, x: Any = None, epoch: int = 0, rows: Any = ROWS, **options: Any) -> Any:
    made = computer(function, **options)
    return made.compute(np.zeros(made.flat.size) if x is None else x, Chunk(rows, more=False), epoch, 3, 5)


def test_the_gradient_is_a_vector_in_the_order_of_names() -> None:
    found = compute(lambda model, rows: (sum(rows), {"b": [7, 8], "a": np.arange(6).reshape(2, 3)}))
    assert found.loss == 6.0
    assert found.gradient.tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
    assert (found.rows, found.count) == (3, 3)


def test_the_model_is_at_the_point_and_new_for_each_portion() -> None:
    seen = []

    def function(model: Any, rows: Any) -> Any:
        seen.append((model["a"].copy(), model["b"].copy()))
        model["b"] += 1
        return 0.0, {}

    made = computer(function)
    for _ in range(2):
        found = made.compute(np.arange(8.0), Chunk(ROWS, more=False), 0, 0, 0)
    assert found.gradient.tolist() == [0.0] * 8
    for a, b in seen:
        assert a.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert b.tolist() == [6, 7]


@pytest.mark.parametrize(
    "form",
    [lambda a: a, lambda a: {1: a[1]}, sparse.csr_array, lambda a: a.tolist()],
    ids=["array", "rows", "sparse", "list"],
)
def test_a_gradient_may_be_sparse(form: Any) -> None:
    gradient = np.array([[0.0, 0, 0], [1, 2, 3]])
    found = compute(lambda model, rows: (0.0, {"a": form(gradient)}))
    assert found.gradient.tolist() == [0, 0, 0, 1, 2, 3, 0, 0]


def test_rows_in_blocks_are_counted_and_what_is_left_unread_too() -> None:
    class Function:
        rows_in = staticmethod(len)

        def __call__(self, model: Any, rows: Any) -> Any:
            next(rows)
            return 0.0, {}

    found = compute(Function(), rows=[[1, 2], [3], [4, 5, 6]])
    assert (found.rows, found.count) == (6, 3)


def test_each_pass_draws_the_same_numbers_and_tells_its_place() -> None:
    def function(model: Any, rows: Any) -> Any:
        task = current()
        return np.random.random() + random.random(), {"b": [task.epoch, task.partition * 10 + task.chunk]}

    first, second = compute(function, epoch=0), compute(function, epoch=4)
    assert first.loss == second.loss
    assert (first.gradient[-2:].tolist(), second.gradient[-2:].tolist()) == ([0, 35], [4, 35])
    assert compute(function, seed=1).loss != first.loss


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, "loss_and_gradient returned a NoneType, expected (loss, {name: gradient})"),
        ({"a": 1}, "loss_and_gradient returned a dict, expected (loss, {name: gradient})"),
        ((1.0, np.zeros(8)), "loss_and_gradient returned a tuple, expected (loss, {name: gradient})"),
        ((1.0, {}, {}), "loss_and_gradient returned a tuple of 3, expected (loss, {name: gradient})"),
        (("x", {}), "the loss is a str, expected a number"),
        ((np.zeros(2), {}), "the loss is a ndarray, expected a number"),
        ((1.0, {"c": 1}), "the gradient has c, expected names of ['a', 'b']"),
        ((1.0, {"b": np.zeros(3)}), "the gradient's 'b': float64 (3,), expected float64 (2,)"),
        ((1.0, {"b": np.array(["x", "y"])}), "the gradient's 'b': <U1 (2,), expected float64 (2,)"),
    ],
)
def test_what_is_no_loss_and_gradient_is_refused(returned: Any, words: str) -> None:
    with pytest.raises(PartitionError) as error:
        compute(lambda model, rows: returned)
    assert isinstance(error.value.original, UsageError)
    assert words in str(error.value.original)
    assert "partition 3" in str(error.value)


def test_what_the_function_or_its_rows_raise_is_told_with_its_place() -> None:
    def broken() -> Any:
        yield 1.0
        raise KeyError("rows")

    for function, rows in ((lambda model, rows: 1 / 0, ROWS), (lambda model, rows: (sum(rows), {}), broken())):
        with pytest.raises(PartitionError, match="partition 3, epoch 0") as error:
            compute(function, rows=rows)
        assert isinstance(error.value.original, ZeroDivisionError | KeyError)
