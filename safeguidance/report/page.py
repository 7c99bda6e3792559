"""A canvas for reports, in units of its width: letters are as large as a node of an example shows them readably."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

WIDTH = 300
"""Units across: a little more than the node has in an example, so letters of 15 are 10 pixels high at a zoom of 0.8."""
PIXELS = 1200
"""Pixels across of what comes out."""
_SCALE = 2 * PIXELS // WIDTH  # drawn larger and reduced, which smooths every edge

Ink = tuple[int, int, int]
Box = tuple[float, float, float, float]


class Page:
    """A page that grows downwards.

    Args:
        height: in units; cut off or filled with paper by ``tensor``.
        paper: its colour.
    """

    def __init__(self, height: float, paper: Ink = (255, 255, 255)) -> None:
        self._size = (PIXELS, round(height * PIXELS / WIDTH))
        self.image = Image.new("RGB", (2 * self._size[0], 2 * self._size[1]), paper)
        self.draw = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, text: str, size: int, ink: Ink, align: str = "left") -> None:
        """A line of text; ``align`` says where x lies in it: left, centre, right."""
        shift = {"left": 0.0, "centre": 0.5, "right": 1.0}[align] * measure(text, size)
        self.draw.text(((x - shift) * _SCALE, y * _SCALE), text, fill=ink, font=_font(size))

    def box(self, box: Box, fill: Ink, radius: float = 0) -> None:
        """A filled box with round corners; none where it has no area."""
        x0, y0, x1, y1 = (value * _SCALE for value in box)
        if x1 - x0 >= 1 and y1 - y0 >= 1:
            limit = min(radius * _SCALE, (x1 - x0) / 2, (y1 - y0) / 2)
            self.draw.rounded_rectangle((x0, y0, x1 - 1, y1 - 1), limit, fill=fill)

    def line(self, points: Sequence[tuple[float, float]], ink: Ink, width: float = 0.5) -> None:
        """A line through points."""
        self.draw.line([(x * _SCALE, y * _SCALE) for x, y in points], ink, max(1, round(width * _SCALE)), joint="curve")

    def dashed(self, x: float, top: float, bottom: float, ink: Ink) -> None:
        """A dashed line from top to bottom."""
        y = top
        while y < bottom:
            self.line([(x, y), (x, min(y + 3, bottom))], ink, 1)
            y += 5

    def paste(self, picture: Image.Image, x: float, y: float, edge: float) -> None:
        """Put a picture into a square, centred, at its own proportions."""
        longest = max(picture.size)
        size = tuple(max(1, round(side * edge * _SCALE / longest)) for side in picture.size)
        small = longest * 2 <= edge * _SCALE
        resized = picture.resize((size[0], size[1]), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
        left, top = (round(at * _SCALE + (edge * _SCALE - side) / 2) for at, side in zip((x, y), size, strict=True))
        self.image.paste(resized, (left, top))

    def tensor(self) -> torch.Tensor:
        """The page as an IMAGE, ``[1, height, 1200, 3]``, 0..1."""
        final = self.image.resize(self._size, Image.Resampling.BOX)
        return torch.from_numpy(np.asarray(final, dtype=np.float32) / 255)[None]


_FONTS: dict[int, ImageFont.ImageFont | ImageFont.FreeTypeFont] = {}


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    if size not in _FONTS:
        _FONTS[size] = ImageFont.load_default(size * _SCALE)
    return _FONTS[size]


def measure(text: str, size: int) -> float:
    """Width of a line of text, in units."""
    return _font(size).getlength(text) / _SCALE


def fit(text: str, size: int, width: float) -> str:
    """The text, shortened with three dots where it does not fit."""
    if measure(text, size) <= width:
        return text
    while text and measure(text + "...", size) > width:
        text = text[:-1]
    return text.rstrip() + "..."


def wrap(text: str, size: int, width: float, most: int) -> list[str]:
    """The text in lines that fit; what is beyond ``most`` lines is left out, with three dots."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and measure(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    lines = [fit(line, size, width) for line in lines]
    if len(lines) > most:
        lines = [*lines[: most - 1], fit(f"{lines[most - 1]} ...", size, width)]
    return lines
