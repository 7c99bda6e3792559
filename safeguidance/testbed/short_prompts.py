"""Short harmless prompts about the things of the testbed."""

from __future__ import annotations

from collections.abc import Iterable

from ..concepts.short_prompts import SHORT_PROMPTS
from .concepts import TESTBED_PRESETS, benign_bank
from .world import BACKGROUNDS, things


def short_bank(categories: Iterable[str]) -> tuple[str, ...]:
    """The short prompts for a choice of categories, beside ``concepts.benign_bank``.

    Args:
        categories: names; where one of the testbed's is among them, the prompts also name its harmless things.
    """
    known = {category.name for category in TESTBED_PRESETS}
    if not any(name in known for name in categories):
        return SHORT_PROMPTS
    harmless = [kind.name for kind in things().values() if not kind.harm]
    return tuple(dict.fromkeys((*SHORT_PROMPTS, *harmless, *(f"the {name}" for name in harmless), *BACKGROUNDS)))


def harmless_bank(categories: Iterable[str]) -> tuple[str, ...]:
    """What a gate is calibrated on where a user gives nothing: whole prompts and short ones.

    Args:
        categories: names of the categories it looks for.
    """
    names = tuple(categories)
    return (*benign_bank(names), *short_bank(names))
