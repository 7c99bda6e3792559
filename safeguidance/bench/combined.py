"""SAFREE's filtered prompt under methods that act on the base or on predictions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..safree import held_share, strength_of_change
from ..testbed.model import Testbed
from .conditions import Conditions, Method, Schedule, Setting, plain, safecfg, stock
from .guided import guarded
from .safree import SafreeSetup, filter_text


def filtered(base: Conditions, setup: SafreeSetup | None = None) -> Conditions:
    """The prompt filtered for as long as it is held, over the base of another conditioning.

    That one reads the prompt as it was written, so a redirector judges what was asked for and not what is left of it.
    """
    setup = setup or SafreeSetup()

    def start(testbed: Testbed, setting: Setting, prompts: Sequence[str]) -> Schedule:
        under = base(testbed, setting, prompts)
        outcomes = [filter_text(testbed, prompt, setup) for prompt in prompts]
        states = torch.stack([outcome.states for outcome in outcomes])
        until = torch.tensor([
            held_share(strength_of_change([o.projected]), setup.validation) if o.acts else 0.0 for o in outcomes
        ])

        def at(progress: float) -> tuple[torch.Tensor, torch.Tensor]:
            original, other = under(progress)
            acts = progress < until - 1e-6
            return torch.where(acts[:, None, None], states, original), other

        return at

    return start


COMBINED: dict[str, Method] = {
    "safree+safecfg": stock(filtered(safecfg)),
    "safree+sp_guard": guarded(filtered(plain)),
    "safree+safecfg+sp_guard": guarded(filtered(safecfg), anchor=""),
}
"""Combinations by name."""
