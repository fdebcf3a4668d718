"""A stack unrolled to a network of sigmoid units, and the gradient of the whole: a classifier, or an auto-encoder.

    Classifier    v -> sigmoid ... sigmoid -> softmax over the classes
    AutoEncoder   v -> sigmoid ... code ... sigmoid -> visible units, with the transposed weights copied

Weights and biases are attributes `W0`, `b0`, `W1` and so on, as `DeepDist` needs them. The gradient has the same names,
and is that of minus the log-probability per row, as the machines' are of minus theirs. At each output the derivative by
its input is output minus target: for softmax, for sigmoid units with cross entropy, and for Gaussian ones with half the
squared distance.

Sources: Hinton and Salakhutdinov, Reducing the Dimensionality of Data with Neural Networks (Science 313, 2006), for
unrolling; Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, Dropout (JMLR 15, 2014), for dropout.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gossip.arguments import check_fields, flag, instance, integer, number, probability
from gossip.errors import UsageError
from p2p.models.rbm.gradients import Gradient
from p2p.models.rbm.machine import Chance, checked_rows, generator
from p2p.models.rbm.stack import Stack
from p2p.models.rbm.training import Velocity
from p2p.models.rbm.units import Floats, Visible, sigmoid, softplus

Block = Any
"""What a network learns from: rows, or rows and their labels."""


@dataclass(frozen=True)
class Dropout:
    """Shares of units that a gradient leaves out, drawn anew for each row; the others count for more.

    The network that is used afterwards needs no scaling.
    """

    visible: float = 0.2
    """Share of the data's units, from 0 to less than 1."""
    hidden: float = 0.5
    """Share of each hidden layer's units."""

    def __post_init__(self) -> None:
        check_fields(self, "dropout.")
        probability("dropout.visible", self.visible, below_one=True)
        probability("dropout.hidden", self.hidden, below_one=True)


class Network(ABC):
    """Layers of weights `W0` (inputs, units), `W1` ... and of biases `b0` (units,), `b1` ..., attributes of its own."""

    def __init__(self, weights: Sequence[NDArray[Any]], biases: Sequence[NDArray[Any]], units: Visible) -> None:
        self.units = units
        self.depth = len(weights)
        for layer, (W, b) in enumerate(zip(weights, biases, strict=True)):
            vars(self).update({f"W{layer}": np.array(W, order="C"), f"b{layer}": np.array(b)})

    @property
    def weights(self) -> list[NDArray[Any]]:
        """The arrays themselves, the lowest layer's first."""
        return [vars(self)[f"W{layer}"] for layer in range(self.depth)]

    @property
    def biases(self) -> list[NDArray[Any]]:
        """The arrays themselves, the lowest layer's first."""
        return [vars(self)[f"b{layer}"] for layer in range(self.depth)]

    @abstractmethod
    def pair(self, block: Block) -> tuple[Floats, Floats]:
        """Checked rows, and the targets of the outputs."""

    @abstractmethod
    def outputs(self, x: Floats) -> Floats:
        """Of their inputs, in the place of these."""

    @abstractmethod
    def log_probability(self, block: Block) -> float:
        """What training raises: the mean over the rows of a block."""


