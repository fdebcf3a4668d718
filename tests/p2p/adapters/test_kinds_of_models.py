"""Models of every kind that users write: which of their arrays are trained, and what is said of those that cannot."""

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.errors import UsageError
from p2p import DeepDist, SimulatedCluster
from p2p.adapters import ByPath, nesting
from p2p.adapters.model import Model
from p2p.adapters.nesting import by_name
from p2p.descents import SGD, AdaGrad


def zeros(size: int = 2) -> np.ndarray:
    return np.zeros(size)


class Line(NamedTuple):
    w: Any
    b: Any
    name: str = "line"


class Layer:
    def __init__(self) -> None:
        self.w, self.kind = zeros(), "dense"


class Network:
    def __init__(self) -> None:
        self.layers, self.rate = [Layer(), Layer()], 0.1


class Slots:
    __slots__ = ("__hidden", "b", "w")

    def __init__(self) -> None:
        self.w, self.b, self.__hidden = zeros(), zeros(3), zeros()


class MoreSlots(Slots):
    __slots__ = ("c",)

    def __init__(self) -> None:
        super().__init__()
        self.c = zeros()


class SlotsAndMore(Slots):
    def __init__(self) -> None:
        super().__init__()
        self.c = zeros()


class OneSlot:
    __slots__ = "w"

    def __init__(self) -> None:
        self.w = zeros()


@dataclass
class Open:
    w: Any = field(default_factory=zeros)


@dataclass(frozen=True)
class Frozen:
    w: Any = field(default_factory=zeros)


@dataclass(frozen=True, slots=True)
class FrozenSlots:
    w: Any = field(default_factory=zeros)


@dataclass(slots=True)
class Derived(Open):
    v: Any = field(default_factory=zeros)


class Stack(list[Any]):
    """A list of the user's own."""


