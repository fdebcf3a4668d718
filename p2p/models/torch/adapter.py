"""A `torch.nn.Module` as a model: its parameters and buffers by their names in the module's state.

    parameters            trained; one that is shared (tied) has the first of its names only
    buffers of floats     running means and variances: updates are averaged, whatever the rule of the others
    buffers of integers   counts of batches: updates are summed
    buffers of bools      masks; they stay as they are, like buffers that are no part of the state

A running mean takes in all batches of a chunk: it may have gone all the way to where these are. Two peers that each
added their whole way would take it twice as far, and a variance below zero.

This module does not import torch: the daemon that forks Spark's workers asks every adapter, with torch or without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gossip.arrays import Array, Arrays
from gossip.errors import UsageError
from p2p.adapters import ByPath

Key = tuple[str, ...]


@dataclass(frozen=True)
class ModuleAdapter(ByPath):
    """Its arrays are views of the memory of its tensors; of tensors on another device, copies that are kept level."""

    def names(self, model: Any) -> Sequence[str]:
        names: list[str] = _tensors().names(model)
        return names

    def key(self, model: Any, name: str) -> Key:
        return tuple(name.split("."))

    def find(self, model: Any, key: Key) -> Any:
        return _tensors().find(model, key)

    def put(self, model: Any, key: Key, array: Array) -> None:
        _tensors().put(model, key, array)

    def sending(self, model: Any, arrays: Arrays) -> None:
        """The numbers of these do not travel with the module."""
        _tensors().leave_out(model, list(arrays))

    def bare(self, model: Any) -> bytes:
        sent: bytes = _tensors().without_numbers(model)
        return sent

    def dressed(self, bare: bytes) -> Any:
        """On the CPU, wherever the user's is: `there` takes it to another device."""
        return _tensors().opened(bare)

    def loaded(self, model: Any) -> None:
        _tensors().send_back(model)

    def rule(self, model: Any, key: Key) -> str | None:
        rule: str | None = _tensors().rule(model, key)
        return rule

    def preload(self) -> None:
        """Nothing: who trains no module should not wait for torch, nor hold it in memory."""


def _tensors() -> Any:
    """What needs torch; `UsageError` where that is not."""
    try:
        from p2p.models.torch import tensors
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UsageError(
            "the model is a torch module, and this process has no package torch: expected it wherever peers train, as "
            "by pip install 'deepdist-p2p[torch]'"
        ) from None
    return tensors


ADAPTER = ModuleAdapter()