class Classifier(Network):
    """A stack with a softmax layer for `classes` classes on top, whose weights are 0: nothing is known yet.

    The stack's weights are copied. A block is (rows, labels), labels being integers from 0 to classes - 1, (rows,).
    """

    def __init__(self, stack: Stack, classes: int) -> None:
        classes = integer("classes", classes, 2)
        top = stack.layers[-1]
        weights = [*(layer.W for layer in stack.layers), np.zeros((top.n_hidden, classes), top.W.dtype)]
        biases = [*(layer.c for layer in stack.layers), np.zeros(classes, top.W.dtype)]
        super().__init__(weights, biases, stack.layers[0].units)

    def probabilities(self, v: ArrayLike) -> Floats:
        """Of each class given rows of visible units; (rows, classes)."""
        rows = _rows(self, v)
        return self.outputs(_activations(self, rows)[-1])

    def predict(self, v: ArrayLike) -> NDArray[np.intp]:
        """The most probable class of each row; (rows,)."""
        found: NDArray[np.intp] = _activations(self, _rows(self, v))[-1].argmax(axis=1)
        return found

    def log_probability(self, block: Block) -> float:
        """Mean logarithm of the probability of the right class."""
        rows, targets = self.pair(block)
        x = _activations(self, rows)[-1].astype(np.float64)
        x -= x.max(axis=1, keepdims=True)
        return float(((x * targets).sum(axis=1) - np.log(np.exp(x).sum(axis=1))).mean())

    def pair(self, block: Block) -> tuple[Floats, Floats]:
        if not isinstance(block, tuple) or len(block) != 2:
            raise UsageError(f"block is a {type(block).__name__}, expected a tuple (rows, labels)")
        rows = _rows(self, block[0])
        labels, classes = np.asarray(block[1]), len(self.biases[-1])
        if labels.shape != (len(rows),) or labels.dtype.kind not in "iu":
            raise UsageError(f"labels are {labels.dtype} {labels.shape}, expected integers ({len(rows)},)")
        if labels.min() < 0 or labels.max() >= classes:
            raise UsageError(f"labels from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}")
        targets = np.zeros((len(rows), classes), rows.dtype)
        targets[np.arange(len(rows)), labels] = 1
        return rows, targets

    def outputs(self, x: Floats) -> Floats:
        x -= x.max(axis=1, keepdims=True)
        np.exp(x, out=x)
        x /= x.sum(axis=1, keepdims=True)
        return x


class AutoEncoder(Network):
    """A stack and its mirror image: the code is the highest layer, of sigmoid units. A block is rows.

    The stack's weights are copied, once for each direction.
    """

    def __init__(self, stack: Stack) -> None:
        down = list(reversed(stack.layers))
        weights = [layer.W for layer in stack.layers] + [layer.W.T for layer in down]
        biases = [layer.c for layer in stack.layers] + [layer.b for layer in down]
        super().__init__(weights, biases, stack.layers[0].units)
        self.code_layer = len(down)

    def encode(self, v: ArrayLike) -> Floats:
        """The codes of rows of visible units, from 0 to 1; (rows, units of the highest layer)."""
        return _activations(self, _rows(self, v))[self.code_layer]

    def decode(self, code: ArrayLike) -> Floats:
        """Means of the visible units given codes; (rows, n_visible)."""
        here = self.code_layer
        code = checked_rows("code", code, len(self.weights[here]), self.weights[0].dtype, (0.0, 1.0))
        return self.outputs(_activations(self, code, here)[-1])

    def reconstruct(self, v: ArrayLike) -> Floats:
        """Means of the visible units given the codes of `v`; (rows, n_visible)."""
        return self.outputs(_activations(self, _rows(self, v))[-1])

    def log_probability(self, block: Block) -> float:
        """Mean of minus the cross entropy of a row, or of minus half its squared distance for Gaussian units."""
        rows, _ = self.pair(block)
        x = _activations(self, rows)[-1].astype(np.float64)
        if self.units.name == "gaussian":
            return float(-0.5 * ((rows - x) ** 2).sum(axis=1).mean())
        return float((rows * x - softplus(x)).sum(axis=1).mean())

    def pair(self, block: Block) -> tuple[Floats, Floats]:
        rows = _rows(self, block)
        return rows, rows

    def outputs(self, x: Floats) -> Floats:
        return self.units.means(x)


def arrays(model: Network) -> dict[str, NDArray[Any]]:
    """The arrays of a network by the names that its gradient has."""
    own = vars(model)
    return {f"{kind}{layer}": own[f"{kind}{layer}"] for kind in "Wb" for layer in range(model.depth)}


