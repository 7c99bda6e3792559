"""States of a safe counterpart in the order of its prompt's states, for redirectors in text space.

A prompt and its counterpart seldom have as many tokens: "thing that blows up" becomes "balloon", and everything behind
it stands elsewhere. A target taken place by place would ask a network to move every later word. Cross-attention knows
no order beside the one inside the states, so a counterpart may lie in any order, as long as each state is there.
"""

from __future__ import annotations

from collections import Counter

import torch

from ..conditioning import Conditioning

_SAME = 1e-3
"""Squared distance, in units of the prompt's own spread, below which two states count as one."""


def match_places(prompt: torch.Tensor, safe: torch.Tensor) -> torch.Tensor:
    """For each state of a prompt the place of its counterpart's state, ``[B, L]``.

    Both are walked from first to last (dynamic time warping: the cheapest walk by squared distance that skips nothing).
    Places of the counterpart that no state would take then replace doubles, last ones (padding) first.

    Args:
        prompt: token states ``[B, L, D]``.
        safe: token states of the counterparts, ``[B, M, D]``.
    """
    prompt, safe = prompt.float(), safe.float()
    spread = (prompt - prompt.mean(dim=1, keepdim=True)).square().sum(-1).mean(1).clamp(min=1e-12)
    cost = (torch.cdist(prompt, safe).square() / spread[:, None, None]).cpu()
    total = _walk_costs(cost)
    places = [_places(*pair) for pair in zip(cost, total, safe.float().cpu(), spread.tolist(), strict=True)]
    return torch.stack(places).to(prompt.device)


def matched(prompt: Conditioning, safe: Conditioning) -> Conditioning:
    """The counterpart with its states in the order of the prompt's; the pooled vector as it is.

    Args:
        prompt: token states ``[B, L, D]``.
        safe: token states of the counterparts, ``[B, M, D]``.
    """
    places = match_places(prompt.tokens, safe.tokens)
    tokens = safe.tokens.gather(1, places[..., None].expand(-1, -1, safe.tokens.shape[-1]))
    return Conditioning(tokens, safe.pooled)


def _walk_costs(cost: torch.Tensor) -> torch.Tensor:
    """Cost of the cheapest walk from the first pair to each, ``[B, L, M]``; diagonals are computed at once."""
    batch, rows, columns = cost.shape
    total = torch.full((batch, rows + 1, columns + 1), torch.inf)
    total[:, 0, 0] = 0
    for diagonal in range(rows + columns - 1):
        i = torch.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        j = diagonal - i
        before = torch.stack([total[:, i, j], total[:, i, j + 1], total[:, i + 1, j]])
        total[:, i + 1, j + 1] = cost[:, i, j] + before.amin(dim=0)
    return total


def _places(cost: torch.Tensor, total: torch.Tensor, safe: torch.Tensor, spread: float) -> torch.Tensor:
    """One prompt's places, from the costs of its walks."""
    pairs, known, walk = cost.tolist(), total.tolist(), []
    i, j = len(pairs), len(pairs[0])
    while i and j:
        walk.append((i - 1, j - 1))
        _, i, j = min((known[a][b], a, b) for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1)))
    found = [-1] * len(pairs)
    for row, column in walk:
        if found[row] < 0 or pairs[row][column] < pairs[row][found[row]]:
            found[row] = column
    _keep_all(found, safe, spread)
    return torch.tensor(found)


def _keep_all(found: list[int], safe: torch.Tensor, spread: float) -> None:
    """Put states of the counterpart that are missing in place of doubles."""
    kept = set(found)
    missing = [place for place in range(len(safe)) if place not in kept]
    if not missing:
        return
    there = safe[sorted(set(found))]
    nearest = torch.cdist(safe[missing], there).square().amin(dim=1) / spread
    taken, rows = Counter(found), iter(range(len(found) - 1, -1, -1))
    for place, distance in zip(missing, nearest.tolist(), strict=True):
        if distance < _SAME:
            continue
        double = next((row for row in rows if taken[found[row]] > 1), None)
        if double is None:
            return
        taken[found[double]] -= 1
        found[double] = place
