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

from ..predictions import per_sample, upcast
from .directions import agreement, choose, direction_to_chosen, steered, unguided
from .family import BETA, END, MOMENTUM, start_setting
from .method import GuidanceOutput, Method, State, Step, StepInfo, Variant
from .settings import Setting, check_settings
from .window import Window

STEPS = 50
"""Steps the published warm-up counts refer to."""


SETTINGS: tuple[Setting, ...] = (
    Setting("strength", "How soon the guidance saturates. 0: off. Published: 200 to 5000.", high=1e9, turns_off=True),
    start_setting("warmup"),
    Setting(
        "threshold",
        "SLD only, in noise units: an element is pushed where the prompt's prediction is less than the concept's "
        "plus this. Low, 0: few elements are pushed. High: nearly all.",
        high=10.0,
        limits=(0, 1e9),
    ),
    MOMENTUM,
    BETA,
    END,
)


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
        InputError: if a value is out of its range.
    """

    strength: float = 1000.0
    warmup: float = 10 / STEPS
    threshold: float = 0.01
    momentum: float = 0.3
    beta: float = 0.4
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


SLD_PRESETS: dict[str, SLDConfig] = {
    "weak": SLDConfig(200, 15 / STEPS, 0.0, 0.0, 0.0),
    "medium": SLDConfig(1000, 10 / STEPS, 0.01, 0.3, 0.4),
    "strong": SLDConfig(2000, 7 / STEPS, 0.025, 0.5, 0.7),
    "max": SLDConfig(5000, 0.0, 1.0, 0.5, 0.7),
}
"""The four published configurations. ``weak`` has the paper's strength of 200; the diffusers library ships 20."""


def required_concepts(info: StepInfo, config: SLDConfig, state: State[torch.Tensor] | None = None) -> torch.Tensor:
    """Concepts the coming evaluation has to predict, ``[B, K]``; with momentum also during warm-up."""
    return info.all() if config.listens(info.progress) else info.none()


def sld(step: Step, config: SLDConfig, state: State[torch.Tensor] | None = None) -> GuidanceOutput:
    """Guide away from the nearest concept, element by element.

    Args:
        step: predictions, ``[B, C, *spatial]``.
        config: settings.
        state: the momentum ``nu`` in noise units, float32 (in denoised units it would fade with sigma).
    """
    state = state or State()
    if not step.concepts or not config.listens(step.progress):
        return unguided(step, state)
    scores = agreement(step)
    chosen = choose(scores)
    concept, prompt = direction_to_chosen(step, chosen), step.direction("prompt")
    sigma = per_sample(upcast(step.sigma), prompt)
    difference = (concept - prompt) / sigma
    weight = torch.where(difference < config.threshold, (config.strength * difference.abs()).clamp(max=1), 0)
    gamma = weight * -concept / sigma
    if config.momentum > 0:
        level = step.info.sigma
        nu = state.recall(level)
        nu = torch.zeros_like(gamma) if nu is None else nu
        gamma = gamma + config.momentum * nu
        state = state.store(level, config.beta * nu + (1 - config.beta) * gamma)
    if step.progress < config.warmup:
        return unguided(step, state, scores)
    return steered(step, step.scale * sigma * gamma, state, scores, chosen)


METHOD = Method(
    "sld",
    "SLD",
    SLDConfig,
    required_concepts,
    sld,
    is_neutral=lambda config: config.strength == 0 or config.window.empty,
    measures=lambda info, config, state: info.progress < config.warmup,
    settings=SETTINGS,
    choices={f"SLD {name}": config for name, config in SLD_PRESETS.items()},
    variants={
        **{f"sld_{name}": Variant(config, joined=True) for name, config in SLD_PRESETS.items()},
        **{f"sld_{name}-casg": Variant(config) for name, config in SLD_PRESETS.items()},
    },
    about="SLD (arXiv 2211.05105) in its four presets",
    aliases=("sld", "safe latent diffusion", "casg"),
)
"""As published all concepts are one text; behind ``-casg`` the nearest is chosen in each step (arXiv 2602.20880)."""
