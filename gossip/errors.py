"""Errors, and whose fault each is: the fault is in the type.

`WireError` and `MismatchError` are the other side's fault (warn, drop, count, go on). `TooLargeError` is dealt with in
the same way, and is no side's fault: the swarm has outgrown a limit. `UsageError` is the caller's (raise). Our own bugs
are assertions; `InvariantError` is one that a peer finds in itself.
"""

import errno


class GossipError(Exception):
    """Anything this package raises on purpose. What it quotes of others moves no cursor where it is shown."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(printable(each) if isinstance(each, str) else each for each in arguments))


class WireError(GossipError):
    """Bytes from outside that are not a message."""


class MismatchError(GossipError):
    """A well-formed message whose arrays do not fit: other names, shapes or dtypes, or numbers that are not finite."""


class TooLargeError(GossipError):
    """A message of our own that is larger than any may be."""


class UsageError(GossipError):
    """The caller asked for something that cannot be; the text says what was expected, what came, and what to do."""


class NotFiniteError(UsageError):
    """An update has a NaN or an infinity, or would make one of the model."""


class InvariantError(AssertionError):
    """Something does not hold that must hold of a peer between two events; the text says what, and the values."""


def hold(holds: bool, what: str, *values: object) -> None:
    """Raise `InvariantError` unless it `holds`; `what` is the rule, and `values` are those that break it."""
    if not holds:
        raise InvariantError(f"{what}: " + ", ".join(map(repr, values)))


def ran_out_of_files(error: Exception) -> bool:
    """This process, or the machine, may not open more files."""
    return getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE)


def printable(text: str) -> str:
    """What others wrote, as it may be shown on a terminal: without what moves the cursor or hides what is written."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in "\n\t" else each.encode("unicode_escape").decode() for each in text
    )
