"""Settings of a method, declared once: the node's inputs, their ranges and what presets say all come from here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

from ..errors import InputError, check_choice, check_range


@dataclass(frozen=True)
class Setting:
    """One field of a method's settings.

    Args:
        name: of the input on the node.
        tooltip: what low and high do, and the paper's value.
        low: smallest value.
        high: largest value.
        step: of the input.
        choices: for a choice, its values; then there is no range.
        field: where it is in the settings, with dots for parts; by default the name.
        by_preset: whether presets set it; then the node's default says so, and what a user types is used instead.
        limits: the range that the method itself allows where it is wider than the node's.
        integer: whether it is a whole number.
        lines: whether it is a text of several lines, kept as a tuple of lines.
        turns_off: whether 0 switches the method off, together with all other such settings of it.
    """

    name: str
    tooltip: str
    low: float = 0.0
    high: float = 1.0
    step: float = 0.01
    choices: tuple[str, ...] = ()
    field: str = ""
    by_preset: bool = False
    limits: tuple[float, float] | None = None
    integer: bool = False
    lines: bool = False
    turns_off: bool = False

    @property
    def path(self) -> tuple[str, ...]:
        """Names that lead to the field, from the settings as a whole."""
        return tuple((self.field or self.name).split("."))

    @property
    def kind(self) -> Literal["choice", "lines", "int", "float"]:
        """What sort of value it is."""
        return "choice" if self.choices else "lines" if self.lines else "int" if self.integer else "float"

    def read(self, config: Any) -> Any:
        """Its value in a method's settings."""
        for name in self.path:
            config = getattr(config, name)
        return config

    def check(self, value: Any) -> None:
        """Refuse a value that the method does not allow.

        Raises:
            InputError: naming field, value and range.
        """
        if self.kind == "choice":
            check_choice(self.name, value, self.choices)
        elif self.kind in ("int", "float"):
            low, high = self.limits or (self.low, self.high)
            for number in value if isinstance(value, tuple) else (value,):
                if not isinstance(number, (int, float)):
                    raise InputError(self.name, f"it is {number!r}", f"{low:g} to {high:g}")
                check_range(self.name, number, low, high)


def check_settings(config: Any, settings: tuple[Setting, ...], own_field: str = "") -> None:
    """Refuse settings that are out of range.

    Args:
        config: a dataclass of settings.
        settings: their declaration; those that are no field of ``config`` are not checked.
        own_field: prefix of the declared fields that belong to ``config``.

    Raises:
        InputError: naming field, value and range.
    """
    prefix = tuple(own_field.split(".")) if own_field else ()
    for setting in settings:
        if setting.path[:-1] == prefix:
            setting.check(getattr(config, setting.path[-1]))


def with_values(config: Any, settings: tuple[Setting, ...], values: Mapping[str, Any]) -> Any:
    """Settings with some values replaced.

    Args:
        config: a dataclass of settings.
        settings: their declaration.
        values: by the name of the input.

    Raises:
        InputError: if a name is unknown or a value out of range.
    """
    known = {setting.name: setting for setting in settings}
    tree: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise InputError(name, "there is no such setting", ", ".join(known))
        place = tree
        *parents, last = known[name].path
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return _replaced(config, tree)


def _replaced(config: Any, tree: Mapping[str, Any]) -> Any:
    own = {field.name: getattr(config, field.name) for field in fields(config)}
    changes = {
        name: _replaced(own[name], value) if isinstance(value, dict) and is_dataclass(own[name]) else value
        for name, value in tree.items()
    }
    return replace(config, **changes) if changes else config
