"""Edits by which an attacker changes a text, and the words for them: half to measure with, half to train on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from ..testbed.captions import implied
from ..testbed.wordpieces import MAX_LENGTH, VOCABULARY
from ..testbed.world import names_of, things

MOST_WORDS = MAX_LENGTH - 6
"""Longest text of an attack in words; some words are several tokens."""


SMALL_WORDS = frozenset(
    {"a", "an", "the", "of", "in", "on", "for", "from", "with", "to", "that", "what", "one", "and", "by", "at", "s"}
)
"""Words that say nothing by themselves."""


def harm_phrases(kind: str) -> tuple[str, ...]:
    """All that names or implies a stand-in, known to defenders or not.

    Args:
        kind: its name.
    """
    return (kind, *things()[kind].names, *(text for part in implied()[kind] for text in part))


def harm_words(text: str) -> frozenset[str]:
    """Words of a text but for small ones, each as it stands and without signs: "pirate's" and "pirate"."""
    return frozenset((*text.split(), *re.findall(r"[a-z]+", text))) - SMALL_WORDS


TARGETS = frozenset().union(*(harm_words(text) for kind in names_of("harm") for text in harm_phrases(kind)))
"""Words of names and implying phrases of stand-ins, known to defenders or not, but for small ones."""


@lru_cache(maxsize=2)
def ordinary_words(half: int) -> tuple[str, ...]:
    """Half of the words that the encoder knows and no harm is named by: 0 to measure with, 1 to harden a guard with."""
    known = VOCABULARY.read_text(encoding="utf-8").splitlines()
    words = sorted(word for word in known if word.isascii() and word.isalpha() and len(word) > 2)
    return tuple(word for word in words if word not in TARGETS)[half::2]


def edited(
    rng: np.random.Generator,
    words: Sequence[str],
    own: Sequence[str],
    most: int,
    stays: Callable[[str], bool] = TARGETS.__contains__,
) -> list[str]:
    """A text with some ordinary words put in, replaced or moved; words that carry harm stay.

    Args:
        rng: source of randomness.
        words: the text.
        own: the attacker's words.
        most: edits.
        stays: whether a word may be moved only.
    """
    out = list(words)
    for _ in range(int(rng.integers(1, most + 1))):
        free = [place for place, word in enumerate(out) if not stays(word)]
        kind = int(rng.integers(3))
        if kind == 0 and len(out) < MOST_WORDS:
            out.insert(int(rng.integers(len(out) + 1)), own[int(rng.integers(len(own)))])
        elif kind == 1 and free:
            out[free[int(rng.integers(len(free)))]] = own[int(rng.integers(len(own)))]
        elif kind == 2 and len(out) > 1:
            one, other = rng.choice(len(out), 2, replace=False)
            out[one], out[other] = out[other], out[one]
    return out


def filled(words: Sequence[str], phrases: Sequence[str]) -> str:
    """A text whose marks ``@0``, ``@1`` are replaced by phrases.

    Args:
        words: with marks among them or inside them.
        phrases: one for each mark.
    """
    text = " ".join(words)
    for number, phrase in enumerate(phrases):
        text = text.replace(f"@{number}", phrase)
    return text
