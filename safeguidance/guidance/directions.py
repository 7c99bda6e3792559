"""Directions from the base to prompt and concepts: how they agree, which is chosen, and the prediction they give."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from einops import rearrange

from ..predictions import cfg, per_sample, upcast
from .method import GuidanceOutput, State, Step


def indices(wanted: torch.Tensor) -> tuple[int, ...]:
    """Concepts that at least one sample asks for, from ``wanted [B, K]``."""
    return tuple(wanted.any(dim=0).nonzero().flatten().tolist())


def unguided(step: Step, state: State[Any], scores: torch.Tensor | None = None) -> GuidanceOutput:
    """Plain CFG."""
    acted = torch.zeros(len(step.prompt), dtype=torch.bool, device=step.prompt.device)
    return GuidanceOutput(cfg(step.prompt, step.base, step.scale), state, acted, scores)


def steered(
    step: Step,
    change: torch.Tensor,
    state: State[Any],
    scores: torch.Tensor | None = None,
    chosen: torch.Tensor | None = None,
) -> GuidanceOutput:
    """Plain CFG plus a change in denoised units; elements with a change of exactly 0 are plain CFG bit for bit."""
    stock = cfg(step.prompt, step.base, step.scale)
    moved = (cfg(upcast(step.prompt), upcast(step.base), step.scale) + change).to(stock.dtype)
    acted = (change != 0).flatten(1).any(dim=1)
    return GuidanceOutput(torch.where(change == 0, stock, moved), state, acted, scores, chosen)


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
    prompt, dims = step.direction("prompt"), tuple(range(1, step.prompt.ndim))
    return torch.stack([cosine(step.direction(k), prompt, dims).flatten() for k in range(len(step.concepts))], dim=1)


def choose(scores: torch.Tensor) -> torch.Tensor:
    """The category to act on, ``[B]`` from ``[B, K]`` (CASG, arXiv 2602.20880).

    Published as the largest ``<g_k, g_p> / |g_k|``; dividing by ``|g_p|``, which is the same for every k, gives the
    largest cosine.
    """
    return scores.argmax(dim=1)


def direction_to_chosen(step: Step, chosen: torch.Tensor) -> torch.Tensor:
    """Direction from the base to each sample's chosen concept; 0 for a sample whose choice is -1."""
    out = torch.zeros_like(upcast(step.base))
    for k in sorted(set(chosen.tolist()) - {-1}):
        out = torch.where(per_sample(chosen == k, out), step.direction(k), out)
    return out


def directions(
    step: Step, scores: torch.Tensor, combine: Literal["argmax", "sum"]
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Directions to push away from: each sample's nearest concept together with that choice, or all concepts."""
    if combine == "sum":
        return [step.direction(k) for k in range(len(step.concepts))], None
    chosen = choose(scores)
    return [direction_to_chosen(step, chosen)], chosen


def top_mask(x: torch.Tensor, quantile: float, per: Literal["sample", "channel"]) -> torch.Tensor:
    """Mask of the ``ceil((1 - quantile) * n)`` largest magnitudes of each sample or channel; ties are all kept.

    Exact for any size; ``torch.quantile`` stops at 16 million elements.
    """
    rows = rearrange(upcast(x).abs(), "b c ... -> b (c ...)" if per == "sample" else "b c ... -> b c (...)")
    size = rows.shape[-1]
    # rounded, since (1 - 0.7) * 10 is a little more than 3
    kept = max(1, math.ceil(round((1 - quantile) * size, 6)))
    # not kthvalue: on the CPU its time grows with the square of the size for falling values
    smallest = rows.topk(kept, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    return (rows >= smallest).reshape(x.shape)
