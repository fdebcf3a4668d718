"""What callers pass in comes out as plain Python, or is refused with what came and what was expected."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from gossip.arguments import (
    SECONDS_MAX,
    check_fields,
    flag,
    function,
    instance,
    integer,
    names,
    number,
    one_of,
    plain,
    probability,
    seconds,
    series,
)
from gossip.errors import UsageError
from gossip.literal import Literal


def refusal(check: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(UsageError) as raised:
        check(*arguments, **options)
    return str(raised.value)


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3)])
def test_integers_of_any_kind_come_out_as_ints(value: Any) -> None:
    assert integer("n", value, 3) == 3
    assert type(integer("n", value)) is int


def test_what_is_no_integer_or_too_small_is_refused_with_what_was_expected() -> None:
    assert refusal(integer, "n", True) == "n=True, expected an integer: got a bool"
    assert refusal(integer, "n", 2.0, 1) == "n=2.0, expected an integer, at least 1: got a float"
    assert refusal(integer, "n", None, 1, "one or more") == "n=None, expected an integer, one or more"
    assert refusal(integer, "n", np.int64(2), 3) == "n=2, expected at least 3"
    assert refusal(integer, "n", -1, 0, "none or some") == "n=-1, expected none or some"
    assert integer("n", 0, 0) == 0
    assert integer("n", -5) == -5


@pytest.mark.parametrize(
    ("value", "expected"),
    [(2, 2), (2.5, 2.5), (np.int16(2), 2), (np.float32(0.5), 0.5), (10**300, 10**300), (-1e308, -1e308)],
)
def test_numbers_of_any_kind_come_out_as_ints_or_floats(value: Any, expected: float) -> None:
    found = number("x", value)
    assert found == expected
    assert type(found) is type(expected)


def test_what_is_no_finite_number_is_refused() -> None:
    assert refusal(number, "x", False) == "x=False, expected a finite number: got a bool"
    assert refusal(number, "x", "1") == "x='1', expected a finite number: got a str"
    for value in (math.nan, math.inf, -math.inf):
        assert refusal(number, "x", value) == f"x={value!r}, expected a finite number"
    assert refusal(number, "x", 10**400) == "x=1" + "0" * 79 + ", expected a finite number"
    assert refusal(number, "x", 1.0, "more than one", lambda x: x > 1) == "x=1.0, expected more than one"
    assert refusal(number, "x", 10**400, "any", lambda x: True) == "x=1" + "0" * 79 + ", expected any"


def test_times_are_more_than_nothing_and_less_than_thirty_years() -> None:
    most = "more than 0 seconds, 1e+09 at the most"
    for value in (SECONDS_MAX, 1e-9, 1):
        assert seconds("wait", value) == seconds("wait", value, zero=True) == value
    assert seconds("wait", 0, zero=True) == 0
    for value in (0, -1e-9, SECONDS_MAX * 1.001, math.inf, math.nan):
        assert refusal(seconds, "wait", value) == f"wait={value!r}, expected {most}"
    for value in (-1e-9, SECONDS_MAX * 1.001, math.inf, math.nan):
        assert refusal(seconds, "wait", value, zero=True) == f"wait={value!r}, expected seconds from 0 to 1e+09"


def test_probabilities_are_from_nought_to_one() -> None:
    for value in (0, 0.5, 1):
        assert probability("p", value) == value
    assert probability("p", 0, below_one=True) == 0
    assert probability("p", 0.999, below_one=True) == 0.999
    for value in (-0.001, 1.001, math.nan):
        assert refusal(probability, "p", value) == f"p={value!r}, expected a probability"
    for value in (-0.001, 1, math.nan):
        assert refusal(probability, "p", value, below_one=True) == f"p={value!r}, expected a probability below 1"


def test_flags_are_true_or_false() -> None:
    assert flag("f", True) is True
    assert flag("f", np.bool_(False)) is False
    assert refusal(flag, "f", 1) == "f=1, expected True or False: got a int"


def test_one_of_the_choices_is_of_the_same_type_too() -> None:
    assert one_of("c", 2, (1, 2)) == 2
    assert one_of("c", "b", ["a", "b"]) == "b"
    assert refusal(one_of, "c", True, (1, 2)) == "c=True, expected 1 or 2: got a bool"
    assert refusal(one_of, "c", "d", ("a", "b", "c")) == "c='d', expected 'a', 'b' or 'c': got a str"
    assert refusal(one_of, "c", None, ("a",)) == "c=None, expected 'a'"


def test_series_are_tuples_or_lists_of_what_is_checked() -> None:
    assert series("s", [1, np.int8(2)], integer, "integers") == (1, 2)
    assert refusal(series, "s", "12", integer, "integers") == "s='12', expected integers: got a str"
    assert refusal(series, "s", (1, 2.0), integer, "integers") == "s=2.0, expected an integer: got a float"


def test_instances_and_functions_are_what_they_should_be() -> None:
    assert instance("i", "x", str) == "x"
    assert refusal(instance, "i", 1, str) == "i is a int, expected a str"
    assert function("f", len, "f(x)") is len
    assert refusal(function, "f", 1, "f(x)") == "f is a int, expected a function f(x)"


def test_names_are_text_and_each_is_there_once() -> None:
    assert names("names", ["w", "b"]) == ("w", "b")
    assert names("names", ()) == ()
    assert refusal(names, "names", "wb").startswith("names='wb', expected a tuple or list of names")
    assert refusal(names, "names", ["w", 1]).endswith(": got a list")
    assert refusal(names, "names", ["w", "b", "w"]) == "names=['w', 'b', 'w'], expected each name once, got 'w' twice"


@dataclass(frozen=True, repr=False)
class Sample(Literal):
    required: int
    share: float = 0.5
    on: bool = False
    limit: int | None = None
    text: str = "t"
    derived: int = field(init=False, default=7)
    hidden: int = field(repr=False, default=1)
    last: float | None = None


def test_fields_are_checked_by_their_annotations_and_made_plain() -> None:
    sample = Sample(np.int64(3), np.float32(0.25), np.bool_(True), np.int8(2), last=None)  # type: ignore[arg-type]
    assert (sample.required, sample.share, sample.on, sample.limit, sample.last) == (3, 0.25, True, 2, None)
    assert [type(each) for each in (sample.required, sample.share, sample.on, sample.limit)] == [int, float, bool, int]
    assert refusal(Sample, None) == "required=None, expected an integer"
    assert refusal(Sample, 1, limit="2") == "limit='2', expected an integer: got a str"
    assert refusal(Sample, 1, last=math.nan) == "last=nan, expected a finite number"
    assert refusal(check_fields, _Plain(1.5), "plain.") == "plain.count=1.5, expected an integer: got a float"


@dataclass
class _Plain:
    count: int
    either: int | str = 1


def test_a_field_of_several_types_is_left_as_it_is() -> None:
    check_fields(_Plain(1, "x"))


def test_a_literal_is_written_as_it_is_made() -> None:
    assert repr(Sample(3)) == "Sample(3)"
    sample = Sample(3, on=True, limit=2, hidden=5, last=1.5)
    assert repr(sample) == "Sample(3, on=True, limit=2, last=1.5)"
    assert repr(Sample(4, text="u")) == "Sample(4, text='u')"


def test_a_plain_function_gets_plain_numbers() -> None:
    @plain
    def repeated(text: str, times: int, *, share: float | None = None) -> list[Any]:
        """Says so."""
        return [text, times, share, type(times)]

    assert repeated("a", np.int16(2), share=np.float64(0.5)) == ["a", 2, 0.5, int]
    assert repeated("a", times=2) == ["a", 2, None, int]
    assert refusal(repeated, "a", 2.0) == "times=2.0, expected an integer: got a float"
    assert repeated.__doc__ == "Says so."
