"""A gradient for torch modules: some steps of an optimizer on the replica, and what they changed is the update.

    replica  ->  loss of a batch, optimizer.step()  ... once per batch of the chunk  ->  difference of all tensors

It is local SGD (Stich, Local SGD Converges Fast and Communicates Little, arXiv:1805.09767), but that no peer waits. The
state of the optimizer (momentum, Adam's moments) stays with the worker, from chunk to chunk of one training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from gossip.arguments import flag, function, integer
from gossip.errors import UsageError
from p2p import parcel
from p2p.models.torch import batches
from p2p.models.torch.adapter import ADAPTER
from p2p.worker import task

Loss = Callable[[Any, Any], Any]
"""`loss(output, y)`: a tensor of one number."""
MakeOptimizer = Callable[[list[Any]], Any]
"""`optimizer(parameters)`: a `torch.optim.Optimizer` of them."""


class OptimizerSteps:
    """`gradient(module, rows)` for `DeepDist(module).train(data, OptimizerSteps(...), chunk_rows=...)`.

    Of each chunk of rows (x, y) one step is taken per `batch_size` of them, along `loss(module(x), y)`. The module gets
    the parts of a tuple x as arguments of their own, and those of a dict by name. With `blocks` an element is a
    block of rows (xs, ys) instead. `optimizer` is a function of the list of parameters that require a gradient; it is
    called once by each worker, and what it made is kept there: its state does not travel.

    Rows of a chunk are trained in a random order (`shuffle`), drawn as dropout is from the session's seed. Numbers with
    fractions get the module's dtype. A module that is in the mode of evaluation is trained in that of training; modules
    within it stay in theirs. `device` is where to train (None: the CPU), `threads` how many of torch's at most.
    """

    combine: ClassVar[str] = "mean"
    """How what peers come to adds up, if `train` is not told (`p2p.worker.combine`)."""

    def __init__(
        self,
        *,
        loss: Loss,
        optimizer: MakeOptimizer,
        batch_size: int = 32,
        blocks: bool = False,
        shuffle: bool = True,
        device: str | None = None,
        threads: int | None = None,
    ) -> None:
        self._loss = function("loss", loss, "loss(output, y)")
        self._optimizer = function("optimizer", optimizer, "optimizer(parameters)")
        self._batch_size = integer("batch_size", batch_size, 1)
        self._blocks = flag("blocks", blocks)
        self._shuffle = flag("shuffle", shuffle)
        self._device = "cpu" if device is None else str(device)
        self._threads = None if threads is None else integer("threads", threads, 1)
        self._made: WeakKeyDictionary[Any, tuple[list[Any], Any]] = WeakKeyDictionary()
        """By module, what its optimizer changes, and the optimizer."""
        self._sent: bytes | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Functions travel in a parcel that is opened when it is used: where torch is not, the model says so first."""
        functions = parcel.dumps((self._loss, self._optimizer)) if self._sent is None else self._sent
        return {**self.__dict__, "_made": None, "_sent": functions, "_loss": None, "_optimizer": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _made=WeakKeyDictionary())

    def rows_in(self, element: Any) -> int:
        """How many rows an element of a partition is, for the report."""
        try:
            return batches.length(batches.block_of(element)) if self._blocks else 1
        except UsageError:  # raised again when it is to be trained on
            return 1

    def __call__(self, module: Any, rows: Iterator[Any]) -> Mapping[str, NDArray[Any]]:
        """What the steps on these rows changed, by the names of the module's tensors.

        Raises:
            UsageError: rows that are no pairs or differ in shape, a loss that is no number, or no such device.
        """
        elements = list(rows)
        if not elements:
            return {}
        blocks = list(map(batches.block_of, elements)) if self._blocks else [batches.stacked(elements)]
        if self._sent is not None:
            (self._loss, self._optimizer), self._sent = parcel.loads(self._sent), None
        copy = task.in_place(module)
        if copy is None:  # outside of a training
            keys = {name: ADAPTER.key(module, name) for name in ADAPTER.names(module)}
            before = {name: ADAPTER.find(module, key).copy() for name, key in keys.items()}
            self._train(module, list(before), blocks)
            return {name: ADAPTER.find(module, keys[name]) - old for name, old in before.items()}
        self._train(module, copy.model.names, blocks)
        return dict(copy.trained({}))

    def _train(self, module: Any, names: Any, blocks: list[Any]) -> None:
        from p2p.models.torch import tensors

        with self._surroundings():
            if not module.training:
                module.train()
            trained = tensors.there(module, self._device)
            floats = next((p.dtype for p in trained.parameters() if p.is_floating_point()), None)
            step = self._stepping(trained, names)
            for block in blocks:
                count = batches.length(block)
                order = np.random.permutation(count) if self._shuffle else np.arange(count)
                for begin in range(0, count, self._batch_size):
                    batch = batches.pick(block, order[begin : begin + self._batch_size])
                    step(*batches.tensors(batch, floats, self._device))
            tensors.level(trained, module)

    def _stepping(self, module: Any, names: Any) -> Callable[[Any, Any], None]:
        """What takes one step, of a batch of inputs and targets."""
        optimizer: Any
        parameters, optimizer = self._made.get(module) or ([], None)
        now = [p for name, p in module.named_parameters() if name in names and p.requires_grad]
        if len(now) != len(parameters) or any(p is not q for p, q in zip(now, parameters, strict=True)):
            optimizer = self._new_optimizer(now)
            self._made[module] = (now, optimizer)

        def step(x: Any, y: Any) -> None:
            def closure() -> Any:
                optimizer.zero_grad()
                output = module(**x) if isinstance(x, dict) else module(*x) if isinstance(x, tuple) else module(x)
                loss = _checked(self._loss(output, y))
                loss.backward()
                return loss

            optimizer.step(closure)

        return step

    def _new_optimizer(self, parameters: list[Any]) -> Any:
        from torch.optim import Optimizer

        if not parameters:
            raise UsageError("no parameter of the module requires a gradient, expected one that is to be trained")
        optimizer = self._optimizer(parameters)
        if not isinstance(optimizer, Optimizer):
            raise UsageError(
                f"optimizer returned a {type(optimizer).__name__}, expected a torch.optim.Optimizer, as of "
                "optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1)"
            )
        return optimizer

    @contextmanager
    def _surroundings(self) -> Iterator[None]:
        """Threads and random numbers as this training wants them; afterwards they are what they were."""
        import torch

        with ExitStack() as stack:
            threads = torch.get_num_threads()
            if self._threads is not None and self._threads < threads:
                stack.callback(torch.set_num_threads, threads)
                torch.set_num_threads(self._threads)
            if task.current() is not None:  # numpy's numbers are those of this chunk, in whatever process
                stack.enter_context(torch.random.fork_rng(devices=[]))
                torch.manual_seed(int(np.random.randint(1 << 31)))
            yield


def _checked(loss: Any) -> Any:
    import torch

    if not torch.is_tensor(loss) or loss.numel() != 1 or not loss.requires_grad:
        shape = f" of shape {tuple(loss.shape)}" if torch.is_tensor(loss) else ""
        raise UsageError(
            f"loss returned a {type(loss).__name__}{shape}, expected a tensor of one number that depends on the module"
        )
    return loss
