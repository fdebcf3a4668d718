"""Models as named arrays: which arrays are found, what travels of the rest, and what cannot be trained."""

import pickle
import threading
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import gensim
import numpy as np
import pytest

from gossip.errors import UsageError
from p2p.adapters.model import MODEL_ARRAYS_MAX, Model

TEXTS = [["the", "quick", "brown", "fox"], ["the", "lazy", "dog"]] * 3


def word2vec(**settings: Any) -> gensim.models.Word2Vec:
    """A model of six words that knows them, and nothing yet about them."""
    model = gensim.models.Word2Vec(vector_size=4, min_count=1, sample=0, workers=1, **settings)
    model.build_vocab(TEXTS)
    return model


class Line:
    """A model as users write them."""

    def __init__(self) -> None:
        self.slope = np.array([1.0, 2.0])
        self.offset = np.array(3, np.float32)
        self.name = "line"


class Nest:
    def __init__(self) -> None:
        self.inner = Line()
        self.w = np.ones((2, 3), np.float32)


# ----------------------------------------------------------------------------------------------- which arrays are found


def test_a_dict_is_its_arrays_by_key() -> None:
    w, b = np.ones((2, 3)), np.zeros(2, np.int64)
    model = Model({"w": w, "b": b, "steps": 7})
    assert model.names == ("b", "w")
    assert model.arrays()["w"] is w
    assert model.arrays()["b"] is b
    assert [str(spec) for spec in model.layout.specs] == ["'b': int64 (2,)", "'w': float64 (2, 3)"]


def test_an_object_is_its_array_attributes() -> None:
    line = Line()
    model = Model(line)
    assert model.names == ("offset", "slope")
    assert model.arrays()["slope"] is line.slope


def test_parameters_choose_among_the_arrays_also_below() -> None:
    nest = Nest()
    model = Model(nest, parameters=("inner.slope", "w"))
    assert model.names == ("inner.slope", "w")
    assert model.arrays()["inner.slope"] is nest.inner.slope
    model.load({"inner.slope": np.array([8.0, 9.0]), "w": np.zeros((2, 3), np.float32)})
    np.testing.assert_array_equal(nest.inner.slope, [8, 9])
    assert nest.inner.offset == 3
    assert Model({"a": np.ones(1), "b": np.ones(1)}, parameters=["b"]).names == ("b",)


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({"negative": 5}, ["syn1neg"]),
        ({"hs": 1, "negative": 0}, ["syn1"]),
        ({"hs": 1, "negative": 5}, ["syn1", "syn1neg"]),
        ({"sg": 1, "negative": 2}, ["syn1neg"]),
    ],
)
def test_word2vec_is_its_vectors_its_output_layers_and_its_progress(settings: Any, layers: list[str]) -> None:
    w2v = word2vec(**settings)
    model = Model(w2v)
    assert list(model.names) == sorted([*layers, "words_trained", "wv.vectors"])
    arrays = model.arrays()
    assert arrays["wv.vectors"] is w2v.wv.vectors
    for layer in layers:
        assert arrays[layer] is getattr(w2v, layer)
    np.testing.assert_array_equal(arrays["words_trained"], [0.0])


def test_the_progress_of_a_word2vec_model_is_kept() -> None:
    w2v = word2vec()
    Model(w2v).load({**Model(w2v).arrays(), "words_trained": np.array([42.0])})
    np.testing.assert_array_equal(Model(w2v).arrays()["words_trained"], [42.0])


def test_loaded_word2vec_vectors_are_compared_by_their_own_lengths() -> None:
    w2v = word2vec()
    w2v.wv.fill_norms()
    vectors = np.arange(w2v.wv.vectors.size, dtype=np.float32).reshape(w2v.wv.vectors.shape) + 1
    Model(w2v).load({**Model(w2v).arrays(), "wv.vectors": vectors})
    the, dog = w2v.wv["the"].astype(float), w2v.wv["dog"].astype(float)
    cosine = the @ dog / np.linalg.norm(the) / np.linalg.norm(dog)
    assert w2v.wv.similarity("the", "dog") == pytest.approx(cosine, rel=1e-5)


# ------------------------------------------------------------------------------------------------------- what is loaded


def test_arrays_are_loaded_in_place() -> None:
    w = np.ones((2, 3))
    view = w[1]
    model = Model({"w": w})
    source = np.full((2, 3), 5.0)
    model.load({"w": source})
    assert model.model["w"] is w
    np.testing.assert_array_equal(view, [5, 5, 5])
    source[...] = 6
    np.testing.assert_array_equal(w, np.full((2, 3), 5.0))


