"""Typed reading of a table: each field has one type and one range, and a name that is not known is refused."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..card_fields import shown
from ..errors import InputError

LONGEST, MOST_ITEMS = 1_000, 10_000
"""Characters of a text; items of a list or table."""


class Fields:
    """A table of the policy file.

    Args:
        values: what the file holds.
        path: where the table stands in it, "" for the file itself.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._values, self._path, self._read = values, path, set[str]()

    def name_of(self, key: str) -> str:
        """A field's full name, as messages have it."""
        return f"{self._path}.{plain_key(key)}" if self._path else plain_key(key)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Put the table's name before the fields of errors that are raised inside.

        Raises:
            InputError: what was raised inside.
        """
        try:
            yield
        except InputError as error:
            if error.field[: len(self._path)] == self._path:
                raise
            field = f"{self._path}.{error.field}"
            raise InputError(field, error.found, error.allowed, error.next_step) from error

    def done(self, known: tuple[str, ...] = ()) -> None:
        """Refuse what nobody read.

        Raises:
            InputError: naming the first such field.
        """
        for key in self._values:
            if key not in self._read:
                allowed = ", ".join(known or sorted(self._read)) or "nothing"
                raise InputError(self.name_of(key), "there is no such field", allowed, "check its spelling and place")

    def text(self, key: str, default: str | None = None, lines: bool = False) -> str:
        """A text that is not empty, of one line or of several; without a default it must be there."""
        value = self._take(key, default, "a text")
        if not isinstance(value, str):
            self._refuse(key, value, "a text in quotes")
        if key in self._values and not value.strip():
            self._refuse(key, value, "a text that is not empty")
        return _checked_text(self.name_of(key), value, lines)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._take(key, default, "true or false")
        if not isinstance(value, bool):
            self._refuse(key, value, "true or false")
        return bool(value)

    def number(self, key: str) -> float | None:
        """A number from 0 to 1, None where it is missing."""
        value = self._take(key, None, "")
        if key not in self._values:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            self._refuse(key, value, "a number from 0 to 1")
        return float(value)

    def whole(self, key: str, default: int, low: int, high: int) -> int:
        """A whole number."""
        value = self._take(key, default, "a whole number")
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self._refuse(key, value, f"a whole number from {low:,} to {high:,}")
        return int(value)

    def choice(self, key: str, default: str | None, allowed: tuple[str, ...]) -> str:
        """One of several words."""
        value = self._take(key, default, ", ".join(allowed))
        if not isinstance(value, str) or value not in allowed:
            self._refuse(key, value, ", ".join(allowed))
        return str(value)

    def names(self, key: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        """A list of texts, none empty and none twice."""
        value = self._take(key, default, "a list of texts")
        allowed = f"a list of at most {MOST_ITEMS:,} texts, none empty, none twice"
        if not isinstance(value, (list, tuple)) or len(value) > MOST_ITEMS:
            self._refuse(key, value, allowed)
        for item in value:
            if not isinstance(item, str) or not item.strip():
                self._refuse(key, value, allowed)
            _checked_text(self.name_of(key), item)
        if len(set(value)) < len(value):
            self._refuse(key, value, allowed)
        return tuple(value)

    def table(self, key: str, required: bool = False) -> Fields:
        """A table; an empty one where it is missing and need not be there."""
        value = self._take(key, None if required else {}, f"a table, as [{self.name_of(key)}]")
        return Fields(self._mapping(key, value), self.name_of(key))

    def tables(self, key: str) -> list[Fields]:
        """A list of tables; empty where it is missing.

        Raises:
            InputError: if something in it is no table.
        """
        value = self._take(key, [], "")
        if not isinstance(value, list) or len(value) > MOST_ITEMS:
            self._refuse(key, value, f"tables, each as [[{self.name_of(key)}]]")
        named = [(f"{self.name_of(key)}[{number}]", item) for number, item in enumerate(value, 1)]
        for name, item in named:
            if not isinstance(item, dict):
                raise InputError(name, f"it is {shown(item)}", f"a table, as [[{self.name_of(key)}]]")
        return [Fields(item, name) for name, item in named]

    def items(self) -> Iterator[tuple[str, Fields]]:
        """Every field of a table of tables, by its name."""
        self._count()
        for key in self._values:
            _checked_text(self._path, key)
            yield key, self.table(key)

    def texts(self, what: str) -> dict[str, str]:
        """Every field of a table of texts.

        Args:
            what: what each of them is, for messages.
        """
        self._count()
        found = {}
        for key in self._values:
            _checked_text(self._path, key)
            value = self._take(key, None, what)
            if not isinstance(value, str) or not value.strip():
                self._refuse(key, value, what)
            found[key] = _checked_text(self.name_of(key), value)
        return found

    def values(self) -> dict[str, Any]:
        """Every field as it is, for checks elsewhere."""
        self._count()
        self._read |= set(self._values)
        return dict(self._values)

    def _count(self) -> None:
        if len(self._values) > MOST_ITEMS:
            raise InputError(self._path, f"it has {len(self._values):,} fields", f"at most {MOST_ITEMS:,}")

    def _take(self, key: str, default: Any, allowed: str) -> Any:
        self._read.add(key)
        if key in self._values:
            return self._values[key]
        if default is None and allowed:
            raise InputError(self.name_of(key), "it is missing", allowed)
        return default

    def _mapping(self, key: str, value: object) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            self._refuse(key, value, f"a table, as [{self.name_of(key)}]")
        return value  # type: ignore[return-value]

    def _refuse(self, key: str, value: object, allowed: str) -> None:
        raise InputError(self.name_of(key), f"it is {shown(value)}", allowed)


def plain_key(text: str) -> str:
    """A name of a field for a message: short, and nothing that a terminal would act on."""
    return "".join(c if c.isprintable() else "?" for c in text[:100]) or '""'


def _checked_text(name: str, value: str, lines: bool = False) -> str:
    """Refuse texts that are too long, or hold what terminals and logs must not get."""
    if len(value) > LONGEST:
        raise InputError(name, f"it has {len(value):,} characters", f"at most {LONGEST:,}")
    if any(unicodedata.category(c) in ("Cc", "Cs") and not (lines and c == "\n") for c in value):
        allowed = "plain text" if lines else "plain text on one line"
        raise InputError(name, "it holds a control character", allowed)
    return value
