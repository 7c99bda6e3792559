"""A LoRA file for the testbed's MODEL, as stock loaders read it; it changes one layer."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from safeguidance.testbed.denoiser import Denoiser

_LAYER = "time_embed.0"


def write_lora(path: Path) -> None:
    """Write it; its values depend on nothing."""
    rows, columns = Denoiser().state_dict()[_LAYER + ".weight"].shape
    generator = torch.Generator().manual_seed(0)
    name = f"diffusion_model.{_LAYER}"
    tensors = {
        f"{name}.lora_down.weight": torch.randn(1, columns, generator=generator),
        f"{name}.lora_up.weight": 0.02 * torch.randn(rows, 1, generator=generator),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
