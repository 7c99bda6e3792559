"""Maps of where a method acted: as masks, and as colours over a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from einops import reduce
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from .trace import RunRecord

_HEAT = ((0.0, (20, 16, 60)), (0.35, (130, 30, 120)), (0.65, (236, 90, 50)), (1.0, (255, 235, 120)))


def effect_mask(run: RunRecord, batch: int, height: int, width: int) -> torch.Tensor:
    """Where the method changed the prediction, ``[batch, height, width]``, 0..1 (1: the run's strongest place).

    All zeros where it was not measured or nothing changed. Further leading axes of the map (frames) are averaged; with
    more pictures than samples, samples are used in turn.
    """
    if run.effect is None:
        return torch.zeros(batch, height, width)
    effect = flat(run.effect)
    if effect.ndim < 3:
        return torch.zeros(batch, height, width)
    resized = functional.interpolate(effect[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
    shown = share(resized, float(resized.max()))
    return shown[torch.arange(batch) % len(shown)]


def flat(effect: torch.Tensor) -> torch.Tensor:
    """A map without frames, in float32 on the CPU."""
    effect = effect.detach().float().cpu().nan_to_num()
    return reduce(effect, "b ... h w -> b h w", "mean") if effect.ndim > 3 else effect


def share(values: torch.Tensor, largest: float) -> torch.Tensor:
    """Values over the largest one, 0..1."""
    return (values / max(largest, torch.finfo(torch.float32).tiny)).clamp(0, 1)


def to_image(pixels: torch.Tensor) -> Image.Image:
    """A picture ``[H, W, 3]`` in 0..1."""
    values = (pixels.detach().float().cpu().nan_to_num().clamp(0, 1) * 255 + 0.5).to(torch.uint8)
    return Image.fromarray(values[..., :3].numpy())


def heat_image(values: torch.Tensor) -> Image.Image:
    """A map ``[H, W]`` in 0..1 in colours."""
    return Image.fromarray((_coloured(values.numpy()) + 0.5).astype(np.uint8))


def overlay(run: RunRecord, picture: Image.Image | None, index: int) -> Image.Image:
    """A run's map in colours over the grey picture, or alone.

    Args:
        run: with an effect.
        picture: the finished one, or None.
        index: which sample.
    """
    assert run.effect is not None
    width, height = picture.size if picture else (run.effect.shape[-1], run.effect.shape[-2])
    heat = effect_mask(run, index + 1, height, width)[index].numpy()
    coloured = _coloured(heat)
    if picture is not None:
        grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float64)
        weight = (0.15 + 0.75 * heat)[..., None]
        coloured = (1 - weight) * grey + weight * coloured
    return Image.fromarray((coloured + 0.5).astype(np.uint8))


def _coloured(heat: NDArray[Any]) -> NDArray[Any]:
    stops = np.array([stop for stop, _ in _HEAT])
    colours = np.array([colour for _, colour in _HEAT], dtype=np.float64)
    return np.stack([np.interp(heat, stops, colours[:, channel]) for channel in range(3)], axis=-1)
