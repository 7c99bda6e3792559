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
    LINE,
    MARGIN,
    PANEL,
    PAPER,
    ROW,
    SMALL,
    curves_height,
    draw_curves,
    draw_masks,
    draw_steps,
    has_curve,
    live_maps,
    masks_height,
    steps_height,
)
from .trace import RunRecord

__all__ = ["PIXELS", "draw_report"]

MOST_SAMPLES, MOST_CATEGORIES = 4, 12
_UNMEASURED = {"SafeCFG": "not measured (turn map on)"}
_WARNING = ((255, 243, 214), (120, 72, 0))
_VERDICT = 16
_GAP, _BAR = 10, 20
_INNER = WIDTH - 2 * MARGIN
# Pages with curves are long, so their pictures are smaller.
_EDGES = {False: (_INNER - _GAP) / 2, True: 112.0}


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
    # frames of a video have one score together, so one of them says it all
    shown = 1 if count > MOST_SAMPLES and len(run.scores) < 2 else min(count, MOST_SAMPLES)
    head, parts = _head_lines(report), [_sample_height(report, index) for index in range(shown)]
    live = live_maps(run, shown)
    steps, curves, masks = steps_height(run), curves_height(run), masks_height(live)
    height = head.height + sum(parts) + steps + curves + masks + (20 if count > shown else 0)
    page = Page(height, PAPER)
    _header(page, report, head)
    y = head.height
    for index, part in enumerate(parts):
        _sample(page, report, index, y)
        y += part
    if count > shown:
        page.text(MARGIN, y - 4, f"{count - shown} more pictures are not shown", SMALL, FAINT)
        y += 20
    draw_steps(page, run, y)
    if has_curve(run):
        draw_curves(page, run, y + steps)
    if live:
        draw_masks(page, run, live, y + steps + curves)
    return page.tensor()


@dataclass(frozen=True)
class _Head:
    decision: list[str]
    warning: list[str]
    tokens: list[str]
    height: float


def _head_lines(report: Report) -> _Head:
    decision = wrap(report.decision, BODY, _INNER, 6)
    warning = wrap(report.warning, BODY, _INNER - 12, 6) if report.warning else []
    tokens = []
    if report.run.triggers:
        tokens += wrap(f"raised the flag: {', '.join(report.run.triggers)}", SMALL, _INNER, 2)
    if report.run.taken_along:
        tokens += wrap(f"taken along with it: {', '.join(report.run.taken_along)}", SMALL, _INNER, 2)
    height = 41 + LINE * len(decision) + ROW * len(tokens) + (LINE * len(warning) + 16 if warning else 0)
    return _Head(decision, warning, tokens, height + 10)


def _header(page: Page, report: Report, head: _Head) -> None:
    run = report.run
    scored = run.threshold is not None and (any(run.scores) or any(step.scores for step in run.steps))
    word = "HARMFUL PROMPT" if run.harmful else "HARMLESS PROMPT" if scored else "NOT JUDGED"
    ink = HARM if run.harmful else CALM if scored else FAINT
    if report.warning:
        word, ink = f"{word}?", FAINT
    page.box((0, 0, WIDTH, head.height - 7), PANEL)
    page.box((MARGIN, 8, MARGIN + measure(word, _VERDICT) + 16, 35), ink, 5)
    page.text(MARGIN + 8, 11.5, word, _VERDICT, PAPER)
    left = MARGIN + measure(word, _VERDICT) + 22
    page.text(WIDTH - MARGIN, 15, fit(run.method, SMALL, WIDTH - MARGIN - left), SMALL, FAINT, "right")
    y = 39.0
    for line in head.decision:
        page.text(MARGIN, y, line, BODY, INK)
        y += LINE
    if head.warning:
        fill, words = _WARNING
        page.box((MARGIN, y + 3, WIDTH - MARGIN, y + 11 + LINE * len(head.warning)), fill, 4)
        y += 6
        for line in head.warning:
            page.text(MARGIN + 6, y, line, BODY, words)
            y += LINE
        y += 10
    for line in head.tokens:
        page.text(MARGIN, y, line, SMALL, INK)
        y += ROW


def _beside(report: Report, index: int) -> bool:
    """Whether a picture and the scores share a row: the map, or the picture where there is no map and no pair."""
    mapped = not _effect_words(report.run, index)[1]
    return (mapped and (report.unguarded is not None or report.images is None)) or (
        not mapped and report.images is not None and report.unguarded is None
    )


def _edge(run: RunRecord) -> float:
    """How large the pictures are."""
    return _EDGES[has_curve(run)]


def _pictures(run: RunRecord) -> float:
    """Height of a row of pictures with their titles."""
    return 17 + _edge(run) + 6


def _bars_width(report: Report, index: int) -> float:
    return _INNER - _edge(report.run) - _GAP if _beside(report, index) else _INNER


def _bars_height(report: Report, index: int) -> float:
    run, width = report.run, _bars_width(report, index)
    rows = max(1, min(len(run.categories), MOST_CATEGORIES)) if run.scores else 1
    words = LINE * (len(_meaning(run, width)) + len(_verdict(report, index, width)[0]))
    return words + 4 + rows * _BAR + ROW * len(_foot(run, width)) + 6


def _sample_height(report: Report, index: int) -> float:
    mapped, bars = not _effect_words(report.run, index)[1], _bars_height(report, index)
    pair = report.images is not None and (report.unguarded is not None or mapped)
    unsaid = 0.0 if mapped else ROW + 4
    row = _pictures(report.run)
    return (row if pair else 0) + (max(row, bars) if _beside(report, index) else bars) + unsaid + 9


