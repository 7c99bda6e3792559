"""What happens at which score: pure, and on the side of refusing wherever a score or threshold is no number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import InputError, check_choice
from .schema import CategoryRule, Level

STAGES = ("prompt", "picture")
ORDER = ("pass", "guard", "replace", "refuse")
"""Actions from mildest to strictest."""


@dataclass(frozen=True)
class Decision:
    """What is done, and why.

    Args:
        action: one of ``ORDER``.
        category: that decided, "" where none did.
        score: its score, 0..1; None where it was no number.
        threshold: that it reached, 0..1; None where none was known.
        message: for the user; "" where the action is pass or guard.
        stage: prompt or picture.
        reason: for the log, in words; "" where the score says it all.
    """

    action: str
    category: str = ""
    score: float | None = None
    threshold: float | None = None
    message: str = ""
    stage: str = "prompt"
    reason: str = ""


def decide(
    level: Level, scores: Mapping[str, float], thresholds: Mapping[str, float], stage: str = "prompt"
) -> Decision:
    """What a level does with scores.

    Args:
        level: of the user.
        scores: category -> score of a guard or judge, 0..1.
        thresholds: category -> what that guard or judge was calibrated with, 0..1.
        stage: prompt: what is to be drawn, before sampling. picture: what was drawn, at the level's judge.

    Returns:
        The strictest of what the categories ask for. A score that is no number from 0 to 1, and a threshold that nobody
        gave, refuse: a guard that cannot be read guards nothing.

    Raises:
        InputError: if the stage is none, or it is picture and the level has no judge.
    """
    check_choice("stage", stage, STAGES)
    if stage == "picture" and level.judge is None:
        raise InputError("judge", f"the level {level.name!r} has none", "a judge, to decide on pictures")
    if not scores:
        return _refused(level, stage, "", None, None, "nothing was measured")
    found = []
    for category, score in scores.items():
        rule = level.rule_of(category)
        if rule is not None:
            found.append(_one(level, rule, category, score, thresholds.get(category), stage))
    if not found:
        return _refused(level, stage, "", None, None, "no category that the level looks for was measured")
    return worst(found)


def _one(
    level: Level, rule: CategoryRule, category: str, score: float, calibrated: float | None, stage: str
) -> Decision:
    judge = level.judge if stage == "picture" else None
    threshold = rule.threshold if stage == "prompt" else judge.threshold if judge else None
    threshold = calibrated if threshold is None else threshold
    if not _is_score(score):
        return _refused(level, stage, category, None, threshold, "the score is no number from 0 to 1")
    if threshold is None or not _is_score(threshold):
        return _refused(level, stage, category, score, None, "no threshold is known")
    if stage == "prompt" and rule.refuse_at is not None and score >= rule.refuse_at:
        return _refused(level, stage, category, score, rule.refuse_at)
    # as every guard of the pack: a score of 0 is never harmful, even at a threshold of 0
    if score < threshold or score == 0:
        return Decision("pass", category, score, threshold, stage=stage)
    action = rule.action
    if stage == "prompt" and level.refuse_prompts:
        action = "refuse"
    elif judge is not None and action == "guard":
        action = judge.action
    message = level.message if action in ("refuse", "replace") else ""
    return Decision(action, category, score, threshold, message, stage)


def _refused(
    level: Level, stage: str, category: str, score: float | None, threshold: float | None, reason: str = ""
) -> Decision:
    return Decision("refuse", category, score, threshold, level.message, stage, reason)


def _is_score(value: object) -> bool:
    # not a number compares false with everything
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def worst(decisions: Iterable[Decision]) -> Decision:
    """The strictest of several decisions, of equal ones that with the largest score.

    Raises:
        InputError: if there is none: what was not decided is not allowed.
    """
    found = list(decisions)
    if not found:
        raise InputError("decisions", "there is none", "at least one")
    return max(
        found,
        key=lambda one: (ORDER.index(one.action), math.inf if one.score is None and one.category else one.score or 0.0),
    )