def gradient(
    model: Network,
    block: Block,
    random: Chance | None = None,
    dropout: Dropout | None = None,
    out: Gradient | None = None,
) -> Gradient:
    """The gradient of minus `model.log_probability(block)` by back-propagation, with the names `W0`, `b0` ...

    `dropout` leaves units out, drawn from `random`. `out`, an earlier gradient of this model, is written over.
    """
    if dropout is not None and random is None:
        raise UsageError("random=None with dropout, expected a numpy Generator or a seed: which units are left out?")
    chance = None if random is None else generator(random)
    rows, targets = model.pair(block)
    slopes: list[Floats] = []
    layers = _activations(model, rows, 0, slopes, chance, dropout)
    found = {name: np.empty_like(array) for name, array in arrays(model).items()} if out is None else out
    delta = model.outputs(layers[-1])
    delta -= targets
    delta /= len(rows)
    for layer in reversed(range(len(model.weights))):
        np.matmul(layers[layer].T, delta, out=found[f"W{layer}"])
        delta.sum(axis=0, out=found[f"b{layer}"])
        if layer:
            delta = delta @ model.weights[layer].T
            delta *= slopes[layer - 1]
    if not all(np.isfinite(found[f"b{number}"]).all() for number in range(len(model.biases))):
        raise UsageError("the gradient has NaN or infinite numbers: the network has diverged; use a smaller rate")
    return found


@dataclass(frozen=True)
class FineTuning:
    """How `fine_tune` trains."""

    rate: float = 0.1
    """Learning rate, of the mean gradient over a block."""
    momentum: float = 0.9
    """Share of the last step that the next one has in it, from 0 to less than 1."""
    falling: bool = True
    """The rate falls along a line from epoch to epoch, to 1/epochs of it in the last one."""
    dropout: Dropout | None = None
    """Units that each gradient leaves out."""

    def __post_init__(self) -> None:
        check_fields(self)
        number("rate", self.rate, "more than 0", lambda rate: rate > 0)
        probability("momentum", self.momentum, below_one=True)
        flag("falling", self.falling)
        if self.dropout is not None:
            instance("dropout", self.dropout, Dropout)


def fine_tune(
    model: Network,
    blocks: Iterable[Block],
    options: FineTuning,
    random: Chance,
    epochs: int = 1,
    on_epoch: Callable[[int], Any] | None = None,
) -> None:
    """Train a network in place on blocks, `epochs` times over all of them, in a new order each time."""
    random, kept, epochs = generator(random), list(blocks), integer("epochs", epochs, 1)
    if not kept:
        raise UsageError("no block of rows, expected at least one")
    named = arrays(model)
    velocity, found = Velocity(named), None
    for epoch in range(epochs):
        rate = options.rate * (1 - epoch / epochs if options.falling else 1)
        for index in random.permutation(len(kept)):
            found = gradient(model, kept[index], random, options.dropout, found)
            velocity.step(named, found, rate, options.momentum)
        if on_epoch is not None:
            on_epoch(epoch)


def _rows(model: Network, v: ArrayLike) -> Floats:
    return checked_rows("v", v, len(model.weights[0]), model.weights[0].dtype, model.units.range())


def _activations(
    model: Network,
    rows: Floats,
    first: int = 0,
    slopes: list[Floats] | None = None,
    random: np.random.Generator | None = None,
    dropout: Dropout | None = None,
) -> list[Floats]:
    """What each layer from `first` on hands to the next, the rows foremost, and at last the inputs of the outputs.

    `slopes` is filled with the derivative of each hidden layer's units by their inputs.
    """
    if dropout is not None and dropout.visible:
        rows = rows * _kept(rows, dropout.visible, random)
    layers = [rows]
    for layer in range(first, len(model.weights)):
        x = layers[-1] @ model.weights[layer]
        x += model.biases[layer]
        if layer + 1 < len(model.weights):
            sigmoid(x)
            if slopes is not None:
                slope = x - np.square(x)
                if dropout is not None and dropout.hidden:
                    kept = _kept(x, dropout.hidden, random)
                    slope *= kept
                    x *= kept
                slopes.append(slope)
        layers.append(x)
    return layers


def _kept(like: Floats, share: float, random: np.random.Generator | None) -> Floats:
    """0 for a unit that is left out, else 1 / (1 - share)."""
    assert random is not None
    kept = random.random(like.shape, dtype=like.dtype.type)
    np.greater_equal(kept, share, out=kept)
    kept *= 1 / (1 - share)
    return kept
