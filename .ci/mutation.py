"""Mutation testing of the pure core of gossip and of modules of p2p: could lines be wrong and no test would say so?

    make mutation MODULES="marks wire"    # all of the core without MODULES, which takes hours
    make mutation MODULES=marks AGAIN=1   # only what survived last time

mutmut makes the mutants: one function each, with one operator, constant, argument or branch changed. They are tried
here: one process imports the module and collects the tests once, and every mutant is a fork of it in which the code of
one function is replaced. It runs the tests that come by the changed line, those first that found others of the same
function. A mutant is killed if a test fails, and looped if a test takes far more processor time than it did before.

Results go to .mutation/MODULE.json, and those that survived to .mutation/MODULE.txt, with the difference they make.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import gc
import hashlib
import importlib.machinery
import importlib.util
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import mutmut.mutation.trampoline
import pytest
from _pytest.tmpdir import tmppath_result_key
from mutmut.mutation.file_mutation import mutate_file_contents

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / ".mutation"
CHILDREN = 2
"""Mutants at once."""

LOOP_TIMES = 20.0
LOOP_CPU_S = 3.0
"""A test loops if it takes so many times the processor time it took without the mutant, and so many seconds more."""

MEMORY_BYTES_MAX = 3 << 30
"""What a mutant may take in, for those that fill a list without end."""

TESTS: dict[str, str] = {
    # Which files of tests/gossip, in whatever folder, try a module; the quick part of them.
    "errors": "errors",
    "arguments": "arguments",
    "arrays": "arrays rows",
    "marks": "marks identity",
    "updates.kind": "kinds rows",
    "updates.dense": "kinds segments rows flat",
    "updates.rows": "rows stamps kinds",
    "updates.table": "kinds rows stamps flat",
    "updates.stamps": "stamps kinds rows",
    "messages": "wire",
    "events": "peer",
    "wire": "wire peer",
    "lanes.replicate": "replicate adopt",
    "lanes.origin": "replicate adopt",
    "lanes.reader": "replicate adopt",
    "lanes.source": "replicate adopt",
    "identity": "identity",
    "membership": "membership",
    "lanes.adopt": "adopt departures identity",
    "lanes.peer": "peer departures adopt identity trace",
    "lanes.roster": "peer departures adopt identity trace",
    "lanes.units": "peer departures adopt identity trace",
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
    "mixing.neighbors": "neighbors",
    "mixing.packets": "packets",
    "mixing.peer": "mix_peer",
    "mixing.course": "mix_peer",
    "mixing.mailbox": "mix_peer",
    "mixing.mixer": "mix_peer",
    "mixing.steps": "mix_peer",
    "mixing.strategies.choco": "mixing_oracles mixing churn",
    "mixing.strategies.relay": "mixing_oracles mixing churn",
    "mixing.strategies.tracking": "mixing_oracles mixing churn",
    "mixing.strategies.outer": "mixing_oracles mixing churn",
    "sim.vectorized": "vectorized vectorized_records",
    "sim.contraction": "contraction",
}
WING_TESTS: dict[str, str] = {
    # The same for a wing, where its modules have none of their own; of p2p, those that run in one process.
    "mixing": "mixing_oracles mixing",
    "p2p.worker": "task working_copy row_merge combine any_update errors in_place rhythm testing",
    "p2p.agent": "agent submissions figures replica local_socket requests task working_copy",
    "p2p.driver": "registrar observer evaluation report simulated",
}
PYTEST = ["-q", "-s", "--assert=plain", "-m", "not slow and not sockets and not spark"]
PYTEST += [part for name in ("p2p.pytest_plugin", "xdist", "cacheprovider") for part in ("-p", f"no:{name}")]


@dataclass
class Function:
    """A function with its mutants."""

    run: FunctionType
    mutants: dict[str, Any]
    lines: dict[int, set[int]] = field(default_factory=dict)
    """Which tests come by which of its lines."""

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


FUNCTIONS: list[Function] = []
SOURCES: dict[str, list[str]] = {}
"""The lines of the module with all its mutants in it, by its path."""


def _collect(mutants: dict[str, Any], is_classmethod: bool = False) -> Callable[[Any], Any]:
    """What the mutated source calls for every function that has mutants."""

    def decorate(function: Any) -> Any:
        FUNCTIONS.append(Function(function, mutants))
        return function

    return decorate


class Loader(importlib.machinery.SourceFileLoader):
    """Loads a module with all its mutants beside the functions, none of them in use."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code = mutate_file_contents(path, Path(path).read_text()).code
        SOURCES[path] = code.splitlines()
        return compile(code, path, "exec", dont_inherit=True)


