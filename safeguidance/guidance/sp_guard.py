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

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ..errors import InputError
from ..predictions import per_sample
from . import gate
from .directions import agreement, choose, cosine, direction_to_chosen, steered, top_mask, unguided
from .gate import GATE_SETTINGS, PRINTED, GateConfig, Probe
from .method import GuidanceOutput, Method, State, Step, StepInfo, Variant
from .settings import Setting, check_settings
from .window import Window

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "lambda_max",
        "Strength after measuring. Low: little is removed, 0 is plain CFG to the last bit (lambda_end 0 as "
        "well). High: more is removed, pictures change more. The paper uses 4 and swept 2 to 6.",
        high=20.0,
        step=0.1,
        by_preset=True,
        turns_off=True,
    ),
    GATE_SETTINGS["threshold"],
    Setting(
        "quantile",
        "Share of the latent's elements that is left alone. Low, 0: the whole picture is pushed. High, "
        "0.99: only the places where the concept is strongest. The paper uses 0.9, the top tenth.",
        high=0.9999,
    ),
    GATE_SETTINGS["neutral"],
    Setting(
        "end",
        "Fraction of the noise schedule at which guidance ends; same meaning as end_percent of a "
        "conditioning. Low: only the layout is guarded, at less cost and with less change. High, 1: to the last "
        "step, as in the paper.",
        by_preset=True,
    ),
    GATE_SETTINGS["probe"],
    GATE_SETTINGS["settle"],
    GATE_SETTINGS["every"],
    GATE_SETTINGS["offset"],
    GATE_SETTINGS["reference"],
    Setting(
        "lambda_end",
        "Strength from switch on, where end is later. Low: fewer artefacts, 0 ends guidance at switch. "
        "High: details are pushed as hard as the layout. The paper lowers it to 1.",
        high=20.0,
        step=0.1,
        by_preset=True,
        turns_off=True,
    ),
    Setting(
        "switch",
        "Fraction of the noise schedule at which lambda_max gives way to lambda_end. Low: soon, softer. "
        "High, 1: never. The paper names none; 0.8 is our choice.",
        by_preset=True,
    ),
    Setting(
        "psi",
        "How the agreement at each place raises the mask. positive: only where prompt and concept point "
        "the same way. absolute: also where they oppose, as printed in the paper, which we take for a slip.",
        choices=("positive", "absolute"),
    ),
    Setting(
        "axis",
        "What the quantile is taken over. sample: the whole latent, as the paper reads. channel: each "
        "channel for itself, as in SEGA.",
        choices=("sample", "channel"),
    ),
    Setting(
        "concept",
        "Which of several concepts is pushed away from; the paper does not say. probed: the one with the "
        "largest score, at the least cost. step: chosen at each step (CASG, arXiv 2602.20880). all: at each "
        "place the strongest push of all concepts. The last two ask for every concept at every step.",
        choices=("probed", "step", "all"),
    ),
)


JUDGED = 0.5
"""What a judge's score of 1 counts for as P. A judge gives 0.5 to 1, more than is measured (medians of 0.1 and 0.2 for
harmful captions of the testbed), and ``lambda_max`` has the published sizes for both."""


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
            largest P, at the least cost; ``step`` chooses again in each evaluation (CASG, arXiv 2602.20880); ``all``
            takes, element by element, the strongest push of all concepts.
        end: fraction of the schedule at which it ends. The paper acts to the last step, 1; by then the picture is
            decided; an earlier testbed showed as little harm with less change and cost at 0.6.
        gate: how P is measured and when a sample is left alone.

    Raises:
        InputError: if a value is out of its range.
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
        check_settings(self, SETTINGS)

    @property
    def window(self) -> Window:
        """When it acts."""
        return Window(0.0, self.end)

    def strength(self, progress: float) -> float:
        """``lambda`` after measuring, at this fraction of the schedule."""
        if not self.window.contains(progress):
            return 0.0
        return self.lambda_max if progress < self.switch else self.lambda_end

    def ahead(self, progress: float) -> bool:
        """Whether there is any guidance at this fraction of the schedule or later."""
        early = self.lambda_max > 0 and progress < self.switch
        late = self.lambda_end > 0 and self.switch <= self.end
        return self.window.contains(progress) and (early or late)


