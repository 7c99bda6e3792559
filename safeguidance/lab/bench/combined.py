"""SAFREE's filtered prompt under methods that act on the base or on predictions."""

from __future__ import annotations

from .concept_methods import guarded
from .conditioning import Method, plain, safecfg, stock
from .safree import filtered

COMBINED: dict[str, Method] = {
    "safree+safecfg": stock(filtered(safecfg)),
    "safree+sp_guard": guarded(filtered(plain)),
    "safree+safecfg+sp_guard": guarded(filtered(safecfg), anchor=""),
}
"""Combinations by name."""