def _sample(page: Page, report: Report, index: int, y: float) -> None:
    """Before and after, then the map and the scores; where there is no map, a line says why."""
    run, edge, left = report.run, _edge(report.run), float(MARGIN)
    right, row = WIDTH - MARGIN - edge, _pictures(report.run)
    picture = None if report.images is None else to_image(report.images[index])
    end = y + _sample_height(report, index) - 6
    many = report.images is not None and len(report.images) > 1
    title = f"picture {index + 1}" if many else "the picture"
    what, why = _effect_words(run, index)
    heat = None if why else overlay(run, picture, index)
    beside, width = _beside(report, index), _bars_width(report, index)
    if picture is not None and report.unguarded is not None:
        before = to_image(report.unguarded[index % len(report.unguarded)])
        number = f" {index + 1}" if many else ""
        _frame(page, before, left, y, edge, f"unguarded{number}")
        _frame(page, picture, right, y, edge, f"guarded{number}")
        y += row
    elif picture is not None:
        _frame(page, picture, left, y, edge, title)
        if heat is not None:
            _frame(page, heat, right, y, edge, what)
            y += row
    if heat is not None and beside:
        _frame(page, heat, left, y, edge, what)
    if why:
        page.text(left, end - ROW - 8, fit(f"{what}: {why}", SMALL, _INNER), SMALL, FAINT)
    _bars(page, report, index, WIDTH - MARGIN - width, y, width)
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
    return "where it acted", ""


def _frame(page: Page, picture: Image.Image, x: float, y: float, edge: float, title: str) -> None:
    page.text(x, y, title, SMALL, INK)
    page.box((x, y + 17, x + edge, y + 17 + edge), PANEL, 4)
    page.paste(picture, x, y + 17, edge)


def _meaning(run: RunRecord, width: float) -> list[str]:
    if not run.scores:
        return []
    harmed = "harm per category: 0 none, 1 certain"
    words = run.meaning or ("agreement per concept: 0 none, 1 full" if run.threshold is None else harmed)
    what, colon, scale = words.partition(": ")
    if measure(words, BODY) <= width or not colon:
        return wrap(words, BODY, width, 4)
    return [*wrap(f"{what}:", BODY, width, 2), *wrap(scale, BODY, width, 2)]


def _foot(run: RunRecord, width: float) -> list[str]:
    acts = "acts on every prompt" if run.threshold is None else f"dashed: acts from {run.threshold:.2f}"
    left_out = f"; the {MOST_CATEGORIES} highest are shown" if len(run.categories) > MOST_CATEGORIES else ""
    return wrap(f"{acts}{left_out}", SMALL, width, 3) if run.scores else []


def _bars(page: Page, report: Report, index: int, x: float, y: float, width: float) -> None:
    """A bar a category, in narrow columns under its name."""
    run = report.run
    row = run.scores[index % len(run.scores)] if run.scores else []
    for line in _meaning(run, width):
        page.text(x, y, line, BODY, INK)
        y += LINE
    top = y + 4
    if not row:
        for line in wrap("no score per picture was recorded", SMALL, width, 2):
            page.text(x, top, line, SMALL, FAINT)
            top += ROW
        return
    names = list(zip(run.categories, row, strict=False))
    kept = sorted(range(len(names)), key=lambda k: -names[k][1])[:MOST_CATEGORIES]
    names = [names[k] for k in sorted(kept)]
    number = measure("0.00", SMALL) + 6
    label = width - number
    start, end, above = x, x + width, 14.0
    if width == _INNER:
        label = min(max(measure(name, SMALL) for name, _ in names), 0.5 * width)
        start, end, above = x + label + 6, x + width - number, 3.0
    limit = 2.0 if run.threshold is None else max(run.threshold, 0.0)
    at = start + (end - start) * min(limit, 1.0)
    high = 12.0 if width == _INNER else 4.0
    for name, score in names:
        page.text(x, top, fit(name, SMALL, label), SMALL, INK)
        page.box((start, top + above, end, top + above + high), PANEL, 2)
        inside = min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0
        ink = HARM if score >= limit else CALM
        page.box((start, top + above, start + (end - start) * inside, top + above + high), ink, 2)
        if run.threshold is not None:
            page.dashed(at, top + above - 1, top + above + high + 1, INK)
        page.text(x + width, top, f"{score:.2f}", SMALL, ink, "right")
        top += _BAR
    for line in _foot(run, width):
        page.text(x, top, line, SMALL, FAINT)
        top += ROW
    words, ink = _verdict(report, index, width)
    for line in words:
        page.text(x, top, line, BODY, ink)
        top += LINE


def _verdict(report: Report, index: int, width: float) -> tuple[list[str], tuple[int, int, int]]:
    """What became of one picture, and the ink to say it in; nothing where the words on top say it of the only one."""
    run = report.run
    if run.threshold is None or not run.steps or not run.scores:
        return [], FAINT
    score = max(run.scores[index % len(run.scores)], default=0.0)
    harmful = score >= run.threshold and score > 0
    many = len(run.scores) > 1 or (report.images is not None and len(report.images) > 1)
    if not many and (run.acted or not harmful):
        return [], FAINT
    if not harmful:
        return wrap("harmless: left alone", BODY, width, 2), CALM
    return wrap("harmful: changed" if run.acted else "harmful: NOT changed", BODY, width, 2), HARM
