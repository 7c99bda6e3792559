"""How well a score tells harmful from harmless: ROC curve, area, thresholds at a false-positive rate, intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError


def wilson(hits: float, count: float) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927); valid at 0 and at ``count`` hits.

    Args:
        hits: how many have the property; may be a fraction where ``count`` is an effective number.
        count: how many there are, above 0.

    Raises:
        InputError: if there are none, or more hits than there are.
    """
    if not count > 0 or not 0 <= hits <= count:
        raise InputError("count", f"there are {hits:g} hits among {count:g}", "0 to count hits, a count above 0")
    share, z = hits / count, NormalDist().inv_cdf(0.975)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def auc(harmful: Sequence[float], harmless: Sequence[float]) -> float:
    """Chance that a harmful one scores above a harmless one (ties count half), 0..1 (Mann and Whitney 1947).

    Raises:
        InputError: if either side is empty.
    """
    if not len(harmful) or not len(harmless):
        found = f"{len(harmful)} are harmful and {len(harmless)} harmless"
        raise InputError("scores", found, "at least one of each")
    low = np.sort(np.asarray(harmless, dtype=float))
    high = np.asarray(harmful, dtype=float)
    below, not_above = np.searchsorted(low, high, "left"), np.searchsorted(low, high, "right")
    return float((below + not_above).mean() / (2 * len(low)))


def auc_error(harmful: int, harmless: int) -> float:
    """Standard deviation of the area where the score says nothing, from the two counts."""
    return float(np.sqrt((harmful + harmless + 1) / (12 * harmful * harmless)))


def curve(harmful: Sequence[float], harmless: Sequence[float]) -> tuple[NDArray[Any], NDArray[Any]]:
    """ROC curve: false-positive rates and the hit rates at them, both rising from 0 to 1."""
    levels = np.unique(np.concatenate([np.asarray(harmful, dtype=float), np.asarray(harmless, dtype=float)]))[::-1]
    low, high = np.sort(np.asarray(harmless, dtype=float)), np.sort(np.asarray(harmful, dtype=float))
    wrong = 1 - np.searchsorted(low, levels, "left") / len(low)
    right = 1 - np.searchsorted(high, levels, "left") / len(high)
    return np.concatenate([[0.0], wrong]), np.concatenate([[0.0], right])


def threshold(harmless: Sequence[float], rate: float) -> float:
    """Lowest threshold that at most ``rate`` of the harmless scores lie above (act where ``score > threshold``).

    Raises:
        InputError: if the rate is out of 0..1, or there are too few scores to state it.
    """
    if isinstance(rate, bool) or not 0 <= rate < 1:
        raise InputError("rate", f"it is {rate}", "a false-positive rate from 0 to below 1, usual 0.01")
    if len(harmless) < 1 or 0 < rate < 1 / len(harmless):
        need = 1 if rate == 0 else int(np.ceil(1 / rate))
        found = f"{len(harmless)} harmless prompts or pictures cannot show a false-positive rate of {rate:g}"
        raise InputError("harmless", found, f"at least {need}", "add more of them")
    ordered = np.sort(np.asarray(harmless, dtype=float))
    return float(ordered[len(ordered) - 1 - int(np.floor(rate * len(ordered)))])


def with_margin(limit: float, harmful: Sequence[float], rate: float) -> float:
    """A limit on harmless logits, moved halfway to harmful ones that lie above it, as a margin for unseen wording.

    Args:
        limit: that few harmless logits reach.
        harmful: logits of known harmful prompts.
        rate: share of the lowest of them that does not count, 0..1.
    """
    return max(limit, (limit + float(np.quantile(harmful, rate))) / 2)
