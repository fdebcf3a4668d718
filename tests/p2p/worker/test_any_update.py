"""What a gradient returned, as named arrays and back."""

import json
import sys
from collections import Counter, OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from gossip.arrays import DTYPES, Layout, Packed
from gossip.errors import MismatchError, UsageError
from p2p.adapters import matrices
from p2p.server.any_update import COMPLEX, STRUCTURE, Node, _named, flatten, inflate


class Step(NamedTuple):
    w: Any
    rate: Any = 0.1


class Wide(Step):
    """With room for attributes."""


Point = namedtuple("Point", "x y")
TEXT = st.text(st.characters())
"""With half of a pair, as well."""
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | TEXT
)
NUMBERS = st.sampled_from([*DTYPES, *COMPLEX]).flatmap(lambda dtype: hnp.from_dtype(np.dtype(dtype), allow_nan=False))
ARRAYS = st.sampled_from([*DTYPES, *COMPLEX, ">f4", ">i8", ">c16"]).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
        elements=hnp.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False),
    )
)
KEYS = st.recursive(
    PLAIN | NUMBERS.filter(lambda key: key == key), lambda inside: st.lists(inside, max_size=2).map(tuple), max_leaves=3
)
UPDATES = st.recursive(
    PLAIN | NUMBERS | ARRAYS,
    lambda inside: (
        st.lists(inside, max_size=4)
        | st.lists(inside, max_size=4).map(tuple)
        | st.builds(Step, inside, inside)
        | st.builds(Point, inside, inside)
        | st.dictionaries(TEXT, inside, max_size=4)
        | st.dictionaries(KEYS, inside, max_size=4)
        | st.dictionaries(KEYS, inside, max_size=4).map(OrderedDict)
        | st.dictionaries(KEYS, inside, max_size=4).map(Counter)
    ),
    max_leaves=12,
)


def same(left: Any, right: Any) -> bool:
    """Equal, of the same types, down to every array's dtype and bits."""
    if type(left) is not type(right):
        return False
    match left:
        case np.ndarray() | np.generic():
            return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
        case list() | tuple():
            return len(left) == len(right) and all(map(same, left, right))
        case dict():
            return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


@settings(deadline=None)
@given(UPDATES, st.dictionaries(st.sampled_from(["merged_at", "chunk", "ä"]), st.integers()))
def test_an_update_arrives_as_it_was(update: Any, extra: dict[str, int]) -> None:
    arrays = flatten(update, **extra)
    packed = Packed.of(arrays)  # the way it travels
    again, numbers = inflate(Packed(packed.layout, bytes(packed.buffer)).arrays())
    assert same(again, update)
    assert numbers == extra


def test_what_is_not_a_number_stays_so_outside_of_arrays() -> None:
    update, _ = inflate(flatten([float("inf"), float("-inf"), float("nan")]))
    np.testing.assert_array_equal(update, [np.inf, -np.inf, np.nan])


def test_numbers_of_numpy_keep_their_value_and_type() -> None:
    sent = {
        "loss": np.float32(0.1),
        "n": np.int64(7),
        "yes": np.bool_(True),
        "f": np.float64(np.inf),
        "c": np.complex64(1j),
    }
    update, _ = inflate(flatten(sent))
    assert same(update, sent)


def test_keys_of_dicts_keep_their_type() -> None:
    sent = {("layer", 1): 1, None: 2, 0.5: 3, True: 4, 'a.b"\x00\ud800': 5, np.float32(2.5): 6, 1 << 70: 7, (): 8}
    update, _ = inflate(flatten(sent))
    assert [(type(key), key, value) for key, value in update.items()] == [(type(k), k, v) for k, v in sent.items()]


def test_a_defaultdict_arrives_as_a_dict() -> None:
    sums = defaultdict(lambda: np.zeros(2))
    sums["w"] += 1
    update, _ = inflate(flatten(sums))
    assert same(update, {"w": np.ones(2)})


