"""The losses of a training run as a small picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_COLOURS = {"score": (208, 60, 48), "gate": (70, 130, 180), "clean": (60, 150, 90)}
_COLOURS.update(redirect=_COLOURS["score"], keep=_COLOURS["clean"])
_OTHER, _TEXT, _GRID = (90, 100, 110), (32, 36, 44), (222, 226, 232)
_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 30, 40
_EMA_DECAY = 0.9
_MAX_POINTS = 2000


def draw_losses(history: Sequence[dict[str, float]], total: int) -> Image.Image:
    """Losses over the steps, each smoothed, on a logarithmic axis.

    Args:
        history: losses of each step from the first one on, by name.
        total: steps of the whole run, the width of the picture.
    """
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    curves = {name: _smoothed([max(row[name], 1e-8) for row in history]) for name in (history[0] if history else ())}
    values = [math.log10(v) for curve in curves.values() for v in curve] or [0.0]
    low, high = math.floor(min(values)), math.floor(max(values)) + 1

    def at(step: float, value: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / max(total - 1, 1)
        return x, _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - math.log10(value)) / (high - low)

    for power in range(low, high + 1):
        y = at(0, 10.0**power)[1]
        draw.line([(_LEFT, y), (_WIDTH - _RIGHT, y)], fill=_GRID)
        draw.text((_LEFT - 8, y), f"{10.0**power:g}", fill=_TEXT, font=font, anchor="rm")
    for name, curve in curves.items():
        stride = max(1, len(curve) // _MAX_POINTS)
        points = [at(step, value) for step, value in enumerate(curve)][::stride]
        draw.line(points if len(points) > 1 else points * 2, fill=_COLOURS.get(name, _OTHER), width=2)
    for text, place, anchor, colour in _labels(curves, len(history), total, font):
        draw.text(place, text, fill=colour, font=font, anchor=anchor)
    return image


_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_Label = tuple[str, tuple[float, float], str, tuple[int, int, int]]


def _labels(curves: dict[str, list[float]], step: int, total: int, font: _Font) -> list[_Label]:
    """Last value of each curve below the plot, the step above it: they never share a line."""
    labels: list[_Label] = [(f"step {step} of {total}", (_WIDTH - _RIGHT, _TOP / 2), "rm", _TEXT)]
    x = float(_LEFT)
    for name, curve in curves.items():
        text = f"{name} {curve[-1]:.3g}"
        labels.append((text, (x, _HEIGHT - 12), "lm", _COLOURS.get(name, _OTHER)))
        x += font.getlength(text) + 24
    return labels


def _smoothed(values: Sequence[float]) -> list[float]:
    smoothed: list[float] = []
    for value in values:
        smoothed.append(value if not smoothed else _EMA_DECAY * smoothed[-1] + (1 - _EMA_DECAY) * value)
    return smoothed
