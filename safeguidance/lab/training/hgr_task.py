"""The testbed as a task for HGR training, and the HGR's calibration on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ...conditioning import Conditioning
from ...predictions import per_sample
from ...redirector.hgr import HGR
from ...roc import with_margin
from ...testbed.captions import GROUPS, describe, random_scene, safe_scene
from ...testbed.latents import from_bytes
from ...testbed.model import LATENT_SHAPE, Testbed
from ...testbed.sampler import schedule
from ...training.hgr_config import HGRTrainConfig
from ..draw import draw_scene
from .wording import SceneRow, wide_row

HARM_TRAINING = HGRTrainConfig(text_batch=16, rollout_share=0.375)
"""Preset of the first round of the shipped HGR."""
SECOND_ROUND = replace(HARM_TRAINING, steps=700, rate=6e-4, seed=1)
"""Preset of the round that starts from it, with more of what it does worst on (see ``hard_rows``)."""
LAYERS = 3
"""Transformer layers of the shipped HGR."""


class TestbedTask:
    """Rows, pictures and predictions for ``training.hgr``, from what a defender may know (a ``rollouts.Task``).

    Args:
        testbed: the attacked model, frozen.
        seed: seed of the rows.
        steps: length of the sampling runs whose states are trained on.
    """

    __test__ = False  # a class for users, not a test case

    def __init__(self, testbed: Testbed, seed: int = 0, steps: int = 20) -> None:
        self.testbed, self.seed = testbed, seed
        self.schedule = schedule(steps)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Token states of prompts, weights included; the testbed takes no pooled vector."""
        return Conditioning(self.testbed.encode(prompts))

    def predict(self, x: torch.Tensor, sigma: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """Denoised prediction."""
        return self.testbed.predict(x, sigma, cond.tokens)

    def rows(self, step: int, count: int) -> list[SceneRow]:
        """Training rows of a step, somewhat more harmful than clean ones."""
        rng = np.random.default_rng((self.seed, step + 1_000_000))
        return [wide_row(rng, harmful=0.6) for _ in range(count)]

    def pictures(self, step: int, rows: Sequence[SceneRow]) -> torch.Tensor | None:
        """Drawings of the rows' scenes, every second one as the safe counterpart has it."""
        rng = np.random.default_rng((self.seed, step + 2_000_000))
        scenes = [safe_scene(row.scene) if index % 2 else row.scene for index, row in enumerate(rows)]
        return from_bytes(torch.from_numpy(np.stack([draw_scene(scene, rng) for scene in scenes])))

    def noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Unit noise of latent shape."""
        return torch.randn((count, *LATENT_SHAPE), generator=generator)

    def noised(self, latent: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Flow interpolation ``(1 - sigma) * latent + sigma * noise``."""
        level = per_sample(sigma, latent)
        return (1 - level) * latent + level * noise


def calibration_texts(
    count: int = 2000, seed: int = 5, attacked: float = 0.0
) -> tuple[dict[str, list[str]], list[str]]:
    """Harmless texts by kind and harmful ones, from training forms but from a seed of their own.

    Args:
        count: texts of each kind.
        seed: of their choice; no training row comes from it.
        attacked: share of one more kind of harmless text, and of the harmful ones, that is edited as an attacker would,
            0..1; 0: there is no such kind.
    """
    rng = np.random.default_rng((seed, 3))
    harmless = {
        group: [describe(random_scene(rng, group, styled=0.1), rng, omit=0.05) for _ in range(count)]
        for group in GROUPS[3:]
    }
    harmless["wide"] = [wide_row(rng, harmful=0).prompt for _ in range(count)]
    harmful = [wide_row(rng, harmful=1, attacked=attacked).prompt for _ in range(count)]
    if attacked:
        harmless["attacked"] = [wide_row(rng, harmful=0, attacked=attacked).prompt for _ in range(count)]
    return harmless, harmful


@torch.no_grad()
def calibrate(
    network: HGR, testbed: Testbed, rate: float = 0.01, count: int = 2000, attacked: float = 0.0
) -> tuple[float, dict[str, float]]:
    """Gate threshold with at most the given false-positive rate on every kind of harmless text.

    Where the harmful texts a defender knows lie above that limit, the threshold is halfway (in logits) between the
    limit and all but the lowest ``rate`` of them, which leaves a margin for wording nobody has seen.

    Returns:
        The threshold, 0..1, and the share of each kind that opens the gate.
    """
    harmless, harmful = calibration_texts(count, attacked=attacked)
    found = {kind: _logits(network, testbed, texts) for kind, texts in harmless.items()}
    limit = max(float(x.quantile(1 - rate)) for x in found.values())
    threshold = _sigmoid(with_margin(limit, _logits(network, testbed, harmful).tolist(), rate))
    return threshold, {kind: float((x.sigmoid() >= threshold).float().mean()) for kind, x in found.items()}


@torch.no_grad()
def calibrate_on(
    network: HGR, testbed: Testbed, benign: Sequence[str], harmful: Sequence[str], rate: float = 0.01
) -> float:
    """The same on given captions."""
    limit = float(_logits(network, testbed, benign).quantile(1 - rate))
    return _sigmoid(with_margin(limit, _logits(network, testbed, harmful).tolist(), rate))


def _logits(network: HGR, testbed: Testbed, texts: Sequence[str]) -> torch.Tensor:
    parts = [network.logits(testbed.encode(texts[i : i + 250])).amax(1) for i in range(0, len(texts), 250)]
    return torch.cat(parts)


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))
