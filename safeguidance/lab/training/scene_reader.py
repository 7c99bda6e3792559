"""A training aid: heads that read the whole scene from the text encoder's end state.

Only used while the text encoder is trained (they bind colours and places to things early); never shipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ...testbed.captions import Caption
from ...testbed.world import BACKGROUNDS, COLOURS, POSITIONS, STYLES, THINGS


class SceneReader(nn.Module):
    """Linear heads for background, style and, for both things in order of mention, kind, colour and place.

    Args:
        width: channels of the end state.
        operations: namespace the layers come from.
    """

    def __init__(self, width: int, operations: Any = nn) -> None:
        super().__init__()
        per_thing = (len(THINGS) + 1, len(COLOURS), len(POSITIONS))
        self.sizes = (len(BACKGROUNDS), len(STYLES), *per_thing, *per_thing)
        self.heads = operations.Linear(width, sum(self.sizes))

    def forward(self, end_state: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits of every head for end states ``[B, D]``."""
        logits: tuple[torch.Tensor, ...] = self.heads(end_state).split(self.sizes, dim=-1)
        return logits

    def loss(self, end_state: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over the attributes that the caption mentions (targets of -1 are left out)."""
        losses = [
            functional.cross_entropy(logits, target, ignore_index=-1, reduction="sum")
            / (target >= 0).sum().clamp(min=1)
            for logits, target in zip(self(end_state), targets.unbind(1), strict=True)
        ]
        return torch.stack(losses).mean()

    def right(self, end_state: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Whether every mentioned attribute is read correctly, ``[B]`` bool."""
        hits = [
            (logits.argmax(-1) == target) | (target < 0)
            for logits, target in zip(self(end_state), targets.unbind(1), strict=True)
        ]
        return torch.stack(hits).all(0)


def targets(captions: Sequence[Caption]) -> torch.Tensor:
    """Class indices ``[B, 8]`` for the heads; -1 where the caption does not say."""

    def class_index(caption: Caption, name: str, names: Sequence[str]) -> int:
        return list(names).index(name) if f" {name} " in f" {caption.text} " else -1

    rows = []
    for caption in captions:
        scene = caption.scene
        row = [class_index(caption, scene.background, BACKGROUNDS), STYLES.index(scene.style)]
        for i in range(2):
            if i < len(scene.things):
                thing = scene.things[i]
                # a place name inside another ("left" in "top left") is harmless: it names the same words
                row += [
                    THINGS.index(thing.kind),
                    class_index(caption, thing.colour, list(COLOURS)),
                    class_index(caption, thing.position, list(POSITIONS)),
                ]
            else:
                row += [len(THINGS), -1, -1]
        rows.append(row)
    return torch.tensor(rows)
