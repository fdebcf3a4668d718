"""What holds for all tests."""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import pytest

SETTLED_TIMEOUT_S = 60.0

Seen = TypeVar("Seen")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse names that differ from one process to the next: tests that run side by side are told apart by name."""
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid} has an address in its name, expected a name of its own: give ids=")
        if "\\x1f\\x8b" in item.nodeid:  # with the time when it was packed
            raise pytest.UsageError(f"{item.nodeid} has a gzip file in its name, expected a name of its own: give ids=")


def _settled(look: Callable[[], Seen], expected: Seen) -> Seen:
    give_up = time.monotonic() + SETTLED_TIMEOUT_S
    while (seen := look()) != expected and time.monotonic() < give_up:
        time.sleep(0.01)
    return seen


@pytest.fixture(scope="session")
def settled() -> Callable[[Callable[[], Seen], Seen], Seen]:
    """`settled(look, expected)`: what `look()` sees, as soon as it is what was expected, or in the end.

    For what a process holds: the system shows a thread a little longer than it lives.
    """
    return _settled


@contextmanager
def _out_of_descriptors(left: int = 0) -> Iterator[None]:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, allowed[1]))
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    for _ in range(left):
        os.close(taken.pop())
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, allowed)
        for descriptor in taken:
            os.close(descriptor)


@pytest.fixture(scope="session")
def out_of_descriptors() -> Callable[..., AbstractContextManager[None]]:
    """`with out_of_descriptors(left=0):` this process may open so many files more."""
    return _out_of_descriptors