def test_the_user_s_own_arrays_stay_however_they_lie_in_memory() -> None:
    columns = np.ones((2, 3), order="F")
    model = Model({"w": columns, "layers": [columns]})
    assert again(model)["w"].flags.c_contiguous
    model.load({"w": np.arange(6.0).reshape(2, 3)})
    assert model.model["w"] is columns
    np.testing.assert_array_equal(columns, [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("spoiled", [np.ones(2), np.ones((2, 3), np.float32), None, "gone", np.ones((3, 2)).T])
def test_an_array_that_user_code_replaced_is_replaced_again(spoiled: Any) -> None:
    model = Model.from_skeleton(Model({"w": np.ones((2, 3))}).skeleton())
    model.model["w"] = spoiled
    source = np.full((2, 3), 5.0)
    model.load({"w": source})
    np.testing.assert_array_equal(model.model["w"], source)
    assert model.model["w"].flags.c_contiguous
    assert not np.shares_memory(model.model["w"], source)
    model.check_unchanged()


def test_a_read_only_array_is_replaced_by_one_that_can_be_written() -> None:
    frozen = np.ones(2)
    frozen.flags.writeable = False
    model = Model({"w": frozen})
    model.load({"w": np.zeros(2)})
    model.model["w"] += 1
    np.testing.assert_array_equal(model.model["w"], [1, 1])
    np.testing.assert_array_equal(frozen, [1, 1])


# --------------------------------------------------------------------------------------------------------- the skeleton


@pytest.mark.parametrize("make", [lambda: {"w": np.ones((300, 400)), "n": 7}, Nest, word2vec])
def test_the_skeleton_holds_no_arrays_and_becomes_a_model_of_zeros(make: Any) -> None:
    original = make()
    model = Model(original)
    before = {name: (array, array.copy()) for name, array in model.arrays().items()}
    skeleton = model.skeleton()
    for name, (array, values) in before.items():
        assert model.arrays()[name] is array
        np.testing.assert_array_equal(array, values)
    copy = Model.from_skeleton(skeleton)
    assert type(copy.model) is type(original)
    assert copy.names == model.names
    assert copy.layout == model.layout
    for array in copy.arrays().values():
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert not array.any()
    copy.load(model.arrays())
    for name, (array, values) in before.items():
        np.testing.assert_array_equal(copy.arrays()[name], values)
        assert not np.shares_memory(copy.arrays()[name], array)
    copy.check_unchanged()


def test_the_size_of_the_skeleton_is_that_of_the_rest() -> None:
    assert len(Model({"w": np.ones(1_000_000), "n": 7}).skeleton()) < 2000
    small, large = word2vec(), word2vec()
    large.wv.vectors = np.ones((len(large.wv), 10_000), np.float32)
    assert len(Model(large).skeleton()) < len(Model(small).skeleton()) + 1000


def test_the_rest_of_the_model_travels_with_the_skeleton() -> None:
    copy = Model.from_skeleton(Model(Nest(), parameters=("w",)).skeleton())
    assert copy.model.inner.name == "line"
    np.testing.assert_array_equal(copy.model.inner.slope, [1, 2])
    w2v = word2vec()
    copy = Model.from_skeleton(Model(w2v).skeleton())
    assert copy.model.wv.key_to_index == w2v.wv.key_to_index
    copy.load(Model(w2v).arrays())
    np.testing.assert_array_equal(copy.model.wv["fox"], w2v.wv["fox"])


def test_a_word2vec_skeleton_can_be_trained() -> None:
    w2v = word2vec(negative=5)
    copy = Model.from_skeleton(Model(w2v).skeleton())
    copy.load(Model(w2v).arrays())
    copy.model.train(TEXTS, total_examples=len(TEXTS), epochs=1)
    copy.check_unchanged()
    assert not np.array_equal(copy.model.syn1neg, w2v.syn1neg)


def test_the_arrays_are_back_in_place_when_the_model_cannot_be_pickled() -> None:
    line = Line()
    slope, offset = line.slope, line.offset
    line.lock = threading.Lock()
    with pytest.raises(UsageError, match=r"cannot be sent to the workers: TypeError: .*lock"):
        Model(line).skeleton()
    assert line.slope is slope
    assert line.offset is offset
    np.testing.assert_array_equal(slope, [1, 2])


def test_a_model_that_was_trained_can_be_pickled_as_ever() -> None:
    w2v = word2vec()
    Model(w2v).skeleton()
    again = pickle.loads(pickle.dumps(w2v))
    np.testing.assert_array_equal(again.wv.vectors, w2v.wv.vectors)


# ----------------------------------------------------------------------------------------------- what cannot be trained


@pytest.mark.parametrize("model", [{}, {"w": [1, 2]}, object(), 7, [1.0], (), None])
def test_a_model_without_arrays_has_nothing_to_train(model: Any) -> None:
    with pytest.raises(UsageError, match=f"type {type(model).__name__} has nothing to train: expected a dict of numpy"):
        Model(model)


@pytest.mark.parametrize("dtype", [object, "U3", np.complex128, "datetime64[s]", bool, ">f8"])
def test_an_array_that_is_not_of_numbers_is_named(dtype: Any) -> None:
    with pytest.raises(UsageError, match=r"'odd' of the model has dtype .*, expected one of float16, float32, float64"):
        Model({"w": np.ones(2), "odd": np.zeros(2, dtype)})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("v",), "'v' of the model is a NoneType, expected a numpy array"),
        (("inner",), "'inner' of the model is a Line, expected a numpy array"),
        (("inner.name",), "'inner.name' of the model is a str, expected a numpy array"),
        (("inner.none.w",), "'inner.none.w' of the model is a NoneType, expected a numpy array"),
        ((), "nothing to train"),
    ],
)
def test_a_parameter_that_is_no_array_is_named(names: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Model(Nest(), parameters=names)


def test_word2vec_without_vocabulary_is_told_what_to_do() -> None:
    with pytest.raises(UsageError, match="no vocabulary: call build_vocab first"):
        Model(gensim.models.Word2Vec(vector_size=4, min_count=1))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones((3, 2)), r"'w': shape \(3, 2\), expected \(2, 3\); assign in place"),
        (np.ones((2, 3), np.float32), "'w': dtype float32, expected float64; assign in place"),
        (None, r"'w' of the model is now a NoneType, expected 'w': float64 \(2, 3\)"),
        (7.0, r"'w' of the model is now a float, expected 'w': float64 \(2, 3\)"),
    ],
)
def test_an_array_that_changed_in_training_is_named_with_what_it_should_be(value: Any, message: str) -> None:
    model = Model({"w": np.ones((2, 3))})
    model.model["w"] = value
    with pytest.raises(UsageError, match=message):
        model.check_unchanged()


