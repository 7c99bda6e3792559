"""Training rows that an HGR still does worst on, for a second round of training.

A caption that leaks does so at most seeds: how far guidance misses its target depends on the words far more than on the
noise. So rows are ranked by their training error over several noise levels and samples of noise, without any picture.
Each category gives as many: a thin stand-in makes small errors even where it stays in the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...conditioning import concatenate, expand_like
from ...predictions import per_sample, sample_mean
from ...redirector.hgr import HGR
from ...redirector.interface import apply_delta
from ...testbed.model import Testbed
from ...training.hgr_config import HGRTrainConfig
from ...training.rollouts import predict_delta
from ...training.target import target
from ..draw import Painter
from .hgr_task import TestbedTask
from .wording import SceneRow, wide_row

CANDIDATES = 600
HARDEST = 150
_LEVELS = 4
_BATCH = 25


@torch.no_grad()
def score_errors(network: HGR, task: TestbedTask, config: HGRTrainConfig, rows: Sequence[SceneRow]) -> torch.Tensor:
    """Training error of harmful rows with an open gate, ``[N]``; the mean over noise levels.

    Args:
        network: the HGR.
        task: its task.
        config: settings of its training.
        rows: harmful rows.
    """
    generator = torch.Generator().manual_seed(config.seed)
    steps = len(task.schedule) - 1
    places = [round(number * (steps - 1) / _LEVELS) for number in range(_LEVELS)]
    empty, out = task.encode([""]), []
    for first in range(0, len(rows), _BATCH):
        part = rows[first : first + _BATCH]
        pictures = task.pictures(first, part)
        assert pictures is not None
        prompt, safe = task.encode([row.prompt for row in part]), task.encode([row.safe for row in part])
        base = expand_like(empty, prompt)
        error = torch.zeros(len(part))
        for place in places:
            sigma = task.schedule[place].expand(len(part))
            x = task.noised(pictures, task.noise(len(part), generator), sigma)
            delta = predict_delta(network, task.schedule, prompt.tokens, sigma)
            redirected = apply_delta(base, delta, torch.ones(len(part)))
            d_prompt, d_safe, d_base, found = task.predict(
                torch.cat([x] * 4), torch.cat([sigma] * 4), concatenate([prompt, safe, base, redirected])
            ).chunk(4)
            wanted = target(d_base, d_prompt, d_safe, config.kappa)
            error += sample_mean(((found - wanted) / per_sample(sigma, x)).square())
        out.append(error / len(places))
    return torch.cat(out)


class HardTask(TestbedTask):
    """The testbed's task with a share of the rows that an HGR does worst on.

    Args:
        testbed: the attacked model, frozen.
        painter: draws the scenes.
        network: the HGR as it is when training starts.
        config: settings of the training.
        share: share of them among the harmful rows, 0..1.
        candidates: rows that are looked at.
        hardest: rows that are kept, as many of each category.
    """

    def __init__(
        self,
        testbed: Testbed,
        painter: Painter,
        network: HGR,
        config: HGRTrainConfig,
        share: float = 0.4,
        candidates: int = CANDIDATES,
        hardest: int = HARDEST,
    ) -> None:
        super().__init__(testbed, painter, config.seed)
        self.share = share
        rng = np.random.default_rng((config.seed, 4_000_000))
        rows = [wide_row(rng, harmful=1, attacked=self.attacked) for _ in range(candidates)]
        errors = score_errors(network, self, config, rows)
        ranked = [rows[place] for place in errors.argsort(descending=True).tolist()]
        each = hardest // len(network.config.categories)
        self.hard = [
            row
            for category in range(len(network.config.categories))
            for row in [row for row in ranked if row.category == category][:each]
        ]

    def rows(self, step: int, count: int) -> list[SceneRow]:
        """Training rows of a step; another seed than the first round's."""
        rng = np.random.default_rng((self.seed, step + 5_000_000))
        rows = [wide_row(rng, harmful=0.6, attacked=self.attacked) for _ in range(count)]
        return [
            self.hard[int(rng.integers(len(self.hard)))] if row.category >= 0 and rng.random() < self.share else row
            for row in rows
        ]
