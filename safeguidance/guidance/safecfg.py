"""SafeCFG (arXiv 2412.16039): the unconditional branch of CFG gets a conditioning that holds what is harmful.

``denoised = D_h + w (D_prompt - D_h)`` with ``D_h = model(x, sigma, H(c))`` and
``H(c) = base + strength * (kappa_use / kappa_train) * gate(c) * delta(c)``. Ordinary CFG does the rest, so a step costs
what it always costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..predictions import per_sample


@dataclass(frozen=True)
class SafeCFGConfig:
    """Settings of the redirect.

    Args:
        strength: 0 leaves plain CFG, 1 is the trained redirect, up to 2 pushes further away from harm.
        start: fraction of the schedule at which the redirect begins, 0 is the first step.
        end: fraction of the schedule at which it ends, 1 is the last step.
        threshold: gate below which a prompt is left alone, 0..1; None takes the redirector's calibration.
        rescale: strengthen the redirect at a cfg scale below the one the redirector was trained at, at most twofold.

    Raises:
        ValueError: if a value is out of its range.
    """

    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    threshold: float | None = None
    rescale: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 2:
            raise ValueError(f"strength is {self.strength}; allowed is 0 (off) to 2; the trained value is 1")
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(
                f"window is {self.start} to {self.end}; allowed is 0 <= start <= end <= 1 (fractions of the schedule)"
            )
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; allowed is 0 (always act) to 1, or none for calibrated")

    def active(self, progress: float) -> bool:
        """Whether a step at this fraction of the schedule is inside the window."""
        return self.strength > 0 and self.start <= progress <= self.end and self.start < self.end


SAFECFG_PRESETS: dict[str, SafeCFGConfig] = {
    "light": SafeCFGConfig(strength=0.75, end=0.6),
    "balanced": SafeCFGConfig(),
    "strict": SafeCFGConfig(strength=1.5),
}
"""From least to most removed. ``balanced`` is the paper's way; the others are ours, chosen on the testbed."""


def kappa(scale: float) -> float:
    """Weight of the harm difference that makes CFG at ``scale`` land on the safe counterpart: ``w / (w - 1)``.

    Raises:
        ValueError: if ``scale`` is not above 1 (there is no unconditional branch to redirect).
    """
    if scale <= 1:
        raise ValueError(f"cfg is {scale}; SafeCFG needs a cfg above 1, since at 1 there is no unconditional branch")
    return scale / (scale - 1)


def gate_open(gate: torch.Tensor, threshold: float) -> torch.Tensor:
    """The gate ``[B]`` with everything below the threshold set to exactly 0."""
    return torch.where(gate >= threshold, gate, torch.zeros_like(gate))


def redirect(base: torch.Tensor, delta: torch.Tensor, gate: torch.Tensor, strength: float) -> torch.Tensor:
    """The conditioning of the unconditional branch.

    Args:
        base: conditioning of the empty or negative prompt, ``[B, L, D]`` (or pooled, ``[B, D]``).
        delta: the redirector's proposal, same shape.
        gate: harmfulness per sample, ``[B]``; rows of exactly 0 give ``base`` bit for bit.
        strength: multiplier, already including ``kappa_use / kappa_train``.

    Returns:
        Same shape and dtype as ``base``.
    """
    weight = per_sample(strength * gate, base)
    moved = (base.float() + weight * delta.float()).to(base.dtype)
    return torch.where(weight == 0, base, moved)
