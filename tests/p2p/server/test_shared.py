"""Files of shared memory that other processes open by where they are."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from gossip.arrays import Layout
from p2p.server.messages import Place
from p2p.server.shared import SharedFile, open_at

LAYOUT = Layout.of({"w": np.zeros(1000)})


@pytest.fixture
def file() -> object:
    file = SharedFile(LAYOUT.nbytes)
    yield file
    file.close()


def test_another_open_file_has_the_same_bytes(file: SharedFile) -> None:
    other = open_at(file.place, LAYOUT.nbytes)
    assert other is not None
    file.versions = 3, 4
    LAYOUT.views(file.view())["w"][:] = 5
    assert other.versions == (3, 4)
    assert LAYOUT.views(other.view())["w"].tolist() == [5.0] * 1000
    other.write(8, np.full(2, 7.0))
    assert LAYOUT.views(file.view())["w"][:4].tolist() == [5, 7, 7, 5]
    other.close()


OTHER = """
import sys
from p2p.server.messages import Place
from p2p.server.shared import open_at
file = open_at(Place(*map(int, sys.argv[1:])), 8)
print(bytes(file.view()[:8]).hex(), file.acquire())
"""


def test_another_process_opens_it_and_its_lock_is_its_own(file: SharedFile) -> None:
    file.view()[:8] = b"abcdefgh"

    def asked() -> list[str]:
        place = map(str, (file.place.pid, file.place.descriptor, file.place.token))
        return subprocess.run([sys.executable, "-c", OTHER, *place], capture_output=True, text=True).stdout.split()

    assert asked() == [b"abcdefgh".hex(), "True"]
    with file.reading():
        assert asked() == [b"abcdefgh".hex(), "False"]


def test_readers_read_together_and_a_writer_waits_for_none(file: SharedFile) -> None:
    other = open_at(file.place, 0)
    assert other is not None
    with file.reading(), other.reading():
        pass
    with other.reading():
        assert not file.acquire()
    assert file.acquire()
    assert not other.acquire()
    file.release()
    assert other.acquire()
    other.close()


def test_what_is_not_there_any_more_or_is_another_file_is_not_opened(file: SharedFile, tmp_path: object) -> None:
    place = file.place
    assert open_at(place, LAYOUT.nbytes + 1) is None, "it is smaller"
    assert open_at(Place(place.pid, place.descriptor, place.token + 1), 0) is None, "it is another's by now"
    assert open_at(Place(place.pid, 1 << 20, place.token), 0) is None
    assert open_at(Place(1 << 30, place.descriptor, place.token), 0) is None
    read, write = os.pipe()
    assert open_at(Place(os.getpid(), read, 0), 0) is None
    os.close(read)
    os.close(write)


def test_a_file_that_arrays_look_at_can_be_closed() -> None:
    file = SharedFile(LAYOUT.nbytes)
    array = LAYOUT.views(file.view())["w"]
    array[:] = 2
    before = len(os.listdir("/proc/self/fd"))
    file.close()
    assert len(os.listdir("/proc/self/fd")) == before - 2
    assert array.sum() == 2000


def test_a_large_file_is_memory_only_while_it_is_used() -> None:
    def resident_bytes() -> int:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    nbytes = 100 << 20
    file = SharedFile(nbytes)
    before = resident_bytes()
    file.about_to_write()
    np.frombuffer(file.view(), np.uint8)[:] = 1
    assert resident_bytes() - before > nbytes // 2
    file.leave()
    assert resident_bytes() - before < nbytes // 4
    assert np.frombuffer(file.view(), np.uint8)[[0, -1]].tolist() == [1, 1]
    file.close()
