"""Linear, logistic and softmax regression: `fit(model, data)` by one call, or `gradient` for `DeepDist`.

model.py              the models: objective, predictions, and the gradient for a descent
losses.py             their losses, by scores alone
blocks.py             rows and blocks of rows
newton.py             how `fit` trains: the parabolas of partitions, and their minimum
changed_rows.py       how these travel
training.py           `fit`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from p2p.models.linear.model import LinearModel, LinearRegression, LogisticRegression, SoftmaxRegression, gradient

if TYPE_CHECKING:
    from p2p.models.linear.training import fit

__all__ = ["LinearModel", "LinearRegression", "LogisticRegression", "SoftmaxRegression", "fit", "gradient"]


def __getattr__(name: str) -> Any:
    """`fit` needs the whole trainer, which workers do not."""
    if name != "fit":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from p2p.models.linear.training import fit

    return fit
