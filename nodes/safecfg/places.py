"""Where and when a redirected conditioning applies: the places of the negative, the times of the positive."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...safeguidance.conditioning import Conditioning
from ...safeguidance.errors import InputError
from ..host.guided_run import Entry

_REGION = ("area", "mask")
_PLACE = ("area", "mask", "mask_strength", "set_area_to_bounds", "strength", "default")
REDIRECTED = "safeguidance_redirected"
"""Key of an entry that holds a redirected text."""
_RANGE = ("start_percent", "end_percent", "clip_start_percent", "clip_end_percent")

Redirect = tuple[tuple[Entry, Entry], "Conditioning | None", bool]
"""A part of the positive and one of the negative, the text to put there (None for the negative's own), and whether the
gate is open."""


def check_places(node: str, positives: Sequence[Entry], negatives: Sequence[Entry]) -> None:
    """Refuse regions of the negative that a redirect cannot be put into.

    Raises:
        InputError: naming what cannot be combined.
    """
    placed = [key for entry in negatives for key in _PLACE if entry.get(key) is not None]
    if len(negatives) > 1 and placed:
        raise InputError(
            "negative",
            f"the prompt is harmful, and the negative has {len(negatives)} combined parts of which some carry "
            f"{placed[0]}",
            "one part, or several without area, mask or strength",
            "write the negative as one prompt",
            node,
        )
    if any(e.get(key) is not None for e in negatives for key in _REGION) and any(
        e.get(key) is not None for e in positives for key in _REGION
    ):
        raise InputError(
            "negative",
            "the prompt is harmful, and positive and negative both carry an area or mask",
            "on one side only",
            "take it off the negative, it then follows the areas of the positive",
            node,
        )


def redirected_entries(redirects: Sequence[Redirect]) -> list[Entry]:
    """Entries for the unconditional branch.

    Where the gate is open they apply at all times of the positive, also where the negative does not: the redirect is
    then put on the first part of the negative. Where it is closed they apply as the negative does.
    """
    out: list[Entry] = []
    by_positive: dict[int, list[Redirect]] = {}
    for redirect in redirects:
        by_positive.setdefault(id(redirect[0][0]), []).append(redirect)
    for group in by_positive.values():
        for pair, text, _ in group:
            span = _common(*pair)
            if span is not None:
                out.append(_entry(*pair, text, span))
        if any(acts for _, _, acts in group):
            pair, text, _ = next(redirect for redirect in group if redirect[2])
            out += [_entry(*pair, text, gap) for gap in _gaps(pair[0], [negative for (_, negative), _, _ in group])]
    return out


def _entry(positive: Entry, negative: Entry, text: Conditioning | None, span: tuple[float, float]) -> Entry:
    """One entry: the negative's, where the positive applies, at some fractions of the schedule."""
    entry = {**negative, "model_conds": dict(negative.get("model_conds", {})), "uuid": uuid.uuid4()}
    entry.setdefault("prompt_type", "negative")
    if any(positive.get(key) is not None for key in _REGION) or not any(entry.get(key) is not None for key in _REGION):
        for key in _PLACE:
            entry.pop(key, None)
        entry.update({key: positive[key] for key in _PLACE if key in positive})
    for key in _RANGE:
        entry.pop(key, None)
    start, end = span
    if start > 0 or _limits("start", positive, negative):
        entry["start_percent"] = start
    if end < 1 or _limits("end", positive, negative):
        entry["end_percent"] = end
    if positive.get("control_apply_to_uncond") and "control" not in entry:
        entry["control"] = positive["control"]
    if "gligen" in positive and "gligen" not in entry:
        entry["gligen"] = positive["gligen"]
    if text is not None:
        _put_text(entry, positive, text)
    return entry


def _limits(name: str, *entries: Mapping[str, Any]) -> list[float]:
    return [entry[key] for entry in entries for key in (f"{name}_percent", f"clip_{name}_percent") if key in entry]


def _span(*entries: Mapping[str, Any]) -> tuple[float, float]:
    return max([0.0, *_limits("start", *entries)]), min([1.0, *_limits("end", *entries)])


def _common(positive: Entry, negative: Entry) -> tuple[float, float] | None:
    start, end = _span(positive, negative)
    return (start, end) if start < end else None


def _gaps(positive: Entry, negatives: Sequence[Entry]) -> list[tuple[float, float]]:
    """Parts of the positive's range in which no part of the negative applies."""
    start, end = _span(positive)
    gaps = []
    for low, high in sorted(_span(negative) for negative in negatives):
        if low > start:
            gaps.append((start, min(low, end)))
        start = max(start, high)
    gaps.append((start, end))
    return [(low, high) for low, high in gaps if low < high]


def _put_text(entry: Entry, positive: Entry, text: Conditioning) -> None:
    entry["cross_attn"], entry[REDIRECTED] = text.tokens, True
    if text.pooled is not None:
        entry["pooled_output"] = text.pooled
    mask = entry.get("attention_mask")
    if mask is not None:
        # the redirect writes into the prompt's places, which a mask of the negative alone would hide
        other = positive.get("attention_mask")
        fits = [m for m in (mask, other) if m is not None and m.shape[-1] == text.tokens.shape[1]]
        whole = torch.ones(text.tokens.shape[:2], dtype=mask.dtype, device=mask.device)
        entry["attention_mask"] = torch.maximum(*fits) if len(fits) == 2 else whole
