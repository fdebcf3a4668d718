"""Branches of some modules: which way their conditions went, and how often.

    with Branches([peer, adopt]) as branches:
        ...
    zip(branches.places, branches.taken)

A condition is what `if`, `while`, a conditional expression or a comprehension asks, and each part of an `and` or `or`:
it has two branches. A case of a `match` and the body of a `for` have one. The functions of the modules are compiled
once more, with a counter at each of these, and change places with the real ones: so classes, and names that others have
imported, stay what they are.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

SAW, PASSED = "_branches_saw", "_branches_passed"
"""Names that counted functions find in their module."""


class Branch(NamedTuple):
    """One way on from a place in the source."""

    module: str
    line: int
    column: int
    function: str
    text: str
    """The condition."""
    way: str


class Branches:
    """Counts from `__enter__` to `__exit__`. Two at a time, of the same module, are not possible."""

    def __init__(self, modules: Iterable[ModuleType]) -> None:
        self.places: list[Branch] = []
        """All that there are."""
        self._codes: list[tuple[ModuleType, dict[str, CodeType]]] = []
        """By qualified name: what counts."""
        self._were: list[tuple[FunctionType, CodeType]] = []
        for module in modules:
            tree = _Counted(module.__name__.rpartition(".")[2], self.places).visit(ast.parse(inspect.getsource(module)))
            code = compile(ast.fix_missing_locations(tree), inspect.getfile(module), "exec", dont_inherit=True)
            self._codes.append((module, {each.co_qualname: each for each in _codes(code)}))
        self.taken = [0] * len(self.places)
        """How often, of each."""

    def __enter__(self) -> Branches:
        taken = self.taken

        def saw(place: int, value: Any) -> Any:
            taken[place if value else place + 1] += 1
            return value

        def passed(place: int) -> None:
            taken[place] += 1

        for module, codes in self._codes:
            vars(module).update({SAW: saw, PASSED: passed})
            for function in _functions(module):
                if function.__code__.co_qualname in codes:
                    self._were.append((function, function.__code__))
                    function.__code__ = codes[function.__code__.co_qualname]
        return self

    def __exit__(self, *_: object) -> None:
        for function, code in self._were:
            function.__code__ = code
        self._were.clear()

    def clear(self) -> None:
        """Begin to count anew."""
        self.taken[:] = [0] * len(self.taken)


class _Counted(ast.NodeTransformer):
    """The same source, with counters."""

    def __init__(self, module: str, places: list[Branch]) -> None:
        self._module = module
        self._places = places
        self._within: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._named(node, node.name)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._named(node, node.name)

    def visit_If(self, node: ast.If) -> ast.AST:
        return self._asks(node)

    def visit_While(self, node: ast.While) -> ast.AST:
        return self._asks(node)

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        return self._asks(node)

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        texts = [(each, ast.unparse(each)) for each in node.ifs]
        self.generic_visit(node)
        node.ifs = [self._seen(new, old, text) for new, (old, text) in zip(node.ifs, texts, strict=True)]
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        texts = [(each, ast.unparse(each)) for each in node.values]
        self.generic_visit(node)
        node.values = [self._seen(new, old, text) for new, (old, text) in zip(node.values, texts, strict=True)]
        return node

    def visit_For(self, node: ast.For) -> ast.AST:
        text = f"for {ast.unparse(node.target)} in {ast.unparse(node.iter)}"
        self.generic_visit(node)
        node.body.insert(0, self._passes(node, text, "each"))
        return node

    def visit_Match(self, node: ast.Match) -> ast.AST:
        for case in node.cases:
            case.body.insert(0, self._passes(case.pattern, f"case {ast.unparse(case.pattern)}", "taken"))
        return self.generic_visit(node)

    def _named(self, node: ast.AST, name: str) -> ast.AST:
        self._within.append(name)
        self.generic_visit(node)
        self._within.pop()
        return node

    def _asks(self, node: ast.If | ast.While | ast.IfExp) -> ast.AST:
        old, text = node.test, ast.unparse(node.test)
        self.generic_visit(node)
        node.test = self._seen(node.test, old, text)
        return node

    def _seen(self, condition: ast.expr, at: ast.expr, text: str) -> ast.expr:
        place = ast.Constant(len(self._places))
        self._place(at, text, "true")
        self._place(at, text, "false")
        return ast.copy_location(ast.Call(ast.Name(SAW, ast.Load()), [place, condition], []), at)

    def _passes(self, at: ast.expr | ast.stmt | ast.pattern, text: str, way: str) -> ast.stmt:
        place = ast.Constant(len(self._places))
        self._place(at, text, way)
        call = ast.Call(ast.Name(PASSED, ast.Load()), [place], [])
        return ast.copy_location(ast.Expr(call), at)

    def _place(self, at: ast.expr | ast.stmt | ast.pattern, text: str, way: str) -> None:
        self._places.append(Branch(self._module, at.lineno, at.col_offset, ".".join(self._within), text, way))


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """Those that the source of `module` defines, by themselves or in classes."""
    inside = [each for each in vars(module).values() if getattr(each, "__module__", None) == module.__name__]
    for each in inside:
        for value in vars(each).values() if isinstance(each, type) else [each]:
            function: Callable[..., Any] | None = value
            if isinstance(value, property):
                function = value.fget
            elif isinstance(value, classmethod | staticmethod):
                function = value.__func__
            elif isinstance(value, cached_property):
                function = value.func
            if isinstance(function, FunctionType) and function.__code__.co_filename == inspect.getfile(module):
                yield function
