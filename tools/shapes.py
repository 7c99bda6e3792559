"""Diffusion models that costs are measured on: real sizes with random weights, and small ones of the same classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

SD15_UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "num_heads": 8,
    "num_head_channels": -1,
    "adm_in_channels": None,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "legacy": False,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}
SDXL_UNET: dict[str, Any] = {
    **SD15_UNET,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "context_dim": 2048,
    "num_heads": -1,
    "num_head_channels": 64,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
    "use_linear_in_transformer": True,
}
_FEW_BLOCKS = {
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1],
    "transformer_depth_middle": 1,
}
SD3_TRANSFORMER: dict[str, Any] = {
    "input_size": None,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "depth": 24,
    "adm_in_channels": 2048,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
    "num_patches": 36864,
    "pos_embed_max_size": 192,
    "pos_embed_scaling_factor": None,
}


@dataclass(frozen=True)
class Shape:
    """One model.

    Args:
        kind: its class in the host's list of supported models.
        network: what that class is made with.
        channels: channels of its latents.
        side: width and height of the latent that people sample.
        tokens: tokens of a text.
        width: channels of a token's state.
        pooled: channels of the pooled vector, 0 for models without one.
        half: whether its weights are bfloat16.
    """

    kind: str
    network: dict[str, Any]
    channels: int
    side: int
    tokens: int
    width: int
    pooled: int = 0
    half: bool = True


_SD15 = Shape("SD15", SD15_UNET, 4, 64, 77, 768)
_SDXL = Shape("SDXL", SDXL_UNET, 4, 128, 77, 2048, 1280)
_SD3 = Shape("SD3", SD3_TRANSFORMER, 16, 128, 154, 4096, 2048)
# The texts keep their widths, so a redirector of the real size fits.
_SMALL_SD3 = {
    "depth": 2,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
    "num_patches": 64,
    "pos_embed_max_size": 8,
}
SHAPES: dict[str, Shape] = {
    "small": replace(_SD15, network={**SD15_UNET, **_FEW_BLOCKS}, side=16, half=False),
    "small-sdxl": replace(_SDXL, network={**SDXL_UNET, **_FEW_BLOCKS, "num_head_channels": 32}, side=16, half=False),
    "small-sd3": replace(_SD3, network={**SD3_TRANSFORMER, **_SMALL_SD3}, side=16, half=False),
    "sd15": _SD15,
    "sdxl": _SDXL,
    "sd3": _SD3,
}
"""By name; 860 million, 2.6 billion and 2 billion weights in the last three."""
