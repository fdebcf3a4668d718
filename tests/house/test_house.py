"""The house: the limits of a room, the drawing of its floors, public names, and names that texts speak of."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = ROOT / "docs" / "ARCHITECTURE.md"
PUBLIC = Path(__file__).with_name("public_names.txt")
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*.py"))]
TEXTS += [ROOT / "CHANGELOG.md", *sorted(path for top in ("gossip", "p2p") for path in (ROOT / top).rglob("*.py"))]


@pytest.fixture(scope="module")
def house() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house", ROOT / ".ci" / "house.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_room_is_over_a_limit_but_those_that_say_why(house: ModuleType) -> None:
    over = house.over()
    print(*(f"{folder} {files} files {lines} lines" for folder, (files, lines) in house.wings().items()), sep="\n")
    assert {where: what for where, what in over.items() if where not in house.EXCEPTIONS} == {}
    assert house.EXCEPTIONS.keys() <= over.keys(), "an exception that is none any more"


def test_the_limits_are_looked_for(house: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p2p").mkdir()
    (tmp_path / "gossip").mkdir()
    body = "\n".join(f"        self.a{number} = {number}" for number in range(17))
    (tmp_path / "p2p" / "swollen.py").write_text(f"class Heap:\n    def fill(self):\n{body}\n")
    (tmp_path / "p2p" / "long.py").write_text("def run():\n" + "    pass\n" * 60)
    for number in range(17):
        (tmp_path / "gossip" / f"room{number}.py").touch()
    monkeypatch.setattr(house, "ROOT", tmp_path)
    assert house.over() == {
        "gossip": "17 modules, at most 16",
        "p2p/swollen.py Heap": "17 attributes, at most 16",
        "p2p/long.py run": "61 lines, at most 60",
    }


def test_the_drawing_is_of_the_contracts(house: ModuleType, request: pytest.FixtureRequest) -> None:
    text = ARCHITECTURE.read_text()
    if request.config.getoption("--rewrite"):
        ARCHITECTURE.write_text(house.drawn(text))
    assert ARCHITECTURE.read_text() == house.drawn(text), "python .ci/house.py --draw"


def test_every_module_is_in_the_drawing(house: ModuleType) -> None:
    rooms = house.drawing().count(".py ") + house.drawing().count(".py\n")
    assert rooms == sum(path.stem != "__init__" for path in house.modules())


def public_names() -> str:
    """Of each package that lists its names: these."""
    lines = []
    for top in ("gossip", "p2p"):
        for path in sorted((ROOT / top).rglob("__init__.py")):
            if "__all__" in path.read_text():
                name = ".".join(path.parent.relative_to(ROOT).parts)
                module = importlib.import_module(name)
                assert all(hasattr(module, each) for each in module.__all__)
                lines.append(f"{name}: {' '.join(sorted(module.__all__))}")
    return "\n".join(lines) + "\n"


def test_public_names_are_those_that_are_listed(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--rewrite"):
        PUBLIC.write_text(public_names())
    assert PUBLIC.read_text() == public_names(), "pytest tests/house --rewrite, and a line in CHANGELOG.md"


def test_names_in_texts_are_there() -> None:
    missing = []
    for path in TEXTS:
        text = path.read_text()
        if path.suffix == ".py":  # code is read by mypy; what is said of it is not
            tree = ast.parse(text)
            defined = (each for each in ast.walk(tree) if isinstance(each, ast.Module | ast.ClassDef | ast.FunctionDef))
            text = "\n".join(ast.get_docstring(each) or "" for each in defined)
        for name in re.findall(r"(?<![\w./])((?:p2p|gossip)(?:\.\w+)+)", text):
            if not _is_there(name):
                missing.append(f"{path.relative_to(ROOT)}: {name}")
        for place in re.findall(
            r"(?<![\w./])((?:p2p|gossip|tests|benchmarks|examples|docs)/[\w/]+\.(?:py|md|txt))", text
        ):
            if not (ROOT / place).exists():
                missing.append(f"{path.relative_to(ROOT)}: {place}")
    assert missing == []


def _is_there(name: str) -> bool:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize(("guest", "allowed"), [("word2vec", {"p2p/adapters/adapter.py"}), ("rbm", set())])
def test_a_model_is_a_guest(guest: str, allowed: set[str]) -> None:
    """Nothing of the house names a model but the table of adapters, and what only passes it on."""
    found = set()
    for path in sorted((ROOT / "p2p").rglob("*.py")):
        place = str(path.relative_to(ROOT))
        if not place.startswith(f"p2p/models/{guest}/") and guest in path.read_text().lower():
            found.add(place)
    assert found == allowed
