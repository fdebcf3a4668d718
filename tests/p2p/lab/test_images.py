"""Where images come from: idx files, and digits that are drawn."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p.lab.workloads import images


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def folder_of(tmp_path: Path, rows: int) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 28, 28))
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", pixels)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.arange(rows) % 10)
    return tmp_path


def test_mnist_is_read_from_a_folder(tmp_path: Path) -> None:
    pixels, labels = images.mnist(folder_of(tmp_path, 30), rows=20, seed=1)
    assert pixels.shape == (20, 784)
    assert (pixels.min(), pixels.max()) == (0.0, 1.0)
    assert set(labels.tolist()) <= set(range(10))
    again, _ = images.mnist(tmp_path, rows=20, seed=1)
    np.testing.assert_array_equal(pixels, again)


def test_files_that_are_missing_broken_or_short_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lacks train-images.*--download"):
        images.mnist(tmp_path, rows=1, seed=0)
    with pytest.raises(UsageError, match="holds 30 images, expected at least 31"):
        images.mnist(folder_of(tmp_path, 30), rows=31, seed=0)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(b"no gzip")
    with pytest.raises(UsageError, match="cannot be unpacked"):
        images.read_idx(file)
    file.write_bytes(gzip.compress(b"\0\0\x0d\1"))
    with pytest.raises(UsageError, match="not an idx file of unsigned bytes"):
        images.read_idx(file)
    file.write_bytes(gzip.compress(b"\0\0\x08\1\0\0\0\5abc"))
    with pytest.raises(UsageError, match="3 bytes of data, expected shape"):
        images.read_idx(file)


def test_a_download_is_checked_and_not_kept_if_it_is_something_else(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    folder_of(there, 10)
    with pytest.raises(UsageError, match=r"unpacks to SHA-256 .*, expected ba891046"):
        images.download_mnist(here, address=there.as_uri() + "/")
    assert list(here.iterdir()) == []
    with pytest.raises(UsageError, match=r"cannot be had.*put the file into"):
        images.download_mnist(here, address=(tmp_path / "nowhere").as_uri() + "/")


def test_a_download_is_kept_where_it_is_what_it_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    folder_of(there, 10)
    digests = {
        name: images.hashlib.sha256(gzip.decompress((there / name).read_bytes())).hexdigest() for name in images.MNIST
    }
    monkeypatch.setattr(images, "MNIST", digests)
    images.download_mnist(here, address=there.as_uri() + "/")
    assert images.mnist(here, rows=10, seed=0)[0].shape == (10, 784)
    images.download_mnist(here, address="file:///nowhere/")  # nothing is lacking


def test_drawn_digits_repeat_and_can_be_told_apart() -> None:
    pixels, labels = images.drawn(200, seed=3)
    np.testing.assert_array_equal(pixels, images.drawn(200, seed=3)[0])
    assert not np.array_equal(pixels, images.drawn(200, seed=4)[0])
    assert pixels.shape == (200, 81)
    assert 0.0 <= pixels.min() <= pixels.max() <= 1.0
    np.testing.assert_array_equal(np.bincount(labels), 20)
    # of the mean images of other draws, the nearest is right far more often than one time in ten
    known, names = images.drawn(1000, seed=5)
    centers = np.array([known[names == digit].mean(axis=0) for digit in range(10)])
    nearest = np.argmin(np.sum((pixels[:, None] - centers) ** 2, axis=2), axis=1)
    assert np.mean(nearest == labels) > 0.4
