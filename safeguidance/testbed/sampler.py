"""The testbed's schedule and its plain Euler sampler (the same numbers as the host's ``simple`` and ``euler``)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..predictions import per_sample

SHIFT = 2.0
"""Shift of the flow schedule: more steps where the layout is decided."""

Guided = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""``denoised = guided(x, sigma [B], step)``."""


def schedule(steps: int) -> torch.Tensor:
    """Sigmas of a run, ``[steps + 1]``, from 1 down to 0.

    Raises:
        ValueError: if there is not at least one step, or more than the 1000 levels the model knows.
    """
    if not 1 <= steps <= 1000:
        raise ValueError(f"steps is {steps}; allowed is 1 to 1000")
    level = torch.tensor([1000 - int(i * 1000 / steps) for i in range(steps)], dtype=torch.float32) / 1000
    return torch.cat([SHIFT * level / (1 + (SHIFT - 1) * level), torch.zeros(1)])


def euler(
    guided: Guided,
    noise: torch.Tensor,
    sigmas: torch.Tensor,
    latent: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Euler's method.

    Args:
        guided: the guided prediction.
        noise: unit noise ``[B, C, H, W]``.
        sigmas: descending, last one 0.
        latent: what the run starts from at the first sigma, of noise's shape; None for pure noise.
        mask: places that are made anew, 1, and those that stay as ``latent`` has them, 0; None for all anew.

    Returns:
        Latents of noise's shape.
    """
    before = torch.zeros_like(noise) if latent is None else latent
    x = noise * sigmas[0] + before * (1 - sigmas[0])
    for step, (now, then) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        sigma = now.expand(len(x)).to(x)
        if mask is not None:
            x = torch.where(mask > 0, x, noise * now + before * (1 - now))
        denoised = guided(x, sigma, step)
        if mask is not None:
            denoised = torch.where(mask > 0, denoised, before)
        x = x + (then - now) * (x - denoised) / per_sample(sigma, x)
    return x


def seeded_noise(seeds: list[int], shape: tuple[int, ...]) -> torch.Tensor:
    """Unit noise ``[len(seeds), *shape]``, each sample from its own seed, so results do not depend on batching."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