def test_an_array_on_disk_arrives_as_one_in_memory(tmp_path: Path) -> None:
    on_disk = np.memmap(tmp_path / "w", np.float32, "w+", shape=(2, 3))
    on_disk[1] = 5
    update, _ = inflate(flatten(on_disk))
    assert same(update, np.array([[0, 0, 0], [5, 5, 5]], np.float32))


# ---------------------------------------------------------------------------------------------------------- namedtuples


def test_a_namedtuple_arrives_as_one_of_its_class_whose_code_is_not_run() -> None:
    class Kept(NamedTuple):
        w: Any

    update, _ = inflate(flatten({"step": Step(np.ones(2)), "kept": Kept(3)}))
    assert type(update["step"]) is Step
    assert update["step"].w.tolist() == [1, 1]
    assert (type(update["kept"]).__name__, update["kept"].w, update["kept"]._fields) == ("Kept", 3, ("w",))


@pytest.mark.parametrize(
    ("module", "name", "fields"),
    [
        ("p2p.nowhere", "Step", ("w", "rate")),  # a module that was never imported
        (__name__, "Step", ("w", "other")),  # a class of the same name and other fields
        (__name__, "Gradient", ("w",)),  # no tuple
        (__name__, "Step.nothing", ("w",)),
        ("os", "stat_result", ("w",)),
        ("", "class", ("def", "_x", "w w")),
    ],
)
def test_a_namedtuple_of_a_class_that_is_not_there_is_one_like_it(module: str, name: str, fields: Any) -> None:
    kind = _named(module, name, fields)
    assert issubclass(kind, tuple)
    assert kind not in (Step, Gradient)
    made = tuple.__new__(kind, range(len(fields)))
    assert [getattr(made, field) for field in kind._fields] == list(range(len(fields)))  # type: ignore[attr-defined]
    assert module not in ("p2p.nowhere",) or module not in sys.modules


def test_a_lazy_module_is_not_asked_for_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = ModuleType("lazy")
    lazy.__getattr__ = lambda name: pytest.fail("code of a module was run")  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "lazy", lazy)
    assert _named("lazy", "Step", ("w",))._fields == ("w",)  # type: ignore[attr-defined]


def test_a_subclass_of_a_namedtuple_arrives_unless_it_holds_more() -> None:
    update, _ = inflate(flatten(Wide(1, 2)))
    assert type(update) is Wide
    more = Wide(1, 2)
    more.momentum = np.ones(2)  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="update is a Wide with momentum beside its fields, expected none"):
        flatten(more)


# ---------------------------------------------------------------------------------------------------- what is scattered


def test_arrays_that_lie_scattered_in_memory_arrive_in_order() -> None:
    scattered = np.arange(24.0).reshape(4, 6)[::2, ::-3]
    update, _ = inflate(flatten(scattered))
    np.testing.assert_array_equal(update, scattered)
    update, _ = inflate(flatten(np.asfortranarray(np.arange(6).reshape(2, 3))))
    np.testing.assert_array_equal(update, [[0, 1, 2], [3, 4, 5]])


def test_every_update_has_a_layout() -> None:
    assert Layout.of(flatten(None)).nbytes > 0


@dataclass
class Gradient:
    w: Any


class Loud(dict[str, Any]):
    """A dict with ways of its own."""


class Level(IntEnum):
    HIGH = 1


class Lent:
    """An array of another library."""

    def __array__(self) -> np.ndarray:
        return np.ones(2)


class Rows(sparse.csr_array):
    """A matrix with ways of its own."""


