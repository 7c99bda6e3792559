"""Drawing scenes: polygons and ellipses rasterised at high resolution, composed over procedural backgrounds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from einops import reduce
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..errors import InputError
from ..testbed.world import BACKGROUNDS, COLOURS, IMAGE_SIZE, POSITIONS, Scene

SPRITE = 22
"""Edge of a thing's drawing box in pixels at scale 1."""
_OVERSAMPLE = 8

# A shape is (layer, kind, points) in a unit box; layers: "fill" takes the thing's colour, "dark" and "light" are
# accents. Kinds: polygon, ellipse (two corners), line (points then width).
_Shape = tuple[str, str, tuple[float, ...]]

_SHAPES: dict[str, tuple[_Shape, ...]] = {
    "cup": (
        ("fill", "ellipse", (0.58, 0.28, 0.98, 0.70)),
        ("hole", "ellipse", (0.68, 0.38, 0.88, 0.60)),
        ("fill", "polygon", (0.08, 0.15, 0.76, 0.15, 0.68, 0.92, 0.16, 0.92)),
        ("dark", "ellipse", (0.10, 0.08, 0.74, 0.26)),
    ),
    "house": (
        ("fill", "polygon", (0.14, 0.46, 0.86, 0.46, 0.86, 0.96, 0.14, 0.96)),
        ("dark", "polygon", (0.02, 0.48, 0.50, 0.04, 0.98, 0.48)),
        ("light", "polygon", (0.24, 0.56, 0.42, 0.56, 0.42, 0.74, 0.24, 0.74)),
        ("dark", "polygon", (0.56, 0.60, 0.76, 0.60, 0.76, 0.96, 0.56, 0.96)),
    ),
    "tree": (
        ("dark", "polygon", (0.42, 0.70, 0.58, 0.70, 0.58, 0.98, 0.42, 0.98)),
        ("fill", "polygon", (0.50, 0.02, 0.78, 0.36, 0.22, 0.36)),
        ("fill", "polygon", (0.50, 0.20, 0.88, 0.58, 0.12, 0.58)),
        ("fill", "polygon", (0.50, 0.40, 0.98, 0.80, 0.02, 0.80)),
    ),
    "fish": (
        ("fill", "polygon", (0.62, 0.50, 0.98, 0.20, 0.98, 0.80)),
        ("fill", "ellipse", (0.02, 0.24, 0.76, 0.76)),
        ("light", "ellipse", (0.12, 0.36, 0.28, 0.52)),
        ("dark", "ellipse", (0.16, 0.40, 0.24, 0.48)),
        ("dark", "line", (0.36, 0.36, 0.42, 0.50, 0.36, 0.64, 0.05)),
    ),
    "boat": (
        ("fill", "polygon", (0.02, 0.64, 0.98, 0.64, 0.80, 0.94, 0.20, 0.94)),
        ("dark", "line", (0.46, 0.04, 0.46, 0.66, 0.07)),
        ("light", "polygon", (0.52, 0.06, 0.52, 0.58, 0.94, 0.58)),
        ("fill", "polygon", (0.40, 0.16, 0.40, 0.58, 0.10, 0.58)),
    ),
    "key": (
        ("fill", "ellipse", (0.02, 0.28, 0.46, 0.72)),
        ("hole", "ellipse", (0.14, 0.40, 0.34, 0.60)),
        ("fill", "polygon", (0.42, 0.44, 0.98, 0.44, 0.98, 0.56, 0.42, 0.56)),
        ("fill", "polygon", (0.84, 0.54, 0.96, 0.54, 0.96, 0.78, 0.84, 0.78)),
        ("fill", "polygon", (0.64, 0.54, 0.76, 0.54, 0.76, 0.72, 0.64, 0.72)),
    ),
    "star": (
        (
            "fill",
            "polygon",
            tuple(
                value
                for k in range(10)
                for value in (
                    0.5 + (0.5 if k % 2 == 0 else 0.21) * float(np.sin(k * np.pi / 5)),
                    0.52 - (0.5 if k % 2 == 0 else 0.21) * float(np.cos(k * np.pi / 5)),
                )
            ),
        ),
    ),
    "flower": (
        ("dark", "line", (0.50, 0.50, 0.50, 0.99, 0.09)),
        ("fill", "ellipse", (0.34, 0.00, 0.66, 0.34)),
        ("fill", "ellipse", (0.34, 0.42, 0.66, 0.76)),
        ("fill", "ellipse", (0.12, 0.22, 0.46, 0.54)),
        ("fill", "ellipse", (0.54, 0.22, 0.88, 0.54)),
        ("light", "ellipse", (0.39, 0.27, 0.61, 0.49)),
    ),
    "spoon": (
        ("dark", "line", (0.22, 0.90, 0.56, 0.46, 0.13)),
        ("fill", "ellipse", (0.42, 0.02, 0.98, 0.56)),
        ("light", "line", (0.62, 0.40, 0.84, 0.20, 0.07)),
    ),
    "balloon": (
        ("dark", "line", (0.50, 0.74, 0.42, 0.86, 0.54, 0.99, 0.06)),
        ("fill", "polygon", (0.40, 0.82, 0.50, 0.68, 0.60, 0.82)),
        ("fill", "ellipse", (0.16, 0.02, 0.84, 0.76)),
        ("light", "ellipse", (0.28, 0.14, 0.44, 0.32)),
    ),
    "mask": (
        (
            "fill",
            "polygon",
            (
                0.02,
                0.26,
                0.30,
                0.20,
                0.50,
                0.30,
                0.70,
                0.20,
                0.98,
                0.26,
                0.92,
                0.62,
                0.66,
                0.76,
                0.50,
                0.60,
                0.34,
                0.76,
                0.08,
                0.62,
            ),
        ),
        ("light", "ellipse", (0.14, 0.34, 0.42, 0.56)),
        ("light", "ellipse", (0.58, 0.34, 0.86, 0.56)),
    ),
    "pencil": (
        ("fill", "polygon", (0.38, 0.02, 0.62, 0.02, 0.62, 0.72, 0.38, 0.72)),
        ("light", "polygon", (0.38, 0.72, 0.62, 0.72, 0.50, 0.98)),
        ("dark", "polygon", (0.45, 0.88, 0.55, 0.88, 0.50, 0.98)),
        ("light", "polygon", (0.38, 0.12, 0.62, 0.12, 0.62, 0.20, 0.38, 0.20)),
    ),
    "knife": (
        ("dark", "line", (0.06, 0.94, 0.34, 0.66, 0.17)),
        ("fill", "polygon", (0.24, 0.62, 0.70, 0.12, 0.99, 0.00, 0.92, 0.34, 0.62, 0.66, 0.40, 0.78)),
        ("dark", "line", (0.26, 0.56, 0.48, 0.78, 0.07)),
    ),
    "bomb": (
        ("fill", "ellipse", (0.06, 0.26, 0.78, 0.98)),
        ("dark", "polygon", (0.50, 0.24, 0.66, 0.16, 0.78, 0.34, 0.64, 0.42)),
        ("dark", "line", (0.70, 0.22, 0.82, 0.10, 0.06)),
        ("spark", "polygon", (0.74, 0.08, 0.86, 0.00, 0.99, 0.06, 0.96, 0.22, 0.82, 0.20)),
        ("dark", "line", (0.26, 0.46, 0.58, 0.80, 0.10)),
        ("dark", "line", (0.58, 0.46, 0.26, 0.80, 0.10)),
    ),
    "skull": (
        ("fill", "ellipse", (0.06, 0.02, 0.94, 0.74)),
        ("fill", "polygon", (0.26, 0.62, 0.74, 0.62, 0.72, 0.98, 0.28, 0.98)),
        ("dark", "ellipse", (0.18, 0.28, 0.44, 0.56)),
        ("dark", "ellipse", (0.56, 0.28, 0.82, 0.56)),
        ("dark", "polygon", (0.50, 0.52, 0.58, 0.68, 0.42, 0.68)),
        ("dark", "line", (0.42, 0.78, 0.42, 0.98, 0.05)),
        ("dark", "line", (0.58, 0.78, 0.58, 0.98, 0.05)),
    ),
    "syringe": (
        ("dark", "polygon", (0.26, 0.02, 0.74, 0.02, 0.74, 0.10, 0.26, 0.10)),
        ("dark", "line", (0.50, 0.08, 0.50, 0.24, 0.08)),
        ("light", "polygon", (0.30, 0.22, 0.70, 0.22, 0.70, 0.44, 0.30, 0.44)),
        ("fill", "polygon", (0.30, 0.42, 0.70, 0.42, 0.70, 0.68, 0.50, 0.78, 0.30, 0.68)),
        ("dark", "line", (0.50, 0.74, 0.50, 1.00, 0.07)),
    ),
}

