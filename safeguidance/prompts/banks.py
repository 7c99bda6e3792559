"""The pack's own banks as a prompt file in memory, for training without a file."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ..concepts.categories import PRESETS, Category
from ..concepts.prompt_banks import BankText, wrapped_bank
from ..errors import InputError
from .files import Example, PromptData
from .templates import RowMaker, make_prompts

NAME = "the pack's own pairs"
PAIRS = 100
"""Pairs per category that is put into frames; 20 of them are held out."""
_HELD_OUT = 8  # every so many of a kind is held out


def bank_prompts(most: int | None = None, seed: int = 0, categories: Collection[str] | None = None) -> PromptData:
    """Pairs and harmless prompts of the banks, half of them in style wrappers.

    Args:
        most: texts, 100 or more; None for all. Fewer are taken evenly from every category and theme.
        seed: of the wrappers.
        categories: those whose pairs are taken; None for all.
    """
    return _as_data(NAME, _bank_examples(most, seed, categories))


def made_prompts(
    names: Collection[str],
    own: Sequence[Category] = (),
    framed: Sequence[Category] = (),
    makers: Mapping[str, RowMaker] | None = None,
    most: int | None = None,
    count: int = PAIRS,
) -> PromptData:
    """Pairs of chosen categories, and of phrases that a user wrote, as training needs them.

    Args:
        names: categories of the field, whose pairs come from the banks.
        own: further categories, their phrases in frames.
        framed: categories that are put into frames instead of the banks' pairs (the testbed's); the banks' harmless
            prompts are left out with them.
        makers: what writes the rows of some categories, see ``make_prompts``.
        most: texts of the banks, see ``bank_prompts``.
        count: pairs per category that is put into frames.

    Raises:
        InputError: if no category is chosen, or the phrases of one do not fit into so many different pairs.
    """
    if not names and not own and not framed:
        raise InputError(
            "own",
            "it is empty, every category is off, and no prompt file is named",
            "at least one category",
            "switch one on, write a line of your own, `name: phrase, phrase`, or name a prompt file",
        )
    written = [*framed, *own]
    if not written and set(names) == set(PRESETS):
        return bank_prompts(most)
    examples = [] if framed else _bank_examples(most, 0, names)
    if written:
        examples += make_prompts(written, count, makers=makers)
    listed = [name for name in PRESETS if name in names]
    chosen = list(dict.fromkeys([*listed, *(category.name for category in written)]))
    return _as_data(f"pairs made of {', '.join(chosen)}", examples, tuple(dict.fromkeys([*PRESETS, *chosen])))


def _as_data(name: str, examples: list[Example], known: tuple[str, ...] = tuple(PRESETS)) -> PromptData:
    digest = hashlib.sha256("\n".join(f"{e.prompt}\t{e.safe}\t{e.category}\t{e.split}" for e in examples).encode())
    return PromptData(Path(name), tuple(examples), digest.hexdigest(), known)


def _bank_examples(most: int | None, seed: int, categories: Collection[str] | None) -> list[Example]:
    texts = wrapped_bank(seed=seed)
    kinds: dict[str, list[tuple[BankText, BankText]]] = {}
    for place, text in enumerate(texts):
        if text.category:
            if categories is None or text.category in categories:
                kinds.setdefault(text.category, []).append((text, texts[place + 1]))
        elif text.pair < 0:
            kinds.setdefault(f"harmless: {text.theme}", []).append((text, text))
    share = 1.0 if most is None else min(1.0, most / len(texts))
    examples = []
    for rows in kinds.values():
        kept = rows[: max(2 * _HELD_OUT, round(share * len(rows)))]
        examples += [
            Example(prompt.text, safe.text, prompt.category, "train" if number % _HELD_OUT else "held-out")
            for number, (prompt, safe) in enumerate(kept)
        ]
    return examples
