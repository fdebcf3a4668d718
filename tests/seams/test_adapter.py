"""A kind of model that the trainer knows nothing of: its numbers lie in arrays of the standard library."""

from __future__ import annotations

import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from p2p import DeepDist, SimulatedCluster, UsageError
from p2p.adapters import ByPath
from p2p.adapters.model import Model


class Ledger:
    """Columns of numbers, none of which is a numpy array or an attribute."""

    def __init__(self, **columns: int) -> None:
        self._columns = {name: array.array("d", bytes(8 * length)) for name, length in columns.items()}
        self.sums: dict[str, float] = {}

    def column(self, name: str) -> Any:
        return np.frombuffer(self._columns[name]) if name in self._columns else None

    def replace(self, name: str, numbers: Any) -> None:
        self._columns[name] = array.array("d", numbers)

    def __reduce__(self) -> Any:
        raise TypeError("a ledger cannot be pickled")


@dataclass(frozen=True)
class LedgerAdapter(ByPath):
    """What `DeepDist` has to know of it."""

    counters: frozenset[str] = frozenset({"entries"})

    def names(self, model: Ledger) -> list[str]:
        if "entries" not in model._columns:
            raise UsageError("a ledger without 'entries'")
        return sorted(model._columns)

    def key(self, model: Ledger, name: str) -> Any:
        return ("column", name)

    def find(self, model: Ledger, key: Any) -> Any:
        return model.column(key[1])

    def put(self, model: Ledger, key: Any, array: Any) -> None:
        model.replace(key[1], array)

    def bare(self, model: Ledger) -> Any:
        return {name: len(column) for name, column in model._columns.items()}

    def dressed(self, bare: Any) -> Ledger:
        return Ledger(**bare)

    def loaded(self, model: Ledger) -> None:
        model.sums = {name: float(model.column(name).sum()) for name in model._columns}

    def combine(self, peers: int) -> str:
        return "mean"


def gradient(model: Ledger, rows: Iterator[int]) -> Any:
    assert model.sums["debit"] == model.column("debit").sum()
    count = sum(1 for _ in rows)
    return {"debit": np.full(3, 1.0 * count), "entries": np.array([1.0 * count])} if count else {}


def descent(model: Ledger, update: Any) -> None:
    for name, change in update.items():
        column = model.column(name)
        column += change


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.parametrize("how", [{}, {"mode": "master"}, {"discipline": "mix"}], ids=["p2p", "master", "mix"])
def test_a_model_of_any_kind_is_trained_by_an_adapter(how: Any) -> None:
    model = Ledger(debit=3, entries=1)
    with DeepDist(model, adapter=LedgerAdapter(), peers=1, **how) as dd:
        dd.train([[1, 2], [3], [4, 5, 6]], gradient, descent)
        assert dd.model is model
    assert model.column("debit").tolist() == [6.0] * 3
    assert model.column("entries").tolist() == [6.0]
    assert model.sums == {"debit": 18.0, "entries": 6.0}


def test_an_adapter_chooses_how_updates_add_up_and_what_counts() -> None:
    model = Ledger(debit=3, entries=1)
    with DeepDist(model, adapter=LedgerAdapter(), engine=SimulatedCluster(peers=3, seed=1), progress=False) as dd:
        dd.train([[1, 2], [3], [4, 5, 6]], gradient)
    assert model.column("entries").tolist() == [6.0]
    np.testing.assert_allclose(model.column("debit"), 2.0)


def test_an_adapter_refuses_what_it_cannot_train() -> None:
    with pytest.raises(UsageError, match="a ledger without 'entries'"):
        DeepDist(Ledger(debit=3), adapter=LedgerAdapter())
    with pytest.raises(
        UsageError, match=r"adapter is a type without counters, .*expected one that has what p2p\.Adapter"
    ):
        DeepDist(Ledger(debit=3, entries=1), adapter=int)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'credit' of the model is a NoneType, expected a numpy array"):
        Model(Ledger(debit=3), ["credit"], LedgerAdapter())
    with pytest.raises(UsageError, match=r"has nothing to train: expected a dict .* or a gensim\.Word2Vec"):
        DeepDist(Ledger(debit=3, entries=1))
