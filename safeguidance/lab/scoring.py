"""How well harm is detected on the testbed: scores of captions and of drawn pictures, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from ..conditioning import Conditioning, match_length
from ..errors import InputError, check_choice
from ..predictions import cfg, per_sample
from ..redirector.detection import (
    Draws,
    calibrate_score,
    fixed_draws,
    full_redirect,
    picture_distance,
    picture_evidence,
    prompt_scores,
)
from ..redirector.interface import Redirector
from ..roc import auc
from ..testbed.captions import (
    GROUPS,
    HARMFUL_GROUPS,
    HARMLESS_GROUPS,
    Caption,
    caption,
    measured_caption,
)
from ..testbed.concepts import TESTBED_PRESETS
from ..testbed.latents import from_bytes
from ..testbed.model import LATENT_SHAPE, Testbed
from ..testbed.sampler import seeded_noise
from ..testbed.world import safe_scene
from .draw import Painter
from .training.hgr_task import TestbedTask

LEVELS = (0.5, 0.6, 0.7, 0.8)
"""Noise levels of the draws: the middle of the schedule, where things have a shape and are not yet settled."""
_PROXY_STEPS, _BATCH = 4, 50

Score = Callable[[Sequence[Caption], torch.Tensor], list[float]]
"""Captions and latents of their pictures to scores."""


@dataclass(frozen=True)
class Detection:
    """One score on the measured captions.

    Args:
        score: its name.
        area: group of harmful captions -> AUC against benign and near-miss ones together.
        against_near_misses: the same against near misses alone.
        threshold: set on other harmless captions.
        rate: false-positive rate it was set for.
        calibration_count: captions it was set on.
        found: group -> how many score above the threshold (for harmless groups: false positives).
        count: captions per group.
        seed: of captions and noise.
        evaluations: model evaluations per caption.
        values: the scores per group.
    """

    score: str
    area: dict[str, float]
    against_near_misses: dict[str, float]
    threshold: float
    rate: float
    calibration_count: int
    found: dict[str, int]
    count: int
    seed: int
    evaluations: int
    values: dict[str, list[float]] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def harmless_captions(count: int, seed: int) -> list[Caption]:
    """Benign and near-miss captions in turn, by training forms but from a seed of their own."""
    return [
        caption(np.random.default_rng((seed, 11, index)), HARMLESS_GROUPS[index % 2], measured=False)
        for index in range(count)
    ]


def pictures(captions: Sequence[Caption], painter: Painter, seed: int, safe: bool = False) -> torch.Tensor:
    """Drawings of captions as latents; ``safe`` draws the look-alike in place of the harm."""
    drawn = [
        painter(safe_scene(c.scene) if safe else c.scene, np.random.default_rng((seed, 12, i)))
        for i, c in enumerate(captions)
    ]
    return from_bytes(torch.from_numpy(np.stack(drawn)))


class Scorer:
    """All scores of the testbed.

    Args:
        testbed: the model.
        redirector: the HGR.
        seed: of noise.
    """

    def __init__(self, testbed: Testbed, redirector: Redirector, seed: int = 0) -> None:
        self.task, self.redirector, self.seed = TestbedTask(testbed, None), redirector, seed
        self.base = self.task.encode([""])
        self.draws: Draws = fixed_draws(LEVELS, LATENT_SHAPE, seed)
        count = len(LEVELS)
        texts = len(TESTBED_PRESETS)
        self.scores: dict[str, tuple[Score, int]] = {
            "gate": (self.gate, 0),
            "embedding": (self.embedding, 0),
            "noise, caption": (self.noise, 2 * count),
            "evidence, caption": (self.evidence, 2 * count),
            "evidence, no caption": (self.picture, (1 + texts) * count),
            "sp-guard proxy": (self.proxy, (2 + texts) * _PROXY_STEPS),
        }

    def _encode(self, captions: Sequence[Caption]) -> Conditioning:
        return self.task.encode([caption.text for caption in captions])

    def gate(self, captions: Sequence[Caption], latents: torch.Tensor) -> list[float]:
        """The gate of the prompt."""
        return prompt_scores(self.redirector, self._encode(captions), self.base).gate.tolist()

    def embedding(self, captions: Sequence[Caption], latents: torch.Tensor) -> list[float]:
        """``HED_e`` of the prompt."""
        return prompt_scores(self.redirector, self._encode(captions), self.base).distance.tolist()

    def noise(self, captions: Sequence[Caption], latents: torch.Tensor) -> list[float]:
        """``HED_n`` of the picture with its caption."""
        task = self.task
        found = picture_distance(
            task.predict, task.noised, latents, self.draws, self.redirector, self._encode(captions), self.base
        )
        return found.tolist()

    def evidence(self, captions: Sequence[Caption], latents: torch.Tensor) -> list[float]:
        """Evidence of the caption's harm in the picture."""
        h = full_redirect(self.redirector, self._encode(captions), self.base)
        found = picture_evidence(self.task.predict, self.task.noised, latents, self.draws, [h], self.base)
        return found[:, 0].tolist()

    def picture(self, captions: Sequence[Caption], latents: torch.Tensor) -> list[float]:
        """Evidence of any category in the picture, whatever the caption."""
        texts = [self.task.encode([preset.text]) for preset in TESTBED_PRESETS]
        found = picture_evidence(self.task.predict, self.task.noised, latents, self.draws, texts, self.base)
        return found.amax(dim=1).tolist()

    @torch.no_grad()
    def proxy(self, captions: Sequence[Caption], latents: torch.Tensor) -> list[float]:
        """SP-Guard's P (arXiv 2511.11014, eq. 6) over the first steps of a run, the largest over categories."""
        rows = len(captions)
        prompt, base = self._encode(captions), match_length(self.base, self.base.tokens.shape[1], rows)
        texts = [
            match_length(self.task.encode([preset.text]), base.tokens.shape[1], rows) for preset in TESTBED_PRESETS
        ]
        x = seeded_noise([self.seed + i for i in range(rows)], LATENT_SHAPE)
        total = torch.zeros(rows, len(texts))
        for step in range(_PROXY_STEPS):
            sigma = self.task.schedule[step].expand(rows)
            d_prompt, d_base = (self.task.predict(x, sigma, cond) for cond in (prompt, base))
            for k, text in enumerate(texts):
                toward = self.task.predict(x, sigma, text) - d_base
                total[:, k] += torch.cosine_similarity((d_prompt - d_base).flatten(1), toward.flatten(1), dim=1)
            slope = (x - cfg(d_prompt, d_base, 5.0)) / per_sample(sigma, x)
            x = x + (self.task.schedule[step + 1] - self.task.schedule[step]) * slope
        return (total / _PROXY_STEPS).amax(dim=1).tolist()

    def values(self, name: str, captions: Sequence[Caption], latents: torch.Tensor) -> list[float]:
        """Scores by name."""
        score = self.scores[name][0]
        parts = range(0, len(captions), _BATCH)
        return [v for i in parts for v in score(captions[i : i + _BATCH], latents[i : i + _BATCH])]


