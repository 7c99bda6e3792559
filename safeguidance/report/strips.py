"""The lower part of a report: what happened from step to step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .heat import flat, heat_image, share
from .narration import in_steps
from .page import WIDTH, Ink, Page, fit, measure, wrap
from .trace import RunRecord, StepRecord

MOST_CURVES, MOST_MASKS = 4, 5
MARGIN, BODY, SMALL = 10, 15, 12
LINE, ROW = 19.0, 15.0
"""Heights of a line of BODY and of SMALL."""
INK, FAINT, PAPER, PANEL, GRID = (32, 36, 44), (92, 100, 112), (255, 255, 255), (244, 246, 249), (222, 226, 232)
CALM, HARM, IDLE = (70, 130, 180), (208, 60, 48), (206, 212, 220)
_CURVE_INKS = ((208, 60, 48), (70, 130, 180), (224, 150, 30), (60, 150, 90))
_CELL = 42
_INNER = WIDTH - 2 * MARGIN
_CURVE = 32.0

Live = dict[int, list[tuple[int, torch.Tensor]]]
"""Sample -> its maps, as (evaluation, map)."""


def _step_words(run: RunRecord) -> list[str]:
    total, acted = len(run.steps), sum(step.acted for step in run.steps)
    extra = sum(step.extra_evaluations for step in run.steps)
    cost = "no extra model evaluation" if not extra else f"{extra} extra evaluation{'s' * (extra != 1)}"
    if not total:
        none = "no step was recorded" if run.sampled else "the text was changed or left alone before sampling"
        return wrap(none, SMALL, _INNER, 2)
    when = in_steps(run) if run.total_steps == total else f"in {acted} of {total} evaluations of the guider"
    return wrap(f"changed {when}; {cost}", SMALL, _INNER, 2)


def steps_height(run: RunRecord) -> float:
    """Height of ``draw_steps``."""
    return ROW * len(_step_words(run)) + (20 + ROW + 8 if run.steps else 8)


def draw_steps(page: Page, run: RunRecord, y: float) -> None:
    """One mark per evaluation: changed, only measured, left alone."""
    for line in _step_words(run):
        page.text(MARGIN, y, line, SMALL, INK if run.steps else FAINT)
        y += ROW
    if not run.steps:
        return
    cell = _INNER / len(run.steps)
    gap = 2.0 if cell >= 6 else 0.5 if cell >= 3 else 0.0
    for index, step in enumerate(run.steps):
        left = MARGIN + index * cell
        page.box((left, y + 4, left + max(cell - gap, 0.3), y + 17), _step_ink(step), 2 if gap else 0)
    inks = {_step_ink(step) for step in run.steps}
    names = (("changed", HARM), ("measured", CALM), ("left alone", IDLE))
    ends = ("first", "last") if len(inks) > 1 else ("first step", "last step")
    page.text(MARGIN, y + 20, ends[0], SMALL, FAINT)
    page.text(WIDTH - MARGIN, y + 20, ends[1], SMALL, FAINT, "right")
    _legend(page, y + 20, [entry for entry in names if entry[1] in inks], 28 if len(inks) > 1 else 56)


def _step_ink(step: StepRecord) -> Ink:
    return HARM if step.acted else CALM if step.extra_evaluations else IDLE


def _legend(page: Page, y: float, entries: Sequence[tuple[str, Ink]], beside: float = 0) -> None:
    """Names of inks in the middle of a line; ``beside`` is what other words take at either end of it."""
    space = _INNER - 2 * beside
    if sum(measure(name, SMALL) + 16 for name, _ in entries) > space:
        entries = [(fit(name, SMALL, space / len(entries) - 16), ink) for name, ink in entries]
    spare = space - sum(measure(name, SMALL) + 13 for name, _ in entries)
    gap = min(12.0, spare / max(len(entries), 1))
    x = WIDTH / 2 - sum(measure(name, SMALL) + 13 + gap for name, _ in entries) / 2 + gap / 2
    for name, ink in entries:
        page.box((x, y + 3, x + 10, y + 13), ink, 2)
        page.text(x + 13, y, name, SMALL, FAINT)
        x += measure(name, SMALL) + 13 + gap


def has_curve(run: RunRecord) -> bool:
    """Whether scores were taken more than once, so that there is a curve to draw."""
    return sum(bool(step.scores) for step in run.steps) > 1


def _curve_words(run: RunRecord) -> list[str]:
    kind = "agreement" if run.threshold is None else "harm"
    acts = "" if run.threshold is None else f"; grey: acts from {run.threshold:.2f}"
    return wrap(f"{kind}, evaluation by evaluation{acts}", SMALL, _INNER, 2)


def curves_height(run: RunRecord) -> float:
    """Height of ``draw_curves``; 0 where there is no curve."""
    return ROW * len(_curve_words(run)) + _CURVE + ROW + 16 if has_curve(run) else 0.0


def draw_curves(page: Page, run: RunRecord, y: float) -> None:
    """Scores that change from step to step, one curve per category, the highest few."""
    names = run.categories or tuple(f"score {k + 1}" for k in range(max(len(step.scores) for step in run.steps)))
    series = {
        name: [(index, step.scores[k]) for index, step in enumerate(run.steps) if k < len(step.scores)]
        for k, name in enumerate(names)
    }
    ranked = sorted(
        (name for name in series if len(series[name]) > 1), key=lambda name: -max(v for _, v in series[name])
    )
    for line in _curve_words(run):
        page.text(MARGIN, y, line, SMALL, INK)
        y += ROW
    top, bottom, left, right = y + 4, y + 4 + _CURVE, MARGIN + 12.0, float(WIDTH - MARGIN)
    for value in (0.0, 1.0):
        level = bottom - (bottom - top) * value
        page.line([(left, level), (right, level)], GRID)
        page.text(left - 4, level - 8, f"{value:g}", SMALL, FAINT, "right")
    if run.threshold is not None:
        limit = bottom - (bottom - top) * min(max(run.threshold, 0.0), 1.0)
        page.line([(left, limit), (right, limit)], FAINT)
    cell = (right - left) / len(run.steps)
    shown = ranked[:MOST_CURVES]
    for name, ink in zip(shown, _CURVE_INKS, strict=False):
        points = [
            (left + (index + 0.5) * cell, bottom - (bottom - top) * min(max(value, 0.0), 1.0))
            for index, value in series[name]
        ]
        page.line(points, ink, 1.5)
    _legend(page, bottom + 4, list(zip(shown, _CURVE_INKS, strict=False)))


def live_maps(run: RunRecord, samples: int) -> Live:
    """Per sample that was changed, its map at some evaluations, evenly chosen, as (evaluation, map)."""
    moved = [(index, flat(step.effect)) for index, step in enumerate(run.steps) if step.effect is not None]
    moved = [(index, effect) for index, effect in moved if effect.ndim == 3]
    count = min(len(moved), MOST_MASKS)
    chosen = [moved[place * (len(moved) - 1) // max(count - 1, 1)] for place in range(count)]
    rows = {k: [(index, effect[k]) for index, effect in chosen if k < len(effect)] for k in range(samples)}
    return {k: row for k, row in rows.items() if any(bool(effect.any()) for _, effect in row)}


def _mask_words(live: Live) -> list[str]:
    found = sorted({index + 1 for row in live.values() for index, _ in row})
    rows = ", a row per picture" if len(live) > 1 else ""
    return wrap(f"where it acted at evaluation {', '.join(map(str, found))}{rows}", SMALL, _INNER, 2)


def masks_height(live: Live) -> float:
    """Height of ``draw_masks``."""
    return ROW * len(_mask_words(live)) + 4 + len(live) * _CELL if live else 0


def draw_masks(page: Page, run: RunRecord, live: Live, y: float) -> None:
    """Where it acted at some evaluations, one row per sample, all on one scale."""
    for line in _mask_words(live):
        page.text(MARGIN, y, line, SMALL, INK)
        y += ROW
    largest = max(float(effect.max()) for row in live.values() for _, effect in row)
    for row in live.values():
        for place, (_, effect) in enumerate(row):
            page.paste(heat_image(share(effect, largest)), MARGIN + place * _INNER / MOST_MASKS, y + 3, _CELL - 4)
        y += _CELL
