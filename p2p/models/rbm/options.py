"""How a machine learns: contrastive divergence, with chains that begin at the data or that go on.

The options are values, checked when they are made; a wrong one raises `UsageError`.
"""

from __future__ import annotations

from dataclasses import dataclass

from gossip.arguments import check_fields, flag, instance, integer, number, probability


@dataclass(frozen=True)
class Sparsity:
    """A target for the mean of each hidden unit over a block.

    The penalty is `cost` times the cross entropy between target and mean, whose gradient by a unit's input is
    cost (target - mean): Hinton's guide (UTML TR 2010-003), section 11, with the block's own mean in the place of a
    decaying one. It moves hidden biases only, as that of Lee, Ekanadham and Ng does (Sparse Deep Belief Net Model for
    Visual Area V2, NIPS 2007).
    """

    target: float = 0.1
    """Mean that each hidden unit should have, more than 0 and less than 1."""
    cost: float = 0.1
    """How strong the pull is, from 0 up."""

    def __post_init__(self) -> None:
        check_fields(self, "sparsity.")
        number("sparsity.target", self.target, "more than 0 and less than 1", lambda share: 0 < share < 1)
        number("sparsity.cost", self.cost, "at least 0", lambda cost: cost >= 0)


@dataclass(frozen=True)
class CD:
    """Contrastive divergence: chains begin at the data and run `k` steps.

    Hinton, Training Products of Experts by Minimizing Contrastive Divergence (Neural Computation 14, 2002).
    """

    k: int = 1
    """Steps of Gibbs sampling."""
    rate: float = 0.05
    """Learning rate, of the mean gradient over a block."""
    momentum: float = 0.5
    """Share of the last step that the next one has in it, from 0 to less than 1."""
    weight_decay: float = 0.0
    """L2: so much of `W` is taken from its gradient."""
    sparsity: Sparsity | None = None
    visible_means: bool = False
    """Chains have means of visible units instead of draws: less noise, and a bias towards the means. Hidden units are
    drawn in any case (Hinton's guide, section 3.1)."""

    def __post_init__(self) -> None:
        check_fields(self)
        integer("k", self.k, 1)
        number("rate", self.rate, "more than 0", lambda rate: rate > 0)
        probability("momentum", self.momentum, below_one=True)
        number("weight_decay", self.weight_decay, "at least 0", lambda decay: decay >= 0)
        flag("visible_means", self.visible_means)
        if self.sparsity is not None:
            instance("sparsity", self.sparsity, Sparsity)


@dataclass(frozen=True)
class PCD(CD):
    """Persistent contrastive divergence: chains go on where they were, `k` steps for each block.

    Tieleman, Training Restricted Boltzmann Machines using Approximations to the Likelihood Gradient (ICML 2008). It
    wants a smaller rate than CD, or the chains fall behind the model.
    """

    rate: float = 0.01
    momentum: float = 0.0