class Finder:
    """Finds one module, and has it loaded with its mutants."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name == self.module else None
        if spec is not None:
            assert spec.origin is not None
            spec.loader = Loader(name, spec.origin)
        return spec


def _spans(code: CodeType, known: dict[CodeType, list[tuple[int, int]]] = {}) -> list[tuple[int, int]]:  # noqa: B006
    """First and last lines of the statements in a function, of compound ones up to their first inner statement."""
    if code not in known:
        known[code] = spans = []
        tree = ast.parse("\n".join(SOURCES[code.co_filename]))
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef) and _first_line(function) == code.co_firstlineno:
                for node in ast.walk(function):
                    if isinstance(node, ast.stmt) and node is not function:
                        body = getattr(node, "body", None) or getattr(node, "cases", None)
                        inner = getattr(body[0], "lineno", None) or body[0].pattern.lineno if body else None
                        spans.append((node.lineno, node.end_lineno if inner is None else max(node.lineno, inner - 1)))
                    elif isinstance(node, ast.match_case):
                        spans.append((node.pattern.lineno, max(node.pattern.lineno, node.body[0].lineno - 1)))
        spans.sort(key=lambda span: span[1] - span[0])
    return known[code]


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


def _mutants() -> list[Mutant]:
    found = []
    for function in FUNCTIONS:
        code = function.run.__code__
        original = _text(code)
        decorators = next(
            i for i, line in enumerate(SOURCES[code.co_filename][code.co_firstlineno - 1 :]) if "def " in line
        )
        seen: Counter[str] = Counter()
        for name, mutant in function.mutants.items():
            if name == "_mutmut_orig":
                continue
            mutant = getattr(mutant, "__func__", mutant)
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
            found.append(Mutant(key, function, mutant, code.co_firstlineno + decorators + line, difference))
    return found


class Trial:
    """A pytest plugin that runs the tests with one mutant after the other."""

    def __init__(self, module: str, again: bool, budget_s: float, every: int) -> None:
        self.module = module
        self.budget_s = budget_s
        self.every = every
        self.path = RESULTS / f"{module}.json"
        self.before: dict[str, Any] = json.loads(self.path.read_text()) if again and self.path.exists() else {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = session.items
        self._cover(items)
        mutants = _mutants()
        # Without a change, in another order, in a fork, everything passes: what fails below fails for the change.
        nothing = Mutant("", FUNCTIONS[0], FUNCTIONS[0].run, 0, "")
        _, channel = self._start(nothing, list(reversed(range(len(items)))), items, [3600.0] * len(items))
        with open(channel, "rb") as stream:
            said = stream.read().split()
        if os.wait()[1]:
            raise pytest.UsageError(f"{self.module}: without a mutant, in reversed order, {items[int(said[-1])]} fails")
        costs = [cost for _, cost in sorted(zip(map(int, said[::2]), map(float, said[1::2]), strict=True))]
        print(f"{self.module}: {len(items)} tests pass, {sum(costs):.0f} s of processor time", flush=True)
        gc.freeze()  # a fork that collects garbage copies what it looks at
        results: dict[str, Any] = {}
        killers: dict[int, Counter[int]] = {}
        waiting = iter([each for i, each in enumerate(mutants) if i % self.every == 0 or each.key in self.before])
        running: dict[int, tuple[Mutant, list[int], int]] = {}
        begun, shown = time.monotonic(), 0.0
        while True:
            mutant = next(waiting, None) if len(running) < CHILDREN else None
            if mutant is not None:
                known = self.before.get(mutant.key)
                if known is not None and known["state"] in ("killed", "looped"):
                    results[mutant.key] = known
                    continue
                first = killers.setdefault(id(mutant.function), Counter())
                tests = mutant.function.of_line(mutant.line)
                order = sorted(tests, key=lambda i: (-first[i], costs[i]))
                spent = list(itertools.accumulate(costs[i] for i in order))
                order = order[: 1 + sum(cost <= self.budget_s for cost in spent)]
                process, channel = self._start(mutant, order, items, costs)
                running[process] = mutant, order, channel
                continue
            if not running:
                break
            process, status = os.wait()
            mutant, order, channel = running.pop(process)
            with open(channel, "rb") as stream:
                said = stream.read()
            last = int(said.split()[-1]) if status and said else None
            state = "survived" if order else "untested"
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
                state = "looped"
            elif status:
                state = "killed"
            by = items[last].nodeid if last is not None else None
            if last is not None:
                killers[id(mutant.function)][last] += 1
            results[mutant.key] = {
                "state": state,
                "by": by,
                "tests": len(order),
                "line": mutant.line,
                "difference": mutant.difference,
            }
            if time.monotonic() > shown + 10:
                shown = time.monotonic()
                states = Counter(each["state"] for each in results.values())
                print(f"{self.module} {len(results)}/{len(mutants)} {dict(states)} {shown - begun:.0f} s", flush=True)
                self._write(self.before | results)
        mine = {mutant.key for mutant in mutants}
        self._write({key: result for key, result in (self.before | results).items() if key in mine})
        print(f"{_row(self.module, results)} {time.monotonic() - begun:.0f} s")
        return True

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
            run = mutant.function.run
            run.__code__, run.__defaults__ = mutant.code.__code__, mutant.code.__defaults__
            run.__kwdefaults__ = mutant.code.__kwdefaults__
            for i in order:
                os.write(writing, b"%d " % i)
                signal.setitimer(signal.ITIMER_PROF, LOOP_TIMES * costs[i] + LOOP_CPU_S)
                begun = time.process_time()
                _run(items[i])
                os.write(writing, b"%f " % (time.process_time() - begun))
            code = 0
        finally:
            os._exit(code)

    def _write(self, results: dict[str, Any]) -> None:
        RESULTS.mkdir(exist_ok=True)
        self.path.write_text(json.dumps(results, indent=1))
        lines = [_row(self.module, results), ""]
        for key, result in results.items():
            if result["state"] in ("survived", "untested"):
                lines += [f"# {key} {result['state']} ({result['tests']} tests)", result["difference"], ""]
        self.path.with_suffix(".txt").write_text("\n".join(lines))


def _run(item: pytest.Item) -> None:
    """Run a test; what it raises comes out."""
    if hasattr(item, "_request") and not item._request:
        item._initrequest()  # type: ignore[attr-defined]
    item.stash[tmppath_result_key] = {}
    try:
        item.ihook.pytest_runtest_setup(item=item)
        item.ihook.pytest_runtest_call(item=item)
    finally:
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


def _try_one(module: str, again: bool, budget_s: float, every: int) -> int:
    mutmut.mutation.trampoline.wrap_in_trampoline = _collect  # type: ignore[assignment]
    sys.meta_path.insert(0, Finder(module if module.startswith("p2p.") else f"gossip.{module}"))
    os.environ["HYPOTHESIS_PROFILE"] = "mutation"
    names = TESTS.get(module) or next(tests for wing, tests in WING_TESTS.items() if module.startswith(f"{wing}."))
    folder = ROOT / "tests" / ("p2p" if module.startswith("p2p.") else "gossip")
    files = [str(path) for name in names.split() for path in folder.rglob(f"test_{name}.py")]
    return int(pytest.main([*PYTEST, *files], plugins=[Trial(module, again, budget_s, every)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help="such as wire, lanes.peer or p2p.worker.task; none: all of the core")
    parser.add_argument("--again", action="store_true", help="only what was not killed last time")
    parser.add_argument(
        "--budget-s",
        type=float,
        default=float("inf"),
        help="of processor time for a mutant's tests, the quickest first",
    )
    parser.add_argument(
        "--every", type=int, default=1, help="a sample: each so many-th mutant; --again adds the others"
    )
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.chdir(ROOT)
    if options.one:
        sys.path.insert(0, str(ROOT))
        sys.exit(_try_one(options.modules[0], options.again, options.budget_s, options.every))
    for module in options.modules or _core():
        command = [sys.executable, __file__, "--one", module, f"--budget-s={options.budget_s}"]
        command += [f"--every={options.every}"]
        command += ["--again"] if options.again else []
        if status := subprocess.run(command).returncode:
            sys.exit(status)
    print("\n| module | mutants | killed | of them looped | survived | score |\n|---|---|---|---|---|---|")
    every: dict[str, Any] = {}
    for module in [*_core(), *sorted(path.stem for path in RESULTS.glob("p2p.*.json"))]:
        if (path := RESULTS / f"{module}.json").exists():
            results = json.loads(path.read_text())
            print(_row(module, results))
            every |= dict(zip(itertools.count(len(every)), results.values(), strict=False))
    print(_row("all", every))


if __name__ == "__main__":
    main()
