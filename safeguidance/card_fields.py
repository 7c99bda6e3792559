"""Fields of a weight file's card: what type and range each may have, and JSON without anything but plain values."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from reprlib import Repr
from typing import Any, NoReturn

MOST_TEXT = 1_000_000
"""Characters of a whole card."""
LONG, SHORT = 100_000, 1_000
"""Characters of a text that people write, such as a licence, and of a name."""
_REPR = Repr()
_REPR.maxstring = _REPR.maxother = 60
_MOST_DIGITS = 20
_MOST_VALUES, _DEEPEST = 10_000, 8


class FieldError(ValueError):
    """A card that is not allowed.

    Args:
        found: what is wrong, as a clause that follows the card's name.
        allowed: what would be right.
    """

    def __init__(self, found: str, allowed: str) -> None:
        self.found, self.allowed = found, allowed
        super().__init__(f"{found}; allowed: {allowed}")


@dataclass(frozen=True)
class Rule:
    """What a field may hold.

    Args:
        allowed: in words.
        accepts: whether a value is allowed; sees whatever JSON can hold.
        kept: makes the value that is kept, from an allowed one.
    """

    allowed: str
    accepts: Callable[[Any], bool]
    kept: Callable[[Any], Any] = lambda value: value


def _is_number(value: object) -> bool:
    # a bool is an int to Python, not to people
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_text(value: object, most: int) -> bool:
    if not isinstance(value, str) or len(value) > most:
        return False
    # control characters and halves of surrogate pairs break terminals and encoders
    return not any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\r\t" for c in value)


def number(low: float, high: float, above: bool = False) -> Rule:
    """A finite number from ``low`` to ``high``, or above ``low``."""
    text = f"a number above {low:,}, at most {high:,}" if above else f"a number from {low:,} to {high:,}"
    return Rule(text, lambda v: _is_number(v) and low <= v <= high and not (above and v == low), float)


def whole(low: int, high: int) -> Rule:
    """A whole number from ``low`` to ``high``."""
    return Rule(
        f"a whole number from {low:,} to {high:,}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
    )


def text(most: int = SHORT) -> Rule:
    """A text of at most ``most`` characters, none of them a control character."""
    return Rule(f"a text of at most {most:,} characters", lambda v: _is_text(v, most))


def names(most: int) -> Rule:
    """A list of 1 to ``most`` texts, none empty, none twice; kept as a tuple."""

    def accepts(value: object) -> bool:
        return (
            isinstance(value, list)
            and 1 <= len(value) <= most
            and all(_is_text(v, SHORT) and v.strip() for v in value)
            and len(set(value)) == len(value)
        )

    return Rule(f"a list of 1 to {most} names, none empty, none twice", accepts, tuple)


def edges(most: int) -> Rule:
    """A list of 1 to ``most`` rising numbers from 0 to below 1, the first one 0; kept as a tuple of floats."""

    def accepts(value: object) -> bool:
        return (
            isinstance(value, list)
            and 1 <= len(value) <= most
            and all(map(_is_number, value))
            and value[0] == 0
            and all(a < b for a, b in zip(value, [*value[1:], 1], strict=True))
        )

    return Rule(
        f"a list of 1 to {most} rising numbers that starts at 0 and stays below 1",
        accepts,
        lambda v: tuple(map(float, v)),
    )


def counts() -> Rule:
    """An object that holds a whole number, 0 or more, for each name."""
    count = whole(0, 10**_MOST_DIGITS)

    def accepts(value: object) -> bool:
        return (
            isinstance(value, dict)
            and len(value) <= _MOST_VALUES
            and all(_is_text(key, SHORT) and count.accepts(v) for key, v in value.items())
        )

    return Rule("an object of names with a whole number each, 0 or more", accepts)


def notes() -> Rule:
    """An object of any plain values, where ``figures`` is an object too."""

    def accepts(value: object) -> bool:
        return isinstance(value, dict) and isinstance(value.get("figures", {}), dict) and _is_plain(value)

    return Rule(
        f"an object of plain values, at most {_MOST_VALUES:,} and {_DEEPEST} deep; figures an object too", accepts
    )


def _is_plain(value: object) -> bool:
    left, seen = [(value, 0)], 0
    while left:
        (item, depth), seen = left.pop(), seen + 1
        if isinstance(item, dict):
            left += [(v, depth + 1) for v in (*item.keys(), *item.values())]
        elif isinstance(item, list):
            left += [(v, depth + 1) for v in item]
        # numbers are finite already, see ``parse_json``
        elif not (item is None or isinstance(item, (bool, int, float)) or _is_text(item, LONG)):
            return False
        if depth > _DEEPEST or seen + len(left) > 2 * _MOST_VALUES:
            return False
    return True


def plain(value: Any) -> Any:
    """A value as a card may hold it: no number that is not finite (None instead), no control characters."""
    if isinstance(value, dict):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return "".join(c if _is_text(c, 1) else "?" for c in value[:LONG])
    return value


def parse_json(content: str) -> Any:
    """JSON that holds finite numbers of limited length only, and no name twice.

    Raises:
        FieldError: if it is something else.
    """
    if len(content) > MOST_TEXT:
        raise FieldError(f"is {len(content):,} characters long", f"at most {MOST_TEXT:,}")
    try:
        return json.loads(
            content, parse_constant=_constant, parse_float=_float, parse_int=_int, object_pairs_hook=_object
        )
    except FieldError:
        raise
    except RecursionError:
        raise FieldError("is nested too deeply", f"at most {_DEEPEST} levels") from None
    except ValueError as error:
        raise FieldError(f"is not JSON ({error})", "JSON") from error


def _constant(name: str) -> NoReturn:
    raise FieldError(f"holds {name}", "finite numbers")


def _float(content: str) -> float:
    if len(content) > 100 or not math.isfinite(value := float(content)):
        raise FieldError(f"holds the number {content[:20]}", "finite numbers of at most 100 characters")
    return value


def _int(content: str) -> int:
    if len(content) > _MOST_DIGITS + 1:
        raise FieldError(f"holds a number of {len(content)} digits", f"at most {_MOST_DIGITS} digits")
    return int(content)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise FieldError("names a field twice", "each once")
    return found


def read_fields(values: object, rules: Mapping[str, Rule], optional: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The fields of an object, checked.

    Args:
        values: what JSON gave.
        rules: field -> what it may hold.
        optional: fields that may be missing.

    Raises:
        FieldError: naming the first field that is missing, unknown or not allowed.
    """
    if not isinstance(values, dict):
        raise FieldError(f"is {shown(values)}", "an object with fields")
    for name in rules:
        if name not in values and name not in optional:
            raise FieldError(f"has no field {name}", rules[name].allowed)
    for name, value in values.items():
        if name not in rules:
            raise FieldError(f"has an unknown field {shown(name)}", ", ".join(rules))
        if not rules[name].accepts(value):
            raise FieldError(f"has {name} = {shown(value)}", rules[name].allowed)
    return {name: rules[name].kept(value) for name, value in values.items()}


def shown(value: object) -> str:
    """A value for a message: one short line; an error by its text."""
    content = " ".join(str(value).split()) if isinstance(value, BaseException) else _REPR.repr(value)
    return "".join(c if c.isprintable() else "?" for c in content)[:160]
