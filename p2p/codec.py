"""Codecs: how an update that `gradient` and `descent` made travels in fewer bytes, and nothing of it is lost.

    delta + what was left before  ->  Codec.encode  ->  an update of some kind  |  what is left for later

    DeepDist(model, codec=MyCodec())    from a file of one's own: the codec, and the kind of its updates if that is new

The rest that a codec leaves goes with the worker's next update, or at the end of the training. It is with the agent as
soon as the update is: a worker may be killed, and tasks may fail. Two things are not exact. Where two attempts at the
same rows run side by side (speculation) and one is taken back, the rest that its codec had left of it is not. A lost
executor takes its rests along, as it does its last updates; no figure of the report tells how much that was.

A codec and its kinds are values. With the model's skeleton they go to the workers, which encode. The agents, the driver
program's among them, are told the kinds alone, which add: they come as their code, so that no agent has to import them.
"""

from __future__ import annotations

import base64
import sys
from typing import Any, Protocol

import cloudpickle

from gossip.arrays import Arrays
from gossip.errors import UsageError
from gossip.updates import Kind, with_kinds
from gossip.updates.table import Kinds
from p2p import parcel

OURS = ("gossip", "p2p")
"""Packages that are wherever an agent is."""


class Codec(Protocol):
    """Makes an update of a delta."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Of its updates; those of `gossip.updates.KINDS` need not be named."""
        ...

    def encode(self, delta: Arrays, residual: Arrays) -> tuple[Arrays, Arrays]:
        """(update, new residual) of what training came to, and of what was left so far: arrays of the model's names,
        shapes and dtypes. The update and the new residual add up to the two, as exactly as the numbers can. Neither
        argument is written to, and the new residual shares no memory with the delta."""
        ...


def check_codec(codec: Any) -> Codec:
    """`codec`, if it has all that a codec has, and its kinds too; else `UsageError`."""
    _check(codec, Codec, "codec", "p2p.Codec")
    if not isinstance(codec.kinds, tuple):
        raise UsageError(f"codec.kinds is a {type(codec.kinds).__name__}, expected a tuple of kinds of updates")
    for kind in codec.kinds:
        _check(kind, Kind, "a kind of the codec's", "p2p.Kind")
        if kind.in_blocks:
            raise UsageError(f"{kind!r} is read in_blocks, which only the kind of whole arrays is: expected False")
    found: Codec = codec
    return found


def kinds_of(codec: Codec | None) -> Kinds:
    """All kinds of updates in a run with this codec."""
    return with_kinds(() if codec is None else codec.kinds)


def packed(kinds: tuple[Kind, ...]) -> str:
    """Kinds, for agents. The modules of their classes travel with them, unless they are ours."""
    names = {type(kind).__module__ for kind in kinds} - {"__main__"}
    known = cloudpickle.list_registry_pickle_by_value()
    modules = [sys.modules[name] for name in sorted(names - known) if name.partition(".")[0] not in OURS]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        return base64.b64encode(parcel.dumps(kinds)).decode()
    except Exception as error:
        raise UsageError(f"the codec's kinds cannot be sent to agents: {type(error).__name__}: {error}") from error
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def unpacked(sent: str) -> Kinds:
    """All kinds of updates in a run with these of `packed`; of this run's own driver program."""
    return with_kinds(parcel.loads(base64.b64decode(sent)))


def _check(value: Any, protocol: type, what: str, name: str) -> None:
    wanted = [each for each in vars(protocol) if not each.startswith("_")]
    if isinstance(value, type) and hasattr(value, wanted[0]):
        raise UsageError(f"{what} is the class {value.__name__}, expected an object of it: {value.__name__}()")
    if lacking := [each for each in wanted if not hasattr(value, each)]:
        raise UsageError(f"{what} is a {type(value).__name__} without {', '.join(lacking)}, expected what {name} says")
