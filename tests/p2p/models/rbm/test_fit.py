"""Stacks trained over peers: as classifiers and auto-encoders, the gradients they are made of, and errors of use."""

from __future__ import annotations

import builtins
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p import DeepDist, SimulatedCluster
from p2p.models.rbm import (
    CD,
    PCD,
    RBM,
    AutoEncoder,
    BackPropagation,
    Classifier,
    ContrastiveDivergence,
    Dropout,
    FineTuning,
    MachineEvaluation,
    NetworkEvaluation,
    StackedRBM,
    Trainer,
    fine_tune,
    local_steps,
)
from p2p.models.rbm.elements import blocks, rows_in
from p2p.models.rbm.evaluation import error_percent, mean_squares
from p2p.testing import train_partition
from p2p.worker.errors import PartitionError

CLASSES, UNITS = 4, 64
QUICK: dict[str, Any] = {"block_rows": 20, "epochs": 3, "fine_tuning_epochs": 20, "fine_tuning": FineTuning(rate=0.5)}


def pictures(seed: int, count: int = 800) -> tuple[Any, Any]:
    """One of four pictures of 8 by 8 in each row, with a tenth of its points flipped; and which."""
    chance = np.random.default_rng(seed)
    prototypes = np.random.default_rng(0).random((CLASSES, UNITS)) < 0.3
    labels = chance.integers(CLASSES, size=count)
    return (prototypes[labels] ^ (chance.random((count, UNITS)) < 0.1)).astype(np.float32), labels


X, Y = pictures(1)
OTHERS = pictures(2, 300)
BLOCKS = [[(X[k : k + 50], Y[k : k + 50]) for k in range(start, start + 200, 50)] for start in range(0, 800, 200)]


# ------------------------------------------------------------------------------------------------------- whole stacks


@pytest.mark.parametrize(
    "data",
    [BLOCKS, [[(x, int(y)) for block, labels in part for x, y in zip(block, labels, strict=True)] for part in BLOCKS]],
    ids=["blocks", "rows"],
)
@pytest.mark.parametrize("exchange", ["chunk", "partition"])
def test_simulated_peers_learn_the_classes_of_rows(data: Any, exchange: Any) -> None:
    stack = StackedRBM([UNITS, 24, 16], seed=1)
    fitted = stack.fit(data, classes=CLASSES, exchange=exchange, engine=SimulatedCluster(3), held_out=OTHERS, **QUICK)
    assert isinstance(fitted.network, Classifier)
    assert fitted.fine_tuning is not None
    assert error_percent(fitted.network, *OTHERS) == fitted.fine_tuning.evaluations[-1].values["error %"] < 5
    assert [report.rows for report in (*fitted.pretraining, fitted.fine_tuning)] == [2400, 2400, 16000], (
        "of blocks, too"
    )
    assert fitted.fine_tuning.updates == 20 * len(data), "one a partition"
    for report in fitted.pretraining:
        first, last = report.evaluations[0].values, report.evaluations[-1].values
        assert last["reconstruction error"] < first["reconstruction error"] / 1.2
        assert set(last) == {"reconstruction error", "free-energy gap"}


def test_an_array_and_labels_are_cut_into_blocks_for_all_peers() -> None:
    stack = StackedRBM([UNITS, 24], seed=1)
    fitted = stack.fit(X, Y, engine=SimulatedCluster(2), **QUICK)
    assert len(fitted.network.biases[-1]) == CLASSES  # type: ignore[union-attr]
    assert error_percent(fitted.network, *OTHERS) < 5  # type: ignore[arg-type]
    assert fitted.pretraining[0].rows == 3 * 800
    assert fitted.pretraining[0].updates == 3 * 4, "two partitions a peer, each of 200 rows, which are ten steps of 20"
    assert "machine 0: 2400 rows" in str(fitted)
    assert "network: 16000 rows" in str(fitted)


