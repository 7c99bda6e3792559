"""SP-Guard with a judge: the prompt is read before the run, in place of being measured in its first steps."""

from __future__ import annotations

import pytest

from tests.host.concept_graphs import concepts, guider, mask
from tests.host.safecfg_graphs import counted, encoded, ksample, make_redirector, part, sample, sigmas, stock, world

pytestmark = pytest.mark.usefixtures("pack")

HARMFUL, HARMLESS = "a kitchen knife in the snow", "a spoon in the snow"
BY_CONCEPTS = {"judge_by": "concepts"}


def _refusal(**settings):
    with pytest.raises(part("safeguidance.errors").InputError) as caught:
        mask(**settings)
    return caught.value


def test_a_harmful_prompt_is_guided_from_the_first_step_on():
    ours, trace = guider(encoded(HARMFUL), encoded(""), **BY_CONCEPTS)
    assert not sample(ours, sigmas(10)).equal(sample(stock(encoded(HARMFUL), encoded("")), sigmas(10)))
    assert trace.run.steps[0].acted
    assert trace.run.steps[0].evaluated == ("prompt", "base", "concept blade")
    window = part("safeguidance.guidance.sp_guard").SPGuardConfig().window
    assert [step.acted for step in trace.run.steps] == [window.contains(step.progress) for step in trace.run.steps]
    assert trace.run.harmful
    assert trace.run.decision.startswith("blade ")


def test_a_harmless_prompt_is_stock_at_the_price_of_stock():
    counting, calls = counted(world()[0])
    model, trace = mask(counting, **BY_CONCEPTS)
    assert ksample(model, encoded(HARMLESS), encoded("")).equal(ksample(world()[0], encoded(HARMLESS), encoded("")))
    assert calls == [(2, 2)] * 4
    assert not trace.run.harmful
    assert trace.run.decision.startswith("harmless (")


def test_a_node_as_it_is_dropped_into_a_graph_reads_the_prompt_before_the_run():
    node = part("nodes.concept_guidance.factory").PATCH_NODES["sp_guard"]
    for text, harmful in ((HARMFUL, True), (HARMLESS, False)):
        model, trace = node.execute(world()[0], world()[1], concepts()).args
        same = ksample(model, encoded(text), encoded("")).equal(ksample(world()[0], encoded(text), encoded("")))
        assert (trace.run.harmful, trace.run.steps[0].acted, same) == (harmful, harmful, not harmful)


def test_one_that_is_connected_is_asked_whatever_judge_by_says():
    looked_for = concepts("blade: knife\nskull: skull")
    always, never = make_redirector(6.0), make_redirector(-6.0)
    for by in ("measured", "concepts"):
        for judge, acts in ((always, True), (never, False)):
            model, trace = mask(looked_for=looked_for, judge=judge, judge_by=by)
            ksample(model, encoded(HARMFUL), encoded(""))
            assert trace.run.acted is acts
            assert trace.run.threshold == judge.threshold


def test_a_text_of_a_filter_is_judged_as_it_was_written():
    filter_node = part("nodes.safree.filter").SafreeEmbeddingFilter
    looked_for = concepts("blade: knife")
    filtered = filter_node.execute(world()[1], HARMFUL, looked_for, hold="whole schedule").args[0]
    model, trace = mask(looked_for=looked_for, **BY_CONCEPTS)
    ksample(model, filtered, encoded(""))
    assert trace.run.harmful


def test_a_judge_that_does_not_look_for_a_concept_stops_the_run():
    model, _ = mask(judge=make_redirector(6.0))
    with pytest.raises(part("safeguidance.errors").InputError, match="does not look for drug"):
        ksample(model, encoded(HARMFUL), encoded(""))


def test_a_judge_of_another_encoder_stops_the_run():
    model, _ = mask(looked_for=concepts("blade: knife"), judge=make_redirector(6.0, width=64))
    with pytest.raises(part("safeguidance.errors").InputError, match="64"):
        ksample(model, encoded(HARMFUL), encoded(""))


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_the_threshold_of_measured_scores_says_nothing_of_a_judged_prompt(threshold):
    looked_for, judge = concepts("blade: knife"), make_redirector(6.0)
    for settings in ({"judge": judge}, BY_CONCEPTS):
        ours, trace = mask(looked_for=looked_for, threshold=threshold, **settings)
        plain, _ = mask(looked_for=looked_for, **settings)
        assert ksample(ours, encoded(HARMFUL), encoded("")).equal(ksample(plain, encoded(HARMFUL), encoded("")))
        assert trace.run.acted


def test_an_unknown_way_to_judge_is_refused():
    assert _refusal(judge_by="stars").field == "judge_by"
