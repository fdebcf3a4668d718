"""Mutation testing of the pure core of gossip and of modules of p2p: could lines be wrong and no test would say so?

    make mutation MODULES="marks wire"    # all of the core without MODULES, which takes hours
    make mutation MODULES=marks AGAIN=1   # only what survived last time
    make mutation MODULES=p2p.agent EVERY=13 BUDGET_S=20   # a wing of p2p: each 13th mutant of it

mutmut makes the mutants: one function each, with one operator, constant, argument or branch changed. They are tried
here: one process imports the module and collects the tests once, and every mutant is a fork of it in which the code of
one function is replaced. It runs the tests that come by the changed line, those first that found others of the same
function. A mutant is killed if a test fails, and looped if a test takes far more processor time than it did before.

Tests of p2p start agents and workers by exec, which share nothing with the fork: a mutant of p2p is put into these as
well (`mutated/carried.py`), and the lines that they come by are told to the fork. There a mutant has looped also if a
test takes far longer than it did before.

Results go to .mutation/MODULE.json, and those that survived to .mutation/MODULE.txt, with the difference they make.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import gc
import hashlib
import importlib.machinery
import itertools
import json
import marshal
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import mutmut.mutation.trampoline
import pytest
from _pytest.tmpdir import tmppath_result_key
from mutmut.mutation.file_mutation import mutate_file_contents

ROOT = Path(__file__).resolve().parent.parent
CARRIED = ROOT / ".ci" / "mutated"
sys.path.insert(0, str(CARRIED))
import carried  # noqa: E402 - it lies in the folder of what child processes import

RESULTS = ROOT / ".mutation"
CODE = RESULTS / "code"
"""Of each module of a wing, its code with all its mutants."""
MARK = "MUTATION_MARK"
"""What a fork, and all that it starts, have in their environment: the folder of their temporary files."""
CHILDREN = 2
"""Mutants at once."""

LOOP_TIMES = 20.0
LOOP_CPU_S = 3.0
"""A test loops if it takes so many times the processor time it took without the mutant, and so many seconds more."""

LATE_TIMES = 8.0
LATE_S = 15.0
BASE_S = 300.0
"""Of a test of p2p, which mostly waits: so many times as long as without the mutant, and so much more. Without one."""

MEMORY_BYTES_MAX = 3 << 30
"""What a mutant may take in, for those that fill a list without end."""

TESTS: dict[str, str] = {
    # Which files of tests/gossip, in whatever folder, and of tests/seams try a module; the quick part of them.
    "errors": "errors",
    "arguments": "arguments",
    "arrays": "arrays rows",
    "marks": "marks identity",
    "updates.kind": "kinds rows",
    "updates.dense": "kinds segments rows flat",
    "updates.rows": "rows stamps kinds",
    "updates.table": "kinds rows stamps flat",
    "updates.stamps": "stamps kinds rows",
    "updates.entries": "update_kind kinds",
    "updates.halves": "update_kind kinds",
    "updates.levels": "update_kind kinds",
    "messages": "wire",
    "events": "peer",
    "wire": "wire peer",
    "lanes.replicate": "replicate adopt lane invariants",
    "lanes.origin": "replicate adopt lane invariants",
    "lanes.reader": "replicate adopt lane invariants",
    "lanes.source": "replicate adopt lane",
    "identity": "identity invariants",
    "membership": "membership invariants",
    "lanes.adopt": "adopt departures identity peer invariants",
    "lanes.peer": "peer departures adopt identity trace invariants",
    "lanes.roster": "peer departures adopt identity trace invariants",
    "lanes.units": "peer departures adopt identity trace invariants",
    "drivers": "drivers",
    "trace": "trace",
    "literal": "arguments compression",
    "topology.weights": "topology",
    "topology.base_graph": "topology",
    "topology.checks": "topology",
    "topology.graphs": "topology",
    "topology.theory": "topology",
    "compression": "compression",
    "flat": "flat",
    "mixing.neighbors": "neighbors invariants",
    "mixing.packets": "packets",
    "mixing.peer": "mix_peer invariants",
    "mixing.course": "mix_peer invariants",
    "mixing.mailbox": "mix_peer invariants",
    "mixing.mixer": "mix_peer invariants",
    "mixing.steps": "mix_peer invariants",
    "mixing.strategies.choco": "mixing_oracles mixing churn",
    "mixing.strategies.relay": "mixing_oracles mixing churn",
    "mixing.strategies.tracking": "mixing_oracles mixing churn",
    "mixing.strategies.outer": "mixing_oracles mixing churn",
    "sim.vectorized": "vectorized vectorized_records",
    "sim.contraction": "contraction",
}
WING_TESTS: dict[str, str] = {
    # The same for a wing, where its modules have none of their own.
    "mixing": "mixing_oracles mixing",
}
P2P_WINGS = ["p2p.worker", "p2p.agent", "p2p.driver"]
P2P_TESTS = [f"p2p/{name}" for name in ("worker", "agent", "driver", "sessions", "test_testing.py")]
P2P_TESTS += ["p2p/engines/test_local_engine.py", "seams"]
"""What tries the wings, also by agents and workers that are processes: all of it that needs no Spark."""
PYTEST = ["-qq", "-s", "--assert=plain"]
PYTEST += [part for name in ("p2p.pytest_plugin", "xdist", "cacheprovider") for part in ("-p", f"no:{name}")]


@dataclass
class Function:
    """A function with its mutants."""

    run: FunctionType
    mutants: dict[str, Any]
    lines: dict[int, set[int]] = field(default_factory=dict)
    """Which tests come by which of its lines."""
    number: int = 0
    """Its place among those of its module."""

    def of_line(self, line: int) -> set[int]:
        """The tests that run the statement of a line; for its header, all that call the function."""
        for first, last in _spans(self.run.__code__):
            if first <= line <= last:
                return set().union(*(self.lines.get(each, set()) for each in range(first, last + 1)))
        return set().union(*self.lines.values())


@dataclass
class Mutant:
    """A function's other code, and where it begins to differ."""

    key: str
    function: Function
    code: Any
    line: int
    difference: str
    number: int = 0
    """Its place among those of the function."""


