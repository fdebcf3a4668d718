"""From text to strategies and codecs: by name ("choco", "top-k") or as they print ("Every(4, DPsgd())").

Only the names of `gossip.mixing` and `gossip.compression` are known and only literals are read, so a settings file
cannot run anything else.
"""

from __future__ import annotations

import ast
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

from gossip import compression, mixing
from gossip.compression import Codec
from gossip.errors import UsageError
from gossip.mixing import Compressed, Every, Strategy
from gossip.mixing.strategies import bad

OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Pow: operator.pow,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
"""For numbers such as 2**-32 and 1/16."""
EXPONENT_MAX = 1000


def folded(name: str) -> str:
    """Lower case, letters and digits only: "push-sum", "push_sum" and "PushSum" are one name."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _classes(parent: type, *modules: Any) -> dict[str, type]:
    return {
        folded(each.__name__): each
        for module in modules
        for name, each in vars(module).items()
        if inspect.isclass(each) and issubclass(each, parent) and not inspect.isabstract(each) and name[0] != "_"
    }


STRATEGIES: Mapping[str, type] = _classes(Strategy, mixing, bad)
CODECS: Mapping[str, type] = _classes(Codec, compression)


def canonical(text: str) -> str:
    """The one spelling of what `text` names: "dpsgd" and "DPsgd()" are "DPsgd()".

    Raises:
        UsageError: as `strategy_named`.
    """
    if folded(text) == "none":
        return "none"
    known = {**STRATEGIES, **CODECS}
    if folded(text) in known:
        return f"{known[folded(text)].__name__}()"
    value = _read(text, Strategy | Codec, known, "algorithm", peers=2)
    tree = ast.parse(text.strip(), mode="eval")
    of_peers = any(isinstance(node, ast.Name) and node.id == "peers" for node in ast.walk(tree))
    return ast.unparse(tree) if of_peers else repr(value)


def strategy_named(text: str, peers: int) -> Strategy[Any]:
    """The strategy that `text` names or prints as; the word peers in it stands for their number.

    Raises:
        UsageError: there is none; the known ones are listed.
    """
    strategy: Strategy[Any] = _read(canonical(text), Strategy, STRATEGIES, "algorithm", peers)
    return strategy


def codec_named(text: str) -> Codec | None:
    """The codec that `text` names or prints as; None for "none".

    Raises:
        UsageError: there is none; the known ones are listed.
    """
    if folded(text) == "none":
        return None
    codec: Codec = _read(text, Codec, CODECS, "compression", peers=0)
    return codec


def compressed(strategy: Strategy[Any], codec: Codec | None) -> Strategy[Any]:
    """`strategy` with packets that `codec` makes smaller, `Every` around it staying outside.

    Raises:
        UsageError: it does not compose.
    """
    if codec is None:
        return strategy
    if isinstance(strategy, Every):
        return Every(strategy.rounds, Compressed(codec, strategy.strategy))
    return Compressed(codec, strategy)


def _read(text: str, wanted: Any, known: Mapping[str, type], what: str, peers: int) -> Any:
    names = ", ".join(sorted(each.__name__ for each in known.values()))
    try:
        value = _evaluate(ast.parse(text.strip(), mode="eval").body, peers)
    except (SyntaxError, ValueError):
        raise UsageError(f"{what} {text!r} is not known, expected a name or an expression of {names}") from None
    except TypeError as error:
        raise UsageError(f"{what} {text!r}: {error}") from None
    if not isinstance(value, wanted):
        raise UsageError(f"{what} {text!r}, expected one of {names}")
    return value


def _evaluate(node: ast.expr, peers: int) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name(id="peers"):
            return peers
        case ast.UnaryOp(op=ast.USub()):
            return -_evaluate(node.operand, peers)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            a, b = _evaluate(left, peers), _evaluate(right, peers)
            if not isinstance(a, int | float) or not isinstance(b, int | float) or abs(b) > EXPONENT_MAX:
                raise ValueError(f"{a!r} and {b!r} are not numbers")
            return OPERATORS[type(op)](a, b)
        case ast.Name(id=name):
            return _class(name)()
        case ast.Call(func=ast.Name(id=name)):
            named = {each.arg: _evaluate(each.value, peers) for each in node.keywords if each.arg}
            return _class(name)(*(_evaluate(each, peers) for each in node.args), **named)
    raise ValueError("neither a name nor a number")


def _class(name: str) -> type:
    found = STRATEGIES.get(folded(name)) or CODECS.get(folded(name))
    if found is None:
        raise ValueError(f"{name} is not known")
    return found
