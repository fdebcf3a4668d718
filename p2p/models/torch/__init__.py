"""Torch modules: `train(module, data, loss=..., optimizer=...)` by one call, or a gradient of your own for `DeepDist`.

adapter.py       a module as named arrays: which of its tensors travel, and how their updates add up
tensors.py       its tensors as numpy sees them, the module without their numbers, and copies on other devices
batches.py       rows or blocks of rows as batches of tensors
local_steps.py   a gradient that takes some steps of an optimizer
training.py      `train`

The package torch is imported when there is a module to train, and by nothing else here (the extra `torch`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from p2p.models.torch.local_steps import OptimizerSteps

if TYPE_CHECKING:
    from p2p.models.torch.training import train

__all__ = ["OptimizerSteps", "train"]


def __getattr__(name: str) -> Any:
    """`train` needs the whole trainer, which workers do not."""
    if name != "train":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from p2p.models.torch.training import train

    return train
