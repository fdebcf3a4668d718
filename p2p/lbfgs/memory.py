"""The memory that this process has taken at most."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

UNIT_BYTES = 1 if sys.platform == "darwin" else 1024
"""Of `ru_maxrss`: the manual of getrusage of each system says so."""


def memory_peak_bytes() -> int:
    """Since the process began its program, in bytes; shared pages count.

    `ru_maxrss` of Linux has the peak of the process that started it, too, so /proc is asked where it is there.
    """
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found is not None:
        return int(found.group(1)) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT_BYTES