def test_a_stack_goes_on_with_the_checkpoints_of_each_training(tmp_path: Path) -> None:
    def fitted(**options: Any) -> Any:
        stack = StackedRBM([UNITS, 24], seed=1)
        return stack.fit(X, Y, engine=SimulatedCluster(2), checkpoint=str(tmp_path / "stack"), **QUICK, **options)

    first = fitted()
    assert {path.name for path in (tmp_path / "stack").iterdir()} == {"machine-0", "network"}
    with pytest.raises(UsageError, match="holds checkpoints of another training"):
        fitted()
    again = fitted(resume=True)
    assert [again.pretraining[0].updates, again.fine_tuning.updates] == [0, 0]  # type: ignore[union-attr]
    assert (again.network.predict(OTHERS[0]) == first.network.predict(OTHERS[0])).all()  # type: ignore[union-attr]
    shutil.rmtree(tmp_path / "stack" / "network")
    third = fitted(resume=True)
    assert third.pretraining[0].updates == 0
    assert third.fine_tuning.updates > 0  # type: ignore[union-attr]


def test_without_labels_the_stack_becomes_an_auto_encoder() -> None:
    stack = StackedRBM([UNITS, 24, 8], seed=1)
    fitted = stack.fit(X, engine=SimulatedCluster(2), held_out=OTHERS[0], **QUICK)
    assert isinstance(fitted.network, AutoEncoder)
    assert fitted.network.encode(X).shape == (800, 8)
    before, after = AutoEncoder(stack), fitted.network
    tuned = mean_squares(OTHERS[0], after.reconstruct(OTHERS[0]))
    assert tuned < mean_squares(OTHERS[0], before.reconstruct(OTHERS[0])), "the stack itself is as it was pretrained"
    assert fitted.fine_tuning is not None
    assert fitted.fine_tuning.evaluations[-1].values == {"reconstruction error": pytest.approx(tuned)}


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("peers", "options"),
    [
        (2, {}),
        (2, {"mode": "master"}),
        pytest.param(3, {"discipline": "mix", "topology": "ring"}, marks=pytest.mark.long),
    ],
    ids=["p2p", "master", "ring"],
)
def test_processes_learn_it_too(peers: int, options: dict[str, Any]) -> None:
    stack = StackedRBM([UNITS, 24], seed=1)
    tuning = {"fine_tuning": FineTuning(rate=0.2, momentum=0.5, dropout=Dropout(0.1, 0.1))}
    fitted = stack.fit(X, Y, peers=peers, **QUICK | tuning, **options)
    assert error_percent(fitted.network, *OTHERS) < 5  # type: ignore[arg-type]


def test_epochs_and_options_are_those_of_each_machine() -> None:
    stack = StackedRBM([UNITS, 12, 10, 8], seed=1)
    before = [layer.W.copy() for layer in stack.layers]
    ways = [CD(), PCD(rate=1e-9), CD(rate=0.1)]
    options: dict[str, Any] = {"block_rows": 20, "engine": SimulatedCluster(2)}
    fitted = stack.fit(X, epochs=[0, 2, 1], fine_tuning_epochs=0, pretraining=ways, **options)
    assert [report.rows for report in fitted.pretraining] == [1600, 800]
    assert fitted.fine_tuning is None
    moved = [float(np.abs(layer.W - old).max()) for layer, old in zip(stack.layers, before, strict=True)]
    assert moved[0] == 0 < moved[1] < 1e-6 < 1e-3 < moved[2]


# ---------------------------------------------------------------------------------------------------------- gradients


def test_the_update_is_what_local_steps_changed() -> None:
    machine = RBM(UNITS, 8, seed=3, dtype="float64")
    found = train_partition(machine, ContrastiveDivergence(CD(rate=0.1), block_rows=50), [X[:100], X[100:150]])
    assert found.result.rows == 150
    (update,) = found.updates
    plain = RBM(UNITS, 8, seed=3, dtype="float64")
    plain_steps = ContrastiveDivergence(CD(rate=0.1), block_rows=50)
    np.random.seed(0)
    change = plain_steps(plain, [X[:100], X[100:150]])
    for name, array in change.items():
        assert getattr(plain, name) == pytest.approx(getattr(machine, name) + array)
        assert np.abs(update[name]).sum() == pytest.approx(np.abs(array).sum(), rel=0.2), "but for what was drawn"


