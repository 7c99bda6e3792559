"""How much SAFREE filters, and for how long, as three choices."""

from __future__ import annotations

from dataclasses import dataclass

from .filter import FilterConfig
from .trigger import TriggerConfig
from .validation import ValidationConfig


@dataclass(frozen=True)
class SafreePreset:
    """Settings that belong together.

    Args:
        filter: which tokens are filtered, and what besides them.
        validation: for how much of the schedule.
    """

    filter: FilterConfig
    validation: ValidationConfig


SAFREE_PRESETS: dict[str, SafreePreset] = {
    "light": SafreePreset(FilterConfig(TriggerConfig(alpha=0.05), scope="tokens"), ValidationConfig()),
    "balanced": SafreePreset(FilterConfig(), ValidationConfig()),
    "strict": SafreePreset(FilterConfig(scope="after"), ValidationConfig(form="whole")),
}
"""From least to most removed. ``light`` and ``balanced`` hold as long as the published program does; ``light`` changes
clear triggers alone, ``strict`` everything behind a trigger to the last step."""
