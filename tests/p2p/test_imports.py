"""What a process imports, it holds in memory: the agent of every executor is to stay small."""

from __future__ import annotations

import subprocess
import sys

import pytest


def test_an_agent_that_does_not_mix_imports_what_it_needs_only() -> None:
    unwanted = {
        "scipy",
        "networkx",
        "gensim",
        "numba",
        "pyspark",
        "cloudpickle",
        "p2p.adapters",
        "p2p.worker",
        "_hashlib",
    }
    program = f"import sys, p2p.agent.process; print(*sorted({unwanted} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=500)
    assert done.stdout.split() == []


def test_a_driver_program_that_does_not_mix_imports_neither_scipy_nor_networkx() -> None:
    program = (
        "import sys, numpy, p2p; p2p.DeepDist({'w': numpy.zeros(1)}); "
        "print(*sorted({'scipy', 'networkx', 'gensim', 'numba', 'pyspark', 'h11'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=500)
    assert done.stdout.split() == []


def test_a_worker_that_runs_the_gradient_of_word2vec_does_not_import_the_trainer() -> None:
    unwanted = {"p2p.deepdist", "p2p.sessions.agents", "pyspark"}
    program = f"import sys, p2p.models.word2vec; print(*sorted({unwanted} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=500)
    assert done.stdout.split() == []


def test_a_worker_of_light_word2vec_trains_without_gensim() -> None:
    program = """
import sys, cloudpickle
from gensim.models import Word2Vec
from p2p.adapters.model import Model
from p2p.models.word2vec import build_vocab, gradient
model = Word2Vec(sg=1, vector_size=8, min_count=1)
build_vocab(model, ["one two three", "three four"])
sys.stdout.buffer.write(cloudpickle.dumps((Model(model).skeleton(gradient.light), gradient)))
"""
    sent = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=500).stdout
    program = """
import sys, cloudpickle
from p2p.adapters.model import Model
skeleton, gradient = cloudpickle.loads(sys.stdin.buffer.read())
assert gradient(Model.from_skeleton(skeleton).model, ["one two three"])["words_trained"] == 3
print(*sorted({'scipy.stats', 'gensim', 'pyspark'} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], input=sent, capture_output=True, check=True, timeout=500)
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", ["p2p", "p2p.models.word2vec", "p2p.worker.task", "p2p.worker.working_copy"])
def test_a_compiler_is_imported_only_by_what_trains_with_it(module: str) -> None:
    program = f"import sys, {module}; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=500)
    assert done.stdout.split() == ["False"]
