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

from ..predictions import per_sample, upcast
from .directions import agreement, directions, steered, top_mask, unguided
from .family import BETA, COMBINE, END, MOMENTUM, start_setting
from .method import GuidanceOutput, Method, State, Step, StepInfo, Variant
from .settings import Setting, check_settings
from .window import Window

STEPS = 50
"""Steps the published warm-up count refers to."""


SETTINGS: tuple[Setting, ...] = (
    Setting("strength", "Strength, not multiplied by cfg. 0: off. Published: 5 to 15.", high=100.0, turns_off=True),
    start_setting("warmup"),
    Setting(
        "quantile",
        "SEGA only: share of each channel that is left alone. Low, 0: the whole picture is pushed. High, 0.99: "
        "only the strongest places.",
        high=0.9999,
    ),
    MOMENTUM,
    BETA,
    COMBINE,
    END,
)


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
        InputError: if a value is out of its range.
    """

    strength: float = 5.0
    warmup: float = 10 / STEPS
    quantile: float = 0.9
    momentum: float = 0.1
    beta: float = 0.4
    combine: Literal["argmax", "sum"] = "argmax"
    end: float = 1.0

    def __post_init__(self) -> None:
        check_settings(self, SETTINGS)
        Window(self.warmup, self.end)

    @property
    def window(self) -> Window:
        """When it acts."""
        return Window(self.warmup, self.end)

    def listens(self, progress: float) -> bool:
        """Whether an evaluation at this fraction of the schedule reads the concepts."""
        reads = Window(0.0 if self.momentum > 0 else self.warmup, self.end)
        return self.strength > 0 and not self.window.empty and reads.contains(progress)


def required_concepts(info: StepInfo, config: SEGAConfig, state: State[torch.Tensor] | None = None) -> torch.Tensor:
    """Concepts the coming evaluation has to predict, ``[B, K]``; with momentum also during warm-up."""
    return info.all() if config.listens(info.progress) else info.none()


def sega(step: Step, config: SEGAConfig, state: State[torch.Tensor] | None = None) -> GuidanceOutput:
    """Guide away from concepts where they are strongest.

    Args:
        step: predictions, ``[B, C, *spatial]``.
        config: settings.
        state: the momentum ``nu`` in noise units, float32.
    """
    state = state or State()
    if not step.concepts or not config.listens(step.progress):
        return unguided(step, state)
    scores = agreement(step)
    found, chosen = directions(step, scores, config.combine)
    sigma = per_sample(upcast(step.sigma), found[0])
    total = torch.zeros_like(found[0])
    for direction in found:
        psi = config.strength * direction / sigma
        total = total + torch.where(top_mask(psi, config.quantile, "channel"), psi, 0)
    if config.momentum > 0:
        level = step.info.sigma
        nu = state.recall(level)
        nu = torch.zeros_like(total) if nu is None else nu
        total = total + config.momentum * nu
        state = state.store(level, config.beta * nu + (1 - config.beta) * total)
    if step.progress < config.warmup:
        return unguided(step, state, scores)
    return steered(step, -sigma * total, state, scores, chosen)


METHOD = Method(
    "sega",
    "SEGA",
    SEGAConfig,
    required_concepts,
    sega,
    is_neutral=lambda config: config.strength == 0 or config.window.empty,
    measures=lambda info, config, state: info.progress < config.warmup,
    settings=SETTINGS,
    choices={"SEGA": SEGAConfig()},
    variants={"sega": Variant(SEGAConfig(combine="sum")), "sega-casg": Variant(SEGAConfig())},
    about="SEGA (arXiv 2301.12247)",
    aliases=("sega", "semantic guidance"),
)
