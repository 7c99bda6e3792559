"""The settings of each guard a policy can name, from the declarations that the nodes have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..card_fields import SHORT as LONGEST_TEXT
from ..card_fields import shown
from ..errors import InputError
from ..guidance import safecfg, sp_guard
from ..guidance.settings import Setting, with_values
from ..redirector import text_space
from ..safree import SAFREE_PRESETS
from .fields import plain_key

_MOST_LINES = 64
# method -> settings that a policy may set, and the presets they start from
_KNOWN: dict[str, tuple[tuple[Setting, ...], Mapping[str, Any]]] = {
    "text-redirector": (text_space.SETTINGS, text_space.SAFE_TEXT_PRESETS),
    "hgr": (safecfg.SETTINGS, safecfg.SAFECFG_PRESETS),
    "concepts": (safecfg.SETTINGS, safecfg.SAFECFG_PRESETS),
    "sp-guard": (sp_guard.SETTINGS, sp_guard.SP_GUARD_PRESETS),
    "safree": ((), SAFREE_PRESETS),
}


def config_of(method: str, preset: str, values: Mapping[str, Any]) -> Any:
    """The settings of a method: a preset's, with values in their place.

    Args:
        method: one of ``schema.METHODS``.
        preset: one of ``schema.PRESETS``.
        values: by the name of the node's input.

    Raises:
        InputError: if a name is unknown, a value out of range, or the whole would not guard.
    """
    settings, presets = _KNOWN[method]
    for name, value in values.items():
        _check_type(name, value, settings, method)
    try:
        config = with_values(presets[preset], settings, {n: _value(v) for n, v in values.items()})
    except InputError as error:
        raise InputError(f"settings.{error.field}", error.found, error.allowed, error.next_step) from error
    strengths = [setting for setting in settings if setting.turns_off or setting.name == "strength"]
    if strengths and all(setting.read(config) == 0 for setting in strengths):
        raise InputError(f"settings.{strengths[0].name}", "it is 0, so that nothing would be guarded", "above 0")
    for name in ("start", "end"):
        if name in values and getattr(config, "start", 0.0) >= config.end:
            found = f"it is {values[name]:g}, so that no step would be guarded"
            raise InputError(f"settings.{name}", found, "start below end")
    return config


def _is_line(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and len(value) <= LONGEST_TEXT and value.isprintable()


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_type(name: str, value: object, settings: tuple[Setting, ...], method: str) -> None:
    known = {setting.name: setting for setting in settings}
    field = f"settings.{plain_key(name)}"
    if name not in known:
        raise InputError(field, f"{method} has no such setting", ", ".join(known) or "none, a preset only")
    kind = known[name].kind
    if kind == "choice":
        fits, allowed = value in known[name].choices, ", ".join(known[name].choices)
    elif kind == "lines":
        fits = isinstance(value, (list, tuple)) and 0 < len(value) <= _MOST_LINES and all(map(_is_line, value))
        allowed = f"a list of 1 to {_MOST_LINES} texts, none empty"
    elif kind == "int":
        fits, allowed = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    else:
        fits, allowed = isinstance(value, (int, float)) and not isinstance(value, bool), "a number"
    if not fits:
        raise InputError(field, f"it is {shown(value)}", allowed)
