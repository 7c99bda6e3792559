"""SP-Guard (arXiv 2511.11014): guidance as strong as the prompt is harmful, only where the picture is.

With ``d_a = e_a - e_base`` (all of it is invariant to sigma, so it is computed on denoised predictions)::

    P     = max_k mean of cos(d_prompt, d_k) over the first part of the run             (eq. 6, see ``gate``)
    M     = 1 + max(0, psi) where |d_concept| is among the largest 1 - q, else 0        (eq. 8)
    psi   = cos over the channels of d_prompt and d_concept at each place
    mu    = lambda(t) max(0, P) M                                                       (eq. 7)
    e     = e_base + w (d_prompt - mu d_concept)                                        (eq. 2, 3)

``lambda`` is 0 while P is measured, then ``lambda_max``, late in the run ``lambda_end`` to avoid artefacts. ``mu`` may
exceed 1 and nothing is remembered but P. Where the paper leaves something open there is an option, see the config.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from ..predictions import per_sample
from . import gate
from .concept_step import (
    Coming,
    Memory,
    Outcome,
    Step,
    agreement,
    check_choice,
    check_range,
    choose,
    cosine,
    largest_share,
    steered,
    toward_chosen,
    untouched,
)
from .gate import GateConfig, Probe


@dataclass(frozen=True)
class SPGuardConfig:
    """Settings of SP-Guard.

    Args:
        lambda_max: strength after measuring; published 4, swept 2 to 6.
        lambda_end: strength from ``switch`` on; published 1. Off if both are 0.
        switch: fraction of the schedule of that change, where guidance lasts that long. The paper names none. Sooner,
            what was pushed away comes back in part; at 1 the full strength holds to the last step.
        quantile: ``q``, share of the elements that is left alone.
        psi: ``positive`` takes ``max(0, psi)``, ``absolute`` the printed ``max(0, |psi|)``. There the maximum would do
            nothing and places that oppose the concept would be pushed hardest, so it is taken for a slip.
        axis: quantile over a whole ``sample``, as the paper's text reads, or over each ``channel``, as in SEGA.
        concept: the paper does not say which of several concepts to push away from. ``probed`` is the one with the
            largest P, at the least cost; ``step`` chooses anew in each evaluation (CASG, arXiv 2602.20880); ``all``
            takes, element by element, the strongest push of all concepts.
        end: fraction of the schedule at which it ends. The paper acts to the last step, 1; by then the picture is
            decided, and the testbed shows as little harm with less change and cost at 0.6 (the help page has figures).
        gate: how P is measured and when a sample is left alone.

    Raises:
        ValueError: if a value is out of its range.
    """

    lambda_max: float = 4.0
    lambda_end: float = 1.0
    switch: float = 0.8
    quantile: float = 0.9
    psi: Literal["positive", "absolute"] = "positive"
    axis: Literal["sample", "channel"] = "sample"
    concept: Literal["probed", "step", "all"] = "probed"
    end: float = 0.6
    gate: GateConfig = field(default_factory=GateConfig)

    def __post_init__(self) -> None:
        check_range("lambda_max", self.lambda_max, 0, 20, "published 4")
        check_range("lambda_end", self.lambda_end, 0, 20, "published 1")
        check_range("switch", self.switch, 0, 1, "fraction of the schedule")
        check_range("quantile", self.quantile, 0, 0.9999, "0 acts on everything")
        check_range("end", self.end, 0, 1, "fraction of the schedule")
        check_choice("psi", self.psi, ("positive", "absolute"))
        check_choice("axis", self.axis, ("sample", "channel"))
        check_choice("concept", self.concept, ("probed", "step", "all"))

    def strength(self, progress: float) -> float:
        """``lambda`` after measuring, at this fraction of the schedule."""
        if progress > self.end:
            return 0.0
        return self.lambda_max if progress < self.switch else self.lambda_end

    def ahead(self, progress: float) -> bool:
        """Whether there is any guidance at this fraction of the schedule or later."""
        early = self.lambda_max > 0 and progress < self.switch
        late = self.lambda_end > 0 and self.switch <= self.end
        return progress <= self.end and (early or late)


SP_GUARD_PRESETS: dict[str, SPGuardConfig] = {
    "light": SPGuardConfig(lambda_max=2.0, gate=GateConfig(threshold=0.4)),
    "balanced": SPGuardConfig(),
    "strict": SPGuardConfig(lambda_max=6.0, gate=GateConfig(threshold=0.2)),
}
"""From least to most removed: the smallest, the published and the largest strength of the published sweep. Thresholds
are ours, chosen on the testbed. ``strict`` ends where the others do: to the last step it removed no more there, and lost
more of the picture."""


def needs(coming: Coming, config: SPGuardConfig, memory: Memory[Probe] | None = None) -> torch.Tensor:
    """Concepts the coming evaluation has to predict, ``[B, K]``.

    All or none while P is measured (neutral texts together with them), then the chosen one of each sample, or none
    where the gate is closed.
    """
    probe = memory.recall(coming.sigma) if memory else None
    if not config.ahead(coming.progress):
        return coming.none()
    wanted = gate.needs(coming, config.gate, memory)
    if probe is None or gate.probing(config.gate, probe, coming.progress):
        return wanted
    if config.strength(coming.progress) == 0:
        return coming.none()
    if config.concept == "probed":
        chosen = choose(gate.scores(config.gate, probe)).cpu()
        wanted = wanted & (chosen[:, None] == torch.arange(coming.count))
    return wanted


def sp_guard(step: Step, config: SPGuardConfig, memory: Memory[Probe] | None = None) -> Outcome:
    """Guide away from the concept, as strongly as the prompt agrees with it.

    Args:
        step: predictions, ``[B, C, *spatial]``.
        config: settings.
        memory: what was measured of P. Call this at every evaluation, also where ``needs`` asks for nothing.
    """
    memory = memory or Memory()
    level = step.coming.sigma
    probe = memory.recall(level)
    if not step.concepts or not config.ahead(step.progress):
        return untouched(step, memory.store(level, probe))
    if probe is None or gate.probing(config.gate, probe, step.progress):
        probe = gate.observe(step, config.gate, probe)
        return untouched(step, memory.store(level, probe), gate.scores(config.gate, probe))
    memory = memory.store(level, probe)
    scores, strength = gate.scores(config.gate, probe), config.strength(step.progress)
    acts = gate.is_open(config.gate, scores)
    if strength == 0 or not bool(acts.any()):
        return untouched(step, memory, scores)
    if config.concept == "all":
        chosen, push = None, _strongest(step, config)
    else:
        chosen = choose(scores if config.concept == "probed" else agreement(step))
        chosen = torch.where(acts, chosen, -1)
        push = _masked(step, toward_chosen(step, chosen), config)
    mu = per_sample(strength * scores.amax(dim=1), push)
    change = torch.where(per_sample(acts, push), -step.scale * mu * push, 0)
    return steered(step, change, memory, scores, chosen)


def mask(prompt: torch.Tensor, concept: torch.Tensor, config: SPGuardConfig) -> torch.Tensor:
    """``M`` of equation 8.

    Args:
        prompt: direction from the base to the prompt, ``[B, C, *spatial]``, float32.
        concept: direction from the base to the concept.
        config: settings.

    Returns:
        ``[B, C, *spatial]``, 0 or 1..2.
    """
    psi = cosine(prompt, concept, (1,))
    psi = psi.clamp(min=0) if config.psi == "positive" else psi.abs()
    return torch.where(largest_share(concept, config.quantile, config.axis), 1 + psi, 0)


def _masked(step: Step, concept: torch.Tensor, config: SPGuardConfig) -> torch.Tensor:
    return mask(step.toward("prompt"), concept, config) * concept


def _strongest(step: Step, config: SPGuardConfig) -> torch.Tensor:
    strongest = _masked(step, step.toward(0), config)
    for k in range(1, len(step.concepts)):
        push = _masked(step, step.toward(k), config)
        strongest = torch.where(push.abs() > strongest.abs(), push, strongest)
    return strongest
