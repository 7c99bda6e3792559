"""Settings of the host's own nodes with which the negative prompt is drawn, which no guard reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .refusal import Refused

LEAST: Mapping[str, Mapping[str, float]] = {"NAGuidance": {"nag_scale": 1.0}}
"""By node and input, the smallest value that is allowed: below it, attention goes to the negative prompt."""


def check_settings(node_class: Any, values: Mapping[str, Any]) -> None:
    """Refuse such a setting, wherever its value comes from.

    Args:
        node_class: that is about to run.
        values: what it is given, a list for each input.

    Raises:
        Refused: naming the input and the smallest value.
    """
    for name, least in LEAST.get(node_class.__name__, {}).items():
        for value in values.get(name) or ():
            if not isinstance(value, (int, float)) or not value >= least:
                message = f"{name} is {value} here, with which the negative prompt is drawn. Use {least:g} or more."
                raise Refused(message, f"{node_class.__name__}: {name} {value}")
