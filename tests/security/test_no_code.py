"""No code runs from a text, and none moves the cursor of a terminal: names of files, columns and arrays, cells, what an
exception says, what a checkpoint says of itself, what another master says.

Each text has in it what evaluation, a shell, a template or an unpickled object would make the file `canary` of.
"""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from py4j.protocol import Py4JError

from p2p import DeepDist, SimulatedCluster, UsageError, fetch_model
from p2p.cli.main import main
from p2p.data import read_csv, read_text
from p2p.engines.spark import explained
from p2p.http.client import RefusedError
from p2p.worker.errors import PartitionError, Seal

ESCAPES = "\x1b[2J\x1b]0;owned\x07"
SHOWN = r"\x1b[2J\x1b]0;owned\x07"


class Harm:
    def __reduce__(self) -> Any:
        return open, ("canary", "w")


def poison(seal: str = "0" * 64) -> str:
    """It has no slash, so that a file may be called so."""
    pickled = next(
        text
        for pad in range(1000)
        if "/" not in (text := base64.b64encode(pickle.dumps((Harm(), "x" * pad), 2)).decode())
    )
    return f"[deepdist:{seal}:{pickled}] {ESCAPES} $(touch canary)`touch canary`{{0!r}}%n"


CALLS = "open(**{'file':'canary'}|{'mode':'w'})"
"""Without a comma, which would end a cell, and a dot, which in the name of an array is an attribute of an attribute."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the canary would appear."""
    monkeypatch.chdir(tmp_path)
    eval(CALLS).close()
    assert Path("canary").exists(), "the poison works"
    Path("canary").unlink()
    pickle.loads(base64.b64decode(poison().split(":")[2].split("]")[0]))[0].close()
    assert Path("canary").exists(), "this one, too"
    Path("canary").unlink()
    yield tmp_path
    assert not Path("canary").exists(), "code of a text has run"


def is_still(text: str) -> None:
    """Nothing in it moves a cursor."""
    assert [each for each in text if not each.isprintable() and each != "\n"] == []


def told(error: BaseException, *expected: str) -> None:
    """What a user is shown of an error of ours."""
    text = "\n".join((str(error), *getattr(error, "__notes__", ())))
    is_still(text)
    for each in expected:
        assert each in text


def trained(rows: Any) -> None:
    """By a process of its own, which reads them."""

    def gradient(model: Any, rows: Any) -> dict[str, Any]:
        return {"w": np.full(1, float(len(list(rows))))}

    with DeepDist({"w": np.zeros(1)}, "master", peers=1, progress=False) as dd:
        dd.train(rows, gradient)


@pytest.mark.sockets
@pytest.mark.slow
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("text", [poison(), CALLS])
def test_a_path_and_the_cell_of_a_file_are_texts(here: Path, text: str) -> None:
    path = here / f"{text}.csv"
    path.write_text(f"1.0,2.0\n3.0,{text}\n")
    with pytest.raises(UsageError, match="line 2") as caught:
        trained(read_csv(str(here / "*.csv"), None, header=False))
    told(caught.value, ".csv", "canary")
    path.write_bytes(b"a\nb\0\n")
    with pytest.raises(UsageError, match="a NUL") as caught:
        trained(read_text(str(here / "*.csv")))
    told(caught.value, ".csv")


@pytest.mark.parametrize("text", [poison(), CALLS])
def test_the_name_of_a_column_is_a_text(here: Path, text: str) -> None:
    path = here / "data.csv"
    path.write_text(f"one,{text},two\n1,2,3\n")
    with pytest.raises(UsageError, match="label='none'") as caught:
        read_csv(str(path), label="none")
    told(caught.value, "canary")


@pytest.mark.sockets
@pytest.mark.slow
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("text", [poison(), CALLS])
def test_what_an_exception_says_is_a_text(text: str) -> None:
    def gradient(model: Any, rows: Any) -> None:
        raise ValueError(text)

    with (
        DeepDist({"w": np.zeros(1)}, "master", peers=1, progress=False) as dd,
        pytest.raises(ValueError, match="canary") as caught,
    ):
        dd.train([[1]], gradient)
    assert str(caught.value) == text, "the user's own is as it is"


def test_what_sparks_text_quotes_is_not_sealed_by_others() -> None:
    seal, theirs = Seal(), Seal()
    error = ValueError(poison())
    sealed = f"{seal.sealed(PartitionError.of(error, 0, 0))} {theirs.sealed(PartitionError.of(error, 0, 1))} {poison()}"
    found = explained(Py4JError(sealed), seal)
    assert type(found) is ValueError
    assert "partition 0, epoch 0" in found.__notes__[0]
    code = sealed.split("[deepdist:")[2].split(":")[0]
    unsealed = explained(Py4JError(poison(code)), seal)
    assert type(unsealed) is Py4JError, "another's code does not fit"


