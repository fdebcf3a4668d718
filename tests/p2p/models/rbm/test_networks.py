"""Stacks learn layer by layer, and back-propagation is the slope of what it climbs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p.adapters.model import Model
from p2p.models.rbm import (
    CD,
    RBM,
    AutoEncoder,
    Classifier,
    Dropout,
    FineTuning,
    StackedRBM,
    fine_tune,
    gradient,
    pretrain,
)
from p2p.models.rbm.networks import arrays

GLYPHS = """
.#. .#. ### ### #.# ### #.. ### ### ###
#.# ##. ..# ..# #.# #.. #.. ..# #.# #.#
#.# .#. .#. .## ### ##. ### .#. ### ###
#.# .#. #.. ..# ..# ..# #.# .#. #.# ..#
.#. ### ### ### ..# ##. ### .#. ### ..#
"""


def digits(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numerals of 5 x 3 points on a field of 7 x 5, moved, with points that are wrong; (rows, 35) of 0 and 1."""
    random = np.random.default_rng(seed)
    lines = [line.split() for line in GLYPHS.split("\n") if line]
    glyphs = np.array([[[point == "#" for point in line[digit]] for line in lines] for digit in range(10)])
    labels, images = random.integers(0, 10, rows), np.zeros((rows, 7, 5))
    for row, label in enumerate(labels):
        down, right = random.integers(0, 3, 2)
        images[row, down : down + 5, right : right + 3] = glyphs[label]
    images = np.abs(images - (random.random(images.shape) < 0.03))
    return images.reshape(rows, 35).astype(np.float32), labels


def stack(sizes: list[int], visible: str = "bernoulli", dtype: str = "float64") -> StackedRBM:
    made = StackedRBM(sizes, visible, dtype=dtype)
    random = np.random.default_rng(5)
    for layer in made.layers:
        for array in (layer.W, layer.b, layer.c):
            array[...] = random.normal(0, 0.6, array.shape)
    return made


def classifier(dtype: str = "float64") -> tuple[Classifier, Any]:
    model = Classifier(stack([4, 5, 3], dtype=dtype), 3)
    random = np.random.default_rng(6)
    model.weights[-1][...] = random.normal(size=(3, 3))
    model.biases[-1][...] = random.normal(size=3)
    return model, (random.random((6, 4)), np.array([0, 2, 1, 1, 0, 2]))


def auto_encoder(visible: str) -> tuple[AutoEncoder, Any]:
    random = np.random.default_rng(6)
    block = random.random((6, 4)) if visible == "bernoulli" else random.normal(size=(6, 4))
    return AutoEncoder(stack([4, 5, 3], visible)), block


def check_slopes(model: Any, block: Any) -> None:
    found = gradient(model, block)
    named = arrays(model)
    assert found.keys() == named.keys()
    for name, array in named.items():
        for index in np.ndindex(array.shape):
            kept, ends = array[index], []
            for step in (1e-5, -1e-5):
                array[index] = kept + step
                ends.append(model.log_probability(block))
            array[index] = kept
            assert found[name][index] == pytest.approx((ends[1] - ends[0]) / 2e-5, abs=1e-8), (name, index)


def test_the_gradient_of_a_classifier_is_the_slope_of_minus_the_log_probability() -> None:
    check_slopes(*classifier())


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
def test_the_gradient_of_an_auto_encoder_is_the_slope_of_minus_the_log_probability(visible: str) -> None:
    check_slopes(*auto_encoder(visible))


def test_the_log_probability_of_a_classifier_is_that_of_its_probabilities() -> None:
    model, (rows, labels) = classifier()
    probabilities = model.probabilities(rows)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert model.log_probability((rows, labels)) == pytest.approx(np.log(probabilities[np.arange(6), labels]).mean())
    assert np.array_equal(model.predict(rows), probabilities.argmax(axis=1))


def test_the_log_probability_of_an_auto_encoder_is_that_of_its_reconstruction() -> None:
    model, rows = auto_encoder("bernoulli")
    means = model.reconstruct(rows)
    cross = (rows * np.log(means) + (1 - rows) * np.log(1 - means)).sum(axis=1).mean()
    assert model.log_probability(rows) == pytest.approx(cross)
    model, rows = auto_encoder("gaussian")
    assert model.log_probability(rows) == pytest.approx(-0.5 * ((rows - model.reconstruct(rows)) ** 2).sum() / 6)


