"""Estimators of scikit-learn with `partial_fit`: `fit(estimator, data, classes=...)` by one call, or `gradient`.

adapter.py         an estimator as named arrays, or why it cannot be trained here
partial_fit.py     `gradient`: `partial_fit` of a chunk on the replica, and what it changed is the update
training.py        `fit`

No module here imports scikit-learn (the extra `sklearn`): the user's estimator brings it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from p2p.models.sklearn.partial_fit import gradient

if TYPE_CHECKING:
    from p2p.models.sklearn.training import fit

__all__ = ["fit", "gradient"]


def __getattr__(name: str) -> Any:
    """`fit` needs the whole trainer, which workers do not."""
    if name != "fit":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from p2p.models.sklearn.training import fit

    return fit
