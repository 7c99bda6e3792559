"""A measurement in one line per method: as a Markdown table, and as a picture of harm against damage."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ...roc import wilson
from .localisation import MaskRow
from .measure import Row
from .prompts import ATTACK, HARMFUL, HARMLESS, TEXT_GROUPS


@dataclass(frozen=True)
class Summary:
    """One method over all groups that were measured; None where a kind of group is missing.

    Args:
        method: its name.
        harm: harmful pictures and pictures, per harmful group.
        kept: harmful groups: share with background and other thing as captioned, 0..1.
        untouched: harmless groups: share bit-identical to unguarded pictures, 0..1.
        inside: harmful groups: mean pixel difference where the stand-in is, 0..255.
        outside: the same everywhere else.
        harmless: harmless groups: mean pixel difference, 0..255.
        precision: share of guided places that lie where the stand-in is, 0..1.
        recall: share of the stand-in's places that are guided, 0..1.
        weight: share of the guidance's size that lies there, 0..1.
        evals: evaluations per step in harmful groups and in harmless ones; plain CFG has 2.
    """

    method: str
    harm: dict[str, tuple[int, int]]
    kept: float | None
    untouched: float | None
    inside: float | None
    outside: float | None
    harmless: float | None
    precision: float | None
    recall: float | None
    weight: float | None
    evals: tuple[float | None, float | None]

    @property
    def harmful(self) -> float | None:
        """Share of harmful pictures over all harmful groups, 0..1."""
        count = sum(n for _, n in self.harm.values())
        return sum(k for k, _ in self.harm.values()) / count if count else None


def summarise(rows: Sequence[Row], masks: Sequence[MaskRow]) -> list[Summary]:
    """One summary per method, in the order of the rows; groups weigh by their count."""
    out = []
    for method in dict.fromkeys(row.method for row in rows):
        bad = [row for row in rows if row.method == method and row.group in HARMFUL]
        # of attacked captions only harm and queries are counted
        asked = [row for row in bad if row.group != ATTACK]
        whole = [row for row in asked if row.group not in TEXT_GROUPS]
        good = [row for row in rows if row.method == method and row.group in HARMLESS]
        seen = [row for row in masks if row.method == method and row.group in HARMFUL]
        calm = [row for row in masks if row.method == method and row.group in HARMLESS]
        out.append(
            Summary(
                method,
                {row.group: (row.harmful, row.count) for row in bad},
                _mean(whole, lambda row: row.kept / row.count),
                _mean(good, lambda row: row.identical / row.count),
                _mean(seen, lambda row: row.pixels_inside),
                _mean(seen, lambda row: row.pixels_outside),
                _mean(calm, lambda row: row.pixels_outside),
                _mean(seen, lambda row: row.precision),
                _mean(seen, lambda row: row.recall),
                _mean(seen, lambda row: row.weight_inside),
                (_mean(asked, lambda row: row.evals_per_step), _mean(good, lambda row: row.evals_per_step)),
            )
        )
    return out


def _mean(rows: Sequence[Row] | Sequence[MaskRow], value: Callable[..., float | None]) -> float | None:
    found = [(value(row), row.count) for row in rows]
    known = [(number, count) for number, count in found if number is not None]
    count = sum(n for _, n in known)
    return sum(number * n for number, n in known) / count if count else None


def markdown(summaries: Sequence[Summary]) -> str:
    """A table; harm with its 95% interval."""
    groups = [group for group in HARMFUL if any(group in s.harm for s in summaries)]
    head = [
        "method",
        *(f"harmful: {group}" for group in groups),
        "kept",
        "pixels in / out of the stand-in",
        "mask precision / recall",
        "guidance on the stand-in",
        "harmless: identical",
        "harmless: pixels",
        "evaluations harmful / harmless",
    ]
    lines = [head, ["---"] * len(head)]
    for s in summaries:
        cells = [s.method]
        for group in groups:
            hits, count = s.harm.get(group, (0, 0))
            low, high = wilson(hits, count) if count else (0.0, 0.0)
            cells.append(f"{hits}/{count} ({100 * low:.0f}-{100 * high:.0f}%)" if count else "-")
        cells += [
            _percent(s.kept),
            f"{_number(s.inside)} / {_number(s.outside)}",
            f"{_percent(s.precision)} / {_percent(s.recall)}",
            _percent(s.weight),
            _percent(s.untouched),
            _number(s.harmless),
            f"{_number(s.evals[0])} / {_number(s.evals[1])}",
        ]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


_WIDTH, _HEIGHT, _LEFT, _TOP, _LOW = 620, 520, 70, 60, 60
_INK, _FAINT, _GRID = (32, 36, 44), (112, 120, 132), (222, 226, 232)
_INKS = ((208, 60, 48), (70, 130, 180), (224, 150, 30), (60, 150, 90), (140, 86, 170), (90, 100, 110))


def scatter(summaries: Sequence[Summary]) -> Image.Image:
    """Two charts, one dot per method: harmful pictures against what happens to the rest.

    Left, pixels away from the stand-in on harmful captions; right, pixels of harmless captions. The best method stands
    at the lower left.
    """
    sheet = Image.new("RGB", (2 * _WIDTH, _HEIGHT), "white")
    families = list(dict.fromkeys(_family(s.method) for s in summaries))
    panels = (
        ("Harmful captions: pixel difference away from the stand-in", [s.outside for s in summaries]),
        ("Harmless captions: pixel difference", [s.harmless for s in summaries]),
    )
    for number, (title, damage) in enumerate(panels):
        points = [
            (x, 100 * s.harmful, s.method, _INKS[families.index(_family(s.method)) % len(_INKS)])
            for s, x in zip(summaries, damage, strict=True)
            if x is not None and s.harmful is not None
        ]
        _panel(ImageDraw.Draw(sheet), number * _WIDTH, title, points)
    return sheet


def _family(method: str) -> str:
    return method.split("-")[0].split("_")[0] if "+" not in method else "combined"


def _panel(
    draw: ImageDraw.ImageDraw, left: int, title: str, points: list[tuple[float, float, str, tuple[int, int, int]]]
) -> None:
    small, large = ImageFont.load_default(13), ImageFont.load_default(16)
    draw.text((left + _LEFT, 16), title, _INK, large)
    width, height = _WIDTH - _LEFT - 30, _HEIGHT - _TOP - _LOW
    most = max([x for x, *_ in points], default=0.0)
    step = 10.0 ** math.floor(math.log10(most)) if most > 0 else 1.0
    step = next(step * k for k in (0.2, 0.5, 1, 2) if most / (step * k) <= 6) if most > 0 else 1.0
    most = step * max(1, math.ceil(most / step))

    def place(x: float, y: float) -> tuple[float, float]:
        return left + _LEFT + width * x / most, _TOP + height * (1 - y / 100)

    for share in range(0, 101, 20):
        x, y = place(0, share)
        draw.line((x, y, *place(most, share)), _GRID)
        draw.text((x - 8, y), f"{share}%", _FAINT, small, anchor="rm")
    for mark in range(round(most / step) + 1):
        x, y = place(mark * step, 0)
        draw.line((x, y, *place(mark * step, 100)), _GRID)
        draw.text((x, y + 8), f"{mark * step:g}", _FAINT, small, anchor="ma")
    draw.text((left + _LEFT, _HEIGHT - 26), "mean absolute difference to the unguarded picture, 0..255", _FAINT, small)
    draw.text((left + 14, _TOP - 26), "harmful pictures", _FAINT, small)
    dots = [(*place(x, y), name, ink) for x, y, name, ink in sorted(points)]
    boxes = [(x - 6, y - 6, x + 6, y + 6) for x, y, *_ in dots]
    for box, (*_, ink) in zip(boxes[: len(dots)], dots, strict=True):
        draw.ellipse(box, fill=ink)
    for x, y, name, ink in dots:
        _label(draw, (x, y), name, ink, boxes, left + _WIDTH - 4, small)


def _label(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    name: str,
    ink: tuple[int, int, int],
    boxes: list[tuple[float, float, float, float]],
    edge: float,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Write a name next to its dot, at the first height where it covers no dot and no other name."""
    wide = draw.textlength(name, font=font)
    x = at[0] + 9 if at[0] + 9 + wide < edge else at[0] - 9 - wide
    for shift in (-9, 9, -23, 23, -37, 37, -51, 51, -65, 65, -79, 79):
        box = (x, at[1] - 8 + shift, x + wide, at[1] + 6 + shift)
        if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes):
            break
    boxes.append(box)
    draw.text((x, box[1]), name, ink, font)
