"""Where concept guidance acts: against predictions made by hand, samplers, costs, schedules and what it remembers."""

from __future__ import annotations

import pytest
import torch

import nodes
from tests.host.concept_graphs import EASY, by_hand, concepts, family, guider, mask
from tests.host.safecfg_graphs import KNIFE, counted, encoded, ksample, part, sample, sigmas, small, stock, world

pytestmark = pytest.mark.usefixtures("pack")

METHODS = ("SLD weak", "SLD medium", "SLD strong", "SLD max", "SEGA", "NOT", "negative prompt")
TEXTS = ("knife", "syringe")


def conds(negative=""):
    return encoded(KNIFE), encoded(negative)


def node(name, **inputs):
    """Run a node of the host, whichever schema it has."""
    cls = nodes.NODE_CLASS_MAPPINGS[name]
    out = cls.execute(**inputs) if hasattr(cls, "execute") else getattr(cls(), cls.FUNCTION)(**inputs)
    return getattr(out, "args", out)


def close(one, other, edge=0.0):
    """Equal up to rounding, but for a share of elements that a threshold or quantile may decide otherwise."""
    off = (one - other).abs() > 1e-4 + 1e-3 * other.abs()
    assert float(off.float().mean()) <= edge
    assert float((one - other).abs().max()) < 0.05


def same_predictions(ours, hand, levels):
    """Every prediction of a run equals the one made by hand for the same noisy latent.

    Not the runs as a whole: an element at the edge of a mask may fall to either side by rounding, and the steps after
    it start from there.
    """
    states, made = [], []

    def note(step, denoised, x, *_):
        states.append(x.clone())
        made.append(denoised.clone())

    sample(ours, levels, callback=note)
    hand.replay = states
    sample(hand, levels)
    for one, other in zip(made, hand.made, strict=True):
        off = (one - other).abs() > 1e-4 + 1e-3 * other.abs()
        assert float(off.float().mean()) <= 0.03


# ---- one call a step, the same as separate calls ----


@pytest.mark.parametrize("concept", ["probed", "step", "all"])
def test_sp_guard_is_the_method_on_separate_calls(concept):
    core = part("safeguidance.guidance.sp_guard")
    gate = part("safeguidance.guidance.gate").PRINTED
    config = core.SPGuardConfig(end=1.0, concept=concept, gate=gate)
    counting, calls = counted(world()[0])
    ours, trace = guider(*conds(), counting, concept=concept, **EASY)
    levels = sigmas(10)
    hand = by_hand(*conds(), [encoded(text) for text in TEXTS], core.sp_guard, config, core.required_concepts)
    same_predictions(ours, hand, levels)
    assert trace.run.acted
    together = 3 if concept == "probed" else 4
    assert calls == [(2, 2)] * 4 + [(together, together)] * 8, "one call a step once it acts"


@pytest.mark.parametrize("name", METHODS)
def test_the_family_is_the_method_on_separate_calls(name):
    method, config = part("nodes.concept_guidance.concept_guidance").make_method(name)
    counting, calls = counted(world()[0])
    model, trace = family(name, counting)
    levels = sigmas(10)
    hand = by_hand(*conds(), [encoded(text) for text in TEXTS], method.guide, config, method.required_concepts)
    same_predictions(stock(*conds(), model=model), hand, levels)
    ours = sample(stock(*conds(), model=model), levels)
    assert not ours.equal(sample(stock(*conds()), levels))
    acted = [step for step in trace.run.steps if step.acted]
    assert calls[-len(acted) :] == [(4, 4)] * len(acted)
    assert trace.run.threshold is None
    assert "most often away from" in trace.run.decision


