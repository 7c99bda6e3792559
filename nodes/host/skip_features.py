"""Skip features of the host's UNets, with a further conditioning in the same batched call.

Everything of the host is imported inside functions.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...safeguidance.errors import InputError
from . import patcher

Entry = dict[str, Any]
Change = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
"""Features under the filtered and the original prompt and a factor, to new features."""


@dataclass
class Pairs:
    """What an output block needs to know during one evaluation: which rows belong together.

    Args:
        original: id of the entry with the filtered prompt -> id of the one with the original prompt.
        change: turns features.
        kept: features of original rows whose partners come in a later call (the host splits calls when memory is
            short; originals come first), by block and entry.
    """

    original: dict[Any, Any]
    change: Change
    kept: dict[tuple[Any, Any], torch.Tensor] = field(default_factory=dict)


def skip_widths(model: Any) -> list[int]:
    """Channels of a UNet's skip features, widest first; empty where the MODEL has no skip features."""
    config = getattr(model.model.model_config, "unet_config", {}) or {}
    network = model.model.diffusion_model
    if "model_channels" not in config or not hasattr(network, "output_blocks"):
        return []
    mults = config.get("channel_mult", (1,))
    return sorted({int(mult * config["model_channels"]) for mult in mults}, reverse=True)


def with_skip_patch(model: Any, key: str, around_run: Any, around_step: Any, factors: Mapping[int, float]) -> Any:
    """A clone of a MODEL whose runs and evaluations go through two functions, and whose skip features can be changed.

    Args:
        model: MODEL; it stays as it is.
        key: name of wrappers, and of the ``Pairs`` that an evaluation carries along in its transformer options.
        around_run: wrapper of a run.
        around_step: wrapper of a guided prediction.
        factors: channels of skip features -> factor; others are left alone.
    """
    clone = patcher.wrapped(model, key, around_run, around_step)

    def patch(h: torch.Tensor, skip: torch.Tensor, options: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = options.get(key)
        factor = factors.get(int(skip.shape[1]), 1.0)
        if pairs is None or factor == 1:
            return h, skip
        return h, _changed(skip, options, pairs, factor)

    clone.set_model_output_block_patch(patch)
    return clone


def _changed(skip: torch.Tensor, options: Mapping[str, Any], pairs: Pairs, factor: float) -> torch.Tensor:
    ids, block = list(options["uuids"]), options.get("block")
    parts = list(skip.chunk(len(ids)))
    here = dict(zip(ids, parts, strict=True))
    for name in pairs.original.values():
        if name in here:
            pairs.kept[block, name] = here[name]
    for number, name in enumerate(ids):
        if name in pairs.original:
            partner = pairs.kept.get((block, pairs.original[name]))
            if partner is None or partner.shape != parts[number].shape:
                raise InputError(
                    "model",
                    "the host did not evaluate the unfiltered prompt before the filtered one, or in another size",
                    "samplers and patches that keep the order of conditionings",
                    "remove the patch that changes it, or the re-attention",
                    "SAFREE Latent Re-Attention",
                )
            parts[number] = pairs.change(parts[number], partner, factor)
    return torch.cat(parts)


def with_further(options: Mapping[str, Any], key: str, extra: Sequence[Entry], pairs: Pairs) -> dict[str, Any]:
    """Options of one guided prediction whose batched call also evaluates further entries; their output is dropped.

    Args:
        options: the options of this prediction; they stay as they are.
        key: name under which output blocks find ``pairs``.
        extra: processed entries.
        pairs: which rows belong together.
    """
    from comfy.samplers import calc_cond_batch

    previous = options.get("sampler_calc_cond_batch_function")

    def batch(args: dict[str, Any]) -> list[torch.Tensor]:
        given = args["model_options"]
        conds = list(args["conds"])
        for_blocks = {**given.get("transformer_options", {}), key: pairs}
        more = {**given, "transformer_options": for_blocks}
        if previous is not None:
            return list(previous({**args, "conds": [*conds, list(extra)], "model_options": more}))[: len(conds)]
        every = calc_cond_batch(args["model"], [*conds, list(extra)], args["input"], args["sigma"], more)
        return list(every[: len(conds)])

    return {**options, "sampler_calc_cond_batch_function": batch}


def original_entry(entry: Entry, tokens: torch.Tensor, pooled: torch.Tensor | None) -> Entry:
    """An entry of the guider with another text, otherwise the same."""
    other = {**entry, "cross_attn": tokens, "model_conds": {}, "uuid": uuid.uuid4()}
    if pooled is not None:
        other["pooled_output"] = pooled
    other.setdefault("prompt_type", "positive")
    return other
