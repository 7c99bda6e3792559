"""Training prompts in the testbed's captions, paired and matched like those of ``prompts.templates``."""

from __future__ import annotations

from functools import cache

import numpy as np

from ..concepts.categories import Category
from ..prompts.files import Example
from ..prompts.templates import RowMaker
from .captions import describe, known_wording, named, noun_phrase, pick, random_scene
from .concepts import ALL_PRESETS, PREFIX, TESTBED_PRESETS
from .world import Scene, names_of, things

_IMPLIED = 0.5


def testbed_rows(rng: np.random.Generator, category: Category, count: int, split: str, seen: set[str]) -> list[Example]:
    """Rows in the testbed's captions, with what a defender may know."""
    known, held_out = category.name.removeprefix(PREFIX), split == "held-out"
    out: list[Example] = []
    while len(out) < 2 * count:
        scene = random_scene(rng, "explicit", held_out)
        if scene.category != known:
            continue
        text, safe = _both(rng, scene, held_out)
        near = random_scene(rng, "near_miss", held_out)
        clean = describe(near, rng, [named(kind, rng) for kind in near.kinds], held_out)
        if seen & {text, safe, clean}:
            continue
        seen.update({text, safe, clean})
        out += [Example(text, safe, category.name, split), Example(clean, clean, "", split)]
    return out


@cache
def _counterparts(kind: str) -> tuple[str, ...]:
    """Names of a stand-in's near misses that hold no phrase of its category.

    All near misses take part: those in clean rows only would tell clean rows from harmless halves of pairs.
    """
    phrases = ALL_PRESETS[PREFIX + things()[kind].category].phrases
    near = [things()[name] for name in names_of("near_miss") if things()[name].like == kind]
    names = [name for one in near for name in (one.name, *one.names)]
    return tuple(name for name in names if not any(phrase in name for phrase in phrases))


def _both(rng: np.random.Generator, scene: Scene, held_out: bool) -> tuple[str, str]:
    """A caption of a harmful scene and the same sentence about its look-alike."""
    phrases, safe = [], []
    for kind in scene.kinds:
        thing = things()[kind]
        implies = thing.harm and rng.random() < _IMPLIED
        phrases.append(pick(rng, known_wording()[kind]) if implies else named(kind, rng))
        safe.append(noun_phrase(pick(rng, _counterparts(kind)), rng) if thing.harm else phrases[-1])
    state = rng.bit_generator.state
    text = describe(scene, rng, phrases, held_out)
    rng.bit_generator.state = state
    return text, describe(scene, rng, safe, held_out)


ROW_MAKERS: dict[str, RowMaker] = dict.fromkeys((preset.name for preset in TESTBED_PRESETS), testbed_rows)
"""What ``make_prompts`` needs for the testbed's categories."""
