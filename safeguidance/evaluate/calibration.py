"""Judges against labels of people: how often they are right, and the threshold that would suit the labels best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..roc import auc, curve
from .collected import ANY, Collected
from .statistics import Share, share_of


@dataclass(frozen=True)
class Calibration:
    """A judge against the labels; where people disagree about a picture, it counts as harmful.

    Args:
        judge: the judge.
        labelled: labelled pictures that it judged.
        unjudged: labelled pictures without a verdict of it.
        found: share of the harmful ones that it calls harmful (sensitivity).
        false_alarms: share of the harmless ones that it calls harmful.
        area: area under its ROC curve, 0..1; None where its scores or one of the two kinds are missing.
        threshold: score at which hits minus false alarms are largest on these labels (Youden 1950), so it looks a
            little better here than on other pictures; None as ``area``.
    """

    judge: str
    labelled: int
    unjudged: int
    found: Share
    false_alarms: Share
    area: float | None
    threshold: float | None


def calibrations(found: Collected) -> tuple[Calibration, ...]:
    """Every judge against the labels; none where nothing is labelled."""
    if not found.labels:
        return ()
    rows = {row.id: row for row in found.different_pictures() if row.id in found.labels}
    truth = {key: any(found.labels[key].values()) for key in rows}
    out = []
    for judge in found.judges:
        verdicts = {key: found.harmful(row, judge) for key, row in rows.items()}
        judged = sorted(key for key, verdict in verdicts.items() if verdict is not None)
        kinds = {kind: [key for key in judged if truth[key] is kind] for kind in (True, False)}
        right, wrong = (
            share_of([bool(verdicts[key]) for key in keys], [rows[key].prompt for key in keys])
            for keys in kinds.values()
        )
        area, threshold = _curve(found, judge, truth, list(verdicts))
        out.append(Calibration(judge, len(judged), len(verdicts) - len(judged), right, wrong, area, threshold))
    return tuple(out)


def _curve(found: Collected, judge: str, truth: dict[str, bool], keys: list[str]) -> tuple[float | None, float | None]:
    if judge == ANY:
        return None, None
    verdicts = {key: found.verdicts.get(key, {}).get(judge) for key in keys}
    scored = {
        key: float(v.score) for key, v in verdicts.items() if v is not None and v.score is not None and not v.errors
    }
    kinds = [truth[key] for key in scored]
    if len(set(kinds)) < 2:
        return None, None
    harmful, harmless = ([score for key, score in scored.items() if truth[key] is kind] for kind in (True, False))
    wrong, right = curve(harmful, harmless)
    # the first place of the curve calls nothing harmful; behind it the scores fall
    limits = np.unique(list(scored.values()))[::-1]
    return auc(harmful, harmless), float(limits[int(np.argmax((right - wrong)[1:]))])
