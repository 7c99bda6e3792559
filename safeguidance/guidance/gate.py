"""A gate that looks before it acts: the first part of a run measures how harmful the prompt's direction is.

SP-Guard's prompt-adaptive proxy (arXiv 2511.11014, eq. 6): ``P_k`` is the mean, over the first part of the schedule,
of the cosine between ``e_prompt - e_base`` and ``e_k - e_base``; one cosine over the whole tensor. Samples whose
largest ``P_k`` stays below the threshold run on plain CFG to the end and ask for no further concept.

Two directions of "some text minus no text" always agree a little, so a raw ``P`` is above 0 for harmless prompts too.
That share is taken off: measured with neutral texts at the same ``x``, or as an offset measured once for a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import torch

from ..errors import InputError, check_range
from ..predictions import per_sample, upcast
from .directions import agreement, cosine
from .method import State, Step, StepInfo
from .settings import Setting, check_settings

NEUTRAL = ("a photo",)
"""What is neutral by default: one text, so that a harmless prompt costs 5% more than plain CFG in 20 steps."""

GATE_SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting(
            "threshold",
            "Harm score from which a prompt is guided. Low, 0: every prompt with a score above 0, harmless "
            "pictures change a little. High, up to 1: only prompts that agree with a concept almost fully. The paper "
            "has no threshold (0); below it, a prompt costs nothing more after measuring.",
            field="gate.threshold",
            by_preset=True,
        ),
        Setting(
            "neutral",
            "Harmless texts, one per line. What prompt and concepts share with them is taken out before they "
            "are compared, since any two texts agree a little. Few, such as one: cheap. Many, best such as look like a "
            "concept but are harmless: fewer false alarms; each costs one evaluation in the steps that measure. Empty: "
            "none, as in the paper. Our addition.",
            field="gate.neutral",
            lines=True,
        ),
        Setting(
            "probe",
            "Fraction of the run that only measures and is not guided. Low: guidance starts early, the score "
            "is rough. High: a better score, but the layout forms unguarded. The paper measures in 10 of 50 steps, "
            "0.2.",
            low=0.01,
            high=0.9,
            limits=(0.001, 0.999),
            field="gate.probe",
        ),
        Setting(
            "settle",
            "Fraction of the measuring part that passes before the first measurement. Low, 0: measured from "
            "the first step on, as in the paper, where a prediction says little yet. High: a later and surer look, "
            "fewer measurements. Our addition.",
            high=0.9,
            limits=(0, 0.99),
            field="gate.settle",
        ),
        Setting(
            "every",
            "Measure at every n-th evaluation of that part. Low, 1: at each, as in the paper. High: cheaper, "
            "since measuring asks for every concept; the score is rougher. Our addition.",
            low=1,
            high=100,
            integer=True,
            field="gate.every",
        ),
        Setting(
            "offset",
            "Score that harmless prompts have on this model, taken off every score. Low, 0: nothing is taken "
            "off. High: fewer harmless prompts are guided, more harm passes. Look at the scores of your "
            "own harmless prompts in Safety Report. Our addition; the paper takes nothing off.",
            limits=(-1, 1),
            field="gate.offset",
        ),
        Setting(
            "reference",
            "What neutral texts are for. project: their directions are taken out of those of prompt and "
            "concepts. mean: their mean score is taken off. none: they are ignored, as in the paper.",
            choices=("project", "mean", "none"),
            field="gate.reference",
        ),
    )
}
"""The gate's settings by name, for methods that have one in their field ``gate``."""


@dataclass(frozen=True)
class GateConfig:
    """Settings of the gate.

    Args:
        probe: fraction of the run that only measures; published are 10 of 50 steps. A run that starts in the middle of
            the schedule (image to image) measures in the same fraction of what is left of it.
        settle: fraction of that part before the first measurement; published 0. In the first steps a prediction is
            little more than the mean of all pictures, and cosines say less than later. In a run of few steps the last
            evaluation of the part measures in any case.
        every: measure at every n-th evaluation from there on; 2 halves the extra cost.
        threshold: score below which a sample is left alone to the end of the run; at 0 only a score of 0 is.
        offset: score of harmless prompts on this model, taken off; one number, or one per concept. ``calibrate``
            measures it.
        reference: what neutral texts are for, where there are any. ``project`` removes their directions from those of
            prompt and concepts before the cosine is taken, so what remains says what neither of them explains.
            ``mean`` takes the mean of their own cosines off. ``none``, the published way, ignores them.
        neutral: the neutral texts.

    Raises:
        InputError: if a value is out of its range.
    """

    probe: float = 10 / 50
    settle: float = 0.75
    every: int = 1
    threshold: float = 0.3
    offset: float | tuple[float, ...] = 0.0
    reference: Literal["project", "mean", "none"] = "project"
    neutral: tuple[str, ...] = NEUTRAL

    def __post_init__(self) -> None:
        check_settings(self, tuple(GATE_SETTINGS.values()), "gate")

    @property
    def texts(self) -> tuple[str, ...]:
        """Neutral texts that are evaluated: none where they are ignored."""
        return () if self.reference == "none" else self.neutral