def test_machines_below_turn_the_rows_into_their_hidden_means() -> None:
    stack = StackedRBM([UNITS, 8, 6], seed=1)
    low, high = stack.layers
    same = RBM.of(high.W.copy(), high.b.copy(), high.c.copy())
    np.random.seed(0)
    found = ContrastiveDivergence(below=(low,))(high, [X[:100]])
    np.random.seed(0)
    expected = ContrastiveDivergence()(same, [low.transform(X[:100])])
    for name, array in expected.items():
        assert (found[name] == array).all()


def test_back_propagation_takes_the_steps_of_one_process() -> None:
    networks = [Classifier(StackedRBM([UNITS, 8], seed=1), CLASSES) for _ in range(2)]
    options = FineTuning(rate=0.5, momentum=0.9, falling=False)
    fine_tune(networks[0], [(X[:100], Y[:100])], options, 0, epochs=3)
    rows = [(X[:100], Y[:100])] * 3
    found = train_partition(networks[1], BackPropagation(options), rows)
    for name in ("W0", "b0", "W1", "b1"):
        assert getattr(found.model, name) == pytest.approx(getattr(networks[0], name), abs=1e-6)


def test_velocities_stay_with_the_worker_from_chunk_to_chunk() -> None:
    rows = [(X[:100], Y[:100])] * 3
    options = FineTuning(rate=0.5, momentum=0.9, falling=False)
    network = Classifier(StackedRBM([UNITS, 8], seed=1), CLASSES)
    whole = train_partition(network, BackPropagation(options), rows).model
    chunks = train_partition(network, BackPropagation(options), rows, chunk_rows=1)
    assert len(chunks.updates) == 3
    for name in ("W0", "b0", "W1", "b1"):
        assert getattr(chunks.model, name) == pytest.approx(getattr(whole, name), abs=1e-6)


def test_chains_stay_with_the_worker_and_begin_anew_with_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    step = Trainer.step

    def watched(self: Trainer, block: Any) -> None:
        seen.append((self, self.chains))
        step(self, block)
        seen.append((self, self.chains))

    monkeypatch.setattr(Trainer, "step", watched)
    machine = RBM(UNITS, 8, seed=1)
    with DeepDist(machine, engine=SimulatedCluster(1)) as dd:
        for _ in range(2):
            dd.train([[X[:20]] * 3], ContrastiveDivergence(PCD(rate=0.01)), combine="mean", chunk_rows=1)
    trainers = [trainer for trainer, _ in seen]
    assert len(set(map(id, trainers[:6]))) == 1
    assert trainers[6] is not trainers[0]
    assert all((seen[k][1] == seen[k + 1][1]).all() for k in (1, 3)), "each chunk begins where the last one ended"


def test_another_training_of_a_worker_begins_with_nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Copy:
        training = 0

    copy, other = Copy(), Copy()
    monkeypatch.setattr(local_steps, "copy_of", lambda model: copy)
    first = local_steps._kept(None, object)
    assert local_steps._kept(None, object) is first
    copy.training = 5
    assert local_steps._kept(None, object) is not first
    monkeypatch.setattr(local_steps, "copy_of", lambda model: other)
    assert local_steps._kept(None, object) is not first


