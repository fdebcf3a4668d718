"""Where checkpoints lie: a folder, or a URL that fsspec knows. Files are written whole, under names that are new.

folder   a temporary name -> fsync -> rename -> fsync of the folder
URL      written at once: whoever reads looks for manifests, which come last, and compares checksums
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from typing import Any, Protocol

from gossip.arrays import Bytes
from gossip.errors import UsageError

BLOCK_BYTES = 4 << 20
"""Of one write, and of one read."""
TEMPORARY = ".part"
"""The end of names of files that are being written."""


class Store(Protocol):
    """What checkpoints need of the place where they lie. Errors are those of the system, as `OSError`, or fsspec's."""

    def names(self) -> list[str]:
        """Of all files; none if there is no such place."""
        ...

    def write(self, name: str, blocks: Iterable[Bytes]) -> int:
        """A new file, whole or not at all; returns its bytes."""
        ...

    def read(self, name: str) -> bytes:
        """A whole file."""
        ...

    def remove(self, name: str) -> None:
        """A file that may be gone already."""
        ...


class Folder:
    """A folder of this machine, or of a file system that is mounted."""

    def __init__(self, path: str) -> None:
        self._path = path

    def names(self) -> list[str]:
        try:
            return os.listdir(self._path)
        except FileNotFoundError:
            return []

    def write(self, name: str, blocks: Iterable[Bytes]) -> int:
        os.makedirs(self._path, exist_ok=True)
        temporary = os.path.join(self._path, f"{name}.{secrets.token_hex(4)}{TEMPORARY}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        total = 0
        try:
            try:
                for block in blocks:
                    total += self._put(descriptor, block)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, os.path.join(self._path, name))
        except BaseException:
            self.remove(os.path.basename(temporary))
            raise
        try:
            self._sync()
        except OSError:
            self.remove(name)  # it may not outlast a loss of power, so it is none
            raise
        return total

    def read(self, name: str) -> bytes:
        with open(os.path.join(self._path, name), "rb") as file:
            return file.read()

    def remove(self, name: str) -> None:
        try:
            os.unlink(os.path.join(self._path, name))
        except OSError:
            pass  # it is gone, or will be looked at again

    def _put(self, descriptor: int, block: Bytes) -> int:
        view, written = memoryview(block).cast("B"), 0
        while written < len(view):
            written += os.write(descriptor, view[written : written + BLOCK_BYTES])
        return written

    def _sync(self) -> None:
        """The new name outlasts a loss of power."""
        folder = os.open(self._path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Remote:
    """A place that fsspec knows, such as `s3://bucket/folder` or `memory://folder`."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs  # only where there is a URL: it takes 50 ms

        try:
            files, self._path = url_to_fs(url)
        except ImportError as error:
            raise UsageError(
                f"a checkpoint at {url} needs a package that is not installed ({error}): install it, or give a folder"
            ) from None
        except (ValueError, TypeError, OSError) as error:
            raise UsageError(f"a checkpoint at {url}, which fsspec does not open: {error}") from None
        self._files: Any = files

    def names(self) -> list[str]:
        self._files.invalidate_cache()
        try:
            return [str(path).rpartition("/")[2] for path in self._files.ls(self._path, detail=False)]
        except FileNotFoundError:
            return []

    def write(self, name: str, blocks: Iterable[Bytes]) -> int:
        self._files.makedirs(self._path, exist_ok=True)
        total = 0
        with self._files.open(f"{self._path}/{name}", "wb") as file:
            for block in blocks:
                total += file.write(block)
        return total

    def read(self, name: str) -> bytes:
        return bytes(self._files.cat_file(f"{self._path}/{name}"))

    def remove(self, name: str) -> None:
        try:
            self._files.rm_file(f"{self._path}/{name}")
        except FileNotFoundError:
            pass


def store_at(path: str) -> Store:
    """The place behind a path or URL; `UsageError` where what it needs is not installed."""
    return Remote(path) if "://" in path else Folder(path)
