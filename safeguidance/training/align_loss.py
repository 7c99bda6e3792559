"""The loss of safe alignment without labels: the plain model learns what a redirector would have guided it to.

SafeCFG (arXiv 2412.16039) says that its HGR can tell harmful from harmless and fine-tunes a model with that alone; its
formula is not public. Ours is our own derivation. For an unlabelled prompt ``c``, a frozen model ``D`` and a student
``D'`` (the model with the LoRA), both at the same state:

    w(c) = sigmoid((logit gate(c) - logit threshold) / softness)              how harmful the redirector finds c
    a    = D(c) - rho (D(h) - D(empty))        rho = strength (cfg - 1) / cfg     what is wanted of a harmful prompt
    loss = w |D'(c) - a|^2 + (1 - w) |D'(c) - D(c)|^2      and |D'(empty) - D(empty)|^2 on some states

``h`` is the redirect of ``c`` with an open gate. With this ``rho``, CFG of the student at ``cfg`` gives what SafeCFG
gives on the frozen model: ``D(empty) + cfg (a - D(empty)) = D(h) + cfg (D(c) - D(h))``. For ``cfg`` the scale that the
redirector was trained at, ``rho = 1 / kappa``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import reduce

from ..predictions import per_sample, sample_mean, upcast
from .settings import MAX_SEED, check_cfg_scale, check_numbers


@dataclass(frozen=True)
class AlignConfig:
    """Settings of an alignment run.

    Args:
        steps: training steps.
        batch: sampling runs whose states are trained on, the rows of a step.
        rate: peak learning rate (AdamW, cosine).
        scale: cfg scale at which the student should give what SafeCFG gives; also that of the sampling runs. Above 1.
        strength: multiplies the redirect, 0 or more; 1 is SafeCFG's own.
        softness: how softly the gate is read, in logits, above 0. Small: harmful or harmless. Large: in between.
        focus: extra weight of the error where the redirect is strongest, 0 or more.
        empty_share: states, as a share of ``batch``, on which the empty prompt is kept as it was.
        reuse: steps for each new set of states; a set costs five evaluations a row, a step on it one.
        seed: seed of everything.
        patience: steps without a better loss (a running mean) after which training stops early; 0 never stops early.

    Raises:
        InputError: if a value is no number, or out of its range.
    """

    steps: int = 600
    batch: int = 8
    rate: float = 3e-3
    scale: float = 5.0
    strength: float = 1.0
    softness: float = 1.0
    focus: float = 10.0
    empty_share: float = 0.125
    reuse: int = 3
    seed: int = 0
    patience: int = 0

    def __post_init__(self) -> None:
        low = {"steps": 1, "batch": 1, "reuse": 1, "softness": 1e-6}
        check_numbers(self, low, {"empty_share": 1, "seed": MAX_SEED})
        check_cfg_scale(self.scale)

    @property
    def rho(self) -> float:
        """How much of the redirect is taken off the prompt's prediction."""
        return self.strength * (self.scale - 1) / self.scale


def harm_weight(gate: torch.Tensor, threshold: float, softness: float) -> torch.Tensor:
    """How much a prompt is redirected rather than kept, ``[B]``, 0..1; one half at the threshold.

    Args:
        gate: the redirector's harmfulness, ``[B]``, 0..1.
        threshold: its calibrated threshold, 0..1.
        softness: in logits.
    """
    level = torch.logit(torch.tensor(float(threshold), dtype=torch.float64), eps=1e-6).to(gate.device)
    return torch.sigmoid((torch.logit(gate.double(), eps=1e-6) - level) / softness).float()


def aligned_target(
    prompt: torch.Tensor,
    base: torch.Tensor,
    redirect: torch.Tensor,
    weight: torch.Tensor,
    config: AlignConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two-sided loss as one square: its target, and the weight of the error.

    ``w m |s - a|^2 + (1 - w) |s - p|^2`` is ``v |s - target|^2`` plus what does not depend on ``s``, with
    ``v = w m + 1 - w`` and ``target = (w m a + (1 - w) p) / v``.

    Args:
        prompt: the frozen model's prediction of the prompt, ``[B, C, *spatial]``.
        base: of the empty prompt.
        redirect: of the redirect with an open gate.
        weight: ``harm_weight``, ``[B]``; where it is 0 the target is ``prompt``, bit for bit.
        config: strength, scale and focus.

    Returns:
        The target, like ``prompt``, and ``v``, ``[B, 1, *spatial]``.
    """
    direction = upcast(redirect) - upcast(base)
    size = direction.abs().mean(dim=1, keepdim=True)
    largest = per_sample(reduce(size, "b ... -> b", "max"), size).clamp(min=1e-3)
    harm = per_sample(weight, size)
    redirected = harm * (1 + config.focus * size / largest)
    total = redirected + 1 - harm
    return (upcast(prompt) - (redirected / total) * config.rho * direction).to(prompt.dtype), total


def aligned_error(
    student: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """Weighted mean square of the error per sample, in noise units, ``[B]``."""
    return sample_mean(weight * ((upcast(student) - upcast(target)) / per_sample(sigma, student)).square())
