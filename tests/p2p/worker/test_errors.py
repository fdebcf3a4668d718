"""What the driver program gets of an error that user code raised elsewhere: class, text, place, source line."""

import base64
import linecache
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from p2p import parcel
from p2p.worker.errors import PARCEL_BYTES_MAX, TEXT_CHARACTERS_MAX, PartitionError, Seal, told


def raised(error: BaseException) -> PartitionError:
    """The error as it leaves partition 3 of epoch 1 on a worker."""
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - any of them
        return PartitionError.of(caught, 1, 3)


def arrived(error: BaseException) -> Exception:
    return told(raised(error).pickled)


# ----------------------------------------------------------------------------------------------------- class and text


class CarefulError(Exception):
    """Says itself how it is pickled."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"{name} is {number}")
        self.name = name
        self.number = number

    def __reduce__(self) -> Any:
        return CarefulError, (self.name, self.number)


class TwoArgumentsError(Exception):
    """Its arguments are not those of its base class, so pickle by itself cannot make it again."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"{name} is {number}")
        self.name = name
        self.number = number


class RowError(ValueError):
    """Pickle by itself makes another text of it, without a word."""

    def __init__(self, row: int, why: str = "unreadable") -> None:
        super().__init__(f"row {row}: {why}")
        self.row = row


class NamedOnlyError(LookupError):
    def __init__(self, *, key: str) -> None:
        self.key = key

    def __str__(self) -> str:
        return f"no {self.key}"


class DiskError(OSError):
    def __init__(self, path: str, disk: int) -> None:
        super().__init__(28, "full", path)
        self.disk = disk


