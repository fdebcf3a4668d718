"""Errors of user code, on their way from a worker to the driver program.

    worker:  the user's exception -> PartitionError: words for logs | a pickle of the exception itself
    driver:  pickle -> the user's exception, with a note that says where it was raised: place, traceback, source line

Opening a pickle can run code, so it is opened only if it is known to come from a worker of the same training: over the
pipe of a worker process (`told`), or in the text of a failed Spark job under the seal of that training (`Seal`). In a
text there may be anything, such as lines of a data file that could not be parsed.
"""

from __future__ import annotations

import base64
import copyreg
import hashlib
import hmac
import io
import os
import pickle
import re
import secrets
import socket
import traceback
from typing import Any

import cloudpickle

PARCEL_BYTES_MAX = 1 << 20
"""An exception that holds more (an array, say) travels in words: Spark writes its text into every log, four times."""
TEXT_CHARACTERS_MAX = 1 << 16
"""Of the words of an exception, and of its traceback; what is longer is cut in the middle."""
SEALED = re.compile(r"\[deepdist:([0-9a-f]{64}):([A-Za-z0-9+/=]*)\]")


class PartitionError(Exception):
    """User code failed on a worker; the cause is its exception. The text is for logs."""

    pickled = b""
    """What `told` makes the user's exception of again."""

    @classmethod
    def of(cls, error: BaseException, epoch: int | None, partition: int) -> PartitionError:
        """Wrap `error`, saying where it happened; `epoch` is None where nothing is trained."""
        when = "" if epoch is None else f"epoch {epoch}, "
        where = f"partition {partition}, {when}host {socket.gethostname()}, process {os.getpid()}"
        try:
            trace = "".join(traceback.format_exception(error))
        except Exception:  # noqa: BLE001 - user exceptions fail in any way they like
            trace = "".join(traceback.format_tb(error.__traceback__)) + _words(error)
        trace = _cut(trace)
        # half a character, as in a file's name that is no UTF-8, would end Spark's worker when it writes the text
        wrapped = cls(f"{where}\n{trace}".encode(errors="backslashreplace").decode())
        wrapped.pickled = pickle.dumps((_cut(_words(error)), where, trace, *_packed(error)))
        wrapped.__cause__ = error
        return wrapped

    @property
    def original(self) -> Exception:
        """The user's exception, where it was raised in this process; one that would end it is told in words."""
        cause = self.__cause__
        return original(cause) if cause is not None else RuntimeError(str(self))


def told(pickled: bytes) -> Exception:
    """The user's exception that a `PartitionError` has pickled, with a note that says where it was raised.

    Where its class cannot be had here, and of one that would end this program (`SystemExit`), a `RuntimeError` says
    what it was.
    """
    words, where, trace, packed, left_out = pickle.loads(pickled)
    error = _unpacked(packed)
    if not isinstance(error, Exception):
        error = RuntimeError(words)
    if left_out:
        error.add_note(f"left behind, as it cannot be pickled: {left_out}")
    error.add_note(f"in {where}; there:\n{trace}")
    return error


class Seal:
    """A secret of one training: tells its own errors in a text from anything else that is there.

    The driver program makes it, and it travels with the job. It never shows up in a text itself.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def sealed(self, error: PartitionError) -> PartitionError:
        """The same error with the pickled one in its text."""
        pickled = base64.b64encode(error.pickled).decode()
        sealed = PartitionError(f"{error}[deepdist:{self._code(error.pickled)}:{pickled}]")
        sealed.pickled = error.pickled
        sealed.__cause__ = error.__cause__
        return sealed

    def told(self, text: str) -> Exception | None:
        """The last of the errors in `text` that came from this training's own workers; None if there is none."""
        for code, encoded in reversed(SEALED.findall(text)):
            try:
                pickled = base64.b64decode(encoded, validate=True)
            except ValueError:
                continue
            if hmac.compare_digest(code, self._code(pickled)):
                return told(pickled)
        return None

    def _code(self, pickled: bytes) -> str:
        return hmac.new(self._key, pickled, hashlib.sha256).hexdigest()


# ------------------------------------------------------------------------------------------------ an exception in bytes