SP_GUARD_PRESETS: dict[str, SPGuardConfig] = {
    "light": SPGuardConfig(lambda_max=2.0, gate=GateConfig(threshold=0.4)),
    "balanced": SPGuardConfig(),
    "strict": SPGuardConfig(lambda_max=6.0, gate=GateConfig(threshold=0.2)),
}
"""From least to most removed: the smallest, the published and the largest strength of the published sweep. Thresholds
are ours, for where P is measured. ``strict`` ends where the others do."""


def required_concepts(info: StepInfo, config: SPGuardConfig, state: State[Probe] | None = None) -> torch.Tensor:
    """Concepts the coming evaluation has to predict, ``[B, K]``.

    All or none while P is measured (neutral texts together with them), then the chosen one of each sample, or none
    where the gate is closed.
    """
    probe = state.recall(info.sigma) if state else None
    if not config.ahead(info.progress):
        return info.none()
    wanted = gate.required_concepts(info, config.gate, state)
    if probe is None or gate.probing(config.gate, probe, info.progress):
        return wanted
    if config.strength(info.progress) == 0:
        return info.none()
    if config.concept == "probed":
        chosen = choose(gate.scores(config.gate, probe)).cpu()
        wanted = wanted & (chosen[:, None] == torch.arange(info.count))
    return wanted


def sp_guard(step: Step, config: SPGuardConfig, state: State[Probe] | None = None) -> GuidanceOutput:
    """Guide away from the concept, as strongly as the prompt agrees with it.

    Args:
        step: predictions, ``[B, C, *spatial]``.
        config: settings.
        state: what was measured of P. Call this at every evaluation, also where ``needs`` asks for nothing.
    """
    state = state or State()
    level = step.info.sigma
    probe = state.recall(level)
    if not step.concepts or not config.ahead(step.progress):
        return unguided(step, state.store(level, probe))
    if probe is None or gate.probing(config.gate, probe, step.progress):
        probe = gate.observe(step, config.gate, probe)
        return unguided(step, state.store(level, probe), gate.scores(config.gate, probe))
    state = state.store(level, probe)
    scores, strength = gate.scores(config.gate, probe).to(step.prompt.device), config.strength(step.progress)
    acts = gate.opens(config.gate, probe).to(scores.device)
    if strength == 0 or not bool(acts.any()):
        return unguided(step, state, scores)
    if config.concept == "all":
        chosen, push = None, _strongest(step, config)
    else:
        chosen = choose(scores if config.concept == "probed" else agreement(step))
        chosen = torch.where(acts, chosen, -1)
        push = _masked(step, direction_to_chosen(step, chosen), config)
    agrees = scores.amax(dim=1) * (JUDGED if probe.given else 1.0)
    mu = per_sample(strength * agrees, push)
    change = torch.where(per_sample(acts, push), -step.scale * mu * push, 0)
    return steered(step, change, state, scores, chosen)


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
    return torch.where(top_mask(concept, config.quantile, config.axis), 1 + psi, 0)


def _masked(step: Step, concept: torch.Tensor, config: SPGuardConfig) -> torch.Tensor:
    return mask(step.direction("prompt"), concept, config) * concept


def _strongest(step: Step, config: SPGuardConfig) -> torch.Tensor:
    strongest = _masked(step, step.direction(0), config)
    for k in range(1, len(step.concepts)):
        push = _masked(step, step.direction(k), config)
        strongest = torch.where(push.abs() > strongest.abs(), push, strongest)
    return strongest


def _measures(info: StepInfo, config: SPGuardConfig, state: State[Probe]) -> bool:
    return gate.probing(config.gate, state.recall(info.sigma), info.progress)


