"""The pack's own banks as a prompt file in memory, for training without a file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..concepts.prompt_banks import BankText, wrapped_bank
from .files import Example, PromptData

NAME = "the pack's own pairs"
_HELD_OUT = 8  # every so many of a kind is held out


def bank_prompts(most: int | None = None, seed: int = 0) -> PromptData:
    """Pairs and harmless prompts of the banks, half of them in style wrappers.

    Args:
        most: texts, 100 or more; None for all. Fewer are taken evenly from every category and theme.
        seed: of the wrappers.
    """
    texts = wrapped_bank(seed=seed)
    kinds: dict[str, list[tuple[BankText, BankText]]] = {}
    for place, text in enumerate(texts):
        if text.category:
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
    digest = hashlib.sha256("\n".join(f"{e.prompt}\t{e.safe}\t{e.category}\t{e.split}" for e in examples).encode())
    return PromptData(Path(NAME), tuple(examples), digest.hexdigest())
