"""Weights in eight bits: every row of a matrix in steps of its own size, vectors in half precision."""

from __future__ import annotations

from collections.abc import Mapping

import torch

SCALE = ".scale"
"""Suffix of the name under which the steps of a matrix are kept, ``[rows, 1, ...]`` in half precision."""


def to_bytes(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights as they are saved: matrices int8 with a step for each row, the rest in half precision."""
    out: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        if value.ndim < 2:
            out[name] = value.half().contiguous()
            continue
        largest = value.float().flatten(1).abs().amax(dim=1).reshape(-1, *[1] * (value.ndim - 1))
        step = (largest / 127).clamp_min(1e-7).half()
        out[name] = (value.float() / step.float()).round().clamp(-127, 127).to(torch.int8)
        out[name + SCALE] = step
    return out


def from_bytes(saved: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights again, in single precision."""
    return {
        name: value.float() * saved[name + SCALE].float() if value.dtype == torch.int8 else value.float()
        for name, value in saved.items()
        if not name.endswith(SCALE)
    }
