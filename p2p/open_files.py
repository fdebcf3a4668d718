"""The limit of open files of a process: raised as far as the system allows, with a report when that was not enough."""

from __future__ import annotations

import os
import resource
import socket


def allow_many() -> None:
    """Take what the system allows; the limit that a process begins with is often 1,024, and meant for `select`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):  # macOS says "unlimited" and does not mean it
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def words(what: str) -> str:
    """What to tell the user when `what` happened because of that."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"{what}: process {os.getpid()} on {socket.gethostname()} has as many files open as it may, {allowed}. "
        "Close files that are not needed, or allow more (ulimit -n)"
    )