FUNCTIONS: list[Function] = []
SOURCES: dict[str, list[str]] = {}
"""The lines of the module with all its mutants in it, by its path."""


def _collect(mutants: dict[str, Any], is_classmethod: bool = False) -> Callable[[Any], Any]:
    """What the mutated source calls for every function that has mutants."""

    def decorate(function: Any) -> Any:
        number = sum(each.run.__module__ == function.__module__ for each in FUNCTIONS)
        FUNCTIONS.append(Function(function, mutants, number=number))
        return function

    return decorate


class Loader(importlib.machinery.SourceFileLoader):
    """Loads a module with all its mutants beside the functions, none of them in use."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        source = Path(path).read_text()
        digest = hashlib.sha256((source + (ROOT / "pyproject.toml").read_text() + sys.version).encode()).hexdigest()
        kept = {suffix: CODE / f"{fullname}{suffix}" for suffix in (".sha256", ".py", ".code")}
        if not all(file.exists() for file in kept.values()) or kept[".sha256"].read_text() != digest:
            CODE.mkdir(parents=True, exist_ok=True)
            kept[".py"].write_text(mutate_file_contents(path, source).code)
            kept[".code"].write_bytes(marshal.dumps(compile(kept[".py"].read_text(), path, "exec", dont_inherit=True)))
            kept[".sha256"].write_text(digest)
        SOURCES[path] = kept[".py"].read_text().splitlines()
        code = marshal.loads(kept[".code"].read_bytes())
        assert isinstance(code, CodeType)
        return code


class Finder:
    """Finds some modules, and has them loaded with their mutants."""

    def __init__(self, modules: list[str]) -> None:
        self.modules = modules

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name in self.modules else None
        if spec is not None:
            assert spec.origin is not None
            spec.loader = Loader(name, spec.origin)
        return spec


def _spans(code: CodeType, known: dict[CodeType, list[tuple[int, int]]] = {}) -> list[tuple[int, int]]:  # noqa: B006
    """First and last lines of the statements in a function, of compound ones up to their first inner statement."""
    if code not in known:
        known[code] = spans = []
        for function in _functions(code.co_filename):
            if _first_line(function) == code.co_firstlineno:
                for node in ast.walk(function):
                    if isinstance(node, ast.stmt) and node is not function:
                        body = getattr(node, "body", None) or getattr(node, "cases", None)
                        inner = getattr(body[0], "lineno", None) or body[0].pattern.lineno if body else None
                        spans.append((node.lineno, node.end_lineno if inner is None else max(node.lineno, inner - 1)))
                    elif isinstance(node, ast.match_case):
                        spans.append((node.pattern.lineno, max(node.pattern.lineno, node.body[0].lineno - 1)))
        spans.sort(key=lambda span: span[1] - span[0])
    return known[code]


@lru_cache(maxsize=4)
def _functions(path: str) -> list[ast.FunctionDef]:
    tree = ast.parse("\n".join(SOURCES[path]))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def _first_line(function: ast.FunctionDef) -> int:
    return min([function.lineno, *(each.lineno for each in function.decorator_list)])


def _text(code: CodeType) -> list[str]:
    """The lines of a function, with its name as it is."""
    lines = SOURCES[code.co_filename][code.co_firstlineno - 1 :]
    indent = len(lines[0]) - len(lines[0].lstrip())
    if lines[0].lstrip().startswith("@"):
        lines = lines[next(i for i, line in enumerate(lines) if not line.lstrip().startswith("@")) :]
    end = next(
        (
            i
            for i, line in enumerate(lines[1:], 1)
            if line.strip() and len(line) - len(line.lstrip()) <= indent and line.strip()[0] not in ")]}"
        ),
        len(lines),
    )
    lines = lines[:end]
    while not lines[-1].strip():
        lines.pop()
    return [lines[0].replace(f" {code.co_name}(", " f(", 1), *lines[1:]]


def _mutants(modules: list[str]) -> list[Mutant]:
    found = []
    for function in FUNCTIONS:
        if function.run.__module__ not in modules:
            continue
        code = function.run.__code__
        original = _text(code)
        decorators = next(
            i for i, line in enumerate(SOURCES[code.co_filename][code.co_firstlineno - 1 :]) if "def " in line
        )
        seen: Counter[str] = Counter()
        for number, (name, mutant) in enumerate(function.mutants.items()):
            if name == "_mutmut_orig":
                continue
            mutant = getattr(mutant, "__func__", mutant)
            if mutant.__code__.co_freevars != code.co_freevars:
                continue  # a function takes no code with other free variables
            changed = _text(mutant.__code__)
            if [text.replace('("-INF")', '("-inf")').replace('("INF")', '("inf")') for text in changed] == original:
                continue  # float does not care
            line = next((i for i, (a, b) in enumerate(zip(original, changed, strict=False)) if a != b), 0)
            difference = "\n".join(
                each
                for each in difflib.unified_diff(original, changed, lineterm="", n=1)
                if not each.startswith(("---", "+++", "@@"))
            )
            digest = hashlib.sha256(difference.encode()).hexdigest()[:8]
            seen[digest] += 1
            key = f"{function.run.__qualname__} {digest}" + (f" {seen[digest]}" if seen[digest] > 1 else "")
            found.append(Mutant(key, function, mutant, code.co_firstlineno + decorators + line, difference, number))
    return found


def _unchanged(mutant: Mutant) -> Mutant:
    """What is tried in the place of a mutant where none is to be killed."""
    mutants = mutant.function.mutants
    code = getattr(mutants["_mutmut_orig"], "__func__", mutants["_mutmut_orig"])
    return replace(mutant, code=code, number=list(mutants).index("_mutmut_orig"))


class Trial:
    """A pytest plugin that runs the tests with one mutant after the other."""

    def __init__(self, modules: list[str], again: bool, budget_s: float, every: int, control: bool) -> None:
        self.modules = modules
        """As their results are named."""
        self.name = modules[0] if len(modules) == 1 else modules[0].rpartition(".")[0]
        self.control = control
        self.budget_s = budget_s
        self.every = every
        self.before: dict[str, dict[str, Any]] = {
            module: json.loads(self._path(module).read_text()) if again and self._path(module).exists() else {}
            for module in modules
        }

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = session.items
        if not FUNCTIONS:
            print(f"{self.name}: has declarations only", flush=True)
            self._write({module: {} for module in self.modules})
            return True
        costs = self._measure(items)
        mutants = _mutants([_full(module) for module in self.modules])
        gc.freeze()  # a fork that collects garbage copies what it looks at
        results: dict[str, dict[str, Any]] = {module: {} for module in self.modules}
        killers: dict[int, Counter[int]] = {}
        waiting = iter([each for i, each in enumerate(mutants) if i % self.every == 0 or self._known(each)])
        running: dict[int, tuple[Mutant, list[int], int]] = {}
        begun, shown = time.monotonic(), 0.0
        while True:
            mutant = next(waiting, None) if len(running) < CHILDREN else None
            if mutant is not None:
                known = self._known(mutant)
                if known is not None and known["state"] in ("killed", "looped") and not self.control:
                    results[_short(mutant)][mutant.key] = known
                    continue
                first = killers.setdefault(id(mutant.function), Counter())
                tests = mutant.function.of_line(mutant.line)
                order = sorted(tests, key=lambda i: (-first[i], costs[i]))
                spent = list(itertools.accumulate(costs[i] for i in order))
                order = order[: 1 + sum(cost <= self.budget_s for cost in spent)]
                process, channel = self._start(_unchanged(mutant) if self.control else mutant, order, items, costs)
                running[process] = mutant, order, channel
                continue
            if not running:
                break
            process, killed, said = self._wait({process: channel for process, (_, _, channel) in running.items()})
            mutant, order, _ = running.pop(process)
            words = said.split()
            last = int(words[-1]) if killed and len(words) % 2 else None
            if last is not None:
                killers[id(mutant.function)][last] += 1
            results[_short(mutant)][mutant.key] = {
                "state": killed or ("survived" if order else "untested"),
                "by": items[last].nodeid if last is not None else None,
                "tests": len(order),
                "line": mutant.line,
                "difference": mutant.difference,
            }
            if time.monotonic() > shown + 10:
                shown = time.monotonic()
                states = Counter(each["state"] for of_one in results.values() for each in of_one.values())
                print(f"{self.name} {sum(states.values())}/{len(mutants)} {dict(states)}", end=" ")
                print(f"{shown - begun:.0f} s", flush=True)
                self._write(results)
        mine: dict[str, set[str]] = {module: set() for module in self.modules}
        for mutant in mutants:
            mine[_short(mutant)].add(mutant.key)
        self.before = {
            module: {key: result for key, result in of_one.items() if key in mine[module]}
            for module, of_one in self.before.items()
        }
        self._write(results)
        for module, of_one in results.items():
            print(f"{_row(module, of_one)} of {len(mine[module])}, {time.monotonic() - begun:.0f} s")
        if self.control:
            tried = [each for of_one in results.values() for each in of_one.values()]
            by = Counter(each["by"] for each in tried if each["state"] in ("killed", "looped"))
            print(f"{self.name}: of {len(tried)} that change nothing {sum(by.values())} were killed, by {dict(by)}")
        return True

    def _known(self, mutant: Mutant) -> dict[str, Any] | None:
        known: dict[str, Any] | None = self.before[_short(mutant)].get(mutant.key)
        return known

    def _measure(self, items: list[pytest.Item]) -> list[float]:
        """Run all tests as they are: which lines they come by, and what each costs."""
        self._cover(items)
        # Without a change, in another order, in a fork, everything passes: what fails below fails for the change.
        nothing = Mutant("", FUNCTIONS[0], FUNCTIONS[0].run, 0, "")
        process, channel = self._start(nothing, list(reversed(range(len(items)))), items, [3600.0] * len(items))
        _, killed, text = self._wait({process: channel})
        said = text.split()
        if killed:
            raise pytest.UsageError(
                f"{self.modules}: without a mutant, in reversed order, {items[int(said[-1])]} fails"
            )
        costs = [cost for _, cost in sorted(zip(map(int, said[::2]), map(float, said[1::2]), strict=True))]
        print(f"{self.name}: {len(items)} tests pass, {sum(costs):.0f} s of processor time", flush=True)
        return costs

    def _wait(self, running: dict[int, int]) -> tuple[int, str, bytes]:
        """Which of some processes has ended, how its mutant came to an end if it did, and what it said."""
        process, status = os.wait()
        with open(running[process], "rb") as stream:
            said = stream.read()
        looped = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF
        return process, "looped" if looped else "killed" if status else "", said

    def _cover(self, items: list[pytest.Item]) -> None:
        """Run all tests once as they are: which lines of which functions they come by."""
        of_code: dict[CodeType, Function] = {}
        for function in FUNCTIONS:
            todo = [function.run.__code__]
            while todo:
                code = todo.pop()
                of_code[code] = function
                todo += [each for each in code.co_consts if isinstance(each, CodeType)]
        test = -1

        def line(frame: FrameType, event: str, _: Any) -> Any:
            of_code[frame.f_code].lines.setdefault(frame.f_lineno, set()).add(test)
            return line

        def call(frame: FrameType, event: str, _: Any) -> Any:
            return line(frame, event, None) if frame.f_code in of_code else None

        for item in items:
            test += 1
            sys.settrace(call)
            try:
                _run(item)
            finally:
                sys.settrace(None)

    def _start(self, mutant: Mutant, order: list[int], items: list[pytest.Item], costs: list[float]) -> tuple[int, int]:
        """A process that runs tests with a mutant, and where it tells which of them it has begun."""
        reading, writing = os.pipe()
        process = os.fork()
        if process:
            os.close(writing)
            return process, reading
        code = 1
        try:
            nowhere = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(nowhere, descriptor)
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            carried.put_in(mutant.function.run, mutant.code)
            for i in order:
                os.write(writing, b"%d " % i)
                signal.setitimer(signal.ITIMER_PROF, LOOP_TIMES * costs[i] + LOOP_CPU_S)
                begun = time.process_time()
                _run(items[i])
                os.write(writing, b"%f " % (time.process_time() - begun))
            code = 0
        finally:
            os._exit(code)

    def _path(self, module: str) -> Path:
        return RESULTS / f"{module}.json"

    def _write(self, results: dict[str, dict[str, Any]]) -> None:
        if self.control:
            return
        RESULTS.mkdir(exist_ok=True)
        for module, of_one in results.items():
            every = self.before[module] | of_one
            self._path(module).write_text(json.dumps(every, indent=1))
            lines = [_row(module, every), ""]
            for key, result in every.items():
                if result["state"] in ("survived", "untested"):
                    lines += [f"# {key} {result['state']} ({result['tests']} tests)", result["difference"], ""]
            self._path(module).with_suffix(".txt").write_text("\n".join(lines))


@dataclass
class Fork:
    """A process that runs tests of p2p, as far as it has told."""

    channel: int
    folder: str
    limits_s: list[float]
    said: bytes = b""
    give_up: float = 0.0
    late: bool = False

    def read(self) -> None:
        """What it has told since; a test that has begun may take its time from now on."""
        with contextlib.suppress(BlockingIOError):
            while more := os.read(self.channel, 65536):
                self.said += more
                words = self.said.split()
                self.give_up = time.monotonic() + (self.limits_s[int(words[-1])] if len(words) % 2 else BASE_S)


class WingTrial(Trial):
    """The same for a wing of p2p, whose tests start agents and workers.

    This process itself runs no test, so that each fork begins without threads and sockets. What a fork starts is found
    by its mark, and ended with it.
    """

    _forks: dict[int, Fork]

    def _measure(self, items: list[pytest.Item]) -> list[float]:
        """As above, in forks; what is known of a test is kept until one of the packages or its file has changed."""
        self._forks = {}
        path = RESULTS / "p2p-tests.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        packages = hashlib.sha256()
        for package in ("p2p", "gossip"):
            for file in sorted((ROOT / package).rglob("*.py")):
                packages.update(file.read_bytes())
        shas = [packages.hexdigest() + hashlib.sha256(item.path.read_bytes()).hexdigest() for item in items]
        new = [i for i, item in enumerate(items) if kept.get(item.nodeid, {}).get("sha256") != shas[i]]
        halves = [self._begin(None, new[i::CHILDREN], items, [BASE_S] * len(items))[0] for i in range(CHILDREN)]
        while halves:
            process, killed, text = self._wait(dict.fromkeys(halves, -1))
            halves.remove(process)
            said = text.split()
            if killed:
                raise pytest.UsageError(f"without a mutant, {items[int(said[-1])].nodeid} does not end")
            for i, word in zip(map(int, said[::2]), said[1::2], strict=True):
                kept[items[i].nodeid] = {"sha256": shas[i], **json.loads(word)}
                if kept[items[i].nodeid]["failed"]:
                    print(f"left out, as it fails without a mutant: {items[i].nodeid}", flush=True)
                    kept[items[i].nodeid]["sha256"] = ""
        path.write_text(json.dumps(kept))
        functions = {(function.run.__module__, function.number): function for function in FUNCTIONS}
        costs = []
        for i, item in enumerate(items):
            costs.append(kept[item.nodeid]["cost"])
            for module, number, line in kept[item.nodeid]["lines"]:
                functions[module, number].lines.setdefault(line, set()).add(i)
        print(f"{self.name}: {len(items)} tests, {sum(costs):.0f} s", flush=True)
        return costs

    def _start(self, mutant: Mutant, order: list[int], items: list[pytest.Item], costs: list[float]) -> tuple[int, int]:
        return self._begin(mutant, order, items, [LATE_TIMES * cost + LATE_S for cost in costs])

    def _begin(
        self, mutant: Mutant | None, order: list[int], items: list[pytest.Item], limits_s: list[float]
    ) -> tuple[int, int]:
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        folder = tempfile.mkdtemp(prefix="m-", dir="/tmp")  # short: Unix sockets are made below it
        process = os.fork()
        if process:
            os.close(writing)
            self._forks[process] = Fork(reading, folder, limits_s, give_up=time.monotonic() + BASE_S)
            return process, reading
        code = 1
        try:
            nowhere = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(nowhere, descriptor)
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            _live_below(folder)
            if mutant is None:
                _cover_all(order, items, folder, writing)
            else:
                os.environ[carried.MUTANT] = (
                    f"{mutant.function.run.__module__} {mutant.function.number} {mutant.number}"
                )
                carried.put_in(mutant.function.run, mutant.code)
                for i in order:
                    os.write(writing, b"%d " % i)
                    _run(items[i], clean=False)
                    _end_all_below(folder)
                    os.write(writing, b"passed ")
            code = 0
        finally:
            os._exit(code)

    def _wait(self, running: dict[int, int]) -> tuple[int, str, bytes]:
        while True:
            for process in running:
                fork = self._forks[process]
                fork.read()
                done, status = os.waitpid(process, os.WNOHANG)
                if done:
                    fork.read()
                    os.close(fork.channel)
                    del self._forks[process]
                    _end_all_below(fork.folder)
                    shutil.rmtree(fork.folder, ignore_errors=True)
                    return process, "looped" if fork.late else "killed" if status else "", fork.said
                if time.monotonic() > fork.give_up and not fork.late:
                    fork.late = True
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.02)


def _cover_all(order: list[int], items: list[pytest.Item], folder: str, writing: int) -> None:
    """Run tests without a mutant, and tell of each how long it took, and which lines it came by in any process."""
    told = carried.Lines(os.path.join(folder, "lines"))
    os.environ[carried.LINES] = told.path
    of_module: dict[str, list[Function]] = {}
    for function in FUNCTIONS:
        of_module.setdefault(function.run.__module__, []).append(function)
    for module, functions in of_module.items():
        told.know(module, [function.run for function in functions])
    for i in order:
        os.write(writing, b"%d " % i)
        Path(told.path).write_text("")
        begun = time.monotonic()
        told.begin()
        try:
            _run(items[i])
            failed = False
        except BaseException:  # noqa: BLE001 - also what skips it
            failed = True
        told.end()
        cost = time.monotonic() - begun
        _end_all_below(folder)
        seen = sorted({tuple(line.split()) for line in Path(told.path).read_text().splitlines()})
        lines = [] if failed else [(module, int(number), int(line)) for module, number, line in seen]
        answer = json.dumps({"failed": failed, "cost": cost, "lines": lines}, separators=(",", ":"))
        os.write(writing, answer.encode() + b" ")


def _live_below(folder: str) -> None:
    """Have this process, and all that it starts, keep its temporary files in a folder, which is their mark as well."""
    make = tempfile.mkdtemp

    def mkdtemp(suffix: str | None = None, prefix: str | None = None, dir: str | None = None) -> str:
        return make(suffix, prefix, folder if dir == "/tmp" else dir)

    tempfile.mkdtemp = mkdtemp  # type: ignore[assignment]
    tempfile.tempdir = folder
    os.environ.update({"TMPDIR": folder, MARK: folder, carried.CODE: str(CODE)})
    os.environ["PYTHONPATH"] = os.pathsep.join([str(CARRIED), str(ROOT)])


def _end_all_below(folder: str) -> None:
    """End the processes that have a folder for their mark."""
    wanted = f"{MARK}={folder}".encode()
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
                if wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry), signal.SIGKILL)


def _full(module: str) -> str:
    return module if module.startswith("p2p.") else f"gossip.{module}"


def _short(mutant: Mutant) -> str:
    return mutant.function.run.__module__.removeprefix("gossip.")


def _run(item: pytest.Item, clean: bool = True) -> None:
    """Run a test; what it raises comes out, with `clean` after what its fixtures clean up."""
    if hasattr(item, "_request") and not item._request:
        item._initrequest()  # type: ignore[attr-defined]
    item.stash[tmppath_result_key] = {}
    try:
        item.ihook.pytest_runtest_setup(item=item)
        item.ihook.pytest_runtest_call(item=item)
        clean = True
    finally:
        if clean:
            item.ihook.pytest_runtest_teardown(item=item, nextitem=None)
    item._request = False  # type: ignore[attr-defined]  # fixtures are made anew


def _row(module: str, results: dict[str, Any]) -> str:
    states = Counter(each["state"] for each in results.values())
    total = sum(states.values())
    killed = states["killed"] + states["looped"]
    share = f"{100 * killed / total:.1f} %" if total else "–"
    return f"| {module} | {total} | {killed} | {states['looped']} | {total - killed} | {share} |"


def _core() -> list[str]:
    """The modules of the contract that keeps the core pure."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    names = next(each["source_modules"] for each in contracts if each["id"] == "gossip-pure")
    found = []
    for name in names:
        path = ROOT / name.replace(".", "/")
        if path.is_dir():
            rooms = [each.relative_to(ROOT).with_suffix("") for each in sorted(path.rglob("*.py"))]
            found += [".".join(each.parts) for each in rooms if each.name != "__init__"]
        else:
            found.append(name)
    return [name.removeprefix("gossip.") for name in found]


