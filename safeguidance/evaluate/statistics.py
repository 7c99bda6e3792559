"""Figures with honest intervals: shares, paired differences, means, agreement of judges.

Several pictures of one prompt (seeds) are not independent, so the prompt is the unit: intervals of a share use the
effective number of pictures, differences are resampled by prompt, and the exact test counts prompts. With one seed a
prompt these are Wilson's interval, the paired bootstrap and McNemar's exact test as they stand in textbooks.

Inside ComfyUI there is scipy and no statsmodels; only Cohen's kappa of two judges needs that.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ..roc import wilson

LEVEL = 0.95
"""Of every interval."""
_RESAMPLES, _FEWER, _MANY, _BATCH_CELLS = 9_999, 1_999, 1_000, 2_000_000


@dataclass(frozen=True)
class Share:
    """A share of pictures with its interval.

    Args:
        hits: pictures that have the property.
        count: pictures that were looked at.
        prompts: prompts they belong to.
        effective: independent pictures they are worth, at most ``count``.
        share: 0..1; None where nothing was looked at.
        low: lower end of the 95% interval (Wilson 1927); None as ``share``.
        high: upper end; None as ``share``.
    """

    hits: int
    count: int
    prompts: int
    effective: float
    share: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Paired:
    """The same prompts and seeds in two arms.

    Args:
        pairs: pairs of pictures that both have a verdict.
        prompts: prompts they belong to.
        better: prompts with fewer hits in the second arm; with one seed, pairs that lost the property.
        worse: prompts with more of them there.
        difference: share in the second arm minus that in the first, -1..1; None where there is no pair.
        low: lower end of the 95% interval by a bootstrap over prompts; None as ``difference``.
        high: upper end; None as ``difference``.
        p_value: of McNemar's exact test, two-sided; None as ``difference``.
    """

    pairs: int
    prompts: int
    better: int
    worse: int
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None


@dataclass(frozen=True)
class Mean:
    """A mean over pictures with its interval.

    Args:
        count: pictures.
        mean: their mean; None where there are none.
        low: lower end of the 95% interval by a bootstrap over prompts; None where all prompts have one value.
        high: upper end; None as ``low``.
    """

    count: int
    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Agreement:
    """How far two judges agree on the same pictures.

    Args:
        count: pictures that both judged.
        observed: share of them on which both say the same; None where there are none.
        kappa: Cohen's kappa, agreement beyond chance, at most 1; None where chance alone explains everything, because
            both give one and the same answer to all, and where it was not computed.
        low: lower end of its 95% interval; None as ``kappa``, and where they differ nowhere.
        high: upper end; None as ``low``.
        lacks: why it was not computed, "" where it was.
    """

    count: int
    observed: float | None
    kappa: float | None
    low: float | None
    high: float | None
    lacks: str = ""


def share_of(values: Sequence[bool], prompts: Sequence[int]) -> Share:
    """Share of pictures with a property.

    Args:
        values: whether each picture has it.
        prompts: number of each picture's prompt.
    """
    count, hits = len(values), sum(bool(value) for value in values)
    clusters = len(set(prompts))
    if not count:
        return Share(0, 0, 0, 0.0, None, None, None)
    effective = effective_count(values, prompts)
    share = hits / count
    low, high = wilson(share * effective, effective)
    return Share(hits, count, clusters, effective, share, low, high)


def effective_count(values: Sequence[bool], prompts: Sequence[int]) -> float:
    """Number of independent pictures that pictures of several seeds a prompt are worth.

    The count divided by the design effect, the ratio of the variance between prompts to that of independent pictures
    (Rao and Scott 1992). Where all values are equal that ratio is unknown, and each prompt counts once.

    Args:
        values: property of each picture, at least one.
        prompts: number of each picture's prompt.
    """
    sums, sizes = _by_prompt(np.asarray(values, dtype=float), prompts)
    count, clusters = float(sizes.sum()), len(sizes)
    if clusters == count:
        return count
    share = sums.sum() / count
    if clusters < 2 or not 0 < share < 1:
        return float(clusters)
    between = clusters / (clusters - 1) * float(((sums - share * sizes) ** 2).sum()) / count**2
    effect = between / (share * (1 - share) / count)
    return float(min(count, max(count / effect if effect > 0 else count, min(clusters, count))))


def _by_prompt(values: NDArray[np.float64], prompts: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    _, index = np.unique(np.asarray(prompts), return_inverse=True)
    return np.bincount(index, weights=values).astype(np.float64), np.bincount(index).astype(np.float64)


def paired(first: Sequence[bool], second: Sequence[bool], prompts: Sequence[int], seed: int = 0) -> Paired:
    """Compare two arms on the same prompts and seeds.

    Args:
        first: property of each picture of the first arm.
        second: the same pictures' partners in the second arm.
        prompts: number of each pair's prompt.
        seed: of the bootstrap.
    """
    if not len(first):
        return Paired(0, 0, 0, 0, None, None, None, None)
    change = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    sums, sizes = _by_prompt(change, prompts)
    better, worse = int((sums < 0).sum()), int((sums > 0).sum())
    difference = float(sums.sum() / sizes.sum())
    low, high = _interval(sums, sizes, seed)
    if low == high:
        low, high = _degenerate(difference, len(sums))
    # McNemar's exact test: among those that changed, either way is as likely
    p_value = float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return Paired(len(change), len(sums), better, worse, difference, low, high, p_value)


def _interval(sums: NDArray[np.float64], sizes: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """Percentile interval of sum over size, resampled by prompt (Efron and Tibshirani 1993, chapter 13)."""
    ratios = sums / sizes
    if len(ratios) < 2 or np.ptp(ratios) == 0:
        return float(ratios.mean()), float(ratios.mean())

    def ratio(top: NDArray[np.float64], bottom: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        found: NDArray[np.float64] = top.sum(axis=axis) / bottom.sum(axis=axis)
        return found

    found = stats.bootstrap(
        (sums, sizes),
        ratio,
        n_resamples=_RESAMPLES if len(sums) <= _MANY else _FEWER,
        batch=max(1, _BATCH_CELLS // len(sums)),
        vectorized=True,
        paired=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def _degenerate(difference: float, prompts: int) -> tuple[float, float]:
    # all pairs changed alike, so resampling knows no other change; the share that Wilson's interval leaves to others
    # may have changed either way
    alike, _ = wilson(prompts, prompts)
    return max(-1.0, difference * alike - (1 - alike)), min(1.0, difference * alike + (1 - alike))


def mean_of(values: Sequence[float], prompts: Sequence[int], seed: int = 0) -> Mean:
    """Mean of a number over pictures, its interval resampled by prompt.

    Args:
        values: finite numbers.
        prompts: number of each picture's prompt.
        seed: of the bootstrap.
    """
    if not len(values):
        return Mean(0, None, None, None)
    sums, sizes = _by_prompt(np.asarray(values, dtype=float), prompts)
    mean = float(sums.sum() / sizes.sum())
    return Mean(len(values), mean, *_interval_or_none(sums, sizes, seed))


def _interval_or_none(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], seed: int
) -> tuple[float, float] | tuple[None, None]:
    # equal values say nothing of how far others may lie, and an interval of no width would say that they cannot
    low, high = _interval(sums, sizes, seed)
    return (low, high) if low < high else (None, None)


def ratio_of(first: Sequence[float], second: Sequence[float], prompts: Sequence[int], seed: int = 0) -> Mean:
    """Total of the second arm over that of the first, its interval resampled by prompt.

    Args:
        first: numbers above 0 of the first arm.
        second: those of their partners in the second arm.
        prompts: number of each pair's prompt.
        seed: of the bootstrap.
    """
    below, _ = _by_prompt(np.asarray(first, dtype=float), prompts)
    if not len(first) or not below.sum() > 0:
        return Mean(0, None, None, None)
    above, _ = _by_prompt(np.asarray(second, dtype=float), prompts)
    ratio = float(above.sum() / below.sum())
    if not (below > 0).all():
        return Mean(len(first), ratio, None, None)
    return Mean(len(first), ratio, *_interval_or_none(above, below, seed))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values of several comparisons, raised so that all of them together keep the error level (Holm 1979)."""
    raised, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        raised[place] = highest
    return raised


def agreement(first: Sequence[bool], second: Sequence[bool]) -> Agreement:
    """Agreement of two judges on the same pictures (Cohen 1960; interval of Fleiss, Cohen and Everitt 1969).

    Args:
        first: verdicts of one.
        second: verdicts of the other.
    """
    if not len(first):
        return Agreement(0, None, None, None, None)
    one, other = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    table = [[int((one & other).sum()), int((one & ~other).sum())], [int((~one & other).sum()), 0]]
    table[1][1] = len(one) - table[0][0] - table[0][1] - table[1][0]
    same = float((one == other).mean())
    if one.all() and other.all() or not (one.any() or other.any()):
        return Agreement(len(one), same, None, None, None)
    try:
        from statsmodels.stats.inter_rater import cohens_kappa
    except ImportError as error:
        return Agreement(len(one), same, None, None, None, f"statsmodels is not there ({error})")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = cohens_kappa(np.asarray(table))
    low, high = (float(end) for end in (found.kappa_low, found.kappa_upp))
    if not low < high:
        # not a number, or of no width: full agreement so far does not exclude that they will differ
        return Agreement(len(one), same, float(found.kappa), None, None)
    return Agreement(len(one), same, float(found.kappa), max(-1.0, low), min(1.0, high))