def check_late_strength(config: SPGuardConfig, own: Mapping[str, Any]) -> None:
    """Refuse a late strength that would never be used.

    Args:
        config: settings.
        own: what the user typed in place of the preset's values.

    Raises:
        InputError: naming the fields that do not fit together.
    """
    late = own.get("lambda_end", 0.0)
    if late > 0 and not config.switch < min(config.end, 1.0) and not {"switch", "end"} <= set(own):
        left = [name for name in ("end", "switch") if name not in own]
        raise InputError(
            "lambda_end",
            f"it is {late:g}, but end is {config.end:g} and switch is {config.switch:g}, so it would never be used; "
            f"the preset says: {', '.join(left)}",
            "-1, 0, or a switch below end",
            "change one of these fields",
        )


METHOD = Method(
    "sp_guard",
    "SP-Guard",
    SPGuardConfig,
    required_concepts,
    sp_guard,
    is_neutral=lambda config: not config.ahead(0.0),
    measures=_measures,
    threshold=lambda config: config.gate.threshold,
    known_before=gate.known_before,
    neutral_texts=lambda config: config.gate.texts,
    settings=SETTINGS,
    presets=SP_GUARD_PRESETS,
    variants={
        "sp_guard": Variant(SPGuardConfig(), judged=True),
        "sp_guard-light": Variant(SP_GUARD_PRESETS["light"], judged=True),
        "sp_guard-strict": Variant(SP_GUARD_PRESETS["strict"], judged=True),
        "sp_guard-measured": Variant(SPGuardConfig()),
        "sp_guard-measured-light": Variant(SP_GUARD_PRESETS["light"]),
        "sp_guard-measured-strict": Variant(SP_GUARD_PRESETS["strict"]),
        "sp_guard-lookalikes": Variant(SPGuardConfig(), lookalikes=True),
        "sp_guard-long": Variant(SPGuardConfig(end=1.0), lookalikes=True),
        "sp_guard-max": Variant(
            SPGuardConfig(lambda_max=6.0, switch=1.0, end=1.0, gate=GateConfig(threshold=0.2)),
            lookalikes=True,
        ),
        "sp_guard-casg": Variant(SPGuardConfig(concept="step"), lookalikes=True),
        "sp_guard-raw": Variant(SPGuardConfig(switch=0.6, end=1.0, psi="absolute", gate=PRINTED)),
        "safecfg+sp_guard": Variant(SPGuardConfig(), anchor="", base="safecfg", judged=True),
        "safree+sp_guard": Variant(SPGuardConfig(), base="safree", judged=True),
        "safree+safecfg+sp_guard": Variant(SPGuardConfig(), anchor="", base="safree+safecfg", judged=True),
    },
    about=(
        "SP-Guard (arXiv 2511.11014): where the prompt agrees with an unsafe concept, guidance pushes away from it, as "
        "strongly as they agree, only where the picture is unsafe. Your text encoder compares the prompt with the "
        "concepts, or the first steps measure it, as in the paper. A harmless prompt gives the very same picture as "
        "without this node, to the last bit. Training-free. "
    ),
    aliases=("sp-guard", "spguard", "concept guidance", "negative guidance", "safe latent diffusion", "live mask"),
    patch_node=("SafeGuidance_SPGuardMask", "SP-Guard Mask"),
    about_presets=(
        "How much is removed. light: weaker; harm passes more often, more of the picture stays. balanced: the "
        "published strength. strict: the largest strength of the published sweep; pictures change more. Where the "
        "harm is measured (judge_by), strict also has a lower threshold and light a higher one. A number typed below "
        "overrides the preset's."
    ),
    check=check_late_strength,
)
"""``sp_guard`` is the node's defaults, which a judge made of the concepts' texts opens; ``measured`` ones measure as in
the paper, ``lookalikes`` against the bench's own harmless texts. ``raw`` is the method as printed, without a calibrated
proxy; ``long`` acts to the last step, as in the paper; ``max`` has the largest strength of the published sweep, to the
last step, behind a gate that opens sooner."""
