"""Conditioning: what a text encoder hands to a model, and how batches of it are put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Conditioning:
    """Token states ``[B, L, D]`` and, where the model takes one, a pooled vector ``[B, P]``."""

    tokens: torch.Tensor
    pooled: torch.Tensor | None = None


def match_length(base: Conditioning, length: int, batch: int) -> Conditioning:
    """Bring a conditioning to ``length`` tokens and ``batch`` rows without changing what it means.

    Repeating all tokens n times leaves attention over them unchanged; where the length does not divide, the last
    state (padding, in every encoder we know) is repeated.

    Raises:
        ValueError: if the number of rows does not divide ``batch``.
    """
    tokens, pooled = base.tokens, base.pooled
    if batch % tokens.shape[0]:
        raise ValueError(
            f"positive and negative conditioning have {batch} and {tokens.shape[0]} rows; allowed: the same number, or "
            "a number that divides the other; encode them one by one or in equal batches"
        )
    rows = batch // tokens.shape[0]
    tokens = tokens.repeat(rows, 1, 1)
    if length % tokens.shape[1] == 0:
        tokens = tokens.repeat(1, length // tokens.shape[1], 1)
    elif length > tokens.shape[1]:
        tokens = torch.cat([tokens, tokens[:, -1:].expand(-1, length - tokens.shape[1], -1)], dim=1)
    return Conditioning(tokens, None if pooled is None else pooled.repeat(rows, 1))


def concatenate(parts: Sequence[Conditioning]) -> Conditioning:
    """Conditionings as one batch."""
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return Conditioning(torch.cat([part.tokens for part in parts]), torch.cat(pooled) if pooled else None)


def first_rows(cond: Conditioning, count: int) -> Conditioning:
    """The first ``count`` rows."""
    return Conditioning(cond.tokens[:count], None if cond.pooled is None else cond.pooled[:count])


def select_rows(cond: Conditioning, places: Sequence[int]) -> Conditioning:
    """Some rows, in the order given."""
    chosen = list(places)
    return Conditioning(cond.tokens[chosen], None if cond.pooled is None else cond.pooled[chosen])


def expand_like(base: Conditioning, prompt: Conditioning) -> Conditioning:
    """The empty prompt's conditioning, as many rows and tokens as ``prompt``."""
    return match_length(base, prompt.tokens.shape[1], prompt.tokens.shape[0])
