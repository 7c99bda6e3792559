"""The SAFREE nodes in sampling on the testbed: ranges of the schedule, re-attention, neutral settings, messages."""

from __future__ import annotations

import math

import pytest
import torch

from tests.host.safecfg_graphs import (
    counted,
    encoded,
    ksample,
    make_redirector,
    part,
    sample,
    sigmas,
    small,
    stock,
    with_values,
    world,
)
from tests.host.safree_graphs import filtered
from tests.host.test_safecfg_models import tiny_sd3

pytestmark = pytest.mark.usefixtures("pack")
KNIFE, CUP = "a kitchen knife on a meadow", "a cup of coffee on a meadow"
SELF, WHOLE = {"hold": "self-validating"}, {"hold": "whole schedule"}


def known_concepts():
    return part("safeguidance.concepts").Concepts(part("safeguidance.testbed.concepts").TESTBED_PRESETS)


def safree(text=KNIFE, **settings):
    return filtered(world()[1], text, known_concepts(), **settings)


def reattention(model=None, **settings):
    node = part("nodes.safree.reattention").SafreeLatentReAttention
    values = {"strength": 1.0, "blocks": "both", "start": 0.0, "end": 1.0, **settings}
    return node.execute(model or world()[0], **values).args


def run(positive, model=None, cfg=4.0, **settings):
    return sample(stock(positive, encoded(""), model, cfg), **settings)


def test_the_filter_holds_for_its_share_and_then_the_prompt_as_written_takes_over():
    whole, _, _ = safree(**WHOLE)
    half, _, words = safree(hold="self-validating", half=0.0, longest=0.48)
    assert len(whole) == 1
    assert len(half) == 2
    assert "50%" in words
    levels = sigmas(10)
    seen = {}
    for name, positive in (("whole", whole), ("half", half), ("plain", encoded(KNIFE))):
        latents = []
        run(positive, schedule=levels, callback=lambda *args, kept=latents: kept.append(args[1].clone()))
        seen[name] = latents
    assert torch.equal(seen["half"][0], seen["whole"][0])
    assert not torch.equal(seen["half"][0], seen["plain"][0])
    (_, first), (_, then) = half
    assert first["clip_end_percent"] < 0.5
    assert then["clip_start_percent"] == first["clip_end_percent"]
    # from the switch on a step costs and says what it says without the filter
    model, calls = counted(world()[0])
    run(half, model, schedule=levels)
    assert {rows for rows, _ in calls} == {2}
    assert len(calls) == 10


def test_no_step_belongs_to_both_ranges_whatever_the_number_of_steps():
    for longest in (0.0, 0.2, 0.48):
        half, _, _ = safree(hold="self-validating", half=0.0, longest=longest)
        for steps in (5, 25):
            model, calls = counted(world()[0])
            run(half, model, schedule=sigmas(steps))
            assert {rows for rows, _ in calls} == {2}


def test_a_prompt_without_a_trigger_gives_the_very_picture_of_plain_sampling():
    untouched, _, words = safree(CUP, alpha=1.0)
    assert words.startswith("no token flagged")
    assert torch.equal(run(untouched), run(encoded(CUP)))
    patched, trace = reattention()
    assert torch.equal(run(untouched, patched), run(encoded(CUP)))
    assert trace.run.decision.startswith("no token")


def test_a_judge_leaves_harmless_prompts_alone_and_lets_harmful_ones_be_filtered():
    plain, _, words = safree(CUP, judge=make_redirector(harm=-6.0), **WHOLE)
    assert words.startswith("harmless (")
    assert "to HGR test: left untouched" in words
    assert torch.equal(run(plain), run(encoded(CUP)))
    acted, _, words = safree(KNIFE, judge=make_redirector(harm=6.0), **WHOLE)
    assert words.startswith("flagged")
    assert not torch.equal(run(acted), run(encoded(KNIFE)))


@pytest.mark.parametrize("settings", [{"strength": 0.0}, {"deep": 1.0, "middle": 1.0}, {"start": 0.5, "end": 0.5}])
def test_neutral_reattention_is_bit_identical_and_evaluates_nothing(settings):
    positive, _, _ = safree(**WHOLE)
    model, calls = counted(world()[0])
    patched, trace = reattention(model, **settings)
    assert torch.equal(run(positive, patched), run(positive))
    assert {rows for rows, _ in calls} == {2}
    assert not trace.run.acted


def test_reattention_changes_the_picture_with_one_more_row_in_the_same_call_only_while_it_acts():
    positive, _, _ = safree(hold="self-validating", half=0.0, longest=0.48)
    model, calls = counted(world()[0])
    patched, trace = reattention(model)
    got = run(positive, patched, schedule=sigmas(10))
    assert not torch.equal(got, run(positive, schedule=sigmas(10)))
    rows = [count for count, _ in calls]
    assert len(rows) == 10
    assert sorted(set(rows)) == [2, 3]
    acted = [step.acted for step in trace.run.steps]
    assert rows == [3 if act else 2 for act in acted]
    assert acted[0]
    assert not acted[-1]
    assert sum(step.extra_evaluations for step in trace.run.steps) == sum(acted)