def test_what_steps_draw_follows_from_the_seed() -> None:
    rows = [X[:100]]
    one, same, other = (
        train_partition(RBM(UNITS, 8), ContrastiveDivergence(), rows, seed=seed).updates[0]["W"] for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_the_rate_falls_over_the_training() -> None:
    network = Classifier(StackedRBM([UNITS, 8], seed=1), CLASSES)
    sizes: list[float] = []

    class Watched(BackPropagation):
        def __call__(self, model: Any, rows: Any) -> Any:
            found = super().__call__(model, rows)
            sizes.append(float(np.abs(found["b1"]).sum()))
            return found

    options = FineTuning(rate=0.001, momentum=0.0)
    with DeepDist(network, engine=SimulatedCluster(1)) as dd:
        dd.train([[(X, Y)]], Watched(options, block_rows=800), epochs=4)
    assert np.array(sizes) / sizes[0] == pytest.approx([1, 0.75, 0.5, 0.25], abs=0.02)


def test_for_a_master_an_update_is_over_the_number_of_peers() -> None:
    network = Classifier(StackedRBM([UNITS, 8], seed=1), CLASSES)
    options = FineTuning(rate=0.5, falling=False)
    whole, shared = (
        train_partition(network, BackPropagation(options, shared=shared), [(X[:100], Y[:100])], peers=4).updates[0]
        for shared in (False, True)
    )
    assert whole["b1"] == pytest.approx(4 * shared["b1"])


def test_no_rows_are_no_update() -> None:
    assert ContrastiveDivergence()(RBM(UNITS, 8), []) == {}
    assert BackPropagation()(AutoEncoder(StackedRBM([UNITS, 8])), []) == {}


# ----------------------------------------------------------------------------------------------------------- elements


def test_rows_are_stacked_and_large_blocks_are_cut_in_a_random_order() -> None:
    x = np.arange(24.0).reshape(8, 3)
    assert [len(block) for block, _ in blocks(iter(x), 3, 5)] == [5, 3]
    np.random.seed(0)
    found = list(blocks([(x, np.arange(8))], 3, 5))
    assert [len(block) for block, _ in found] == [5, 3]
    labels = np.concatenate([part for _, part in found])  # type: ignore[arg-type]
    assert (labels != np.arange(8)).any()
    assert (np.concatenate([block for block, _ in found]) == x[labels]).all()
    assert [len(block) for block, _ in blocks([x, x[:0]], 3, 8)] == [8]


@pytest.mark.parametrize(
    ("element", "rows"), [(X[0], 1), (X[:7], 7), ((X[0], 3), 1), ((X[:7], Y[:7]), 7), (list(X[0]), 1)]
)
def test_rows_of_an_element_are_counted(element: Any, rows: int) -> None:
    assert rows_in(element) == rows


# --------------------------------------------------------------------------------------------- evaluation and pictures


def test_the_gap_grows_where_rows_are_learned_by_heart() -> None:
    few, others = X[:20], OTHERS[0]
    machine = RBM(UNITS, 40, seed=1)
    evaluate = MachineEvaluation(few, others)
    before = evaluate(machine)
    trainer = Trainer(machine, CD(rate=0.2), 20, 0)
    for _ in range(500):
        trainer.step(few)
    after = evaluate(machine)
    assert after["free-energy gap"] > 5 > 0.1 > abs(before["free-energy gap"])
    assert after["reconstruction error"] < before["reconstruction error"]


def test_a_picture_has_filters_and_reconstructions(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    stack = StackedRBM([UNITS, 10], seed=1)
    figure = stack.plot(X[:5], filters=9)
    assert [axes.get_title() for axes in figure.axes] == ["filters", "rows and reconstructions"]
    sheets = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert [sheet.shape for sheet in sheets] == [(26, 26), (17, 71)], "3 by 3, and 2 lines of 8, of 8 by 8 points"
    strongest = np.square(stack.layers[0].W).sum(axis=0).argmax()
    corner = stack.layers[0].W[:, strongest].reshape(8, 8)
    assert np.corrcoef(sheets[0][:8, :8].ravel(), corner.ravel())[0, 1] == pytest.approx(1)
    assert (sheets[1][:8, :8] == X[0].reshape(8, 8)).all()
    figure.savefig(tmp_path / "stack.png")
    assert os.path.getsize(tmp_path / "stack.png") > 1000
    assert [axes.get_title() for axes in stack.plot(shape=(4, 16)).axes] == ["filters"]


def test_without_matplotlib_a_picture_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def lacking(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(UsageError, match=r"pip install 'deepdist-p2p\[lab\]'"):
        StackedRBM([UNITS, 4]).plot()


# -------------------------------------------------------------------------------------------------------------- errors


def stack() -> StackedRBM:
    return StackedRBM([UNITS, 4])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stack().fit(X[:, :3], Y), r"data has shape \(800, 3\), expected \(rows, 64\)"),
        (lambda: stack().fit(X + 1, Y), "data has numbers from 1 to 2"),
        (lambda: stack().fit(X, Y[:9]), "800 rows with 9 labels"),
        (lambda: stack().fit(X, Y + 0.5), "labels are float64"),
        (lambda: stack().fit(X, Y - 1), "labels from -1 to 2, expected 0 to 2"),
        (lambda: stack().fit(X, Y, classes=3), "labels from 0 to 3, expected 0 to 2"),
        (lambda: stack().fit(X, Y, evaluate_every_s=1.0), "evaluate_every_s without held_out"),
        (lambda: stack().fit(BLOCKS, Y), "labels beside data that are a list"),
        (lambda: stack().fit(X, Y, held_out=X), "held_out is a ndarray, expected .rows, labels."),
        (lambda: stack().fit(X, held_out=OTHERS), "held_out is a tuple, expected rows alone"),
        (lambda: stack().fit(X, Y, held_out=(X, Y[:3])), "held_out of 800 rows with 3 labels"),
        (lambda: stack().fit(X, Y, epochs=[1, 2]), r"epochs=\[1, 2\]"),
        (lambda: stack().fit(X, Y, epochs=-1), "epochs=-1"),
        (lambda: stack().fit(X, Y, fine_tuning_epochs=-1), "fine_tuning_epochs=-1"),
        (lambda: stack().fit(X, Y, block_rows=0), "block_rows=0"),
        (lambda: stack().fit(X, Y, pretraining=3), "pretraining=3"),  # type: ignore[arg-type]
        (lambda: stack().fit(X, Y, fine_tuning=CD()), "fine_tuning is a CD"),  # type: ignore[arg-type]
        (lambda: stack().fit(X, Y, exchange="continuous"), "exchange='continuous'"),  # type: ignore[arg-type]
        (lambda: stack().fit(X, Y, peers=0), "peers=0"),
        (lambda: stack().fit(X, Y, combine="product", engine=SimulatedCluster(2)), "combine='product'"),
        (lambda: stack().fit(X, Y, combine="mean", mode="master", peers=2), "combine='mean' with mode='master'"),
        (lambda: stack().fit(X, Y, classes=1, epochs=0), "classes=1"),
        (lambda: ContrastiveDivergence(block_rows=0), "block_rows=0"),
        (lambda: ContrastiveDivergence(below=[RBM(2, 2)]), "below="),  # type: ignore[arg-type]
        (lambda: ContrastiveDivergence()(Classifier(stack(), 2), []), "model is a Classifier, expected a RBM"),  # type: ignore[arg-type]
        (lambda: BackPropagation()(RBM(2, 2), []), "model is a RBM, expected a Network"),  # type: ignore[arg-type]
        (lambda: BackPropagation()(Classifier(stack(), 2), [X]), "rows have no labels"),
        (lambda: list(blocks([np.zeros((1, 2))], 3, 5)), r"shape \(1, 2\), expected 3 numbers"),
        (lambda: list(blocks(["abc"], 3, 5)), "expected 3 numbers"),
        (lambda: list(blocks([(X, Y[:3])], UNITS, 5)), r"labels have shape \(3,\), expected \(800,\)"),
        (lambda: list(blocks([(X[0], 1), X[0]], UNITS, 5)), "some rows have labels and others have none"),
        (lambda: NetworkEvaluation(X)(Classifier(stack(), 2)), "held_out has no labels for a Classifier"),
        (lambda: StackedRBM([10, 4]).plot(), "10 visible units are no square"),
        (lambda: stack().plot(shape=(3, 4)), r"shape=\(3, 4\)"),
        (lambda: stack().plot(X[:, :3]), "rows has shape"),
    ],
)
def test_what_cannot_be_is_refused(call: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()


def test_rows_with_another_width_are_named_by_their_partition() -> None:
    with pytest.raises(PartitionError, match="expected 64 numbers"):
        train_partition(RBM(UNITS, 4), ContrastiveDivergence(), [np.zeros((2, 3))])


def test_steps_of_peers_are_averaged_or_outer_ones_unless_they_are_for_a_master() -> None:
    for steps in (ContrastiveDivergence, BackPropagation):
        assert (steps().combine, steps(shared=True).combine) == ("mean", None)
    slower = FineTuning(momentum=0.8)
    assert BackPropagation(slower).combine == "outer"
    assert BackPropagation(slower, shared=True).combine is None
    machine = RBM(6, 4, seed=1)
    refused = pytest.raises(UsageError, match="ContrastiveDivergence with mode='master', expected mode='p2p'")
    with DeepDist(machine, "master", peers=1, progress=False) as dd, refused:
        dd.train([[np.zeros(6)]], ContrastiveDivergence())
