"""Descents against the textbook, what of them travels, schedules, and errors of use."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p import DeepDist, SimulatedCluster, descents
from p2p.adapters.model import Model
from p2p.descents import (
    SGD,
    AdaGrad,
    Adam,
    Constant,
    Cosine,
    Linear,
    LocalSteps,
    Momentum,
    Nesterov,
    RMSProp,
    Step,
    WarmUp,
    progress,
)
from p2p.models.linear import gradient as linear_gradient
from p2p.testing import Neighbor, train_partition
from p2p.worker.errors import PartitionError
from p2p.worker.job import Job, TaskInfo
from p2p.worker.task import run_partition

RATE = 0.1
TARGET = np.array([[1.0, -2.0], [3.0, 0.5]])


def pulled(model: Any, rows: Iterator[Any]) -> Any:
    """The gradient of (w - TARGET)^2 / 2, times each row."""
    return {"w": (model["w"] - TARGET) * sum(rows)}


# the textbook, for one number: gradients in, steps out


def sgd(gradients: list[float]) -> list[float]:
    return [RATE * g for g in gradients]


def momentum(gradients: list[float]) -> list[float]:
    v, steps = 0.0, []
    for g in gradients:
        v = 0.8 * v + g
        steps.append(RATE * v)
    return steps


def nesterov(gradients: list[float]) -> list[float]:
    v, steps = 0.0, []
    for g in gradients:
        v = 0.8 * v + g
        steps.append(RATE * (g + 0.8 * v))
    return steps


def adagrad(gradients: list[float]) -> list[float]:
    s, steps = 0.0, []
    for g in gradients:
        s += g * g
        steps.append(RATE * g / (math.sqrt(s) + 1e-8))
    return steps


def rmsprop(gradients: list[float]) -> list[float]:
    s, steps = 0.0, []
    for g in gradients:
        s = 0.8 * s + 0.2 * g * g
        steps.append(RATE * g / (math.sqrt(s) + 1e-8))
    return steps


def adam(gradients: list[float]) -> list[float]:
    m = v = 0.0
    steps = []
    for t, g in enumerate(gradients, 1):
        m = 0.8 * m + 0.2 * g
        v = 0.99 * v + 0.01 * g * g
        steps.append(RATE * (m / (1 - 0.8**t)) / (math.sqrt(v / (1 - 0.99**t)) + 1e-8))
    return steps


TEXTBOOK: list[tuple[SGD, Callable[[list[float]], list[float]]]] = [
    (SGD(RATE), sgd),
    (Momentum(RATE, 0.8), momentum),
    (Nesterov(RATE, 0.8), nesterov),
    (AdaGrad(RATE), adagrad),
    (RMSProp(RATE, 0.8), rmsprop),
    (Adam(RATE, 0.8, 0.99), adam),
]
each_descent = pytest.mark.parametrize(
    ("descent", "textbook"), TEXTBOOK, ids=lambda part: getattr(part, "__name__", type(part).__name__)
)


def fresh(descent: SGD, **arrays: Any) -> dict[str, Any]:
    model = arrays or {"w": np.zeros_like(TARGET)}
    return descent.prepare(model) if isinstance(descent, AdaGrad) else model  # type: ignore[no-any-return]


@each_descent
def test_a_descent_does_what_the_textbook_says(descent: SGD, textbook: Any) -> None:
    chance = np.random.default_rng(0)
    gradients = chance.normal(size=(20, 2, 2))
    model = fresh(descent, w=np.zeros((2, 2)), other=np.ones(3))
    for gradient in gradients:
        descent(model, {"w": gradient})
    for index in np.ndindex(2, 2):
        assert model["w"][index] == pytest.approx(-sum(textbook([float(g[index]) for g in gradients])), rel=1e-12)
    assert model["other"].tolist() == [1, 1, 1]


@each_descent
def test_a_worker_s_descents_are_one_after_the_other(descent: SGD, textbook: Any) -> None:
    chunks = [1.0, 2.0, 0.5, 1.5]

    def rebinding(model: Any, rows: Iterator[Any]) -> Any:
        model["w"] = model["w"] + 0  # a gradient may do so, on its copy
        return {"w": np.full((2, 2), sum(rows))}

    trained = train_partition(fresh(descent), rebinding, chunks, descent, chunk_rows=1)
    assert trained.model["w"] == pytest.approx(np.full((2, 2), -sum(textbook(chunks))), rel=1e-9)
    names = {name for update in trained.updates for name in update}
    assert names == ({"w", "w_adagrad"} if isinstance(descent, AdaGrad) else {"w"}), "what travels"


@each_descent
def test_each_training_begins_with_nothing(descent: SGD, textbook: Any) -> None:
    model = fresh(descent)
    with DeepDist(model, engine=SimulatedCluster(1)) as dd:
        steps = []
        for _ in range(2):
            before = dd.model["w"].copy()
            dd.train([[1.0, 2.0]], lambda model, rows: {"w": np.full((2, 2), sum(rows))}, descent, chunk_rows=1)
            steps.append(before - dd.model["w"])
    both = textbook([1.0, 2.0, 1.0, 2.0])
    assert steps[0] == pytest.approx(np.full((2, 2), sum(both[:2])))
    again = both[2:] if isinstance(descent, AdaGrad) else both[:2]
    assert steps[1] == pytest.approx(np.full((2, 2), sum(again))), "but the sums of squares are the model's"


def test_a_worker_that_goes_on_in_another_training_of_the_session_forgets() -> None:
    taken = Model({"w": np.zeros(1)})
    job = Job(
        run="one session",
        skeleton=taken.skeleton(),
        gradient=lambda model, rows: {"w": np.full(1, sum(rows))},
        descent=Momentum(RATE, 0.8),
        partitions=1,
        chunk_rows=1,
        peers=1,
        seed=0,
    )
    neighbor = Neighbor(taken.arrays())
    for before in (0, 1):
        run_partition(replace(job, epochs_before=before), neighbor, 0, 0, [1.0, 2.0])
        neighbor.units.clear()
    first, second, *again = [update["w"][0] for update in neighbor.published]
    assert [first, second] == pytest.approx([-0.1, -0.28])
    assert again == pytest.approx([first, second])


def test_the_sums_of_all_peers_add_up() -> None:
    model = fresh(AdaGrad(RATE), w=np.zeros(1))
    with DeepDist(model, engine=SimulatedCluster(4, seed=1)) as dd:
        dd.train(
            [[float(n)] * 3 for n in range(1, 5)],
            lambda m, rows: {"w": np.array([sum(rows)])},
            AdaGrad(RATE),
            chunk_rows=1,
        )
        assert dd.model["w_adagrad"] == pytest.approx([3 * (1 + 4 + 9 + 16)])


@pytest.mark.parametrize(
    ("descent", "mode"), [(Momentum(0.01), "p2p"), (AdaGrad(0.3), "p2p"), (Adam(0.05), "p2p"), (Adam(0.05), "master")]
)
@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
@pytest.mark.filterwarnings("ignore:an update that was not zero changed none")  # of who came when all was done
def test_two_processes_learn_by_it(descent: SGD, mode: Any) -> None:
    model = fresh(descent)
    with DeepDist(model, mode, peers=2) as dd:
        dd.train([[1.0] * 100] * 4, pulled, descent, epochs=2, chunk_rows=1)
        far = np.abs(dd.model["w"] - TARGET).max()
    assert far < 0.5


def test_what_is_remembered_is_forgotten_with_the_model() -> None:
    model = {"w": np.zeros(2)}
    key = id(model["w"])
    Momentum(0.1)(model, {"w": np.ones(2)})
    assert key in descents._by_array
    del model
    gc.collect()
    assert key not in descents._by_array
    for _ in range(3):
        train_partition({"w": np.zeros((2, 2))}, pulled, [1.0], Momentum(0.1))
    gc.collect()
    assert len(descents._by_copy) == 1, "that of the last copy"


def test_models_of_any_sort_get_their_sums() -> None:
    class Layer:
        def __init__(self) -> None:
            self.w = np.ones((2, 2), np.float32)

    model = {"layers": {"first": Layer()}, "b": np.zeros(2), "counts": np.zeros(2, np.int64)}
    descent = AdaGrad(0.5)
    assert descent.prepare(model) is model
    layer: Any = model["layers"]["first"]  # type: ignore[index]
    assert layer.w_adagrad.dtype == np.float32
    assert "counts_adagrad" not in model
    descent(model, {"layers.first.w": np.full((2, 2), 4.0)})
    assert layer.w == pytest.approx(np.full((2, 2), 0.5))
    descent.prepare(model)
    assert layer.w_adagrad.max() == 16, "sums that are there stay"
    assert vars(layer).keys() == {"w", "w_adagrad"}


# ----------------------------------------------------------------------------------------------------------- schedules


def rates_of(schedule: Any, chunks: int | None = None, **options: Any) -> list[float]:
    """What is taken off at each chunk of 2 epochs of 2 partitions of 2 chunks, in their order."""
    taken: list[float] = []

    def descent(model: Any, update: Any) -> None:
        before = float(model["w"][0])
        SGD(schedule, chunks=chunks)(model, update)
        taken.append(before - float(model["w"][0]))

    with DeepDist({"w": np.zeros(1)}, engine=SimulatedCluster(1)) as dd:
        dd.train([[1, 1], [1, 1]], lambda m, rows: {"w": np.ones(1)}, descent, epochs=2, chunk_rows=1, **options)
    return taken


@pytest.mark.parametrize(
    ("schedule", "chunks", "rates"),
    [
        (0.5, None, [0.5] * 8),
        (Constant(0.5), None, [0.5] * 8),
        (Linear(0.8), None, [0.8, 0.8, 0.6, 0.6, 0.4, 0.4, 0.2, 0.2]),
        (Linear(0.8), 2, [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        (Linear(0.8, 0.4), None, [0.8, 0.8, 0.7, 0.7, 0.6, 0.6, 0.5, 0.5]),
        (Cosine(1.0, 0.2), None, [c for k in range(4) for c in [0.2 + 0.4 * (1 + math.cos(math.pi * k / 4))] * 2]),
        (Step(1.0, 0.5, (0.25, 0.75)), None, [1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]),
        (WarmUp(0.8, 0.5, start=0.0), None, [0, 0, 0.4, 0.4, 0.8, 0.8, 0.8, 0.8]),
        (WarmUp(Linear(0.8), 0.5, start=0.5), None, [0.4, 0.4, 0.45, 0.45, 0.4, 0.4, 0.2, 0.2]),
        (lambda done: 1 - done, None, [1, 1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_rate_follows_the_progress_of_the_training(schedule: Any, chunks: Any, rates: list[float]) -> None:
    assert rates_of(schedule, chunks) == pytest.approx(rates)


def test_progress_is_that_of_all_epochs_and_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    task = TaskInfo(run="r", epoch=1, epochs=4, partition=3, partitions=5, chunk=7, peers=2, seed=0)
    monkeypatch.setattr(descents, "current", lambda: task)
    assert progress() == pytest.approx((1 + 3 / 5) / 4)
    assert progress(10) == pytest.approx((1 + 3.7 / 5) / 4)
    assert progress(4) == pytest.approx((1 + 3.75 / 5) / 4), "more chunks than there should be are the last one"


# ------------------------------------------------------------------------------------------------------ errors of use


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(math.nan), "rate=nan, expected a finite number"),
        (lambda: SGD(-1), "rate=-1"),
        (lambda: SGD("fast"), "rate='fast'"),  # type: ignore[arg-type]
        (lambda: SGD(0.1, chunks=0), "chunks=0"),
        (lambda: Momentum(0.1, 1.0), "decay=1"),
        (lambda: Adam(0.1, square_decay=-0.1), "square_decay=-0.1"),
        (lambda: AdaGrad(0.1, epsilon=0), "epsilon=0"),
        (lambda: RMSProp(math.inf), "rate=inf"),
        (lambda: Linear(0.1, math.nan), "end=nan"),
        (lambda: Cosine(-0.1), "rate=-0.1"),
        (lambda: Step(0.1, after=(2,)), "after=2"),
        (lambda: Step(0.1, after=0.5), "after=0.5"),  # type: ignore[arg-type]
        (lambda: WarmUp(0.1, share=0), "share=0"),
        (lambda: WarmUp(math.nan), "then=nan"),
        (lambda: Constant(math.inf), "rate=inf"),
    ],
)
def test_settings_that_cannot_be_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ([1.0], "gradient returned a list, expected a dict"),
        ({"v": np.ones(2)}, "a gradient of 'v', expected the name of an array"),
        ({"n": np.ones(2)}, "'n', which is of int64"),
        ({"w": np.ones(3)}, r"the gradient of 'w': shape \(3,\), expected \(2,\)"),
        ({"w": np.ones(2), "v": 0}, "a gradient of 'v'"),
    ],
)
def test_gradients_that_fit_no_array_are_refused_and_nothing_is_changed(update: Any, message: str) -> None:
    model = {"w": np.zeros(2), "n": np.zeros(2, np.int64)}
    with pytest.raises(UsageError, match=message):
        SGD(0.1)(model, update)
    assert not model["w"].any()


def test_adagrad_without_its_sums_says_how_to_get_them() -> None:
    with pytest.raises(UsageError, match=r"no sums 'w_adagrad' of shape \(2,\) beside 'w': call AdaGrad"):
        AdaGrad(0.1)({"w": np.zeros(2)}, {"w": np.ones(2)})
    with pytest.raises(UsageError, match=r"'layers.0' is in a list"):
        AdaGrad(0.1).prepare({"layers": [np.zeros(2)]})


def test_a_schedule_s_rate_has_to_be_one() -> None:
    with pytest.raises(PartitionError) as caught:
        train_partition({"w": np.zeros((2, 2))}, pulled, [1.0], SGD(lambda done: math.nan))
    assert "the schedule's rate=nan" in str(caught.value)


def test_a_schedule_outside_of_a_task_is_refused() -> None:
    with pytest.raises(UsageError, match="outside of a task"):
        SGD(Linear(0.1))({"w": np.zeros(2)}, {"w": np.ones(2)})


# --------------------------------------------------------------------------------------------------------- local steps


def towards(model: Any, rows: Iterator[Any]) -> dict[str, Any] | None:
    """The gradient of half the squared distance to the mean of the rows; nothing for rows below 0."""
    seen = np.array(list(rows), np.float64)
    return None if seen.mean() < 0 else {"w": model["w"] - seen.mean()}


def stepped(rows: list[float], size: int, descent: Callable[[Any, Any], Any]) -> Any:
    """The same in a loop."""
    model = {"w": np.zeros(3)}
    for start in range(0, len(rows), size):
        update = towards(model, iter(rows[start : start + size]))
        if update is not None:
            descent(model, update)
    return model["w"]


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("descent", [SGD(0.3), Momentum(0.1)], ids=["sgd", "momentum"])
def test_local_steps_are_those_of_a_loop(descent: SGD, size: int) -> None:
    rows = [1.0, 2.0, 3.0, -9.0, -9.0, -9.0, 7.0]
    model = {"w": np.zeros(3)}
    with DeepDist(model, engine=SimulatedCluster(1), progress=False) as dd:
        report = dd.train([rows], LocalSteps(towards, descent, rows=size))
    np.testing.assert_allclose(model["w"], stepped(rows, size, replace(descent)), rtol=1e-12)
    assert (report.rows, report.updates) == (7, 1)


def test_local_steps_of_peers_add_up_as_outer_steps_and_count_rows_as_their_gradient_does() -> None:
    def gradient(model: Any, blocks: Iterator[Any]) -> Any:
        return towards(model, iter(np.concatenate(list(blocks))))

    gradient.rows_in = len  # type: ignore[attr-defined]
    model = {"w": np.zeros(3)}
    with DeepDist(model, engine=SimulatedCluster(4, seed=1), progress=False) as dd:
        report = dd.train([[np.full(5, 2.0)] * 60] * 4, LocalSteps(gradient, SGD(0.5), rows=1), chunk_rows=5)
    np.testing.assert_allclose(model["w"], 2.0, atol=0.1)
    assert report.rows == 4 * 60 * 5


@pytest.mark.sockets
def test_local_steps_of_processes_learn() -> None:
    model = {"w": np.zeros(3)}
    with DeepDist(model, peers=2, progress=False) as dd:
        dd.train([[2.0] * 60] * 2, LocalSteps(towards, SGD(0.3), rows=2), chunk_rows=6)
    np.testing.assert_allclose(model["w"], 2.0, atol=0.05)


@pytest.mark.parametrize(
    ("gradient", "descent"),
    [
        (SGD(0.3), towards),
        (Adam(0.3), 0.3),
        (towards, linear_gradient),
        (towards, LocalSteps(towards, SGD(0.3), rows=2)),
    ],
    ids=["a descent first", "two descents", "a gradient of a model last", "local steps last"],
)
def test_swapped_arguments_of_local_steps_are_refused(gradient: Any, descent: Any) -> None:
    with pytest.raises(UsageError, match=r"gradient is \w+ and descent is .*: the gradient first"):
        LocalSteps(gradient, descent, rows=2)


def test_local_steps_outside_of_a_task_are_refused() -> None:
    with pytest.raises(UsageError, match="LocalSteps outside of a task"):
        LocalSteps(towards, SGD(0.3), rows=2)({"w": np.zeros(3)}, iter([1.0]))
    with pytest.raises(UsageError, match="rows=0"):
        LocalSteps(towards, SGD(0.3), rows=0)
    with pytest.raises(UsageError, match=r"descent is a float, expected a function descent\(model, update\)"):
        LocalSteps(towards, 0.3, rows=2)  # type: ignore[arg-type]


def test_local_steps_go_with_no_other_descent_and_with_no_master() -> None:
    with DeepDist({"w": np.zeros(3)}, engine=SimulatedCluster(1), progress=False) as dd:
        with pytest.raises(UsageError, match="LocalSteps with a descent, expected none"):
            dd.train([[1.0]], LocalSteps(towards, SGD(0.3), rows=2), SGD(0.3))
        with pytest.raises(UsageError, match="combine='outer' with exchange='continuous'"):
            dd.train([[1.0]], LocalSteps(towards, SGD(0.3), rows=2), exchange="continuous")
    refused = pytest.raises(UsageError, match="LocalSteps with mode='master', expected mode='p2p'")
    with DeepDist({"w": np.zeros(3)}, "master", peers=1, progress=False) as dd, refused:
        dd.train([[1.0]], LocalSteps(towards, SGD(0.3), rows=2))


@pytest.mark.parametrize("descent", [Adam(0.1), RMSProp(0.1)], ids=["adam", "rmsprop"])
def test_squares_that_would_be_zero_are_refused(descent: SGD) -> None:
    with pytest.raises(UsageError, match="'w' of float16, expected float32 or float64"):
        descent({"w": np.zeros(3, np.float16)}, {"w": np.full(3, 1e-4)})


@pytest.mark.parametrize("descent", [SGD(0.1), Momentum(0.1), Adam(0.1)], ids=repr)
def test_gradients_of_complex_numbers_are_refused(descent: SGD) -> None:
    model = {"w": np.zeros(3)}
    with pytest.raises(UsageError, match="the gradient of 'w': dtype complex128, expected float64"):
        descent(model, {"w": np.full(3, 1j)})
    descent(model, {"w": np.ones(3, np.int64)})
    assert (model["w"] < 0).all()