def test_a_network_begins_as_the_stack_and_leaves_it_alone() -> None:
    below = stack([4, 5, 3])
    rows = np.random.default_rng(1).random((6, 4))
    model = AutoEncoder(below)
    np.testing.assert_allclose(model.encode(rows), below.transform(rows))
    np.testing.assert_allclose(model.decode(model.encode(rows)), below.reconstruct(rows))
    np.testing.assert_allclose(model.reconstruct(rows), below.reconstruct(rows))
    np.testing.assert_allclose(Classifier(below, 4).probabilities(rows), 0.25)
    for array in (*model.weights, *model.biases):
        for layer in below.layers:
            assert not any(np.shares_memory(array, own) for own in (layer.W, layer.b, layer.c))


def test_float32_is_float64_to_its_precision() -> None:
    (fine, block), (coarse, _) = classifier(), classifier("float32")
    expected = gradient(fine, block)
    for name, array in gradient(coarse, block).items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected[name], atol=1e-6)


def test_dropout_is_the_gradient_of_the_network_that_is_left() -> None:
    """Weights of units that are left out have no gradient; where few are, it is about that of the whole."""
    model, block = classifier()
    one = gradient(model, (block[0][:1], block[1][:1]), 8, Dropout(visible=0.5, hidden=0.0))
    left_out = (one["W0"] == 0).all(axis=1)
    assert 0 < left_out.sum() < 4
    many = (np.tile(block[0], (4000, 1)), np.tile(block[1], 4000))
    whole, thinned = gradient(model, many), gradient(model, many, 3, Dropout(visible=0.02, hidden=0.02))
    for name, array in whole.items():
        np.testing.assert_allclose(thinned[name], array, atol=0.03)
    again = gradient(model, many, 3, Dropout(visible=0.02, hidden=0.02), out=whole)
    assert again is whole
    for name, array in thinned.items():
        assert np.array_equal(array, again[name])


@pytest.mark.parametrize("layer", [0, 1])
def test_hidden_dropout_is_the_slope_with_the_same_units_left_out(layer: int) -> None:
    model, block = classifier()
    dropout = Dropout(visible=0.3, hidden=0.4)

    def climbed() -> float:
        from p2p.models.rbm.networks import _activations

        rows, targets = model.pair(block)
        x = _activations(model, rows, 0, [], np.random.default_rng(8), dropout)[-1]
        return float(((x * targets).sum(axis=1) - np.log(np.exp(x).sum(axis=1))).mean())

    found = gradient(model, block, np.random.default_rng(8), dropout)
    array = model.weights[layer]
    for index in np.ndindex(array.shape):
        kept, ends = array[index], []
        for step in (1e-5, -1e-5):
            array[index] = kept + step
            ends.append(climbed())
        array[index] = kept
        assert found[f"W{layer}"][index] == pytest.approx((ends[1] - ends[0]) / 2e-5, abs=1e-8)


def test_units_that_are_kept_count_for_those_that_are_not() -> None:
    """With weights of 0 on top, the gradient of these is linear in the units below."""
    model, block = Classifier(stack([4, 20]), 3), (np.full((1, 4), 0.5), np.array([1]))
    whole, thinned = gradient(model, block)["W1"], gradient(model, block, 3, Dropout(0.0, 0.6))["W1"]
    kept = (thinned != 0).any(axis=1)
    assert 2 < kept.sum() < 14
    np.testing.assert_allclose(thinned[kept], whole[kept] / 0.4)


def test_only_the_lowest_machine_has_gaussian_units() -> None:
    layers = StackedRBM([4, 5, 3], "gaussian").layers
    assert [(layer.units.name, layer.W.shape) for layer in layers] == [("gaussian", (4, 5)), ("bernoulli", (5, 3))]


def test_large_inputs_overflow_nowhere() -> None:
    model, block = classifier("float32")
    model.weights[-1][...] *= 1000
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose(model.probabilities(block[0]).sum(axis=1), 1, rtol=1e-5)
        assert np.isfinite(model.log_probability(block))
        assert all(np.isfinite(array).all() for array in gradient(model, block).values())


def test_each_layer_learns_the_hidden_means_of_the_one_below() -> None:
    rows = digits(200, 1)[0]
    made, first = StackedRBM([35, 20, 10], seed=3), StackedRBM([35, 20, 10], seed=3)
    seen: list[tuple[int, int]] = []
    pretrain(made.layers, np.split(rows, 10), CD(), 4, epochs=[3, 2], on_epoch=lambda *where: seen.append(where))
    assert seen == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    pretrain(first.layers[:1], np.split(rows, 10), CD(), 4, epochs=3)
    assert np.array_equal(first.layers[0].W, made.layers[0].W)
    with_chance = np.random.Generator(np.random.SFC64(4))
    whole = StackedRBM([35, 20, 10], seed=3)
    pretrain(whole.layers[:1], np.split(rows, 10), CD(), with_chance, epochs=3)
    pretrain(whole.layers[1:], [whole.layers[0].transform(b) for b in np.split(rows, 10)], CD(), with_chance, epochs=2)
    assert np.array_equal(whole.layers[1].W, made.layers[1].W)


