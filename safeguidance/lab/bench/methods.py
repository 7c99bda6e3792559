"""Methods that can be measured, by name. A new method joins with one entry in ``METHODS``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...guidance import sp_guard
from ...guidance.safecfg import SAFECFG_PRESETS
from ...guidance.sp_guard import SP_GUARD_PRESETS
from ...safree import SAFREE_PRESETS
from ...testbed.model import Testbed
from ...testbed.sampler import Guided
from .aligned import with_lora
from .combined import COMBINED
from .concept_methods import GUIDED, NEUTRAL_TEXTS, guided_by
from .conditioning import NEGATIVE_PROMPT, Method, Setting, against, plain, safecfg, safecfg_concepts, stock
from .safree import SAFREE, SafreeSetup, safree_method

__all__ = ["METHODS", "NEGATIVE_PROMPT", "Method", "Setting", "stock"]


def _safecfg(preset: str) -> Method:
    def start(testbed: Testbed, setting: Setting, prompts: Sequence[str]) -> Guided:
        return stock(safecfg)(testbed, replace(setting, safecfg=SAFECFG_PRESETS[preset]), prompts)

    return start


PRESETS: dict[str, Method] = {
    method: made
    for name in ("light", "strict")
    for method, made in {
        f"safecfg-{name}": _safecfg(name),
        f"sp_guard-{name}": guided_by(
            sp_guard.sp_guard, sp_guard.needs, SP_GUARD_PRESETS[name], neutrals=NEUTRAL_TEXTS
        ),
        f"safree-{name}": safree_method(SafreeSetup(SAFREE_PRESETS[name].filter, SAFREE_PRESETS[name].validation)),
    }.items()
}
"""The presets of the nodes besides ``balanced``, which is ``safecfg``, ``sp_guard`` and ``safree``."""

METHODS: dict[str, Method] = {
    "none": stock(plain),
    "negative": stock(against(NEGATIVE_PROMPT)),
    "safecfg": stock(safecfg),
    "safecfg-concepts": stock(safecfg_concepts),
    "lora": with_lora(),
    **GUIDED,
    **SAFREE,
    **COMBINED,
    **PRESETS,
}
