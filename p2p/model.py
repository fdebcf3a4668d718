"""Models: anything that gives and takes named arrays.

    gensim Word2Vec          wv.vectors, syn1neg and/or syn1, and words_trained (by all peers, in all trainings)
    dict of arrays           its keys
    any other object         its ndarray attributes
    dicts, lists, tuples     their arrays of numbers, by path, such as layers.0.w
    and objects in these
    `parameters`             only those named

The named arrays are what is trained and what travels. Everything else of the model is its *skeleton*: it travels once,
and `p2p.watch` sees to it that nobody takes it for trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from gossip.arrays import DTYPES, Array, Arrays, Layout, check_finite, check_like
from gossip.errors import MismatchError, UsageError
from gossip.sparse import SUFFIXES
from gossip.wire import NAME_CHARACTERS_MAX
from p2p import nesting, skeleton
from p2p.nesting import Path
from p2p.watch import Watch

Light = Callable[[Any], Any]
"""Makes something smaller of a model, with the same named arrays, that a gradient can do with; None if it cannot."""


PLAIN = (np.ndarray, np.memmap)
"""Subclasses, such as numpy.matrix, calculate in ways of their own, and a worker would have a plain array."""


class Model:
    """A user's model, seen as named arrays. Names are keys, or attribute paths such as `wv.vectors`."""

    def __init__(self, model: Any, parameters: Sequence[str] | None = None) -> None:
        """Find the arrays. `UsageError` if there are none, or one cannot be trained here."""
        self.model = model
        if parameters is not None:
            names = list(parameters)
        elif _is_word2vec(model):
            names = list(_word2vec_names(model))
        else:
            names = sorted(map(nesting.text, _arrays_within(model)), key=str)
        self._is(names, [nesting.path_of(model, name) for name in names], _is_word2vec(model))
        if not self.names:
            raise UsageError(
                f"a model of type {type(model).__name__} has nothing to train: expected a dict of numpy arrays, an "
                "object with numpy attributes (name them with parameters=(...)), or a gensim Word2Vec"
            )
        for name in self.names:
            self._check_trainable(name)
        self._check_distinct()
        self.check_numbers()
        self.layout = Layout.of(self.arrays())

    def arrays(self) -> dict[str, Array]:
        """The model's own arrays (not copies)."""
        return {name: self._get(name) for name in self.names}

    def load(self, arrays: Arrays) -> None:
        """Copy `arrays` into the model, in place where it still has an array that fits.

        A worker's arrays are contiguous, as exchanges of rows need; the user's own lie as they did.
        """
        for name in self.names:
            source, target = arrays[name], self._find(name)
            if _fits(target, source) and target.flags.writeable and (target.flags.c_contiguous or not self._sent):
                np.copyto(target, source)
            else:
                self._set(name, np.array(source, order="C"))
        if self._sent:
            self._part(arrays)
        self._after_load(self.model)

    def _part(self, arrays: Arrays) -> None:
        """Give each name an array of its own again, where a gradient has bound two of them to one memory."""
        ends: list[tuple[int, int, str]] = []
        for name, array in self.arrays().items():
            start = int(array.__array_interface__["data"][0])
            ends.append((start, start + array.nbytes, name))
        ends.sort()
        if any(end > start for (_, end, _), (start, _, _) in pairwise(ends)):
            for name in self.names:
                self._set(name, np.array(arrays[name], order="C"))

    def check_numbers(self, trained: bool = False) -> None:
        """Raise `UsageError` if an array has a NaN or an infinity; `trained`: by the sum of what was learned."""
        try:
            check_finite(self.arrays())
        except MismatchError as error:
            if trained:
                raise UsageError(
                    f"the trained model's {error}: each update was of finite numbers, and their sum is not. A smaller "
                    "learning rate may help, or numbers of more bits"
                ) from None
            raise UsageError(
                f"the model's {error}; whatever is added to them, they stay so: give them numbers before it is trained"
            ) from None

    def check_unchanged(self) -> None:
        """Raise `UsageError` if an array has another shape or dtype than at the beginning.

        A number in the place of an array without dimensions, as of `b = b - g`, is made one again.
        """
        for spec in self.layout.specs:
            array = self._find(spec.name)
            if spec.shape == () and isinstance(array, int | float | np.number) and not isinstance(array, bool):
                array = np.array(array, spec.dtype if isinstance(array, int | float) else None)
                self._set(spec.name, array)
            if not isinstance(array, np.ndarray):
                raise UsageError(f"{spec.name!r} of the model is now a {type(array).__name__}, expected {spec}")
            try:
                check_like(spec.name, Layout.of({spec.name: array}).specs[0], spec)
            except MismatchError as error:
                raise UsageError(
                    f"the model changed in training: {error}; assign in place, as in w[...] = w - g"
                ) from None

    def skeleton(self, light: Light | None = None) -> bytes:
        """Everything but the arrays, as bytes for `from_skeleton`; by cloudpickle, between the user's own programs.

        With `light`, of what it makes of the model: `Gradient`.
        """
        arrays = self.arrays()
        if "words_trained" in arrays:
            self.model.words_trained_before = float(arrays["words_trained"][0])
        try:
            return skeleton.dumps((self.lightened(light), self._paths, self.layout, self.embeddings), arrays)
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"the model cannot be sent to the workers: {type(error).__name__}: {error}") from error

    @classmethod
    def from_skeleton(cls, sent: bytes) -> Model:
        """A model of the user's own type, or a light one, whose arrays are zeros until `load`."""
        self = cls.__new__(cls)
        arrays, (self.model, paths, self.layout, word2vec) = skeleton.loads(sent)
        self._is(paths.keys(), paths.values(), word2vec)
        self._sent = True
        for name, array in zip(self.names, arrays, strict=True):
            if not _fits(self._find(name), array):  # its class makes something else of what is sent
                self._set(name, array)
        return self

    def lightened(self, light: Light | None) -> Any:
        """The model, or what `light` makes of it."""
        lighter = light(self.model) if light is not None else None
        return self.model if lighter is None else lighter

    def _is(self, names: Iterable[str], paths: Iterable[Path], word2vec: bool) -> None:
        self._paths = dict(zip(names, paths, strict=True))
        self.names = tuple(self._paths)
        self._sent = False
        """It is a worker's, and no user holds on to its arrays."""
        self.watch = Watch()
        self._after_load: Callable[[Any], None] = _word2vec_loaded if word2vec else _nothing
        self.counters = frozenset({"words_trained"} if word2vec else ())
        """The arrays that count something: they are summed, whatever becomes of the others."""
        self.embeddings = word2vec

    # ------------------------------------------------------------------------------------------------- by name

    def _find(self, name: str) -> Any:
        return nesting.find(self.model, self._paths[name])

    def _get(self, name: str) -> Array:
        value: Array = self._find(name)
        return value

    def _set(self, name: str, array: Array) -> None:
        nesting.put(self.model, self._paths[name], array)

    def _check_distinct(self) -> None:
        """Two names for one array would add every update to it twice."""
        arrays = list(self.arrays().items())
        for index, (name, array) in enumerate(arrays):
            for other, another in arrays[:index]:
                if share_memory(array, another):
                    raise UsageError(
                        f"{other!r} and {name!r} of the model are the same memory, expected arrays of their own: "
                        "name one of them only, with parameters=(...), or copy it"
                    )

    def _check_trainable(self, name: str) -> None:
        characters_max = NAME_CHARACTERS_MAX - max(map(len, SUFFIXES))
        if not isinstance(name, str) or not 0 < len(name) <= characters_max:
            raise UsageError(
                f"an array of the model has the name {name!r:.40}, expected text of at most {characters_max} characters"
            )
        if name.endswith(SUFFIXES):
            raise UsageError(f"an array of the model has the name {name!r}, expected one without {', '.join(SUFFIXES)}")
        value = self._find(name)
        if not isinstance(value, np.ndarray):
            raise UsageError(f"{name!r} of the model is a {type(value).__name__}, expected a numpy array")
        if value.dtype.str not in DTYPES or value.dtype.kind == "b":
            raise UsageError(
                f"{name!r} of the model has dtype {value.dtype}, expected one of "
                f"{', '.join(np.dtype(dtype).name for dtype in DTYPES if dtype != '|b1')}"
            )
        if type(value) not in PLAIN:
            raise UsageError(
                f"{name!r} of the model is a {type(value).__name__}, expected a plain numpy array: numpy.asarray(...)"
            )
        if value.size and not np.may_share_memory(value, self._find(name)):
            raise UsageError(
                f"{name!r} of the model is another array each time it is asked for, expected one that stays: name the "
                "one behind it with parameters=(...)"
            )
        if value.flags.writeable and any(not s and n > 1 for s, n in zip(value.strides, value.shape, strict=True)):
            raise UsageError(
                f"{name!r} of the model repeats its numbers (strides of 0), expected a copy: np.array(...)"
            )
        if not value.flags.writeable:
            try:
                self._set(name, value)  # as `load` will have to, with another one
            except Exception as error:  # noqa: BLE001 - whatever a class of the user's says to that
                raise UsageError(
                    f"{name!r} of the model is read-only and cannot be replaced ({type(error).__name__}: {error}), "
                    "expected an array that can be written: copy it"
                ) from None


