"""A multilayer perceptron: `fit(model, data)` by one call, or `gradient` for `DeepDist`.

network.py      the model: layers, objective, predictions, and the gradient
training.py     `fit`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from p2p.models.mlp.network import MLP, gradient

if TYPE_CHECKING:
    from p2p.models.mlp.training import fit

__all__ = ["MLP", "fit", "gradient"]


def __getattr__(name: str) -> Any:
    """`fit` needs the whole trainer, which workers do not."""
    if name != "fit":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from p2p.models.mlp.training import fit

    return fit
