"""An estimator of scikit-learn as a model: its weights by the names of its attributes, and its counter of rows.

    coef_, intercept_              of SGDClassifier, SGDRegressor, Perceptron and the like
    coefs_.0, intercepts_.0, ...   of MLPClassifier and MLPRegressor
    t_                             rows seen: its updates are summed. Rates that fall, fall by it

`t_` is a number in scikit-learn, which no peer could add to. So it becomes an array without dimensions, to which
`partial_fit` adds as well. All else stays as it is, or with its worker: Adam's moments, `loss_curve_`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gossip.errors import UsageError
from p2p.adapters import ByPath

COUNTER = "t_"
EXPECTED = (
    "expected SGDClassifier, SGDRegressor, Perceptron, MLPClassifier or MLPRegressor (SGDClassifier(loss='log_loss') "
    "is a logistic regression, p2p.models.linear has another); for a gradient of your own name its arrays, as in "
    "DeepDist(model, parameters=('coef_', 'intercept_'))"
)


@dataclass(frozen=True)
class EstimatorAdapter(ByPath):
    """Of a class that has a `fit` of its own, outside of scikit-learn, all arrays are trained, and averaged."""

    counters: frozenset[str] = frozenset({COUNTER})

    def names(self, model: Any) -> Sequence[str]:
        if not is_sklearns(model):
            return super().names(model)
        check_learns_by_parts(model)
        if not is_fitted(model):
            raise UsageError(
                f"the {_name(model)} is not fitted yet, so it has no weights to train: call partial_fit on some rows "
                "first (a classifier needs classes=...), or p2p.models.sklearn.fit(estimator, data)"
            )
        if hasattr(getattr(model, "coef_", None), "toarray"):
            raise UsageError(f"coef_ of the {_name(model)} is sparse, expected an array: call densify() first")
        names = _weights(model)
        if hasattr(model, COUNTER):
            if not isinstance(model.t_, np.ndarray):
                model.t_ = np.array(float(model.t_))
            names.append(COUNTER)
        return names

    def meaning(self, model: Any) -> str:
        """Of a classifier: which class is which."""
        classes = getattr(model, "classes_", None)
        return "" if classes is None else f"classes {np.asarray(classes).tolist()}"

    def combine(self, peers: int) -> str:
        """As `partial_fit` takes whole steps: their sum overshoots."""
        return "mean"


def is_sklearns(model: Any) -> bool:
    """Whether it learns as scikit-learn has it."""
    owner = next((kind for kind in type(model).__mro__ if "fit" in vars(kind)), None)
    return owner is not None and owner.__module__.partition(".")[0] == "sklearn"


def is_fitted(model: Any) -> bool:
    """Whether an estimator that `check_learns_by_parts` has its weights."""
    return hasattr(model, "coefs_") or hasattr(model, "coef_")


def check_learns_by_parts(model: Any) -> None:
    """Raise `UsageError` for an estimator that does not learn by `partial_fit`, or not `coef_` and `intercept_`."""
    name = _name(model)
    if not hasattr(model, "partial_fit"):
        if hasattr(model, "hidden_layer_sizes"):
            raise UsageError(f"{name} with solver={model.solver!r} has no partial_fit, expected 'sgd' or 'adam'")
        raise UsageError(f"{name} has no partial_fit, by which estimators learn chunk by chunk, {EXPECTED}")
    if getattr(model, "average", False):
        raise UsageError(
            f"{name} with average={model.average!r}, expected average=False: its means over steps cannot be added up, "
            "and peers average their weights anyway"
        )
    fitted = is_fitted(model)
    if (fitted and not _weights(model)) or not (fitted or _will_have_weights(model)):
        raise UsageError(f"{name} learns something else than coef_ and intercept_, {EXPECTED}")


def _weights(model: Any) -> list[str]:
    if hasattr(model, "coefs_"):
        return [f"{part}.{layer}" for part in ("coefs_", "intercepts_") for layer in range(len(model.coefs_))]
    return ["coef_", "intercept_"] if hasattr(model, "intercept_") else []


def _will_have_weights(model: Any) -> bool:
    """Of an estimator that is not fitted: by its parameters, which linear ones and networks have."""
    return hasattr(model, "fit_intercept") or hasattr(model, "hidden_layer_sizes")


def _name(model: Any) -> str:
    return type(model).__name__


ADAPTER = EstimatorAdapter()
