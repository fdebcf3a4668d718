"""Images of digits: MNIST from a folder, or digits that are drawn here.

`drawn` needs nothing but numpy: numerals of 7 x 5 points on a field of 9 x 9, moved, faded and full of noise, drawn
from a seed. They are no benchmark; they are ten classes that a linear model tells apart not quite.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import urllib.request
from pathlib import Path

import numpy as np

from gossip.arrays import Array
from gossip.errors import UsageError

NUMERALS = """
.###. ..#.. .###. #####  ...#. ##### .###. ##### .###. .###.
#...# .##.. #...# ...#.  ..##. #.... #.... ....# #...# #...#
#...# ..#.. ....# ..#..  .#.#. ####. #.... ...#. #...# #...#
#...# ..#.. ..##. ...#.  #..#. ....# ####. ..#.. .###. .####
#...# ..#.. .#... ....#  ##### ....# #...# ..#.. #...# ....#
#...# ..#.. #.... #...#  ...#. #...# #...# ..#.. #...# ....#
.###. .###. ##### .###.  ...#. .###. .###. ..#.. .###. .###.
"""
FIELD = 9
"""Points of a side of a drawn image."""

MNIST_ADDRESS = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST = {
    "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
}
"""File -> SHA-256 of its content when unpacked (packed, it depends on who packed it)."""
IDX_UBYTE = 0x08
"""The third byte of an idx file of unsigned bytes; the fourth is the number of dimensions."""


def drawn(rows: int, seed: int) -> tuple[Array, Array]:
    """(images (rows, 81) from 0 to 1, labels (rows,)): as many of each digit, as far as it divides."""
    random = np.random.default_rng([seed, 7])
    lines = [line.split() for line in NUMERALS.split("\n") if line]
    glyphs = np.array([[[point == "#" for point in line[digit]] for line in lines] for digit in range(10)], float)
    labels = random.permutation(np.arange(rows) % 10)
    images = np.zeros((rows, FIELD, FIELD))
    height, width = glyphs.shape[1:]
    down = random.integers(0, FIELD - height + 1, rows)
    right = random.integers(1, FIELD - width, rows)
    for row in range(rows):
        ink = glyphs[labels[row]] * (random.random((height, width)) > 0.08) * random.uniform(0.5, 1.0)
        images[row, down[row] : down[row] + height, right[row] : right[row] + width] = ink
    images += random.normal(0.0, 0.15, images.shape)
    return np.clip(images, 0.0, 1.0).reshape(rows, -1), labels


def mnist(folder: Path, rows: int, seed: int) -> tuple[Array, Array]:
    """`rows` of MNIST's training images, (rows, 784) from 0 to 1, and their labels, drawn without replacement.

    Any pair of idx files with MNIST's names will do: the content is not compared.

    Raises:
        UsageError: the files are missing or are not idx files; or hold fewer rows.
    """
    missing = [name for name in MNIST if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"{folder} lacks {' and '.join(missing)}; --download gets them from {MNIST_ADDRESS}")
    images, labels = (read_idx(folder / name) for name in MNIST)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise UsageError(f"{folder}: images {images.shape} and labels {labels.shape}, expected (n, 28, 28) and (n,)")
    if len(images) < rows:
        raise UsageError(f"{folder} holds {len(images)} images, expected at least {rows}; ask for fewer with --rows")
    chosen = np.sort(np.random.default_rng([seed, 7]).permutation(len(images))[:rows])
    return images[chosen].reshape(rows, -1) / 255.0, labels[chosen].astype(np.int64)


def read_idx(path: Path) -> Array:
    """The array in a packed idx file of unsigned bytes.

    Raises:
        UsageError: it is not one.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise UsageError(f"{path} cannot be unpacked: {error}") from None
    if len(content) < 4 or content[:3] != bytes([0, 0, IDX_UBYTE]):
        raise UsageError(f"{path} is not an idx file of unsigned bytes: it begins with {content[:4].hex()}")
    dimensions = content[3]
    header = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:header]) if len(content) >= header else (0,)
    if len(content) - header != int(np.prod(shape, dtype=np.int64)):
        raise UsageError(f"{path}: {len(content) - header} bytes of data, expected shape {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def download_mnist(folder: Path, address: str = MNIST_ADDRESS) -> None:
    """Get what `folder` lacks of MNIST's training images from `address`, and check it.

    Raises:
        UsageError: it cannot be reached, or sends something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, digest in MNIST.items():
        if (folder / name).is_file():
            continue
        try:
            with urllib.request.urlopen(address + name, timeout=60) as answer:
                packed = answer.read()
            found = hashlib.sha256(gzip.decompress(packed)).hexdigest()
        except (OSError, EOFError) as error:
            raise UsageError(f"{address}{name} cannot be had: {error}; put the file into {folder} yourself") from None
        if found != digest:
            raise UsageError(f"{address}{name} unpacks to SHA-256 {found}, expected {digest}")
        beside = folder / f".{name}.new"
        beside.write_bytes(packed)
        os.replace(beside, folder / name)
