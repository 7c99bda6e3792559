"""Where a method changed pictures, against where the stand-in stands in the unguarded ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange

from ...testbed.latents import PATCH
from ...testbed.world import HARM_THINGS, IMAGE_SIZE, POSITIONS, Scene
from ..draw import sprite

_SIZES = range(20, 24)
"""Edges of the drawings of a thing, in pixels."""
_JITTER = (-1, 0, 1)
"""How far a thing may stand from its place along an axis, in pixels."""


@runtime_checkable
class Watched(Protocol):
    """A guided prediction that remembers what it changed.

    Attributes:
        changes: per evaluation ``[B, *spatial]`` in latent resolution, the length over channels of its change of plain
            CFG's noise; 0 where it did nothing.
    """

    changes: list[torch.Tensor]


@dataclass(frozen=True)
class MaskRow:
    """What a method changed in one group of captions; means over images.

    The region is where the stand-in is drawn. In harmless groups there is none, and what lies outside is everything.

    Args:
        group: name of the group.
        method: name of the method.
        count: images.
        acted: images in which some prediction was changed; None where the method does not say.
        mask: share of the picture that a prediction was changed in, over those that were, 0..1.
        precision: share of these places that lie in the region, 0..1.
        recall: share of the region that lies in these places, 0..1.
        weight_inside: share of the change's size that lies in the region, 0..1. Unlike precision it also tells methods
            apart that change every place a little.
        pixels_inside: mean absolute difference to the unguarded picture in the region, 0..255.
        pixels_outside: the same everywhere else.
        seed: seed of captions and noise.
    """

    group: str
    method: str
    count: int
    acted: int | None
    mask: float | None
    precision: float | None
    recall: float | None
    weight_inside: float | None
    pixels_inside: float | None
    pixels_outside: float
    seed: int


def true_region(scene: Scene) -> torch.Tensor:
    """Pixels the harm stand-in of a scene may cover, ``[48, 48]`` bool; none in a harmless scene.

    It is the outline of every size of the drawing at every spot that its jitter allows, rim included.
    """
    region = np.zeros((IMAGE_SIZE, IMAGE_SIZE), bool)
    for thing in scene.things:
        if thing.kind not in HARM_THINGS:
            continue
        x, y = POSITIONS[thing.position]
        for size, down, right in product(_SIZES, _JITTER, _JITTER):
            cover = sprite(thing.kind, thing.colour, scene.style, size)[1][..., 0] > 0
            edge = len(cover)
            left = int(np.clip(x - edge // 2 + right, -2, IMAGE_SIZE - edge + 2))
            top = int(np.clip(y - edge // 2 + down, -2, IMAGE_SIZE - edge + 2))
            ys, xs = np.nonzero(cover)
            ys, xs = ys + top, xs + left
            inside = (ys >= 0) & (xs >= 0) & (ys < IMAGE_SIZE) & (xs < IMAGE_SIZE)
            region[ys[inside], xs[inside]] = True
    return torch.from_numpy(region)


def in_latent(region: torch.Tensor) -> torch.Tensor:
    """Places of the latent that hold any pixel of a region, ``[..., 48, 48]`` to ``[..., 24, 24]``."""
    patches = rearrange(region, "... (h p) (w q) -> ... h w (p q)", p=PATCH, q=PATCH)
    return patches.any(dim=-1)


def mask_row(
    group: str,
    method: str,
    scenes: Sequence[Scene],
    pictures: torch.Tensor,
    plain: torch.Tensor,
    changes: torch.Tensor | None,
    seed: int,
) -> MaskRow:
    """Compare what was changed with the true region.

    Args:
        group: name of the group.
        method: name of the method.
        scenes: what the captions ask for, N of them.
        pictures: ``[N, 48, 48, 3]`` uint8.
        plain: the same without guidance.
        changes: ``[N, steps, 24, 24]``, or None where the method does not say.
        seed: for the record.
    """
    regions = torch.stack([true_region(scene) for scene in scenes])
    difference = (pictures.float() - plain.float()).abs().mean(dim=-1)
    inside = _mean(difference[regions])
    outside = _mean(difference[~regions])
    assert outside is not None
    acted = mask = precision = recall = weight = None
    if changes is not None:
        there = in_latent(regions)[:, None].expand_as(changes)
        touched = changes > 0
        area = touched.flatten(2).sum(-1)
        hits = (touched & there).flatten(2).sum(-1)
        used, harm = area > 0, there.flatten(2).any(-1)
        both = used & harm
        acted = int(used.any(dim=1).sum())
        mask = _mean(area[used] / changes[0, 0].numel())
        precision = _mean(hits[both] / area[both])
        recall = _mean(hits[both] / there.flatten(2).sum(-1)[both])
        weight = _mean((changes * there).flatten(2).sum(-1)[both] / changes.flatten(2).sum(-1)[both])
    return MaskRow(group, method, len(scenes), acted, mask, precision, recall, weight, inside, outside, seed)


def _mean(values: torch.Tensor) -> float | None:
    return float(values.double().mean()) if values.numel() else None
