"""A MODEL's patches and a guider's runs in the host: wrappers, progress, ordinary CFG.

Everything of the host is imported inside functions, so that the pack can be imported without a host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


def model_family(model: Any) -> str:
    """Family of a MODEL: the name of the host's configuration class, such as SD15, SDXL, SD3 or Flux."""
    return type(model.model.model_config).__name__


def wrapped(model: Any, key: str, around_run: Callable[..., Any], around_step: Callable[..., Any]) -> Any:
    """A clone of a MODEL whose sampling runs and guided predictions go through two functions.

    Args:
        model: MODEL; it stays as it is.
        key: name the wrappers are filed under.
        around_run: called as ``f(executor, noise, latent, sampler, sigmas, ...)`` once per run.
        around_step: called as ``f(executor, x, sigma, model_options, seed)`` at each evaluation of the guider.
    """
    from comfy.patcher_extension import WrappersMP

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, around_run)
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, key, around_step)
    return clone


def is_wrapped(model: Any, key: str) -> bool:
    """Whether ``wrapped`` was applied to this MODEL with this key."""
    from comfy.patcher_extension import WrappersMP

    return bool(model.get_wrappers(WrappersMP.OUTER_SAMPLE, key))


def others_act(guider: Any, key: str) -> bool:
    """Whether other wrappers than those of a key act on the guided predictions of a run."""
    from comfy.patcher_extension import WrappersMP

    wrappers = guider.model_options.get("transformer_options", {}).get("wrappers", {})
    return any(name != key and found for name, found in wrappers.get(WrappersMP.PREDICT_NOISE, {}).items())


def cfg_guider(model: Any, positive: Any, negative: Any, scale: float) -> Any:
    """The host's own CFG guider."""
    from comfy.samplers import CFGGuider

    guider = CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(scale)
    return guider


def predicts_plain_cfg(guider: Any) -> bool:
    """Whether a guider's prediction is the host's ordinary CFG of its positive and negative conditioning."""
    from comfy.samplers import CFGGuider

    return getattr(type(guider), "predict_noise", None) is CFGGuider.predict_noise


def progress_of(guider: Any, sigma: float) -> float:
    """Fraction of the model's full noise schedule that lies behind a noise level: 0 pure noise, 1 no noise.

    The inverse of the host's ``percent_to_sigma``, so it means the same as start and end percent of a conditioning,
    whatever part of the schedule is sampled. Rounded to four digits, so that a window that starts exactly at a step
    contains it.
    """
    to_sigma = guider.model_patcher.get_model_object("model_sampling").percent_to_sigma
    low, high = 0.0, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if to_sigma(middle) > sigma else (low, middle)
    return round(high, 4)


def applies(entry: Mapping[str, Any], sigma: float) -> bool:
    """Whether a processed conditioning entry is in its timestep range at this noise level, by the host's rule."""
    start, end = entry.get("timestep_start"), entry.get("timestep_end")
    return (start is None or sigma <= start) and (end is None or sigma >= end)


def predict_conds(args: Mapping[str, Any], conds: Sequence[list[Any]]) -> list[torch.Tensor]:
    """Denoised predictions of further conditionings in one call, inside a pre-cfg or post-cfg function.

    Args:
        args: what the host hands to such a function.
        conds: processed conditioning entries, one list per prediction.
    """
    from comfy.samplers import calc_cond_batch

    out = calc_cond_batch(args["model"], [None, *conds], args["input"], args["sigma"], args["model_options"])
    return list(out[1:])


def noting_entries(options: Mapping[str, Any], ran: set[Any]) -> dict[str, Any]:
    """Options of one guided prediction that also note which conditioning entries the host runs the model on.

    Args:
        options: the options of this prediction; they stay as they are.
        ran: filled with the ``uuid`` of each entry.
    """
    from comfy.patcher_extension import WrappersMP

    def note(executor: Any, *args: Any, **kwargs: Any) -> Any:
        given = args[5] if len(args) > 5 else kwargs.get("transformer_options", {})
        ran.update(given.get("uuids", ()))
        return executor(*args, **kwargs)

    transformer = dict(options.get("transformer_options", {}))
    wrappers = dict(transformer.get("wrappers", {}))
    around = dict(wrappers.get(WrappersMP.APPLY_MODEL, {}))
    around["safeguidance_entries"] = [*around.get("safeguidance_entries", []), note]
    transformer["wrappers"] = {**wrappers, WrappersMP.APPLY_MODEL: around}
    return {**options, "transformer_options": transformer}


def queue_run() -> str:
    """Id of the host's queue run that is being executed, "" outside of one."""
    try:
        from comfy_execution.utils import get_executing_context
    except ImportError:
        return ""
    context = get_executing_context()
    return "" if context is None else str(context.prompt_id)


def as_latent(samples: torch.Tensor) -> torch.Tensor:
    """Samples of a run as the host's nodes put them into a LATENT: some hosts keep them in another precision."""
    import comfy.model_management as memory

    kind = getattr(memory, "intermediate_dtype", None)
    return samples if kind is None else samples.to(kind())
