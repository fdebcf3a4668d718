"""`deepdist inspect`: what it prints of a checkpoint, and that it opens no pickle."""

from __future__ import annotations

import shutil
from pathlib import Path

from click.testing import CliRunner

from p2p.cli.main import main


def test_a_checkpoint_is_told(written: Path) -> None:
    newest = sorted(written.glob("*.json"))[-1]
    result = CliRunner().invoke(main, ["inspect", str(written)])
    assert result.exit_code == 0, result.output
    for text in (
        f"checkpoint {int(newest.stem[-6:])} at {written}",
        "seen",
        "f8",
        "24",
        "model builtins.dict, as JSON",
        "mode=p2p discipline=replicate seed=0",
        "2 epochs of 6 partitions, in chunks of 2 rows",
        "24 units of work, 12 of 12 partitions",
        "ended: done",
        "sha256",
    ):
        assert text in result.output
    first = CliRunner().invoke(main, ["inspect", str(written / "checkpoint-000001.json")])
    assert "0 units of work, 0 of 12 partitions" in first.output
    assert "it goes on" in first.output


def test_a_damaged_checkpoint_is_told_in_a_sentence(written: Path, tmp_path: Path) -> None:
    shutil.copy(written / "checkpoint-000001.json", tmp_path)
    result = CliRunner().invoke(main, ["inspect", str(tmp_path)])
    assert result.exit_code == 1
    assert "has no checkpoint that is whole: checkpoint-000001.json: its file checkpoint-000001-" in result.output
    assert "is gone" in result.output