class TreacherousError(Exception):
    """Raises something else whenever it is pickled."""

    def __reduce__(self) -> Any:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "error",
    [
        ValueError("text", 7),
        KeyError("key"),
        CarefulError("x", 7),
        TwoArgumentsError("x", 7),
        RowError(3),
        NamedOnlyError(key="x"),
        DiskError("file", 3),
        TreacherousError("text"),
        OSError(2, "gone", "file"),
        UnicodeError("ä"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        ImportError("text", name="module"),
        Exception(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_with_its_class_arguments_and_attributes(error: Exception) -> None:
    again = arrived(error)
    assert type(again) is type(error)
    assert again.args == error.args
    assert str(again) == str(error)
    assert {name: value for name, value in vars(again).items() if name != "__notes__"} == vars(error)
    (note,) = again.__notes__
    assert f"in partition 3, epoch 1, host {os.uname().nodename}, process {os.getpid()}" in note
    assert "raise error" in note


def test_errors_within_an_error_arrive_as_well() -> None:
    again = arrived(ExceptionGroup("several", [TwoArgumentsError("x", 7), RowError(3)]))
    assert isinstance(again, ExceptionGroup)
    assert [(type(error), str(error)) for error in again.exceptions] == [
        (TwoArgumentsError, "x is 7"),
        (RowError, "row 3: unreadable"),
    ]


def test_what_cannot_be_pickled_is_left_behind_and_named() -> None:
    error = TwoArgumentsError("x", 7)
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    again = arrived(error)
    assert type(again) is TwoArgumentsError
    assert (again.name, again.number) == ("x", 7)
    assert not hasattr(again, "lock")
    assert again.__notes__[0].startswith("left behind, as it cannot be pickled: lock (")
    lock = threading.Lock()
    again = arrived(RuntimeError(lock))
    assert again.args == (repr(lock),)


def test_a_large_error_travels_in_words() -> None:
    again = arrived(TwoArgumentsError("x", 10 ** PARCEL_BYTES_MAX.bit_length()))
    assert type(again) is TwoArgumentsError
    error = TwoArgumentsError("x", 7)
    error.all = bytes(PARCEL_BYTES_MAX)  # type: ignore[attr-defined]
    again = arrived(error)
    assert (type(again), str(again)) == (RuntimeError, "TwoArgumentsError: x is 7")


def test_a_long_text_is_cut_in_the_middle() -> None:
    error = raised(ValueError("a" * 10**6 + "end"))
    assert len(str(error)) < 2 * TEXT_CHARACTERS_MAX
    assert "characters ..." in str(error)
    assert str(error).rstrip().endswith("end")


@pytest.mark.parametrize(
    "error", [SystemExit("with words"), KeyboardInterrupt("with words"), GeneratorExit("with words")]
)
def test_an_error_that_would_end_the_driver_program_arrives_in_words(error: BaseException) -> None:
    again = arrived(error)
    assert type(again) is RuntimeError
    assert str(again) == f"{type(error).__name__}: with words"
    assert "raise error" in again.__notes__[0]
    assert str(raised(error).original) == str(again)


def test_an_error_whose_text_cannot_be_made_is_told_by_its_type() -> None:
    class SpeechlessError(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    assert "SpeechlessError" in str(arrived(SpeechlessError()))


def test_a_class_that_the_driver_program_cannot_find_is_named(tmp_path: Path) -> None:
    (tmp_path / "only_there.py").write_text("class TheirError(Exception):\n    pass\n")
    program = (
        "import sys; from only_there import TheirError; from p2p.worker.errors import PartitionError\n"
        "sys.stdout.buffer.write(PartitionError.of(TheirError('text'), 1, 3).pickled)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, check=True)
    again = told(done.stdout)
    assert (type(again), str(again)) == (RuntimeError, "TheirError: text")


def test_notes_and_causes_of_the_user_stay() -> None:
    error = ValueError("text")
    error.add_note("mine")
    error.__cause__ = KeyError("why")
    again = arrived(error)
    assert again.__notes__[0] == "mine"
    assert "partition 3" in again.__notes__[1]
    assert "KeyError: 'why'" in again.__notes__[1]


def test_a_partition_error_travels_itself() -> None:
    error = raised(ValueError("text"))
    again = cloudpickle.loads(cloudpickle.dumps(error))
    assert (str(again), again.pickled) == (str(error), error.pickled)


# ------------------------------------------------------------------------------------------------------ within a text


def test_an_error_is_found_in_the_text_of_spark() -> None:
    seal = Seal()
    text = f"Job aborted due to stage failure: {seal.sealed(raised(RowError(3)))}\n\tat java.lang.Thread.run\n"
    assert type(seal.told(text)) is RowError
    assert "raise error" in text, "logs have words"


def test_the_last_of_several_tries_is_told() -> None:
    seal = Seal()
    error = seal.told("\n".join(str(seal.sealed(raised(ValueError(number)))) for number in range(3)))
    assert error is not None
    assert error.args == (2,)


def test_the_seal_travels_with_the_job() -> None:
    seal = Seal()
    there = pickle.loads(pickle.dumps(seal))
    assert type(seal.told(str(there.sealed(raised(KeyError("k")))))) is KeyError


class Poison:
    """Leaves a trace when it is unpickled."""

    opened = False

    def __reduce__(self) -> Any:
        return setattr, (Poison, "opened", True)


def test_nothing_else_in_a_text_is_unpickled() -> None:
    seal, parcel_ = Seal(), base64.b64encode(pickle.dumps(Poison())).decode()
    genuine = str(seal.sealed(raised(KeyError("k"))))
    code = genuine.rpartition("[deepdist:")[2].partition(":")[0]
    for forged in [
        f"[deepdist:{parcel_}]",
        f"[deepdist:{'0' * 64}:{parcel_}]",
        f"[deepdist:{code}:{parcel_}]",
        f"[deepdist:{code}:]",
        f"[deepdist:{code}:A]",
        genuine[:-2],
        str(Seal().sealed(raised(KeyError("of another training")))),
        "",
        "Job 3 cancelled",
    ]:
        assert seal.told(forged) is None, forged
        assert type(seal.told(f"{genuine}\n{forged}")) is KeyError, "the genuine one is found beside it"
    assert not Poison.opened


# ------------------------------------------------------------------------------------------------------- source lines

OPENER = """
import sys
from p2p import parcel
from p2p.worker.errors import PartitionError

values = parcel.loads(sys.stdin.buffer.read())
for value in values:
    try:
        value()
    except BaseException as error:
        print(PartitionError.of(error, 0, 0))
"""


def told_elsewhere(*functions: Any) -> str:
    """What another process says of the errors of these functions, after they have travelled."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", OPENER],
        input=parcel.dumps(functions),
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    return done.stdout.decode()


PROGRAM = """
import functools

def plain():
    raise ValueError("plain")

mapped = lambda: 1 / 0  # a lambda

def outer(x):
    def nested():
        return [
            x[key]
            for key in ["missing"]
        ]
    return nested

closure = outer({})

class Model:
    def step(self):
        raise KeyError("step")
    @staticmethod
    def still():
        raise KeyError("still")
    @property
    def rate(self):
        raise KeyError("rate")
    def __call__(self):
        return self.rate

def decorated(function):
    @functools.wraps(function)
    def wrapper():
        return function()
    return wrapper

@decorated
def inner():
    raise ValueError("inner")
"""
PLACES = [
    (number, line.strip())
    for number, line in enumerate(PROGRAM.splitlines(), 1)
    if "raise" in line or "1 / 0" in line or "x[key]" in line
]


def functions_of(space: dict[str, Any]) -> list[Any]:
    model = space["Model"]()
    return [space["plain"], space["mapped"], space["closure"], model.step, model.still, model, space["inner"]]


def test_lines_of_a_program_are_shown_where_its_file_is_not(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(PROGRAM, str(file), "exec"), space)
    functions = functions_of(space)
    sent = parcel.dumps(functions)
    file.unlink()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", OPENER], input=sent, env=environment, stdout=subprocess.PIPE, check=True
    )
    for line, text in PLACES:
        assert f'File "{file}", line {line}, in ' in done.stdout.decode()
        assert f"    {text}\n" in done.stdout.decode()


def test_lines_of_a_notebook_s_cell_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "<ipython-input-3-0123456789ab>"
    monkeypatch.setitem(linecache.cache, name, (len(PROGRAM), None, PROGRAM.splitlines(True), name))
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(PROGRAM, name, "exec"), space)
    said = told_elsewhere(*functions_of(space))
    for line, text in PLACES:
        assert f'File "{name}", line {line}, in ' in said
        assert f"    {text}\n" in said


def test_a_file_of_that_name_with_other_lines_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(PROGRAM, str(file), "exec"), space)
    sent = parcel.dumps([space["plain"]])
    file.write_text("# another program\n" * 50)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", OPENER], input=sent, env=environment, stdout=subprocess.PIPE, check=True
    )
    assert 'raise ValueError("plain")' in done.stdout.decode()
    assert "another program" not in done.stdout.decode()


def test_lines_of_a_second_parcel_do_not_hide_those_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "<ipython-input-4-0123456789ab>"
    entry = (len(PROGRAM), None, PROGRAM.splitlines(True), name)
    linecache.cache[name] = entry
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(PROGRAM, name, "exec"), space)
    parcels = [parcel.dumps(space["plain"]), parcel.dumps(space["inner"])]
    del linecache.cache[name]
    first, second = map(parcel.loads, parcels)
    for function, text in [(first, 'raise ValueError("plain")'), (second, 'raise ValueError("inner")')]:
        with pytest.raises(ValueError, match=r"plain|inner") as caught:
            function()
        assert text in str(PartitionError.of(caught.value, 0, 0))


def test_functions_of_modules_are_sent_by_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_alone.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(tmp_path)
    import mine_alone  # type: ignore[import-not-found]

    assert len(parcel.dumps(mine_alone.plain)) < 200
    assert 'raise ValueError("plain")' in told_elsewhere(mine_alone.plain)


def test_a_function_without_source_travels_as_well() -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("def made():\n    raise ValueError('made')\n", space)
    said = told_elsewhere(space["made"])
    assert 'File "<string>", line 2, in made' in said
    assert "ValueError: made" in said


def test_half_a_character_in_an_error_can_be_written_to_any_log() -> None:
    error = ValueError("cannot read " + os.fsdecode(b"caf\xe9.txt"))
    wrapped = PartitionError.of(error, 0, 1)
    str(wrapped).encode()
    assert "caf\\udce9.txt" in str(wrapped)
    assert told(wrapped.pickled).args == error.args
