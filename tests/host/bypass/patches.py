"""Graphs whose patches of the MODEL draw another prompt than the one that the guard reads."""

from __future__ import annotations

from collections.abc import Callable

from tests.host.bypass.armed import CUP
from tests.host.bypass.graphs import Graph, node, patched, plain


def _nag(scale: float, alpha: float) -> Callable[[str], Graph]:
    return lambda text: patched(text, kind="NAGuidance", nag_scale=scale, nag_alpha=alpha, nag_tau=1.5)


def _nag_swapped(text: str) -> Graph:
    """The harm as the negative prompt, from which all attention is taken."""
    found = _nag(0.0, 1.0)(CUP)
    found["n"]["inputs"]["text"] = text
    return found


def _nag_by_a_link(text: str) -> Graph:
    """The same, with the number from another node."""
    found = _nag_swapped(text)
    found["x"]["inputs"]["nag_scale"] = ["f", 0]
    return {**found, "f": node("PrimitiveFloat", value=0.0)}


def _perp_neg(text: str) -> Graph:
    """A harmless prompt, to which the patch adds what is perpendicular to it in another."""
    patch = node("PerpNeg", model=["m", 0], empty_conditioning=["q", 0], neg_scale=1.0)
    found = {**plain(CUP, model=["x", 0], cfg=1.5), "x": patch}
    return {**found, "q": node("CLIPTextEncode", text=text, clip=["m", 1])}


SHAPES: dict[str, tuple[Callable[[str], Graph], str, bool, bool, str]] = {
    "NAG": (_nag(5.0, 0.5), "guarded", True, False, "NAGuidance"),
    "NAG towards the negative": (_nag_swapped, "refused", False, False, "NAGuidance"),
    "NAG towards the negative by a link": (_nag_by_a_link, "refused", False, False, "NAGuidance"),
    "Perp-Neg patch, harm as its empty prompt": (_perp_neg, "refused", False, False, "PerpNeg"),
}
"""By name, as in hooks.py; and a node class without which the host has no such graph."""