def _rooms(wing: str) -> list[str]:
    """The modules of a wing of p2p."""
    return [f"{wing}.{path.stem}" for path in sorted((ROOT / wing.replace(".", "/")).glob("[!_]*.py"))]


def _try(modules: list[str], again: bool, budget_s: float, every: int, control: bool) -> int:
    mutmut.mutation.trampoline.wrap_in_trampoline = _collect  # type: ignore[assignment]
    os.environ["HYPOTHESIS_PROFILE"] = "mutation"
    if modules[0].startswith("p2p."):
        rooms = [room for wing in P2P_WINGS for room in _rooms(wing)]
        sys.meta_path.insert(0, Finder(rooms))
        for room in rooms:
            importlib.import_module(room)
        files = [str(ROOT / "tests" / name) for name in P2P_TESTS]
        trial: Trial = WingTrial(modules, again, budget_s, every, control)
        return int(pytest.main([*PYTEST, "-m", "not spark", *files], plugins=[trial]))
    (module,) = modules
    sys.meta_path.insert(0, Finder([_full(module)]))
    names = TESTS.get(module) or next(tests for wing, tests in WING_TESTS.items() if module.startswith(f"{wing}."))
    folders = [ROOT / "tests" / "gossip", ROOT / "tests" / "seams"]
    files = [str(path) for name in names.split() for folder in folders for path in folder.rglob(f"test_{name}.py")]
    quick = ["-m", "not slow and not sockets and not spark"]
    return int(pytest.main([*PYTEST, *quick, *files], plugins=[Trial(modules, again, budget_s, every, control)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "modules", nargs="*", help="such as wire, lanes.peer, p2p.worker or p2p.worker.task; none: all of the core"
    )
    parser.add_argument("--again", action="store_true", help="only what was not killed last time")
    parser.add_argument(
        "--budget-s",
        type=float,
        default=float("inf"),
        help="for a mutant's tests, the quickest first: of processor time, for p2p of time",
    )
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        help="a sample: each so many-th mutant of a module, or of those of one wing; --again adds the others",
    )
    parser.add_argument(
        "--control", action="store_true", help="try code that is as it was: what is killed then is killed by chance"
    )
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.chdir(ROOT)
    if options.one:
        sys.path.insert(0, str(ROOT))
        sys.exit(_try(options.modules, options.again, options.budget_s, options.every, options.control))
    named = options.modules or _core()
    groups = [[module] for module in named if not module.startswith("p2p.")]
    for wing in P2P_WINGS:
        rooms = _rooms(wing)
        groups.append([room for room in rooms if wing in named or room in named])
    failed = 0
    for group in filter(None, groups):
        command = [sys.executable, __file__, "--one", *group, f"--budget-s={options.budget_s}"]
        command += [f"--every={options.every}"]
        command += [f"--{name}" for name in ("again", "control") if getattr(options, name)]
        failed = subprocess.run(command).returncode or failed
    print("\n| module | mutants | killed | of them looped | survived | score |\n|---|---|---|---|---|---|")
    _print_rows(_core(), "all")
    for wing in P2P_WINGS:
        _print_rows(_rooms(wing), f"all of {wing} that were tried")
    sys.exit(failed)


def _print_rows(modules: list[str], name: str) -> None:
    every: dict[str, Any] = {}
    for module in modules:
        if (path := RESULTS / f"{module}.json").exists():
            results = json.loads(path.read_text())
            print(_row(module, results))
            every |= dict(zip(itertools.count(len(every)), results.values(), strict=False))
    if every:
        print(_row(name, every))


if __name__ == "__main__":
    main()
