"""Options of a judge from a configuration file: typed, in range, none unknown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError, check_range


class Options:
    """Options of one judge; each is taken once, and ``finish`` refuses what nobody took.

    Args:
        judge: name of the judge, for messages.
        given: the options.
    """

    def __init__(self, judge: str, given: Mapping[str, Any]) -> None:
        self.judge, self._left = judge, dict(given)
        self._known: list[str] = []

    def _take(self, key: str, default: Any) -> Any:
        self._known.append(key)
        return self._left.pop(key, default)

    def field(self, key: str) -> str:
        """An option as messages name it."""
        return f"judge {self.judge}, {key}"

    def number(self, key: str, default: float, low: float, high: float, meaning: str = "") -> float:
        """A number in a range; the default may lie outside of it (NaN: no threshold).

        Raises:
            InputError: if it is no number, or out of range.
        """
        if key not in self._left:
            self._known.append(key)
            return default
        value = self._take(key, default)
        if not isinstance(value, (int, float)):
            raise InputError(self.field(key), f"it is {value!r}", f"a number, {low:g} to {high:g}")
        check_range(self.field(key), value, low, high, meaning)
        return float(value)

    def whole(self, key: str, default: int, low: int, high: int) -> int:
        """A whole number in a range.

        Raises:
            InputError: if it is none, or out of range.
        """
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(self.field(key), f"it is {value!r}", f"a whole number, {low} to {high}")
        check_range(self.field(key), value, low, high)
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A text; one that must be given where the default is None.

        Raises:
            InputError: if it is missing, or no text.
        """
        value = self._take(key, default)
        if value is None:
            raise InputError(self.field(key), "it is missing", "a text", f"add {key} = ... to the judge's table")
        if not isinstance(value, str):
            raise InputError(self.field(key), f"it is {value!r}", "a text")
        return value

    def texts(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of different texts, not empty; one that must be given where the default is None.

        Raises:
            InputError: if it is missing, empty, holds something else or a text twice.
        """
        found = self.texts_in_order(key, default)
        if len(set(found)) < len(found):
            raise InputError(self.field(key), f"it is {list(found)!r}", "each text once")
        return found

    def texts_in_order(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of texts, not empty, each as often as it likes; one that must be given where the default is None.

        Raises:
            InputError: if it is missing, empty, or holds something else.
        """
        value = self._take(key, default)
        if value is None:
            raise InputError(self.field(key), "it is missing", "a list of texts", f"add {key} = [...]")
        if isinstance(value, str) or not isinstance(value, (list, tuple)) or not value:
            raise InputError(self.field(key), f"it is {value!r}", "a list of texts with at least one in it")
        if not all(isinstance(item, str) and item.strip() for item in value):
            raise InputError(self.field(key), f"it is {value!r}", "texts that are not empty")
        return tuple(value)

    def table(self, key: str, default: Mapping[str, Any]) -> dict[str, Any]:
        """A table.

        Raises:
            InputError: if it is something else.
        """
        value = self._take(key, default)
        if not isinstance(value, Mapping):
            raise InputError(self.field(key), f"it is {value!r}", "a table")
        return dict(value)

    def file(self, key: str, folder: bool = False) -> Path:
        """A file (or folder) that is there.

        Raises:
            InputError: if it is missing.
        """
        path = Path(self.text(key)).expanduser()
        if not (path.is_dir() if folder else path.is_file()):
            kind = "folder" if folder else "file"
            raise InputError(self.field(key), f"there is no {kind} {path}", f"the path of a {kind}")
        return path

    def optional_file(self, key: str) -> Path | None:
        """A file that is there, None where none is named.

        Raises:
            InputError: if it is named and missing.
        """
        if key not in self._left:
            self._known.append(key)
            return None
        return self.file(key)

    def finish(self) -> None:
        """Refuse options that no one took.

        Raises:
            InputError: naming the first of them and those there are.
        """
        for key in self._left:
            raise InputError(self.field(key), "there is no such option", ", ".join(sorted(set(self._known))))
