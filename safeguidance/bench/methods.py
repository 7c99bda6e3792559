"""Methods that can be measured, by name. A new method joins with one entry in ``METHODS``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..predictions import cfg
from ..testbed.model import Testbed
from ..testbed.sampler import Guided
from .conditions import NEGATIVE_PROMPT, Conditions, Method, Setting, against, plain, safecfg, safecfg_concepts
from .guided import GUIDED

__all__ = ["METHODS", "NEGATIVE_PROMPT", "Method", "Setting", "stock"]


def stock(conditions: Conditions) -> Method:
    """Plain CFG on conditioned prompts and bases."""

    def start(testbed: Testbed, setting: Setting, prompts: Sequence[str]) -> Guided:
        at = conditions(testbed, setting, prompts)

        def guided(x: torch.Tensor, sigma: torch.Tensor, step: int) -> torch.Tensor:
            both = torch.cat(at(step / setting.steps))
            prompt, base = testbed.predict(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
            return cfg(prompt, base, setting.scale)

        return guided

    return start


METHODS: dict[str, Method] = {
    "none": stock(plain),
    "negative": stock(against(NEGATIVE_PROMPT)),
    "safecfg": stock(safecfg),
    "safecfg-concepts": stock(safecfg_concepts),
    **GUIDED,
}