def _arrays_within(model: Any) -> list[Path]:
    """Where arrays are that can be trained: all of the model's own, and of the parts of it those of numbers.

    An array that is there again deeper down, or a view of it, is left out: it stays what it is.
    """
    found: dict[Path, Array] = {}
    if isinstance(model, list | tuple):
        return []
    for path, _, part in nesting.walk(model, within_others=False):
        if not isinstance(part, np.ndarray):
            continue
        inner = len(path) > 1
        if inner and (nesting.is_others(model) or not _is_trainable(part) or _is_part_of_any(part, found.values())):
            continue
        found[path] = part
    return list(found)


def _is_trainable(array: Array) -> bool:
    return type(array) in PLAIN and array.dtype.str in DTYPES and array.dtype.kind != "b"


def _is_part_of_any(array: Array, others: Iterable[Array]) -> bool:
    return any(
        array is other or (np.shares_memory(array, other) and skeleton.is_within(array, other)) for other in others
    )


def _fits(target: Any, source: Array) -> bool:
    return isinstance(target, np.ndarray) and target.shape == source.shape and target.dtype == source.dtype


def share_memory(one: Array, other: Array) -> bool:
    """Whether some number belongs to both."""
    return bool(np.may_share_memory(one, other) and np.shares_memory(one, other))