def test_a_classifier_tells_digits_apart() -> None:
    rows, labels = digits(3000, 1)
    made = StackedRBM([35, 60, 60], seed=3)
    blocks = np.split(rows, 60)
    pretrain(made.layers, blocks, CD(rate=0.1), 4, epochs=10)
    model = Classifier(made, 10)
    pairs = list(zip(blocks, np.split(labels, 60), strict=True))
    seen: list[int] = []
    fine_tune(model, pairs, FineTuning(rate=0.5), 5, epochs=20, on_epoch=seen.append)
    assert seen == list(range(20))
    test_rows, test_labels = digits(1000, 2)
    assert (model.predict(test_rows) == test_labels).mean() > 0.93


def test_fine_tuning_makes_an_auto_encoder_better() -> None:
    blocks = np.split(digits(1000, 1)[0], 20)
    made = StackedRBM([35, 60, 15], seed=3)
    pretrain(made.layers, blocks, CD(rate=0.1), 4, epochs=5)
    model, held_out = AutoEncoder(made), digits(500, 2)[0]
    before = model.log_probability(held_out)
    fine_tune(model, blocks, FineTuning(rate=0.05, dropout=Dropout(0.1, 0.0)), 5, epochs=30)
    assert model.log_probability(held_out) > before + 3


def test_networks_and_stacks_are_models_of_named_arrays() -> None:
    assert set(Model(stack([4, 5, 3])).names) == {f"{name}{layer}" for layer in (0, 1) for name in "Wbc"}
    model, _ = classifier()
    assert set(Model(model).names) == set(arrays(model))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: StackedRBM([4]), r"sizes=\[4\], expected at least two"),
        (lambda: StackedRBM([4, 0]), "sizes=0, expected at least 1"),
        (lambda: StackedRBM(4), "sizes=4, expected a list of at least two counts"),  # type: ignore[arg-type]
        (lambda: pretrain([], [np.ones((1, 4))], CD(), 1), "0 layers and no block of rows"),
        (lambda: pretrain([RBM(4, 2)], [], CD(), 1), "1 layers and no block of rows"),
        (lambda: pretrain([RBM(4, 2)], [np.ones((1, 4))], [CD(), CD()], 1), "expected one CD.* or a list of 1"),
        (lambda: pretrain([RBM(4, 2)], [np.ones((1, 4))], CD(), 1, epochs=[1, 2]), "expected one integer .* list of 1"),
        (lambda: Classifier(stack([4, 3]), 1), "classes=1, expected at least 2"),
        (lambda: gradient(classifier()[0], np.ones((1, 4))), r"block is a ndarray, expected a tuple \(rows, labels\)"),
        (lambda: gradient(classifier()[0], (np.ones((2, 4)), [1])), r"labels are int64 \(1,\), expected integers"),
        (lambda: gradient(classifier()[0], (np.ones((1, 4)), [3])), "labels from 3 to 3, expected 0 to 2"),
        (lambda: gradient(classifier()[0], (np.ones((1, 3)), [1])), r"v has shape \(1, 3\), expected \(rows, 4\)"),
        (lambda: gradient(*classifier(), dropout=Dropout()), "random=None with dropout"),
        (
            lambda: auto_encoder("bernoulli")[0].decode(np.ones((1, 4))),
            r"code has shape \(1, 4\), expected \(rows, 3\)",
        ),
        (lambda: Dropout(hidden=1.0), "dropout.hidden=1.0, expected a probability below 1"),
        (lambda: FineTuning(rate=0.0), "rate=0.0, expected more than 0"),
        (lambda: FineTuning(dropout=0.5), "dropout is a float, expected a Dropout"),  # type: ignore[arg-type]
        (lambda: fine_tune(classifier()[0], [], FineTuning(), 1), "no block"),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()


def test_a_network_that_has_diverged_is_told() -> None:
    model, block = classifier()
    model.weights[0][0, 0] = np.nan
    with pytest.raises(UsageError, match="diverged"):
        gradient(model, block)
