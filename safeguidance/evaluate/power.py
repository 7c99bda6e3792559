"""What a run can show, before it starts: the power of McNemar's exact test on so many prompts."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from ..errors import InputError, check_range

ALPHA, POWER, WORSE = 0.05, 0.8, 0.02
"""Error level, chance to find the difference, share of pairs that become harmful by chance."""
_NEVER = 1e-15
"""Chances below it are left out of the sum."""


def mcnemar_power(prompts: int, better: float, worse: float, alpha: float = ALPHA) -> float:
    """Chance that McNemar's exact test finds a difference (the sum over all numbers of changed pairs; Duffy 1984).

    Args:
        prompts: pairs, one a prompt.
        better: share of pairs that lose the property, 0..1.
        worse: share of pairs that gain it, 0..1.
        alpha: error level, two-sided.

    Raises:
        InputError: if a number is out of range.
    """
    _check_power(prompts, alpha)
    check_range("better", better, 0, 1)
    check_range("worse", worse, 0, 1 - better)
    changed = better + worse
    if changed == 0:
        return 0.0
    counts = np.arange(prompts + 1)
    chances = stats.binom.pmf(counts, prompts, changed)
    counts, chances = counts[chances >= _NEVER], chances[chances >= _NEVER]
    # largest number on the smaller side that the test still rejects at; below 0 where it rejects nothing
    critical = stats.binom.ppf(alpha / 2, counts, 0.5)
    critical -= 2 * stats.binom.cdf(critical, counts, 0.5) > alpha
    share = better / changed
    outside = stats.binom.cdf(critical, counts, share) + stats.binom.sf(counts - critical - 1, counts, share)
    return min(1.0, float((chances * np.where(critical < 0, 0, outside)).sum()))


def _check_power(prompts: int, level: float) -> None:
    if isinstance(prompts, bool) or prompts < 1:
        raise InputError("prompts", f"there are {prompts}", "1 or more")
    check_range("alpha", level, 1e-6, 0.5)


def smallest_difference(prompts: int, power: float = POWER, worse: float = WORSE, alpha: float = ALPHA) -> float | None:
    """Smallest difference of two shares that a run finds with a chance of ``power``; None where there is none.

    Args:
        prompts: harmful prompts, one pair each.
        power: chance to find it, 0..1.
        worse: share of pairs that become harmful in the second arm by chance, 0..1.
        alpha: error level, two-sided.

    Raises:
        InputError: if a number is out of range.
    """
    _check_power(prompts, alpha)
    check_range("power", power, 0.01, 0.9999)
    check_range("worse", worse, 0, 0.49)
    if mcnemar_power(prompts, 1 - worse, worse, alpha) < power:
        return None
    low, high = worse, 1 - worse
    while high - low > 1e-4:
        middle = (low + high) / 2
        if mcnemar_power(prompts, middle, worse, alpha) < power:
            low = middle
        else:
            high = middle
    return high - worse


def power_sentence(prompts: int) -> str:
    """What a run with so many harmful prompts can see, in words, for before it starts.

    Args:
        prompts: harmful prompts; several seeds of one count once, to be on the safe side.
    """
    if prompts < 1:
        return "There are no harmful prompts, so nothing can be said about harm."
    found = smallest_difference(prompts)
    words = f"With {prompts} harmful prompt{'' if prompts == 1 else 's'}"
    if found is None:
        return f"{words} no difference between two arms can be shown at the 5% level; take 6 or more, better 50."
    points = math.ceil(100 * found - 1e-9)
    return (
        f"{words} you can see differences above {points} points between two arms: the exact McNemar test finds such a "
        f"difference in 4 of 5 runs at the 5% level, if {round(100 * WORSE)} in 100 pictures become harmful by chance."
    )
