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

from ..errors import check_choice
from .directions import agreement, directions, steered, unguided
from .family import COMBINE, END, start_setting
from .method import GuidanceOutput, Method, State, Step, StepInfo, Variant
from .settings import Setting, check_settings
from .window import Window

SETTINGS: tuple[Setting, ...] = (
    Setting("strength", "How much of the concept is subtracted. 0: off. 1: as published.", high=5.0, turns_off=True),
    start_setting("start"),
    COMBINE,
    END,
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
        InputError: if a value is out of its range.
    """

    strength: float = 1.0
    form: Literal["not", "negative"] = "not"
    combine: Literal["argmax", "sum"] = "argmax"
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_settings(self, SETTINGS)
        check_choice("form", self.form, ("not", "negative"))
        Window(self.start, self.end)

    @property
    def window(self) -> Window:
        """When it acts."""
        return Window(self.start, self.end)

    def active(self, progress: float) -> bool:
        """Whether an evaluation at this fraction of the schedule is changed."""
        return self.strength > 0 and self.window.contains(progress)


def required_concepts(info: StepInfo, config: NegationConfig, state: State[Any] | None = None) -> torch.Tensor:
    """Concepts the coming evaluation has to predict, ``[B, K]``."""
    return info.all() if config.active(info.progress) else info.none()


def negation(step: Step, config: NegationConfig, state: State[Any] | None = None) -> GuidanceOutput:
    """Guide away from the concepts.

    Args:
        step: predictions, ``[B, C, *spatial]``.
        config: settings.
        state: nothing is remembered; it is handed through.
    """
    state = state or State()
    if not step.concepts or not config.active(step.progress):
        return unguided(step, state)
    scores = agreement(step)
    away, chosen = directions(step, scores, config.combine)
    kept = 1.0 if config.form == "negative" else 0.0
    change = (kept - step.scale) * config.strength * sum(away[1:], away[0])
    return steered(step, change, state, scores, chosen)


METHOD = Method(
    "negation",
    "Negation",
    NegationConfig,
    required_concepts,
    negation,
    is_neutral=lambda config: config.strength == 0 or config.window.empty,
    settings=SETTINGS,
    choices={"NOT": NegationConfig(), "negative prompt": NegationConfig(form="negative")},
    variants={"not": Variant(NegationConfig(), joined=True), "not-casg": Variant(NegationConfig())},
    about="composable NOT (arXiv 2206.01714), and a negative prompt",
    aliases=("composable not", "negative prompt", "baseline"),
)