def _nothing(model: Any) -> None:
    """Most models need no care after their arrays changed."""


def _is_word2vec(model: Any) -> bool:
    """By name, so that whoever does not use gensim does not wait for its import."""
    return "Word2Vec" in _gensim_classes(model)


def _gensim_classes(model: Any) -> set[str]:
    return {c.__name__ for c in type(model).__mro__ if c.__module__.startswith("gensim.")}


def _word2vec_names(model: Any) -> tuple[str, ...]:
    """Both layers and the progress; `syn1neg` serves negative sampling, `syn1` hierarchical softmax."""
    if others := _gensim_classes(model) & {"FastText", "Doc2Vec"}:
        raise UsageError(
            f"a gensim {', '.join(others)} has arrays of its own beside those of Word2Vec: expected a Word2Vec, or "
            "parameters=(...) with the paths of all arrays to train"
        )
    if len(model.wv) == 0:
        raise UsageError("the Word2Vec model has no vocabulary: call build_vocab first")
    if not hasattr(model, "words_trained"):
        model.words_trained = np.zeros(1, np.float64)
    names = [
        "wv.vectors",
        *(name for name in ("syn1", "syn1neg") if isinstance(getattr(model, name, None), np.ndarray)),
    ]
    return tuple(sorted([*names, "words_trained"]))


def _word2vec_loaded(model: Any) -> None:
    model.wv.norms = None
