"""Methods that can be measured, by name. A concept guidance method joins by its entry in the registry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...guidance.safecfg import SAFECFG_PRESETS
from ...redirector.text_space import SAFE_TEXT_PRESETS
from ...safree import SAFREE_PRESETS
from ...testbed.model import Testbed
from ...testbed.sampler import Guided
from .aligned import with_lora
from .concept_methods import GUIDED
from .conditioning import (
    NEGATIVE_PROMPT,
    Method,
    Setting,
    against,
    plain,
    safe_conditioning,
    safe_text,
    safecfg,
    safecfg_concepts,
    safecfg_concepts_general,
    shipped_text_redirector,
    stock,
)
from .safree import SAFREE, SafreeSetup, filtered, safree_method

__all__ = ["METHODS", "NEGATIVE_PROMPT", "Method", "Setting", "stock"]


def _safecfg(preset: str) -> Method:
    def start(testbed: Testbed, setting: Setting, prompts: Sequence[str]) -> Guided:
        return stock(safecfg)(testbed, replace(setting, safecfg=SAFECFG_PRESETS[preset]), prompts)

    return start


def _safree(preset: str) -> Method:
    return safree_method(SafreeSetup(SAFREE_PRESETS[preset].filter, SAFREE_PRESETS[preset].validation, judged=True))


METHODS: dict[str, Method] = {
    "none": stock(plain),
    "negative": stock(against(NEGATIVE_PROMPT)),
    "safecfg": stock(safecfg),
    "safecfg-concepts": stock(safecfg_concepts),
    "safecfg-concepts-general": stock(safecfg_concepts_general),
    "safe-conditioning": stock(safe_conditioning),
    "lora": with_lora(),
    **GUIDED,
    **SAFREE,
    "safree+safecfg": stock(filtered(safecfg)),
    **{f"safecfg-{preset}": _safecfg(preset) for preset in ("light", "strict")},
    **{
        f"safe-conditioning-{preset}": stock(safe_text(shipped_text_redirector, SAFE_TEXT_PRESETS[preset]))
        for preset in ("light", "strict")
    },
    **{f"safree-{preset}": _safree(preset) for preset in ("light", "strict")},
}
"""By name; ``safecfg``, ``safe-conditioning``, ``sp_guard`` and ``safree`` are the nodes' defaults."""
