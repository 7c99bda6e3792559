"""Prompts of several parts, with areas, masks and ranges, long ones, batches, and what is refused."""

from __future__ import annotations

import pytest
import torch

from tests.host.safecfg_graphs import (
    APPLE,
    KNIFE,
    LEFT,
    RIGHT,
    WordRedirector,
    counted,
    encoded,
    guider,
    half_mask,
    ksample,
    make_redirector,
    patch,
    placed,
    sample,
    sigmas,
    small,
    stock,
    with_values,
    world,
)

pytestmark = pytest.mark.usefixtures("pack")


def test_only_the_harmful_half_of_the_picture_changes():
    masks = [{"mask": half_mask(left), "mask_strength": 1.0, "set_area_to_bounds": False} for left in (True, False)]
    positive = with_values(encoded(KNIFE), **masks[0]) + with_values(encoded(APPLE), **masks[1])
    one_step = torch.tensor([1.0, 0.0])
    ours, trace = guider(positive, encoded(""), WordRedirector(KNIFE))
    moved = (sample(ours, one_step) - sample(stock(positive, encoded("")), one_step)).abs().amax(dim=1)[0]
    assert moved[:, :4].max() > 1e-3
    assert moved[:, 4:].max() < 1e-5
    assert trace.run.scores == [[pytest.approx(0.9)]]
    assert trace.run.steps[0].extra_evaluations == 1


def test_areas_are_carried_over():
    positive = with_values(encoded(KNIFE), **LEFT) + with_values(encoded(APPLE), **RIGHT)
    one_step = torch.tensor([1.0, 0.0])
    # the host would also evaluate a negative over the whole picture; ours is as local as the prompts are
    local = with_values(encoded(""), **LEFT) + with_values(encoded(""), **RIGHT)
    plain = sample(stock(positive, local), one_step)
    ours, _ = guider(positive, encoded(""), WordRedirector(KNIFE))
    moved = (sample(ours, one_step) - plain).abs().amax(dim=1)[0]
    assert moved[:, :4].max() > 1e-3
    assert moved[:, 4:].max() < 1e-5


def test_ranges_are_carried_over():
    positive = with_values(encoded(KNIFE), start_percent=0.0, end_percent=0.5)
    positive += with_values(encoded(APPLE), start_percent=0.5, end_percent=1.0)
    levels = sigmas(8)
    ours, trace = guider(positive, encoded(""), WordRedirector(KNIFE))
    counting, calls = counted(world()[0])
    spied, _ = guider(positive, encoded(""), WordRedirector(KNIFE), model=counting)
    assert sample(ours, levels).equal(sample(spied, levels))
    assert trace.run.acted
    assert torch.isfinite(sample(ours, levels)).all()
    assert max(conditions for _, conditions in calls) <= 4


def test_outside_the_prompts_range_the_plain_negative_is_used():
    positive = placed(KNIFE, "range")
    ours, trace = guider(positive, encoded(""), WordRedirector(KNIFE))
    sample(ours, sigmas(9))
    assert [step.acted for step in trace.run.steps] == [step.progress <= 0.5 for step in trace.run.steps]


def test_the_redirect_lasts_as_long_as_the_prompt_whatever_the_negatives_range():
    positive, negative = placed(KNIFE, "range"), with_values(encoded(""), start_percent=0.25)
    ours, trace = guider(positive, negative, WordRedirector(KNIFE))
    sample(ours, sigmas(9))
    assert [step.acted for step in trace.run.steps] == [step.progress <= 0.5 for step in trace.run.steps]


def test_combined_negatives_without_places_are_served():
    negative = encoded("blue") + encoded("green")
    ours, trace = guider(encoded(KNIFE), negative, make_redirector())
    assert not sample(ours).equal(sample(stock(encoded(KNIFE), negative)))
    assert trace.run.acted
    assert all(step.extra_evaluations == 0 for step in trace.run.steps)


def test_the_negatives_own_area_is_kept():
    negative = with_values(encoded(""), **LEFT)
    ours, _ = guider(encoded(KNIFE), negative, make_redirector())
    one_step = torch.tensor([1.0, 0.0])
    moved = (sample(ours, one_step) - sample(stock(encoded(KNIFE), negative), one_step)).abs().amax(dim=1)[0]
    assert moved[:, :4].max() > 1e-3
    assert moved[:, 4:].max() == 0


def test_a_batch_of_prompts_is_judged_row_by_row():
    texts = (KNIFE, APPLE, "a spoon in the snow")
    together = [[torch.cat([encoded(text)[0][0] for text in texts]), {}]]
    noise = torch.randn(small(3), generator=torch.manual_seed(5))
    import comfy.samplers

    def run(with_guider, rows):
        euler = comfy.samplers.sampler_object("euler")
        start = torch.zeros(small(len(rows)))
        with torch.inference_mode():
            return with_guider.sample(noise[rows], start, euler, sigmas(), disable_pbar=True, seed=0)

    ours, trace = guider(together, encoded(""), WordRedirector(KNIFE))
    batch = run(ours, [0, 1, 2])
    assert [row[0] > 0.5 for row in trace.run.scores] == [True, False, False]
    for row, text in enumerate(texts):
        single = run(guider(encoded(text), encoded(""), WordRedirector(KNIFE))[0], [row])
        torch.testing.assert_close(batch[row : row + 1], single, rtol=1e-3, atol=1e-3)
    plain = run(stock(together, encoded("")), [0, 1, 2])
    assert not batch[0].equal(plain[0])
    assert batch[1:].equal(plain[1:])


