"""Mutants in the processes that tests start: agents and workers, which are started by exec and inherit nothing else.

`.ci/mutation.py` keeps the code of each module with all its mutants in a file, and says in the environment which mutant
is in use, or that lines are to be told. A process below loads that code in the place of the module's own.
"""

from __future__ import annotations

import importlib.machinery
import marshal
import os
import sys
import threading
from collections.abc import Callable, Sequence
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

CODE = "MUTATION_CODE"
"""The folder with the code of modules: MODULE.code."""
MUTANT = "MUTATION_MUTANT"
"""The mutant in use: its module, the number of its function there, and its own number among those of the function."""
LINES = "MUTATION_LINES"
"""The file to which the lines are appended that a process comes by."""

Functions = list[tuple[FunctionType, dict[str, Any]]]
"""The functions of a module that have mutants, and these by name."""


def put_in(run: FunctionType, mutant: Any) -> None:
    """Replace the code of a function by that of a mutant."""
    mutant = getattr(mutant, "__func__", mutant)
    run.__code__, run.__defaults__, run.__kwdefaults__ = mutant.__code__, mutant.__defaults__, mutant.__kwdefaults__


class Lines:
    """Appends each line of known functions to a file, the first time that this process comes by it.

    At once, since many a process is killed; and the file is opened anew for each line, as tests count open files.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._functions: dict[int, str] = {}
        self._seen: set[tuple[str, int]] = set()

    def know(self, module: str, functions: Sequence[FunctionType]) -> None:
        for number, function in enumerate(functions):
            todo = [function.__code__]
            while todo:
                code = todo.pop()
                self._functions[id(code)] = f"{module} {number}"  # code that lives shares its id with no other
                todo += [each for each in code.co_consts if isinstance(each, CodeType)]

    def begin(self) -> None:
        """From now on, in this thread and in those that begin later."""
        self._seen.clear()
        threading.settrace(self._call)
        sys.settrace(self._call)

    def end(self) -> None:
        sys.settrace(None)
        threading.settrace(None)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line(frame, event, argument) if id(frame.f_code) in self._functions else None

    def _line(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        where = self._functions[id(frame.f_code)], frame.f_lineno
        if where not in self._seen:
            self._seen.add(where)
            try:
                file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                os.write(file, b"%s %d\n" % (where[0].encode(), where[1]))
                os.close(file)
            except OSError:
                self._seen.discard(where)  # no descriptor is left: the next time
        return self._line


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, found: Functions, then: Callable[[str, Functions], None]) -> None:
        super().__init__(name, path)
        self._found = found
        self._then = then

    def get_code(self, fullname: str) -> CodeType:
        with open(os.path.join(os.environ[CODE], f"{fullname}.code"), "rb") as file:
            code = marshal.load(file)
        assert isinstance(code, CodeType)
        return code

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        mine = [each for each in self._found if each[0].__module__ == module.__name__]
        self._then(module.__name__, mine)


class _Finder:
    def __init__(self, modules: set[str], then: Callable[[str, Functions], None]) -> None:
        self._modules = modules
        self._then = then
        self._found: Functions = []
        trampoline: Any = ModuleType("mutmut.mutation.trampoline")  # what the code imports; mutmut's own takes long
        trampoline.MutantDict = dict
        trampoline.wrap_in_trampoline = self._collect
        sys.modules[trampoline.__name__] = trampoline

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name in self._modules else None
        if spec is not None:
            assert spec.origin is not None
            spec.loader = _Loader(name, spec.origin, self._found, self._then)
        return spec

    def _collect(self, mutants: dict[str, Any], is_classmethod: bool = False) -> Callable[[Any], Any]:
        def decorate(function: Any) -> Any:
            self._found.append((function, mutants))
            return function

        return decorate


def install() -> None:
    """In a process that a test has started: do as the environment says."""
    if mutant := os.environ.get(MUTANT):
        module, of_function, number = mutant.split()

        def use(_: str, functions: Functions) -> None:
            run, mutants = functions[int(of_function)]
            put_in(run, list(mutants.values())[int(number)])

        sys.meta_path.insert(0, _Finder({module}, use))
    elif path := os.environ.get(LINES):
        lines = Lines(path)
        modules = {name.removesuffix(".code") for name in os.listdir(os.environ[CODE]) if name.endswith(".code")}
        finder = _Finder(modules, lambda name, functions: lines.know(name, [run for run, _ in functions]))
        sys.meta_path.insert(0, finder)
        lines.begin()
