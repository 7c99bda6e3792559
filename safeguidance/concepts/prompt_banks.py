"""Prompts that gates are fitted on: harmful wordings with safe counterparts, and harmless ones.

All are our own. They say what a picture shows and nothing of its style; the style wrappers go on both sides equally
often, because most of what tells public sets of harmful prompts from captions is how they are worded. The category
sexual speaks of adults, and no word of age stands on either side of it; harmless prompts with such a word are not to
count there, for it must never make a prompt of that category look less harmful.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data"
WITHOUT_AGE = "sexual"
"""The category in which no word of age may count."""
_AGE = re.compile(
    r"\b(?:adults?|aged?|babies|baby|boys?|child(?:ren|hood|ish)?|class(?:es|rooms?|mates?)?|daughters?|elder(?:s|ly)?|"
    r"girls?|grand(?:child(?:ren)?|father|mother|pa|ma|parents?|sons?|daughters?)|infants?|kids?|matures?|minors?|newborns?|"
    r"nurser(?:y|ies)|old(?:er)?|pupils?|schools?\w*|sons?|students?|teen(?:s|age\w*)?|toddlers?|tweens?|young\w*|youths?)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class HarmlessPrompt:
    """A prompt that a gate must leave alone.

    Args:
        theme: what it is about; false positives are counted by theme.
        prompt: the prompt.
    """

    theme: str
    prompt: str


@dataclass(frozen=True)
class HarmfulPair:
    """A wording that a gate must find.

    Args:
        category: a category of the field.
        prompt: the wording.
        safe: the same with what is harmful replaced.
    """

    category: str
    prompt: str
    safe: str


def _rows(name: str) -> Iterator[dict[str, str]]:
    with open(DATA / name, encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


@cache
def harmless_prompts() -> tuple[HarmlessPrompt, ...]:
    """The harmless bank."""
    return tuple(HarmlessPrompt(row["theme"], row["prompt"]) for row in _rows("harmless.csv"))


@cache
def harmful_pairs() -> tuple[HarmfulPair, ...]:
    """The harmful bank."""
    return tuple(HarmfulPair(row["category"], row["prompt"], row["safe_prompt"]) for row in _rows("harmful.csv"))


@cache
def style_wrappers() -> tuple[str, ...]:
    """Frames of style, each with ``{}`` where the content goes."""
    return tuple(row["wrapper"] for row in _rows("wrappers.csv"))


def names_age(text: str) -> bool:
    """Whether a text holds a word of age, of family by age, or of school."""
    return _AGE.search(text) is not None


@dataclass(frozen=True)
class BankText:
    """A text of the banks as a gate is fitted on it.

    Args:
        text: with its wrapper, where it has one.
        category: of harm; "" for a harmless text.
        theme: of a harmless prompt; "counterpart of CATEGORY" for the safe half of a pair.
        pair: number of its pair, -1 for a harmless prompt.
        ageless: whether it holds no word of age.
    """

    text: str
    category: str
    theme: str
    pair: int
    ageless: bool


def wrapped_bank(share: float = 0.5, seed: int = 0) -> list[BankText]:
    """All texts of the banks, a share of them in style wrappers.

    Both halves of a pair get the same wrapper or none, and harmless prompts get each wrapper as often, in proportion.

    Args:
        share: of wrapped texts, 0..1.
        seed: of the choice.
    """
    wrappers, out = style_wrappers(), []
    rng = np.random.default_rng((seed, 11))
    pairs, harmless = harmful_pairs(), harmless_prompts()
    for number, (pair, frame) in enumerate(zip(pairs, _frames(rng, len(pairs), share, wrappers), strict=True)):
        out.append(_text(frame, pair.prompt, pair.category, "", number))
        out.append(_text(frame, pair.safe, "", f"counterpart of {pair.category}", number))
    for row, frame in zip(harmless, _frames(rng, len(harmless), share, wrappers), strict=True):
        out.append(_text(frame, row.prompt, "", row.theme, -1))
    return out


def gate_bank(shuffled: float = 0.25, most: int | None = None, seed: int = 0) -> list[BankText]:
    """The texts that gates are fitted on: the wrapped bank, and part of it once more as single words without order.

    Args:
        shuffled: share of texts that come a second time, their words among those of harmless texts, in any order; both
            halves of a pair or none.
        most: texts, 100 or more; None for all. Fewer are taken evenly from every category and theme.
        seed: of the choice.
    """
    texts = _thinned(wrapped_bank(seed=seed), 1 / (1 + shuffled), most)
    rng = np.random.default_rng((seed, 12))
    words = [word for text in texts if not text.category for word in _WORD.findall(text.text) if len(word) > 2]
    chosen = {text.pair for text in texts if text.category and rng.random() < shuffled}
    again = [text for text in texts if (text.pair in chosen if text.pair >= 0 else rng.random() < shuffled)]
    return texts + [_shuffled(rng, text, words) for text in again]


_WORD = re.compile(r"[\w'-]+")
_MOST_OWN, _FOREIGN = 10, (3, 10)
"""Words of a text that are taken apart, and words of others that come among them."""


def _thinned(texts: list[BankText], share: float, most: int | None) -> list[BankText]:
    """A part of the texts, evenly from every category and theme; both halves of a pair or none."""
    if most is None or share * most >= len(texts):
        return texts
    kinds: dict[str, list[tuple[BankText, ...]]] = {}
    for place, text in enumerate(texts):
        if text.category:
            kinds.setdefault(text.category, []).append((text, texts[place + 1]))
        elif text.pair < 0:
            kinds.setdefault(text.theme, []).append((text,))
    part = share * most / len(texts)
    return [
        text
        for groups in kinds.values()
        for number in np.linspace(0, len(groups) - 1, max(4, round(part * len(groups)))).round().astype(int)
        for text in groups[number]
    ]


def _shuffled(rng: np.random.Generator, text: BankText, words: list[str]) -> BankText:
    own = _WORD.findall(text.text)[:_MOST_OWN]
    mixed = own + [words[int(rng.integers(len(words)))] for _ in range(int(rng.integers(*_FOREIGN)))]
    # a foreign word of age would make the text count where it must not
    out = " ".join(str(word) for word in rng.permutation(mixed))
    return BankText(out, text.category, text.theme, text.pair, text.ageless and not names_age(out))


def _frames(rng: np.random.Generator, count: int, share: float, wrappers: tuple[str, ...]) -> list[str]:
    """Frames in a random order, each wrapper as often as every other one, give or take one."""
    wrapped = round(count * share)
    frames = [wrappers[place % len(wrappers)] for place in range(wrapped)] + ["{}"] * (count - wrapped)
    return [frames[place] for place in rng.permutation(count)]


def _text(frame: str, content: str, category: str, theme: str, pair: int) -> BankText:
    return BankText(frame.replace("{}", content), category, theme, pair, not names_age(content))
