"""Drawing scenes: drawings pasted on simple painted backgrounds, as they are or as a pencil sketch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ..testbed.world import IMAGE_SIZE, Scene, things

Pixels = NDArray[np.float32]
Box = tuple[int, int, int]
"""Left, top and edge of a thing's drawing in pixels."""
_ONE, _TWO = (32, 40), (21, 25)
"""Edges of a thing's drawing in pixels, smallest and largest: alone, and with another."""
_STRAY = 3
"""How far a thing stands from the middle of its place at most, in pixels."""


class Painter:
    """Draws scenes.

    Args:
        drawings: ``[N, 64, 64, 4]`` RGBA, in the order of ``things()``.
    """

    def __init__(self, drawings: NDArray[np.uint8]) -> None:
        self._place = {name: place for place, name in enumerate(things())}
        self._sizes: dict[tuple[int, int], Pixels] = {}
        self._drawings = drawings

    def __call__(self, scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
        """A picture ``[48, 48, 3]`` of a scene; size and place vary a little."""
        return self.paint(scene, rng)[0]

    def paint(self, scene: Scene, rng: np.random.Generator) -> tuple[NDArray[np.uint8], tuple[Box, ...]]:
        """A picture of a scene, and where its things are."""
        boxes = []
        canvas = background(scene.background, rng)
        pencil = scene.style == "pencil"
        if pencil:
            canvas = _sketched_ground(canvas)
        span = _ONE if len(scene.kinds) == 1 else _TWO
        for number, kind in enumerate(scene.kinds):
            edge = int(rng.integers(span[0], span[1] + 1))
            drawing = self._drawing(self._place[kind], edge)
            if pencil:
                drawing = _sketched(drawing)
            x, y = _corner(scene, number, edge, rng)
            part, alpha = canvas[y : y + edge, x : x + edge], drawing[..., 3:]
            part += alpha * (drawing[..., :3] - part)
            boxes.append((x, y, edge))
        return (canvas * 255 + 0.5).clip(0, 255).astype(np.uint8), tuple(boxes)

    def _drawing(self, place: int, edge: int) -> Pixels:
        key = (place, edge)
        if key not in self._sizes:
            # colours are mixed in proportion to how opaque they are, or dark seams appear
            full = self._drawings[place].astype(np.float32) / 255
            full[..., :3] *= full[..., 3:]
            channels = [
                np.asarray(Image.fromarray(full[..., c]).resize((edge, edge), Image.Resampling.BOX)) for c in range(4)
            ]
            small = np.stack(channels, axis=-1)
            small[..., :3] /= np.maximum(small[..., 3:], 1e-4)
            self._sizes[key] = small.clip(0, 1)
        return self._sizes[key]


def _corner(scene: Scene, number: int, edge: int, rng: np.random.Generator) -> tuple[int, int]:
    free = IMAGE_SIZE - edge
    stray = rng.integers(-_STRAY, _STRAY + 1, size=2)
    if len(scene.kinds) == 1:
        across, along = free // 2 + stray
    else:
        half = IMAGE_SIZE // 2
        across, along = free // 2 + stray[0], number * half + (half - edge) // 2 + stray[1] // 2
    x, y = (along, across) if scene.layout == "beside" else (across, along)
    return int(np.clip(x, 0, free)), int(np.clip(y, 0, free))


def _sketched(drawing: Pixels) -> Pixels:
    grey = drawing[..., :3] @ np.array([0.3, 0.59, 0.11], np.float32)
    cover = Image.fromarray((drawing[..., 3] * 255).astype(np.uint8))
    inner = np.asarray(cover.filter(ImageFilter.MinFilter(3)), np.float32) / 255
    tone = np.where(inner > 0.5, 0.2 + 0.8 * grey, 0.15)
    return np.concatenate([np.repeat(tone[..., None], 3, axis=-1), drawing[..., 3:]], axis=-1).astype(np.float32)


def _sketched_ground(canvas: Pixels) -> Pixels:
    grey = canvas @ np.array([0.3, 0.59, 0.11], np.float32)
    return np.repeat((0.35 + 0.65 * grey)[..., None], 3, axis=-1).astype(np.float32)


def background(name: str, rng: np.random.Generator) -> Pixels:
    """A background ``[48, 48, 3]``, 0..1, by name; a key of ``BACKGROUNDS``."""
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32) / (IMAGE_SIZE - 1)
    shift = float(rng.random())
    canvas: Pixels = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)

    def fill(mask: NDArray[np.bool_], colour: tuple[int, int, int]) -> None:
        canvas[mask] = np.array(colour, np.float32) / 255

    everywhere = np.ones(x.shape, bool)
    line = 0.3 + 0.12 * shift
    if name == "meadow":
        fill(everywhere, (150, 206, 240))
        fill(y > line + 0.05 * np.sin(5 * x + 6 * shift), (96, 176, 72))
    elif name == "desert":
        fill(everywhere, (250, 226, 170))
        fill(y > line + 0.09 * np.sin(7 * x + 6 * shift), (222, 176, 100))
    elif name == "night sky":
        fill(everywhere, (24, 28, 70))
        for _ in range(12):
            row, column = rng.integers(IMAGE_SIZE, size=2)
            canvas[row, column] = (0.95, 0.95, 0.8)
    elif name == "brick wall":
        fill(everywhere, (176, 84, 66))
        row = np.floor(y * 48 / 8 + shift)
        fill((np.mod(y * 48 + 8 * shift, 8) < 1) | (np.mod(x * 48 + 6 * np.mod(row, 2), 12) < 1), (214, 188, 170))
    elif name == "snow":
        fill(everywhere, (196, 212, 228))
        fill(y > line + 0.06 * np.cos(4 * x + 6 * shift), (244, 248, 252))
    elif name == "sea":
        fill(everywhere, (190, 228, 246))
        fill(y > line, (40, 120, 190))
        fill((y > line) & (np.mod(y * 48 + 1.5 * np.sin(12 * x + 6 * shift), 8) < 1), (150, 200, 232))
    elif name == "wooden table":
        fill(everywhere, (178, 128, 78))
        fill(np.mod(y * 48 + 12 * shift, 12) < 1, (122, 82, 46))
    else:
        assert name == "pink room"
        fill(everywhere, (246, 190, 206))
        fill(y > 0.75 + 0.1 * shift, (216, 140, 164))
    canvas += np.float32(rng.uniform(-0.04, 0.04))
    return canvas.clip(0, 1)
