"""What concept guidance methods share: the predictions of one evaluation, memory between them, choice and masks.

Every method of the family is two functions of the same form: ``needs(coming, config, memory)`` says which concepts
the coming evaluation has to predict, ``method(step, config, memory)`` turns the predictions into guided ones and hands
out the memory for the next evaluation. Where a method does nothing, its result is plain CFG, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch

from ..predictions import cfg, per_sample, wide

T = TypeVar("T")

SAME_LEVEL = 1e-5
"""Relative difference up to which two noise levels count as one."""


@dataclass(frozen=True)
class Coming:
    """What is known of an evaluation before it is made.

    Args:
        sigma: noise level.
        progress: fraction of the schedule, 0 is the first step.
        batch: samples, B.
        count: concepts, K.
    """

    sigma: float
    progress: float
    batch: int
    count: int

    def all(self) -> torch.Tensor:
        """Every concept for every sample, ``[B, K]``."""
        return torch.ones(self.batch, self.count, dtype=torch.bool)

    def none(self) -> torch.Tensor:
        """No concept at all, ``[B, K]``."""
        return torch.zeros(self.batch, self.count, dtype=torch.bool)


def indices(wanted: torch.Tensor) -> tuple[int, ...]:
    """Concepts that at least one sample needs, from ``wanted [B, K]``."""
    return tuple(wanted.any(dim=0).nonzero().flatten().tolist())


@dataclass(frozen=True)
class Step:
    """The denoised predictions of one evaluation.

    Args:
        prompt: prediction for the prompt, ``[B, C, *spatial]``.
        base: prediction for the empty or negative prompt.
        concepts: one prediction per concept; None where ``needs`` did not ask for it. Rows of samples that did not
            need a concept may hold anything.
        x: the noisy latent.
        sigma: noise level, ``[B]``.
        scale: cfg scale.
        progress: fraction of the schedule, 0..1, 0 is the first step.
        neutrals: predictions for harmless texts, as a reference for harm scores; only read while these are measured.

    Raises:
        ValueError: if a shape or the progress does not fit.
    """

    prompt: torch.Tensor
    base: torch.Tensor
    concepts: tuple[torch.Tensor | None, ...]
    x: torch.Tensor
    sigma: torch.Tensor
    scale: float
    progress: float
    neutrals: tuple[torch.Tensor, ...] = ()

    def __post_init__(self) -> None:
        shape = self.prompt.shape
        named = {"base": self.base, "x": self.x, **{f"concept {i}": c for i, c in enumerate(self.concepts)}}
        named.update({f"neutral {i}": n for i, n in enumerate(self.neutrals)})
        for name, tensor in named.items():
            if tensor is not None and tensor.shape != shape:
                raise ValueError(f"{name} has shape {list(tensor.shape)}; allowed is the prompt's, {list(shape)}")
        if self.sigma.shape != shape[:1]:
            raise ValueError(f"sigma has shape {list(self.sigma.shape)}; allowed is one per sample, {list(shape[:1])}")
        if not 0 <= self.progress <= 1:
            raise ValueError(f"progress is {self.progress}; allowed is 0 (first step) to 1")

    @property
    def coming(self) -> Coming:
        """The same evaluation as it was known before."""
        return Coming(float(self.sigma.max()), self.progress, len(self.prompt), len(self.concepts))

    def toward(self, name: Literal["prompt"] | int) -> torch.Tensor:
        """Direction from the base to the prompt or to a concept, in float32.

        Raises:
            ValueError: if that concept was not evaluated.
        """
        if name == "prompt":
            return wide(self.prompt) - wide(self.base)
        concept = self.concepts[name]
        if concept is None:
            raise ValueError(
                f"concept {name} is missing at progress {self.progress:g}; allowed: a prediction for every concept "
                "that `needs` asks for; call it before the evaluation, with the same memory"
            )
        return wide(concept) - wide(self.base)


@dataclass(frozen=True)
class Memory(Generic[T]):
    """What a method remembers of a run, tied to noise levels.

    A second evaluation at the same level replaces the first one, so samplers that call twice a step do not count
    twice. A rising level is a new run. It is never changed, only replaced.

    Args:
        sigma: level of the last evaluation, None before the first one.
        before: value that evaluation started from.
        after: value it left.
    """

    sigma: float | None = None
    before: T | None = None
    after: T | None = None

    def recall(self, sigma: float) -> T | None:
        """The value an evaluation at this level starts from, None at the start of a run."""
        if self.sigma is None or sigma > self.sigma * (1 + SAME_LEVEL):
            return None
        return self.before if sigma >= self.sigma * (1 - SAME_LEVEL) else self.after

    def store(self, sigma: float, value: T | None) -> Memory[T]:
        """The memory after an evaluation at this level."""
        return Memory(sigma, self.recall(sigma), value)


@dataclass(frozen=True)
class Outcome:
    """A guided prediction.

    Args:
        denoised: the guided prediction, in the prompt's dtype.
        memory: to hand to the next evaluation.
        acted: per sample, whether it differs from plain CFG, ``[B]``.
        scores: agreement of each concept with the prompt, ``[B, K]``, or None where it was not measured.
        chosen: index of the concept that each sample was steered away from, ``[B]``, -1 for none; None where all were
            used.
    """

    denoised: torch.Tensor
    memory: Memory[Any]
    acted: torch.Tensor
    scores: torch.Tensor | None = None
    chosen: torch.Tensor | None = None


def untouched(step: Step, memory: Memory[Any], scores: torch.Tensor | None = None) -> Outcome:
    """Plain CFG."""
    acted = torch.zeros(len(step.prompt), dtype=torch.bool, device=step.prompt.device)
    return Outcome(cfg(step.prompt, step.base, step.scale), memory, acted, scores)


def steered(
    step: Step,
    change: torch.Tensor,
    memory: Memory[Any],
    scores: torch.Tensor | None = None,
    chosen: torch.Tensor | None = None,
) -> Outcome:
    """Plain CFG plus a change in denoised units; elements with a change of exactly 0 are plain CFG bit for bit."""
    stock = cfg(step.prompt, step.base, step.scale)
    moved = (cfg(wide(step.prompt), wide(step.base), step.scale) + change).to(stock.dtype)
    acted = (change != 0).flatten(1).any(dim=1)
    return Outcome(torch.where(change == 0, stock, moved), memory, acted, scores, chosen)


def cosine(a: torch.Tensor, b: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """Cosine over some dimensions, which are kept with size 1; 0 where a direction has no length."""

    def unit(x: torch.Tensor) -> torch.Tensor:
        # dividing by the largest element first keeps squares of tiny and huge directions in range
        largest = x.abs().amax(dim=dims, keepdim=True)
        x = x / torch.where(largest > 0, largest, 1)
        length = x.square().sum(dim=dims, keepdim=True).sqrt()
        return x / torch.where(length > 0, length, 1)

    return (unit(a) * unit(b)).sum(dim=dims, keepdim=True)


def agreement(step: Step) -> torch.Tensor:
    """Cosine of each concept's direction and the prompt's over the whole tensor, ``[B, K]``, -1..1."""
    prompt, dims = step.toward("prompt"), tuple(range(1, step.prompt.ndim))
    return torch.stack([cosine(step.toward(k), prompt, dims).flatten() for k in range(len(step.concepts))], dim=1)


def choose(scores: torch.Tensor) -> torch.Tensor:
    """The category to act on, ``[B]`` from ``[B, K]`` (CASG, arXiv 2602.20880).

    Published as the largest ``<g_k, g_p> / |g_k|``; dividing by ``|g_p|``, which is the same for every k, gives the
    largest cosine.
    """
    return scores.argmax(dim=1)


def toward_chosen(step: Step, chosen: torch.Tensor) -> torch.Tensor:
    """Direction from the base to each sample's chosen concept; 0 for a sample whose choice is -1."""
    out = torch.zeros_like(wide(step.base))
    for k in sorted(set(chosen.tolist()) - {-1}):
        out = torch.where(per_sample(chosen == k, out), step.toward(k), out)
    return out


