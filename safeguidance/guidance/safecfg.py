"""SafeCFG (arXiv 2412.16039): the unconditional branch of CFG gets a conditioning that holds what is harmful.

``denoised = D_h + w (D_prompt - D_h)`` with ``D_h = model(x, sigma, H(c))`` and
``H(c) = base + strength * (kappa_use / kappa_train) * gate(c) * delta(c)``. Ordinary CFG does the rest, so a step costs
what it always costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import InputError, check_range
from ..predictions import per_sample, upcast
from .settings import Setting, check_settings
from .window import Window

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "strength",
        "How far the unconditional branch moves towards the harmful part. Low: weak, 0 is plain CFG to the last "
        "bit. 1: as trained. High, up to 2: pushes further away from harm, pictures change more. The paper has no "
        "such factor (its value is 1); the range is our derivation.",
        high=2.0,
        step=0.05,
        by_preset=True,
    ),
    Setting(
        "start",
        "Fraction of the noise schedule at which the redirect begins; same meaning as start_percent of a "
        "conditioning. 0: from the first step. High: the layout forms unguarded, only details are guarded. The "
        "paper acts at every step (0); later starts are our derivation.",
    ),
    Setting(
        "end",
        "Fraction of the noise schedule at which the redirect ends. Low: only the layout is guarded, details stay "
        "as the prompt has them. High, up to 1: to the last step, as in the paper.",
        by_preset=True,
    ),
)


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
        InputError: if a value is out of its range.
    """

    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    threshold: float | None = None
    rescale: bool = True

    def __post_init__(self) -> None:
        check_settings(self, SETTINGS)
        Window(self.start, self.end)
        if self.threshold is not None:
            check_range("threshold", self.threshold, 0, 1, "0 always acts; none takes the calibrated one")

    @property
    def window(self) -> Window:
        """When the redirect acts."""
        return Window(self.start, self.end)

    def active(self, progress: float) -> bool:
        """Whether a step at this fraction of the schedule is inside the window."""
        return self.strength > 0 and self.window.contains(progress)


SAFECFG_PRESETS: dict[str, SafeCFGConfig] = {
    "light": SafeCFGConfig(strength=0.75, end=0.6),
    "balanced": SafeCFGConfig(),
    "strict": SafeCFGConfig(strength=1.25),
}
"""From least to most removed. ``balanced`` is the paper's way; the others are ours, chosen on an earlier testbed."""


def kappa(scale: float) -> float:
    """Weight of the harm difference that makes CFG at ``scale`` land on the safe counterpart: ``w / (w - 1)``.

    Raises:
        InputError: if ``scale`` is not above 1 (there is no unconditional branch to redirect).
    """
    if not scale > 1:
        raise InputError("cfg", f"it is {scale}", "above 1, since at 1 there is no unconditional branch to redirect")
    return scale / (scale - 1)


def without_branch(
    prompt: torch.Tensor, base: torch.Tensor, redirected: torch.Tensor, harm_weight: float
) -> torch.Tensor:
    """The safe prediction where there is no unconditional branch (cfg 1).

    The redirected conditioning is trained to predict ``base + kappa (prompt - safe)``, so the safe counterpart's own
    prediction is ``prompt - (redirected - base) / kappa``. Our derivation from the training target.

    Args:
        prompt: prediction for the prompt, ``[B, C, *spatial]``.
        base: prediction for the negative prompt.
        redirected: prediction for the redirected negative prompt.
        harm_weight: kappa of the redirect as it was made.
    """
    return upcast(prompt) - (upcast(redirected) - upcast(base)) / harm_weight


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
