"""Master mode: the coordinator in the driver program owns the model.

Workers send it their updates, `descent` runs here, one update after the other, and the hub's lane carries what it
changed to every worker. Of the attempts of one chunk the first that comes is applied, and no other.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from gossip.arrays import Layout, Packed
from p2p import localhost
from p2p.agent_client import AgentClient
from p2p.delta import write_delta
from p2p.job import Descent
from p2p.model import Model
from p2p.update import inflate
from p2p.user_errors import original


class Coordinator:
    """A thread that takes updates from the hub's queue and applies `descent`, for the time of one training."""

    def __init__(
        self,
        folder: str,
        skeleton: bytes,
        descent: Descent | None,
        on_error: Callable[[], None],
        applied: set[tuple[int, int, int]],
        epochs_before: int = 0,
    ) -> None:
        """`folder` is the hub agent's; `on_error` is called, once, when `descent` failed: see `error`.

        `applied` are the training's units of work that `descent` has taken; it grows here. What is still under way of
        a training that failed, or was cut short, belongs to one of the session's `epochs_before`, and is dropped.
        """
        self.error: Exception | None = None
        self._applied = applied
        self._epochs_before = epochs_before
        self._descent = descent
        self._on_error = on_error
        self._model = Model.from_skeleton(skeleton)
        self._agent = AgentClient(folder)
        self._queue = AgentClient(folder)
        """A connection of its own, to be interrupted while it waits."""
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="deepdist-coordinator", daemon=True)
        self._thread.start()

    @property
    def cautions(self) -> dict[str, str]:
        """What the user should hear of `descent`, by name."""
        return self._model.watch.told()

    def close(self) -> None:
        """End; an update that is being applied is finished first."""
        self._closing = True
        self._queue.interrupt()
        self._thread.join()
        self._queue.close()
        self._agent.close()

    def _run(self) -> None:
        try:
            while not self._closing:
                message, (descriptor,) = self._queue.ask({"op": "take"})
                self._apply(localhost.layout_from_json(message["layout"]), descriptor, message["lane"])
        except BaseException as error:  # noqa: BLE001 - whatever descent raises, train() raises
            if not self._closing:
                self._fail(original(error))

    def _apply(self, layout: Layout, descriptor: int, worker: str) -> None:
        try:
            packed = Packed(layout, bytearray(os.pread(descriptor, layout.nbytes, 0)))
        finally:
            os.close(descriptor)
        update, extra = inflate(packed.arrays())
        unit = (extra["epoch"], extra["partition"], extra["chunk"])
        if unit in self._applied or unit[0] < self._epochs_before:
            return
        hand_over = self._agent.hand_over()
        staleness = self._agent.replica.merged - extra["merged_at"]
        try:
            write_delta(self._model, self._descent, update, self._agent.replica, hand_over)
        except BaseException as error:
            error.add_note(f"in descent, in the driver program, for an update of worker {worker}")
            raise
        self._agent.publish(hand_over, staleness=staleness)
        self._applied.add(unit)

    def _fail(self, error: Exception) -> None:
        self.error = error
        self._on_error()
