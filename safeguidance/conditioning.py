"""Conditioning: what a text encoder hands to a model, and how batches of it are put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import repeat

from .errors import InputError


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
        InputError: if the number of rows does not divide ``batch``.
    """
    tokens, pooled = base.tokens, base.pooled
    if batch % tokens.shape[0]:
        raise InputError(
            "conditioning",
            f"the positive and the negative one have {batch} and {tokens.shape[0]} rows",
            "the same number, or a number that divides the other",
            "encode them one by one or in equal batches",
        )
    rows = batch // tokens.shape[0]
    tokens = repeat(tokens, "b l d -> (rows b) l d", rows=rows)
    if length % tokens.shape[1] == 0:
        tokens = repeat(tokens, "b l d -> b (times l) d", times=length // tokens.shape[1])
    elif length > tokens.shape[1]:
        tokens = torch.cat([tokens, tokens[:, -1:].expand(-1, length - tokens.shape[1], -1)], dim=1)
    return Conditioning(tokens, None if pooled is None else repeat(pooled, "b p -> (rows b) p", rows=rows))


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


def same_rows(one: Conditioning, other: Conditioning) -> torch.Tensor:
    """Rows of two conditionings of one shape whose token states are the same, bit for bit, ``[B]``."""
    return (one.tokens == other.tokens.to(one.tokens)).flatten(1).all(dim=1)


def expand_like(base: Conditioning, prompt: Conditioning) -> Conditioning:
    """The empty prompt's conditioning, as many rows and tokens as ``prompt``."""
    return match_length(base, prompt.tokens.shape[1], prompt.tokens.shape[0])