KINDS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "dict": (lambda: {"w": zeros(), "b": zeros(3)}, ("b", "w")),
    "nested dict": (lambda: {"a": {"w": zeros()}, "b": {"c": {"w": zeros()}}}, ("a.w", "b.c.w")),
    "dict by number": (lambda: {0: zeros(), -1: zeros()}, ("-1", "0")),
    "dict by other keys": (lambda: {("l", 0): zeros(), 0.5: zeros()}, ("('l', 0)", "0.5")),
    "nested keys with dots": (lambda: {"a.b": {"w.x": zeros()}, "a": {"c": zeros()}}, ("a.b.w.x", "a.c")),
    "ordered dict": (lambda: OrderedDict(w=zeros()), ("w",)),
    "defaultdict": (lambda: defaultdict(zeros, w=zeros()), ("w",)),
    "list": (lambda: [zeros(), zeros(3)], ("0", "1")),
    "list of one's own": (lambda: Stack([zeros(), zeros(3)]), ("0", "1")),
    "deque": (lambda: deque([zeros(), zeros(3)]), ("0", "1")),
    "tuple": (lambda: (zeros(), zeros(3)), ("0", "1")),
    "list of pairs": (lambda: [(zeros(), zeros(3)), (zeros(), zeros())], ("0.0", "0.1", "1.0", "1.1")),
    "list of objects": (lambda: [Layer(), Layer()], ("0.w", "1.w")),
    "list and numbers": (lambda: [zeros(), 0.5, "text", None], ("0",)),
    "namedtuple": (lambda: Line(zeros(), zeros(3)), ("b", "w")),
    "namedtuples within": (lambda: {"a": Line(zeros(), [zeros()])}, ("a.b.0", "a.w")),
    "layers": (Network, ("layers.0.w", "layers.1.w")),
    "slots": (Slots, ("_Slots__hidden", "b", "w")),
    "slots inherited": (MoreSlots, ("_Slots__hidden", "b", "c", "w")),
    "slots and attributes": (SlotsAndMore, ("_Slots__hidden", "b", "c", "w")),
    "one slot": (OneSlot, ("w",)),
    "namespace": (lambda: SimpleNamespace(w=zeros()), ("w",)),
    "dataclass": (Open, ("w",)),
    "frozen dataclass": (Frozen, ("w",)),
    "frozen dataclass with slots": (FrozenSlots, ("w",)),
    "dataclass that inherits": (Derived, ("v", "w")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_any_kind_is_its_arrays_by_name_here_and_in_a_worker(kind: str) -> None:
    make, names = KINDS[kind]
    original = make()
    model = Model(original)
    assert model.names == names
    copy = Model.from_skeleton(model.skeleton())
    assert type(copy.model) is type(original)
    copy.load({name: np.full_like(array, 3) for name, array in model.arrays().items()})
    assert {float(array.sum() / array.size) for array in copy.arrays().values()} == {3}
    held = model.arrays()
    model.load({name: np.full_like(array, 5) for name, array in held.items()})
    assert all(model.arrays()[name] is array and array[0] == 5 for name, array in held.items())


def trained(model: Any, where: str, update_of: Callable[[Any], Any], descent: Any = None, chunks: int = 3) -> None:
    """So many updates by each of two workers."""

    def gradient(model: Any, rows: Any) -> Any:
        list(rows)
        return update_of(model)

    options: Any = {"engine": SimulatedCluster(2)} if where == "simulated" else {"mode": where, "peers": 2}
    with DeepDist(model, progress=False, **options) as dd:
        dd.train([[1] * chunks] * 2, gradient, descent, chunk_rows=1)
        assert dd.model is model


def train_by_a_descent(kind: str, where: str) -> None:
    make, names = KINDS[kind]
    model = make()

    def descent(model: Any, update: Any) -> None:
        for name, array in Model(model).arrays().items():
            array += update[name]

    def ones(model: Any) -> Any:
        return {name: np.ones_like(array) for name, array in Model(model).arrays().items()}

    held = Model(model).arrays()
    trained(model, where, ones, descent)
    assert {name: array.tolist() for name, array in held.items()} == {name: [6.0] * len(held[name]) for name in names}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_any_kind_is_trained_on_a_simulated_cluster(kind: str) -> None:
    train_by_a_descent(kind, "simulated")


@pytest.mark.parametrize("kind", ["dict by number", "list", "deque"])
def test_a_descent_may_put_new_arrays_in_the_place_of_old_ones(kind: str) -> None:
    model = KINDS[kind][0]()

    def descent(model: Any, update: Any) -> None:
        model[0] = model[0] + update

    trained(model, "simulated", lambda model: 1.0, descent, chunks=6)  # the first ones are looked at in another way
    assert model[0].tolist() == [12, 12]
    assert not model[1 if kind != "dict by number" else -1].any()


def test_a_number_beside_the_arrays_of_a_list_is_not_trained_and_that_is_said() -> None:
    def descent(model: Any, update: Any) -> None:
        model[1] = update

    with pytest.raises(UsageError, match=r"descent changed '1' of the model \(float\), which would be lost"):
        trained(KINDS["list and numbers"][0](), "simulated", lambda model: 1.0, descent)


SOME = ("dict by other keys", "list", "namedtuple", "layers", "slots inherited", "frozen dataclass with slots")


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.parametrize("mode", ["p2p", "master"])
@pytest.mark.parametrize("kind", SOME)
def test_a_model_of_another_kind_is_trained_by_processes_in_both_modes(kind: str, mode: str) -> None:
    train_by_a_descent(kind, mode)


def train_by_updates_like_the_model(kind: str, where: str) -> None:
    model = KINDS[kind][0]()
    held = Model(model).arrays()

    def like(model: Any) -> Any:
        if isinstance(model, dict):
            return {key: np.ones_like(array) for key, array in model.items()}
        ones = [np.ones_like(array) if isinstance(array, np.ndarray) else None for array in model]
        return Line(*ones) if isinstance(model, Line) else type(model)(ones)

    trained(model, where, like)
    assert {array[-1] for array in held.values()} == {6.0}


@pytest.mark.parametrize("kind", ["dict by number", "list", "tuple", "namedtuple", "list and numbers"])
def test_without_a_descent_an_update_may_be_like_the_model(kind: str) -> None:
    train_by_updates_like_the_model(kind, "simulated")


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.parametrize("kind", ["dict by number", "namedtuple"])
def test_to_a_master_without_a_descent_as_well(kind: str) -> None:
    train_by_updates_like_the_model(kind, "master")


@pytest.mark.parametrize(
    ("model", "update", "message"),
    [
        ([zeros(), zeros()], [zeros()], "an update of 1 parts, expected 2, as the model has"),
        (
            {0: zeros(), "1": zeros()},
            {0: zeros(), "0": zeros()},
            r"two keys of an update are the same name, .*'0', '0'",
        ),
    ],
)
def test_an_update_that_is_not_like_the_model_is_refused(model: Any, update: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        by_name(model, update)


def test_an_update_like_a_dict_is_none_of_a_list_and_the_other_way_round() -> None:
    assert by_name({"w": zeros()}, [zeros()]) is None
    assert by_name(Layer(), (zeros(),)) is None
    assert by_name([zeros(), zeros()], {"1": 5}) == {"1": 5}


def test_descents_take_updates_like_the_model_and_say_where_sums_have_no_place() -> None:
    model = [np.ones(2), {"w": np.ones(2)}]
    SGD(0.5)(model, [np.ones(2), None])
    SGD(0.5)(model, {"1.w": np.ones(2)})
    assert (model[0].tolist(), model[1]["w"].tolist()) == ([0.5, 0.5], [0.5, 0.5])  # type: ignore[call-overload]
    by_number = AdaGrad(0.5).prepare({0: np.ones(2)})
    AdaGrad(0.5)(by_number, {0: np.ones(2)})
    assert by_number["0_adagrad"].tolist() == [1, 1]
    with pytest.raises(UsageError, match="'0' is in a list, where no sums can stand beside it"):
        AdaGrad(0.5).prepare([np.ones(2)])


# ----------------------------------------------------------------------------------------------- what cannot be trained


class Marked(dict[str, Any]):
    """A dict with attributes."""

    def __init__(self, **items: Any) -> None:
        super().__init__(**items)
        self.momentum = zeros()


class Shared:
    w = zeros()


class View(Mapping[str, Any]):
    """Gives the arrays that it has as attributes."""

    def __init__(self) -> None:
        self.w = zeros()

    def __getitem__(self, key: str) -> Any:
        return {"w": self.w}[key]

    def __iter__(self) -> Iterator[str]:
        return iter(["w"])

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (zeros(), r"a model of type ndarray has nothing .*; put the array into a dict, as in {'w': array}"),
        (Layer, r"model is the class Layer, expected an object of it: Layer\(\.\.\.\)"),
        (Shared(), r"nothing to train: .*; give the object arrays of its own, as in self.w = ... in __init__"),
        ({"w": [0.5, 0.5]}, r"has nothing to train: .*; make arrays of the numbers .* as in np.array\(0.0\)"),
        ([np.float64(1.0)], r"has nothing to train: .*; make arrays of the numbers"),
        ((zeros() for _ in range(1)), "a model of type generator has nothing to train"),
        ({"a.b": zeros(), "a": {"b": zeros()}}, "two arrays of the model have the name 'a.b', expected one each"),
        ({"l": {"0": zeros(), 0: zeros()}}, "two arrays of the model have the name 'l.0', expected one each"),
        (Marked(w=zeros()), r"the model is a Marked with arrays beside its items \(momentum\), expected them among"),
        ({"a": Marked(w=zeros())}, r"'a' is a Marked with arrays beside its items \(momentum\)"),
        (
            {"w": zeros(), "l": [zeros() for _ in range(300)]},
            "'l' has 300 parts, with arrays in them, expected at most",
        ),
        (
            {"w": zeros(), "l": [Layer() for _ in range(300)]},
            "'l' has 300 parts, with arrays in them, expected at most",
        ),
        ([[zeros(1) for _ in range(250)] for _ in range(9)], "the model has more than 2000 arrays, expected fewer"),
        ([np.zeros(2, object), zeros()], "'0' of the model has dtype object"),
        ([zeros(), np.ma.zeros(2)], "'1' of the model is a MaskedArray, expected a plain numpy array"),
    ],
)
def test_what_would_stay_as_it_is_without_a_word_is_refused_by_name(model: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Model(model)


def test_parameters_choose_also_where_not_all_arrays_are_looked_for() -> None:
    model = {"a.b": zeros(), "a": {"b": zeros(), "c": zeros()}, "l": [zeros() for _ in range(300)]}
    assert Model(model, parameters=("a.c", "l.299")).names == ("a.c", "l.299")
    assert Model({"a.b": {"x": 1}, "a": {"b": zeros()}}).names == ("a.b",)


def test_many_layers_are_all_found() -> None:
    model = {"layers": [{f"w{number}": zeros(1) for number in range(9)} for _ in range(200)]}
    assert len(Model(model).names) == 1800


def test_a_dict_that_is_its_own_attributes_is_trained() -> None:
    class Record(dict[str, Any]):
        def __init__(self, **items: Any) -> None:
            super().__init__(**items)
            self.__dict__ = self

    assert Model(Record(w=zeros())).names == ("w",)
    assert Model(View()).names == ("w",)


LEAVES = st.integers(0, 3).map(np.zeros) | st.just(0.5) | st.just("text")
KEYS = st.text("ab.0", max_size=3) | st.integers(-2, 12) | st.tuples(st.integers(0, 1))
NESTED = st.recursive(
    LEAVES,
    lambda inside: (
        st.dictionaries(KEYS, inside, max_size=4)
        | st.lists(inside, max_size=4)
        | st.lists(inside, max_size=4).map(tuple)
        | st.builds(Line, inside, inside)
        | st.builds(SimpleNamespace, w=inside, b=inside)
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(NESTED)
def test_a_name_leads_to_the_array_that_it_is_of_or_the_model_is_refused(model: Any) -> None:
    arrays = [(path, part) for path, _, part in nesting.walk(model) if isinstance(part, np.ndarray)]
    names = [nesting.text(path) for path, _ in arrays]
    if len(set(names)) < len(names):
        with pytest.raises(UsageError, match="two arrays of the model have the name"):
            ByPath().names(model)
        return
    assert ByPath().names(model) == sorted(names)
    for name, (path, array) in zip(names, arrays, strict=True):
        assert nesting.path_of(model, name) == path
        assert nesting.find(model, path) is array
