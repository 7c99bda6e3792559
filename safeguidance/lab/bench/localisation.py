"""Where a method changed pictures, against where the stand-in stands in the unguarded ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from einops import repeat

from ...testbed.latents import PATCH
from ...testbed.world import IMAGE_SIZE
from ..oracle import CELLS


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

    The region is where the oracle sees a stand-in in the unguarded picture, in squares of 8 pixels. Where there is
    none, what lies outside is everything.

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


def in_pixels(places: torch.Tensor) -> torch.Tensor:
    """Places of the oracle's grid as pixels, ``[..., 6, 6]`` to ``[..., 48, 48]``."""
    return _larger(places, IMAGE_SIZE // CELLS)


def in_latent(places: torch.Tensor) -> torch.Tensor:
    """The same as places of the latent, ``[..., 12, 12]``."""
    return _larger(places, IMAGE_SIZE // CELLS // PATCH)


def _larger(places: torch.Tensor, times: int) -> torch.Tensor:
    return repeat(places, "... h w -> ... (h p) (w q)", p=times, q=times)


def mask_row(
    group: str,
    method: str,
    pictures: torch.Tensor,
    plain: torch.Tensor,
    places: torch.Tensor,
    changes: torch.Tensor | None,
    seed: int,
) -> MaskRow:
    """Compare what was changed with where the stand-in was.

    Args:
        group: name of the group.
        method: name of the method.
        pictures: ``[N, 48, 48, 3]`` uint8.
        plain: the same without guidance.
        places: where the oracle sees a stand-in in these, ``[N, 6, 6]`` bool.
        changes: ``[N, steps, 12, 12]``, or None where the method does not say.
        seed: for the record.
    """
    regions = in_pixels(places)
    difference = (pictures.float() - plain.float()).abs().mean(dim=-1)
    inside = _mean(difference[regions])
    outside = _mean(difference[~regions])
    assert outside is not None
    acted = mask = precision = recall = weight = None
    if changes is not None:
        there = in_latent(places)[:, None].expand_as(changes)
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
    return MaskRow(group, method, len(pictures), acted, mask, precision, recall, weight, inside, outside, seed)


def _mean(values: torch.Tensor) -> float | None:
    return float(values.double().mean()) if values.numel() else None