def test_what_the_trace_says():
    # the very text of a concept, so that every picture of the batch agrees with it
    ours, trace = guider(encoded("knife"), encoded(""), **EASY)
    sample(ours, sigmas(10), shape=small(2))
    run = trace.run
    assert run.method == "SP-Guard"
    assert run.categories == ("blade", "drug")
    assert run.threshold == 0.0
    assert [step.acted for step in run.steps] == [False] * 2 + [True] * 8
    assert [step.extra_evaluations for step in run.steps] == [2] * 2 + [1] * 8
    assert all(len(step.scores) == 2 for step in run.steps)
    assert len(run.scores) == 2
    assert run.steps[-1].scores == pytest.approx([max(column) for column in zip(*run.scores, strict=True)])
    best = max((score, name) for row in run.scores for score, name in zip(row, run.categories, strict=True))
    assert run.decision == f"{best[1]} {run.harm:.2f}: guided in steps 3-10 of 10"
    assert [step.effect is not None for step in run.steps] == [step.acted for step in run.steps]
    live = torch.stack([step.effect for step in run.steps if step.acted])
    assert tuple(run.effect.shape) == (2, 8, 8)
    assert run.effect.equal(live.mean(dim=0))
    plain = run.as_dict()
    assert "effect" not in plain
    assert "effect" not in plain["steps"][3]
    assert plain["extra_evaluations"] == 12


def test_the_mask_covers_the_quantile_and_strength_scales_the_change():
    levels = sigmas(5)
    wide, trace = guider(*conds(), quantile=0.5, **EASY)
    sample(wide, levels)
    half = (trace.run.steps[-1].effect > 0).float().mean()
    narrow, trace = guider(*conds(), quantile=0.98, **EASY)
    sample(narrow, levels)
    few = (trace.run.steps[-1].effect > 0).float().mean()
    assert 0 < few < half
    effects = []
    for strength in (1.0, 2.0):
        ours, trace = guider(*conds(), lambda_max=strength, lambda_end=0.0, **EASY)
        sample(ours, levels)
        effects.append(next(step.effect for step in trace.run.steps if step.acted))
    close(effects[1], 2 * effects[0])


def test_guider_and_patch_give_the_same_picture():
    settings = {**EASY, "lambda_max": 5.0, "end": 0.8}
    ours, _ = guider(*conds(), **settings)
    model, trace = mask(**settings)
    assert ksample(model, *conds(), steps=8).equal(sample(ours, sigmas(8)))
    assert trace.run.acted
    assert sample(stock(*conds(), model=model), sigmas(8)).equal(sample(ours, sigmas(8)))


def test_neutral_texts_lower_the_score_while_it_is_measured():
    plain, trace = guider(*conds(), **EASY)
    sample(plain, sigmas(10))
    before = trace.run.scores[0]
    counting, calls = counted(world()[0])
    ours, trace = guider(
        *conds(), counting, **{**EASY, "neutral": "a cup of coffee\n\na green apple", "reference": "mean"}
    )
    sample(ours, sigmas(10))
    assert [step.extra_evaluations for step in trace.run.steps][:3] == [4, 4, 1]
    assert calls[1] == (4, 4)
    assert trace.run.scores[0] != before
    for reference in ("mean", "project"):
        same, trace = guider(*conds(), **{**EASY, "neutral": KNIFE, "reference": reference})
        sample(same, sigmas(10))
        assert trace.run.scores == [[0.0, 0.0]], "the prompt itself is harmless"
        assert not trace.run.acted, "the prompt itself is harmless"
    unread, trace = guider(*conds(), **{**EASY, "neutral": "a cup of coffee"})
    sample(unread, sigmas(10))
    assert [step.extra_evaluations for step in trace.run.steps][:3] == [2, 2, 1], "no reference asks for none"


# ---- samplers, schedules ----


@pytest.mark.parametrize(
    "sampler", ["heun", "heunpp2", "dpm_2", "dpmpp_2s_ancestral", "dpmpp_sde", "euler_cfg_pp", "dpmpp_2m", "lcm"]
)
def test_samplers(sampler):
    counting, calls = counted(world()[0])
    ours, trace = guider(*conds(), counting, **EASY)
    picture = sample(ours, sigmas(8), sampler)
    assert torch.isfinite(picture).all()
    assert trace.run.acted
    assert not picture.equal(sample(stock(*conds()), sigmas(8), sampler))
    acted = [step.progress for step in trace.run.steps if step.acted]
    assert min(acted) >= 0.2, "measured first"
    assert all(step.acted for step in trace.run.steps if step.progress >= 0.25), "and measured once"
    assert sample(ours, sigmas(8), sampler).equal(picture), "the same bytes twice"


