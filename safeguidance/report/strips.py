"""The lower part of a report: what happened from step to step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .heat import flat, heat_image, share
from .narration import in_steps
from .page import WIDTH, Ink, Page, fit, measure
from .trace import RunRecord, StepRecord

MOST_CURVES, MOST_MASKS = 4, 5
MARGIN, BODY, SMALL = 14, 14, 13
INK, FAINT, PAPER, PANEL, GRID = (32, 36, 44), (92, 100, 112), (255, 255, 255), (244, 246, 249), (222, 226, 232)
CALM, HARM, IDLE = (70, 130, 180), (208, 60, 48), (206, 212, 220)
_CURVE_INKS = ((208, 60, 48), (70, 130, 180), (224, 150, 30), (60, 150, 90))
_CELL = 100

Live = dict[int, list[tuple[int, torch.Tensor]]]
"""Sample -> its maps, as (evaluation, map)."""


def draw_steps(page: Page, run: RunRecord, y: float) -> None:
    """One mark per evaluation: changed, only measured, left alone."""
    total, acted = len(run.steps), sum(step.acted for step in run.steps)
    extra = sum(step.extra_evaluations for step in run.steps)
    cost = "no extra model evaluation" if not extra else f"{extra} extra model evaluation{'s' * (extra != 1)}"
    if not total:
        none = "no step was recorded" if run.sampled else "the text was changed or left alone before sampling"
        page.text(MARGIN, y, none, SMALL, FAINT)
        return
    when = in_steps(run) if run.total_steps == total else f"in {acted} of {total} evaluations of the guider"
    page.text(MARGIN, y, fit(f"changed {when}; {cost}", SMALL, WIDTH - 2 * MARGIN), SMALL, INK)
    cell = (WIDTH - 2 * MARGIN) / total
    gap = 2.0 if cell >= 6 else 0.5 if cell >= 3 else 0.0
    for index, step in enumerate(run.steps):
        left = MARGIN + index * cell
        page.box((left, y + 22, left + max(cell - gap, 0.3), y + 38), _step_ink(step), 2 if gap else 0)
    inks = {_step_ink(step) for step in run.steps}
    names = (("changed", HARM), ("only measured", CALM), ("left alone", IDLE))
    page.text(MARGIN, y + 42, "first step", SMALL, FAINT)
    page.text(WIDTH - MARGIN, y + 42, "last step", SMALL, FAINT, "right")
    _legend(page, y + 42, [entry for entry in names if entry[1] in inks])


def _step_ink(step: StepRecord) -> Ink:
    return HARM if step.acted else CALM if step.extra_evaluations else IDLE


def _legend(page: Page, y: float, entries: Sequence[tuple[str, Ink]]) -> None:
    width = (WIDTH - 2 * MARGIN) / max(len(entries), 1) - 30 if len(entries) > 3 else WIDTH
    entries = [(fit(name, SMALL, width), ink) for name, ink in entries]
    x = WIDTH / 2 - sum(measure(name, SMALL) + 26 for name, _ in entries) / 2
    for name, ink in entries:
        page.box((x, y + 4, x + 10, y + 14), ink, 2)
        page.text(x + 14, y, name, SMALL, FAINT)
        x += measure(name, SMALL) + 26


def has_curve(run: RunRecord) -> bool:
    """Whether scores were taken more than once, so that there is a curve to draw."""
    return sum(bool(step.scores) for step in run.steps) > 1


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
    top, bottom, left, right = y + 24, y + 88, MARGIN + 16.0, float(WIDTH - MARGIN)
    kind, most = ("agreement with each concept", "full") if run.threshold is None else ("harm", "certain")
    acts = "" if run.threshold is None else f"; grey line: acts from {run.threshold:.2f}"
    page.text(MARGIN, y, f"{kind} at each evaluation: 0 none, 1 {most}{acts}", SMALL, INK)
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
    _legend(page, bottom + 10, list(zip(shown, _CURVE_INKS, strict=False)))


def live_maps(run: RunRecord, samples: int) -> Live:
    """Per sample that was changed, its map at some evaluations, evenly chosen, as (evaluation, map)."""
    moved = [(index, flat(step.effect)) for index, step in enumerate(run.steps) if step.effect is not None]
    moved = [(index, effect) for index, effect in moved if effect.ndim == 3]
    count = min(len(moved), MOST_MASKS)
    chosen = [moved[place * (len(moved) - 1) // max(count - 1, 1)] for place in range(count)]
    rows = {k: [(index, effect[k]) for index, effect in chosen if k < len(effect)] for k in range(samples)}
    return {k: row for k, row in rows.items() if any(bool(effect.any()) for _, effect in row)}


def masks_height(live: Live) -> float:
    """Height of ``draw_masks``."""
    return 24 + len(live) * _CELL if live else 0


def draw_masks(page: Page, run: RunRecord, live: Live, y: float) -> None:
    """Where it acted at some evaluations, one row per sample, all on one scale."""
    page.text(MARGIN, y, "where it acted, evaluation by evaluation (bright: most)", SMALL, INK)
    largest = max(float(effect.max()) for row in live.values() for _, effect in row)
    edge, cell = _CELL - 24.0, (WIDTH - 2 * MARGIN) / MOST_MASKS
    top = y + 22
    for sample, row in live.items():
        for place, (index, effect) in enumerate(row):
            left = MARGIN + place * cell
            page.paste(heat_image(share(effect, largest)), left, top, edge)
            first = len(live) > 1 and place == 0
            title = f"picture {sample + 1}, no. {index + 1}" if first else f"evaluation {index + 1}"
            page.text(left, top + edge + 1, fit(title, SMALL, cell - 2), SMALL, FAINT)
        top += _CELL
