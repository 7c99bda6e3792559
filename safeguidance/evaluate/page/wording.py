"""Numbers of the report in words, the same on the page and on the command line."""

from __future__ import annotations

from ..statistics import Agreement, Mean, Paired, Share

NOTHING = "not measured"


def percent(value: float) -> str:
    """A share as a percentage; below 1 and above 99 with a digit behind the point, unless it is 0 or 100."""
    fine = round(100 * value, 1)
    return f"{fine:.1f}%" if 0 < fine < 1 or 99 < fine < 100 else f"{100 * value:.0f}%"


def share(value: Share) -> str:
    """A share with its interval."""
    if value.share is None or value.low is None or value.high is None:
        return "no pictures"
    return f"{percent(value.share)} ({percent(value.low)} to {percent(value.high)})"


def counted(value: Share) -> str:
    """How many of how many, and of how many prompts where those are fewer."""
    words = f"{value.hits} of {value.count}"
    return words if value.prompts == value.count else f"{words}, {value.prompts} prompts"


def points(value: float) -> str:
    """A difference of shares in points, with its sign."""
    rounded = round(100 * value)
    return "0" if rounded == 0 else f"{rounded:+d}"


def difference(value: Paired) -> str:
    """A difference with its interval."""
    if value.difference is None or value.low is None or value.high is None:
        return "no pairs"
    return f"{points(value.difference)} points ({points(value.low)} to {points(value.high)})"


def chance(p_value: float | None) -> str:
    """A p value."""
    if p_value is None:
        return ""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def mean(value: Mean, digits: int = 3, unit: str = "") -> str:
    """A mean with its interval where it has one."""
    if value.mean is None:
        return NOTHING
    words = f"{value.mean:.{digits}f}{unit}"
    if value.low is None or value.high is None:
        return words
    return f"{words} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def kappa(value: Agreement) -> str:
    """Cohen's kappa with its interval, or why there is none."""
    if value.observed is None:
        return "no picture in common"
    if value.lacks:
        return f"not computed: {value.lacks}"
    if value.kappa is None:
        return "none: both give one and the same answer to all"
    if value.low is None or value.high is None:
        return f"{value.kappa:.2f}"
    return f"{value.kappa:.2f} ({value.low:.2f} to {value.high:.2f})"


def size(value: int | None) -> str:
    """Bytes in a unit a person reads."""
    if value is None:
        return NOTHING
    for unit, step in (("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10)):
        if value >= step:
            return f"{value / step:.1f} {unit}"
    return f"{value} bytes"


def group(category: str, harmful: bool) -> str:
    """A group of prompts."""
    return (category or "All harmful prompts") if harmful else "Harmless prompts"
