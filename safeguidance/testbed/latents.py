"""Pixels to latents and back: 2x2 pixel blocks become channels, without loss and without weights."""

from __future__ import annotations

import torch
from torch.nn import functional

PATCH = 2
LATENT_CHANNELS = 3 * PATCH**2


def to_latent(image: torch.Tensor) -> torch.Tensor:
    """Images ``[B, 3, H, W]`` in -1..1 to latents ``[B, 12, H/2, W/2]``."""
    return functional.pixel_unshuffle(image, PATCH)


def to_image(latent: torch.Tensor) -> torch.Tensor:
    """Latents ``[B, 12, H, W]`` to images ``[B, 3, 2H, 2W]``, nominally in -1..1."""
    return functional.pixel_shuffle(latent, PATCH)


def to_bytes(latent: torch.Tensor) -> torch.Tensor:
    """Latents to ``[B, H, W, 3]`` uint8 pictures."""
    image = to_image(latent.float()).clamp(-1, 1)
    return ((image + 1) * 127.5 + 0.5).to(torch.uint8).movedim(1, -1)


def from_bytes(pictures: torch.Tensor) -> torch.Tensor:
    """``[B, H, W, 3]`` uint8 pictures to latents."""
    return to_latent(pictures.movedim(-1, 1).float() / 127.5 - 1)
