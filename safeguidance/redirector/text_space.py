"""A redirector in text space: the prompt's own conditioning moved to that of its safe counterpart.

``S(E) = E + strength * delta(E)`` where the gate ``g(E)`` reaches its threshold, else ``E``: no denoiser, no
unconditional branch and no cost per step, so it works at any cfg, 1 among them, and one file serves every model with
the same text encoder. Our design, after Distorting Embedding Space (arXiv 2501.18877) and Embedding Sanitizer (arXiv
2411.10329); network and gate are those of the HGR.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..conditioning import Conditioning
from ..errors import InputError, check_range
from ..guidance.safecfg import gate_open, redirect
from ..guidance.settings import Setting, check_settings
from .hgr import HGR

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "strength",
        "How far a harmful prompt moves to its safe counterpart. Low: weak, 0 leaves the prompt to the last bit. 1: as "
        "trained. High, up to 2: beyond the counterpart, for wording that training did not have; pictures change more. "
        "Our design; no paper has this factor.",
        high=2.0,
        step=0.05,
        by_preset=True,
    ),
)


@dataclass(frozen=True)
class SafeTextConfig:
    """Settings of the redirect in text space.

    Args:
        strength: 0 leaves the prompt, 1 is the trained redirect, up to 2 goes beyond it.
        threshold: gate below which a prompt is left alone, 0..1; None takes the redirector's calibration.

    Raises:
        InputError: if a value is out of its range.
    """

    strength: float = 1.0
    threshold: float | None = None

    def __post_init__(self) -> None:
        check_settings(self, SETTINGS)
        if self.threshold is not None:
            check_range("threshold", self.threshold, 0, 1, "0 always acts; none takes the calibrated one")


SAFE_TEXT_PRESETS: dict[str, SafeTextConfig] = {
    "light": SafeTextConfig(strength=0.8),
    "balanced": SafeTextConfig(),
    "strict": SafeTextConfig(strength=1.2),
}
"""From least to most removed; ours."""


class TextRedirector:
    """A trained network with its calibration, for prompts of one text encoder.

    Args:
        network: gives gate and change of a prompt.
        encoder: family of text encoders it was trained on.
        threshold: calibrated gate threshold, 0..1.
        title: what reports call it.
        encoder_hash: digest of the encoder's weights, "" where none was taken.
    """

    def __init__(
        self, network: HGR, encoder: str, threshold: float, title: str = "Text redirector", encoder_hash: str = ""
    ) -> None:
        self.network, self.encoder, self.threshold = network, encoder, threshold
        self.title, self.encoder_hash = title, encoder_hash
        self.categories = network.config.categories
        self.width, self.pooled_width = network.config.context_width, network.config.pooled_width

    @torch.no_grad()
    def scores(self, prompt: Conditioning) -> torch.Tensor:
        """Harmfulness per category, ``[B, K]``, 0..1."""
        tokens = prompt.tokens.to(self.network.marks)
        return self.network.logits(tokens).float().sigmoid().to(prompt.tokens.device)

    @torch.no_grad()
    def change(self, prompt: Conditioning) -> Conditioning:
        """What is added to token states and pooled vector (None where the network has no head for it)."""
        delta, pooled = self.network.change(prompt.tokens.to(self.network.marks))
        return Conditioning(delta.to(prompt.tokens), None if pooled is None else pooled.to(prompt.tokens))


@dataclass(frozen=True)
class SafeText:
    """The outcome for a prompt.

    Args:
        conditioning: the prompt to sample with; the very object that came in where no gate opens.
        gate: harmfulness ``[B]``, 0..1.
        scores: the same per category, ``[B, K]``.
        open: rows that were moved, ``[B]`` bool.
    """

    conditioning: Conditioning
    gate: torch.Tensor
    scores: torch.Tensor
    open: torch.Tensor

    @property
    def acts(self) -> bool:
        """Whether any row was moved."""
        return bool(self.open.any())


def redirect_text(
    redirector: TextRedirector, prompt: Conditioning, config: SafeTextConfig, scores: torch.Tensor | None = None
) -> SafeText:
    """Move the harmful rows of a prompt to their safe counterparts; the others stay as they are, bit for bit.

    Args:
        redirector: reads the prompt and proposes the change.
        prompt: token states ``[B, L, D]`` and pooled vector ``[B, P]`` of the text encoder it was trained on.
        config: strength and threshold.
        scores: what to judge by, ``[B, K]``; None reads the prompt.

    Raises:
        InputError: if the widths differ from the redirector's, or the prompt, a score or the outcome is not finite.
    """
    widths = prompt.tokens.shape[-1], 0 if prompt.pooled is None else prompt.pooled.shape[-1]
    if widths[0] != redirector.width or redirector.pooled_width not in (0, widths[1]):
        pooled_width = f", pooled {redirector.pooled_width}" * bool(redirector.pooled_width)
        raise InputError(
            "conditioning",
            f"it has {widths[0]} channels and a pooled vector of {widths[1]}, the text redirector "
            f"{redirector.title!r} was made for {redirector.width} channels{pooled_width} ({redirector.encoder})",
            "conditioning of the text encoder that the redirector was made for",
            "load a file for this text encoder, or train one with Train Text Redirector",
        )
    scores = redirector.scores(prompt) if scores is None else scores
    harm = scores.amax(dim=1)
    _check_finite(redirector, harm)
    gate = gate_open(harm, redirector.threshold if config.threshold is None else config.threshold)
    opened = gate > 0
    if config.strength == 0 or not bool(opened.any()):
        return SafeText(prompt, harm, scores, torch.zeros_like(opened))
    change = redirector.change(prompt)
    # an open gate moves all the way: half a move is a prompt that neither encoder nor model ever saw
    whole = opened.to(prompt.tokens.device, torch.float32)
    tokens, pooled = redirect(prompt.tokens, change.tokens, whole, config.strength), prompt.pooled
    if pooled is not None and change.pooled is not None:
        pooled = redirect(pooled, change.pooled, whole.to(pooled.device), config.strength)
    for states in (tokens, pooled):
        if states is not None:
            _check_finite(redirector, states)
    return SafeText(Conditioning(tokens, pooled), harm, scores, opened)


def _check_finite(redirector: TextRedirector, values: torch.Tensor) -> None:
    # a score that is not a number would pass for harmless
    if not bool(torch.isfinite(values).all()):
        raise InputError(
            "conditioning",
            f"{redirector.title!r} gives values that are not finite numbers for this prompt",
            "finite states of a text encoder",
            "look at the text (weights such as (word:nan)), or run the text encoder in float32 or bfloat16",
        )
