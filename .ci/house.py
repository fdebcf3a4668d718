"""The house as it stands: its wings with their files and lines, the limits of a room, and the drawing of all floors.

    python .ci/house.py            files and lines of each wing, and what is over a limit
    python .ci/house.py --draw     writes the drawing of docs/ARCHITECTURE.md anew

Floors are those of the import contracts in pyproject.toml, which `lint-imports` holds; what stands beside a room is the
first sentence of its docstring. tests/house/ holds the limits and the drawing.
"""

from __future__ import annotations

import argparse
import ast
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("p2p", "gossip")
MODULES_MAX = 16
"""Of a folder, its `__init__` not counted."""
ATTRIBUTES_MAX = 16
"""Of a class: fields, and what its methods assign to `self`."""
FUNCTION_LINES_MAX = 60

EXCEPTIONS: dict[str, str] = {
    "gossip/sim/bad_day.py Options": "a table of options, each of which a seed draws by itself",
    "p2p/arguments.py training": "all arguments of a training, each with its check",
    "p2p/deepdist.py __init__": "the arguments of a session, and what each means to the user",
    "p2p/deepdist.py train": "the arguments of a training, and what each means to the user",
}
"""What is over a limit, and why it stays."""

BEGIN, END = "<!-- floors: written by .ci/house.py --draw -->\n", "<!-- end of floors -->\n"


def modules() -> Iterator[Path]:
    """All modules of the packages, relative to the project."""
    for package in PACKAGES:
        yield from sorted(path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py"))


def wings() -> dict[str, tuple[int, int]]:
    """Of each folder: modules (`__init__` not counted) and lines."""
    found: dict[str, tuple[int, int]] = {}
    for path in modules():
        files, lines = found.get(str(path.parent), (0, 0))
        more = len((ROOT / path).read_text().splitlines())
        found[str(path.parent)] = files + (path.stem != "__init__"), lines + more
    return found


def over() -> dict[str, str]:
    """What is over a limit: where it is, and by how much."""
    found = {
        folder: f"{files} modules, at most {MODULES_MAX}"
        for folder, (files, _) in wings().items()
        if files > MODULES_MAX
    }
    for path in modules():
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.ClassDef) and len(_attributes(node)) > ATTRIBUTES_MAX:
                found[f"{path} {node.name}"] = f"{len(_attributes(node))} attributes, at most {ATTRIBUTES_MAX}"
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    found[f"{path} {node.name}"] = f"{lines} lines, at most {FUNCTION_LINES_MAX}"
    return found


def _attributes(node: ast.ClassDef) -> set[str]:
    fields = {
        each.target.id
        for each in node.body
        if isinstance(each, ast.AnnAssign)
        and isinstance(each.target, ast.Name)
        and "ClassVar" not in ast.unparse(each.annotation)
    }
    stored = (each for each in ast.walk(node) if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store))
    return fields | {each.attr for each in stored if isinstance(each.value, ast.Name) and each.value.id == "self"}


def floors() -> dict[str, list[list[str]]]:
    """Of each package with a contract of its own: its floors, top first, and the rooms on each."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return {
        container: [layer.split(" | ") for layer in contract["layers"]]
        for contract in contracts
        for container in contract.get("containers", ())
    }


def drawing() -> str:
    """All floors, as text."""
    known = floors()
    lines: list[str] = []
    for package in PACKAGES:
        lines += [*_room(package, 0), *_draw(package, known, 1), ""]
    return "```text\n" + "\n".join(lines).rstrip() + "\n```\n"


def _draw(container: str, known: dict[str, list[list[str]]], depth: int) -> Iterator[str]:
    rooms = known.get(container)
    if rooms is None:
        folder = ROOT / container.replace(".", "/")
        paths = [path for path in sorted(folder.iterdir()) if path.suffix == ".py" or (path / "__init__.py").exists()]
        rooms = [[path.stem for path in paths if path.stem != "__init__"]]
    for number, floor in enumerate(rooms):
        if number and depth == 1:
            yield "    " + "-" * 20
        for room in floor:
            name = f"{container}.{room}"
            yield from _room(name, depth)
            if (ROOT / name.replace(".", "/")).is_dir():
                yield from _draw(name, known, depth + 1)


def _room(name: str, depth: int) -> Iterator[str]:
    ending = "/" if (ROOT / name.replace(".", "/")).is_dir() else ".py"
    head = "  " * depth + name.rpartition(".")[2] + ending
    first, *more = textwrap.wrap(says(name), 90)
    yield f"    {head:<26}{first}"
    yield from (" " * 30 + line for line in more)


def says(name: str) -> str:
    """The first sentence of a module's docstring."""
    path = ROOT / name.replace(".", "/")
    text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    head = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].replace("\n", " ")
    return head.split(". ")[0].rstrip(".")


def drawn(text: str) -> str:
    """The text of ARCHITECTURE.md with the drawing of today."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + drawing() + END + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="write the drawing of docs/ARCHITECTURE.md anew")
    architecture = ROOT / "docs" / "ARCHITECTURE.md"
    if parser.parse_args().draw:
        architecture.write_text(drawn(architecture.read_text()))
    print(f"{'wing':<32}{'files':>6}{'lines':>8}")
    for folder, (files, lines) in wings().items():
        print(f"{folder:<32}{files:>6}{lines:>8}")
    for where, what in over().items():
        print(f"{where}: {what}" + (f" ({EXCEPTIONS[where]})" if where in EXCEPTIONS else ""))


if __name__ == "__main__":
    main()
