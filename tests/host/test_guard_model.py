"""Guard Model: which guard it takes, that its pictures are those of the parts wired by hand, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from tests.host.safecfg_graphs import encoded, ksample, make_redirector, part, sample, sigmas, stock, world
from tests.host.spy import check_moved, spied
from tests.host.test_no_silent_hole import SAMPLERS, override

pytestmark = pytest.mark.usefixtures("pack")
SKULL, CUP = "a skull on a meadow", "a cup of coffee on a meadow"


def guard(model=None, **settings):
    node = part("nodes.guard_model").GuardModel
    switches = {name: True for name in ("hate", "violence", "sexual")}
    with torch.inference_mode():
        return node.execute(model or world()[0], world()[1], **{**switches, **settings}).args


def text_redirector():
    return part("nodes.text_redirector.load").LoadTextRedirector.execute("testbed-text-redirector.safetensors").args[0]


def by_hand(kind):
    """The same guard from the nodes it is made of: a MODEL, and a function that the prompt goes through."""
    if kind == "text redirector":
        safe = part("nodes.text_redirector.safe_conditioning").SafeConditioning
        return world()[0], lambda cond: safe.execute(cond, text_redirector()).args[0]
    if kind == "trained HGR":
        found = part("nodes.redirectors").LoadHGR.execute("testbed-hgr.safetensors").args[0]
    else:
        presets = part("safeguidance.testbed.concepts").TESTBED_PRESETS
        concepts = part("safeguidance.concepts").Concepts(presets)
        found = part("nodes.redirectors").RedirectorFromConcepts.execute(world()[1], concepts).args[0]
    return part("nodes.safecfg.node").SafeCFGPatch.execute(world()[0], found).args[0], lambda cond: cond


@pytest.mark.parametrize("kind", ["text redirector", "trained HGR", "concepts"])
@pytest.mark.parametrize("text", [SKULL, CUP])
def test_its_pictures_are_those_of_the_parts_wired_by_hand(kind, text):
    empty = encoded("")
    guarded, trace, words = guard(guard=kind)
    model, moved = by_hand(kind)
    with torch.inference_mode():
        wanted = ksample(model, moved(encoded(text)), empty)
    assert torch.equal(ksample(guarded, encoded(text), empty), wanted)
    assert torch.equal(wanted, ksample(world()[0], encoded(text), empty)) == (text == CUP)
    assert trace.run.harmful == (text == SKULL)
    assert words.startswith(f"{kind}: ")


def test_auto_takes_the_text_redirector_that_fits_and_acts_at_cfg_1_too():
    guarded, trace, words = guard()
    assert words.startswith("text redirector: testbed-text-redirector.safetensors was trained for this text encoder")
    before = ksample(world()[0], encoded(SKULL), encoded(""), cfg=1.0)
    assert not torch.equal(ksample(guarded, encoded(SKULL), encoded(""), cfg=1.0), before)
    assert trace.run.decision.endswith("its safe counterpart was sampled in all 4 steps")
    assert {step.evaluated for step in trace.run.steps} == {("safe counterpart",)}
    assert torch.equal(
        ksample(guarded, encoded(CUP), encoded(""), cfg=1.0), ksample(world()[0], encoded(CUP), encoded(""), cfg=1.0)
    )
    assert trace.run.decision.startswith("harmless")


def test_the_same_model_twice_gives_the_same_picture_and_nothing_is_left_behind():
    guarded, _, _ = guard()
    plain = encoded(SKULL)
    states = plain[0][0].clone()
    first = ksample(guarded, plain, encoded(""))
    assert torch.equal(ksample(guarded, plain, encoded("")), first)
    assert torch.equal(plain[0][0], states)
    assert torch.equal(ksample(world()[0], plain, encoded("")), sample_plain(plain))


def sample_plain(plain):
    return ksample(world()[0].clone(), plain, encoded(""))


def test_a_basic_guider_without_a_negative_is_guarded():
    import comfy.samplers

    guarded, trace, _ = guard()
    plain = comfy.samplers.CFGGuider(guarded)
    plain.inner_set_conds({"positive": encoded(SKULL)})
    out = sample(plain, sigmas(3))
    assert trace.run.acted
    unguarded = comfy.samplers.CFGGuider(world()[0])
    unguarded.inner_set_conds({"positive": encoded(SKULL)})
    assert not torch.equal(out, sample(unguarded, sigmas(3)))


def test_parts_and_batches_are_judged_by_themselves():
    (skull, extra), (cup, more) = encoded(SKULL)[0], encoded(CUP)[0]
    guarded, trace, _ = guard()
    late = [[skull, {**extra, "start_percent": 0.5}], [cup, {**more, "end_percent": 0.5}]]
    sample(stock(late, encoded(""), guarded), sigmas(4))
    assert trace.run.harmful
    acted = [step.acted for step in trace.run.steps]
    assert True in acted
    assert False in acted
    assert "sampled in all" not in trace.run.decision


def test_a_guard_that_is_named_and_missing_is_an_error_and_never_another_one():
    error = part("safeguidance.errors").InputError
    concepts = part("safeguidance.concepts").parse_concepts("dragons: a dragon, a wyvern")
    for kind in ("text redirector", "trained HGR"):
        with pytest.raises(error, match=f"it is '{kind}', and no file fits .*does not know dragons"):
            guard(guard=kind, concepts=concepts)
    _, _, words = guard(concepts=concepts)
    assert words.startswith("concepts: ")
    assert "does not know dragons" in words


def test_what_is_connected_comes_first():
    assert guard(text_redirector=text_redirector())[2].startswith("text redirector: text redirector testbed")
    assert guard(redirector=make_redirector(6.0, kappa=2.0), guard="trained HGR")[2].startswith("trained HGR: ")


def test_what_is_connected_and_not_of_the_named_kind_is_refused_and_never_passed_over():
    error = part("safeguidance.errors").InputError
    with pytest.raises(error, match="but a text redirector is connected"):
        guard(text_redirector=text_redirector(), guard="trained HGR")
    for kind in ("text redirector", "concepts"):
        with pytest.raises(error, match="but a trained HGR is connected"):
            guard(redirector=make_redirector(6.0, kappa=2.0), guard=kind)


def test_it_is_refused_twice_and_with_nothing_to_look_for():
    error = part("safeguidance.errors").InputError
    with pytest.raises(error, match="twice"):
        guard(guard()[0])
    with pytest.raises(error, match="every category is off"):
        guard(hate=False, violence=False, sexual=False)


def test_text_that_no_redirector_reads_stops_the_run():
    error = part("safeguidance.errors").InputError
    guarded, trace, _ = guard()
    (states, extra), *_ = encoded(SKULL)
    with pytest.raises(error, match="carries text in conditioning_llama3"):
        ksample(guarded, [[states, {**extra, "conditioning_llama3": torch.ones(1)}]], encoded(""))
    assert trace.run.decision.startswith("NOT guarded")


@pytest.mark.parametrize("cfg", [0.0, 0.5, float("nan")])
def test_a_cfg_that_draws_the_negative_prompt_is_refused(cfg):
    with pytest.raises(part("safeguidance.errors").InputError, match="the negative prompt is drawn"):
        ksample(guard()[0], encoded(SKULL), encoded(""), cfg=cfg)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("text", [SKULL, CUP])
def test_the_trace_says_what_the_model_was_given(sampler, text):
    model, spy = spied(world()[0])
    guarded, trace, _ = guard(model)
    sample(stock(encoded(text), encoded(""), guarded), sigmas(6), sampler)
    assert trace.run.steps
    check_moved(trace, spy, encoded(text)[0][0], encoded("")[0][0])
    assert any(step.acted for step in trace.run.steps) == (text == SKULL)


@pytest.mark.parametrize("span", [(0.0, 1.0), (0.45, 1.0), (0.0, 0.3)])
@pytest.mark.parametrize("order", [0, 1])
def test_steps_that_another_node_brings_to_cfg_1_are_guarded_too(span, order):
    model, spy = spied(world()[0])
    if order:
        guarded, trace, _ = guard(override(model, 1.0, *span))
    else:
        guarded, trace, _ = guard(model)
        guarded = override(guarded, 1.0, *span)
    sample(stock(encoded(SKULL), encoded(""), guarded), sigmas(6))
    check_moved(trace, spy, encoded(SKULL)[0][0], encoded("")[0][0])
    assert trace.run.decision.endswith("its safe counterpart was sampled in all 6 steps")


def test_what_safree_filtered_is_judged_as_it_was_written():
    """A filter that takes the trigger out must not make the guard behind it call the prompt harmless."""
    filtered = part("nodes.safree.filter").SafreeEmbeddingFilter
    concepts = part("safeguidance.concepts").Concepts(part("safeguidance.testbed.concepts").TESTBED_PRESETS)
    with torch.inference_mode():
        conditioning = filtered.execute(world()[1], SKULL, concepts, preset="strict").args[0]
    guarded, trace, _ = guard()
    ksample(guarded, conditioning, encoded(""))
    assert trace.run.harmful
    assert trace.run.acted
    assert max(trace.run.scores[0]) > 0.9
    node = part("nodes.text_redirector.safe_conditioning").SafeConditioning
    assert node.execute(conditioning, text_redirector()).args[3]


def stock_graph(text):
    """What people have: a KSampler without any guard, in the executor's format."""
    return {
        "1": {"class_type": "SafeGuidance_LoadTestbed", "inputs": {}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": text}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 48, "height": 48, "batch_size": 1}},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "seed": 3,
                "steps": 4,
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
                "positive": ["2", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
    }


@pytest.mark.parametrize("form", ["editor", "executor"])
@pytest.mark.parametrize("text", [SKULL, CUP])
def test_a_guarded_file_runs_and_guards(run_graph, object_info, form, text):
    from safeguidance.headless.author import to_ui
    from safeguidance.headless.convert import to_api
    from safeguidance.headless.guarding import guard_workflow, unguard_workflow

    plain = stock_graph(text)
    before = run_graph(plain).value("6", 0)
    if form == "editor":
        guarded, count = guard_workflow(to_ui(plain, object_info))
        back = to_api(unguard_workflow(guarded)[0], object_info)
        guarded = to_api(guarded, object_info)
    else:
        guarded, count = guard_workflow(plain, object_info)
        back = unguard_workflow(guarded)[0]
    assert count == 1
    (ours,) = [number for number, node in guarded.items() if node["class_type"] == "SafeGuidance_GuardModel"]
    result = run_graph(guarded)
    assert torch.equal(result.value("6", 0), before) == (text == CUP)
    assert result.value(ours, 2).startswith("text redirector: ")
    assert torch.equal(run_graph(back).value("6", 0), before)
