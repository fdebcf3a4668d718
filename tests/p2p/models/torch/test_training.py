"""Local steps on torch modules: what a chunk trains, what travels, and whole trainings."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from p2p import DeepDist, SimulatedCluster, UsageError
from p2p.models.torch import OptimizerSteps, batches, train
from p2p.testing import train_partition
from p2p.worker.errors import PartitionError

CLASSES, FEATURES = 5, 8


def sgd(parameters: Any, rate: float = 0.1, momentum: float = 0.0) -> Any:
    return torch.optim.SGD(parameters, lr=rate, momentum=momentum)


def points(count: int, seed: int) -> tuple[Any, Any]:
    centers = np.random.default_rng(0).normal(size=(CLASSES, FEATURES))
    random = np.random.default_rng([1, seed])
    labels = random.integers(CLASSES, size=count)
    return centers[labels] + 0.5 * random.normal(size=(count, FEATURES)), labels


def rows(count: int, seed: int) -> list[Any]:
    return list(zip(*points(count, seed), strict=True))


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))


def accuracy(module: Any) -> float:
    x, y = points(500, seed=99)
    module.eval()
    with torch.no_grad():
        return float((module(torch.from_numpy(x).float()).argmax(1).numpy() == y).mean())


steps = partial(OptimizerSteps, loss=nn.functional.cross_entropy, optimizer=sgd, shuffle=False)


# ------------------------------------------------------------------------------------------------------- the gradient


def test_a_chunk_takes_one_step_per_batch_and_returns_what_changed() -> None:
    data, module, plain = rows(20, seed=0), network(), network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    update = steps(batch_size=8)(module, iter(data))
    optimizer = sgd(plain.parameters())
    for begin in (0, 8, 16):
        x, y = zip(*data[begin : begin + 8], strict=True)
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(torch.tensor(np.array(x)).float()), torch.tensor(np.array(y))).backward()
        optimizer.step()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], tensor)
        np.testing.assert_allclose(update[name], (tensor - before[name]).numpy(), atol=1e-6)
    assert update["1.num_batches_tracked"] == 3


def test_rows_of_a_chunk_are_trained_in_random_order_once_each() -> None:
    seen: list[int] = []

    def loss(output: Any, y: Any) -> Any:
        seen.extend(y.tolist())
        return output.sum()

    module = nn.Linear(1, 1)
    OptimizerSteps(loss=loss, optimizer=sgd, batch_size=4)(module, iter([([1.0], n) for n in range(20)]))
    assert sorted(seen) == list(range(20))
    assert seen != list(range(20))


def test_the_state_of_the_optimizer_stays_from_chunk_to_chunk() -> None:
    made: list[Any] = []

    def optimizer(parameters: Any) -> Any:
        made.append(sgd(parameters, momentum=0.9))
        return made[-1]

    module, gradient = nn.Linear(1, 1), OptimizerSteps(loss=lambda output, y: output.sum(), optimizer=optimizer)
    first = gradient(module, iter([([1.0], 0.0)]))
    second = gradient(module, iter([([1.0], 0.0)]))
    assert len(made) == 1
    assert first["weight"].item() == pytest.approx(-0.1)
    assert second["weight"].item() == pytest.approx(-0.1 * 1.9)
    gradient(nn.Linear(1, 1), iter([([1.0], 0.0)]))
    assert len(made) == 2, "another replica has another optimizer"


def test_an_optimizer_gets_the_parameters_that_require_a_gradient() -> None:
    def optimizer(parameters: Any) -> Any:
        assert [tuple(p.shape) for p in parameters] == [(16,), (16,), (CLASSES, 16), (CLASSES,)]
        return sgd(parameters)

    module = network()
    module[0].requires_grad_(False)
    update = steps(optimizer=optimizer)(module, iter(rows(8, seed=0)))
    assert not update["0.weight"].any()
    assert update["3.weight"].any()


def test_of_parameters_that_are_chosen_an_optimizer_gets_no_others() -> None:
    def optimizer(parameters: Any) -> Any:
        assert [tuple(p.shape) for p in parameters] == [(CLASSES, 16)]
        return sgd(parameters)

    module = network()
    with DeepDist(module, parameters=["3.weight"], engine=SimulatedCluster(peers=1, seed=1), progress=False) as dd:
        dd.train([rows(8, seed=0)], steps(optimizer=optimizer))
    assert torch.equal(module[0].weight, network()[0].weight)
    assert not torch.equal(module[3].weight, network()[3].weight)


def test_inputs_may_be_tuples_and_dicts_and_fractions_get_the_dtype_of_the_module() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, a: Any, b: Any) -> Any:
            assert a.dtype == torch.float64
            assert b.dtype == torch.int64
            return self.w * (a + b).sum()

    gradient = OptimizerSteps(loss=lambda output, y: output, optimizer=sgd, batch_size=2)
    for pair in (lambda n: (np.float32(n), 1), lambda n: {"a": np.float32(n), "b": 1}):
        update = gradient(Sum(), iter([(pair(n), 0) for n in (1, 2)]))
        assert update["w"] == pytest.approx(-0.1 * 5)


def test_a_module_in_evaluation_is_trained_in_training_and_its_parts_stay_in_evaluation() -> None:
    module = network().eval()
    update = steps()(module, iter(rows(8, seed=0)))
    assert update["1.num_batches_tracked"] == 1
    module = network()
    module[1].eval()
    assert not steps()(module, iter(rows(8, seed=0)))["1.num_batches_tracked"]


def test_random_numbers_of_the_program_are_left_alone_and_those_of_a_chunk_repeat() -> None:
    module = nn.Sequential(nn.Linear(FEATURES, 50), nn.Dropout(0.5), nn.Linear(50, CLASSES))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = train_partition(module, steps(), rows(8, seed=0), seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = (train_partition(module, steps(), rows(8, seed=0), seed=seed) for seed in (1, 2))
    assert (first.updates[0]["0.weight"] == again.updates[0]["0.weight"]).all()
    assert (first.updates[0]["0.weight"] != other.updates[0]["0.weight"]).any()


def test_threads_are_as_many_afterwards_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    seen = []
    loss = lambda output, y: (seen.append(torch.get_num_threads()), output.sum())[1]  # noqa: E731
    try:
        OptimizerSteps(loss=loss, optimizer=sgd, threads=2)(nn.Linear(1, 1), iter([([1.0], 0.0)]))
        assert seen == [2]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_module_is_trained_on_its_device_and_comes_back() -> None:
    module, plain = network(), network()
    update = steps(device="cpu:0")(module, iter(rows(8, seed=0)))
    steps()(plain, iter(rows(8, seed=0)))
    assert update["0.weight"].any()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor), name


def test_a_gradient_keeps_its_functions_shut_until_it_is_used() -> None:
    sent = pickle.dumps(steps(optimizer=lambda parameters: sgd(parameters)))
    gradient = pickle.loads(pickle.dumps(pickle.loads(sent)))
    assert gradient(network(), iter(rows(8, seed=0)))["0.weight"].any()


@pytest.mark.parametrize(
    ("options", "data", "words"),
    [
        ({}, [(1.0, 2.0, 3.0)], r"a row is a tuple of 3, expected a pair \(x, y\)"),
        ({}, [7], r"a row is a int, expected a pair"),
        ({}, [([1.0], 0), ([1.0, 2.0], 0)], r"rows differ in shape \(\(1,\), \(2,\)\), .*pad them"),
        ({}, [("text", 0)], r"a row has a str, expected arrays and numbers"),
        ({"blocks": True}, [(np.ones((3, 1)), np.ones(2))], r"arrays of a block have 2, 3 rows"),
        ({"loss": lambda output, y: 3.0}, [([1.0], 0)], r"loss returned a float, expected a tensor of one number"),
        ({"loss": lambda output, y: output}, [([1.0], 0)] * 2, r"a Tensor of shape \(2, 1\), expected"),
        ({"optimizer": lambda p: p}, [([1.0], 0)], r"optimizer returned a list, expected a torch.optim.Optimizer"),
        ({"loss": lambda output, y: output.sum() * float("nan")}, [([1.0], 0)], r"NaN .*smaller learning rate"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(options: Any, data: Any, words: str) -> None:
    settings = {"loss": lambda output, y: output.sum(), "optimizer": sgd, **options}
    with pytest.raises(PartitionError) as raised:
        train_partition(nn.Linear(1, 1), OptimizerSteps(**settings), data)
    assert isinstance(raised.value.__cause__, UsageError)
    with pytest.raises(UsageError, match=words):
        raise raised.value.__cause__


def test_the_rows_of_an_element_are_told() -> None:
    assert steps().rows_in(([1.0, 2.0, 3.0], 0)) == 1
    assert steps(blocks=True).rows_in(([[1.0], [2.0], [3.0]], [0, 1, 0])) == 3


def test_blocks_are_cut_anew() -> None:
    blocks = [((np.arange(n, n + 5), np.arange(n, n + 5) * 2), np.arange(n, n + 5) * 3) for n in (0, 5, 10)]
    cut = list(batches.of_length(lambda: blocks, 7))
    assert [batches.length(block) for block in cut] == [7, 7, 1]
    assert np.concatenate([block[0][1] for block in cut]).tolist() == [2 * n for n in range(15)]
    assert np.concatenate([block[1] for block in cut]).tolist() == [3 * n for n in range(15)]
    whole = [(torch.arange(4), [1, 2, 3, 4])]
    (one,) = batches.of_length(whole, 100)
    assert one[1].tolist() == [1, 2, 3, 4]


# ------------------------------------------------------------------------------------------------------ whole trainings


@pytest.mark.parametrize("blocks", [False, True])
def test_peers_average_and_every_row_is_trained_once(blocks: bool) -> None:
    module = network()
    data = [[points(60, seed)] if blocks else rows(60, seed) for seed in range(6)]
    reports: list[Any] = []
    trained = train(
        module,
        data,
        loss=nn.functional.cross_entropy,
        optimizer=sgd,
        batch_size=8,
        local_steps=2,
        blocks=blocks,
        epochs=4,
        engine=SimulatedCluster(peers=3, seed=1),
        progress=False,
        on_report=reports.append,
    )
    assert trained is module
    assert reports[0].rows == 4 * 6 * 60
    assert reports[0].updates == 4 * 6 * 4, "60 rows are three times two steps of 8, and 12 more"
    assert module[1].num_batches_tracked == 4 * 6 * 8
    assert (module[1].running_var > 0).all()
    assert accuracy(module) > 0.9


def test_the_rule_may_be_chosen() -> None:
    def change(rule: str | None) -> float:
        module = nn.Linear(1, 1)
        before = module.weight.item()
        train(
            module,
            [[([1.0], 0.0)]],
            loss=lambda output, y: output.sum(),
            optimizer=sgd,
            combine=rule,
            engine=SimulatedCluster(peers=2, seed=1),
            progress=False,
        )
        return module.weight.item() - before

    assert change(None) == pytest.approx(-0.05)
    assert change("sum") == pytest.approx(-0.1)


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.parametrize("blocks", [False, True])
def test_processes_train_a_module(place: Any, blocks: bool) -> None:
    module = network()
    data = [[points(300, seed)] if blocks else rows(300, seed) for seed in range(4)]
    train(
        module,
        data,
        loss=nn.functional.cross_entropy,
        optimizer=sgd,
        batch_size=10,
        blocks=blocks,
        epochs=3,
        peers=2,
        progress=False,
    )
    assert module[1].num_batches_tracked == 3 * 4 * 30
    assert accuracy(module) > 0.9


class Own(nn.Module):
    """Stands for a class of the user's program."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Any) -> Any:
        return self.scores(x)


