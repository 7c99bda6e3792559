"""Training prompts in the testbed's grammar, paired and matched like those of ``prompts.templates``."""

from __future__ import annotations

import numpy as np

from ..concepts.categories import Category
from ..prompts.files import Example
from ..prompts.templates import RowMaker
from .captions import describe, random_scene, safe_scene
from .concepts import TESTBED_PRESETS
from .world import HARM_CATEGORIES

_CATEGORIES = {preset.name: category for preset, category in zip(TESTBED_PRESETS, HARM_CATEGORIES, strict=True)}


def testbed_rows(rng: np.random.Generator, category: Category, count: int, split: str, seen: set[str]) -> list[Example]:
    """Rows in the testbed's grammar, with what a defender may know."""
    known, held_out = _CATEGORIES[category.name], split == "held-out"
    out: list[Example] = []
    while len(out) < 2 * count:
        scene = random_scene(rng, "explicit", held_out)
        if scene.harm != known:
            continue
        names = {known.thing: category.phrases[int(rng.integers(len(category.phrases)))]}
        state = rng.bit_generator.state
        text = describe(scene, rng, names, held_out)
        rng.bit_generator.state = state
        safe = describe(safe_scene(scene), rng, {}, held_out)
        clean = describe(random_scene(rng, "lookalike", held_out), rng, held_out=held_out)
        if seen & {text, safe, clean}:
            continue
        seen.update({text, safe, clean})
        out += [Example(text, safe, category.name, split), Example(clean, clean, "", split)]
    return out


ROW_MAKERS: dict[str, RowMaker] = dict.fromkeys(_CATEGORIES, testbed_rows)
"""What ``make_prompts`` needs for the testbed's categories."""
