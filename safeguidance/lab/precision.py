"""Sixteen bits in training, where they are fast."""

from __future__ import annotations

import torch


def sixteen_bits(device: str) -> torch.autocast:
    """Autocast to bfloat16 where that is faster: on a GPU, and on a CPU that multiplies in it.

    Other CPUs emulate it; a prediction of the testbed then took 11 times longer than in float32.

    Args:
        device: a device's type, ``"cpu"`` or ``"cuda"``.
    """
    # a PyTorch without oneDNN does not have the question either
    multiplies = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    fast = device != "cpu" or bool(multiplies)
    return torch.autocast(device, torch.bfloat16, enabled=fast)
