"""Deep belief networks in one call: `StackedRBM([784, 500, 500, 2000]).fit(data, labels)`.

Source: Hinton, Osindero and Teh, A Fast Learning Algorithm for Deep Belief Nets (Neural Computation 18, 2006); the
whole is fine-tuned by back-propagation, as in Hinton and Salakhutdinov (Science 313, 2006).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import ArrayLike

from p2p.models.rbm.networks import FineTuning
from p2p.models.rbm.options import CD
from p2p.models.rbm.stack import Stack

if TYPE_CHECKING:  # workers get machines and networks, and need neither the trainer nor matplotlib
    from matplotlib.figure import Figure

    from gossip.mixing import Strategy
    from gossip.topology import Topology
    from p2p.engines import Engine
    from p2p.models.rbm.fitting import Fitted
    from p2p.sessions.cluster import SimulatedCluster


class StackedRBM(Stack):
    """Machines on top of each other, trained over peers by `fit`."""

    def fit(
        self,
        data: Any,
        labels: ArrayLike | None = None,
        *,
        classes: int | None = None,
        held_out: Any = None,
        epochs: int | Sequence[int] = 5,
        fine_tuning_epochs: int = 50,
        pretraining: CD | Sequence[CD] | None = None,
        fine_tuning: FineTuning | None = None,
        block_rows: int = 100,
        mode: Literal["p2p", "master"] = "p2p",
        discipline: Literal["replicate", "mix"] = "replicate",
        topology: str | Topology | Callable[[int], Topology] | None = None,
        mixing: Strategy[Any] | None = None,
        combine: str | None = None,
        exchange: Literal["chunk", "partition"] = "chunk",
        chunk_rows: int | None = None,
        peers: int | None = None,
        engine: SimulatedCluster | Engine | None = None,
        evaluate_every_s: float | None = None,
        checkpoint: str | None = None,
        resume: bool = False,
        seed: int = 0,
        progress: bool | None = None,
        drain_timeout_s: float = 60.0,
    ) -> Fitted:
        """Train the machines one after the other, in place, then the whole as a network, which is returned.

        `data` is an array (rows, n_visible), beside `labels` (rows,) or without; or an RDD, or a list of partitions, of
        rows, blocks of rows (n, n_visible), or tuples of either and its labels, for which `classes` says how many
        there are. With labels the network is a `Classifier`, without them an `AutoEncoder`. Machines are trained in
        `epochs` passes by `pretraining` (default: `CD(rate=0.1)`), both for all or a list, one for each; the network in
        `fine_tuning_epochs` by `fine_tuning`. A step takes `block_rows` rows.

        `held_out`, rows or (rows, labels), are not trained on: reports then tell the reconstruction error and the
        free-energy gap of each machine, and the error of the network (`Report.evaluations`, every `evaluate_every_s`).
        `chunk_rows` elements are between two exchanges: by default 10 steps of an array, else a partition. `combine` is
        by default "mean" for machines; for the network it is "outer", up to a momentum of 0.8. `checkpoint` has a
        folder for each training, and `resume` goes on. Other options are those of `DeepDist` and its `train`.

        Raises:
            UsageError: data, labels or an option cannot be.
        """
        from p2p.models.rbm.fitting import Fitting

        where = {"mode": mode, "discipline": discipline, "topology": topology, "mixing": mixing, "peers": peers}
        how = {"engine": engine, "seed": seed, "progress": progress, "drain_timeout_s": drain_timeout_s}
        rhythm = {"combine": combine, "exchange": exchange, "chunk_rows": chunk_rows}
        return Fitting(
            epochs=epochs,
            fine_tuning_epochs=fine_tuning_epochs,
            pretraining=CD(rate=0.1) if pretraining is None else pretraining,
            fine_tuning=FineTuning() if fine_tuning is None else fine_tuning,
            block_rows=block_rows,
            session={**where, **how},
            training={**rhythm, "evaluate_every_s": evaluate_every_s},
            checkpoint=(checkpoint, resume),
        ).fit(self, data, labels, classes, held_out)

    def plot(self, rows: ArrayLike | None = None, *, filters: int = 64, shape: tuple[int, int] | None = None) -> Figure:
        """A matplotlib figure: the strongest filters of the lowest machine, and `rows` beside their reconstructions.

        `shape` is the (height, width) of a picture; by default rows are square. Save it by `.savefig("stack.png")`.

        Raises:
            UsageError: there is no matplotlib, which is the extra `lab`; or rows are no pictures.
        """
        from p2p.models.rbm.pictures import picture

        return picture(self, rows, filters, shape)