_ACCENTS = {"dark": (38, 30, 34), "light": (250, 244, 214), "spark": (255, 128, 0)}


@lru_cache(maxsize=4096)
def sprite(kind: str, colour: str, style: str, size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Draw one thing.

    Args:
        kind: a name in ``world.THINGS``.
        colour: a name in ``world.COLOURS``.
        style: ``plain``, ``striped`` or ``outlined``.
        size: edge in pixels.

    Returns:
        Colour ``[size + 4, size + 4, 3]`` and coverage ``[size + 4, size + 4, 1]``, float32 in 0..1; a dark rim
        of about one pixel keeps a thing visible on a background of its own colour.
    """
    edge = (size + 4) * _OVERSAMPLE
    canvas = Image.new("RGB", (edge, edge))
    silhouette = Image.new("L", (edge, edge))
    paint, shade = ImageDraw.Draw(canvas), ImageDraw.Draw(silhouette)

    def scaled(values: Sequence[float]) -> list[float]:
        return [(2 + value * size) * _OVERSAMPLE for value in values]

    for layer, form, values in _SHAPES[kind]:
        ink = COLOURS[colour] if layer in ("fill", "hole") else _ACCENTS[layer]
        cover = 0 if layer == "hole" else 255
        if form == "line":
            width = round(values[-1] * size * _OVERSAMPLE)
            for draw, value in ((paint, ink), (shade, cover)):
                draw.line(scaled(values[:-1]), fill=value, width=width, joint="curve")
        else:
            method = "polygon" if form == "polygon" else "ellipse"
            for draw, value in ((paint, ink), (shade, cover)):
                getattr(draw, method)(scaled(values), fill=value)
    colours = np.asarray(canvas, np.float32) / 255
    mask = np.asarray(silhouette, np.float32) / 255
    if style != "plain":
        colours, mask = _restyle(colours, mask, COLOURS[colour], style)
    rim = _grow(mask, _OVERSAMPLE)
    colours = np.where(mask[..., None] > 0.5, colours, np.float32(0.11))
    return _shrink(colours * rim[..., None], rim)


def _restyle(
    colours: NDArray[Any], mask: NDArray[Any], ink: tuple[int, int, int], style: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    tone = np.asarray(ink, np.float32) / 255
    own = (np.abs(colours - tone).sum(-1) < 0.02) & (mask > 0.5)
    if style == "striped":
        y, x = np.indices(mask.shape)
        stripe = ((x + y) // (2 * _OVERSAMPLE)) % 2 == 0
        colours = np.where((own & stripe)[..., None], 0.25 * tone, colours)
        return colours, mask
    core = 1 - _grow(1 - mask, int(2.2 * _OVERSAMPLE))
    return colours, np.where(own & (core > 0.5), np.float32(0), mask)


def _grow(mask: NDArray[Any], radius: int) -> NDArray[Any]:
    for axis in (0, 1):
        padded = np.pad(mask, [(radius, radius) if k == axis else (0, 0) for k in (0, 1)])
        mask = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis).max(-1)
    return mask


def _shrink(premultiplied: NDArray[Any], mask: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    factor = {"a": _OVERSAMPLE, "b": _OVERSAMPLE}
    cover = reduce(mask, "(h a) (w b) -> h w 1", "mean", **factor)
    colour = reduce(premultiplied, "(h a) (w b) c -> h w c", "mean", **factor)
    return colour / np.maximum(cover, 1e-4), cover


def background(name: str, rng: np.random.Generator, size: int = IMAGE_SIZE) -> NDArray[Any]:
    """Draw a background ``[size, size, 3]`` float32 in 0..1, with its own random texture.

    Raises:
        InputError: if it is not one of ``BACKGROUNDS``.
    """
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    tone = np.float32(rng.uniform(-0.03, 0.03))

    def mix(top: tuple[float, ...], low: tuple[float, ...]) -> NDArray[Any]:
        mixed: NDArray[Any] = (
            np.asarray(top, np.float32) * (1 - y[..., None]) + np.asarray(low, np.float32) * y[..., None]
        )
        return mixed

    if name == "meadow":
        image = mix((0.62, 0.80, 0.42), (0.48, 0.70, 0.30))
        blades = rng.integers(0, size, (26, 2))
        for px, py in blades:
            image[py : py + 3, px] = (0.34, 0.56, 0.20)
    elif name == "desert":
        image = mix((0.96, 0.84, 0.60), (0.88, 0.70, 0.44))
        phase, bend = rng.uniform(0, 6.28), rng.uniform(1.5, 3)
        image -= 0.06 * (np.sin(18 * y + 2 * np.sin(bend * 3 * x + phase)) > 0.6)[..., None]
    elif name == "night sky":
        image = mix((0.05, 0.06, 0.20), (0.14, 0.12, 0.34))
        for px, py in rng.integers(0, size, (16, 2)):
            image[py, px] = (0.92, 0.92, 0.80)
    elif name == "brick wall":
        image = np.empty((size, size, 3), np.float32)
        image[:] = (0.68, 0.36, 0.28)
        dy, dx = rng.integers(0, 8), rng.integers(0, 12)
        rows, columns = np.arange(size) + dy, np.arange(size) + dx
        image[rows % 8 == 0] = (0.82, 0.74, 0.68)
        offset = (rows // 8 % 2) * 6
        joint = (columns[None, :] + offset[:, None]) % 12 == 0
        image[joint] = (0.82, 0.74, 0.68)
    elif name == "snow":
        image = mix((0.80, 0.86, 0.92), (0.90, 0.93, 0.96))
        for px, py in rng.integers(0, size, (22, 2)):
            image[py, px] = (0.62, 0.72, 0.84)
    elif name == "sea":
        image = mix((0.40, 0.74, 0.84), (0.16, 0.52, 0.70))
        phase = rng.uniform(0, 6.28)
        image += 0.10 * (np.sin(26 * y + 1.5 * np.sin(9 * x + phase)) > 0.75)[..., None]
    else:
        raise InputError("background", f"it is {name!r}", ", ".join(BACKGROUNDS))
    drawn: NDArray[Any] = np.clip(image + tone, 0, 1)
    return drawn


def draw_scene(scene: Scene, rng: np.random.Generator) -> NDArray[Any]:
    """Draw a scene.

    Args:
        scene: what to draw; the exact spot (within 1 pixel), size (20 to 23) and texture come from ``rng``.
        rng: source of the jitter.

    Returns:
        ``[IMAGE_SIZE, IMAGE_SIZE, 3]`` uint8.
    """
    image = background(scene.background, rng)
    for thing in scene.things:
        size = int(rng.integers(20, 24))
        colour, cover = sprite(thing.kind, thing.colour, scene.style, size)
        edge = colour.shape[0]
        x, y = POSITIONS[thing.position]
        left = int(np.clip(x - edge // 2 + rng.integers(-1, 2), -2, IMAGE_SIZE - edge + 2))
        top = int(np.clip(y - edge // 2 + rng.integers(-1, 2), -2, IMAGE_SIZE - edge + 2))
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + edge, IMAGE_SIZE), min(top + edge, IMAGE_SIZE)
        part = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        image[y0:y1, x0:x1] = image[y0:y1, x0:x1] * (1 - cover[part]) + colour[part] * cover[part]
    return (image * 255 + 0.5).astype(np.uint8)
