"""Updates: how changes of a model travel, and are kept, summed and added to it.

An update is a set of named arrays. The names of its arrays say of which *kind* it is; `gossip.updates.table` has the
kinds that every peer knows, and finds that of an update. `gossip.updates.kind` says what a kind has to do.
"""

from gossip.updates.kind import Kind, read_whole
from gossip.updates.table import KINDS, check, kind_of, merge, norm, nothing, rehearse, total, with_kinds

__all__ = [
    "KINDS",
    "Kind",
    "check",
    "kind_of",
    "merge",
    "norm",
    "nothing",
    "read_whole",
    "rehearse",
    "total",
    "with_kinds",
]