@pytest.mark.parametrize("name", ["SLD max", "SEGA"])
@pytest.mark.parametrize("sampler", ["heun", "heunpp2", "dpmpp_2s_ancestral"])
def test_momentum_survives_samplers_that_look_ahead(name, sampler):
    fresh, _ = family(name, momentum=0.0)
    model, _ = family(name, momentum=0.9)
    one, other = (sample(stock(*conds(), model=m), sigmas(6), sampler) for m in (fresh, model))
    assert torch.isfinite(other).all()
    assert not one.equal(other)


def test_sampler_nodes_agree():
    model, _ = mask(**EASY)
    wanted = sample(guider(*conds(), **EASY)[0], sigmas(6))
    euler, levels = node("KSamplerSelect", sampler_name="euler")[0], sigmas(6)
    latent = {"samples": torch.zeros(small(1))}
    with torch.inference_mode():
        custom = node(
            "SamplerCustom",
            model=model,
            add_noise=True,
            noise_seed=0,
            cfg=4.0,
            positive=conds()[0],
            negative=conds()[1],
            sampler=euler,
            sigmas=levels,
            latent_image=latent,
        )[0]["samples"]
        noise = node("RandomNoise", noise_seed=0)[0]
        ours, _ = guider(*conds(), **EASY)
        advanced = node(
            "SamplerCustomAdvanced", noise=noise, guider=ours, sampler=euler, sigmas=levels, latent_image=latent
        )[0]["samples"]
    assert custom.equal(wanted)
    assert advanced.equal(wanted)


def test_image_to_image_measures_in_what_is_left():
    start = 0.5 * torch.randn(small(1), generator=torch.manual_seed(1))
    model, trace = mask(**EASY)
    ksample(model, *conds(), denoise=0.5, steps=10, latent={"samples": start})
    assert trace.run.steps[0].progress == pytest.approx(0.5, abs=2e-3)
    assert [step.acted for step in trace.run.steps] == [False] * 2 + [True] * 8
    model, trace = family("NOT", end=0.7)
    ksample(model, *conds(), denoise=0.5, steps=4, latent={"samples": start})
    assert [step.acted for step in trace.run.steps] == [True, True, False, False]


def test_split_sigmas_are_runs_of_their_own():
    import comfy.samplers

    levels = sigmas(10)
    ours, trace = guider(*conds(), **EASY)
    first = sample(ours, levels[:6])
    assert [step.acted for step in trace.run.steps] == [False] * 2 + [True] * 3
    with torch.inference_mode():
        euler = comfy.samplers.sampler_object("euler")
        ours.sample(torch.zeros_like(first), first, euler, levels[5:], disable_pbar=True, seed=0)
    assert [step.progress for step in trace.run.steps][0] == pytest.approx(0.5, abs=2e-3)
    assert [step.acted for step in trace.run.steps] == [False] + [True] * 4, "a fifth of the rest measures"


def test_a_schedule_that_rises_is_a_new_run():
    ours, trace = guider(*conds(), **EASY)
    levels = sigmas(10)
    sample(ours, torch.cat([levels[:6], levels[4:]]))
    acted = [step.acted for step in trace.run.steps]
    assert acted[:5] == [False] * 2 + [True] * 3
    assert acted[6] is False
    assert acted[-1] is True


def test_windows_and_late_strength():
    ours, trace = guider(*conds(), lambda_end=0.0, switch=0.5, **EASY)
    sample(ours, sigmas(10))
    assert [step.acted for step in trace.run.steps] == [False] * 2 + [True] * 3 + [False] * 5
    assert [step.extra_evaluations for step in trace.run.steps][5:] == [0] * 5
    ours, trace = guider(*conds(), **{**EASY, "end": 0.6})
    sample(ours, sigmas(10))
    assert [step.acted for step in trace.run.steps] == [False] * 2 + [True] * 5 + [False] * 3


# ---- state ----


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_breaks_off_leaves_nothing_behind(error):
    ours, trace = guider(*conds(), **EASY)
    first = sample(ours, sigmas(6))

    def stop(step, *_):
        if step == 3:
            raise error("stop")

    with pytest.raises(error):
        sample(ours, sigmas(6), seed=9, callback=stop)
    assert len(trace.run.steps) == 4
    assert "guided in" in trace.run.decision
    assert "stopped" in trace.run.decision
    assert part("nodes.concept_guidance.run").KEY not in ours.model_options
    assert sample(ours, sigmas(6)).equal(first)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_bytes(name):
    model, _ = family(name)
    first = ksample(model, *conds())
    ksample(model, *conds(), seed=3)
    assert ksample(model, *conds()).equal(first)


