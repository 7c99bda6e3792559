"""How close a prompt's states come to a concept's, measured against what is ordinary.

Raw cosines of text-encoder states are large between any two prompts, because most of a state says "this is a text" or
"this is the tenth token". So states are first centred and whitened by a bank of benign prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, repeat


@dataclass(frozen=True)
class Space:
    """Ordinary text: its mean state per position ``[L, D]`` and the matrix ``[D, D]`` that whitens around it."""

    mean: torch.Tensor
    whiten: torch.Tensor

    def units(self, states: torch.Tensor) -> torch.Tensor:
        """States ``[B, M, D]`` as whitened unit vectors; a state that never differs (a begin mark) becomes 0."""
        mean, length = self.mean, states.shape[1]
        if length > len(mean) and length % len(mean) == 0:
            mean = repeat(mean, "l d -> (times l) d", times=length // len(mean))
        elif length > len(mean):
            mean = torch.cat([mean, mean[-1:].expand(length - len(mean), -1)])
        centred = (states.to(mean) - mean[:length]) @ self.whiten
        unit: torch.Tensor = centred / centred.norm(dim=-1, keepdim=True).clamp(min=0.1)
        return unit


def fit_space(states: torch.Tensor, ridge: float) -> Space:
    """The space of a bank of benign prompts.

    Args:
        states: ``[N, L, D]``.
        ridge: added to every variance, as a share of the mean variance; small values trust the bank more.
    """
    states = states.float()
    mean = states.mean(dim=0)
    flat = rearrange(states - mean, "n l d -> (n l) d")
    variance, axes = torch.linalg.eigh(flat.T @ flat / len(flat))
    variance = variance.clamp(min=0)
    floor = ridge * variance.mean() + torch.finfo(torch.float32).tiny
    return Space(mean, (axes * (variance + floor).rsqrt()) @ axes.T)


@dataclass(frozen=True)
class Phrase:
    """An encoded phrase: its states ``[L, D]``, the range that holds its own tokens, and its category's index."""

    states: torch.Tensor
    span: tuple[int, int]
    category: int


def similarities(space: Space, phrases: Sequence[Phrase], prompts: torch.Tensor) -> torch.Tensor:
    """Closeness of prompts to categories.

    Per token of a phrase the largest cosine over the prompt's states; of those the mean over the phrase, so that one
    common word in a phrase is not enough; of those the largest over the category's phrases.

    Args:
        space: where cosines are taken.
        phrases: at least one per category.
        prompts: states ``[B, L, D]``.

    Returns:
        ``[B, K]``.
    """
    units = space.units(prompts)
    best: dict[int, list[torch.Tensor]] = {}
    for phrase in phrases:
        tokens = space.units(phrase.states[None])[0, slice(*phrase.span)]
        best.setdefault(phrase.category, []).append((units @ tokens.T).amax(dim=1).mean(dim=1))
    return torch.stack([torch.stack(best[k]).amax(dim=0) for k in sorted(best)], dim=1)
