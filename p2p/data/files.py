"""Files by URL: found and looked at in the driver program, opened where a partition of them is read.

A file is named in messages as the user named it. Only its size and its first bytes are asked for beforehand. Whether it
is gzipped its first bytes say, and not its name.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from gossip.errors import UsageError

HEAD_BYTES = 6
"""As many as the longest of `OTHERS` has."""
BUFFER_BYTES = 1 << 18
GZIP = b"\x1f\x8b"
OTHERS = {
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ\0": "an xz archive",
    b"(\xb5/\xfd": "compressed by Zstandard",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet file",
    b"\x93NUMPY": "an array of numpy",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""What is read by none of the readers, by its first bytes."""
BROKEN = (EOFError, gzip.BadGzipFile, zlib.error)
"""What reading a gzip file raises that is cut short or spoiled."""

Urls = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class File:
    """A file that was found; it travels to the workers, with its file system and the options of that."""

    name: str
    """For messages."""
    path: str
    """As its file system has it."""
    system: Any
    """An `AbstractFileSystem` of fsspec."""
    size: int
    """In bytes, as it was found; of a gzip file those of the archive."""
    gzipped: bool

    @property
    def likeness(self) -> str:
        """Its own name, without those of folders, and its size."""
        return f"{self.path.rpartition('/')[2]} {self.size}"

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """Its bytes, decompressed.

        Raises:
            UsageError: it is gone, may not be read, or is of another size than when it was found.
        """
        try:
            raw = self.system.open(self.path, "rb")
        except FileNotFoundError:
            raise UsageError(
                f"{self.name!r} is not there, expected the file that the driver program found: workers must reach it "
                "by the same path"
            ) from None
        except (PermissionError, IsADirectoryError) as error:
            raise UsageError(f"{self.name!r} cannot be read, expected a file that may be: {error}") from None
        with raw, self._named():
            size = raw.seek(0, io.SEEK_END)
            if size != self.size:
                raise UsageError(
                    f"{self.name!r} has {size} bytes, expected {self.size} as the driver program found: files that are "
                    "trained on must not change"
                )
            raw.seek(0)
            with io.BufferedReader(raw, BUFFER_BYTES) as buffered:
                if not self.gzipped:
                    yield buffered
                    return
                with gzip.GzipFile(fileobj=buffered) as unpacked:
                    yield unpacked  # type: ignore[misc]  # it has all of IO[bytes] that is used here

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What the system says of the file does not always name it, as when a connection ends."""
        try:
            yield
        except OSError as error:
            error.add_note(f"when {self.name!r} was read")
            raise

    def is_broken(self, error: Exception, where: str) -> UsageError:
        """What to say of one of `BROKEN` that came up at `where`."""
        how = "is cut short" if isinstance(error, EOFError) else f"is spoiled ({error})"
        return UsageError(f"{self.name!r}, {where}: the gzip file {how}, expected a whole one: copy it again")


def find(urls: Urls, options: Mapping[str, Any] | None, kind: str) -> tuple[File, ...]:
    """The files that `urls` name, in their order, and within a glob by name.

    `kind` is what is expected to be in them. Of a glob, names that begin with a dot or an underscore are left out.

    Raises:
        UsageError: there is no such file, it is a folder, it is empty, it is named twice, or it cannot be one of `kind`
            by its first bytes; or the URL needs a package that is not installed.
    """
    named = [urls] if isinstance(urls, str | os.PathLike) else urls
    if not isinstance(named, list | tuple) or not named or not all(isinstance(u, str | os.PathLike) for u in named):
        raise UsageError(f"{urls!r:.80} is no path, expected a path, a URL, a glob, or a list of these")
    if options is not None and not isinstance(options, Mapping):
        raise UsageError(f"storage_options is a {type(options).__name__}, expected a dict, such as {{'anon': True}}")
    found: list[File] = []
    for url in named:
        found += _found(os.fspath(url), dict(options or {}), kind)
    names = [file.name for file in found]
    if twice := next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None:
        raise UsageError(f"{twice!r} is named twice, expected each file once: its rows would count twice")
    return tuple(found)


def _found(url: str, options: dict[str, Any], kind: str) -> list[File]:
    if not url:
        raise UsageError(f"a path is an empty text, expected that of {kind}")
    system, path = _system(url, options)
    try:
        infos = _infos(system, path)
    except PermissionError as error:
        raise UsageError(f"{url!r} cannot be read, expected {kind} that may be: {error}") from None
    except FileNotFoundError as error:
        why = "" if error.__cause__ is None else f": {error.__cause__}"
        raise UsageError(f"no file at {url!r}, expected {kind}, or a glob such as 'folder/*'{why}") from None
    except OSError as error:
        raise UsageError(f"{url!r} cannot be read, expected {kind}: {error}") from error
    single = list(infos) == [path]
    files = []
    heads = system.cat_ranges(list(infos), 0, HEAD_BYTES, on_error="return")
    for (place, info), head in zip(infos.items(), heads, strict=True):
        name = url if single else system.unstrip_protocol(place) if "://" in url else place
        if info["type"] == "directory":
            raise UsageError(
                f"{name!r} is a folder, expected {kind}: name its files by a glob, as {name.rstrip('/')}/*"
            )
        if isinstance(head, Exception):
            raise UsageError(f"{name!r} cannot be read, expected {kind}: {head}") from head
        if len(head) > HEAD_BYTES:
            raise UsageError(
                f"{name!r} is sent whole where {HEAD_BYTES} bytes were asked for, expected a server that sends parts: "
                f"have each worker download it, as by 'simplecache::{name}'"
            )
        files.append(_checked(File(name, place, system, _size(name, info), head.startswith(GZIP)), head, kind))
    return files


def _system(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(url, **options)
    except ImportError as error:
        raise UsageError(f"{url!r} needs a package that is not installed: {error}") from None
    except (ValueError, TypeError, OSError) as error:
        raise UsageError(f"{url!r} cannot be read with storage_options={options!r:.80}: {error}") from None
    return system, str(path)


def _infos(system: Any, path: str) -> dict[str, Any]:
    """What the file system knows of a file or of the files of a glob, by path."""
    try:
        return {path: system.info(path)}
    except FileNotFoundError:
        if not any(letter in path for letter in "*?["):
            raise
    found = system.glob(path, detail=True)
    visible = {place: info for place, info in found.items() if not place.rsplit("/", 1)[-1].startswith((".", "_"))}
    files = [place for place in sorted(visible) if visible[place]["type"] != "directory"]
    if not files:
        raise FileNotFoundError(path)
    return {place: visible[place] if visible[place].get("size") is not None else system.info(place) for place in files}


def _size(name: str, info: Mapping[str, Any]) -> int:
    if info.get("size") is None:
        raise UsageError(f"{name!r} is of a size that its server does not tell, expected one that it does: download it")
    return int(info["size"])


def _checked(file: File, head: bytes, kind: str) -> File:
    if not file.size:
        raise UsageError(f"{file.name!r} is empty, expected {kind}")
    for magic, other in OTHERS.items():
        if head.startswith(magic):
            raise UsageError(f"{file.name!r} is {other}, expected {kind}, plain or gzipped: convert it")
    if not file.gzipped and file.name.lower().endswith(".gz"):
        raise UsageError(
            f"{file.name!r} begins with {head[:2].hex()}, expected 1f8b, by which a gzip file begins: rename it"
        )
    return file
