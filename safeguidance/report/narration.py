"""A run in words: what is done while it runs, and what was decided at its end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mode

from .trace import RunRecord

NOT_BEGUN = "NOT guarded: the run broke off before it began"
"""The decision of a run that was refused."""
STOPPED = "; stopped before the end"
"""What is added to the decision of a run that broke off."""


def largest(run: RunRecord) -> tuple[str, float] | None:
    """The category with the largest score of all samples, and that score; None where nothing was scored."""
    found = [pair for row in run.scores for pair in zip(row, run.categories, strict=False)]
    if not found:
        return None
    score, name = max(found)
    return name, score


def progress_line(run: RunRecord, step: int, doing: str) -> str:
    """The line shown during a step, such as ``step 3 of 20: violence 0.83, redirecting``.

    Args:
        run: what was recorded so far.
        step: number of the step, from 1.
        doing: what is done in it.
    """
    best = largest(run)
    score = "" if best is None else f"{best[0]} {best[1]:.2f}, "
    total = run.total_steps
    return f"step {min(step, total) if total else step} of {total}: {score}{doing}"


def numbered(steps: Iterable[int], total: int) -> str:
    """Numbers of steps in words, such as ``in steps 1-12 of 20``.

    Args:
        steps: from 1.
        total: steps of the run.
    """
    found = sorted(set(steps))
    if not found:
        return "in no step"
    if len(found) >= total:
        return f"in all {total} steps" if total > 1 else "in the only step"
    if len(found) == 1:
        return f"in step {found[0]} of {total}"
    if found[-1] - found[0] + 1 == len(found):
        return f"in steps {found[0]}-{found[-1]} of {total}"
    return f"in {len(found)} of {total} steps"


def in_steps(run: RunRecord) -> str:
    """When a run acted; a step counts if one of its evaluations was changed."""
    return numbered((step.step for step in run.steps if step.acted), run.total_steps)


def missed_steps(run: RunRecord) -> str:
    """Steps in which a run should have acted and did not, as the end of a sentence; empty where there are none."""
    acted = {step.step for step in run.steps if step.acted}
    missed = [step.step for step in run.steps if step.missed and step.step not in acted]
    return f"; NOT guarded {numbered(missed, run.total_steps)}" if missed else ""


def in_pictures(run: RunRecord) -> str:
    """Which share of a batch reached the threshold, as the end of a sentence; empty where all did."""
    limit = 0.0 if run.threshold is None else run.threshold
    count = sum(max(row) >= limit and max(row) > 0 for row in run.scores if row)
    return "" if count == len(run.scores) else f", in {count} of {len(run.scores)} pictures"


def describe_step(run: RunRecord, chosen: Sequence[int], asks: bool, reads: bool) -> str:
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


def describe_guidance(run: RunRecord, chosen: Sequence[int], judged: bool = False) -> str:
    """What a concept guidance method did in a run, with the arguments of ``describe_step``.

    Args:
        run: what was recorded.
        chosen: categories guided away from, one per guided sample and step.
        judged: whether a judge had read the prompt before the run.
    """
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
            return f"guided {in_steps(run)}, away from all {len(run.categories)} concepts{missed_steps(run)}"
        return f"guided {in_steps(run)}, most often away from {run.categories[mode(chosen)]}{missed_steps(run)}"
    if run.acted:
        return f"{name} {score:.2f}: guided {in_steps(run)}{in_pictures(run)}{missed_steps(run)}"
    if run.threshold is not None and (score < run.threshold or score == 0):
        return f"harmless ({score:.2f}): left untouched"
    if judged:
        why = missed_steps(run) or ": the window or the range of the prompt was never reached"
        return f"{name} {score:.2f}: NOT guided{why}"
    return f"{name} {score:.2f}: NOT guided, since the run or the window ended while it was measured"


def describe_redirect(run: RunRecord, gate: float) -> str:
    """What SafeCFG did in a run.

    Args:
        run: what was recorded.
        gate: the largest harmfulness of any part of the prompt.
    """
    if not run.harmful and not run.acted and not any(step.missed for step in run.steps):
        return f"harmless ({gate:.2f}): left untouched"
    name, score = largest(run) or ("harm", run.harm)
    if not run.acted:
        why = missed_steps(run) or ": the window or the range of the prompt was never reached"
        return f"{name} {score:.2f}: NOT redirected{why}"
    apart = [step.step for step in run.steps if step.acted and step.extra_evaluations and "base" in step.evaluated]
    other = f", {numbered(apart, run.total_steps)} without an unconditional branch" if apart else ""
    return f"{name} {score:.2f}: redirected {in_steps(run)}{other}{missed_steps(run)}"


def describe_moved(run: RunRecord, gate: float) -> str:
    """What a text redirector did in a run.

    Args:
        run: what was recorded.
        gate: the largest harmfulness of any part of the prompt.
    """
    if not run.harmful and not run.acted and not any(step.missed for step in run.steps):
        return f"harmless ({gate:.2f}): left untouched"
    name, score = largest(run) or ("harm", run.harm)
    if not run.acted:
        why = missed_steps(run) or ": the range of the prompt was never reached"
        return f"{name} {score:.2f}: NOT moved{why}"
    return f"{name} {score:.2f}: its safe counterpart was sampled {in_steps(run)}{missed_steps(run)}"
