"""Settings of HGR training."""

from __future__ import annotations

from dataclasses import dataclass

from ..guidance.safecfg import kappa
from .settings import MAX_SEED, check_cfg_scale, check_numbers


@dataclass(frozen=True)
class HGRTrainConfig:
    """Settings of a training run.

    Args:
        steps: training steps.
        batch: rows a step that go through the denoiser; harmful ones where there are enough, since a clean row
            behind a closed gate has nothing left to learn there.
        clean_share: share of clean rows among them, 0..1.
        text_batch: rows a step that only train the gate and keep clean prompts in place.
        rate: peak learning rate (AdamW, cosine).
        scale: cfg scale trained for; use the lowest one to be supported.
        rollout_scale: cfg scale of the rollouts, the one that people sample with.
        gate_weight: weight of the gate's cross-entropy.
        clean_weight: weight of ``|gate * delta|^2`` on clean rows.
        rollout_share: share of the batch that comes from rollouts, 0..1; the rest is noised pictures.
        focus: extra weight of the score's error where prompt and safe counterpart differ most, 0 or more; there a
            small error, multiplied by cfg at use, leaves the harmful thing in the picture.
        reuse: steps for each new set of states; their targets cost three evaluations, a step on them costs one.
        jitter: noise added to the token states that the HGR reads, relative to their spread; stands in for wording
            it has not seen.
        seed: seed of everything.
        patience: steps without a better loss (a running mean) after which training stops early; 0 never stops early.

    Raises:
        InputError: if a value is no number, or out of its range.
    """

    steps: int = 1000
    batch: int = 16
    clean_share: float = 0.0625
    text_batch: int = 12
    rate: float = 1.5e-3
    scale: float = 2.0
    rollout_scale: float = 5.0
    gate_weight: float = 0.1
    clean_weight: float = 0.01
    rollout_share: float = 0.25
    focus: float = 10.0
    reuse: int = 3
    jitter: float = 0.1
    seed: int = 0
    patience: int = 0

    def __post_init__(self) -> None:
        shares = {"clean_share": 1, "rollout_share": 1}
        check_numbers(self, {"steps": 1, "batch": 1, "text_batch": 1, "reuse": 1}, {**shares, "seed": MAX_SEED})
        check_cfg_scale(self.scale)

    @property
    def kappa(self) -> float:
        """Harm weight of the target."""
        return kappa(self.scale)
