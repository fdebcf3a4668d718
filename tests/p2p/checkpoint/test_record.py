"""The files of a checkpoint: what is written is read again, and what is not as it was written is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load

from gossip.arrays import DTYPES
from gossip.errors import UsageError
from p2p import DeepDist, DeepDistWarning
from p2p.checkpoint import reading, record
from p2p.checkpoint.record import DamagedError

executed: list[str] = []


class Evil:
    """Tells when it is unpickled."""

    def __reduce__(self) -> Any:
        return executed.append, ("it ran",)


def sealed(body: Any) -> bytes:
    """A manifest with the right checksum."""
    text = msgspec.json.encode(body)
    return b'{"sha256":"%s","checkpoint":%s}' % (hashlib.sha256(text).hexdigest().encode(), text)


def body_of(manifest: Path) -> Any:
    return json.loads(manifest.read_bytes())["checkpoint"]


def newest(folder: Path) -> Path:
    return sorted(folder.glob("*.json"))[-1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_every_dtype_come_back_as_they_were_and_others_can_read_them(dtype: str) -> None:
    chance = np.random.default_rng(3)
    arrays = {
        "w": (chance.random((3, 5)) * 9).astype(dtype),
        "scalar": np.array(1, dtype),
        "none": np.zeros((0, 4), dtype),
        "every other": (chance.random(9) * 9).astype(dtype)[::2],
    }
    data = b"".join(bytes(block) for block in record.tensors(arrays))
    for found in (record.read_tensors(data), load(data)):
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            assert (found[name] == array).all()


def test_a_manifest_comes_back_as_it_was(written: Path) -> None:
    for manifest in written.glob("*.json"):
        text = manifest.read_bytes()
        assert record.encoded(record.decoded(text)) == text


@pytest.mark.parametrize(("was", "now"), [('"count":24', '"count":23'), ('"seed":0', '"seed":1'), ('"seen"', '"sean"')])
def test_a_manifest_that_is_sound_but_not_as_it_was_written_is_refused(written: Path, was: str, now: str) -> None:
    text = newest(written).read_bytes()
    assert was.encode() in text
    with pytest.raises(DamagedError, match="not as it was written: the checksum differs"):
        record.decoded(text.replace(was.encode(), now.encode()))


def test_nothing_is_pickled_of_a_plain_model(written: Path) -> None:
    assert not list(written.glob("*.pickle"))
    assert body_of(newest(written))["pickled"] is None


def damaged(folder: Path, chance: random.Random) -> str:
    """Spoil the newest checkpoint in some way; returns which."""
    manifest = newest(folder)
    body = body_of(manifest)
    tensors = folder / body["tensors"]["name"]
    victim = chance.choice([manifest, tensors])
    content = bytearray(victim.read_bytes())

    def forged(data: bytes) -> None:
        tensors.write_bytes(data)
        body["tensors"] |= {"nbytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    way = chance.choice(["cut", "flipped", "gone", "other model", "version", "foreign", "pickle", "forged", "junk"])
    match way:
        case "cut":
            victim.write_bytes(content[: chance.randrange(len(content))])
        case "flipped":
            for at in chance.sample(range(len(content)), chance.randint(1, 3)):
                content[at] ^= chance.randint(1, 255)
            victim.write_bytes(content)
        case "gone":
            tensors.unlink()
        case "other model":
            other = {chance.choice(["seen", "w"]): np.zeros(chance.randint(0, 23), chance.choice(["f4", "f8"]))}
            forged(b"".join(bytes(block) for block in record.tensors(other)))
            manifest.write_bytes(sealed(body))
        case "version":
            body[chance.choice(["version", "format"])] = chance.choice([0, 2, 99, "another format"])
            manifest.write_bytes(sealed(body))
        case "foreign":
            foreign = [b"{}", b"[]", b"null", b"", b"[" * 100_000, sealed({}), sealed([]), b"\x80\x04N.", b'{"a":1}']
            manifest.write_bytes(chance.choice(foreign))
        case "pickle":
            if chance.random() < 0.5:
                forged(pickle.dumps(Evil()))
                manifest.write_bytes(sealed(body))
            else:
                manifest.write_bytes(pickle.dumps(Evil()))
        case "forged":
            place = chance.choice(["units", "arrays", "tensors", "training", "progress", "session"])
            wrong: list[Any] = [None, -1, "x", [], {}, {"closed": 0, "count": 0, "chunks": [[0, 0, [[3, 1, 1]]]]}]
            body[place] = chance.choice(wrong) if place != "arrays" else [{"name": "w", "dtype": "<f8", "shape": [3]}]
            if place == "tensors":
                body[place] = {"name": "../../etc/passwd", "nbytes": 1, "sha256": "0" * 64}
            manifest.write_bytes(sealed(body))
        case "junk":
            head = record.HEAD.pack(chance.choice([0, 1, 1 << 20, 1 << 62])) + chance.randbytes(chance.randint(0, 99))
            forged(head)
            manifest.write_bytes(sealed(body))
    return f"{way} in {victim.name}"


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_two_hundred_damaged_checkpoints_are_refused_with_a_sentence_or_the_one_before_is_taken(
    written: Path, tmp_path: Path
) -> None:
    two = sorted(written.glob("*.json"))[-2:]
    names = {name for each in two for name in (each.name, body_of(each)["tensors"]["name"])}
    for seed in range(200):
        chance = random.Random(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        for name in names:
            shutil.copy(written / name, folder)
        way = f"seed {seed}: {damaged(folder, chance)}"
        with pytest.warns(DeepDistWarning, match=f"{two[0].name} is taken instead"):
            found = reading.read(str(folder))
        assert found.record.number == int(two[0].stem.rpartition("-")[2]), way
        for name in (two[0].name, body_of(two[0])["tensors"]["name"]):
            (folder / name).unlink()
        with pytest.raises(UsageError, match="has no checkpoint that is whole: checkpoint-"):
            DeepDist.resume(folder)
        with pytest.raises(UsageError, match="cannot be used as a checkpoint"):
            reading.read(str(folder / two[1].name))
    assert executed == []


@pytest.mark.parametrize(
    "runs", [[[3, 1, 1]], [[0, 4, 3]], [[0, 1, 0]], [[0, 3, 1], [3, 4, 1]], [[1, 1, 2]], []], ids=str
)
def test_units_that_are_no_chunks_that_go_up_are_refused(written: Path, runs: Any) -> None:
    body = body_of(newest(written))
    body["units"] = {"closed": 0, "count": 1, "chunks": [[0, 0, runs]]}
    with pytest.raises(DamagedError, match=r"chunks that go up|out of order"):
        record.decoded(sealed(body))


@pytest.mark.parametrize("where", ["nothing", "empty"])
def test_a_folder_without_checkpoints_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has no checkpoint, expected the folder or URL that was given to train"):
        DeepDist.resume(tmp_path / where)