def own_gradient(module: Any, data: Any) -> Any:
    x, y = (torch.tensor(np.array(column)) for column in zip(*data, strict=True))
    module.zero_grad()
    nn.functional.cross_entropy(module(x.float()), y).backward()
    return {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}


def own_descent(module: Any, update: Any) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter -= 0.3 * torch.from_numpy(update[name])


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.parametrize("how", [{}, {"mode": "master"}, {"discipline": "mix"}], ids=["p2p", "master", "mix"])
def test_a_module_is_trained_by_a_gradient_and_descent_of_the_users_own(place: Any, how: Any) -> None:
    module = Own()
    with DeepDist(module, peers=2, progress=False, **how) as dd:
        dd.train([rows(300, seed) for seed in range(4)], own_gradient, own_descent, chunk_rows=20, epochs=2)
        assert dd.model is module
    assert accuracy(module) > 0.9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"module": {"w": np.zeros(3)}}, r"module is a dict, expected a torch.nn.Module"),
        ({"loss": 3}, r"loss is a int, expected a function loss\(output, y\)"),
        ({"local_steps": 0}, r"local_steps=0, expected at least 1"),
        ({"batch_size": 0}, r"batch_size=0, expected at least 1"),
        ({"blocks": 1}, r"blocks=1, expected True or False"),
        ({"combine": "most"}, r"combine='most', expected 'sum'"),
        ({"data": []}, r"data is an empty list"),
        ({"peers": 0}, r"peers=0, expected at least 1"),
        ({"mode": "master"}, r"unknown arguments mode, expected some of peers, codec, .* OptimizerSteps"),
    ],
)
def test_arguments_are_looked_at_before_anything_starts(options: Any, words: str) -> None:
    settings = {"module": nn.Linear(1, 1), "data": [[([1.0], 0.0)]], "loss": nn.functional.mse_loss, "optimizer": sgd}
    settings |= options
    with pytest.raises(UsageError, match=words):
        train(settings.pop("module"), settings.pop("data"), **settings)  # type: ignore[misc]
