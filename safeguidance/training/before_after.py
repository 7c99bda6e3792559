"""What a redirector does so far, while it is trained: one picture without it and with it, from the same noise.

Nothing of the training is read or changed: weights, generators and kept states stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..conditioning import Conditioning, concatenate
from ..predictions import cfg, per_sample
from ..redirector.hgr import HGR
from ..redirector.interface import apply_delta
from .rollouts import predict_delta

Predict = Callable[[torch.Tensor, torch.Tensor, Conditioning], torch.Tensor]
"""``denoised = predict(x [B, ...], sigma [B], cond)``."""
Noised = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""A latent, unit noise and sigma ``[B]`` to the noised latent."""
Negatives = Callable[[float], Conditioning]
"""A noise level to what is guided away from there, one row per picture."""


@torch.no_grad()
def side_by_side(
    predict: Predict,
    noised: Noised,
    schedule: torch.Tensor,
    shape: Sequence[int],
    positives: Conditioning,
    negatives: Negatives,
    scale: float,
    seed: int = 0,
) -> torch.Tensor:
    """Sampling runs (Euler) under CFG from the same noise.

    Args:
        predict: the model.
        noised: its forward process.
        schedule: sigmas of a run, descending, the last one 0.
        shape: of one latent, ``[C, *spatial]``.
        positives: what is asked for, one row per picture, on the model's device.
        negatives: what is guided away from, of the same length.
        scale: cfg.
        seed: of the noise.

    Returns:
        Latents ``[rows, C, *spatial]`` in the model's scale.
    """
    rows, device = len(positives.tokens), positives.tokens.device
    noise = torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed)).to(device)
    x = noised(torch.zeros_like(noise), noise, schedule[:1].to(device)).repeat(rows, *[1] * len(shape))
    for now, after in zip(schedule.tolist(), schedule[1:].tolist(), strict=False):
        level = torch.full((2 * rows,), now, device=device)
        cond = concatenate([positives, negatives(now)])
        there, here = predict(torch.cat([x] * 2), level, cond).chunk(2)
        x = x + (after - now) * (x - cfg(there, here, scale)) / per_sample(level[:rows], x)
    return x


@torch.no_grad()
def hgr_rows(
    network: HGR, schedule: torch.Tensor, prompt: Conditioning, base: Conditioning
) -> tuple[Conditioning, Negatives]:
    """Positives and negatives of a picture without an HGR and one with it, its gate as it is now.

    Args:
        network: the HGR.
        schedule: sigmas of a run.
        prompt: one text, ``[1, L, D]``.
        base: the empty one, of the same length.
    """
    gate = network.logits(prompt.tokens).sigmoid().amax(dim=1)

    @torch.no_grad()
    def negatives(level: float) -> Conditioning:
        sigma = torch.full((1,), level, device=prompt.tokens.device)
        return concatenate([base, apply_delta(base, predict_delta(network, schedule, prompt.tokens, sigma), gate)])

    return concatenate([prompt, prompt]), negatives


@torch.no_grad()
def text_rows(network: HGR, prompt: Conditioning, base: Conditioning) -> tuple[Conditioning, Negatives]:
    """The same for a redirector in text space, which moves the prompt itself."""
    gate = network.logits(prompt.tokens).sigmoid().amax(dim=1)
    moved = apply_delta(prompt, Conditioning(*network.change(prompt.tokens)), gate)
    return concatenate([prompt, moved]), lambda _level: concatenate([base, base])