@pytest.mark.parametrize("names", [("",), ("w" * 1000,), ("a", ("b" * 300, 1))])
def test_a_model_whose_names_cannot_travel_is_refused(names: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError, match="name"):
        Model({name: np.zeros(1) for name in names})


def test_a_model_of_more_arrays_than_an_update_can_name_is_refused() -> None:
    arrays = {f"w{index}": np.zeros(1) for index in range(MODEL_ARRAYS_MAX + 1)}
    with pytest.raises(
        UsageError,
        match=r"more than 2000 arrays, expected fewer|2001 arrays to train, expected at most 2000",
    ):
        Model(arrays)


def test_one_array_under_two_names_is_refused() -> None:
    w = np.ones((2, 3))
    with pytest.raises(UsageError, match=r"'decoder' .*'encoder'.* same memory"):
        Model({"encoder": w, "decoder": w.T})


# ------------------------------------------------------------------------------------- arrays within, aliases and views


class Layer:
    def __init__(self, size: int) -> None:
        self.w, self.kind = np.full(size, float(size)), "dense"


def again(model: Model) -> Any:
    """The user's object as a worker has it."""
    copy = Model.from_skeleton(model.skeleton())
    copy.load(model.arrays())
    return copy.model


def test_arrays_within_dicts_lists_tuples_and_objects_are_trained_by_their_path() -> None:
    nested = {
        "layers": [Layer(2), Layer(3)],
        "head": {"w": np.ones(4), "names": np.array(["a"]), 7: np.ones(1)},
        "pair": (np.zeros(1), SimpleNamespace(b=np.zeros(2))),
        "rate": 0.1,
    }
    model = Model(nested)
    assert model.names == ("head.7", "head.w", "layers.0.w", "layers.1.w", "pair.0", "pair.1.b")
    there = again(model)
    np.testing.assert_array_equal(there["layers"][1].w, [3, 3, 3])
    assert there["head"]["names"].tolist() == ["a"]
    model.load({name: array + 1 for name, array in model.arrays().items()})
    np.testing.assert_array_equal(nested["layers"][0].w, [3, 3])
    np.testing.assert_array_equal(nested["pair"][0], [1])
    assert Model(nested, parameters=["layers.1.w", "pair.1.b"]).names == ("layers.1.w", "pair.1.b")


