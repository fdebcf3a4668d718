"""Restricted Boltzmann machines in numpy: `RBM` and its gradients, stacks of them, and networks made of stacks.

machine.py units.py        the parameters, what they say of rows, and the units of the visible layer
options.py gradients.py    CD and PCD: the gradient of one block of rows
training.py                steps with momentum, in one process
likelihood.py              the partition function: enumerated, or by annealed importance sampling
stack.py networks.py       layer-by-layer training, and fine tuning of the whole
elements.py local_steps.py gradients for `DeepDist`: steps on blocks of rows between two exchanges
deep.py fitting.py         `StackedRBM.fit`: all of it over peers by one call
evaluation.py pictures.py  how far a training is, and what came of it

Gradients are of minus the log-likelihood or log-probability per row, and have the names of the model's arrays:
`dd.train(data, rows_gradient, SGD(0.1))` of `p2p.descents` goes up in likelihood. Without a descent `DeepDist` would
add them, and go down.

    fitted = StackedRBM([784, 500, 500, 2000]).fit(rows, labels, peers=4)      over peers
    fitted.network.predict(others)

    stack = StackedRBM([784, 500, 500, 2000], seed=1)                          in one process
    pretrain(stack.layers, blocks, CD(rate=0.1), random=2, epochs=5)
    model = Classifier(stack, classes=10)
    fine_tune(model, [(block, labels), ...], FineTuning(rate=0.3, dropout=Dropout()), random=3, epochs=40)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from p2p.models.rbm.deep import StackedRBM
from p2p.models.rbm.evaluation import MachineEvaluation, NetworkEvaluation
from p2p.models.rbm.gradients import Workspace, cd_gradient, new_chains, pcd_gradient
from p2p.models.rbm.likelihood import ais, exact_gradient, exact_log_z
from p2p.models.rbm.local_steps import BackPropagation, ContrastiveDivergence
from p2p.models.rbm.machine import RBM
from p2p.models.rbm.networks import AutoEncoder, Classifier, Dropout, FineTuning, fine_tune, gradient
from p2p.models.rbm.options import CD, PCD, Sparsity
from p2p.models.rbm.stack import Stack, pretrain
from p2p.models.rbm.training import Trainer, Velocity, train

if TYPE_CHECKING:
    from p2p.models.rbm.fitting import Fitted

__all__ = [
    "CD",
    "PCD",
    "RBM",
    "AutoEncoder",
    "BackPropagation",
    "Classifier",
    "ContrastiveDivergence",
    "Dropout",
    "FineTuning",
    "Fitted",
    "MachineEvaluation",
    "NetworkEvaluation",
    "Sparsity",
    "Stack",
    "StackedRBM",
    "Trainer",
    "Velocity",
    "Workspace",
    "ais",
    "cd_gradient",
    "exact_gradient",
    "exact_log_z",
    "fine_tune",
    "gradient",
    "new_chains",
    "pcd_gradient",
    "pretrain",
    "train",
]


def __getattr__(name: str) -> Any:
    """`Fitted` needs the whole trainer, which workers do not."""
    if name != "Fitted":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from p2p.models.rbm.fitting import Fitted

    return Fitted
