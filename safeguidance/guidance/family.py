"""Settings that several methods of the node Concept Guidance share."""

from __future__ import annotations

from .settings import Setting

MOMENTUM = Setting(
    "momentum",
    "SLD and SEGA: how much of the earlier steps' guidance is added. Low, 0: none. High: steadier and stronger.",
)
BETA = Setting(
    "beta",
    "SLD and SEGA: how slowly that memory changes. Low, 0: only the last step. High: long ago counts too.",
    high=0.9999,
)
COMBINE = Setting(
    "concept",
    "nearest: at each step the concept nearest to the prompt (CASG). all: the sum of all "
    "concepts, as published for SEGA; several concepts weaken each other. Not for SLD.",
    choices=("argmax", "sum"),
    field="combine",
)
END = Setting(
    "end",
    "Fraction of the noise schedule at which it ends; same meaning as end_percent of a "
    "conditioning. Low: only the layout is guarded, at less cost and effect. High, 1: to the last step, as published.",
)


def start_setting(field: str) -> Setting:
    """When a method begins to act.

    Args:
        field: what its settings call it.
    """
    return Setting(
        "start",
        "Fraction of the noise schedule at which it begins. Low, 0: from the first step. High: the layout forms "
        "unguarded, pictures change less.",
        field=field,
    )
