"""A guard that is connected acts, or says that it does not: every way that was found to make it fail in silence."""

from __future__ import annotations

import pytest
import torch

from tests.host import concept_graphs, spy
from tests.host.safecfg_graphs import (
    APPLE,
    KNIFE,
    encoded,
    guider,
    half_mask,
    ksample,
    make_redirector,
    part,
    patch,
    sample,
    sigmas,
    small,
    stock,
    with_values,
    world,
)

pytestmark = pytest.mark.usefixtures("pack")
CLOSED = -6.0
STEPS = 6


def override(model, cfg, start=0.0, end=1.0):
    """The host's CFG Override node, by hand on hosts that lack it."""
    import comfy.patcher_extension

    sampling = model.get_model_object("model_sampling")
    high, low = sampling.percent_to_sigma(start), sampling.percent_to_sigma(end)

    def wrapper(executor, *args, **kwargs):
        if not low <= float(args[1].flatten()[0]) <= high:
            return executor(*args, **kwargs)
        saved, executor.class_obj.cfg = executor.class_obj.cfg, cfg
        try:
            return executor(*args, **kwargs)
        finally:
            executor.class_obj.cfg = saved

    clone = model.clone()
    clone.add_wrapper(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, wrapper)
    return clone


def both_orders(make, change):
    """A MODEL that is patched by us and changed by another node, in both orders, with the trace."""
    model, trace = make(world()[0])
    yield change(model), trace
    yield make(change(world()[0]))


def safecfg(model, harm=6.0):
    return patch(make_redirector(harm), model)


def sp_guard(model):
    return concept_graphs.mask(model, **concept_graphs.EASY)


# ---- A1: cfg changed during the run ----


@pytest.mark.parametrize("span", [(0.0, 1.0), (0.45, 1.0), (0.0, 0.3)])
def test_safecfg_guards_steps_at_cfg_1_without_an_unconditional_branch(span):
    plain = ksample(override(world()[0], 1.0, *span), encoded(KNIFE), encoded(""), steps=STEPS)
    for model, trace in both_orders(safecfg, lambda model: override(model, 1.0, *span)):
        guarded = ksample(model, encoded(KNIFE), encoded(""), steps=STEPS)
        assert all(step.acted for step in trace.run.steps)
        for step in trace.run.steps:
            inside = span[0] <= step.progress <= span[1]
            assert ("base" in step.evaluated) == inside, step
            assert step.extra_evaluations == (2 if inside else 0)
        assert "without an unconditional branch" in trace.run.decision
        assert not guarded.equal(plain)


