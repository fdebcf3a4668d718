"""User code on its way to another process: pickled by value, with the source lines that a traceback over there shows.

    dumps:  functions, classes, models -> bytes | lines of source, by file
    loads:  the same functions, under their own file names; lines that are not on this machine come from the parcel

cloudpickle sends a function as its code, which knows its file and its line. Some releases leave the file out, and where
the file is not on the other machine, or is a cell of a notebook, the line cannot be read there.

A parcel runs code when it is opened. It is opened only as it comes from the driver program of the same user, and in the
other direction as `p2p.worker.errors` says.
"""

from __future__ import annotations

import io
import linecache
import pickle
from collections.abc import Callable
from types import CodeType
from typing import Any

import cloudpickle

Lines = dict[str, dict[int, str]]
"""Source by file and line number."""

_shown: Lines = {}
"""What tracebacks of this process take from parcels."""


def dumps(value: Any, make: Callable[[io.BytesIO], Pickler] | None = None) -> bytes:
    """Pickle `value`, which may hold functions and classes of a program or a notebook; by a pickler of one's own."""
    file = io.BytesIO()
    pickler = (make or Pickler)(file)
    pickler.dump(value)
    pickle.dump(pickler.lines, file)
    return file.getvalue()


def loads(parcel: bytes) -> Any:
    """And back; tracebacks of this process show the source lines from now on."""
    file = io.BytesIO(parcel)
    value = pickle.load(file)
    _show(pickle.load(file))
    return value


class Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]
    """Keeps the file name of code, and collects its lines."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.lines: Lines = {}

    def reducer_override(self, value: Any) -> Any:
        """Called by pickle for everything that is not one of its own few types."""
        if not isinstance(value, CodeType):
            return super().reducer_override(value)
        reduce = self.dispatch_table.get(CodeType)
        if reduce is None:
            return NotImplemented
        make, arguments = reduce(value)[:2]
        self._collect(value)
        return _code_of_file, (make, arguments, value.co_filename)

    def _collect(self, code: CodeType) -> None:
        linecache.checkcache(code.co_filename)
        there = linecache.getlines(code.co_filename)
        first, last = _span(code)
        found = dict(enumerate(there[first - 1 : last], first))
        if found:
            self.lines.setdefault(code.co_filename, {}).update(found)


def _span(code: CodeType) -> tuple[int, int]:
    """First and last line, of decorators and of what goes on over several lines, too."""
    ends = [end or line or 0 for line, end, _, _ in code.co_positions()]
    return code.co_firstlineno, max(ends, default=code.co_firstlineno)


def _code_of_file(make: Callable[..., CodeType], arguments: tuple[Any, ...], file: str) -> CodeType:
    return make(*arguments).replace(co_filename=file)


def _show(lines: Lines) -> None:
    """Have `linecache`, where tracebacks look, know these lines where it has none, or others."""
    for file, found in lines.items():
        linecache.checkcache(file)
        there = linecache.getlines(file)
        if all(there[number - 1 : number] == [text] for number, text in found.items()):
            continue
        shown = _shown.setdefault(file, {})
        shown.update(found)
        text = [shown.get(number, "\n") for number in range(1, max(shown) + 1)]
        linecache.cache[file] = (sum(map(len, text)), None, text, file)  # without a time: it is not read again
