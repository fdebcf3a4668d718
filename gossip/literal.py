"""Values whose `repr` is the expression that makes them."""

from __future__ import annotations

from dataclasses import MISSING, fields

from gossip.arguments import check_fields


class Literal:
    """A base for dataclasses: required fields by position, others by name where they differ from the default.

    Fields that are numbers by their annotations are checked to be, and are Python's own.
    """

    def __post_init__(self) -> None:
        check_fields(self)

    def __repr__(self) -> str:
        parts = []
        for each in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, each.name)
            if not each.init or not each.repr:
                continue
            if each.default is MISSING:
                parts.append(repr(value))
            elif value != each.default:
                parts.append(f"{each.name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"
