"""What somebody sees who asks `deepdist doctor` about a machine on which something is missing."""

import re
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest
import zmq
from click.testing import CliRunner, Result

from p2p.cli import doctor as module
from p2p.cli import main as commands
from p2p.cli.doctor import Finding, Verdict
from p2p.cli.doors import Door, State
from p2p.cli.main import main

PROJECT = Path(__file__).parents[3] / "pyproject.toml"


def executable(path: Path, says: str) -> str:
    """Write a program that ignores its arguments and prints one line to stderr, as `java -version` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}' >&2\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture(autouse=True)
def _healthy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which nothing is wrong; each test takes one thing away."""
    executable(tmp_path / "jdk" / "bin" / "java", 'openjdk version "17.0.15" 2025-04-15')
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    monkeypatch.setattr(module, "SHARED_MEMORY", tmp_path)  # a container's may be small
    monkeypatch.setattr(commands, "doors", lambda master, conf: [])  # those of other tests are theirs
    monkeypatch.setenv("COLUMNS", "400")  # wide enough that no row is broken over two lines


def doctor() -> Result:
    return CliRunner().invoke(main, ["doctor"])


@pytest.mark.sockets
def test_a_machine_with_everything_passes() -> None:
    result = doctor()
    assert result.exit_code == 0, result.output
    assert "Nothing is wrong." in result.output
    assert "17.0.15" in result.output
    assert "round trip over 127.0.0.1 in" in result.output
    for package in ("gensim", "networkx", "numpy", "pyspark", "pyzmq"):
        assert f"{package} " in result.output


def test_a_missing_java_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME")
    result = doctor()
    assert result.exit_code == 1
    assert "Wrong: Java." in result.output
    assert "apt-get install openjdk-17-jre-headless" in result.output


def test_java_home_counts_even_if_the_path_has_a_better_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    executable(tmp_path / "bin" / "java", 'openjdk version "21.0.2" 2024-01-16')
    executable(tmp_path / "jdk" / "bin" / "java", 'java version "1.8.0_392"')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    result = doctor()
    assert result.exit_code == 1
    assert "1.8.0_392, expected 17 or newer" in result.output
    assert "Unset JAVA_HOME" in result.output


@pytest.mark.parametrize("version", ["17", "21-ea", "25.0.1"])
def test_java_17_and_newer_will_do(version: str, tmp_path: Path) -> None:
    executable(tmp_path / "jdk" / "bin" / "java", f'openjdk version "{version}"')
    result = doctor()
    assert result.exit_code == 0, result.output
    assert version in result.output


def test_a_java_home_without_java_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nothing"))
    result = doctor()
    assert result.exit_code == 1
    assert "Wrong: Java." in result.output
    assert "No such file" in result.output


def test_a_package_that_does_not_import_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "networkx", None)  # importing it now raises ImportError
    result = doctor()
    assert result.exit_code == 1
    assert "Wrong: Packages." in result.output
    assert "pip install --force-reinstall networkx" in result.output


def test_workers_with_another_python_version_are_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYSPARK_PYTHON", executable(tmp_path / "python", "3.9"))
    result = doctor()
    assert result.exit_code == 1
    assert "is 3.9, expected {}.{}".format(*sys.version_info[:2]) in result.output
    assert f"export PYSPARK_PYTHON={sys.executable}" in result.output


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("missing", ["gossip p2p", "xxhash"])
def test_packages_that_workers_lack_are_wrong_whether_their_python_is_named_or_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: bool, missing: str
) -> None:
    python = executable(tmp_path / "bin" / "python3", "{}.{} {}".format(*sys.version_info[:2], missing))
    monkeypatch.setenv("PYSPARK_PYTHON", python)
    if not named:
        monkeypatch.delenv("PYSPARK_PYTHON")
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    result = doctor()
    assert result.exit_code == 1
    assert "Wrong: Worker Python." in result.output
    assert "Nothing is wrong" not in result.output
    assert f"{python} lacks {missing.replace(' ', ', ')}" in result.output
    assert f"export PYSPARK_PYTHON={sys.executable}" in result.output


def test_workers_that_would_run_a_python3_that_is_not_there_are_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PYSPARK_PYTHON")
    monkeypatch.setenv("PATH", str(tmp_path))
    result = doctor()
    assert result.exit_code == 1
    assert "Wrong: Worker Python." in result.output
    assert "workers run python3 from their PATH; it is not on this machine" in result.output


