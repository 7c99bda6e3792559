"""The training target of the HGR.

SafeCFG (arXiv 2412.16039) trains ``model(x, sigma, H(c))`` towards a fixed score: the unconditional one for clean
prompts. Its harmful target is not public; ours follows from asking that CFG at scale w on a harmful prompt gives what
CFG would give on the prompt's safe counterpart.
"""

from __future__ import annotations

import torch


def target(base: torch.Tensor, prompt: torch.Tensor, safe: torch.Tensor, kappa: float) -> torch.Tensor:
    """``base + kappa * (prompt - safe)``, all denoised predictions ``[B, C, *spatial]`` at the same x and sigma.

    A clean prompt is its own safe counterpart, so its target is ``base``, exactly.

    Args:
        base: prediction of the empty prompt.
        prompt: prediction of the prompt.
        safe: prediction of its safe counterpart.
        kappa: ``w / (w - 1)`` for the cfg scale w that is trained for.
    """
    return base + kappa * (prompt - safe)