@pytest.mark.parametrize("name", ["SP-Guard", "SLD max", "SEGA", "NOT"])
def test_a_batch_of_three_is_three_runs(name):
    import comfy.samplers

    noise = torch.randn(small(3), generator=torch.manual_seed(5))
    together = [[torch.cat([encoded(text)[0][0] for text in (KNIFE, "a syringe in the snow", "a cup of coffee")]), {}]]
    model, trace = mask(**EASY) if name == "SP-Guard" else family(name)

    def run(positive, rows):
        euler = comfy.samplers.sampler_object("euler")
        with torch.inference_mode():
            return stock(positive, encoded(""), model=model).sample(
                noise[rows], torch.zeros(small(len(rows))), euler, sigmas(6), disable_pbar=True, seed=0
            )

    batch = run(together, [0, 1, 2])
    assert len(trace.run.scores) == 3
    for row in range(3):
        single = run([[together[0][0][row : row + 1], {}]], [row])
        torch.testing.assert_close(batch[row : row + 1], single, rtol=2e-3, atol=2e-3)


# ---- options ----


def test_an_empty_anchor_costs_one_more_only_where_it_says_something_else():
    plain, trace = guider(*conds("a cup of coffee"), **EASY)
    one = sample(plain, sigmas(6))
    counting, calls = counted(world()[0])
    ours, anchored = guider(*conds("a cup of coffee"), counting, anchor="empty", **EASY)
    other = sample(ours, sigmas(6))
    assert not one.equal(other)
    assert [s.extra_evaluations for s in anchored.run.steps] == [s.extra_evaluations + 1 for s in trace.run.steps]
    assert calls[-1] == (4, 4)
    ours, anchored = guider(*conds(""), anchor="empty", **EASY)
    same, trace = guider(*conds(""), **EASY)
    assert sample(ours, sigmas(6)).equal(sample(same, sigmas(6)))
    assert anchored.run.steps[0].extra_evaluations == trace.run.steps[0].extra_evaluations


def test_seven_categories_probe_choose_freeze():
    names = ("knife", "bomb", "skull", "syringe", "key", "apple", "spoon")
    looked_for = concepts("\n".join(f"{name}s: {name}" for name in names))
    ours, trace = guider(*conds(), looked_for=looked_for, **EASY)
    sample(ours, sigmas(10))
    assert [step.extra_evaluations for step in trace.run.steps] == [7, 7] + [1] * 8
    assert len(trace.run.scores[0]) == 7


def test_samples_with_other_concepts_share_one_evaluation():
    """Each sample is pushed away from its own concept; together that is one text per sample, not one per concept."""
    texts = ("knife", "a syringe in the snow", "bomb")
    together = [[torch.cat([encoded(text)[0][0] for text in texts]), {}]]
    looked_for = concepts("blade: knife\ndrug: syringe\nbomb: bomb")
    levels, shape = sigmas(8), small(3)
    counting, calls = counted(world()[0])
    ours, trace = guider(together, encoded(""), counting, looked_for=looked_for, **EASY)
    packed = sample(ours, levels, shape=shape)
    assert len({row.index(max(row)) for row in trace.run.scores}) > 1, "not all the same concept"
    assert [step.extra_evaluations for step in trace.run.steps] == [3, 3] + [1] * 6
    assert calls[-1] == (9, 3)
    room, whole = part("nodes.concept_guidance.run"), part("nodes.host.extra_conds").packed
    room.packed = lambda lists, choice: None
    try:
        counting, calls = counted(world()[0])
        ours, trace = guider(together, encoded(""), counting, looked_for=looked_for, **EASY)
        close(packed, sample(ours, levels, shape=shape), edge=0.02)
        assert calls[-1][0] > 9
    finally:
        room.packed = whole


def test_all_concepts_at_once():
    model, trace = family("NOT", concept="all")
    nearest, _ = family("NOT")
    assert not ksample(model, *conds()).equal(ksample(nearest, *conds()))
    assert trace.run.decision == "guided in all 4 steps, away from all 2 concepts"