# ------------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture
def checkpoint(here: Path) -> Callable[..., Path]:
    """`checkpoint(change)`: the folder of one whose manifest was changed by somebody who can write there."""

    def written(change: Callable[[dict[str, Any]], None]) -> Path:
        folder = here / "checkpoints"
        with DeepDist({"w": np.zeros(1)}, engine=SimulatedCluster(peers=1), progress=False) as dd:
            dd.train([[1]], lambda model, rows: {"w": np.ones(1)}, checkpoint=folder)
        (manifest, *_) = sorted(folder.glob("checkpoint-*.json"), reverse=True)
        for other in folder.glob("checkpoint-*.json"):
            if other != manifest:
                other.unlink()
        said = json.loads(manifest.read_text())["checkpoint"]
        change(said)
        body = json.dumps(said)
        digest = hashlib.sha256(body.encode()).hexdigest()
        manifest.write_text(f'{{"sha256": "{digest}", "checkpoint": {body}}}')
        return folder

    return written


def put(*keys: Any, text: str) -> Callable[[dict[str, Any]], None]:
    def change(said: Any) -> None:
        for key in keys[:-1]:
            said = said[key]
        said[keys[-1]] = text

    return change


PLACES = [
    ("library",),
    ("written",),
    ("lineage",),
    ("model",),
    ("session", "codec"),
    ("session", "mixing"),
    ("session", "discipline"),
    ("training", "exchange"),
    ("progress", "ended"),
    ("arrays", 0, "name"),
    ("arrays", 0, "dtype"),
    ("tensors", "name"),
    ("meaning",),
    ("plain",),
    ("more",),
    ("format",),
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: " ".join(map(str, place)))
@pytest.mark.parametrize("text", [poison(), CALLS], ids=["poison", "calls"])
def test_what_a_checkpoint_says_of_itself_are_texts(
    checkpoint: Callable[..., Path], place: tuple[Any, ...], text: str
) -> None:
    folder = checkpoint(put(*place, text=text))
    result = CliRunner().invoke(main, ["inspect", str(folder)], env={"COLUMNS": "1000"})
    is_still(result.output)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with DeepDist.resume(folder, engine=SimulatedCluster(peers=1), progress=False) as dd:
                dd.train([[1]], lambda model, rows: {"w": np.ones(1)})
        except UsageError as error:
            told(error)
    for each in caught:
        is_still(str(each.message))


@pytest.mark.parametrize("kind", ["os:system", "builtins:eval", poison()], ids=["os", "builtins", "poison"])
def test_the_class_of_a_checkpoint_is_not_looked_for(checkpoint: Callable[..., Path], kind: str) -> None:
    def change(said: dict[str, Any]) -> None:
        said["plain"] = {"object": kind, "attributes": [["w", {"array": "w"}], ["touch canary", CALLS]]}

    with pytest.raises(UsageError, match="which is not looked for by its name") as caught:
        DeepDist.resume(checkpoint(change))
    told(caught.value)


# ------------------------------------------------------------------------------------------------- names and answers


@pytest.mark.parametrize("text", [poison(), CALLS])
def test_the_name_of_an_array_is_a_text(text: str) -> None:
    class Holds:
        def __init__(self) -> None:
            setattr(self, text, np.zeros(2))

    for model in ({text: np.zeros(2)}, Holds()):
        with DeepDist(model, engine=SimulatedCluster(peers=1), progress=False) as dd:
            with pytest.raises(UsageError, match="canary") as caught:
                dd.train([[1]], lambda model, rows: {text: np.zeros(3)})
            told(caught.value)
            report = dd.train([[1]], lambda model, rows: {text: np.ones(2)})
            is_still(str(report).replace("\x1b[1m", ""))
        assert (model[text] if isinstance(model, dict) else vars(model)[text]).tolist() == [1.0, 1.0]


def test_an_agents_story_is_a_text(here: Path) -> None:
    line = {"time": 1.0, "peer": ESCAPES, "event": f"{poison()} {CALLS}", "effects": [poison(), "[red]"]}
    (here / "story").write_text(json.dumps(line) + "\n")
    result = CliRunner().invoke(main, ["simulate", "--story", str(here / "story")])
    assert result.exit_code == 0, result.output
    is_still(result.output)
    assert SHOWN in result.output


@pytest.mark.sockets
def test_what_a_master_answers_is_a_text() -> None:
    body = json.dumps({"error": poison()}).encode()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 409 Conflict\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(RefusedError) as caught:
            fetch_model(f"127.0.0.1:{listener.getsockname()[1]}", token="a-token-of-thirty-two-characters")
        thread.join()
    told(caught.value, SHOWN)