def test_one_prompt_for_a_batch_of_latents():
    ours, trace = guider(encoded(KNIFE), encoded(""), make_redirector())
    sample(ours, shape=small(3))
    assert len(trace.run.scores) == 3
    assert trace.run.scores[0] == trace.run.scores[2]


def test_several_negatives_in_one_batch_for_one_prompt():
    negative = [[torch.cat([encoded("")[0][0], encoded("blue")[0][0]]), {}]]
    ours, _ = guider(encoded(KNIFE), negative, make_redirector())
    assert torch.isfinite(sample(ours, shape=small(2))).all()


@pytest.mark.parametrize("words", [20, 40, 70])
def test_long_prompts(words):
    long = encoded(" ".join(["red apple"] * (words // 2)) + " knife")
    redirector = WordRedirector()
    redirector.known = [long[0][0]]
    ours, trace = guider(long, encoded(""), redirector)
    picture = sample(ours)
    assert redirector.seen == [tuple(long[0][0].shape)]
    assert long[0][0].shape[1] == 32 * -(-(words + 1) // 30)
    assert trace.run.acted
    assert torch.isfinite(picture).all()


def test_a_long_negative_for_a_short_prompt():
    negative = encoded(" ".join(["blue spoon"] * 25))
    ours, trace = guider(encoded(KNIFE), negative, make_redirector())
    assert negative[0][0].shape[1] == 64
    assert torch.isfinite(sample(ours)).all()
    assert trace.run.acted


def test_prompt_weights_reach_the_redirector():
    plain, weighted = encoded("a kitchen knife"), encoded("a (kitchen:1.4) knife")
    assert not plain[0][0].equal(weighted[0][0])
    ours, trace = guider(weighted, encoded(""), make_redirector())
    sample(ours)
    assert trace.run.acted


def conditioning(**kinds):
    ours, _ = guider(kinds["positive"], kinds["negative"], kinds.get("redirector") or make_redirector())
    return ours


REFUSED = {
    "areas on both sides": (
        lambda: (placed(KNIFE, "area"), with_values(encoded(""), **RIGHT)),
        ["negative", "one side only"],
    ),
    "mask and area": (
        lambda: (placed(KNIFE, "mask"), with_values(encoded(""), **RIGHT)),
        ["negative", "one side only"],
    ),
    "several placed negatives": (
        lambda: (encoded(KNIFE), with_values(encoded(""), **LEFT) + encoded("blue")),
        ["negative", "area", "one prompt"],
    ),
    "no text states": (lambda: ([[None, {}]], encoded("")), ["positive", "cross_attn", "CLIP Text Encode"]),
    "negative without text states": (lambda: (encoded(KNIFE), [[None, {}]]), ["negative", "cross_attn"]),
    "wrong width": (
        lambda: ([[torch.zeros(1, 32, 96), {}]], encoded("")),
        ["positive", "96", "384", "Redirector from Concepts"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_what_is_allowed(name):
    make, words = REFUSED[name]
    positive, negative = make()
    ours, trace = guider(positive, negative, make_redirector())
    with pytest.raises(ValueError, match="SafeCFG Guider") as caught:
        sample(ours)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not trace.run.acted
    assert trace.run.steps == []
    model, _ = patch(make_redirector())
    with pytest.raises(ValueError, match="Model Patch"):
        sample(stock(positive, negative, model=model))


@pytest.mark.parametrize("cfg", [1.0, 1.0 + 1e-10])
def test_cfg_one_is_refused(cfg):
    with pytest.raises(ValueError, match="SafeCFG Guider, cfg: it is 1"):
        guider(encoded(KNIFE), encoded(""), make_redirector(), cfg=cfg)
    model, _ = patch(make_redirector())
    with pytest.raises(ValueError, match=r"SafeCFG \(Model Patch\), cfg: it is 1"):
        ksample(model, encoded(KNIFE), encoded(""), cfg=cfg)


def test_guiders_that_would_not_act_are_refused():
    import comfy_extras.nodes_custom_sampler as custom

    model, _ = patch(make_redirector())
    basic = custom.Guider_Basic(model)
    basic.set_conds(encoded(KNIFE))
    with pytest.raises(ValueError, match="Guider_Basic has no negative conditioning"):
        sample(basic)
    dual = custom.Guider_DualCFG(model)
    dual.set_conds(encoded(KNIFE), encoded(APPLE), encoded(""))
    dual.set_cfg(4.0, 4.0)
    with pytest.raises(ValueError, match="Guider_DualCFG does not compute ordinary CFG"):
        sample(dual)


def test_once_is_enough():
    model, _ = patch(make_redirector())
    with pytest.raises(ValueError, match="model: SafeCFG is on this MODEL twice"):
        guider(encoded(KNIFE), encoded(""), make_redirector(), model=model)
    with pytest.raises(ValueError, match="model: SafeCFG is on this MODEL twice"):
        patch(make_redirector(), model=model)


def test_a_redirector_of_another_family_is_refused():
    with pytest.raises(ValueError, match="SD15.*SafeGuidanceTestbed"):
        patch(make_redirector(base_model="SD15"))
    patch(make_redirector(base_model=""))


@pytest.mark.parametrize("settings", [{"start": 0.8, "end": 0.2}, {"strength": 3.0}, {"threshold": 2.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="SafeCFG Guider, .*: it is .*allowed: "):
        guider(encoded(KNIFE), encoded(""), make_redirector(), **settings)