def _packed(error: BaseException) -> tuple[bytes, str]:
    """(the exception in bytes, names of what had to be left out); empty if it can only be told in words."""
    if not isinstance(error, Exception):
        return b"", ""
    for pack in (_as_it_is, _as_far_as_it_goes):
        try:
            packed, left_out = pack(error)
            again = _unpacked(packed)
            if type(again) is type(error) and len(packed) <= PARCEL_BYTES_MAX:
                str(again)  # some can be pickled and not be read again
                return packed, left_out
        except Exception:  # noqa: BLE001 - as above
            pass
    return b"", ""


def _unpacked(packed: bytes) -> BaseException | None:
    """The exception, or None: also where its class is not to be found in this process."""
    try:
        error = pickle.loads(packed) if packed else None
    except Exception:  # noqa: BLE001 - as above
        return None
    return error if isinstance(error, BaseException) else None


def _as_it_is(error: Exception) -> tuple[bytes, str]:
    file = io.BytesIO()
    _Pickler(file).dump(error)
    return file.getvalue(), ""


def _as_far_as_it_goes(error: Exception) -> tuple[bytes, str]:
    """Class, arguments and attributes; arguments that cannot be pickled as text, such attributes not at all."""
    left_out = {name: _pickles(value) for name, value in vars(error).items()}
    state = {name: value for name, value in vars(error).items() if not left_out[name]}
    arguments = tuple(argument if not _pickles(argument) else repr(argument) for argument in error.args)
    words = ", ".join(f"{name} ({why})" for name, why in left_out.items() if why)
    return cloudpickle.dumps(_Rebuilt((_rebuild, (type(error), arguments, state)))), words


def _pickles(value: Any) -> str:
    """Why `value` cannot be pickled; empty if it can."""
    try:
        pickle.loads(cloudpickle.dumps(value))
    except Exception as why:  # noqa: BLE001 - as above
        return f"{type(why).__name__}: {why}"
    return ""


class _Rebuilt:
    """Pickled as what it is told."""

    def __init__(self, reduced: tuple[Any, ...]) -> None:
        self._reduced = reduced

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reduced


class _Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]
    """Pickles exceptions such that their own `__init__` is not called again: it may want other arguments than those
    that it gave to its base, or make a second text of the first one."""

    def reducer_override(self, value: Any) -> Any:
        """Called by pickle for everything that is not one of its own few types."""
        kind = type(value)
        if isinstance(value, BaseException) and _is_plain(kind):
            reduced: Any = value.__reduce__()
            return _rebuild, (kind, reduced[1], reduced[2] if len(reduced) > 2 else None)
        return super().reducer_override(value)


def _is_plain(kind: type[BaseException]) -> bool:
    """It is pickled as every exception is, and does not say how itself."""
    own = _built_in(kind)
    names = ("__reduce__", "__reduce_ex__", "__setstate__", "__new__")
    return kind not in copyreg.dispatch_table and all(getattr(kind, name) is getattr(own, name) for name in names)


def _built_in(kind: type[BaseException]) -> type[BaseException]:
    """The exception of Python's own that `kind` is laid out as."""
    while kind.__module__ != "builtins":
        base = kind.__base__
        assert base is not None
        kind = base
    return kind


def _rebuild(kind: type[BaseException], arguments: tuple[Any, ...], state: dict[str, Any] | None) -> BaseException:
    """An exception by what its class inherits from Python's own."""
    own = _built_in(kind)
    error = own.__new__(kind, *arguments)
    own.__init__(error, *arguments)
    if state:
        error.__setstate__(state)
    return error


def original(error: BaseException) -> Exception:
    """The error itself; of one that would end this program (`SystemExit`), a `RuntimeError` that says what it was."""
    if isinstance(error, Exception):
        return error
    told = RuntimeError(_words(error))
    told.__cause__ = error
    for note in getattr(error, "__notes__", ()):
        told.add_note(note)
    return told


def _words(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - as above
        return f"{type(error).__name__}, whose text cannot be made"


def _cut(text: str) -> str:
    half = TEXT_CHARACTERS_MAX // 2
    return (
        text if len(text) <= 2 * half else f"{text[:half]}\n... {len(text) - 2 * half} characters ...\n{text[-half:]}"
    )
