"""The losses of a training run as a small picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_INKS = {"score": (208, 60, 48), "gate": (70, 130, 180), "clean": (60, 150, 90)}
_INKS.update(redirect=_INKS["score"], keep=_INKS["clean"])
_WIDTH, _HEIGHT, _LEFT, _LOW = 640, 320, 70, 40


def draw_losses(history: Sequence[dict[str, float]], total: int) -> Image.Image:
    """Losses over the steps, each smoothed, on a logarithmic axis.

    Args:
        history: losses per step, by name.
        total: steps of the whole run, the width of the picture.
    """
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    curves = {name: _smoothed([max(row[name], 1e-8) for row in history]) for name in (history[0] if history else ())}
    values = [math.log10(v) for curve in curves.values() for v in curve] or [0.0]
    low, high = math.floor(min(values)), math.floor(max(values)) + 1

    def at(step: float, value: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - 20) * step / max(total - 1, 1)
        return x, 20 + (_HEIGHT - 20 - _LOW) * (high - math.log10(value)) / (high - low)

    for power in range(low, high + 1):
        y = at(0, 10.0**power)[1]
        draw.line([(_LEFT, y), (_WIDTH - 20, y)], fill=(222, 226, 232))
        draw.text((_LEFT - 8, y), f"{10.0**power:g}", fill=(32, 36, 44), font=font, anchor="rm")
    for place, (name, curve) in enumerate(curves.items()):
        ink = _INKS.get(name, (90, 100, 110))
        points = [at(step, value) for step, value in enumerate(curve)]
        draw.line(points if len(points) > 1 else points * 2, fill=ink, width=2)
        text = f"{name} {curve[-1]:.3g}"
        draw.text((_LEFT + 10 + 180 * place, _HEIGHT - 12), text, fill=ink, font=font, anchor="lm")
    draw.text((_WIDTH - 20, _HEIGHT - 12), f"step {len(history)} of {total}", (32, 36, 44), font, anchor="rm")
    return image


def _smoothed(values: Sequence[float]) -> list[float]:
    out: list[float] = []
    for value in values:
        out.append(value if not out else 0.9 * out[-1] + 0.1 * value)
    return out
