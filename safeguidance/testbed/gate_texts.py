"""What a gate for the testbed's categories is fitted on, as ``concepts.prompt_banks.gate_bank`` is for the field's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from ..concepts.prompt_banks import BankText, gate_bank, harmful_pairs, harmless_prompts
from .captions import defender_pair, harmless_wording, implied, known_wording
from .concepts import TESTBED_PRESETS
from .prompts import testbed_rows
from .world import BACKGROUNDS, STYLES, names_of, things

_PAIRS, _CAPTIONS, _PLAIN = 60, 200, 300
NEXT_DOOR = re.compile(
    r"\b(kni(fe|ves)|blades?|daggers?|swords?|axes?|hatchets?|razors?|guillotine|guns?|rifles?|pistols?|bullets?"
    r"|firearms?|weapons?|shoot\w*|snipers?|bomb\w*|explo[ds]\w*|dynamite|grenades?|missiles?|detonat\w*|drugs?"
    r"|narcotics?|heroin|cocaine|cannabis|syringes?|inject\w*|needles?|pills?|tablets?|capsules?|cigar\w*|smok\w*"
    r"|tobacco|skulls?|skeletons?|corpses?|coffins?|tombs?|graves?|graveyard|buri\w+|funerals?|crypts?|hanged"
    r"|execution\w*|dead|death|dies|died|murder\w*|kill\w*|blood\w*|bleed\w*|wound\w*)\b"
)
"""Words close to a stand-in. A harmless prompt with one ("killer whale", "old axe") is trained on, and no limit is set
by it: whether an axe is harm in a world whose blades are, nobody can say."""
_ARTICLE = re.compile(r"^(an?|the) ")
_WORDS = 16
"""Most words of a plain prompt: all texts fit into one chunk."""


@lru_cache(maxsize=1)
def plain_prompts() -> tuple[str, ...]:
    """Harmless prompts of the pack's banks that name nothing a stand-in could be taken for, and no measured wording."""
    names = [name for kind in names_of("harm") for name in (kind, *things()[kind].names)]
    names += [
        _ARTICLE.sub("", text)
        for known, (_, kept) in zip(known_wording().values(), implied().values(), strict=True)
        for text in (*known, *kept)
    ]
    names += [wordings[-1] for wordings in (*BACKGROUNDS.values(), *STYLES.values()) if wordings]
    named = re.compile("|".join(rf"\b{re.escape(name)}s?\b" for name in names))
    texts = (prompt.prompt.lower() for prompt in harmless_prompts())
    return tuple(text for text in texts if not named.search(text))


def testbed_gate_texts(seed: int = 0) -> list[BankText]:
    """Pairs of the testbed's categories with what a defender may know, harmless captions, and other harmless English.

    Args:
        seed: of the choice.
    """
    rng, seen, out = np.random.default_rng((seed, 19)), set[str](), list[BankText]()
    for preset in TESTBED_PRESETS:
        for row in testbed_rows(rng, preset, _PAIRS, "train", seen):
            if not row.category:
                out.append(BankText(row.prompt, "", "near misses", -1, True))
                continue
            number = len(out)
            out.append(BankText(row.prompt, row.category, "", number, True))
            out.append(BankText(row.safe, "", f"counterpart of {row.category}", number, True))
    out += [BankText(defender_pair(rng, harmful=0)[0], "", "captions", -1, True) for _ in range(_CAPTIONS)]
    out += [BankText(text, "", "harmless wording", -1, True) for text in harmless_wording()]
    plain = [text for text in plain_prompts() if len(text.split()) <= _WORDS]
    chosen = rng.choice(len(plain), min(_PLAIN, len(plain)), replace=False)
    return out + [BankText(plain[place], "", "plain English", -1, True) for place in sorted(chosen.tolist())]


def texts_for(categories: Iterable[str], most: int | None = None) -> list[BankText]:
    """What a gate that looks for some categories is fitted on; nothing where none of them is known.

    Args:
        categories: their names.
        most: texts of the field's bank; None for all.
    """
    names = set(categories)
    if names & {pair.category for pair in harmful_pairs()}:
        return gate_bank(most=most)
    if names & {preset.name for preset in TESTBED_PRESETS}:
        return testbed_gate_texts()
    return []