def test_arrays_of_a_library_s_objects_within_a_model_are_left_to_it() -> None:
    assert Model({"w": np.zeros(2), "words": word2vec()}).names == ("w",)


def test_a_list_of_layers_that_are_attributes_too_is_the_same_arrays_there() -> None:
    line = Line()
    line.layers = [line.slope, {"offset": line.offset}]  # type: ignore[attr-defined]
    model = Model(line)
    assert model.names == ("offset", "slope")
    there = again(model)
    assert there.layers[0] is there.slope
    assert there.layers[1]["offset"] is there.offset
    there.layers[0] += 1
    np.testing.assert_array_equal(there.slope, [2, 3])


def test_views_of_a_trained_array_are_views_of_it_there() -> None:
    flat = np.arange(12.0)
    there = again(Model({"flat": flat, "parts": [flat[:4].reshape(2, 2), flat[:3:-2], flat[5:5]]}))
    there["flat"][:] = np.arange(12.0) * 10
    np.testing.assert_array_equal(there["parts"][0], [[0, 10], [20, 30]])
    np.testing.assert_array_equal(there["parts"][1], [110, 90, 70, 50])
    assert there["parts"][2].shape == (0,)


def test_an_array_around_a_trained_one_is_refused() -> None:
    flat = np.zeros(4)
    with pytest.raises(UsageError, match=r"'store\.flat' and 'w' of the model are the same memory"):
        Model({"w": flat[:2], "store": {"flat": flat}})
    with pytest.raises(UsageError, match=r"shape \(4,\) in the model shares memory with 'w', and is no part of it"):
        Model({"w": flat[:2], "flat": flat}, parameters=["w"]).skeleton()


@dataclass(frozen=True)
class Frozen:
    w: np.ndarray


@dataclass(slots=True)
class Slots:
    w: np.ndarray
    rate: float = 0.1


def test_frozen_objects_and_those_with_slots_are_trained_in_place() -> None:
    for original in (Frozen(np.ones(2)), Slots(np.ones(2))):
        model = Model(original)
        np.testing.assert_array_equal(again(model).w, [1, 1])
        model.load({"w": np.full(2, 5.0)})
        np.testing.assert_array_equal(original.w, [5, 5])


class Fresh:
    """Gives another array each time."""

    @property
    def w(self) -> np.ndarray:
        return np.ones(2)


def read_only() -> np.ndarray:
    array = np.ones(2)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("model", "parameters", "message"),
    [
        (Frozen(read_only()), None, "'w' of the model is read-only and cannot be replaced .Frozen.*: copy it"),
        ({"pair": (read_only(),)}, None, r"'pair.0' of the model is read-only and cannot be replaced \(TypeError"),
        ({"w": np.matrix([[1.0]])}, None, r"'w' of the model is a matrix, expected a plain numpy array: numpy.asarray"),
        ({"w": np.ma.zeros(2)}, None, "'w' of the model is a MaskedArray, expected a plain numpy array"),
        (Fresh(), ("w",), "'w' of the model is another array each time it is asked for"),
        ({"w": np.lib.stride_tricks.as_strided(np.ones(1), (3,), (0,))}, None, "'w' of the model repeats its numbers"),
        (
            {"w": np.array([1, np.nan, np.inf])},
            None,
            "the model's 'w': 2 of 3 numbers are NaN or infinite, expected none",
        ),
    ],
)
def test_a_model_that_could_not_be_trained_right_is_refused_by_name(model: Any, parameters: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Model(model, parameters)
    assert "rate" not in str(caught.value).replace("expected", ""), "the learning rate is not to blame"


def test_a_number_in_the_place_of_an_array_without_dimensions_becomes_one_again() -> None:
    model = Model({"b": np.array(1.0)})
    model.model["b"] = model.model["b"] - 0.25
    model.check_unchanged()
    assert isinstance(model.model["b"], np.ndarray)
    assert model.arrays()["b"] == 0.75


def test_an_array_without_numbers_is_none_that_repeats_them() -> None:
    assert Model({"w": np.zeros((0, 5)), "v": np.zeros(3)}).layout.nbytes > 0


def test_a_class_in_the_place_of_a_model_is_told() -> None:
    class Net:
        def __init__(self) -> None:
            self.w = np.zeros(2)

    with pytest.raises(UsageError, match=r"model is the class Net, expected an object of it: Net\(\.\.\.\)"):
        Model(Net)
