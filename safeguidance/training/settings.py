"""One check for the numbers in the settings of training runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..errors import InputError

MAX_SEED = 0xFFFFFFFF
"""Largest seed of a run; generators are seeded with a multiple of it."""


def check_numbers(config: Any, low: Mapping[str, float], high: Mapping[str, float]) -> None:
    """Refuse what is not a number, or out of its range.

    Args:
        config: a dataclass whose fields are all declared as ``int`` or ``float``.
        low: smallest value by field, 0 where not named.
        high: largest value by field, none where not named.

    Raises:
        InputError: naming field, value and range.
    """
    for item in fields(config):
        value, least, most = getattr(config, item.name), low.get(item.name, 0), high.get(item.name, math.inf)
        whole = item.type in (int, "int")
        number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not least <= value <= most:
            kind = "a whole number" if whole else "a number"
            limits = f"of {least:g} or more" if most == math.inf else f"from {least:g} to {most}"
            raise InputError(item.name, f"it is {value!r}", f"{kind} {limits}")


def check_cfg_scale(scale: float) -> None:
    """Refuse a cfg scale that cannot be trained for.

    Raises:
        InputError: if it is not above 1.
    """
    if not scale > 1:
        raise InputError("scale", f"it is {scale!r}", "above 1, since cfg 1 has no unconditional branch")
