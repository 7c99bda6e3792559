"""Placed and long prompts, controls, cfg 1, other nodes' patches, SafeCFG beside it, and what is refused."""

from __future__ import annotations

import pytest
import torch

import nodes
from tests.host.concept_graphs import EASY, concepts, family, guider, mask
from tests.host.safecfg_graphs import (
    APPLE,
    KNIFE,
    LEFT,
    counted,
    encoded,
    ksample,
    make_redirector,
    part,
    patch,
    placed,
    sample,
    sigmas,
    small,
    stock,
    with_values,
    world,
)
from tests.host.safecfg_graphs import guider as safecfg_guider

pytestmark = pytest.mark.usefixtures("pack")


def node(name, **inputs):
    """Run a node of the host, whichever schema it has."""
    cls = nodes.NODE_CLASS_MAPPINGS[name]
    out = cls.execute(**inputs) if hasattr(cls, "execute") else getattr(cls(), cls.FUNCTION)(**inputs)
    return getattr(out, "args", out)


# ---- prompts ----


@pytest.mark.parametrize("place", ["area", "mask"])
def test_placed_prompts_are_guided(place):
    positive = placed(KNIFE, place) + encoded("a meadow")
    model, trace = family("NOT")
    out = ksample(model, positive, encoded(""))
    assert torch.isfinite(out).all()
    assert trace.run.acted
    assert not out.equal(ksample(world()[0], positive, encoded("")))


def test_concepts_ride_in_the_calls_an_area_makes():
    positive = with_values(encoded(KNIFE), **LEFT) + encoded("a meadow")
    counting, calls = counted(world()[0])
    ksample(counting, positive, encoded(""))
    before, calls[:] = list(calls), []
    model, trace = family("NOT", counting)
    ksample(model, positive, encoded(""))
    assert len(calls) == len(before)
    assert sum(rows for rows, _ in calls) == 2 * sum(rows for rows, _ in before)
    assert [step.extra_evaluations for step in trace.run.steps] == [4] * 4, "two concepts, in the area and outside"


def test_where_no_part_of_the_prompt_applies_nothing_is_done():
    counting, calls = counted(world()[0])
    model, trace = family("NOT", counting)
    ksample(model, placed(KNIFE, "range"), encoded(""), steps=8)
    inside = [step.progress <= 0.5 for step in trace.run.steps]
    assert [step.acted for step in trace.run.steps] == inside
    assert not all(inside)
    assert [rows for rows, _ in calls] == [4 if yes else 1 for yes in inside]


def test_a_negative_with_a_range_or_an_area_does_not_bind_the_concepts():
    for negative in (with_values(encoded("blue"), start_percent=0.5), with_values(encoded("blue"), **LEFT)):
        model, trace = family("NOT")
        assert torch.isfinite(ksample(model, encoded(KNIFE), negative)).all()
        assert all(step.acted for step in trace.run.steps)