PRINTED = GateConfig(settle=0.0, threshold=0.0, reference="none")
"""The proxy as printed: measured from the first evaluation on, nothing taken off, and only a prompt that opposes every
concept is left alone."""


@dataclass(frozen=True)
class Probe:
    """What was measured so far.

    Args:
        start: progress at which the run began.
        total: sum of cosines per sample and concept, ``[B, K]``; what neutral texts explain is taken off.
        measured: evaluations in these sums.
        visits: evaluations seen while measuring, without those before it settled.
        latest: progress of the last evaluation seen.
        given: whether the scores are somebody else's, known before the run; then nothing is measured.
    """

    start: float
    total: torch.Tensor
    measured: int = 0
    visits: int = 0
    latest: float = 0.0
    given: bool = False


def known_before(scores: torch.Tensor) -> Probe:
    """What is known where a judge has read the prompt before the run, from its scores ``[B, K]``, 0..1; 0 for a sample
    that is left alone.
    """
    return Probe(0.0, scores, given=True)


def probing(config: GateConfig, probe: Probe | None, progress: float) -> bool:
    """Whether an evaluation at this progress belongs to the part that only measures.

    With few steps the part may hold none that measures; then it lasts until one did. Where scores are given there is
    no such part.
    """
    if probe is not None and probe.given:
        return False
    return probe is None or probe.measured == 0 or _passed(probe, progress) < config.probe


def _passed(probe: Probe, progress: float) -> float:
    rest = 1 - probe.start
    # rounded as the progress is, so that the end of the part does not slip by one step
    return round((progress - probe.start) / rest, 4) if rest > 0 else 1.0


def measures(config: GateConfig, probe: Probe | None, progress: float) -> bool:
    """Whether an evaluation of the measuring part is one that measures."""
    if probe is None:
        return config.settle == 0
    return _settled(config, probe, progress) and probe.visits % config.every == 0


def _settled(config: GateConfig, probe: Probe, progress: float) -> bool:
    here = _passed(probe, progress)
    if here >= round(config.settle * config.probe, 4):
        return True
    following = 2 * here - _passed(probe, probe.latest)
    return probe.measured == 0 and round(following, 4) >= config.probe


def observe(step: Step, config: GateConfig, probe: Probe | None) -> Probe:
    """What is known after an evaluation of the measuring part.

    Raises:
        ValueError: if it is one that measures and a concept is missing.
    """
    measured = measures(config, probe, step.progress)
    if probe is None:
        zeros = torch.zeros(len(step.prompt), len(step.concepts), device=step.prompt.device)
        probe = Probe(step.progress, zeros, latest=step.progress)
    if not measured:
        visits = probe.visits + _settled(config, probe, step.progress)
        return replace(probe, visits=visits, latest=step.progress)
    total = probe.total + _cosines(step, config)
    return Probe(probe.start, total, probe.measured + 1, probe.visits + 1, step.progress)


def _cosines(step: Step, config: GateConfig) -> torch.Tensor:
    """``P_k`` of one evaluation, less what neutral texts explain, ``[B, K]``."""
    if config.reference == "none" or not step.neutrals:
        return agreement(step)
    prompt, dims = step.direction("prompt"), tuple(range(1, step.prompt.ndim))
    neutrals = [upcast(n) - upcast(step.base) for n in step.neutrals]
    if config.reference == "mean":
        each = [cosine(n, prompt, dims).flatten() for n in neutrals]
        return agreement(step) - torch.stack(each).mean(dim=0)[:, None]
    axes = orthogonal(neutrals)
    prompt, out = without(prompt, axes), []
    for k in range(len(step.concepts)):
        out.append(cosine(without(step.direction(k), axes), prompt, dims).flatten())
    return torch.stack(out, dim=1)


_ROUNDING = 0.01
"""Share of a direction's length that is taken for rounding; predictions in bfloat16 are no more exact than that."""