def test_reattention_equals_the_bench_where_both_do_the_same():
    """The host's patched UNet against the core's formula on the same features."""
    reattend = part("safeguidance.safree").reattend
    config = part("safeguidance.safree").ReattentionConfig()
    positive, _, _ = safree(**WHOLE)
    seen = []
    patched, _ = reattention()
    original = patched.model_options["transformer_options"]["patches"]["output_block_patch"][0]

    def watch(h, hsp, options):
        out = original(h, hsp, options)
        seen.append((list(options["cond_or_uncond"]), hsp.clone(), out[1].clone()))
        return out

    patched.model_options["transformer_options"]["patches"]["output_block_patch"] = [watch]
    run(positive, patched, schedule=sigmas(1))
    assert len(seen) == 4
    factors = {256: 0.9, 128: 0.2}
    for which, before, after in seen:
        where = {index: row for row, index in enumerate(which)}
        assert sorted(where) == [0, 1, 2]
        expected = before.clone()
        factor = factors[before.shape[1]]
        ours, theirs = before[where[0] : where[0] + 1], before[where[2] : where[2] + 1]
        expected[where[0]] = reattend(ours, theirs, factor, config)[0]
        assert torch.equal(after, expected)


@pytest.mark.parametrize("batch", [1, 3])
def test_reattention_in_batches_and_at_cfg_one(batch):
    positive, _, _ = safree(**WHOLE)
    shape = small(batch)
    model, calls = counted(world()[0])
    patched, _ = reattention(model)
    got = run(positive, patched, cfg=1.0, shape=shape)
    assert {rows for rows, _ in calls} == {2 * batch}
    assert not torch.equal(got, run(positive, cfg=1.0, shape=shape))
    assert torch.equal(got, run(positive, patched, cfg=1.0, shape=shape))


def test_each_block_choice_acts_on_its_own():
    positive, _, _ = safree(**WHOLE)
    both, deep, middle = (run(positive, reattention(blocks=name)[0]) for name in ("both", "deep", "middle"))
    assert not torch.equal(both, deep)
    assert not torch.equal(deep, middle)
    assert not torch.equal(both, middle)


def test_areas_and_combined_prompts_are_reattended_one_by_one():
    left = with_values(safree(**WHOLE)[0], area=(8, 4, 0, 0), strength=1.0, set_area_to_bounds=False)
    right = with_values(
        safree("a bomb in the snow", **WHOLE)[0], area=(8, 4, 0, 4), strength=1.0, set_area_to_bounds=False
    )
    plain = run(left + right)
    patched, trace = reattention()
    assert not torch.equal(run(left + right, patched), plain)
    assert all(step.extra_evaluations == 2 for step in trace.run.steps)


def test_the_filter_works_with_ksampler_and_at_cfg_one():
    positive, _, _ = safree(**WHOLE)
    for cfg in (1.0, 4.0):
        got = ksample(world()[0], positive, encoded(""), cfg=cfg)
        assert not torch.equal(got, ksample(world()[0], encoded(KNIFE), encoded(""), cfg=cfg))


def test_a_failed_run_leaves_nothing_behind():
    positive, _, _ = safree(**WHOLE)
    patched, _ = reattention()
    guided = stock(positive, encoded(""), patched)
    first = sample(guided)

    def stop(*_args):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        sample(guided, callback=stop)
    assert torch.equal(sample(guided), first)


def test_an_ordinary_prompt_under_reattention_is_refused_in_words():
    patched, _ = reattention()
    with pytest.raises(ValueError, match="Latent Re-Attention, model.*did not come from.*Embedding Filter.*allowed"):
        run(encoded(KNIFE), patched)


def test_a_model_without_skip_features_is_refused_in_words():
    with pytest.raises(ValueError, match="model: SD3 has no skip features.*allowed.*UNet"):
        reattention(tiny_sd3())


def test_it_is_refused_twice_on_one_model():
    with pytest.raises(ValueError, match="carries it already; allowed: once"):
        reattention(reattention()[0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hold": "x"}, "hold: it is 'x'; allowed"),
        ({"alpha": -0.5}, "alpha: it is -0.5; allowed"),
        ({"scope": "x"}, "scope: it is 'x'; allowed"),
        ({"steepness": 0.0}, "steepness: it is 0.0; allowed"),
        ({"longest": 1.0}, "longest: it is 1.0; allowed"),
        ({"alpha": math.inf}, "alpha: it is inf; allowed"),
        ({"alpha": math.nan}, "alpha: it is nan; allowed"),
        ({"half": math.nan}, "half: it is nan; allowed"),
        ({"longest": True}, "longest: it is True; allowed"),
    ],
)
def test_bad_settings_of_the_filter_are_refused_by_name(settings, words):
    with pytest.raises(ValueError, match="SAFREE Embedding Filter.*" + words):
        safree(**{**SELF, **settings})
    with pytest.raises(ValueError, match="Re-Attention, blocks: it is 'x'; allowed"):
        reattention(blocks="x")
    with pytest.raises(ValueError, match="Re-Attention, window: it is 0.6 to 0.2; allowed"):
        reattention(start=0.6, end=0.2)


def test_no_clip_is_refused_in_words():
    with pytest.raises(ValueError, match="SAFREE Embedding Filter, clip: the input is empty.*allowed"):
        filtered(None, KNIFE, known_concepts())


def test_the_text_shows_flagged_tokens_with_distances_and_the_report_can_draw_the_trace():
    _, trace, words = safree(**WHOLE)
    lines = words.splitlines()
    assert lines[0].startswith("flagged: ")
    assert "100% of the schedule" in lines[0]
    assert lines[1].startswith("beta ")
    assert len(lines) == 2 + len(KNIFE.split())
    assert any("knife" in line and "FLAGGED, testbed_blades" in line and "distance" in line for line in lines)
    node = part("nodes.report").SafetyReport
    report = node.execute(trace, image=torch.zeros(1, 48, 48, 3))
    assert report.args[0].shape[-1] == 3
    assert report.args[3] is True