@pytest.mark.parametrize("words", [40, 70])
def test_long_prompts(words):
    long = encoded(" ".join(["red apple"] * (words // 2)) + " knife")
    counting, calls = counted(world()[0])
    ours, trace = guider(long, encoded(""), counting, **EASY)
    assert torch.isfinite(sample(ours, sigmas(6))).all()
    assert trace.run.acted
    assert long[0][0].shape[1] > 32, "texts of another length share the call"
    assert calls[-1] == (3, 3), "texts of another length share the call"


def test_long_concepts():
    looked_for = concepts("blade: " + ", ".join(f"knife number {k}" for k in range(20)))
    ours, trace = guider(encoded(KNIFE), encoded(""), looked_for=looked_for, **EASY)
    assert torch.isfinite(sample(ours, sigmas(6))).all()
    assert len(trace.run.scores[0]) == 1


# ---- controls ----


def tint(value):
    """A control of the host's base class that shifts the middle of the network."""
    from comfy.controlnet import ControlBase

    class Tint(ControlBase):
        def __init__(self):
            super().__init__()
            self.rows = []

        def get_control(self, x_noisy, t, cond, batched_number, transformer_options=None):
            self.rows.append(len(x_noisy))
            return {"middle": [torch.full((len(x_noisy), 1, 1, 1), value)]}

        def get_models(self):
            return []

    return Tint()


@pytest.mark.parametrize("shape", [small(1), small(2)])
def test_a_control_reaches_the_concepts(shape):
    control = tint(0.5)
    positive = with_values(encoded(KNIFE), control=control, control_apply_to_uncond=True)
    ours, trace = guider(positive, encoded(""), **EASY)
    guided = sample(ours, sigmas(6), shape=shape)
    assert trace.run.acted, "one call, concept included"
    assert control.rows[-1] == 3 * shape[0], "one call, concept included"
    assert not guided.equal(sample(guider(encoded(KNIFE), encoded(""), **EASY)[0], sigmas(6), shape=shape))
    shut, _ = guider(positive, encoded(""), threshold=1.0)
    assert sample(shut, shape=shape).equal(sample(stock(positive, encoded("")), shape=shape))


# ---- cfg 1 ----


def basic(model, positive):
    import comfy_extras.nodes_custom_sampler as custom

    found = custom.Guider_Basic(model)
    found.set_conds(positive)
    return found


def test_cfg_one_uses_an_empty_prompt_of_its_own():
    counting, calls = counted(world()[0])
    model, trace = mask(counting, **EASY)
    picture = sample(basic(model, encoded(KNIFE)), sigmas(10))
    assert calls == [(1, 1), (3, 3)] * 2 + [(3, 3)] * 8, "the prompt, then with concept and empty prompt"
    assert [step.extra_evaluations for step in trace.run.steps] == [3, 3] + [2] * 8
    assert trace.run.acted
    assert not picture.equal(sample(basic(world()[0], encoded(KNIFE)), sigmas(10)))
    assert ksample(model, encoded(KNIFE), encoded("blurry"), cfg=1.0, steps=10).equal(picture)


def test_cfg_one_is_the_formula_with_a_scale_of_one():
    levels = torch.tensor([1.0, 0.0])
    model, _ = family("NOT", looked_for=concepts("blade: knife"))
    out = sample(basic(model, encoded(APPLE)), levels)
    apple, empty, knife = (sample(basic(world()[0], encoded(text)), levels) for text in (APPLE, "", "knife"))
    torch.testing.assert_close(out, apple - (knife - empty), rtol=1e-3, atol=1e-4)


def test_a_closed_gate_at_cfg_one_is_stock():
    model, trace = mask(threshold=1.0)
    assert sample(basic(model, encoded(KNIFE)), sigmas(6)).equal(sample(basic(world()[0], encoded(KNIFE)), sigmas(6)))
    assert trace.run.decision.startswith("harmless")


# ---- other nodes ----

OTHERS = {
    "PerturbedAttentionGuidance": {"scale": 3.0},
    "RescaleCFG": {"multiplier": 0.7},
    "FreeU_V2": {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2},
    "SelfAttentionGuidance": {"scale": 0.5, "blur_sigma": 2.0},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_patches_keep_working(name):
    pair, levels = (encoded(KNIFE), encoded("")), sigmas(6)
    both = node(name, model=world()[0], **OTHERS[name])[0]
    plain = sample(stock(*pair, model=both), levels)
    ours, trace = guider(*pair, model=both, **EASY)
    acted = sample(ours, levels)
    assert trace.run.acted
    assert not acted.equal(plain)
    assert not acted.equal(sample(guider(*pair, **EASY)[0], levels))
    quiet, _ = guider(*pair, model=both, threshold=1.0)
    assert sample(quiet, levels).equal(plain)
    after = node(name, model=mask(**EASY)[0], **OTHERS[name])[0]
    assert sample(stock(*pair, model=after), levels).equal(acted)


def test_a_cfg_function_of_another_node_gets_the_guided_prompt():
    seen = []

    def own(args):
        seen.append((args["cond_denoised"].clone(), args["uncond_denoised"].clone()))
        return args["uncond"] + (args["cond"] - args["uncond"]) * args["cond_scale"]

    pair, levels = (encoded(KNIFE), encoded("")), torch.tensor([1.0, 0.0])
    slot = world()[0].clone()
    slot.set_model_sampler_cfg_function(own)
    plain = sample(stock(*pair, model=slot), levels)
    model, _ = family("NOT", slot)
    guided = sample(stock(*pair, model=model), levels)
    (prompt, base), (moved, same) = seen
    assert same.equal(base) or torch.allclose(same, base, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((moved - prompt) * 4.0, guided - plain, rtol=1e-2, atol=1e-4)


# ---- SafeCFG ----


@pytest.mark.parametrize("name", ["SP-Guard", "SLD strong"])
def test_safecfg_and_concept_guidance_in_any_order(name):
    pair, levels = (encoded(KNIFE), encoded("")), sigmas(6)

    def guarded(model=None):
        return mask(model, **EASY) if name == "SP-Guard" else family(name, model)

    counting, calls = counted(world()[0])
    inner, first = guarded(counting)
    one, safe = safecfg_guider(*pair, make_redirector(), model=inner)
    picture = sample(one, levels)
    assert first.run.acted
    assert safe.run.acted
    assert calls[-1][0] >= 3
    after, second = guarded(patch(make_redirector())[0])
    assert sample(stock(*pair, model=after), levels).equal(picture)
    assert second.run.acted
    alone = sample(stock(*pair, model=guarded()[0]), levels)
    assert not picture.equal(alone)
    assert not picture.equal(sample(safecfg_guider(*pair, make_redirector())[0], levels))
    quiet, trace = safecfg_guider(*pair, make_redirector(harm=-6.0), model=inner)
    assert sample(quiet, levels).equal(alone)
    assert not trace.run.acted


def test_a_closed_gate_over_safecfg_is_safecfg():
    pair = encoded(KNIFE), encoded("")
    wanted = sample(safecfg_guider(*pair, make_redirector())[0], sigmas(6))
    for anchor in ("negative", "empty"):
        model, _ = mask(threshold=1.0, anchor=anchor)
        assert sample(safecfg_guider(*pair, make_redirector(), model=model)[0], sigmas(6)).equal(wanted)


def test_an_empty_anchor_beside_safecfg_is_empty():
    """SafeCFG gives the negative another text at each step, which the anchor must not be taken for."""
    pair, levels = (encoded(KNIFE), encoded("")), sigmas(6)
    scores = {}
    for anchor in ("negative", "empty"):
        model, trace = mask(anchor=anchor, **EASY)
        sample(safecfg_guider(*pair, make_redirector(), model=model)[0], levels)
        scores[anchor] = trace.run.scores
        assert trace.run.steps[0].extra_evaluations == (3 if anchor == "empty" else 2)
    assert scores["negative"] != scores["empty"]


def test_the_map_of_safecfg_is_the_same():
    pair = encoded(KNIFE), encoded("")
    one_step = torch.tensor([1.0, 0.0])
    alone, trace = safecfg_guider(*pair, make_redirector(), map=True)
    sample(alone, one_step)
    model, _ = family("NOT")
    both, other = safecfg_guider(*pair, make_redirector(), model=model, map=True)
    sample(both, one_step)
    torch.testing.assert_close(other.run.effect, trace.run.effect, rtol=1e-3, atol=1e-4)


# ---- refusals ----


def test_once_is_enough():
    model, _ = mask()
    for again in (lambda: mask(model), lambda: family("NOT", model), lambda: guider([], [], model)):
        with pytest.raises(
            ValueError, match="model: this MODEL already carries concept guidance .*; allowed: once; remove one"
        ):
            again()


def test_guiders_that_would_not_act_are_refused():
    import comfy_extras.nodes_custom_sampler as custom

    dual = custom.Guider_DualCFG(mask()[0])
    dual.set_conds(encoded(KNIFE), encoded(APPLE), encoded(""))
    dual.set_cfg(4.0, 4.0)
    with pytest.raises(ValueError, match="SP-Guard Mask, model: the guider Guider_DualCFG does not compute ordinary"):
        sample(dual)
    lone = basic(mask()[0], encoded(KNIFE))
    lone.set_cfg(4.0)
    with pytest.raises(ValueError, match="SP-Guard Mask, negative: .* no negative conditioning at cfg 4"):
        sample(lone)


@pytest.mark.parametrize("cfg", [0.0, -1.0])
def test_a_scale_that_follows_no_prompt_is_refused(cfg):
    with pytest.raises(ValueError, match="SP-Guard Guider, cfg: it is .*allowed: above 0"):
        guider(encoded(KNIFE), encoded(""), cfg=cfg)
    with pytest.raises(ValueError, match="SP-Guard Mask, cfg: it is .*allowed: above 0"):
        ksample(mask()[0], encoded(KNIFE), encoded(""), cfg=cfg)


def test_another_text_encoder_is_refused():
    strange = [[torch.zeros(1, 32, 96), {}]]
    with pytest.raises(ValueError, match="SP-Guard Mask, clip: its texts have 384 channels, the prompt has 96"):
        ksample(mask()[0], strange, strange)


def test_packed_latents_are_refused():
    run = part("nodes.concept_guidance.run")
    method, config = part("nodes.concept_guidance.concept_guidance").make_method("NOT")
    trace = part("safeguidance.report.trace").Trace()
    engine = run.ConceptRun("Concept Guidance", method, config, "NOT", None, trace)
    plain = stock(encoded(KNIFE), encoded(""))
    plain.conds = plain.original_conds
    with pytest.raises(ValueError, match="Concept Guidance, model: its latents are 2 parts packed"):
        engine._check(plain, [(1, 16, 4), (1, 8, 4)])


def test_no_clip_is_refused():
    factory, family_node = part("nodes.concept_guidance.factory"), part("nodes.concept_guidance.concept_guidance")
    nodes = [(node, {}) for node in factory.NODES] + [(family_node.ConceptGuidance, {"method": "NOT"})]
    for node, values in nodes:
        with pytest.raises(ValueError, match="clip: the input is empty; .*Load CLIP"):
            node.execute(world()[0], None, concepts(), **values)


SP_GUARD = {
    "lambda_max": -2.0,
    "lambda_end": 21.0,
    "switch": 1.5,
    "quantile": 1.0,
    "end": -0.1,
    "probe": 1.0,
    "every": 0,
    "threshold": 2.0,
    "offset": 1.5,
    "settle": 1.0,
    "reference": "median",
    "psi": "both",
    "axis": "row",
    "concept": "none",
    "anchor": "positive",
}


@pytest.mark.parametrize("field", SP_GUARD)
def test_each_setting_of_sp_guard_out_of_range_is_refused(field):
    with pytest.raises(ValueError, match=f"SP-Guard Mask, {field}: it is .*allowed"):
        mask(**{field: SP_GUARD[field]})


FAMILY = [
    ("NOT", {"strength": 5.0}, "strength: it is 5.0; allowed: 0"),
    ("NOT", {"quantile": 0.9}, "quantile: it is 0.9, but NOT has none"),
    ("NOT", {"momentum": 0.5}, "momentum: it is 0.5, but NOT has none"),
    ("SEGA", {"threshold": 0.5}, "threshold: it is 0.5, but SEGA has none"),
    ("SLD max", {"quantile": 0.5}, "quantile: it is 0.5, but SLD max has none"),
    ("SLD max", {"concept": "all"}, "concept: it is 'all', which SLD max does not have"),
    ("SLD weak", {"start": 0.9, "end": 0.5}, "window: it is 0.9 to 0.5"),
    ("SEGA", {"start": 1.5}, "start: it is 1.5; allowed: 0 to 1"),
    ("NOT", {"start": 0.9, "end": 0.5}, "window: it is 0.9 to 0.5"),
    ("SEGA", {"momentum": 1.5}, "momentum: it is 1.5; allowed: 0 to 1"),
    ("SLD max", {"beta": 1.0}, "beta: it is 1.0; allowed: 0"),
    ("SEGA", {"quantile": 1.0}, "quantile: it is 1.0; allowed: 0"),
    ("NOT", {"concept": "last"}, "concept: it is 'last'; allowed"),
    ("NOT", {"anchor": "positive"}, "anchor: it is 'positive'; allowed"),
    ("SLD", {}, "method: it is 'SLD'; allowed: SLD weak"),
]


@pytest.mark.parametrize("method, settings, words", FAMILY)
def test_each_setting_of_the_family_out_of_range_is_refused(method, settings, words):
    with pytest.raises(ValueError, match="Concept Guidance, ") as caught:
        family(method, **settings)
    assert words in str(caught.value)
    assert "allowed" in str(caught.value)