def endless() -> Any:
    found: list[Any] = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (Gradient(1), r"update is a Gradient: .* made of numpy arrays, sparse matrices of scipy, numbers, text"),
        ({"a": [1, {2, 3}]}, r"update\['a'\]\[1\] is a set"),
        ([(1, b"bytes")], r"update\[0\]\[1\] is a bytes"),
        (Step({"a": {2}}), r"update\.w\['a'\] is a set"),
        ({frozenset(): 1}, r"update \(its key frozenset\(\)\) is a frozenset"),
        ({"a": Loud({"w": 1})}, r"update\['a'\] is a Loud: .* and of no subclass of dict: send dict\(...\)"),
        ([Level.HIGH], r"update\[0\] is a Level: .* and of no subclass of int: send int\(...\)"),
        (Lent(), r"update is a Lent: .*: send numpy.asarray"),
        ({"a": {0: np.ma.array([1.0], mask=[True])}}, r"update\['a'\]\[0\] is a MaskedArray, .*array.filled\(0\)"),
        (np.ma.zeros(2), "update is a MaskedArray, expected a plain numpy array"),
        ([np.matrix([[1.0]])], r"update\[0\] is a matrix, expected a plain numpy array: numpy.asarray"),
        (np.rec.array([(1.0,)], names="w"), "update is a recarray, expected a plain numpy array"),
        ((0, np.zeros(1, np.longdouble)), r"update\[1\] has dtype (float128|longdouble), expected .* at most 64 bits"),
        ({"o": np.array([None])}, r"update\['o'\] has dtype object, .*: send an array of one dtype, or a list"),
        ({"s": np.zeros(2, [("w", "f8")])}, r"update\['s'\] has dtype \[\('w', '<f8'\)\], .*: send its fields"),
        ({"s": np.zeros(2, [("w", "f8")])[0]}, r"update\['s'\] has dtype .*: send its fields"),
        ([np.array(["text"])], r"update\[0\] has dtype <U4, expected bools, or integers"),
        ([np.str_("text")], r"update\[0\] has dtype <U4, expected bools, or integers"),
        ([np.datetime64("2020-01-01")], r"update\[0\] has dtype datetime64\[D\], expected"),
        (np.array([complex(0, np.inf)]), "'update': 1 of 2 numbers are NaN or infinite"),
        (np.array([np.nan], ">f8"), "'update': 1 of 1 numbers are NaN or infinite"),
        (Rows(np.eye(2)), "update is a Rows, expected a matrix or array of scipy.sparse itself"),
        (endless(), "is nested deeper than 64 levels, or in itself"),
        (lambda: 1, "update is a function"),
    ],
)
def test_what_cannot_travel_is_named_by_its_place(update: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        flatten(update)


@pytest.mark.parametrize(
    "node",
    [
        [Node.AS, "O", [Node.ARRAY, "a0"]],
        [Node.NUMBER, "V8", "00" * 8],
        [99],
        [Node.PLAIN],
        [Node.PARTS, [2], "pickle", True, []],
        "text",
    ],
)
def test_a_structure_of_another_make_is_refused(node: Any) -> None:
    structure = np.frombuffer(json.dumps([node, {}]).encode(), np.uint8)
    with pytest.raises(MismatchError):
        inflate({STRUCTURE: structure, "a0": np.ones(1)})


# ------------------------------------------------------------------------------------------------------------- matrices


FORMATS = [f"{form}_{kind}" for kind in ("array", "matrix") for form in matrices.FORMATS]


@pytest.mark.parametrize("name", FORMATS)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_a_matrix_of_any_format_arrives_as_it_was(name: str, data: st.DataObject) -> None:
    dtype = np.dtype(data.draw(st.sampled_from([*DTYPES[1:], *COMPLEX])))  # scipy has no float16
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    dense = data.draw(hnp.arrays(np.int8, shape, elements=st.sampled_from([0, 0, 1, 3]))).astype(dtype)
    matrix = getattr(sparse, name)(dense)
    update, _ = inflate(flatten([{"w": matrix}]))
    (found,) = update[0].values()
    assert (type(found), found.dtype, found.shape) == (type(matrix), dtype, shape)
    assert found.nnz == matrix.nnz
    np.testing.assert_array_equal(found.toarray(), dense)


def sparse_forms() -> list[Any]:
    numbers = np.zeros((3000, 4), np.float32)
    numbers[[7, 2999], 2] = [1.5, -0.0]
    twice = ([1.0, 2.0, 3.0], ([5, 5, 0], [1, 1, 2]))
    dense = [getattr(sparse, name)(numbers) for name in ("csr_matrix", "csr_array", "csc_array", "coo_array")]
    blocks = sparse.bsr_array(np.kron(np.eye(3), np.ones((2, 2))), blocksize=(2, 2))
    flat = [sparse.coo_array(np.array([0.0, 4.0])), sparse.dok_array(np.array([0.0, 4.0]))]
    return [*dense, sparse.coo_array(twice, shape=(9, 3)), blocks, sparse.csr_array((0, 3)), *flat]


@pytest.mark.parametrize("matrix", sparse_forms())
def test_a_sparse_matrix_arrives_in_its_format_with_the_same_entries(matrix: Any) -> None:
    update, _ = inflate(flatten({"w": matrix}))
    assert (type(update["w"]), update["w"].dtype) == (type(matrix), matrix.dtype)
    np.testing.assert_array_equal(update["w"].toarray(), matrix.toarray())


def test_an_array_of_few_rows_travels_as_these_and_arrives_to_the_bit() -> None:
    array = np.zeros((3000, 4), np.float32)
    array[[7, 2999], 2] = [1.5, -0.0]
    arrays = flatten({"w": array, "n": np.zeros(3000, np.int64)})
    assert Layout.of(arrays).nbytes < 1000
    update, _ = inflate(arrays)
    assert same(update, {"w": array, "n": np.zeros(3000, np.int64)})
    assert Layout.of(flatten(np.ones((3000, 4)))).nbytes < 3000 * 4 * 8 + 1000


def test_entries_stay_where_they_are_also_those_that_are_there_twice() -> None:
    for kind, shape in ((sparse.csr_array, (3, 5)), (sparse.csc_matrix, (5, 3))):
        twice = kind((np.array([100, 100, 0], np.int8), [4, 4, 1], [0, 2, 2, 3]), shape=shape)
        update, _ = inflate(flatten(twice))
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(update, part), getattr(twice, part))
    blocks = sparse.bsr_array(np.kron(np.eye(3), np.ones((2, 2))), blocksize=(2, 2))
    update, _ = inflate(flatten(blocks))
    assert update.blocksize == (2, 2)


