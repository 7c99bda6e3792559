"""The self-validating filter: for how much of the schedule the filtered prompt is used (SAFREE, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import InputError, check_choice, check_range
from ..predictions import upcast

FORMS = ("program", "paper", "whole")


@dataclass(frozen=True)
class ValidationConfig:
    """How long the filter holds. Defaults are the published program's for nudity.

    Args:
        form: "program" ``steps = round(up * sigmoid(2 k (10 beta - t0)))``, which is what the published numbers come
            from; "paper" ``steps = round(up * sigmoid(beta))`` as printed, which can only give 5 to 7 of 10 for
            beta from 0 to 1; "whole" to the last step.
        up: most steps.
        of: steps of the schedule ``up`` was tuned for.
        t0: ten times the change at which half of ``up`` is reached; 5.333 (nudity) or 5.5 (artists). 0..10.
        k: steepness; 2.5 (nudity) or 3.5 (artists). Above 0, at most 1000.

    Raises:
        InputError: if a value is out of its range.
    """

    form: str = "program"
    up: int = 10
    of: int = 50
    t0: float = 5.333
    k: float = 2.5

    def __post_init__(self) -> None:
        check_choice("form", self.form, FORMS)
        check_range("of", self.of, 1, 10_000)
        check_range("up", self.up, 0, self.of - 1, f"of {self.of} steps")
        check_range("t0", self.t0, 0, 10, "5.333 is the program's for nudity")
        if self.k == 0:
            raise InputError("k", "it is 0", "above 0, at most 1000 (2.5 is the program's for nudity)")
        check_range("k", self.k, 0, 1000, "2.5 is the program's for nudity")


def strength_of_change(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """``beta = 1 - mean cos(e', e)``: how much projecting every token changes the prompt, 0..2.

    Args:
        pairs: per chunk the projected and the original states ``[n, D]`` of all real tokens (marks included, padding
            not).

    Returns:
        0 where there is no token.
    """
    cosines = [torch.nn.functional.cosine_similarity(upcast(a), upcast(b).to(upcast(a)), dim=-1) for a, b in pairs]
    joined = torch.cat([c.double().cpu() for c in cosines]) if cosines else torch.zeros(0, dtype=torch.float64)
    return float(1 - joined.mean()) if len(joined) else 0.0


def held_share(beta: float, config: ValidationConfig) -> float:
    """Fraction of the schedule that starts with the filtered prompt, 0..1.

    The program uses the filter while the index of a step is at most ``steps``, so one step more than it says: 0 still
    filters the first step, and 10 of 50 filter 11.
    """
    if config.form == "whole":
        return 1.0
    value = beta if config.form == "paper" else 2 * config.k * (10 * beta - config.t0)
    # the two branches keep exp from overflowing
    share = 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
    return (round(config.up * share) + 1) / config.of
