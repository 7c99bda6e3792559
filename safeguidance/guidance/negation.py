"""Steering away from a concept without any condition: composable NOT, and the negative prompt as a special case.

NOT (Liu et al. 2022, arXiv 2206.01714, eq. 13; the base form of TraSCE, arXiv 2412.07658):
``denoised = D_base + w (D_prompt - D_concept)``. A negative prompt replaces the base as well:
``D_concept + w (D_prompt - D_concept)``. Where prompt and concept coincide, NOT lands on the base; a negative prompt
lands on the concept, which is why it fails on harmful prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from .concept_step import (
    Coming,
    Memory,
    Outcome,
    Step,
    agreement,
    check_choice,
    check_range,
    directions,
    steered,
    untouched,
)


@dataclass(frozen=True)
class NegationConfig:
    """Settings of plain negation.

    Args:
        strength: 0 leaves plain CFG, 1 is the published form.
        form: ``not`` keeps the base, ``negative`` moves it to the concept.
        combine: ``argmax`` acts on the concept nearest to the prompt in each evaluation, ``sum`` on all of them.
        start: fraction of the schedule at which it begins, 0 is the first step.
        end: fraction at which it ends; 1, the published way, acts to the last step.

    Raises:
        ValueError: if a value is out of its range.
    """

    strength: float = 1.0
    form: Literal["not", "negative"] = "not"
    combine: Literal["argmax", "sum"] = "argmax"
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_range("strength", self.strength, 0, 5, "0 is off, 1 the published form")
        check_choice("form", self.form, ("not", "negative"))
        check_choice("combine", self.combine, ("argmax", "sum"))
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(
                f"window is {self.start} to {self.end}; allowed is 0 <= start <= end <= 1 (fractions of the schedule)"
            )

    def active(self, progress: float) -> bool:
        """Whether an evaluation at this fraction of the schedule is changed."""
        return self.strength > 0 and self.start <= progress <= self.end and self.start < self.end


def needs(coming: Coming, config: NegationConfig, memory: Memory[Any] | None = None) -> torch.Tensor:
    """Concepts the coming evaluation has to predict, ``[B, K]``."""
    return coming.all() if config.active(coming.progress) else coming.none()


def negation(step: Step, config: NegationConfig, memory: Memory[Any] | None = None) -> Outcome:
    """Guide away from the concepts.

    Args:
        step: predictions, ``[B, C, *spatial]``.
        config: settings.
        memory: nothing is remembered; it is handed through.
    """
    memory = memory or Memory()
    if not step.concepts or not config.active(step.progress):
        return untouched(step, memory)
    scores = agreement(step)
    away, chosen = directions(step, scores, config.combine)
    kept = 1.0 if config.form == "negative" else 0.0
    change = (kept - step.scale) * config.strength * sum(away[1:], away[0])
    return steered(step, change, memory, scores, chosen)