def test_what_safecfg_does_at_cfg_1_is_the_formula():
    redirector = make_redirector(kappa=2.0)
    model, _ = patch(redirector, override(world()[0], 1.0))
    conds = encoded(KNIFE), encoded("")
    core, safe = part("safeguidance.redirector.interface"), part("safeguidance.guidance.safecfg")
    conditioning = part("safeguidance.conditioning").Conditioning
    with torch.inference_mode():
        found = core.run_redirector(
            redirector, conditioning(conds[0][0][0]), conditioning(conds[1][0][0]), safe.SafeCFGConfig(), 4.0
        )

    import comfy.samplers

    class ByHand(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            names = ("positive", "negative", "redirected")
            prompt, base, moved = comfy.samplers.calc_cond_batch(
                self.inner_model, [self.conds[name] for name in names], x, timestep, model_options
            )
            return prompt - (moved - base) / found.kappa

    hand = ByHand(world()[0])
    redirected = [[found.conditionings[0].tokens, conds[0][0][1]]]
    hand.inner_set_conds({"positive": conds[0], "negative": conds[1], "redirected": redirected})
    hand.set_cfg(4.0)
    expected, got = sample(hand), sample(stock(*conds, model=model))
    assert torch.allclose(got, expected, atol=2e-3)


def test_a_harmless_prompt_at_cfg_1_keeps_its_bits():
    plain = ksample(override(world()[0], 1.0, 0.5), encoded(APPLE), encoded(""), steps=STEPS)
    for model, trace in both_orders(lambda m: safecfg(m, CLOSED), lambda model: override(model, 1.0, 0.5)):
        assert ksample(model, encoded(APPLE), encoded(""), steps=STEPS).equal(plain)
        assert trace.run.decision.startswith("harmless")
        assert not any(step.acted for step in trace.run.steps)


@pytest.mark.parametrize("cfg", [0.0, 0.5, float("nan")])
@pytest.mark.parametrize("harm", [6.0, CLOSED])
def test_a_cfg_that_draws_the_negative_prompt_is_refused_in_words(cfg, harm):
    for model, trace in both_orders(lambda m: safecfg(m, harm), lambda model: override(model, cfg, 0.5)):
        with pytest.raises(
            ValueError, match=r"SafeCFG \(Model Patch\), cfg: it is .* in this step.*allowed: 1 or more"
        ):
            ksample(model, encoded(APPLE), encoded(KNIFE), steps=STEPS)
        assert "stopped" in trace.run.decision


@pytest.mark.parametrize("span", [(0.0, 1.0), (0.45, 1.0)])
def test_concept_guidance_at_cfg_1_starts_from_a_real_prediction(span):
    plain = ksample(override(world()[0], 1.0, *span), encoded(KNIFE), encoded(""), steps=STEPS)
    for model, trace in both_orders(sp_guard, lambda model: override(model, 1.0, *span)):
        guarded = ksample(model, encoded(KNIFE), encoded(""), steps=STEPS)
        assert trace.run.acted
        assert float(guarded.std() / plain.std()) > 0.5
        for step in trace.run.steps:
            low = span[0] <= step.progress <= span[1]
            asked = any(name.startswith("concept") for name in step.evaluated)
            assert ("base" in step.evaluated) != low
            assert ("empty prompt" in step.evaluated) == (low and asked)


def test_a_cfg_per_picture_is_guarded_picture_by_picture():
    import nodes

    node = nodes.NODE_CLASS_MAPPINGS["VideoLinearCFGGuidance"]()
    latent = {"samples": torch.zeros(small(3))}
    plain = ksample(node.patch(world()[0], 1.0)[0], encoded(KNIFE), encoded(""), latent=latent)
    for model, trace in both_orders(safecfg, lambda model: node.patch(model, 1.0)[0]):
        guarded = ksample(model, encoded(KNIFE), encoded(""), latent=latent)
        assert all(step.samples == (True, True, True) for step in trace.run.steps)
        assert all("base" in step.evaluated for step in trace.run.steps), "the first picture is sampled at cfg 1"
        for number in range(3):
            assert not guarded[number].equal(plain[number]), number
    for model, _ in both_orders(safecfg, lambda model: node.patch(model, 0.0)[0]):
        with pytest.raises(ValueError, match="for picture 1 of the batch"):
            ksample(model, encoded(KNIFE), encoded(""), latent=latent)


# ---- A5: values that are not finite ----


@pytest.mark.parametrize("where", ["positive", "concepts"])
def test_states_that_are_not_finite_are_refused_by_every_method(where):
    broken = [[encoded(KNIFE)[0][0] * float("nan"), encoded(KNIFE)[0][1]]]
    if where == "positive":
        for make in (safecfg, sp_guard, lambda m: concept_graphs.family("NOT", m), crg):
            with pytest.raises(ValueError, match="not (a )?finite"):
                ksample(make(world()[0])[0], broken, encoded(""))
        return
    run = part("nodes.concept_guidance.run")

    class Broken:
        def tokenize(self, text):
            return text

        def encode_from_tokens_scheduled(self, text):
            return broken if "knife" in text else encoded("")

    with pytest.raises(ValueError, match="X, concepts: the text encoder gives values that are not finite"):
        run.encode_texts("X", Broken(), concept_graphs.concepts())


def crg(model):
    node = part("nodes.concept_guidance.factory").PATCH_NODES["crg"]
    return node.execute(model, world()[1], concept_graphs.concepts(), threshold=0.0).args


def test_a_concept_that_predicts_nan_is_not_called_harmless():
    model = world()[0].clone()
    concept = encoded("knife")[0][0]

    def poison(apply_model, args):
        out = apply_model(args["input"], args["timestep"], **args["c"])
        rows = args["c"]["c_crossattn"]
        hit = torch.tensor([torch.allclose(row[: concept.shape[1]], concept[0], atol=1e-4) for row in rows])
        return torch.where(hit.reshape(-1, 1, 1, 1), float("nan"), out)

    model.set_model_unet_function_wrapper(poison)
    for make in (sp_guard, lambda m: concept_graphs.family("SLD max", m), crg):
        guarded, trace = make(model)
        with pytest.raises(ValueError, match="concepts: the model's prediction for the concept 'blade' holds values"):
            ksample(guarded, encoded(KNIFE), encoded(""), steps=STEPS)
        assert "harmless" not in trace.run.decision


# ---- A6, B4: negatives in time and space ----


@pytest.mark.parametrize("span", [(0.4, 1.0), (0.0, 0.4), (0.3, 0.6)])
def test_steps_without_a_negative_prompt_are_redirected_too(span):
    negative = with_values(encoded("snow"), start_percent=span[0], end_percent=span[1])
    model, trace = patch(make_redirector())
    ksample(model, encoded(KNIFE), negative, steps=10)
    assert all(step.acted for step in trace.run.steps)
    assert trace.run.decision.endswith("redirected in all 10 steps")
    calm, trace = patch(make_redirector(CLOSED))
    assert ksample(calm, encoded(APPLE), negative, steps=10).equal(
        ksample(world()[0], encoded(APPLE), negative, steps=10)
    )


def test_regional_negatives_are_refused_only_where_the_prompt_is_harmful():
    mask = {"mask": half_mask(), "mask_strength": 1.0, "set_area_to_bounds": False}
    negative = [*encoded("snow"), *with_values(encoded("a cup of coffee"), **mask)]
    calm, trace = patch(make_redirector(CLOSED))
    assert ksample(calm, encoded(APPLE), negative).equal(ksample(world()[0], encoded(APPLE), negative))
    assert trace.run.decision.startswith("harmless")
    model, _ = patch(make_redirector())
    with pytest.raises(ValueError, match="negative: the prompt is harmful, and the negative has 2 combined parts"):
        ksample(model, encoded(KNIFE), negative)


def test_an_empty_prompt_over_an_empty_negative_is_never_redirected():
    model, trace = patch(make_redirector())
    assert ksample(model, encoded(""), encoded("")).equal(ksample(world()[0], encoded(""), encoded("")))
    assert trace.run.decision == "harmless (0.00): left untouched"


# ---- A9, C10: steps ----


@pytest.mark.parametrize(
    "levels", [(1.0, 1.0, 0.8, 0.8, 0.5, 0.0), (0.5, 0.9, 0.7, 0.0), (1.0, 0.6, 0.9, 0.4, 0.0)], ids=str
)
def test_steps_of_schedules_that_repeat_or_rise_are_counted_one_by_one(levels):
    ours, trace = guider(encoded(KNIFE), encoded(""), make_redirector())
    sample(ours, torch.tensor(levels))
    assert trace.run.decision.endswith(f"redirected in all {len(levels) - 1} steps")
    assert [step.step for step in trace.run.steps] == list(range(1, len(levels)))


def test_denoise_0_makes_no_step_and_the_report_says_so():
    model, trace = patch(make_redirector())
    ksample(model, encoded(KNIFE), encoded(""), denoise=0.0)
    account = part("safeguidance.report.account").account_for(*trace.runs_of())
    assert account.decision.startswith("NOT GUARDED: the sampler made no step")
    assert account.harmful


# ---- the trace against the model ----

SAMPLERS = ["euler", "heun", "dpmpp_2m", "dpmpp_sde", "euler_ancestral", "uni_pc", "lcm", "euler_cfg_pp", "dpm_2"]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("harm", [6.0, CLOSED])
def test_the_trace_of_safecfg_says_what_the_model_was_given(sampler, harm):
    watched, seen = spy.spied(world()[0])
    ours, trace = guider(encoded(KNIFE), encoded(""), make_redirector(harm), model=watched)
    sample(ours, sigmas(5), sampler)
    spy.check_safecfg(trace, seen, encoded(KNIFE)[0][0], encoded("")[0][0])
    assert {step.step for step in trace.run.steps} == set(range(1, 6)) | {s.step for s in trace.run.steps if s.step > 5}
    assert trace.run.steps_made == 5


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["sp_guard", "crg", "SLD max", "SEGA", "NOT", "negative prompt"])
def test_the_trace_of_concept_guidance_says_what_the_model_was_given(sampler, name):
    watched, seen = spy.spied(world()[0])
    makers = {"sp_guard": sp_guard, "crg": crg}
    model, trace = makers[name](watched) if name in makers else concept_graphs.family(name, watched)
    sample(stock(encoded(KNIFE), encoded(""), model=model), sigmas(5), sampler)
    texts = {"blade": encoded("knife")[0][0], "drug": encoded("syringe")[0][0]}
    spy.check_concepts(trace, seen, texts)


