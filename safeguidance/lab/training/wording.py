"""Wide wording for the testbed's HGR: what people type and the grammar of the captions does not write.

A row starts as a caption or as a short free form with marks in place of its things. The marks are filled in last, with
harm for the prompt and with the look-alikes for its safe counterpart, so that both always are the same sentence. Words
of the attacked model that no defender knows (see ``testbed.captions``) are never used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...prompts.files import Row
from ...testbed.captions import describe, pick, random_scene
from ...testbed.world import (
    BACKGROUNDS,
    BENIGN_THINGS,
    CATEGORY_OF_THING,
    COLOURS,
    HARM_CATEGORIES,
    LOOKALIKES,
    POSITIONS,
    STYLES,
    HarmCategory,
    Scene,
)
from ..edits import MOST_WORDS, edited, filled, ordinary_words

UNKNOWN = "<unk>"
"""Stands for any word that the text encoder does not know."""

_FORMS = (
    "{x}",
    "a {x}",
    "the {x}",
    "{colour} {x}",
    "a {colour} {x}",
    "{x} {x}",
    "{x} , {x} , {x}",
    "{x} {background}",
    "a {x} in the {background}",
    "a {x} on a {background}",
    "{background} , {colour} , {x}",
    "{x} and {other}",
    "{other} and a {x}",
    "a {other} with a {x}",
    "{other} ? {x}",
    "the {other} ? a {x}",
    "the {x} ? the {other}",
    "? a {other} ? ? {x} ?",
    "a {x} ? ? a {other} , {background}",
    "one {x} ? two {other}",
    "show the {x}",
    "a picture of a {x}",
    "picture of one {colour} {x}",
    "{style} {x}",
    "{x} in {style} style",
    "{position} {x}",
    "? {x}",
    "? ? {x}",
    "{x} ?",
    "? ? of a {x} ?",
    "? , ? , {x} , ?",
    "? {x} ? {background}",
    "{x} , {colour} , {position} , {background} , {style} style",
)
"""Free forms; ``{x}`` stands for the things of a scene, ``?`` for a word that is not known."""
_FILLERS = (
    UNKNOWN,
    UNKNOWN,
    UNKNOWN,
    ",",
    "a",
    "the",
    "one",
    "of",
    "in",
    "on",
    "with",
    "and",
    "is",
    "there",
    "picture",
)
_WEIGHTED = 0.12
_SECOND_HARM = 0.15
_MOST_EDITS = 12
"""An attack edits its own texts again and again, three edits at a time."""

SHORT_TEXTS: tuple[str, ...] = (
    *BENIGN_THINGS,
    *LOOKALIKES,
    *COLOURS,
    *BACKGROUNDS,
    *POSITIONS,
    *STYLES,
    *(f"{style} style" for style in STYLES),
    *(word for word in _FILLERS if word != UNKNOWN),
    "",
    "a picture",
    "a picture of",
    "to the left",
    "show",
    "background",
)
"""Harmless texts of a few words that are no caption at all, the empty one among them."""


@dataclass(frozen=True)
class SceneRow(Row):
    """A training row that knows what its prompt shows."""

    scene: Scene = field(kw_only=True)


def wide_row(rng: np.random.Generator, harmful: float = 0.5, attacked: float = 0.0) -> SceneRow:
    """A training row in the wording of the captions or in a wider one.

    Args:
        rng: source of randomness.
        harmful: share of harmful rows, 0..1.
        attacked: share of rows, harmful and clean, that are edited as an attacker would, with words that no attack is
            measured with, 0..1.
    """
    if rng.random() < harmful:
        scene = random_scene(rng, "explicit", styled=0.15)
        if rng.random() < _SECOND_HARM:
            scene = _with_second_harm(rng, scene)
    else:
        scene = random_scene(rng, pick(rng, ("benign", "lookalike")), styled=0.15)
        if rng.random() < 0.2:
            text = " ".join(_short_words(rng))
            return SceneRow(text, text, -1, scene=scene)
    marked, nouns, safe_nouns = _marked(rng, scene, attacked)
    found = [HARM_CATEGORIES.index(CATEGORY_OF_THING[t.kind]) for t in scene.things if t.kind in CATEGORY_OF_THING]
    prompt, safe = filled(marked, nouns), filled(marked, safe_nouns)
    if not found:
        return SceneRow(prompt, prompt, -1, scene=scene)
    return SceneRow(prompt, safe, found[0], also=tuple(found[1:]), scene=scene)


def _with_second_harm(rng: np.random.Generator, scene: Scene) -> Scene:
    harmless = [index for index, thing in enumerate(scene.things) if thing.kind not in CATEGORY_OF_THING]
    if not harmless:
        return scene
    others = [category.thing for category in HARM_CATEGORIES if category != scene.harm]
    things = list(scene.things)
    things[harmless[0]] = replace(things[harmless[0]], kind=pick(rng, others))
    return replace(scene, things=tuple(things))


def _short_words(rng: np.random.Generator) -> list[str]:
    kind = rng.random()
    if kind < 0.15:
        return []
    if kind < 0.35:
        return [UNKNOWN] * int(rng.integers(1, 12))
    words = [pick(rng, SHORT_TEXTS) for _ in range(int(rng.integers(1, 4)))]
    return " ".join(words).split()


def _marked(rng: np.random.Generator, scene: Scene, attacked: float = 0.0) -> tuple[list[str], list[str], list[str]]:
    """Words with a mark ``@0``, ``@1`` for each thing, the things' nouns, and those of the safe counterpart."""
    nouns, safe_nouns, marks = [], [], {}
    for index, thing in enumerate(scene.things):
        category = CATEGORY_OF_THING.get(thing.kind)
        marks[thing.kind] = f"@{index}"
        nouns.append(thing.kind)
        safe_nouns.append(thing.kind)
        if category is not None:
            kind = rng.random()
            if kind > 0.9:
                nouns[-1] = _two_clues(rng, category)
            elif kind > 0.5:
                nouns[-1] = pick(rng, category.implied_seen if kind < 0.75 else category.clues)
            safe_nouns[-1] = category.lookalike
    kind = rng.random()
    text = describe(scene, rng, marks, omit=0.08) if kind < 0.7 else _free_form(rng, scene, marks)
    words = text.split()
    if kind > 0.4:
        for _ in range(int(rng.integers(1, 4))):
            words = _EDITS[int(rng.integers(len(_EDITS)))](rng, words)
    if attacked and rng.random() < attacked:
        words = edited(rng, words, ordinary_words(1), _MOST_EDITS, lambda word: word.startswith("@"))
    words = _weighted(rng, _shortened(words, nouns))
    return words, nouns, safe_nouns


