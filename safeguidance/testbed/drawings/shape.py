"""The shape of the denoiser of the world of drawings, in the words of the host's UNet class."""

from __future__ import annotations

from typing import Any

from ..denoiser import UNET_CONFIG
from .encoder import CONTEXT
from .latents import EDGE, LATENT_CHANNELS

DENOISER_CONFIG: dict[str, Any] = {
    **UNET_CONFIG,
    "image_size": EDGE,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "model_channels": 128,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1],
    "context_dim": CONTEXT,
}
"""Attention at 6x6 only: on a CPU it costs most above, and there the blocks only draw what 6x6 has decided."""
LATENT_SHAPE = (LATENT_CHANNELS, EDGE, EDGE)