@pytest.mark.parametrize(
    ("form", "shape", "parts"),
    [
        ("csr", (2, 3), [np.ones(1), np.array([0]), np.array([7])]),
        ("csr", (2, 3), [np.ones(1), np.array([-1]), np.array([0])]),
        ("coo", (2, 3), [np.ones(1), np.array([2]), np.array([0])]),
        ("lil", (2, 3), [np.ones(2), np.array([0]), np.array([0])]),
        ("bsr", (2, 4), [np.ones((1, 2, 2)), np.array([7]), np.array([0, 1])]),
        ("bsr", (2, 4), [np.ones((1, 2, 2)), np.array([0]), np.array([0, 9])]),
        ("dia", (2, 3), [np.ones(1), np.array([2, 3])]),
    ],
)
def test_parts_that_make_no_matrix_are_refused(form: str, shape: Any, parts: Any) -> None:
    for is_array in (True, False):
        with pytest.raises(MismatchError, match=f"the parts of a {form}_(array|matrix) of .* do not fit together"):
            matrices.together(form, is_array, shape, parts)
    with pytest.raises(MismatchError, match="a sparse matrix of format 'system', expected one of coo"):
        matrices.together("system", True, shape, parts)


def test_entries_in_any_order_make_a_compressed_matrix() -> None:
    parts = [np.array([1.0, 2.0, 3.0]), np.array([2, 0, 2]), np.array([0, 1, 0])]
    found = matrices.together("csr", True, (3, 2), parts)
    np.testing.assert_array_equal(found.toarray(), [[0, 2], [0, 0], [4, 0]])


@pytest.mark.parametrize("rows", [{3: np.ones(2), 1: np.zeros(2)}, {0: 1.5, 4: [1, 2]}, {np.int64(2): np.ones(1)}])
def test_rows_by_number_arrive(rows: dict[int, Any]) -> None:
    update, _ = inflate(flatten({"w": rows}))
    assert list(update["w"]) == list(rows)
    for row, vector in rows.items():
        np.testing.assert_array_equal(update["w"][row], vector)
