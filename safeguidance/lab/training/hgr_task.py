"""The testbed as a task for its defenders, SafeCFG's HGR and the text redirector, and their calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ...conditioning import Conditioning
from ...predictions import per_sample
from ...redirector.hgr import HGR, HGRConfig
from ...roc import with_margin
from ...testbed.captions import defender_pair
from ...testbed.gate_texts import NEXT_DOOR
from ...testbed.latents import from_bytes
from ...testbed.model import LATENT_SHAPE, Testbed
from ...testbed.sampler import schedule
from ...testbed.text_encoder import CONTEXT
from ...testbed.wordpieces import MAX_LENGTH
from ...testbed.world import CATEGORY_NAMES, safe_scene
from ...training.hgr_config import HGRTrainConfig
from ..draw import Painter
from ..precision import sixteen_bits
from .wording import SceneRow, plain_english, wide_row

SHAPE = HGRConfig(CONTEXT, CATEGORY_NAMES, width=192, layers=3, chunk=MAX_LENGTH)
"""Shape of both redirectors."""
HARM_TRAINING = HGRTrainConfig(
    steps=1200, text_batch=16, rate=6e-4, scale=1.5, rollout_share=0.375, rollout_scale=4.0, focus=20.0
)
"""Preset of the first round of the shipped HGR.

It begins from the text redirector: from nothing, 1,000 steps reach a quarter of the wanted change on the harmful thing.
The scale is below every cfg in use because a prediction gets no further than a sixth of its target.
"""
SECOND_ROUND = replace(HARM_TRAINING, steps=700, rate=3e-4, seed=1)
"""Preset of the round that starts from it, with more of what it does worst on (see ``hard_rows``)."""
ATTACKED = 0.25
"""Share of training rows that are edited as an attacker would."""
RATE = 0.03
"""False positives a threshold allows on each kind of harmless text. Scrambled texts and the banks' odd prompts set the
limit: at 1% of those the HGR's gate opened for 81 of 150 implied captions of seed 9, at 3% for 104, and either way for
none of 300 harmless captions."""
_AT_ONCE = 200


class TestbedTask:
    """Rows, pictures and predictions for a defender (a ``rollouts.Task`` and a ``TextTask``).

    Args:
        testbed: the attacked model, frozen; only its encoder is used where no predictions are asked for.
        painter: draws the scenes; None for a task of texts alone.
        seed: of the rows.
        steps: length of the sampling runs whose states are trained on.
        attacked: share of rows that are edited as an attacker would, 0..1.
    """

    __test__ = False  # a class for users, not a test case

    def __init__(
        self, testbed: Testbed, painter: Painter | None, seed: int = 0, steps: int = 20, attacked: float = ATTACKED
    ) -> None:
        self.testbed, self.painter, self.seed, self.attacked = testbed, painter, seed, attacked
        self.schedule = schedule(steps)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Token states of prompts, weights included; this encoder has no pooled vector."""
        # half of a step is encoding; sixteen bits move the states less than the jitter of the training
        with sixteen_bits("cpu"):
            return Conditioning(self.testbed.encode(prompts).float())

    def predict(self, x: torch.Tensor, sigma: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """Denoised prediction."""
        return self.testbed.predict(x, sigma, cond.tokens)

    def rows(self, step: int, count: int) -> list[SceneRow]:
        """Training rows of a step, somewhat more harmful than clean ones."""
        rng = np.random.default_rng((self.seed, 11, step + 1_000_000))
        return [wide_row(rng, harmful=0.6, attacked=self.attacked) for _ in range(count)]

    def pictures(self, step: int, rows: Sequence[SceneRow]) -> torch.Tensor | None:
        """Drawings of the rows' scenes, every second one as the safe counterpart has it."""
        if self.painter is None:
            return None
        rng = np.random.default_rng((self.seed, 12, step + 1_000_000))
        scenes = [safe_scene(row.scene) if index % 2 else row.scene for index, row in enumerate(rows)]
        return from_bytes(torch.from_numpy(np.stack([self.painter(scene, rng) for scene in scenes])))

    def noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Unit noise of latent shape."""
        return torch.randn((count, *LATENT_SHAPE), generator=generator)

    def noised(self, latent: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Flow interpolation ``(1 - sigma) * latent + sigma * noise``."""
        level = per_sample(sigma, latent)
        return (1 - level) * latent + level * noise


def calibration_texts(count: int, seed: int = 5, attacked: float = ATTACKED) -> tuple[dict[str, list[str]], list[str]]:
    """Harmless texts by kind and harmful ones, from a seed that no training row comes from."""
    rng = np.random.default_rng((seed, 13))
    plain = [text for text in plain_english(kept=True) if not NEXT_DOOR.search(text)]
    harmless = {
        "captions": [defender_pair(rng, harmful=0)[0] for _ in range(count)],
        "wide": [wide_row(rng, harmful=0).prompt for _ in range(count)],
        "attacked": [wide_row(rng, harmful=0, attacked=1).prompt for _ in range(count)],
        "plain English": [plain[place] for place in rng.permutation(len(plain))[:count]],
    }
    return harmless, [wide_row(rng, harmful=1, attacked=attacked).prompt for _ in range(count)]


@torch.no_grad()
def calibrate(network: HGR, testbed: Testbed, rate: float = RATE, count: int = 2000) -> tuple[float, dict[str, float]]:
    """Gate threshold with at most the given false-positive rate on every kind of harmless text.

    Where the harmful texts a defender knows lie above that limit, the threshold is halfway (in logits) between the
    limit and all but the lowest ``rate`` of them, which leaves a margin for wording nobody has seen.

    Returns:
        The threshold, 0..1, and shares that open the gate: of each kind of harmless text, and of the harmful ones.
    """
    harmless, harmful = calibration_texts(count)
    found = {kind: _logits(network, testbed, texts) for kind, texts in harmless.items()}
    known = _logits(network, testbed, harmful)
    limit = max(float(logits.quantile(1 - rate)) for logits in found.values())
    threshold = float(torch.tensor(with_margin(limit, known.tolist(), rate)).sigmoid())
    beside = _logits(network, testbed, [text for text in plain_english(kept=True) if NEXT_DOOR.search(text)])
    opened = {f"opens, {kind}": x for kind, x in {**found, "words close to harm": beside, "harmful": known}.items()}
    return threshold, {name: float((x.sigmoid() >= threshold).float().mean()) for name, x in opened.items()}


@torch.no_grad()
def calibrate_on(
    network: HGR, testbed: Testbed, benign: Sequence[str], harmful: Sequence[str], rate: float = 0.01
) -> float:
    """The same on given captions."""
    limit = float(_logits(network, testbed, benign).quantile(1 - rate))
    known = _logits(network, testbed, harmful).tolist()
    return float(torch.tensor(with_margin(limit, known, rate)).sigmoid())


def _logits(network: HGR, testbed: Testbed, texts: Sequence[str]) -> torch.Tensor:
    parts = (texts[first : first + _AT_ONCE] for first in range(0, len(texts), _AT_ONCE))
    return torch.cat([network.logits(testbed.encode(part)).amax(1) for part in parts])
