"""From what one types to strategies and codecs."""

import pytest

from gossip.compression import Int8, TopK
from gossip.errors import UsageError
from gossip.mixing import Choco, Compressed, DPsgd, Every, PushSum, RelaySum
from p2p.lab.grid import Case, named_topology, split
from p2p.lab.strategies import canonical, codec_named, compressed, strategy_named


def test_names_and_expressions_are_one() -> None:
    for text in ("dpsgd", "D-PSGD", "DPsgd", "DPsgd()"):
        assert strategy_named(text, 4) == DPsgd()
        assert canonical(text) == "DPsgd()"
    text = "Every(4, Compressed(TopK(0.01), Choco()))"
    assert strategy_named(text, 4) == Every(4, Compressed(TopK(0.01), Choco()))
    assert canonical(text) == text
    assert strategy_named("PushSum(grid=2.0**-32)", 4) == PushSum(grid=2.0**-32)
    assert codec_named("int8") == Int8()
    assert codec_named("none") is None


def test_the_number_of_peers_can_be_written_as_a_word() -> None:
    assert canonical("relay-sum") == "RelaySum()"
    assert strategy_named("relay-sum", 7) == RelaySum()


def test_a_codec_goes_inside_of_every() -> None:
    assert compressed(Every(4, Choco()), TopK(0.5)) == Every(4, Compressed(TopK(0.5), Choco()))


@pytest.mark.parametrize(
    "text",
    ["nonsense", "__import__('os').abort()", "DPsgd().check", "TopK(0.1)", "Every(2, open('x'))", "9**9**9**9", ""],
)
def test_nothing_else_is_read(text: str) -> None:
    with pytest.raises(UsageError, match=r"algorithm .* expected .*Choco"):
        strategy_named(text, 4)


def test_wrong_arguments_are_told() -> None:
    with pytest.raises(UsageError, match=r"'Every\(4\)'.*strategy"):
        strategy_named("Every(4)", 4)
    with pytest.raises(UsageError, match="expected"):
        codec_named("TopK(7)")


def test_a_number_of_peers_that_a_topology_cannot_have_comes_with_the_nearest_that_work() -> None:
    with pytest.raises(UsageError, match=r"hypercube of 12 peers.*works with 8 or 16 peers"):
        named_topology("hypercube", 12, seed=0)
    with pytest.raises(UsageError, match=r"torus of 11 peers.*works with 9 or 12 peers"):
        named_topology("torus", 11, seed=0)
    with pytest.raises(UsageError, match=r"'rang' is not known, expected one of .*ring"):
        named_topology("rang", 11, seed=0)


def test_a_case_says_what_it_is() -> None:
    case = Case("Choco()", "ring", 8, compression="TopK(0.1)", loss=0.25)
    assert str(case) == "Choco() on ring of 8 peers, compression TopK(0.1), loss 0.25"
    assert not case.is_ideal
    assert Case("Choco()", "ring", 8).is_ideal


def test_a_comma_within_parentheses_is_part_of_the_value() -> None:
    assert list(split("dpsgd, Every(4, DPsgd()),x")) == ["dpsgd", "Every(4, DPsgd())", "x"]
