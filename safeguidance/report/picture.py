"""A guarded run as a picture: what was made, where guidance was changed, what was found, what was decided.

One column, read at the width that the node opens with; every number says what it means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from PIL import Image

from .heat import overlay, to_image
from .page import PIXELS, WIDTH, Page, fit, measure, wrap
from .strips import (
    BODY,
    CALM,
    FAINT,
    GRID,
    HARM,
    INK,
    MARGIN,
    PANEL,
    PAPER,
    SMALL,
    draw_curves,
    draw_masks,
    draw_steps,
    has_curve,
    live_maps,
    masks_height,
)
from .trace import RunRecord

__all__ = ["PIXELS", "draw_report"]

MOST_SAMPLES, MOST_CATEGORIES = 4, 12
_UNMEASURED = {"SafeCFG": "not measured (turn map on)"}
_WARNING = ((255, 243, 214), (120, 72, 0))
_GAP, _BAR = 16, 24
_EDGE = (WIDTH - 2 * MARGIN - _GAP) / 2
_PICTURES = _EDGE + 24 + 12
_STEPS, _CURVES = 74, 132


@dataclass(frozen=True)
class Report:
    """What is drawn.

    Args:
        run: what happened.
        images: the finished pictures ``[B, H, W, 3]``, 0..1, or None.
        unguarded: the pictures of the same seeds without a guard, or None.
        decision: what to say at the top, in place of the run's own words.
        warning: why the verdict says little; "" where it does not.
    """

    run: RunRecord
    images: torch.Tensor | None = None
    unguarded: torch.Tensor | None = None
    decision: str = ""
    warning: str = ""


def draw_report(
    run: RunRecord,
    images: torch.Tensor | None = None,
    decision: str = "",
    unguarded: torch.Tensor | None = None,
    warning: str = "",
) -> torch.Tensor:
    """Draw a run; the arguments are those of ``Report``.

    Returns:
        One picture ``[1, height, 1200, 3]``, 0..1, with one part per sample, at most four. The same input gives the
        same bytes.
    """
    report = Report(run, images, unguarded, decision or run.decision or "no decision was recorded", warning)
    count = max(len(run.scores), 1) if images is None else len(images)
    shown = min(count, MOST_SAMPLES)
    head, part = _head_lines(report), _sample_height(report)
    live = live_maps(run, shown)
    curves = _CURVES if has_curve(run) else 0
    masks = masks_height(live)
    height = head.height + shown * part + _STEPS + curves + masks + (20 if count > shown else 0)
    page = Page(height, PAPER)
    _header(page, report, head)
    y = head.height
    for index in range(shown):
        _sample(page, report, index, y)
        y += part
    if count > shown:
        page.text(MARGIN, y - 4, f"{count - shown} more pictures are not shown", SMALL, FAINT)
        y += 20
    draw_steps(page, run, y)
    if curves:
        draw_curves(page, run, y + _STEPS)
    if live:
        draw_masks(page, run, live, y + _STEPS + curves)
    return page.tensor()


@dataclass(frozen=True)
class _Head:
    decision: list[str]
    warning: list[str]
    tokens: list[str]
    height: float


def _head_lines(report: Report) -> _Head:
    width = WIDTH - 2 * MARGIN
    decision = wrap(report.decision, BODY, width, 5)
    warning = wrap(report.warning, BODY, width - 16, 5) if report.warning else []
    tokens = []
    if report.run.triggers:
        tokens += wrap(f"raised the flag: {', '.join(report.run.triggers)}", BODY, width, 2)
    if report.run.taken_along:
        tokens += wrap(f"taken along with it: {', '.join(report.run.taken_along)}", BODY, width, 2)
    rows = len(decision) + len(tokens)
    return _Head(decision, warning, tokens, 60 + 19 * rows + (19 * len(warning) + 22 if warning else 0) + 10)


def _header(page: Page, report: Report, head: _Head) -> None:
    run = report.run
    scored = run.threshold is not None and (any(run.scores) or any(step.scores for step in run.steps))
    word = "HARMFUL PROMPT" if run.harmful else "HARMLESS PROMPT" if scored else "NOT JUDGED"
    ink = HARM if run.harmful else CALM if scored else FAINT
    if report.warning:
        word, ink = f"{word}?", FAINT
    page.box((0, 0, WIDTH, head.height - 10), PANEL)
    page.box((MARGIN, 12, MARGIN + measure(word, 17) + 24, 42), ink, 6)
    page.text(MARGIN + 12, 16, word, 17, PAPER)
    left = MARGIN + measure(word, 17) + 36
    page.text(WIDTH - MARGIN, 19, fit(run.method, BODY, WIDTH - MARGIN - left), BODY, FAINT, "right")
    y = 52.0
    for line in head.decision:
        page.text(MARGIN, y, line, BODY, INK)
        y += 19
    if head.warning:
        fill, words = _WARNING
        page.box((MARGIN, y + 4, WIDTH - MARGIN, y + 12 + 19 * len(head.warning)), fill, 4)
        y += 8
        for line in head.warning:
            page.text(MARGIN + 8, y, line, BODY, words)
            y += 19
        y += 10
    for line in head.tokens:
        page.text(MARGIN, y, line, BODY, INK)
        y += 19


def _bars_height(run: RunRecord) -> float:
    return 24 + max(1, min(len(run.categories), MOST_CATEGORIES)) * _BAR + 20 + 24


def _sample_height(report: Report) -> float:
    beside = _PICTURES if report.unguarded is not None else 0
    if report.unguarded is not None and report.images is not None:
        return _PICTURES + max(_PICTURES, _bars_height(report.run)) + 12
    return _PICTURES + _bars_height(report.run) + 12 + (0 if report.images is not None else beside)


def _sample(page: Page, report: Report, index: int, y: float) -> None:
    """Before and after, then the map and the scores; without a picture before: picture and map, then the scores."""
    run, left, right = report.run, float(MARGIN), MARGIN + _EDGE + _GAP
    picture = None if report.images is None else to_image(report.images[index])
    end = y + _sample_height(report) - 12
    if report.unguarded is not None and picture is not None:
        before = to_image(report.unguarded[index % len(report.unguarded)])
        number = f" {index + 1}" if report.images is not None and len(report.images) > 1 else ""
        _frame(page, before, left, y, f"unguarded{number}", "")
        _frame(page, picture, right, y, f"guarded{number}", "")
        y += _PICTURES
        _frame(page, _map(run, picture, index), left, y, *_effect_words(run, index))
        _bars(page, run, index, right, y, WIDTH - MARGIN - right)
    else:
        title = "the picture" if report.images is None or len(report.images) == 1 else f"picture {index + 1}"
        _frame(page, picture, left, y, title, "no image connected")
        _frame(page, _map(run, picture, index), right, y, *_effect_words(run, index))
        _bars(page, run, index, left, y + _PICTURES, WIDTH - 2 * MARGIN)
    page.line([(MARGIN, end), (WIDTH - MARGIN, end)], GRID)


def _effect_words(run: RunRecord, index: int) -> tuple[str, str]:
    if not run.sampled:
        return "where it acted", "in the text alone"
    if run.effect is None:
        return "where it acted", _UNMEASURED.get(run.method, "not measured") if run.acted else "nowhere"
    if run.effect.ndim < 3 or not bool(run.effect.abs().max() > 0):
        return "where it acted", "measured: nowhere"
    if not bool(run.effect[index % len(run.effect)].abs().max() > 0):
        return "where it acted", "nowhere in this picture"
    return "where it acted (bright: most)", ""


def _map(run: RunRecord, picture: Image.Image | None, index: int) -> Image.Image | None:
    return None if _effect_words(run, index)[1] else overlay(run, picture, index)


def _frame(page: Page, picture: Image.Image | None, x: float, y: float, title: str, empty: str) -> None:
    page.text(x, y, title, BODY, INK)
    page.box((x, y + 24, x + _EDGE, y + 24 + _EDGE), PANEL, 4)
    if picture is None:
        page.text(x + _EDGE / 2, y + 14 + _EDGE / 2, empty, BODY, FAINT, "centre")
    else:
        page.paste(picture, x, y + 24, _EDGE)


def _meaning(run: RunRecord) -> str:
    if run.meaning:
        return run.meaning
    if run.threshold is None:
        return "agreement with each concept: 0 none, 1 full"
    return "harm per category: 0 none, 1 certain"


def _bars(page: Page, run: RunRecord, index: int, x: float, y: float, width: float) -> None:
    row = run.scores[index % len(run.scores)] if run.scores else []
    page.text(x, y, fit(_meaning(run), SMALL, width), SMALL, FAINT)
    if not row:
        page.text(x, y + 28, "no score per picture was recorded", SMALL, FAINT)
        return
    names = list(zip(run.categories, row, strict=False))
    kept = sorted(range(len(names)), key=lambda k: -names[k][1])[:MOST_CATEGORIES]
    names = [names[k] for k in sorted(kept)]
    label = min(max(measure(name, BODY) for name, _ in names), 0.46 * width)
    start, end = x + label + 8, x + width - 36
    limit = 2.0 if run.threshold is None else max(run.threshold, 0.0)
    at = start + (end - start) * min(limit, 1.0)
    top = y + 24.0
    for name, score in names:
        page.text(x, top, fit(name, BODY, label), BODY, INK)
        page.box((start, top + 3, end, top + 16), PANEL, 2)
        inside = min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0
        ink = HARM if score >= limit else CALM
        page.box((start, top + 3, start + (end - start) * inside, top + 16), ink, 2)
        page.text(x + width, top, f"{score:.2f}", BODY, ink, "right")
        top += _BAR
    if run.threshold is not None:
        page.dashed(at, y + 22, top, INK)
    acts = "acts on every prompt" if run.threshold is None else f"dashed: acts from {run.threshold:.2f}"
    left_out = f"; the {MOST_CATEGORIES} highest are shown" if len(run.categories) > MOST_CATEGORIES else ""
    page.text(x, top, fit(f"{acts}{left_out}", SMALL, width), SMALL, FAINT)
    if run.threshold is not None and run.steps:
        words, ink = _verdict(run, max(row))
        page.text(x, top + 20, fit(words, BODY, width), BODY, ink)


def _verdict(run: RunRecord, score: float) -> tuple[str, tuple[int, int, int]]:
    """What became of one picture, and the ink to say it in."""
    assert run.threshold is not None
    if not (score >= run.threshold and score > 0):
        return "harmless: left alone", CALM
    return "harmful: changed" if run.acted else "harmful: NOT changed", HARM
