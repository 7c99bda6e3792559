"""Further conditionings in the host's batched call: concept texts beside positive and negative.

Each text becomes one more list of conditioning entries in the guider, so that the host prepares it like its own. At an
evaluation the wanted ones are appended behind positive and negative, and one call of the model predicts them all.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from . import patcher

Entry = dict[str, Any]

_OWN = ("cross_attn", "pooled_output", "attention_mask", "model_conds", "uuid")
_PLACE = ("area", "mask", "mask_strength", "set_area_to_bounds", "strength", "default")
_RANGE = ("start_percent", "end_percent", "clip_start_percent", "clip_end_percent")


def entries_of(text: Sequence[Any], like: Mapping[str, Any]) -> list[Entry]:
    """Entries that say a text everywhere and at every noise level, and are otherwise like an entry of the guider.

    Sizes, controls, concatenated latents, hooks and the like are taken over, so that both predictions differ by their
    text alone and fit into one call. Areas, masks, strengths and timestep ranges are not: where an entry does not
    apply, the host predicts zeros, and a direction to there would mean nothing.

    Args:
        text: CONDITIONING.
        like: an entry of the guider's negative, or of its positive where there is no negative.
    """
    dropped = (*_OWN, *_PLACE, *_RANGE)
    # what other nodes of this pack note in an entry belongs to its text
    kept = {key: value for key, value in like.items() if key not in dropped and not key.startswith("safeguidance_")}
    kept.setdefault("prompt_type", "negative")
    return [{**kept, **extra, "cross_attn": states, "model_conds": {}, "uuid": uuid.uuid4()} for states, extra in text]


def count_applying(entries: Sequence[Entry], sigma: float) -> int:
    """How many evaluations of the model these entries need at a noise level."""
    return sum(patcher.applies(entry, sigma) for entry in entries)


def with_extra(
    options: Mapping[str, Any],
    ask: Callable[[Sequence[Any]], list[list[Entry]]],
    found: list[torch.Tensor],
    rows: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Options of one guided prediction that also evaluates further conditionings.

    Args:
        options: the options of this prediction; they stay as they are. A batch function of another node in them is
            called, and then the further conditionings take a call of their own.
        ask: called with the conditionings that the host is about to evaluate (None for a negative it saves); gives the
            further ones, processed, one list of entries per prediction.
        found: filled with the further predictions, before all pre-cfg functions are called.
        rows: samples that the further conditionings are predicted for, ``[B]``, in a call of their own, so that
            prompt and base keep the very bits they have without it; the other rows of these predictions hold zeros.
            None for all samples, in one call with prompt and base.
    """
    from comfy.samplers import calc_cond_batch

    previous = options.get("sampler_calc_cond_batch_function")

    def batch(args: dict[str, Any]) -> list[torch.Tensor]:
        model, conds, x, sigma, given = (args[k] for k in ("model", "conds", "input", "sigma", "model_options"))
        extra = ask(conds)
        if previous is None and rows is None:
            every = calc_cond_batch(model, [*conds, *extra], x, sigma, given)
            found[:] = every[len(conds) :]
            return list(every[: len(conds)])
        out = list(previous(args)) if previous is not None else list(calc_cond_batch(model, conds, x, sigma, given))
        found[:] = _apart(model, extra, x, sigma, given, rows)
        return out

    return {**options, "sampler_calc_cond_batch_function": batch}


def _apart(
    model: Any,
    extra: Sequence[Sequence[Entry]],
    x: torch.Tensor,
    sigma: torch.Tensor,
    options: Mapping[str, Any],
    rows: torch.Tensor | None,
) -> list[torch.Tensor]:
    """Predictions of conditionings in a call of their own, for some samples; zeros for the others."""
    from comfy.samplers import calc_cond_batch

    # positive and negative stay first and second, which other patches look for
    whole = rows is None or bool(rows.all()) or any(not _divides(entry) for entries in extra for entry in entries)
    if whole:
        return list(calc_cond_batch(model, [None, None, *extra], x, sigma, options)[2:])
    assert rows is not None
    places = rows.nonzero().flatten().to(x.device)
    some = [[_of_rows(entry, places, len(x)) for entry in entries] for entries in extra]
    out = calc_cond_batch(model, [None, None, *some], x[places], sigma[places], options)[2:]
    return [torch.zeros_like(x).index_copy(0, places, part.to(x)) for part in out]


def packed(lists: Sequence[Sequence[Entry]], choice: Sequence[int]) -> list[Entry] | None:
    """One list of entries in which each sample has the text of its own choice, so that one evaluation serves them all.

    Args:
        lists: processed entries, one list per text.
        choice: which of them each sample takes.

    Returns:
        None where the texts do not fit into one, such as those of different lengths.
    """
    if len({len(entries) for entries in lists}) != 1:
        return None
    out: list[Entry] = []
    for same in zip(*lists, strict=True):
        conds = [entry["model_conds"] for entry in same]
        if any(found.keys() != conds[0].keys() for found in conds):
            return None
        merged = {key: _of_choice([found[key] for found in conds], choice) for key in conds[0]}
        if any(value is None for value in merged.values()):
            return None
        out.append({**same[0], "model_conds": merged, "uuid": uuid.uuid4()})
    return out


def _of_choice(values: Sequence[Any], choice: Sequence[int]) -> Any:
    """A value of the model with each sample's own; None where values differ and cannot be put into one batch."""
    from comfy.conds import CONDConstant

    first, found = values[0], [value.cond for value in values]
    if all(_same(other, found[0]) for other in found[1:]):
        return first
    batched = all(torch.is_tensor(t) and t.ndim > 0 and t.shape[1:] == found[0].shape[1:] for t in found)
    if isinstance(first, CONDConstant) or not batched:
        return None
    return first._copy_with(torch.stack([found[k][row % len(found[k])] for row, k in enumerate(choice)]))


def _same(one: Any, other: Any) -> bool:
    if torch.is_tensor(one) and torch.is_tensor(other):
        return one.shape == other.shape and bool((one == other).all())
    return one is other or (isinstance(one, (str, int, float)) and type(one) is type(other) and bool(one == other))


def _divides(entry: Entry) -> bool:
    """Whether an entry can be evaluated for some samples alone; controls and the like know the whole batch."""
    return not any(entry.get(key) is not None for key in ("control", "gligen", "hooks"))


def _of_rows(entry: Entry, places: torch.Tensor, batch: int) -> Entry:
    """An entry for some samples: what it holds per sample is reduced to them."""

    def part(value: Any) -> Any:
        if torch.is_tensor(value):
            return value[places.to(value.device)] if value.ndim > 0 and value.shape[0] == batch > 1 else value
        if hasattr(value, "_copy_with") and torch.is_tensor(value.cond):
            return value._copy_with(part(value.cond))
        return value

    found = {**entry, "model_conds": {key: part(value) for key, value in entry["model_conds"].items()}}
    if "mask" in found:
        found["mask"] = part(found["mask"])
    return found
