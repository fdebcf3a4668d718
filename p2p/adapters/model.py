"""Models: anything that gives and takes named arrays.

    dict of arrays           its keys
    list, tuple              its places: 0, 1, ...
    namedtuple               its fields
    any other object         its ndarray attributes, also those in __slots__
    dicts, lists, tuples     their arrays of numbers, by path, such as layers.0.w
    and objects in these
    `parameters`             only those named
    a class of a library     what its adapter says, see `p2p.adapters`

Only the named arrays are trained and travel. Everything else of the model is its *skeleton*: it travels once, and
`p2p.adapters.watch` sees to it that no user takes it for trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from gossip.arrays import DTYPES, Array, Arrays, Layout, check_finite, check_like
from gossip.errors import MismatchError, UsageError
from gossip.fields import ARRAYS_MAX, NAME_CHARACTERS_MAX
from p2p.adapters import PLAIN, Adapter, adapter_of, check_adapter, known, nesting, skeleton
from p2p.adapters.integers import Integers
from p2p.adapters.watch import Watch
from p2p.codec import Codec, check_codec, kinds_of

Light = Callable[[Any], Any]
"""Makes something smaller of a model, with the same named arrays, that a gradient can do with; None if it cannot."""

MODEL_ARRAYS_MAX = ARRAYS_MAX // 3
"""An update has up to three arrays for each: of rows these, their numbers and the exponents of these."""


class Model:
    """A user's model, seen as named arrays. Names are keys, or attribute paths such as `wv.vectors`."""

    def __init__(
        self,
        model: Any,
        parameters: Sequence[str] | None = None,
        adapter: Adapter | None = None,
        codec: Codec | None = None,
    ) -> None:
        """Find the arrays. `UsageError` if there are none, or one cannot be trained here. `codec` goes to the workers
        with the model."""
        self.model = model
        codec = None if codec is None else check_codec(codec)
        adapter = adapter_of(model) if adapter is None else check_adapter(adapter)
        names = list(adapter.names(model) if parameters is None else parameters)
        self._is(adapter, {name: adapter.key(model, name) for name in names}, codec)
        if not self.names and isinstance(model, type):
            raise UsageError(f"model is the class {model.__name__}, expected an object of it: {model.__name__}(...)")
        if not self.names:
            raise UsageError(
                f"a model of type {type(model).__name__} has nothing to train: expected a dict of numpy arrays, a list "
                "or tuple of them, an object with numpy attributes (name them with parameters=(...)), or a "
                f"{' or '.join(known())}{_hint(model)}"
            )
        if len(self.names) > MODEL_ARRAYS_MAX:
            raise UsageError(
                f"the model has {len(self.names)} arrays to train, expected at most {MODEL_ARRAYS_MAX}: join small "
                "ones, or name those to train with parameters=(...)"
            )
        for name in self.names:
            self._check_trainable(name)
        self._check_distinct()
        self.check_numbers()
        self._lies(Layout.of(self.arrays()), self.arrays())

    def arrays(self) -> dict[str, Array]:
        """The model's own arrays (not copies)."""
        return {name: self._get(name) for name in self.names}

    def as_summed(self, arrays: Arrays) -> dict[str, Array]:
        """Such arrays in the dtypes in which they are summed."""
        return {spec.name: np.asarray(arrays[spec.name], spec.dtype) for spec in self.layout.specs}

    def arrays_of(self, other: Any) -> dict[str, Array]:
        """Those of another model of the same kind, by the same names."""
        return {name: self.adapter.find(other, key) for name, key in self._keys.items()}

    def load(self, arrays: Arrays) -> None:
        """Copy `arrays` into the model, in place where it still has an array that fits.

        A worker's arrays are contiguous, as exchanges of rows need; the user's own lie as they did. Integers may be as
        wide as they are summed.

        Raises:
            UsageError: a worker's array cannot hold a sum. In the user's own it is cut, and `check_numbers` tells.
        """
        for name in self.names:
            source, target = self.integers.fitted(name, arrays[name]), self._find(name)
            if _fits(target, source) and target.flags.writeable and (target.flags.c_contiguous or not self._sent):
                np.copyto(target, source)
            else:
                self._set(name, np.array(source, order="C"))
        if self._sent:
            self._part(arrays)
        self.adapter.loaded(self.model)

    def _lies(self, own: Layout, arrays: Arrays) -> None:
        """`own` is how its arrays lie, which are like `arrays`."""
        self.own = own
        self.layout = own.for_sums
        """How they are summed, and travel."""
        self.integers = Integers(own, arrays, cuts=not self._sent)

    def _part(self, arrays: Arrays) -> None:
        """Give each name an array of its own again, where a gradient has bound two of them to one memory."""
        ends: list[tuple[int, int, str]] = []
        for name, array in self.arrays().items():
            start = int(array.__array_interface__["data"][0])
            ends.append((start, start + array.nbytes, name))
        ends.sort()
        if any(end > start for (_, end, _), (start, _, _) in pairwise(ends)):
            for name in self.names:
                self._set(name, np.array(self.integers.fitted(name, arrays[name]), order="C"))

    def make_writable(self) -> None:
        """Put a copy in the place of each array that is read-only."""
        for name, array in self.arrays().items():
            if not array.flags.writeable:
                self._set(name, array.copy())

    def take_back(self, arrays: Arrays) -> None:
        """Have the model hold these arrays again, with the numbers that are there now."""
        for name, now in self.arrays().items():
            if now is not arrays[name] and _fits(arrays[name], now) and arrays[name].flags.writeable:
                np.copyto(arrays[name], now)
                self._set(name, arrays[name])

    def check_numbers(self, trained: bool = False) -> None:
        """Raise `UsageError` if an array has a NaN or an infinity; `trained`: by the sum of what was learned, and also
        if its dtype does not hold that."""
        if trained and self.integers.beyond:
            raise UsageError(f"the trained model's {'; '.join(self.integers.beyond.values())}")
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
        for spec in self.own.specs:
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

    def skeleton(self, light: Light | None = None, counters: Arrays | None = None) -> bytes:
        """Everything but the arrays, as bytes for `from_skeleton`; by cloudpickle, between the user's own programs.

        With `light`, of what it makes of the model: `Gradient`. `counters`, as they were when the training began, if
        that was in another session.
        """
        arrays = self.arrays()
        self.adapter.sending(self.model, {**arrays, **(counters or {})})
        try:
            bare = self.adapter.bare(self.lightened(light))
            return skeleton.dumps((bare, self._keys, self.own, self.adapter, self.codec), arrays)
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"the model cannot be sent to the workers: {type(error).__name__}: {error}") from error

    @classmethod
    def from_skeleton(cls, sent: bytes) -> Model:
        """A model of the user's own type, or a light one, whose arrays are zeros until `load`."""
        self = cls.__new__(cls)
        arrays, (bare, keys, own, adapter, codec) = skeleton.loads(sent)
        self.model = adapter.dressed(bare)
        self._is(adapter, keys, codec)
        self._sent = True
        self._lies(own, dict(zip(self.names, arrays, strict=True)))
        for name, array in zip(self.names, arrays, strict=True):
            if not _fits(self._find(name), array):  # its class makes something else of what is sent
                self._set(name, array)
        return self

    def lightened(self, light: Light | None) -> Any:
        """The model, or what `light` makes of it."""
        lighter = light(self.model) if light is not None else None
        return self.model if lighter is None else lighter

    def _is(self, adapter: Adapter, keys: Mapping[str, Any], codec: Codec | None) -> None:
        self.adapter = adapter
        self.codec = codec
        self._keys = keys
        self.names = tuple(keys)
        self._sent = False
        """It is a worker's, and no user holds on to its arrays."""
        self.watch = Watch()

    @property
    def counters(self) -> frozenset[str]:
        """The arrays that count something: they are summed, whatever becomes of the others."""
        return self.adapter.counters

    def rules(self, otherwise: str) -> dict[str, str]:
        """The rule of `p2p.worker.combine` for each array, by its adapter; `otherwise` that of all others."""
        found = {name: self.adapter.rule(self.model, self._keys[name]) or otherwise for name in self.names}
        return {name: "sum" if name in self.counters else rule for name, rule in found.items()}

    @property
    def caches(self) -> frozenset[str]:
        """Attributes of its parts that may change without being trained."""
        return self.adapter.caches

    # ------------------------------------------------------------------------------------------------- by name

    def _find(self, name: str) -> Any:
        return self.adapter.find(self.model, self._keys[name])

    def _get(self, name: str) -> Array:
        value: Array = self._find(name)
        return value

    def _set(self, name: str, array: Array) -> None:
        self.adapter.put(self.model, self._keys[name], array)

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
        suffixes = tuple(suffix for kind in kinds_of(self.codec) for suffix in kind.suffixes)
        characters_max = NAME_CHARACTERS_MAX - max(map(len, suffixes))
        if not isinstance(name, str) or not 0 < len(name) <= characters_max:
            raise UsageError(
                f"an array of the model has the name {name!r:.40}, expected text of at most {characters_max} characters"
            )
        if name.endswith(suffixes):
            raise UsageError(f"an array of the model has the name {name!r}, expected one without {', '.join(suffixes)}")
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
        if (
            value.size
            and value.flags.writeable
            and any(not s and n > 1 for s, n in zip(value.strides, value.shape, strict=True))
        ):
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


def _hint(model: Any) -> str:
    """What to do about a model without arrays."""
    if isinstance(model, np.ndarray):
        return "; put the array into a dict, as in {'w': array}"
    if isinstance(model, type):
        return f"; make an object of the class, as in {model.__name__}()"
    shared = [name for kind in type(model).__mro__ for name, part in vars(kind).items() if isinstance(part, np.ndarray)]
    if shared:
        return f"; give the object arrays of its own, as in self.{shared[0]} = ... in __init__: now its class has them"
    if any(isinstance(part, int | float | np.number) for _, _, part in nesting.walk(model, within_others=False)):
        return "; make arrays of the numbers that are to be trained, as in np.array(0.0)"
    return ""


def _fits(target: Any, source: Array) -> bool:
    return isinstance(target, np.ndarray) and target.shape == source.shape and target.dtype == source.dtype


def share_memory(one: Array, other: Array) -> bool:
    """Whether some number belongs to both."""
    return bool(np.may_share_memory(one, other) and np.shares_memory(one, other))
