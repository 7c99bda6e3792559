"""Methods that can be measured, by name. A new method joins with one entry in ``METHODS``."""

from __future__ import annotations

from .combined import COMBINED
from .conditions import NEGATIVE_PROMPT, Method, Setting, against, plain, safecfg, safecfg_concepts, stock
from .guided import GUIDED
from .safree import SAFREE

__all__ = ["METHODS", "NEGATIVE_PROMPT", "Method", "Setting", "stock"]


METHODS: dict[str, Method] = {
    "none": stock(plain),
    "negative": stock(against(NEGATIVE_PROMPT)),
    "safecfg": stock(safecfg),
    "safecfg-concepts": stock(safecfg_concepts),
    **GUIDED,
    **SAFREE,
    **COMBINED,
}