def test_a_worker_python_that_only_the_cluster_has_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSPARK_PYTHON", "./environment/bin/python")
    result = doctor()
    assert result.exit_code == 0
    assert "PYSPARK_PYTHON is ./environment/bin/python; it is not on this machine" in result.output
    assert "look at: Worker Python." in result.output
    assert "Nothing is wrong" not in result.output


@pytest.mark.parametrize(
    ("verdicts", "exit_code", "said"),
    [
        ((Verdict.FINE, Verdict.FINE), 0, "Nothing is wrong."),
        ((Verdict.FINE, Verdict.NOTE), 0, "Stops nothing that this machine can tell, but look at: second."),
        ((Verdict.WRONG, Verdict.FINE), 1, "Wrong: first."),
        ((Verdict.WRONG, Verdict.WRONG), 1, "Wrong: first, second."),
        (
            (Verdict.NOTE, Verdict.WRONG),
            1,
            "Wrong: second.\nStops nothing that this machine can tell, but look at: first.",
        ),
    ],
)
def test_the_last_line_and_the_exit_code_follow_from_the_findings(
    monkeypatch: pytest.MonkeyPatch, verdicts: tuple[Verdict, Verdict], exit_code: int, said: str
) -> None:
    findings = [
        Finding(name, verdict, "seen", "" if verdict is Verdict.FINE else "do this")
        for name, verdict in zip(("first", "second"), verdicts, strict=True)
    ]
    monkeypatch.setattr(module, "CHECKS", [lambda finding=finding: finding for finding in findings])
    result = doctor()
    assert result.exit_code == exit_code
    assert result.output.endswith(f"\n{said}\n")
    assert ("Nothing is wrong" in result.output) == (set(verdicts) == {Verdict.FINE})


def test_doors_are_told_a_line_each_and_an_open_one_is_nothing_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def doors(master: str | None, conf: dict[str, str]) -> list[Door]:
        asked.append((master, conf))
        return [Door(State.OPEN, "Private folder", "of \x1b[2J mallory [red]"), Door(State.GUARDED, "Port", "x" * 500)]

    monkeypatch.setattr(commands, "doors", doors)
    monkeypatch.setattr(module, "CHECKS", [])
    properties = tmp_path / "spark.conf"
    properties.write_text("# of the cluster\nspark.authenticate   true\nspark.ui.port=4041\n\n")
    options = ["--spark-properties", str(properties), "--spark-conf", "spark.ui.port = 4042", "--spark-master", "yarn"]
    result = CliRunner().invoke(main, ["doctor", *options])
    assert result.exit_code == 0, result.output
    assert asked == [("yarn", {"spark.authenticate": "true", "spark.ui.port": "4042"})]
    assert "open          Private folder: of \\x1b[2J mallory [red]\n" in result.output
    assert f"guarded       Port: {'x' * 500}\n" in result.output
    assert result.output.endswith("\nNothing is wrong.\n")


def test_a_setting_of_spark_without_a_value_is_refused() -> None:
    result = CliRunner().invoke(main, ["doctor", "--spark-conf", "spark.authenticate"])
    assert result.exit_code == 2
    assert "'spark.authenticate', expected NAME=VALUE" in result.output


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 14, 0)])
def test_a_python_that_the_project_does_not_take_is_wrong(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    finding = module.python_version()
    assert finding.verdict is Verdict.WRONG
    assert "expected 3.11 or newer, and older than 3.14" in finding.result


def test_no_shared_memory_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "SHARED_MEMORY", tmp_path / "nothing")
    result = doctor()
    assert result.exit_code == 0
    assert "replicas live in temporary files" in result.output
    assert "look at: Shared memory." in result.output
    assert "Nothing is wrong" not in result.output


def test_a_loopback_that_loses_messages_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq.Socket, "poll", lambda socket, timeout: 0)
    result = doctor()
    assert result.exit_code == 1
    assert "Wrong: ZeroMQ." in result.output


def test_a_temporary_folder_too_long_for_a_socket_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    result = doctor()
    assert result.exit_code == 1
    assert "Wrong: Temporary folder." in result.output
    assert "Set TMPDIR" in result.output


def test_the_version_is_that_of_the_project() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.exit_code == 0
    assert tomllib.loads(PROJECT.read_text())["project"]["version"] in result.output


def test_what_the_doctor_looks_for_is_what_the_project_requires() -> None:
    project = tomllib.loads(PROJECT.read_text())["project"]
    required = {re.split(r"[<>=]", requirement)[0] for requirement in project["dependencies"]}
    assert set(module.PACKAGES) | {"click"} == required
    assert project["requires-python"] == ">={}.{},<{}.{}".format(*module.PYTHON_MIN, *module.PYTHON_BELOW)
