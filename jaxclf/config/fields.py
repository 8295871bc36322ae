"""Fields of a config dataclass: the bounds that stand in their types, and their values from JSON.

`Annotated[int, at_least(1)]` is an int to tyro and pyright, and a bound to `faults`. A field that is None is left to
what it belongs to, and has no bound.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from jaxclf.errors import UsageError, unknown

T = TypeVar("T")


class Bound(NamedTuple):
    """The values that a field may have."""

    holds: Callable[[Any], bool]
    allowed: str


def at_least(least: int) -> Bound:
    """Return the bound of whole numbers from `least` on."""
    return Bound(lambda value: value >= least, f"at least {least}")


Count = Annotated[int, at_least(1)]
Natural = Annotated[int, at_least(0)]
Weight = Annotated[float, Bound(lambda value: 0 <= value < math.inf, "at least 0 and finite")]
Positive = Annotated[float, Bound(lambda value: 0 < value < math.inf, "above 0 and finite")]
Share = Annotated[float, Bound(lambda value: 0 <= value < 1, "from 0 to below 1")]
Probability = Annotated[float, Bound(lambda value: 0 <= value <= 1, "from 0 to 1")]


def faults(part: Any, path: str = "") -> Iterator[str]:
    """Yield a line for each field of a dataclass, and of those inside it, whose value is not allowed."""
    hints = typing.get_type_hints(type(part), include_extras=True)
    for name in (field.name for field in dataclasses.fields(part)):
        value, where, hint = getattr(part, name), path + name, hints[name]
        if dataclasses.is_dataclass(value):
            yield from faults(value, f"{where}.")
        elif (bound := bound_of(hint)) and value is not None and not bound.holds(value):
            yield f"{where} is {value!r} but must be {bound.allowed}"


def bound_of(hint: Any) -> Bound | None:
    """Return the bound in a type, if it has one; the words of a `Literal` are one."""
    if typing.get_origin(hint) is Literal:
        words = typing.get_args(hint)
        return Bound(lambda value: value in words, f"one of {', '.join(words)}")
    nested = (bound_of(option) for option in typing.get_args(hint))
    return next(filter(None, [*getattr(hint, "__metadata__", ()), *nested]), None)


# By hand, since msgspec 0.22 passes over unknown fields of a dataclass and does not show a wrong value, and cattrs 26.2
# takes "0.1" and True for numbers.
def build(cls: type[T], values: Any, path: str = "") -> T:
    """Return the dataclass with these fields; raises `UsageError` for an unknown field and a value of a wrong type."""
    if not isinstance(values, Mapping):
        raise UsageError(f"config {path.rstrip('.') or 'as a whole'} is {values!r} but must be fields with values")
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise unknown("config field", path + str(name), [path + hint for hint in hints])
    return cls(**{name: _converted(hints[name], value, path + name) for name, value in values.items()})


def _converted(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, path + ".")
    words = typing.get_origin(hint) is Literal
    options = (hint,) if words or typing.get_origin(hint) is tuple else typing.get_args(hint) or (hint,)
    for option in options:
        kind = typing.get_origin(option) or option
        if kind is Literal and value in typing.get_args(option):
            return value
        if kind is tuple and isinstance(value, list | tuple):
            inner = typing.get_args(option)[0]
            return tuple(_converted(inner, item, f"{path}[{index}]") for index, item in enumerate(value))
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(kind, type) and type(value) is kind:
            return value
    allowed = f"one of {', '.join(map(repr, typing.get_args(hint)))}" if words else " | ".join(map(_shown, options))
    raise UsageError(f"config field {path} is {value!r} but must be {allowed}")


def _shown(option: Any) -> str:
    if option is type(None):
        return "None"
    return option.__name__ if isinstance(option, type) and not typing.get_args(option) else str(option)
