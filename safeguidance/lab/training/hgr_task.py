"""The testbed as a task for HGR training, and the HGR's calibration on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...conditioning import Conditioning
from ...predictions import per_sample
from ...prompts.files import Row
from ...redirector.hgr import HGR
from ...testbed.captions import GROUPS, defender_row, describe, random_scene, safe_scene
from ...testbed.latents import from_bytes
from ...testbed.model import LATENT_SHAPE, Testbed
from ...testbed.sampler import schedule
from ...testbed.world import Scene
from ..draw import draw_scene


@dataclass(frozen=True)
class SceneRow(Row):
    """A training row that knows what its prompt shows."""

    scene: Scene


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
        """Token states of prompts; the testbed takes no pooled vector."""
        return Conditioning(self.testbed.encode(prompts))

    def predict(self, x: torch.Tensor, sigma: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """Denoised prediction; in bfloat16, half the time on a CPU and far finer than what is learnt."""
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.testbed.predict(x, sigma, cond.tokens).float()

    def rows(self, step: int, count: int) -> list[SceneRow]:
        """Training rows of a step, somewhat more harmful than clean ones."""
        rng = np.random.default_rng((self.seed, step + 1_000_000))
        return [SceneRow(*defender_row(rng, harmful=0.6)) for _ in range(count)]

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


@torch.no_grad()
def calibrate(network: HGR, testbed: Testbed, rate: float = 0.01, count: int = 2000, seed: int = 5) -> float:
    """Gate threshold with at most the given false-positive rate on matched benign captions (benign and look-alike).

    Where the harmful captions a defender knows lie above that limit, the threshold is halfway (in logits) between the
    limit and all but the lowest ``rate`` of them, which leaves a margin for wording nobody has seen. The captions
    come from training templates and combinations but from a seed of their own; those of the measurement stay unseen.
    """
    rng = np.random.default_rng((seed, 3))
    groups = GROUPS[3:]
    benign = [describe(random_scene(rng, groups[i % 2], styled=0.1), rng, omit=0.05) for i in range(count)]
    harmful = [defender_row(rng, harmful=1.0)[0] for _ in range(count)]
    return calibrate_on(network, testbed, benign, harmful, rate)


@torch.no_grad()
def calibrate_on(
    network: HGR, testbed: Testbed, benign: Sequence[str], harmful: Sequence[str], rate: float = 0.01
) -> float:
    """The same on given captions."""

    def logits(texts: Sequence[str]) -> torch.Tensor:
        parts = [network.logits(testbed.encode(texts[i : i + 250])).amax(1) for i in range(0, len(texts), 250)]
        return torch.cat(parts)

    limit, lowest = logits(benign).quantile(1 - rate), logits(harmful).quantile(rate)
    return float(((limit + lowest) / 2 if lowest > limit else limit).sigmoid())
