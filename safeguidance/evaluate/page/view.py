"""What the page's template needs, computed from a summary: rows of the forest plots, points of the scatter, cards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..figures import Comparison, Harm
from ..statistics import Share
from ..summary import Summary
from . import wording

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SIDE, LEFT, TOP, PLOT = 440, 64, 26, 340
"""Width of the scatter's drawing, its margins, and the side of the plot itself."""


@dataclass(frozen=True)
class Bar:
    """One line of a forest plot; places are percent of its width.

    Args:
        label: what it is of.
        value: the figure in words.
        detail: counts, p value.
        at: place of the point; None without a figure.
        low: place where the interval begins.
        high: place where it ends.
        tone: "baseline", "better", "worse" or "same".
        warning: what the figure leaves out, "" where nothing.
    """

    label: str
    value: str
    detail: str
    at: float | None
    low: float
    high: float
    tone: str
    warning: str = ""


@dataclass(frozen=True)
class Group:
    """Lines of one group of prompts.

    Args:
        name: the group.
        bars: its lines.
        whole: whether it stands at first sight; categories are folded.
    """

    name: str
    bars: tuple[Bar, ...]
    whole: bool


@dataclass(frozen=True)
class Point:
    """An arm in the scatter; places in the drawing's own units."""

    letter: str
    arm: str
    x: float
    y: float
    left: float
    right: float
    top: float
    bottom: float
    label_x: float
    label_y: float
    words: str
    baseline: bool


def harm_groups(summary: Summary, judge: str) -> list[Group]:
    """Forest plot of harmful shares by one judge."""
    return [
        Group(wording.group(category, harmful), tuple(_harm_bar(summary, one) for one in rows), not category)
        for (category, harmful), rows in _grouped(summary.harm, judge)
    ]


def difference_groups(summary: Summary, judge: str) -> list[Group]:
    """Forest plot of differences to the baseline by one judge."""
    return [
        Group(wording.group(category, harmful), tuple(_difference_bar(one) for one in rows), not category)
        for (category, harmful), rows in _grouped(summary.comparisons, judge)
    ]


def _grouped(rows: Any, judge: str) -> Iterator[tuple[tuple[str, bool], list[Any]]]:
    found: dict[tuple[str, bool], list[Any]] = {}
    for row in rows:
        if row.judge == judge:
            found.setdefault((row.category, row.harmful), []).append(row)
    yield from found.items()


def _harm_bar(summary: Summary, one: Harm) -> Bar:
    s, tone = one.share, "baseline" if one.arm == summary.baseline else "arm"
    parts = []
    if one.unjudged and one.least is not None and one.most is not None:
        reach = f"between {wording.percent(one.least)} and {wording.percent(one.most)} whatever they are"
        parts.append(f"{one.unjudged} without a verdict: {reach}")
    if one.failed:
        parts.append(f"{one.failed} without a picture")
    if s.share is None or s.low is None or s.high is None:
        return Bar(one.arm, "no verdicts", "", None, 0, 0, tone, "; ".join(parts))
    return Bar(
        one.arm, wording.share(s), wording.counted(s), 100 * s.share, 100 * s.low, 100 * s.high, tone, "; ".join(parts)
    )


def _difference_bar(one: Comparison) -> Bar:
    p, warning = one.paired, ""
    if one.unjudged and one.worst is not None:
        warning = f"{one.unjudged} pairs without a verdict: at worst {wording.points(one.worst)} points"
    if p.difference is None or p.low is None or p.high is None:
        return Bar(one.arm, "no pairs", "", None, 0, 0, "same", warning)
    shown = one.adjusted is not None and one.adjusted < 0.05
    tone = "same" if not shown else "better" if p.difference < 0 else "worse"
    raised = "" if one.adjusted is None else f", with Holm {wording.chance(one.adjusted)}"
    detail = f"{p.pairs} pairs, {p.better} less, {p.worse} more, {wording.chance(p.p_value)}{raised}"
    at, low, high = (50 + 50 * value for value in (p.difference, p.low, p.high))
    return Bar(one.arm, wording.difference(p), detail, at, low, high, tone, warning)


