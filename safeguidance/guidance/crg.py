"""CRG (arXiv 2606.29801): guidance away from a concept once the risk that the run has gathered is high enough.

With ``d_a = e_a - e_base`` in noise units, ``e = (x - D) / sigma``::

    b     = |d_prompt|^2 - |e_prompt - e_concept|^2          nearer to the concept than to nothing by that much
    risk  = (K / 2) b + sum over the run of kappa_t b / T
    omega = (risk - tau) / (K |d_concept|^2)                 where risk > tau, else 0
    e     = e_base + w d_prompt - lambda_0 omega d_concept

We had a summary of the method and not the paper, so these are our readings: the push is added outside the cfg scale, as
in SEGA (inside it, pictures of an earlier testbed broke); ``tau`` counts in units of ``K |d_concept|^2``, so that it
does not depend on the size of the latent; and ``kappa_t / T``, published as ``beta_t / (2 alpha_t (1 - alphabar_t))``
of a training schedule, is its limit for small steps, the fall of ``ln sigma`` since the evaluation before. One concept
per sample, the one with the largest omega.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange

from ..predictions import per_sample, upcast
from .directions import direction_to_chosen, steered, unguided
from .method import GuidanceOutput, Method, State, Step, StepInfo, Variant
from .settings import Setting, check_settings
from .window import Window

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "strength",
        "lambda_0, how hard the risk pushes. Low: little is removed, 0 is plain CFG to the last bit. High: more is "
        "removed, pictures change more. Published: 2.",
        high=10.0,
        step=0.1,
        by_preset=True,
        turns_off=True,
    ),
    Setting(
        "threshold",
        "tau, the risk from which a prompt is guided, in units of the concept's own size. Low, 0: any prompt that is "
        "nearer to the concept than to nothing. High, up to 4: only prompts that stay near it for long. The "
        "published number was not known to us; 0.5 leaves a prompt alone that points half as far as the concept.",
        high=4.0,
        by_preset=True,
    ),
    Setting(
        "weight",
        "K, how much the present step counts beside what the run has gathered. Low: slow and steady. High: what is "
        "seen now decides. Published: 1.",
        low=0.1,
        high=10.0,
        step=0.1,
        limits=(0.01, 100.0),
    ),
    Setting(
        "end",
        "Fraction of the noise schedule at which guidance ends; same meaning as end_percent of a conditioning. Low: "
        "only the layout is guarded, at less cost. High, 1: to the last step, as published.",
        by_preset=True,
    ),
)


@dataclass(frozen=True)
class CRGConfig:
    """Settings of CRG.

    Args:
        strength: ``lambda_0``; published 2, 0 is off.
        threshold: ``tau`` in units of ``K |d_concept|^2``.
        weight: ``K``; published 1.
        end: fraction of the schedule at which it ends.

    Raises:
        InputError: if a value is out of its range.
    """

    strength: float = 2.0
    threshold: float = 0.5
    weight: float = 1.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_settings(self, SETTINGS)

    @property
    def window(self) -> Window:
        """When it acts."""
        return Window(0.0, self.end)

    def active(self, progress: float) -> bool:
        """Whether an evaluation at this fraction of the schedule may be changed."""
        return self.strength > 0 and self.window.contains(progress)


CRG_PRESETS: dict[str, CRGConfig] = {
    "light": CRGConfig(strength=1.0, threshold=0.7),
    "balanced": CRGConfig(),
    "strict": CRGConfig(strength=3.0, threshold=0.3),
}
"""From least to most removed; ``balanced`` has the published strength, the others are ours."""


@dataclass(frozen=True)
class Risk:
    """What a run has gathered.

    Args:
        total: sum of ``kappa_t b / T``, ``[B, K]``.
        sigma: level of the evaluation before.
        peak: the largest risk so far, in the threshold's units.
    """

    total: torch.Tensor
    sigma: float
    peak: torch.Tensor


def required_concepts(info: StepInfo, config: CRGConfig, state: State[Risk] | None = None) -> torch.Tensor:
    """Concepts the coming evaluation has to predict, ``[B, K]``: all while it acts."""
    return info.all() if config.active(info.progress) else info.none()


def crg(step: Step, config: CRGConfig, state: State[Risk] | None = None) -> GuidanceOutput:
    """Guide away from the concept whose risk is largest, where it is above the threshold.

    Args:
        step: predictions, ``[B, C, *spatial]``.
        config: settings.
        state: the risk gathered so far.
    """
    state = state or State()
    if not step.concepts or not config.active(step.progress):
        return unguided(step, state)
    level = step.info.sigma
    known = state.recall(level)
    nearer, size = _nearness(step)
    fall = 0.0 if known is None else max(0.0, _log(known.sigma) - _log(level))
    total = nearer * fall if known is None else known.total + nearer * fall
    unit = config.weight * size
    omega = (config.weight / 2 * nearer + total) / torch.where(unit > 0, unit, 1) - config.threshold
    omega = torch.where(unit > 0, omega, -1)
    largest, chosen = omega.max(dim=1)
    chosen = torch.where(largest > 0, chosen, -1)
    risk = (omega + config.threshold).clamp(min=0)
    peak = risk if known is None else torch.maximum(known.peak, risk)
    state, scores = state.store(level, Risk(total, level, peak)), peak.clamp(0, 1)
    if not bool((chosen >= 0).any()):
        return unguided(step, state, scores)
    push = direction_to_chosen(step, chosen)
    weight = per_sample(config.strength * largest.clamp(min=0), push)
    return steered(step, torch.where(per_sample(chosen >= 0, push), -weight * push, 0), state, scores, chosen)


def _nearness(step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """``b`` and ``|d_concept|^2`` of every concept, ``[B, K]`` each, in noise units."""
    prompt, variance = step.direction("prompt"), upcast(step.sigma).square()
    toward = [step.direction(k) for k in range(len(step.concepts))]

    def squared(direction: torch.Tensor) -> torch.Tensor:
        return rearrange(direction, "b ... -> b (...)").square().sum(dim=1) / variance

    own = squared(prompt)
    nearer = torch.stack([own - squared(prompt - concept) for concept in toward], dim=1)
    return nearer, torch.stack([squared(concept) for concept in toward], dim=1)


def _log(sigma: float) -> float:
    return float(torch.tensor(max(sigma, 1e-12)).log())


METHOD = Method(
    "crg",
    "CRG",
    CRGConfig,
    required_concepts,
    crg,
    is_neutral=lambda config: config.strength == 0 or config.window.empty,
    apart=True,
    threshold=lambda config: min(config.threshold, 1.0),
    settings=SETTINGS,
    presets=CRG_PRESETS,
    variants={
        "crg": Variant(CRG_PRESETS["balanced"]),
        "crg-light": Variant(CRG_PRESETS["light"]),
        "crg-strict": Variant(CRG_PRESETS["strict"]),
    },
    about=(
        "CRG (arXiv 2606.29801): gathers, step by step, how much nearer the prompt's prediction is to each unsafe "
        "concept than to nothing; once that risk passes a threshold, guidance pushes away from the concept, the harder "
        "the higher the risk. Training-free; asks for every concept in every step. A prompt whose risk stays below the "
        "threshold gives the very same picture as without this node, to the last bit. "
    ),
    aliases=("crg", "risk guidance", "concept guidance", "negative guidance", "dynamic negative guidance"),
    patch_node=("SafeGuidance_CRG", "CRG"),
    about_presets=(
        "How much is removed. light: weaker, and only prompts with a high risk. balanced: the published strength. "
        "strict: stronger, and sooner; more harmless prompts change. A number typed below overrides the preset's."
    ),
)
