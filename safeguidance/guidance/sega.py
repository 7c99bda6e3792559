"""SEGA, semantic guidance (Brack et al. 2023, arXiv 2301.12247), used to take concepts away.

In noise units, ``e = (x - D) / sigma``::

    psi_k = -s (e_k - e_base), elements below the quantile tau of its channel set to 0
    total = sum_k psi_k + s_m nu
    nu   <- beta nu + (1 - beta) total                    (from the first step, also during warm-up)
    e     = e_base + w (e_prompt - e_base) + total        (after warm-up; not multiplied by w)

Published as the sum over all concepts; here the nearest one is used unless told otherwise (CASG, arXiv 2602.20880).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ..predictions import per_sample, wide
from .concept_step import (
    Coming,
    Memory,
    Outcome,
    Step,
    agreement,
    check_choice,
    check_range,
    directions,
    largest_share,
    steered,
    untouched,
)

STEPS = 50
"""Steps the published warm-up count refers to."""


@dataclass(frozen=True)
class SEGAConfig:
    """Settings of SEGA.

    Args:
        strength: ``s``, not multiplied by the cfg scale; 0 is off.
        warmup: fraction of the schedule before it acts.
        quantile: ``tau``, share of each channel's elements that is left alone.
        momentum: ``s_m``, share of the momentum in the guidance.
        beta: how slowly the momentum changes.
        combine: ``argmax`` acts on the concept nearest to the prompt in each evaluation, ``sum`` on all of them.
        end: fraction of the schedule at which it ends; 1, the published way, acts to the last step.

    Raises:
        ValueError: if a value is out of its range.
    """

    strength: float = 5.0
    warmup: float = 10 / STEPS
    quantile: float = 0.9
    momentum: float = 0.1
    beta: float = 0.4
    combine: Literal["argmax", "sum"] = "argmax"
    end: float = 1.0

    def __post_init__(self) -> None:
        check_range("strength", self.strength, 0, 100, "0 is off, published are 5 to 15")
        check_range("quantile", self.quantile, 0, 0.9999, "0 acts on everything")
        check_range("momentum", self.momentum, 0, 1, "0 is off")
        check_range("beta", self.beta, 0, 0.9999, "0 keeps nothing of earlier steps")
        check_choice("combine", self.combine, ("argmax", "sum"))
        if not 0 <= self.warmup <= self.end <= 1:
            raise ValueError(
                f"window is warmup {self.warmup} to end {self.end}; allowed is 0 <= warmup <= end <= 1 (fractions of "
                "the schedule)"
            )

    def listens(self, progress: float) -> bool:
        """Whether an evaluation at this fraction of the schedule reads the concepts."""
        warm = self.warmup <= progress or self.momentum > 0
        return self.strength > 0 and warm and progress <= self.end and self.warmup < self.end


def needs(coming: Coming, config: SEGAConfig, memory: Memory[torch.Tensor] | None = None) -> torch.Tensor:
    """Concepts the coming evaluation has to predict, ``[B, K]``; with momentum also during warm-up."""
    return coming.all() if config.listens(coming.progress) else coming.none()


def sega(step: Step, config: SEGAConfig, memory: Memory[torch.Tensor] | None = None) -> Outcome:
    """Guide away from concepts where they are strongest.

    Args:
        step: predictions, ``[B, C, *spatial]``.
        config: settings.
        memory: the momentum ``nu`` in noise units, float32.
    """
    memory = memory or Memory()
    if not step.concepts or not config.listens(step.progress):
        return untouched(step, memory)
    scores = agreement(step)
    found, chosen = directions(step, scores, config.combine)
    sigma = per_sample(wide(step.sigma), found[0])
    total = torch.zeros_like(found[0])
    for direction in found:
        psi = config.strength * direction / sigma
        total = total + torch.where(largest_share(psi, config.quantile, "channel"), psi, 0)
    if config.momentum > 0:
        level = step.coming.sigma
        nu = memory.recall(level)
        nu = torch.zeros_like(total) if nu is None else nu
        total = total + config.momentum * nu
        memory = memory.store(level, config.beta * nu + (1 - config.beta) * total)
    if step.progress < config.warmup:
        return untouched(step, memory, scores)
    return steered(step, -sigma * total, memory, scores, chosen)
