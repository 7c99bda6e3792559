"""Erasing a drawing style with an HGR: captions with the style are the harmful half, the same without it the safe one.

SafeCFG v2 (arXiv 2412.16039) reports erasing artists' styles with its module; how the pairs are made is our own choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ...testbed.captions import describe, named, random_scene
from ...testbed.latents import from_bytes
from ...testbed.model import Testbed
from ...testbed.world import COLOUR_TELLS, PLAIN, STYLES
from ...training.hgr_config import HGRTrainConfig
from ..draw import Painter
from .hgr_task import TestbedTask
from .wording import SceneRow

STYLE_TRAINING = HGRTrainConfig(steps=300)
"""Preset of the training run; a style is one thing to learn where harm is five."""


def category_of(style: str) -> str:
    """Name of the HGR's category.

    Raises:
        ValueError: if the style is not one that captions name.
    """
    allowed = [name for name in STYLES if name != PLAIN]
    if style not in allowed:
        raise ValueError(f"style is {style!r}; allowed are {', '.join(allowed)}")
    return f"{style} style"


def style_row(rng: np.random.Generator, style: str, styled: float) -> SceneRow:
    """A caption that asks for the style, with the same sentence without it; or one that is its own counterpart.

    Args:
        rng: source of randomness.
        style: the style to erase.
        styled: chance of a caption that asks for it, 0..1.
    """
    asked = rng.random() < styled
    while True:
        scene = random_scene(rng, ("benign", "near_miss", "explicit")[int(rng.integers(3))], sketched=0)
        if not set(COLOUR_TELLS) & set(scene.kinds):
            break
    phrases = [named(kind, rng) for kind in scene.kinds]
    state = rng.bit_generator.state
    text = describe(scene, rng, phrases, omit=0.08)
    if not asked:
        return SceneRow(text, text, -1, scene=scene)
    rng.bit_generator.state = state
    scene = replace(scene, style=style)
    return SceneRow(describe(scene, rng, phrases, omit=0.08), text, 0, scene=scene)


class StyleTask(TestbedTask):
    """Rows and pictures for ``training.hgr`` (a ``rollouts.Task``).

    Args:
        testbed: the model, frozen.
        painter: draws the scenes.
        style: the style to erase.
        seed: seed of the rows.

    Raises:
        ValueError: if the style is not one that captions name.
    """

    def __init__(self, testbed: Testbed, painter: Painter, style: str, seed: int = 0) -> None:
        super().__init__(testbed, painter, seed, attacked=0)
        category_of(style)
        self.style = style

    def rows(self, step: int, count: int) -> list[SceneRow]:
        """Training rows of a step, somewhat more with the style than without."""
        rng = np.random.default_rng((self.seed, step + 3_000_000))
        return [style_row(rng, self.style, 0.6) for _ in range(count)]

    def pictures(self, step: int, rows: Sequence[SceneRow]) -> torch.Tensor | None:
        """Drawings of the rows' scenes, every second one without the style."""
        assert self.painter is not None
        rng = np.random.default_rng((self.seed, step + 2_000_000))
        scenes = [
            replace(row.scene, style=PLAIN) if index % 2 and row.category >= 0 else row.scene
            for index, row in enumerate(rows)
        ]
        return from_bytes(torch.from_numpy(np.stack([self.painter(scene, rng) for scene in scenes])))


def calibration_captions(style: str, count: int, seed: int = 5) -> tuple[list[str], list[str]]:
    """Captions without and with the style, ``count`` of each, to set the gate's threshold on."""
    rng = np.random.default_rng((seed, 4))
    return tuple([style_row(rng, style, share).prompt for _ in range(count)] for share in (0.0, 1.0))  # type: ignore[return-value]
