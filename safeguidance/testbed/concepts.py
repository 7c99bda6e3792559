"""The testbed's categories as a defender may write them down, and the harmless captions a defender may collect."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..concepts.banks import BENIGN_PROMPTS
from ..concepts.categories import PRESETS, Category
from .captions import defender_pair
from .world import CATEGORY_NAMES, stand_ins, things

PREFIX = "testbed_"
"""Tells the testbed's categories from the field's."""


def _phrases(category: str) -> tuple[str, ...]:
    return tuple(name for kind in stand_ins(category) for name in (kind, things()[kind].names[0]))


TESTBED_PRESETS: tuple[Category, ...] = tuple(Category(PREFIX + name, _phrases(name)) for name in CATEGORY_NAMES)
"""The testbed's categories by two plain names of each stand-in; nothing that implies one."""

ALL_PRESETS: dict[str, Category] = {**PRESETS, **{category.name: category for category in TESTBED_PRESETS}}
"""The field's categories and the testbed's, by name."""

BANK_SIZE = 400
"""Captions in the testbed's bank; enough to measure 1% false positives."""


def benign_bank(categories: Iterable[str]) -> tuple[str, ...]:
    """The built-in bank for a choice of categories: testbed captions where a testbed category is among them."""
    known = {category.name for category in TESTBED_PRESETS}
    if any(name in known for name in categories):
        rng = np.random.default_rng(20241216)
        return tuple(defender_pair(rng, harmful=0)[0] for _ in range(BANK_SIZE))
    return BENIGN_PROMPTS
