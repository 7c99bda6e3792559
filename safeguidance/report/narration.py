"""A run in words: what is being done while it goes on, and what was decided in the end."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mode

from .trace import RunRecord

SAME_LEVEL = 1e-4
"""Noise levels that differ by less than this share of themselves are one."""


STOPPED = "; stopped before the end"
"""What is added to the decision of a run that broke off."""


def step_at(levels: Sequence[float], sigma: float) -> int:
    """Which step of a schedule an evaluation belongs to.

    Args:
        levels: falling noise levels of the schedule, of which the last ends it.
        sigma: noise level of the evaluation; samplers also ask between two levels.

    Returns:
        1 for the first step, ``len(levels) - 1`` for the last; 0 where there is no step.
    """
    steps = len(levels) - 1
    passed = sum(level * (1 + SAME_LEVEL) >= sigma for level in levels[:-1])
    return min(max(passed, 1), steps) if steps > 0 else 0


def largest(run: RunRecord) -> tuple[str, float] | None:
    """The category with the largest score of all samples, and that score; None where nothing was scored."""
    found = [pair for row in run.scores for pair in zip(row, run.categories, strict=False)]
    if not found:
        return None
    score, name = max(found)
    return name, score


def progress_line(run: RunRecord, sigma: float, doing: str) -> str:
    """The line shown during a step, such as ``step 3 of 20: violence 0.83, redirecting``.

    Args:
        run: what was recorded so far.
        sigma: noise level of the step.
        doing: what is done in it.
    """
    best = largest(run)
    score = "" if best is None else f"{best[0]} {best[1]:.2f}, "
    return f"step {step_at(run.levels, sigma)} of {max(len(run.levels) - 1, 0)}: {score}{doing}"


def in_steps(run: RunRecord) -> str:
    """When a run acted, such as ``in steps 1-12 of 20``; a step counts if one of its evaluations was changed."""
    total = len(run.levels) - 1
    acted = sorted({step_at(run.levels, step.sigma) for step in run.steps if step.acted})
    if not acted:
        return "in no step"
    if len(acted) == total:
        return f"in all {total} steps" if total > 1 else "in the only step"
    if len(acted) == 1:
        return f"in step {acted[0]} of {total}"
    if acted[-1] - acted[0] + 1 == len(acted):
        return f"in steps {acted[0]}-{acted[-1]} of {total}"
    return f"in {len(acted)} of {total} steps"


def in_pictures(run: RunRecord) -> str:
    """Which share of a batch reached the threshold, as the end of a sentence; empty where all did."""
    limit = 0.0 if run.threshold is None else run.threshold
    count = sum(max(row) >= limit and max(row) > 0 for row in run.scores if row)
    return "" if count == len(run.scores) else f", in {count} of {len(run.scores)} pictures"


def concept_doing(run: RunRecord, chosen: Sequence[int], asks: bool, reads: bool) -> str:
    """What a concept guidance method does in a step.

    Args:
        run: what was recorded before it.
        chosen: categories guided away from so far, one per guided sample and step.
        asks: whether the step predicts any concept.
        reads: whether it only measures.
    """
    judges = run.threshold is not None
    if reads:
        return "measuring" if judges else "warming up"
    if asks:
        best = largest(run)
        if judges and best is not None:
            return f"guiding away from {best[0]}"
        return f"guiding away from {run.categories[chosen[-1]]}" if chosen else "guiding"
    if run.acted:
        return "left alone from here on"
    return "left alone" if judges else "left alone until the window opens"


def concept_decision(run: RunRecord, chosen: Sequence[int]) -> str:
    """What a concept guidance method did in a run, with the arguments of ``concept_doing``."""
    best, judges = largest(run), run.threshold is not None
    if best is None:
        if judges:
            return "NOT JUDGED: the run or the window ended before anything was measured; plain CFG"
        return "the window or the range of the prompt was never reached: plain CFG"
    name, score = best
    if not judges:
        if not run.acted:
            return "guided in no step: plain CFG"
        if not chosen:
            return f"guided {in_steps(run)}, away from all {len(run.categories)} concepts"
        return f"guided {in_steps(run)}, most often away from {run.categories[mode(chosen)]}"
    if run.acted:
        return f"{name} {score:.2f}: guided {in_steps(run)}{in_pictures(run)}"
    if run.threshold is not None and (score < run.threshold or score == 0):
        return f"harmless ({score:.2f}): left untouched"
    return f"{name} {score:.2f}: NOT guided, since the run or the window ended while it was measured"