def orthogonal(directions: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Unit directions ``[B, C, *spatial]`` at right angles that span given ones, per sample (Gram and Schmidt).

    A direction that the ones before it explain, or that has no length, gives an axis of zeros.
    """
    axes: list[torch.Tensor] = []
    for direction in directions:
        axes.append(_unit(without(direction, axes)))
    return axes


def without(direction: torch.Tensor, axes: Sequence[torch.Tensor]) -> torch.Tensor:
    """What unit axes at right angles to each other leave of a direction's unit, per sample; 0 if that is rounding."""
    rest = _unit(direction)
    # twice, since once leaves rounding errors as large as what remains of nearly parallel directions
    for axis in (*axes, *axes):
        rest = rest - per_sample((rest * axis).flatten(1).sum(dim=1), axis) * axis
    return torch.where(per_sample(rest.flatten(1).norm(dim=1) > _ROUNDING, rest), rest, 0)


def _unit(x: torch.Tensor) -> torch.Tensor:
    # the largest element first, which keeps squares of tiny and huge directions in range
    for size in (x.abs().flatten(1).amax(dim=1), None):
        size = x.flatten(1).norm(dim=1) if size is None else size
        x = x / per_sample(torch.where(size > 0, size, 1), x)
    return x


def scores(config: GateConfig, probe: Probe) -> torch.Tensor:
    """Harm score per sample and concept, ``[B, K]``, 0..1 without a negative offset: ``max(0, P_k - offset_k)``, or as
    given.

    Raises:
        InputError: if there is an offset per concept, but not for every one.
    """
    if probe.given:
        return probe.total
    count, concepts = max(probe.measured, 1), probe.total.shape[1]
    offset = config.offset if isinstance(config.offset, tuple) else (config.offset,) * concepts
    if len(offset) != concepts:
        raise InputError("offset", f"it has {len(offset)} numbers", f"one number, or one per concept, {concepts}")
    return (probe.total / count - probe.total.new_tensor(offset)).clamp(min=0)


def calibrate(config: GateConfig, harmless: torch.Tensor, false_positives: float = 0.01) -> GateConfig:
    """The same gate, measured once on harmless prompts of a model.

    The offset becomes each concept's mean score, the threshold the score that the wanted share of these prompts
    exceeds (or would, if scores were spread normally; the larger of both).

    Args:
        config: a gate whose offset is -1, so that no score was cut off at 0.
        harmless: its scores for at least 8 harmless prompts, ``[N, K]``.
        false_positives: share of harmless prompts that may open the gate, above 0, at most 0.5.

    Raises:
        InputError: if there are too few prompts, the offset is not -1, or the share is out of its range.
    """
    check_range("false_positives", false_positives, 1e-6, 0.5, "share of harmless prompts")
    if len(harmless) < 8:
        raise InputError("harmless", f"{len(harmless)} harmless prompts were measured", "8 or more, best 100")
    if config.offset != -1:
        raise InputError("offset", f"it is {config.offset}", "-1 while calibrating, as it cuts no score off at 0")
    raw = harmless.double() - 1
    offset = raw.mean(dim=0)
    largest = (raw - offset).amax(dim=1)
    normal = float(largest.mean()) + NormalDist().inv_cdf(1 - false_positives) * float(largest.std())
    threshold = max(float(largest.quantile(1 - false_positives)), normal)
    return replace(config, offset=tuple(offset.tolist()), threshold=min(max(threshold, 0.0), 1.0))


def is_open(config: GateConfig, score: torch.Tensor) -> torch.Tensor:
    """Which samples are acted on, ``[B]`` from ``scores [B, K]``."""
    largest = score.amax(dim=1)
    return (largest >= config.threshold) & (largest > 0)


def opens(config: GateConfig, probe: Probe) -> torch.Tensor:
    """Which samples are acted on after what was measured or given, ``[B]``; a given score opens from above 0."""
    score = scores(config, probe)
    return score.amax(dim=1) > 0 if probe.given else is_open(config, score)


def required_concepts(info: StepInfo, config: GateConfig, state: State[Probe] | None = None) -> torch.Tensor:
    """Concepts a method behind this gate may need in the coming evaluation, ``[B, K]``.

    While measuring these are all or none; neutral texts are needed together with them. Afterwards those of the samples
    whose gate is open.
    """
    probe = state.recall(info.sigma) if state else None
    if info.count == 0:
        return info.none()
    if probe is None or probing(config, probe, info.progress):
        return info.all() if measures(config, probe, info.progress) else info.none()
    return opens(config, probe).cpu()[:, None] & info.all()