def scatter(summary: Summary, judge: str) -> list[Point]:
    """Harm against damage: harmful share of harmful prompts, and share of harmless pictures that changed."""
    harm = {one.arm: one.share for one in summary.harm if one.judge == judge and one.harmful and not one.category}
    same: dict[str, Share] = {one.arm: one.identical for one in summary.damage}
    points: list[Point] = []
    taken: list[tuple[float, float]] = []
    for place, arm in enumerate(summary.arms):
        s = harm.get(arm)
        if s is None or s.share is None or s.low is None or s.high is None:
            continue
        changed = (0.0, 0.0, 0.0)
        if arm != summary.baseline:
            i = same.get(arm)
            if i is None or i.share is None or i.low is None or i.high is None:
                continue
            changed = (1 - i.share, 1 - i.high, 1 - i.low)
        x, left, right = (LEFT + PLOT * value for value in changed)
        y, bottom, top = (TOP + PLOT * (1 - value) for value in (s.share, s.low, s.high))
        label = _free_place(x + 9, y - 8, taken)
        words = f"{wording.percent(s.share)} harmful, {wording.percent(changed[0])} of harmless pictures changed"
        letter = _LETTERS[place % len(_LETTERS)]
        points.append(Point(letter, arm, x, y, left, right, top, bottom, *label, words, arm == summary.baseline))
    return points


def _free_place(x: float, y: float, taken: list[tuple[float, float]]) -> tuple[float, float]:
    # letters move aside where another one stands
    while any(abs(x - other) < 13 and abs(y - height) < 13 for other, height in taken):
        x += 13
    taken.append((x, y))
    return x, y


def cards(summary: Summary, judge: str) -> list[dict[str, str]]:
    """The result in one card an arm."""
    harm = {one.arm: one for one in summary.harm if one.judge == judge and one.harmful and not one.category}
    changes = {one.arm: one for one in summary.comparisons if one.judge == judge and one.harmful and not one.category}
    damage = {one.arm: one for one in summary.damage}
    costs = {one.arm: one for one in summary.cost}
    out = []
    for arm in summary.arms:
        one, s = harm.get(arm), None
        if one is not None:
            s = one.share
        card = {"arm": arm, "baseline": "yes" if arm == summary.baseline else ""}
        card["harm"] = wording.percent(s.share) if s is not None and s.share is not None else "-"
        card["harm_interval"] = (
            f"{wording.percent(s.low)} to {wording.percent(s.high)}"
            if s is not None and s.low is not None and s.high is not None
            else "no verdicts"
        )
        change = changes.get(arm)
        card["change"] = wording.difference(change.paired) if change is not None else ""
        same = damage[arm].identical.share if arm in damage else None
        card["same"] = "" if same is None else wording.percent(same)
        ratio = costs[arm].time
        card["time"] = f"{ratio.mean:.2f}x" if arm != summary.baseline and ratio.mean is not None else ""
        out.append(card)
    return out


def folded(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of the run, with sessions that ran on the same as one that has all their times."""
    found: dict[str, dict[str, Any]] = {}
    for session in meta.get("sessions", []):
        same = {key: value for key, value in session.items() if key != "at"}
        group = found.setdefault(json.dumps(same, sort_keys=True, default=str), {"at": [], **same})
        group["at"].append(session.get("at", "unknown"))
    return {**meta, **({"sessions": list(found.values())} if found else {})}


def facts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Facts of the run as lines, nested ones with their path."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from facts(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (dict, list, tuple)) for item in value):
        for place, item in enumerate(value):
            yield from facts(item, f"{name}.{item.get('name', place) if isinstance(item, dict) else place}")
    elif isinstance(value, (list, tuple)):
        yield name, ", ".join(map(str, value))
    else:
        yield name, "" if value is None else str(value)
