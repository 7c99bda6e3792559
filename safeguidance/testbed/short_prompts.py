"""Short harmless prompts in the words of the testbed."""

from __future__ import annotations

from collections.abc import Iterable

from ..concepts.short_prompts import SHORT_PROMPTS
from .concepts import TESTBED_PRESETS, benign_bank
from .world import BACKGROUNDS, BENIGN_THINGS, COLOURS, LOOKALIKES

_HARMLESS = BENIGN_THINGS + LOOKALIKES


def short_bank(categories: Iterable[str]) -> tuple[str, ...]:
    """The short prompts for a choice of categories, beside ``concepts.benign_bank``.

    Args:
        categories: names; where one of the testbed's is among them, the prompts are in its words.
    """
    known = {category.name for category in TESTBED_PRESETS}
    if not any(name in known for name in categories):
        return SHORT_PROMPTS
    coloured = [f"a {colour} {thing}" for colour in list(COLOURS)[:3] for thing in _HARMLESS[:6]]
    articles = [f"the {thing}" for thing in _HARMLESS]
    return ("", "a", "the", "a picture", "a picture of", *_HARMLESS, *COLOURS, *BACKGROUNDS, *coloured, *articles)


def harmless_bank(categories: Iterable[str]) -> tuple[str, ...]:
    """What a gate is calibrated on where a user gives nothing: whole prompts and short ones.

    Args:
        categories: names of the categories it looks for.
    """
    names = tuple(categories)
    return (*benign_bank(names), *short_bank(names))