@pytest.mark.parametrize("start", [0.3, 0.7])
def test_runs_that_start_in_the_middle_say_what_they_did(start):
    watched, seen = spy.spied(world()[0])
    ours, trace = guider(encoded(KNIFE), encoded(""), make_redirector(), model=watched)
    levels = sigmas(10)[int(10 * start) :]
    sample(ours, levels, latent=torch.ones(small(1)))
    spy.check_safecfg(trace, seen, encoded(KNIFE)[0][0], encoded("")[0][0])
    assert trace.run.decision.endswith(f"in all {len(levels) - 1} steps")


def test_split_sampling_is_two_runs_of_one_picture():
    import nodes

    model, trace = patch(make_redirector())
    common = {"steps": 6, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple"}
    conds, latent = (encoded(KNIFE), encoded("")), {"samples": torch.zeros(small(1))}
    advanced = nodes.KSamplerAdvanced()
    with torch.inference_mode():
        first = advanced.sample(model, "enable", 0, *common.values(), *conds, latent, 0, 3, "enable")[0]
        second = advanced.sample(model, "disable", 0, *common.values(), *conds, first, 3, 6, "disable")[0]
    runs, certain = trace.runs_of(second["samples"])
    assert certain
    assert [run.decision.split("redirected ")[1] for run in runs] == ["in all 3 steps"] * 2