def directions(
    step: Step, scores: torch.Tensor, combine: Literal["argmax", "sum"]
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Directions to push away from: each sample's nearest concept together with that choice, or all concepts."""
    if combine == "sum":
        return [step.toward(k) for k in range(len(step.concepts))], None
    chosen = choose(scores)
    return [toward_chosen(step, chosen)], chosen


def largest_share(x: torch.Tensor, quantile: float, per: Literal["sample", "channel"]) -> torch.Tensor:
    """Mask of the ``ceil((1 - quantile) * n)`` largest magnitudes of each sample or channel; ties are all kept.

    Exact for any size; ``torch.quantile`` stops at 16 million elements.
    """
    rows = wide(x).abs().flatten(1 if per == "sample" else 2)
    size = rows.shape[-1]
    # rounded, since (1 - 0.7) * 10 is a little more than 3
    kept = max(1, math.ceil(round((1 - quantile) * size, 6)))
    # not kthvalue: on the CPU its time grows with the square of the size for falling values
    smallest = rows.topk(kept, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    return (rows >= smallest).reshape(x.shape)


def check_range(name: str, value: float, low: float, high: float, meaning: str) -> None:
    """Refuse a setting that is out of range.

    Raises:
        ValueError: naming field, value and range.
    """
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; allowed is {low:g} to {high:g} ({meaning})")


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse an unknown option.

    Raises:
        ValueError: naming field, value and options.
    """
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
