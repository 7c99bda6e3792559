"""A gate that looks before it acts: the first part of a run measures how harmful the prompt's direction is.

SP-Guard's prompt-adaptive proxy (arXiv 2511.11014, eq. 6): ``P_k`` is the mean, over the first part of the schedule,
of the cosine between ``e_prompt - e_base`` and ``e_k - e_base``; one cosine over the whole tensor. Samples whose
largest ``P_k`` stays below the threshold run on plain CFG for good and ask for no further concept.

Two directions of "some text minus no text" always agree a little, so a raw ``P`` is above 0 for harmless prompts too.
That share is taken off as a fixed offset of the model, or measured with neutral texts at the same ``x``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .concept_step import Coming, Memory, Step, agreement, check_range, cosine


@dataclass(frozen=True)
class GateConfig:
    """Settings of the gate.

    Args:
        probe: fraction of the run that only measures; published are 10 of 50 steps. A run that starts in the middle of
            the schedule (image to image) measures in the same fraction of what is left of it.
        every: measure at every n-th evaluation of that part; 2 halves the extra cost.
        threshold: score below which a sample is left alone for good; at 0 only a score of 0 is.
        offset: score of harmless prompts on this model, taken off. Leave it 0 if neutral texts are evaluated.

    Raises:
        ValueError: if a value is out of its range.
    """

    probe: float = 10 / 50
    every: int = 1
    threshold: float = 0.05
    offset: float = 0.0

    def __post_init__(self) -> None:
        check_range("probe", self.probe, 0.001, 0.999, "fraction of the run")
        check_range("every", self.every, 1, 100, "1 measures at every evaluation")
        check_range("threshold", self.threshold, 0, 1, "0 leaves the gate open")
        check_range("offset", self.offset, 0, 1, "0 takes nothing off")


@dataclass(frozen=True)
class Probe:
    """What was measured so far.

    Args:
        start: progress at which the run began.
        total: sum of cosines per sample and concept, ``[B, K]``.
        reference: sum of the mean cosine with neutral texts, ``[B]``.
        measured: evaluations in these sums.
        visits: evaluations seen while measuring.
    """

    start: float
    total: torch.Tensor
    reference: torch.Tensor
    measured: int = 0
    visits: int = 0


def probing(config: GateConfig, probe: Probe | None, progress: float) -> bool:
    """Whether an evaluation at this progress belongs to the part that only measures."""
    if probe is None:
        return True
    rest = 1 - probe.start
    # rounded as the progress is, so that the end of the part does not slip by one step
    return rest > 0 and round((progress - probe.start) / rest, 4) < config.probe


def measures(config: GateConfig, probe: Probe | None) -> bool:
    """Whether the next evaluation of the measuring part is one that measures."""
    return probe is None or probe.visits % config.every == 0


def observe(step: Step, config: GateConfig, probe: Probe | None) -> Probe:
    """What is known after an evaluation of the measuring part.

    Raises:
        ValueError: if it is one that measures and a concept is missing.
    """
    if probe is None:
        zeros = torch.zeros(len(step.prompt), len(step.concepts), device=step.prompt.device)
        probe = Probe(step.progress, zeros, zeros.new_zeros(len(zeros)))
    if not measures(config, probe):
        return replace(probe, visits=probe.visits + 1)
    reference = probe.reference
    if step.neutrals:
        prompt, dims = step.toward("prompt"), tuple(range(1, step.prompt.ndim))
        each = [cosine(n.to(prompt) - step.base.to(prompt), prompt, dims).flatten() for n in step.neutrals]
        reference = reference + torch.stack(each).mean(dim=0)
    total = probe.total + agreement(step)
    return Probe(probe.start, total, reference, probe.measured + 1, probe.visits + 1)


def scores(config: GateConfig, probe: Probe) -> torch.Tensor:
    """Harm score per sample and concept, ``[B, K]``, 0..1: ``max(0, P_k - reference)``."""
    count = max(probe.measured, 1)
    return (probe.total / count - probe.reference[:, None] / count - config.offset).clamp(min=0)


def is_open(config: GateConfig, score: torch.Tensor) -> torch.Tensor:
    """Which samples are acted on, ``[B]`` from ``scores [B, K]``."""
    largest = score.amax(dim=1)
    return (largest >= config.threshold) & (largest > 0)


def needs(coming: Coming, config: GateConfig, memory: Memory[Probe] | None = None) -> torch.Tensor:
    """Concepts a method behind this gate may need in the coming evaluation, ``[B, K]``.

    While measuring these are all or none; neutral texts are needed together with them. Afterwards those of the samples
    whose gate is open.
    """
    probe = memory.recall(coming.sigma) if memory else None
    if coming.count == 0:
        return coming.none()
    if probe is None or probing(config, probe, coming.progress):
        return coming.all() if measures(config, probe) else coming.none()
    return is_open(config, scores(config, probe)).cpu()[:, None] & coming.all()
