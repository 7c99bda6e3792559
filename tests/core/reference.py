"""Slow, literal transcriptions of the formulas, element by element, to compare the fast ones with."""

from __future__ import annotations

import itertools

import torch


def cfg_reference(prompt: torch.Tensor, base: torch.Tensor, scale: float) -> torch.Tensor:
    """CFG in the SafeCFG paper's convention: ``e = e(c) + eta (e(c) - e(base))`` with ``w = 1 + eta``."""
    eta = scale - 1
    out = torch.empty(prompt.shape, dtype=torch.float64)
    for index in itertools.product(*map(range, prompt.shape)):
        out[index] = prompt[index].item() + eta * (prompt[index].item() - base[index].item())
    return out


def redirect_reference(base: torch.Tensor, delta: torch.Tensor, gate: torch.Tensor, strength: float) -> torch.Tensor:
    """``H(c) = base + strength * g * delta``, one number at a time."""
    out = torch.empty(base.shape, dtype=torch.float64)
    for index in itertools.product(*map(range, base.shape)):
        out[index] = base[index].item() + strength * gate[index[0]].item() * delta[index].item()
    return out


def target_reference(base: torch.Tensor, prompt: torch.Tensor, safe: torch.Tensor, eta: float) -> torch.Tensor:
    """``e_h = e_0 + (1 + eta) / eta * (e_c - e_s)``, one number at a time."""
    out = torch.empty(base.shape, dtype=torch.float64)
    for index in itertools.product(*map(range, base.shape)):
        out[index] = base[index].item() + (1 + eta) / eta * (prompt[index].item() - safe[index].item())
    return out
