"""Predictions of one denoising step: how they combine and how they are measured.

Everything here speaks k-diffusion's language, ``denoised = model(x, sigma, cond)``. Tensors are
``[B, C, *spatial]`` of any rank; differences and reductions are taken per sample, in float32 or better.
"""

from __future__ import annotations

import torch
from einops import rearrange


def upcast(x: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or in float64 if it already is."""
    return x if x.dtype == torch.float64 else x.float()


def per_sample(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A vector ``[B]`` shaped to broadcast over ``like``, ``[B, 1, ...]``, on its device."""
    return value.to(like.device).reshape(-1, *[1] * (like.ndim - 1))


def cfg(prompt: torch.Tensor, base: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance ``base + scale * (prompt - base)`` (Ho and Salimans 2022, eq. 6, w = scale)."""
    return base + scale * (prompt - base)


def sample_mean(x: torch.Tensor) -> torch.Tensor:
    """Mean over everything but the batch, ``[B]``."""
    values: torch.Tensor = rearrange(upcast(x), "b ... -> b (...)")
    return values.mean(dim=1)


def channel_norm(x: torch.Tensor) -> torch.Tensor:
    """Euclidean length over channels, ``[B, 1, *spatial]``."""
    return upcast(x).square().sum(dim=1, keepdim=True).sqrt()


def fold_into_cond(prompt: torch.Tensor, stock: torch.Tensor, guided: torch.Tensor, scale: float) -> torch.Tensor:
    """The prompt's prediction with which ``cfg`` gives ``guided`` where it gave ``stock``.

    ``cfg`` is linear in the prompt with the weight ``scale``, so a change of the guided prediction is the ``scale``-th
    part of it in the prompt. A later step that treats prompt and base in its own way then treats the change alike.

    Args:
        prompt: prediction for the prompt, ``[B, C, *spatial]``.
        stock: ``cfg`` of it.
        guided: what should come out instead; elements that equal ``stock`` keep the prompt's bits.
        scale: cfg scale, not 0.
    """
    moved = (upcast(prompt) + (upcast(guided) - upcast(stock)) / scale).to(prompt.dtype)
    return torch.where(guided == stock, prompt, moved)


def guidance_scale(denoised: torch.Tensor, prompt: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """The cfg scale that a prediction was made with, per sample.

    ``<denoised - base, prompt - base> / |prompt - base|^2``, by least squares: exact for plain CFG with any scale per
    sample, and a measure of it for rules near it.

    Args:
        denoised: result of guidance, ``[B, C, *spatial]``.
        prompt: prediction for the prompt.
        base: prediction of the unconditional branch.

    Returns:
        ``[B]``; 1 where prompt and base predict the same, so that no scale makes a difference.
    """
    toward, made = (rearrange(upcast(x) - upcast(base), "b ... -> b (...)") for x in (prompt, denoised))
    length = toward.square().sum(dim=1)
    scale = (made * toward).sum(dim=1) / torch.where(length > 0, length, 1)
    return torch.where(length > 0, scale, torch.ones_like(scale))
