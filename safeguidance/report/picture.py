"""A guarded run as a picture: what was made, where guidance was changed, what was found, what was decided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import reduce
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional

from .narration import in_steps
from .trace import RunRecord, StepRecord

WIDTH = 1200
MOST_SAMPLES, MOST_CATEGORIES, MOST_CURVES, MOST_MASKS = 4, 12, 6, 10
_UNMEASURED = {"SafeCFG": "not measured (turn map on)"}
_SCALE = 2  # drawn larger and reduced, which smooths every edge
_MARGIN, _PICTURE, _BAR, _HEADER, _STRIP, _CURVES, _LIVE = 32, 300, 26, 112, 104, 150, 128

_INK, _FAINT, _PAPER, _PANEL, _GRID = (32, 36, 44), (112, 120, 132), (255, 255, 255), (244, 246, 249), (222, 226, 232)
_CALM, _HARM, _IDLE = (70, 130, 180), (208, 60, 48), (206, 212, 220)
_CURVE_INKS = ((208, 60, 48), (70, 130, 180), (224, 150, 30), (60, 150, 90), (140, 86, 170), (90, 100, 110))
_HEAT = ((0.0, (20, 16, 60)), (0.35, (130, 30, 120)), (0.65, (236, 90, 50)), (1.0, (255, 235, 120)))

Box = tuple[float, float, float, float]


def _scored(run: RunRecord) -> bool:
    return any(run.scores) or any(step.scores for step in run.steps)


def effect_mask(run: RunRecord, batch: int, height: int, width: int) -> torch.Tensor:
    """Where the method changed the prediction, ``[batch, height, width]``, 0..1 (1: the run's strongest place).

    All zeros where it was not measured or nothing changed. Further leading axes of the map (frames) are averaged; with
    more pictures than samples, samples are used in turn.
    """
    if run.effect is None:
        return torch.zeros(batch, height, width)
    effect = _flat(run.effect)
    if effect.ndim < 3:
        return torch.zeros(batch, height, width)
    resized = functional.interpolate(effect[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
    shown = _share(resized, float(resized.max()))
    return shown[torch.arange(batch) % len(shown)]


def _flat(effect: torch.Tensor) -> torch.Tensor:
    """A map without frames, in float32 on the CPU."""
    effect = effect.detach().float().cpu().nan_to_num()
    return reduce(effect, "b ... h w -> b h w", "mean") if effect.ndim > 3 else effect


def _share(values: torch.Tensor, largest: float) -> torch.Tensor:
    return (values / max(largest, torch.finfo(torch.float32).tiny)).clamp(0, 1)


def draw_report(run: RunRecord, images: torch.Tensor | None = None, decision: str = "") -> torch.Tensor:
    """Draw a run.

    Args:
        run: what happened.
        images: the finished pictures ``[B, H, W, 3]``, 0..1, or None.
        decision: what to say at the top, in place of the run's own words.

    Returns:
        One picture ``[1, height, 1200, 3]``, 0..1, with one row per sample, at most four. The same input gives the
        same bytes.
    """
    count = max(len(run.scores), 1) if images is None else len(images)
    shown = min(count, MOST_SAMPLES)
    bars = min(len(run.categories), MOST_CATEGORIES)
    row_height = max(_PICTURE, 104 + bars * _BAR) + 28
    curves = _CURVES if any(step.scores for step in run.steps) else 0
    live = _live(run, shown)
    masks = 30 + len(live) * _LIVE if live else 0
    height = _HEADER + shown * row_height + _STRIP + curves + masks + (24 if count > shown else 0)
    page = _Page(WIDTH, height)
    _header(page, run, decision)
    y = float(_HEADER)
    for index in range(shown):
        _sample(page, run, images, index, y, row_height)
        y += row_height
    if count > shown:
        page.text(_MARGIN, y - 6, f"{count - shown} more pictures are not shown", 15, _FAINT)
        y += 24
    _steps(page, run, y)
    if curves:
        _step_curves(page, run, y + _STRIP - 8)
    if live:
        _live_masks(page, run, live, y + _STRIP + curves - 4)
    return page.tensor()


class _Page:
    """A canvas in final pixels, drawn at twice the size."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self.image = Image.new("RGB", (width * _SCALE, height * _SCALE), _PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self._fonts: dict[int, ImageFont.ImageFont | ImageFont.FreeTypeFont] = {}

    def _font(self, size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
        if size not in self._fonts:
            self._fonts[size] = ImageFont.load_default(size * _SCALE)
        return self._fonts[size]

    def measure(self, text: str, size: int) -> float:
        return self.draw.textlength(text, font=self._font(size)) / _SCALE

    def fit(self, text: str, size: int, width: float) -> str:
        """The text, shortened with three dots where it does not fit."""
        if self.measure(text, size) <= width:
            return text
        while text and self.measure(text + "...", size) > width:
            text = text[:-1]
        return text.rstrip() + "..."

    def text(
        self, x: float, y: float, text: str, size: int, ink: tuple[int, int, int] = _INK, align: str = "left"
    ) -> None:
        shift = {"left": 0.0, "centre": 0.5, "right": 1.0}[align] * self.measure(text, size)
        self.draw.text(((x - shift) * _SCALE, y * _SCALE), text, fill=ink, font=self._font(size))

    def box(self, box: Box, fill: tuple[int, int, int], radius: float = 0) -> None:
        x0, y0, x1, y1 = (value * _SCALE for value in box)
        if x1 - x0 >= 1 and y1 - y0 >= 1:
            limit = min(radius * _SCALE, (x1 - x0) / 2, (y1 - y0) / 2)
            self.draw.rounded_rectangle((x0, y0, x1 - 1, y1 - 1), limit, fill=fill)

    def line(self, points: Sequence[tuple[float, float]], ink: tuple[int, int, int], width: float = 1) -> None:
        self.draw.line([(x * _SCALE, y * _SCALE) for x, y in points], ink, max(1, round(width * _SCALE)), joint="curve")

    def dashed(self, x: float, top: float, bottom: float, ink: tuple[int, int, int]) -> None:
        y = top
        while y < bottom:
            self.line([(x, y), (x, min(y + 5, bottom))], ink, 1.5)
            y += 9

    def paste(self, picture: Image.Image, x: float, y: float, edge: float) -> None:
        """Put a picture into a square, centred, at its own proportions."""
        longest = max(picture.size)
        size = tuple(max(1, round(side * edge * _SCALE / longest)) for side in picture.size)
        small = longest * 2 <= edge * _SCALE
        resized = picture.resize((size[0], size[1]), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
        left, top = (round(at * _SCALE + (edge * _SCALE - side) / 2) for at, side in zip((x, y), size, strict=True))
        self.image.paste(resized, (left, top))

    def tensor(self) -> torch.Tensor:
        final = self.image.resize(self.size, Image.Resampling.BOX)
        return torch.from_numpy(np.asarray(final, dtype=np.float32) / 255)[None]


def _header(page: _Page, run: RunRecord, decision: str) -> None:
    harmful, scored = run.harmful, _scored(run) and run.threshold is not None
    word = "HARMFUL PROMPT" if harmful else "HARMLESS PROMPT" if scored else "NOT JUDGED"
    badge = page.measure(word, 20) + 32
    page.box((0, 0, WIDTH, _HEADER - 16), _PANEL)
    page.box((WIDTH - _MARGIN - badge, 26, WIDTH - _MARGIN, 66), _HARM if harmful else _CALM if scored else _FAINT, 8)
    page.text(WIDTH - _MARGIN - badge / 2, 34, word, 20, _PAPER, "centre")
    width = WIDTH - 2 * _MARGIN - badge - 24
    page.text(_MARGIN, 16, page.fit(run.method, 18, width), 18, _FAINT)
    decision = decision or run.decision or "no decision was recorded"
    size = next((size for size in (26, 22, 18) if page.measure(decision, size) <= width), 18)
    page.text(_MARGIN, 42 + (26 - size) / 2, page.fit(decision, size, width), size)


def _sample(page: _Page, run: RunRecord, images: torch.Tensor | None, index: int, y: float, height: float) -> None:
    edge = _PICTURE - 30
    left = float(_MARGIN)
    picture = None if images is None else _to_image(images[index])
    _frame(page, picture, left, y, edge, f"picture {index + 1}", "no image connected")
    left += edge + 20
    _frame(page, _overlay(run, picture, index), left, y, edge, *_effect_words(run, index))
    left += edge + 36
    _bars(page, run, index, left, y, WIDTH - _MARGIN - left)
    page.line([(_MARGIN, y + height - 12), (WIDTH - _MARGIN, y + height - 12)], _GRID)


def _effect_words(run: RunRecord, index: int) -> tuple[str, str]:
    if not run.sampled:
        return "where it acted", "in the text alone"
    if run.effect is None:
        return "where it acted", _UNMEASURED.get(run.method, "not measured") if run.acted else "nowhere"
    if run.effect.ndim < 3 or not bool(run.effect.abs().max() > 0):
        return "where it acted", "measured: nowhere"
    if not bool(run.effect[index % len(run.effect)].abs().max() > 0):
        return "where it acted", "nowhere in this picture"
    return "where it acted (bright: strongest)", ""


def _frame(page: _Page, picture: Image.Image | None, x: float, y: float, edge: float, title: str, empty: str) -> None:
    page.text(x, y, title, 15, _FAINT)
    page.box((x, y + 24, x + edge, y + 24 + edge), _PANEL, 6)
    if picture is None:
        page.text(x + edge / 2, y + 14 + edge / 2, empty, 15, _FAINT, "centre")
    else:
        page.paste(picture, x, y + 24, edge)


def _to_image(pixels: torch.Tensor) -> Image.Image:
    values = (pixels.detach().float().cpu().nan_to_num().clamp(0, 1) * 255 + 0.5).to(torch.uint8)
    return Image.fromarray(values[..., :3].numpy())


def _overlay(run: RunRecord, picture: Image.Image | None, index: int) -> Image.Image | None:
    if _effect_words(run, index)[1]:
        return None
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


def _bars(page: _Page, run: RunRecord, index: int, x: float, y: float, width: float) -> None:
    row = run.scores[index % len(run.scores)] if run.scores else []
    page.text(x, y, "agreement per concept" if run.threshold is None else "harm per category", 15, _FAINT)
    if not row:
        page.text(x, y + 34, "no score per picture was recorded", 15, _FAINT)
        return
    names = list(zip(run.categories, row, strict=False))
    kept = sorted(range(len(names)), key=lambda k: -names[k][1])[:MOST_CATEGORIES]
    names = [names[k] for k in sorted(kept)]
    label = min(max(page.measure(name, 16) for name, _ in names), 0.38 * width)
    start, end = x + label + 12, x + width - 52
    limit = 2.0 if run.threshold is None else max(run.threshold, 0.0)
    at = start + (end - start) * min(limit, 1.0)
    top = y + 34
    for name, score in names:
        page.text(x + label, top, page.fit(name, 16, label), 16, align="right")
        page.box((start, top + 3, end, top + 17), _PANEL, 3)
        inside = min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0
        ink = _HARM if score >= limit else _CALM
        page.box((start, top + 3, start + (end - start) * inside, top + 17), ink, 3)
        page.text(x + width, top, f"{score:.2f}", 16, ink, "right")
        top += _BAR
    if run.threshold is not None:
        page.dashed(at, y + 28, top, _INK)
    left_out = f"; the {MOST_CATEGORIES} highest are shown" if len(run.categories) > MOST_CATEGORIES else ""
    acts = "acts on every prompt" if run.threshold is None else f"acts from {run.threshold:.2f}"
    note = f"{acts}{left_out}"
    half = page.measure(note, 14) / 2
    page.text(min(max(at, x + half), x + width - half), top + 2, note, 14, _FAINT, "centre")
    if run.threshold is not None and run.steps:
        words, ink = _verdict(run, max(row))
        page.text(x, top + 34, words, 20, ink)


def _verdict(run: RunRecord, score: float) -> tuple[str, tuple[int, int, int]]:
    """What became of one picture, and the ink to say it in."""
    assert run.threshold is not None
    if not (score >= run.threshold and score > 0):
        return "harmless: left alone", _CALM
    return "harmful: changed" if run.acted else "harmful: NOT changed", _HARM


def _steps(page: _Page, run: RunRecord, y: float) -> None:
    total, acted = len(run.steps), sum(step.acted for step in run.steps)
    extra = sum(step.extra_evaluations for step in run.steps)
    cost = "no extra model evaluation" if not extra else f"{extra} extra model evaluation{'s' * (extra != 1)}"
    if not total:
        page.text(_MARGIN, y, "no step was recorded", 15, _FAINT)
        return
    when = in_steps(run) if run.total_steps == total else f"in {acted} of {total} evaluations of the guider"
    page.text(_MARGIN, y, f"changed {when}, {cost}", 15, _FAINT)
    cell = (WIDTH - 2 * _MARGIN) / total
    gap = 3 if cell >= 9 else 1 if cell >= 4 else 0
    for index, step in enumerate(run.steps):
        left = _MARGIN + index * cell
        page.box((left, y + 26, left + max(cell - gap, 0.5), y + 52), _step_ink(step), 3 if gap else 0)
    page.text(_MARGIN, y + 58, f"first, sigma {run.steps[0].sigma:.3g}", 14, _FAINT)
    page.text(WIDTH - _MARGIN, y + 58, f"last, sigma {run.steps[-1].sigma:.3g}", 14, _FAINT, "right")
    inks = {_step_ink(step) for step in run.steps}
    names = (("changed", _HARM), ("only measured", _CALM), ("left alone", _IDLE))
    _legend(page, y + 58, [entry for entry in names if entry[1] in inks])


def _step_ink(step: StepRecord) -> tuple[int, int, int]:
    return _HARM if step.acted else _CALM if step.extra_evaluations else _IDLE


def _legend(page: _Page, y: float, entries: Sequence[tuple[str, tuple[int, int, int]]]) -> None:
    x = WIDTH / 2 - sum(page.measure(name, 14) + 36 for name, _ in entries) / 2
    for name, ink in entries:
        page.box((x, y + 3, x + 12, y + 15), ink, 2)
        page.text(x + 18, y, name, 14, _FAINT)
        x += page.measure(name, 14) + 36


def _step_curves(page: _Page, run: RunRecord, y: float) -> None:
    """Scores that change from step to step, one curve per category, the highest few."""
    names = run.categories or tuple(f"score {k + 1}" for k in range(max(len(step.scores) for step in run.steps)))
    series = {
        name: [(index, step.scores[k]) for index, step in enumerate(run.steps) if k < len(step.scores)]
        for k, name in enumerate(names)
    }
    ranked = sorted((name for name in series if series[name]), key=lambda name: -max(v for _, v in series[name]))
    top, bottom, left, right = y + 34, y + 106, _MARGIN + 28.0, float(WIDTH - _MARGIN)
    page.text(_MARGIN, y, "score at each evaluation", 15, _FAINT)
    for value in (0.0, 1.0):
        level = bottom - (bottom - top) * value
        page.line([(left, level), (right, level)], _GRID)
        page.text(left - 8, level - 9, f"{value:g}", 14, _FAINT, "right")
    if run.threshold is not None:
        limit = bottom - (bottom - top) * min(max(run.threshold, 0.0), 1.0)
        page.line([(left, limit), (right, limit)], _FAINT)
        page.text(right, limit - 18, f"acts from {run.threshold:.2f}", 14, _FAINT, "right")
    cell = (right - left) / len(run.steps)
    shown = ranked[:MOST_CURVES]
    for name, ink in zip(shown, _CURVE_INKS, strict=False):
        points = [
            (left + (index + 0.5) * cell, bottom - (bottom - top) * min(max(value, 0.0), 1.0))
            for index, value in series[name]
        ]
        if len(points) == 1:
            points.append((points[0][0] + 2, points[0][1]))
        page.line(points, ink, 2)
    _legend(page, bottom + 12, list(zip(shown, _CURVE_INKS, strict=False)))


def _live(run: RunRecord, samples: int) -> dict[int, list[tuple[int, torch.Tensor]]]:
    """Per sample that was changed, its map at some evaluations, evenly chosen, as (evaluation, map)."""
    moved = [(index, _flat(step.effect)) for index, step in enumerate(run.steps) if step.effect is not None]
    moved = [(index, effect) for index, effect in moved if effect.ndim == 3]
    count = min(len(moved), MOST_MASKS)
    chosen = [moved[place * (len(moved) - 1) // max(count - 1, 1)] for place in range(count)]
    rows = {k: [(index, effect[k]) for index, effect in chosen if k < len(effect)] for k in range(samples)}
    return {k: row for k, row in rows.items() if any(bool(effect.any()) for _, effect in row)}


def _live_masks(page: _Page, run: RunRecord, live: dict[int, list[tuple[int, torch.Tensor]]], y: float) -> None:
    page.text(_MARGIN, y, "where it acted at some of these evaluations, on one scale", 15, _FAINT)
    largest = max(float(effect.max()) for row in live.values() for _, effect in row)
    edge, cell = _LIVE - 28.0, (WIDTH - 2 * _MARGIN - 30) / MOST_MASKS
    top = y + 28
    for sample, row in live.items():
        page.text(_MARGIN, top + edge / 2 - 10, f"{sample + 1}", 15, _FAINT)
        for place, (index, effect) in enumerate(row):
            left = _MARGIN + 30 + place * cell
            heat = Image.fromarray((_coloured(_share(effect, largest).numpy()) + 0.5).astype(np.uint8))
            page.paste(heat, left, top, edge)
            page.text(left + edge / 2, top + edge + 3, f"{index + 1}", 14, _FAINT, "centre")
        top += _LIVE
