"""Stand-ins for other guidance packs: small patches of the host of the three kinds that such packs make.

Each changes the picture a little and keeps what it stands for, so that a test can tell whether ours works beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def batch_function(model: Any) -> Any:
    """A pack that takes the one slot for evaluating conditions, and calls whoever had it before."""
    clone = model.clone()
    previous = clone.model_options.get("sampler_calc_cond_batch_function")

    def evaluate(args: dict[str, Any]) -> list[Any]:
        import comfy.samplers

        conds, options = args["conds"], args["model_options"]
        if previous is not None:
            out = previous(args)
        else:
            rest = {key: value for key, value in options.items() if key != "sampler_calc_cond_batch_function"}
            out = comfy.samplers.calc_cond_batch(args["model"], conds, args["input"], args["sigma"], rest)
        # The prompt's prediction a little towards its own mean, as smoothing methods do.
        first = out[0]
        return [0.98 * first + 0.02 * first.mean(dim=(-2, -1), keepdim=True), *out[1:]]

    clone.set_model_sampler_calc_cond_batch_function(evaluate)
    return clone


def attention_guidance(model: Any) -> Any:
    """A pack with one more evaluation under other attention, in a post-cfg function, and a pre-cfg function."""
    clone = model.clone()

    def without_attention(q: Any, k: Any, v: Any, extra: Any, **kwargs: Any) -> Any:
        return v

    def after(args: dict[str, Any]) -> Any:
        import comfy.model_patcher
        import comfy.samplers

        options = args["model_options"].copy()
        for number in range(12):
            options = comfy.model_patcher.set_model_options_patch_replace(
                options, without_attention, "attn1", "middle", 0, number
            )
        (perturbed,) = comfy.samplers.calc_cond_batch(
            args["model"], [args["cond"]], args["input"], args["sigma"], options
        )
        return args["denoised"] + 0.1 * (args["cond_denoised"] - perturbed)

    def before(args: dict[str, Any]) -> list[Any]:
        first, second = args["conds_out"][:2]
        if args["conds"][1] is None:
            return args["conds_out"]
        return [first, 0.99 * second + 0.01 * first, *args["conds_out"][2:]]

    def attn2_output(out: Any, extra: dict[str, Any]) -> Any:
        chunks = extra["cond_or_uncond"]
        rows = len(out) // len(chunks)
        out = out.clone()
        for place, which in enumerate(chunks):
            if which == 0:
                out[place * rows : (place + 1) * rows] *= 1.01
        return out

    clone.set_model_sampler_post_cfg_function(after)
    clone.set_model_sampler_pre_cfg_function(before)
    clone.set_model_attn2_output_patch(attn2_output)
    return clone


@contextmanager
def replaced_functions() -> Iterator[None]:
    """A pack that replaces functions of the host for everybody when it is imported; undone at the end."""
    import comfy.samplers

    predict, combine, evaluate = (
        comfy.samplers.CFGGuider.predict_noise,
        comfy.samplers.cfg_function,
        comfy.samplers.calc_cond_batch,
    )

    def predict_noise(self: Any, *args: Any, **kwargs: Any) -> Any:
        return 1.001 * predict(self, *args, **kwargs)

    def cfg_function(*args: Any, **kwargs: Any) -> Any:
        return 0.999 * combine(*args, **kwargs)

    def calc_cond_batch(*args: Any, **kwargs: Any) -> Any:
        return [out * 1.0005 for out in evaluate(*args, **kwargs)]

    comfy.samplers.CFGGuider.predict_noise = predict_noise
    comfy.samplers.cfg_function = cfg_function
    comfy.samplers.calc_cond_batch = calc_cond_batch
    try:
        yield
    finally:
        comfy.samplers.CFGGuider.predict_noise = predict
        comfy.samplers.cfg_function = combine
        comfy.samplers.calc_cond_batch = evaluate
