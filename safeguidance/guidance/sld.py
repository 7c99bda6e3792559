"""Safe Latent Diffusion (Schramowski et al. 2023, arXiv 2211.05105), equations 3 to 8.

In noise units, ``e = (x - D) / sigma`` (for flow models that is the velocity)::

    phi   = min(s_S |e_prompt - e_concept|, 1)
    mu    = phi where e_prompt - e_concept < lambda, else 0          (signed, element by element)
    gamma = mu (e_concept - e_base) + s_m nu
    nu   <- beta nu + (1 - beta) gamma                               (from the first step, also during warm-up)
    e     = e_base + w (e_prompt - e_base - gamma)                   (after warm-up)

The published numbers were tuned on Stable Diffusion 1 noise; elsewhere they are uncalibrated. Published for one long
concept text; here categories stay apart and the nearest one is used in each evaluation (CASG, arXiv 2602.20880).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..predictions import per_sample, wide
from .concept_step import (
    Coming,
    Memory,
    Outcome,
    Step,
    agreement,
    check_range,
    choose,
    steered,
    toward_chosen,
    untouched,
)

STEPS = 50
"""Steps the published warm-up counts refer to."""


@dataclass(frozen=True)
class SLDConfig:
    """Settings of SLD; the defaults are the preset ``medium``.

    Args:
        strength: ``s_S``, how soon the element-wise guidance saturates; 0 is off. The published code is also off at
            1 and below, where the formula still gives a little.
        warmup: fraction of the schedule before it acts.
        threshold: ``lambda``, in noise units.
        momentum: ``s_m``, share of the momentum in the guidance.
        beta: how slowly the momentum changes.
        end: fraction of the schedule at which it ends; 1, the published way, acts to the last step.

    Raises:
        ValueError: if a value is out of its range.
    """

    strength: float = 1000.0
    warmup: float = 10 / STEPS
    threshold: float = 0.01
    momentum: float = 0.3
    beta: float = 0.4
    end: float = 1.0

    def __post_init__(self) -> None:
        check_range("strength", self.strength, 0, 1e9, "0 is off, published are 200 to 5000")
        check_range("threshold", self.threshold, 0, 1e9, "published are 0 to 1")
        check_range("momentum", self.momentum, 0, 1, "0 is off")
        check_range("beta", self.beta, 0, 0.9999, "0 keeps nothing of earlier steps")
        if not 0 <= self.warmup <= self.end <= 1:
            raise ValueError(
                f"window is warmup {self.warmup} to end {self.end}; allowed is 0 <= warmup <= end <= 1 (fractions of "
                "the schedule)"
            )

    def listens(self, progress: float) -> bool:
        """Whether an evaluation at this fraction of the schedule reads the concepts."""
        warm = self.warmup <= progress or self.momentum > 0
        return self.strength > 0 and warm and progress <= self.end and self.warmup < self.end


SLD_PRESETS: dict[str, SLDConfig] = {
    "weak": SLDConfig(200, 15 / STEPS, 0.0, 0.0, 0.0),
    "medium": SLDConfig(1000, 10 / STEPS, 0.01, 0.3, 0.4),
    "strong": SLDConfig(2000, 7 / STEPS, 0.025, 0.5, 0.7),
    "max": SLDConfig(5000, 0.0, 1.0, 0.5, 0.7),
}
"""The four published configurations. ``weak`` has the paper's strength of 200; the diffusers library ships 20."""


def needs(coming: Coming, config: SLDConfig, memory: Memory[torch.Tensor] | None = None) -> torch.Tensor:
    """Concepts the coming evaluation has to predict, ``[B, K]``; with momentum also during warm-up."""
    return coming.all() if config.listens(coming.progress) else coming.none()


def sld(step: Step, config: SLDConfig, memory: Memory[torch.Tensor] | None = None) -> Outcome:
    """Guide away from the nearest concept, element by element.

    Args:
        step: predictions, ``[B, C, *spatial]``.
        config: settings.
        memory: the momentum ``nu`` in noise units, float32 (in denoised units it would fade with sigma).
    """
    memory = memory or Memory()
    if not step.concepts or not config.listens(step.progress):
        return untouched(step, memory)
    scores = agreement(step)
    chosen = choose(scores)
    concept, prompt = toward_chosen(step, chosen), step.toward("prompt")
    sigma = per_sample(wide(step.sigma), prompt)
    difference = (concept - prompt) / sigma
    weight = torch.where(difference < config.threshold, (config.strength * difference.abs()).clamp(max=1), 0)
    gamma = weight * -concept / sigma
    if config.momentum > 0:
        level = step.coming.sigma
        nu = memory.recall(level)
        nu = torch.zeros_like(gamma) if nu is None else nu
        gamma = gamma + config.momentum * nu
        memory = memory.store(level, config.beta * nu + (1 - config.beta) * gamma)
    if step.progress < config.warmup:
        return untouched(step, memory, scores)
    return steered(step, step.scale * sigma * gamma, memory, scores, chosen)
