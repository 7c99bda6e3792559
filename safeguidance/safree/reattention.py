"""Latent re-attention: low frequencies of skip features that the filter made stronger are damped (SAFREE, section 3.4).

The published program never reaches its own re-attention: it lacks the switch, so the features pass unchanged. This is
the paper's rule, with complex magnitudes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import InputError, check_choice, check_range
from ..guidance.window import Window
from ..predictions import upcast

BANDS = ("low", "high", "all")


@dataclass(frozen=True)
class ReattentionConfig:
    """Settings of the re-attention.

    Args:
        scales: factor s of a coefficient, for the widest skip features and the next wider ones; 0.9 and 0.2 in the
            published program. 0..1 each.
        strength: how much of the change is applied, 0 (none) to 1 (the paper's).
        radius: half the edge of the square of low frequencies, 1 in the program (2 x 2 coefficients). At least 1.
        band: "low" as in the paper, "high" for everything else, "all" for both.
        start: fraction of the schedule where it begins.
        end: fraction of the schedule where it ends; a step there is the last one.

    Raises:
        InputError: if a value is out of its range.
    """

    scales: tuple[float, float] = (0.9, 0.2)
    strength: float = 1.0
    radius: int = 1
    band: str = "low"
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if len(self.scales) != 2:
            raise InputError("scales", f"there are {len(self.scales)}", "two, from 0 to 1 each")
        for scale in self.scales:
            check_range("scales", scale, 0, 1)
        check_range("strength", self.strength, 0, 1, "0 is none, 1 the paper's")
        check_range("radius", self.radius, 1, 10_000)
        check_choice("band", self.band, BANDS)
        Window(self.start, self.end)

    def factor(self, depth: int) -> float:
        """The factor for skip features, 0 the widest, 1 the next; 1 (no change) for all others."""
        scale = self.scales[depth] if depth < len(self.scales) else 1.0
        return 1 - self.strength * (1 - scale)

    def active(self, progress: float) -> bool:
        """Whether a fraction of the schedule lies in the window and there is anything to do."""
        inside = Window(self.start, self.end).contains(progress)
        return inside and any(self.factor(depth) != 1 for depth in range(len(self.scales)))


def reattend(filtered: torch.Tensor, original: torch.Tensor, factor: float, config: ReattentionConfig) -> torch.Tensor:
    """Damp what the filter made stronger: ``F' = s F_filtered where |F_filtered| > |F_original|``, else ``F_filtered``.

    F are two-dimensional Fourier coefficients over height and width, per sample and channel.

    Args:
        filtered: features under the filtered prompt, ``[B, C, H, W]`` or ``[B, C, T, H, W]``.
        original: features under the prompt as written, of the same shape.
        factor: s.
        config: settings; strength and window are the caller's business.

    Returns:
        Features of ``filtered``'s shape and type; itself where s is 1.
    """
    if factor == 1:
        return filtered
    ours = torch.fft.fftshift(torch.fft.fftn(upcast(filtered), dim=(-2, -1)), dim=(-2, -1))
    theirs = torch.fft.fftshift(torch.fft.fftn(upcast(original), dim=(-2, -1)), dim=(-2, -1))
    height, width = filtered.shape[-2:]
    low = torch.zeros(height, width, dtype=torch.bool, device=filtered.device)
    rows = slice(max(height // 2 - config.radius, 0), height // 2 + config.radius)
    columns = slice(max(width // 2 - config.radius, 0), width // 2 + config.radius)
    low[rows, columns] = True
    where = torch.ones_like(low) if config.band == "all" else low if config.band == "low" else ~low
    damped = torch.where(where & (ours.abs() > theirs.abs()), factor * ours, ours)
    back: torch.Tensor = torch.fft.ifftn(torch.fft.ifftshift(damped, dim=(-2, -1)), dim=(-2, -1)).real
    return back.to(filtered.dtype)