def _two_clues(rng: np.random.Generator, category: HarmCategory) -> str:
    """Two words that imply the same thing, with up to three plain ones between them; no phrase kept for measuring."""
    while True:
        first, second = rng.permutation(len(category.clues))[:2]
        between = [pick(rng, _FILLERS) for _ in range(int(rng.integers(4)))]
        phrase = " ".join([category.clues[first], *between, category.clues[second]])
        if not any(kept in phrase for kept in category.implied_held_out):
            return phrase


def _free_form(rng: np.random.Generator, scene: Scene, marks: dict[str, str]) -> str:
    # the harm first: it is what a form with one place is about
    kinds = sorted((thing.kind for thing in scene.things), key=lambda kind: kind not in CATEGORY_OF_THING)
    form = pick(rng, _FORMS)
    main = marks[kinds[0]]
    other = marks[kinds[1]] if len(kinds) > 1 else pick(rng, BENIGN_THINGS)
    if len(kinds) > 1 and kinds[1] in CATEGORY_OF_THING and "{other}" not in form:
        main = f"{main}{pick(rng, (' and ', ' , ', ' '))}{other}"
    return form.replace("?", UNKNOWN).format(
        x=main,
        other=other,
        colour=pick(rng, list(COLOURS)),
        background=pick(rng, BACKGROUNDS),
        style=pick(rng, STYLES[1:]),
        position=pick(rng, list(POSITIONS)),
    )


def _dropped(rng: np.random.Generator, words: list[str]) -> list[str]:
    return [word for word in words if word.startswith("@") or rng.random() > 0.3]


def _with_fillers(rng: np.random.Generator, words: list[str]) -> list[str]:
    words = list(words)
    for _ in range(int(rng.integers(1, 6))):
        words.insert(int(rng.integers(len(words) + 1)), pick(rng, _FILLERS))
    return words


def _shuffled(rng: np.random.Generator, words: list[str]) -> list[str]:
    return [words[place] for place in rng.permutation(len(words))]


def _repeated(rng: np.random.Generator, words: list[str]) -> list[str]:
    marks = [word for word in words if word.startswith("@")]
    if not marks:
        return words
    more = [pick(rng, marks)] * int(rng.integers(1, 4))
    return [*words, *([","] if rng.random() < 0.5 else []), *more]


def _as_list(rng: np.random.Generator, words: list[str]) -> list[str]:
    return " , ".join(word for word in words if word != ",").split()


def _with_style(rng: np.random.Generator, words: list[str]) -> list[str]:
    style = [pick(rng, STYLES[1:]), "style"]
    return [*style, ",", *words] if rng.random() < 0.5 else [*words, "in", *style]


_EDITS: tuple[Callable[[np.random.Generator, list[str]], list[str]], ...] = (
    _dropped,
    _with_fillers,
    _with_fillers,
    _shuffled,
    _repeated,
    _as_list,
    _with_style,
)


def _shortened(words: list[str], nouns: Sequence[str]) -> list[str]:
    """As many words as fit once the marks are filled in; plain words leave first."""

    def size(word: str) -> int:
        return max(len(nouns[int(word[1:])].split()), 1) if word.startswith("@") else 1

    words = list(words)
    while sum(size(word) for word in words) > MOST_WORDS:
        plain = [place for place, word in enumerate(words) if not word.startswith("@")]
        del words[plain[-1] if plain else -1]
    return words


def _weighted(rng: np.random.Generator, words: list[str]) -> list[str]:
    """The same with a weight on one mark, or on everything, as ``(words:0.6)``."""
    if rng.random() >= _WEIGHTED:
        return words
    weight = f"{rng.uniform(0.3, 1.6):.1f}"
    marks = [place for place, word in enumerate(words) if word.startswith("@")]
    if not marks or rng.random() < 0.3:
        return [f"({' '.join(words)}:{weight})"] if words else words
    place = marks[int(rng.integers(len(marks)))]
    return [*words[:place], f"({words[place]}:{weight})", *words[place + 1 :]]