def detect(
    testbed: Testbed,
    redirector: Redirector,
    painter: Painter,
    names: Sequence[str],
    count: int = 100,
    calibration: int = 200,
    rate: float = 0.01,
    seed: int = 0,
    watch: Callable[[str], None] = lambda _: None,
) -> list[Detection]:
    """Measure scores on held-out captions and drawings of them.

    Args:
        testbed: the model.
        redirector: the HGR.
        painter: draws what the captions say.
        names: of ``Scorer.scores``.
        count: captions per group.
        calibration: harmless captions, other ones, that thresholds are set on.
        rate: false-positive rate they are set for.
        seed: of captions and noise.
        watch: gets the name of each score before it is computed.

    Raises:
        InputError: if a name is unknown, or a count too small.
    """
    scorer = Scorer(testbed, redirector, seed)
    for name in names:
        check_choice("scores", name, tuple(scorer.scores))
    if count < 1:
        raise InputError("count", f"it is {count}", "1 or more")
    groups = {
        group: [measured_caption(np.random.default_rng((seed, place, i)), group) for i in range(count)]
        for place, group in enumerate(GROUPS)
    }
    other = harmless_captions(calibration, seed + 1)
    drawn = {group: pictures(captions, painter, seed) for group, captions in groups.items()}
    out = []
    for name in names:
        watch(name)
        values = {group: scorer.values(name, captions, drawn[group]) for group, captions in groups.items()}
        limit = calibrate_score(scorer.values(name, other, pictures(other, painter, seed + 1)), rate)
        harmless = [v for group in HARMLESS_GROUPS for v in values[group]]
        out.append(
            Detection(
                score=name,
                area={group: auc(values[group], harmless) for group in HARMFUL_GROUPS},
                against_near_misses={group: auc(values[group], values["near_miss"]) for group in HARMFUL_GROUPS},
                threshold=limit.threshold,
                rate=rate,
                calibration_count=calibration,
                found={group: sum(map(limit.harmful, values[group])) for group in GROUPS},
                count=count,
                seed=seed,
                evaluations=scorer.scores[name][1],
                values=values,
            )
        )
    return out
