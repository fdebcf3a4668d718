"""What a process imports, it holds in memory: the agent of every executor is to stay small."""

from __future__ import annotations

import subprocess
import sys


def test_an_agent_that_does_not_mix_imports_neither_scipy_nor_networkx() -> None:
    program = "import sys, p2p.agent; print(*sorted({'scipy', 'networkx', 'gensim', 'pyspark'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []
