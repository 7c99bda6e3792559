"""Which tokens of a prompt carry an unsafe concept (SAFREE, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import check_choice, check_range
from .subspace import Subspace

CHOICES = ("ratio", "nearest")
_RAISES = 0.25


@dataclass(frozen=True)
class TriggerConfig:
    """How the trigger test decides.

    Args:
        alpha: a token is flagged if masking it moves the prompt at least this share further away from the concept than
            masking the others does; 0.01 in the paper. 0 to 1000.
        choose: how a token picks its category: "ratio", the one whose test it passes by most (ours), or "nearest", the
            one that the prompt without the token is nearest to (CASG, arXiv 2602.20880). With one category the same.

    Raises:
        InputError: if a value is out of its range.
    """

    alpha: float = 0.01
    choose: str = "ratio"

    def __post_init__(self) -> None:
        # bounded, since with an infinite value no token would ever be flagged
        check_range("alpha", self.alpha, 0, 1000, "0.01 is the paper's")
        check_choice("choose", self.choose, CHOICES)


@dataclass(frozen=True)
class Triggers:
    """The outcome of the test for the n tokens of one chunk.

    Args:
        distance: distance of the prompt without token i from category k, ``[K, n]``.
        ratio: that distance over the mean distance without one of the other tokens, ``[K, n]``.
        category: the category each token was tested with, ``[n]``.
        flagged: which tokens are triggers, ``[n]``.
    """

    distance: torch.Tensor
    ratio: torch.Tensor
    category: torch.Tensor
    flagged: torch.Tensor

    @property
    def excess(self) -> torch.Tensor:
        """The tested ratio of each token minus 1, ``[n]``."""
        return self.ratio.gather(0, self.category[None])[0] - 1

    @property
    def raised(self) -> torch.Tensor:
        """Flagged tokens that stand out at least a quarter as far as the furthest, ``[n]``; the others that are
        flagged are taken along with these.
        """
        if not bool(self.flagged.any()):
            return self.flagged
        most = self.excess[self.flagged].max()
        return self.flagged & (self.excess >= _RAISES * most)


def find_triggers(
    concepts: Sequence[Subspace], masked: torch.Tensor, whole: torch.Tensor, config: TriggerConfig
) -> Triggers:
    """Test every token of a chunk against every category.

    ``d_i = |(I - P_C) p_without_i|``; token i is a trigger if ``d_i >= (1 + alpha) * mean of the other d_j``: without
    it the prompt is clearly further from the concept.

    Args:
        concepts: one subspace per category.
        masked: vectors of the prompt with token i masked, ``[n, D]``; n may be 0.
        whole: vector of the prompt itself, ``[D]``. Where there is one token there are no others to compare with; then
            the prompt itself takes their place (ours; the mean of nothing is undefined).
        config: settings.
    """
    count = len(masked)
    if not concepts or not count:
        empty = masked.new_zeros(len(concepts), count, dtype=torch.float64)
        none = torch.zeros(count, dtype=torch.long, device=masked.device)
        return Triggers(empty, empty, none, none.bool())
    distance = torch.stack([concept.distance(masked) for concept in concepts])
    if count > 1:
        others = (distance.sum(dim=1, keepdim=True) - distance) / (count - 1)
    else:
        others = torch.stack([concept.distance(whole) for concept in concepts])[:, None]
    # inside every concept both are 0: nothing to tell apart, and 0 / 0 is no trigger
    ratio = distance / others.clamp(min=torch.finfo(torch.float64).tiny)
    ratio = torch.where((distance <= 1e-9) & (others <= 1e-9), torch.ones_like(ratio), ratio)
    category = ratio.argmax(dim=0) if config.choose == "ratio" else distance.argmin(dim=0)
    tested = ratio.gather(0, category[None])[0]
    return Triggers(distance, ratio, category, tested >= 1 + config.alpha)
