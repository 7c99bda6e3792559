"""The testbed's model with a LoRA and no guidance beyond plain CFG, as a method to measure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from ...testbed.model import Testbed
from ...testbed.sampler import Guided
from ...training.lora import LoRA, load_lora
from ..runs import LORA
from .conditioning import Conditioned, Method, Setting, plain, stock


@cache
def _read(path: Path) -> LoRA:
    return load_lora(path)[0]


def with_lora(path: Path = LORA, conditioned: Conditioned = plain) -> Method:
    """Plain CFG of the model with a LoRA at full strength.

    Args:
        path: the LoRA file, by default the shipped one; read when the method starts.
        conditioned: how prompt and base are conditioned.
    """

    def start(testbed: Testbed, setting: Setting, prompts: Sequence[str]) -> Guided:
        lora, guided = _read(path), stock(conditioned)(testbed, setting, prompts)

        def aligned(x: torch.Tensor, sigma: torch.Tensor, step: int) -> torch.Tensor:
            with lora.attached(testbed.denoiser):
                return guided(x, sigma, step)

        return aligned

    return start
