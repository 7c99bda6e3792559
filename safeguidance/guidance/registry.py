"""Every concept guidance method. A new one is a file with a ``METHOD`` and a line here."""

from __future__ import annotations

from . import crg, negation, sega, sld, sp_guard
from .method import Method

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        sp_guard.METHOD,
        sld.METHOD,
        sega.METHOD,
        negation.METHOD,
        crg.METHOD,
    )
}
"""Methods by name."""

CHOICES: dict[str, Method] = {choice: method for method in METHODS.values() for choice in method.choices}
"""Published forms that the node Concept Guidance offers, and the method of each."""
