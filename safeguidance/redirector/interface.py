"""What a redirector is: the part of SafeCFG that reads a prompt and proposes the unconditional conditioning.

Two kinds exist: a trained network (``hgr``) and one made of concept texts without any training
(``from_concepts``). Guiders and reports know only the interface.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from ..conditioning import Conditioning, match_length, same_rows
from ..errors import InputError
from ..guidance.safecfg import SafeCFGConfig, gate_open, kappa, redirect


@dataclass(frozen=True)
class Proposal:
    """What a redirector proposes for a prompt.

    Args:
        gate: harmfulness ``[B]``, 0..1.
        scores: the same per category, ``[B, K]``.
        delta: per noise-level bucket, the change of the base's token states, ``[B, L, D]`` each; already
            multiplied by a gate of its own where chunks differ.
        pooled_delta: per bucket, the change of the pooled vector ``[B, P]``, or None.
    """

    gate: torch.Tensor
    scores: torch.Tensor
    delta: tuple[torch.Tensor, ...]
    pooled_delta: tuple[torch.Tensor, ...] | None = None


@runtime_checkable
class Redirector(Protocol):
    """The interface of all redirectors.

    Attributes:
        title: what it is, in words for people.
        categories: names of what it looks for.
        width: channels of the token states it reads.
        base_model: model family it belongs to; "" fits any with the same width.
        threshold: calibrated gate threshold.
        kappa: the harm weight it was trained at; None if there is nothing to rescale.
        edges: fractions of the schedule where a new noise-level bucket starts, first one 0.
    """

    title: str
    categories: tuple[str, ...]
    width: int
    base_model: str
    threshold: float
    kappa: float | None
    edges: tuple[float, ...]

    def propose(self, prompt: Conditioning, base: Conditioning) -> Proposal:
        """Read a prompt; ``base`` has the same number of tokens."""
        ...


@dataclass(frozen=True)
class Redirected:
    """The outcome for a prompt.

    Args:
        conditionings: one per noise-level bucket, or the untouched base.
        gate: harmfulness ``[B]``, 0..1.
        scores: the same per category, ``[B, K]``.
        open: rows that are redirected, ``[B]`` bool.
        kappa: weight of the harm difference in the redirected conditionings (``guidance.safecfg.kappa``).
    """

    conditionings: tuple[Conditioning, ...]
    gate: torch.Tensor
    scores: torch.Tensor
    open: torch.Tensor
    kappa: float = 1.0

    @property
    def acts(self) -> bool:
        """Whether any row is redirected."""
        return bool(self.open.any())


_MOST_RESCALE = 2.0
"""The redirect is never made larger than this by a low cfg; close to cfg 1 the exact factor has no bound."""


def run_redirector(
    redirector: Redirector, prompt: Conditioning, base: Conditioning, config: SafeCFGConfig, scale: float
) -> Redirected:
    """Turn a prompt into the unconditional conditioning, one per noise-level bucket.

    Args:
        redirector: reads the prompt and proposes the change.
        prompt: the positive conditioning.
        base: the negative prompt's conditioning.
        config: strength and threshold (the window is the caller's business).
        scale: the cfg scale in use.

    Returns:
        The outcome; where no row's gate opens, or strength is 0, the base itself. A row whose prompt is the base,
        such as an empty prompt over an empty negative one, is never redirected.

    Raises:
        InputError: if the widths differ from the redirector's, or ``scale`` is not above 1.
    """
    for name, tokens in (("positive", prompt.tokens), ("negative", base.tokens)):
        if tokens.shape[-1] != redirector.width:
            raise InputError(
                name,
                f"it has {tokens.shape[-1]} channels, the redirector {redirector.title!r} was made for "
                f"{redirector.width}",
                "conditioning of the model that the redirector was made for",
                "load a redirector for this model, or build one with Redirector from Concepts",
            )
    rescale = 1.0
    if redirector.kappa is not None and config.rescale:
        # only ever up: above the training scale what is left over points away from harm, below it towards harm
        rescale = min(max(1.0, kappa(scale) / redirector.kappa), _MOST_RESCALE)
    factor = config.strength * rescale
    length = max(prompt.tokens.shape[1], base.tokens.shape[1])
    batch = max(prompt.tokens.shape[0], base.tokens.shape[0])
    aligned_prompt = match_length(prompt, length, batch)
    aligned_base = match_length(base, length, batch)
    proposal = redirector.propose(aligned_prompt, aligned_base)
    threshold = redirector.threshold if config.threshold is None else config.threshold
    if not bool(torch.isfinite(proposal.gate).all()):
        raise InputError(
            "redirector",
            f"{redirector.title!r} gives a harmfulness that is not a finite number for this prompt; its weights or "
            "the conditioning hold such values",
            "finite scores",
            "load another redirector or encode the prompt again",
        )
    same = same_rows(aligned_prompt, aligned_base).to(proposal.gate.device)
    harm, scores = torch.where(same, 0, proposal.gate), torch.where(same[:, None], 0, proposal.scores)
    gate = gate_open(harm, threshold)
    opened = gate > 0
    if config.strength == 0 or not bool(opened.any()):
        return Redirected((base,), harm, scores, torch.zeros_like(opened))
    out = []
    for bucket, delta in enumerate(proposal.delta):
        tokens = redirect(aligned_base.tokens, delta, gate, factor)
        pooled = aligned_base.pooled
        if pooled is not None and proposal.pooled_delta is not None:
            pooled = redirect(pooled, proposal.pooled_delta[bucket], gate, factor)
        out.append(Conditioning(tokens, pooled))
    return Redirected(tuple(out), harm, scores, opened, rescale * (redirector.kappa or 1.0))


def bucket_at(edges: tuple[float, ...], progress: float) -> int:
    """Index of the noise-level bucket at a fraction of the schedule (0 is the first step)."""
    return max(index for index, edge in enumerate(edges) if progress >= edge or index == 0)


def apply_delta(base: Conditioning, delta: Conditioning, gate: torch.Tensor) -> Conditioning:
    """``base + gate * delta`` for token states and, where the HGR has a head for it, the pooled vector."""
    pooled = base.pooled
    if pooled is not None and delta.pooled is not None:
        pooled = redirect(pooled, delta.pooled, gate, 1.0)
    return Conditioning(redirect(base.tokens, delta.tokens, gate, 1.0), pooled)
