"""Pixels to latents and back: 4x4 pixel blocks in a cosine basis, the highest frequencies left out.

A linear code without weights. Coefficients are scaled to about the same size, as the latents of real models are, so
that fine lines count as much in training as large areas.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch.nn import functional

PATCH = 4
EDGE = 12
"""Edge of a latent; ``PATCH`` pixels to each of its places."""
_REACH = (4, 2, 1)
"""Highest sum of the two frequencies that is kept, for brightness and two colour differences."""
_KEPT = tuple((c, k, m) for c in range(3) for k in range(PATCH) for m in range(PATCH) if k + m <= _REACH[c])
LATENT_CHANNELS = len(_KEPT)
_POWER = 0.6
"""How far coefficients are brought to the same size: 0 not at all, 1 altogether."""

# standard deviations of the coefficients over drawn scenes, by colour axis and frequencies
_DEVIATION = (
    ((3.000, 0.567, 0.348, 0.257), (0.622, 0.331, 0.225, 0.160), (0.413, 0.232, 0.173, 0), (0.349, 0.173, 0, 0)),
    ((1.739, 0.338, 0.169, 0), (0.355, 0.181, 0, 0), (0.184, 0, 0, 0), (0, 0, 0, 0)),
    ((0.808, 0.156, 0, 0), (0.167, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0)),
)
_MEAN = (1.4, 0.6, 0.0)
"""Mean of the lowest frequency of each colour axis."""
_GAIN = 1.3
"""Brings latents to about unit variance."""


@lru_cache(maxsize=1)
def _basis() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Basis ``[C, 3 * 16]`` with orthonormal rows, scale ``[C]`` and mean ``[C]`` of the coefficients."""
    axes = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    axes = axes / axes.norm(dim=1, keepdim=True)
    cosines = torch.tensor(
        [
            [math.cos(math.pi * (2 * i + 1) * k / (2 * PATCH)) * math.sqrt((1 if k == 0 else 2) / PATCH)]
            for k in range(PATCH)
            for i in range(PATCH)
        ]
    ).reshape(PATCH, PATCH)
    rows = [torch.einsum("c,i,j->cij", axes[c], cosines[k], cosines[m]).flatten() for c, k, m in _KEPT]
    scale = torch.tensor([_GAIN * _DEVIATION[c][k][m] ** -_POWER for c, k, m in _KEPT])
    mean = torch.tensor([_MEAN[c] if k == m == 0 else 0.0 for c, k, m in _KEPT])
    return torch.stack(rows), scale, mean


def to_latent(image: torch.Tensor) -> torch.Tensor:
    """Images ``[B, 3, H, W]`` in -1..1 to latents ``[B, 22, H/4, W/4]``."""
    rows, scale, mean = (part.to(image) for part in _basis())
    blocks = functional.pixel_unshuffle(image, PATCH)
    coefficients = torch.einsum("kp,bphw->bkhw", rows, blocks)
    return (coefficients - mean[:, None, None]) * scale[:, None, None]


def to_image(latent: torch.Tensor) -> torch.Tensor:
    """Latents ``[B, 22, H, W]`` to images ``[B, 3, 4H, 4W]``, nominally in -1..1."""
    rows, scale, mean = (part.to(latent) for part in _basis())
    coefficients = latent / scale[:, None, None] + mean[:, None, None]
    return functional.pixel_shuffle(torch.einsum("kp,bkhw->bphw", rows, coefficients), PATCH)


def to_bytes(latent: torch.Tensor) -> torch.Tensor:
    """Latents to ``[B, H, W, 3]`` uint8 pictures."""
    image = to_image(latent.float()).clamp(-1, 1)
    return ((image + 1) * 127.5 + 0.5).to(torch.uint8).movedim(1, -1)


def from_bytes(pictures: torch.Tensor) -> torch.Tensor:
    """``[B, H, W, 3]`` uint8 pictures to latents."""
    return to_latent(pictures.movedim(-1, 1).float() / 127.5 - 1)


def preview_colours() -> tuple[list[list[float]], list[float]]:
    """Red, green and blue that each channel adds to the colour of its block, ``[22, 3]``; those of zeros, ``[3]``."""
    channels = torch.eye(LATENT_CHANNELS)[:, :, None, None]
    grey = to_image(torch.zeros(1, LATENT_CHANNELS, 1, 1)).mean((2, 3))
    return (to_image(channels).mean((2, 3)) - grey).tolist(), grey[0].tolist()
