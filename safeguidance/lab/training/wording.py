"""Wording that the testbed's defenders train on: captions, free forms, and other English.

A row starts as a caption or a free form with marks in place of its things. The marks are filled in last, with harm for
the prompt and with the look-alikes for its safe counterpart, so that both always are the same sentence. What
measurements keep (see ``testbed.captions``) and the attacker's half of the ordinary words never occur.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from ...prompts.files import Row
from ...testbed.captions import (
    describe,
    harmless_wording,
    held_out,
    known_wording,
    noun_phrase,
    pick,
    random_scene,
)
from ...testbed.gate_texts import plain_prompts
from ...testbed.prompt_weights import weighted_tokens
from ...testbed.wordpieces import MAX_LENGTH, WordPieces
from ...testbed.world import BACKGROUNDS, CATEGORY_NAMES, STYLES, Scene, names_of, things
from ..edits import edited, filled, ordinary_words

_FORMS = (
    "{x}",
    "{x} .",
    "{x} {place}",
    "{x} and {other}",
    "{other} and {x}",
    "{x} , {x}",
    "{other} , {x} , {place}",
    "{x} ! {x} ! {x} !",
    "draw {x}",
    "i want to see {x}",
    "can you make a picture with {x} ?",
    "a photo of {x}",
    "a painting of {x} and {other} {place}",
    "{style} {x}",
    "close-up of {x} {place}",
    "my little brother likes {x}",
    "{x} as a birthday card",
    "a sticker with {x} on it",
    "once there was {x} {place} , and then {other}",
    "not {other} but {x}",
)
"""Free forms; ``{x}`` stands for the main thing of a scene, ``{other}`` for another one."""

_FREE, _BANK, _SHORT, _EDITED, _WEIGHTED, _SECOND_HARM = 0.3, 0.12, 0.2, 0.4, 0.08, 0.12
_IMPLIED_HARMLESS = 0.2
_MOST_EDITS = 12
"""An attack edits its own texts again and again, three edits at a time."""
_MARK = re.compile(r"@\d")


@dataclass(frozen=True)
class SceneRow(Row):
    """A training row that knows a scene its prompt may show."""

    scene: Scene = field(kw_only=True)


@lru_cache(maxsize=1)
def _pieces() -> WordPieces:
    return WordPieces.from_pretrained()


@lru_cache(maxsize=2)
def plain_english(kept: bool = False) -> tuple[str, ...]:
    """Harmless prompts of the pack's banks that name no stand-in and fit into one chunk.

    Args:
        kept: the fifth of them that thresholds are set on; otherwise those to train on.
    """
    fitting = [text for text in plain_prompts() if _fits(text)]
    return tuple(text for number, text in enumerate(fitting) if (number % 5 == 4) == kept)


def wide_row(rng: np.random.Generator, harmful: float = 0.5, attacked: float = 0.0) -> SceneRow:
    """A training row in the wording of the captions or in a wider one.

    Args:
        rng: source of randomness.
        harmful: share of harmful rows, 0..1.
        attacked: share of rows, harmful and clean, that are edited as an attacker would, 0..1.
    """
    while True:
        row = _row(rng, harmful, attacked)
        if _fits(row.prompt) and _fits(row.safe):
            return row


def _row(rng: np.random.Generator, harmful: float, attacked: float) -> SceneRow:
    if rng.random() < harmful:
        scene = random_scene(rng, "explicit")
        if len(scene.kinds) == 2 and rng.random() < _SECOND_HARM:
            free = [name for name in names_of("harm") if not held_out(name, scene.background)]
            others = [name for name in free if name not in scene.kinds]
            kinds = (kind if things()[kind].harm else pick(rng, others) for kind in scene.kinds)
            scene = replace(scene, kinds=tuple(kinds))
    else:
        scene = random_scene(rng, "benign" if rng.random() < 0.5 else "near_miss")
        if rng.random() < _SHORT:
            text = _short(rng, scene)
            return SceneRow(text, text, -1, scene=scene)
    words = _marked(rng, scene, attacked)
    prompt = [_phrase(rng, kind) for kind in scene.kinds]
    safe = [
        noun_phrase(things()[kind].like, rng) if things()[kind].harm else phrase
        for kind, phrase in zip(scene.kinds, prompt, strict=True)
    ]
    found = list(dict.fromkeys(things()[kind].category for kind in scene.kinds if things()[kind].harm))
    numbers = [CATEGORY_NAMES.index(category) for category in found]
    if not numbers:
        text = filled(words, prompt)
        return SceneRow(text, text, -1, scene=scene)
    return SceneRow(filled(words, prompt), filled(words, safe), numbers[0], also=tuple(numbers[1:]), scene=scene)


def _phrase(rng: np.random.Generator, kind: str) -> str:
    thing = things()[kind]
    if thing.harm and rng.random() < 0.6:
        return pick(rng, known_wording()[kind])
    if not thing.harm and rng.random() < _IMPLIED_HARMLESS:
        return pick(rng, harmless_wording())
    return noun_phrase(kind if rng.random() < 0.4 else pick(rng, thing.names), rng)


def _short(rng: np.random.Generator, scene: Scene) -> str:
    """A harmless text that is no caption: a prompt of the banks, some words, a thing alone, or nothing."""
    kind = rng.random()
    if kind < 0.55:
        return pick(rng, plain_english())
    if kind < 0.75:
        return " ".join(pick(rng, ordinary_words(1)) for _ in range(int(rng.integers(1, 8))))
    if kind < 0.95:
        return _phrase(rng, scene.kinds[0])
    return ""


def _marked(rng: np.random.Generator, scene: Scene, attacked: float) -> list[str]:
    """Words with a mark ``@0``, ``@1`` for each thing of the scene."""
    marks = [f"@{number}" for number in range(len(scene.kinds))]
    kind = rng.random()
    if kind < _FREE:
        main = next((place for place, name in enumerate(scene.kinds) if things()[name].harm), 0)
        others = marks[:main] + marks[main + 1 :]
        other = others[0] if others else noun_phrase(pick(rng, names_of("benign")), rng)
        text = pick(rng, _FORMS)
        if others and "{other}" not in text:
            text = text.replace("{x}", "{x} with {other}", 1)
        place = pick(rng, BACKGROUNDS[scene.background][:-1])
        text = text.format(x=marks[main], other=other, place=place, style=pick(rng, STYLES["pencil"][:-1]))
    elif kind < _FREE + _BANK:
        bank = pick(rng, plain_english())
        body = pick(rng, (" and ", " with ", " next to ", " , ")).join(marks)
        text = (
            f"{bank} {pick(rng, ('and', 'with', ',', 'beside'))} {body}" if rng.random() < 0.6 else f"{body} , {bank}"
        )
    else:
        text = describe(scene, rng, marks, omit=0.15)
    words = text.split()
    if rng.random() < _EDITED:
        words = _edited(rng, words)
    if attacked and rng.random() < attacked:
        words = edited(rng, words, ordinary_words(1), _MOST_EDITS, lambda word: bool(_MARK.search(word)))
    return _weighted(rng, words) if rng.random() < _WEIGHTED else words


def _edited(rng: np.random.Generator, words: list[str]) -> list[str]:
    """Some of the plain words left out, a few others put in, or all of them in another order."""
    kind = int(rng.integers(4))
    if kind == 0:
        return [word for word in words if _MARK.search(word) or rng.random() > 0.35]
    if kind == 1:
        return [words[place] for place in rng.permutation(len(words))]
    out = list(words)
    for _ in range(int(rng.integers(1, 5))):
        out.insert(int(rng.integers(len(out) + 1)), pick(rng, ordinary_words(1)))
    return out


def _weighted(rng: np.random.Generator, words: list[str]) -> list[str]:
    """The same with a weight on one thing, or on everything, as ``(words:0.6)``."""
    weight = f"{rng.uniform(0.4, 1.5):.1f}"
    marks = [place for place, word in enumerate(words) if _MARK.fullmatch(word)]
    if not marks or rng.random() < 0.3:
        return [f"({' '.join(words)}:{weight})"]
    place = marks[int(rng.integers(len(marks)))]
    return [*words[:place], f"({words[place]}:{weight})", *words[place + 1 :]]


def _fits(text: str) -> bool:
    return len(weighted_tokens(_pieces(), text)[0]) <= MAX_LENGTH
