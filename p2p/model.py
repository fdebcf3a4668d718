"""Models: anything that gives and takes named arrays.

    gensim Word2Vec          wv.vectors, syn1neg and/or syn1, and words_trained (by all peers, in all trainings)
    dict of arrays           its keys
    any other object         its ndarray attributes, or those named in `parameters`

The named arrays are what is trained and what travels. Everything else of the model is its *skeleton*: it travels once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gossip.arrays import DTYPES, Array, Arrays, Layout, check_like
from gossip.errors import MismatchError, UsageError
from gossip.sparse import SUFFIXES
from gossip.wire import NAME_CHARACTERS_MAX
from p2p import parcel

Light = Callable[[Any], Any]
"""Makes something smaller of a model, with the same named arrays, that a gradient can do with; None if it cannot."""


class Model:
    """A user's model, seen as named arrays. Names are keys, or attribute paths such as `wv.vectors`."""

    def __init__(self, model: Any, parameters: Sequence[str] | None = None) -> None:
        """Find the arrays. `UsageError` if there are none, or one cannot be trained here."""
        self.model = model
        if parameters is not None:
            self.names = tuple(parameters)
        elif isinstance(model, Mapping):
            self.names = tuple(sorted((k for k, v in model.items() if isinstance(v, np.ndarray)), key=str))
        elif _is_word2vec(model):
            self.names = _word2vec_names(model)
        else:
            attributes = getattr(model, "__dict__", {})
            self.names = tuple(sorted(key for key, value in attributes.items() if isinstance(value, np.ndarray)))
        self._is(_is_word2vec(model))
        if not self.names:
            raise UsageError(
                f"a model of type {type(model).__name__} has nothing to train: expected a dict of numpy arrays, an "
                "object with numpy attributes (name them with parameters=(...)), or a gensim Word2Vec"
            )
        for name in self.names:
            self._check_trainable(name)
        self._check_distinct()
        self.layout = Layout.of(self.arrays())

    def arrays(self) -> dict[str, Array]:
        """The model's own arrays (not copies)."""
        return {name: self._get(name) for name in self.names}

    def load(self, arrays: Arrays) -> None:
        """Copy `arrays` into the model, in place where it still has an array that fits."""
        for name in self.names:
            source, target = arrays[name], self._find(name)
            fits = isinstance(target, np.ndarray) and target.shape == source.shape and target.dtype == source.dtype
            if fits and target.flags.writeable and target.flags.c_contiguous:
                np.copyto(target, source)
            else:
                self._set(name, np.array(source, order="C"))
        self._after_load(self.model)

    def check_unchanged(self) -> None:
        """Raise `UsageError` if an array has another shape or dtype than at the beginning."""
        for spec in self.layout.specs:
            array = self._find(spec.name)
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
            for name, array in arrays.items():
                self._set(name, np.empty((0,) * array.ndim, array.dtype))
            sent = self.lightened(light)
            return parcel.dumps((sent, self.names, self.layout, self.embeddings))
        except Exception as error:
            raise UsageError(f"the model cannot be sent to the workers: {type(error).__name__}: {error}") from error
        finally:
            for name, array in arrays.items():
                self._set(name, array)

    @classmethod
    def from_skeleton(cls, skeleton: bytes) -> Model:
        """A model of the user's own type, or a light one, whose arrays are zeros until `load`."""
        self = cls.__new__(cls)
        self.model, self.names, self.layout, word2vec = parcel.loads(skeleton)
        self._is(word2vec)
        for spec in self.layout.specs:
            self._set(spec.name, np.zeros(spec.shape, spec.dtype))
        return self

    def lightened(self, light: Light | None) -> Any:
        """The model, or what `light` makes of it."""
        lighter = light(self.model) if light is not None else None
        return self.model if lighter is None else lighter

    def _is(self, word2vec: bool) -> None:
        self._after_load: Callable[[Any], None] = _word2vec_loaded if word2vec else _nothing
        self.counters = frozenset({"words_trained"} if word2vec else ())
        """The arrays that count something: they are summed, whatever becomes of the others."""
        self.embeddings = word2vec

    # ------------------------------------------------------------------------------------------------- by name

    def _find(self, name: str) -> Any:
        if isinstance(self.model, Mapping):
            return self.model.get(name)
        value = self.model
        for part in name.split("."):
            value = getattr(value, part, None)
        return value

    def _get(self, name: str) -> Array:
        value: Array = self._find(name)
        return value

    def _set(self, name: str, array: Array) -> None:
        if isinstance(self.model, Mapping):
            self.model[name] = array  # type: ignore[index]
            return
        *path, last = name.split(".")
        owner = self.model
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, last, array)

    def _check_distinct(self) -> None:
        """Two names for one array would add every update to it twice."""
        arrays = list(self.arrays().items())
        for index, (name, array) in enumerate(arrays):
            for other, another in arrays[:index]:
                if np.may_share_memory(array, another) and np.shares_memory(array, another):
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
