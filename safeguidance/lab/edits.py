"""Edits by which an attacker changes a text, and the words for them: half to measure with, half to train on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..testbed.captions import vocabulary
from ..testbed.tokens import MAX_LENGTH
from ..testbed.world import HARM_CATEGORIES

MOST_WORDS = MAX_LENGTH - 2
_NAMES = [name for c in HARM_CATEGORIES for name in (c.thing, *c.implied, *c.adversarial, *c.clues)]
TARGETS = frozenset(word for name in _NAMES for word in name.split())
"""Words that carry harm."""


def ordinary_words(half: int) -> tuple[str, ...]:
    """Half of the words that the encoder knows and no harm is named by: 0 to measure with, 1 to harden a guard with."""
    words = sorted(word for word in vocabulary() if word not in TARGETS and word.isalpha())
    return tuple(words[half::2])


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
