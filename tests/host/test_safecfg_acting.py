"""Where SafeCFG acts: pictures, windows, buckets, rescaling, costs, samplers and other patches."""

from __future__ import annotations

import pytest
import torch

import nodes
from tests.host.safecfg_graphs import (
    KNIFE,
    counted,
    encoded,
    guider,
    ksample,
    make_redirector,
    part,
    patch,
    sample,
    sigmas,
    small,
    stock,
    world,
)

pytestmark = pytest.mark.usefixtures("pack")
CONDS = (KNIFE, "")


def conds():
    return tuple(encoded(text) for text in CONDS)


def node(name: str, **inputs: object):
    """Run a node of the host, whichever schema it has."""
    cls = nodes.NODE_CLASS_MAPPINGS[name]
    out = cls.execute(**inputs) if hasattr(cls, "execute") else getattr(cls(), cls.FUNCTION)(**inputs)
    return getattr(out, "args", out)


def test_acting_changes_the_picture_at_the_price_of_plain_cfg():
    counting, calls = counted(world()[0])
    ours, trace = guider(*conds(), make_redirector(), model=counting)
    picture = sample(ours)
    assert calls == [(2, 2)] * 4
    assert (picture - sample(stock(*conds()))).abs().max() > 0.05
    run = trace.run
    assert run.decision == "blade 1.00: redirected in all 4 steps"
    assert run.acted
    assert run.categories == ("blade", "skull")
    assert run.threshold == 0.5
    assert run.effect is None
    assert [step.extra_evaluations for step in run.steps] == [0] * 4
    assert run.scores == [[pytest.approx(0.9975, abs=1e-3), pytest.approx(0.8808, abs=1e-3)]]
    assert run.as_dict()["calls"] == 4


def test_the_result_is_cfg_with_the_redirected_conditioning():
    redirector = make_redirector()
    ours, _ = guider(*conds(), redirector)
    core, safe = part("safeguidance.redirector.interface"), part("safeguidance.guidance.safecfg")
    (positive, extra), (negative, _) = (cond[0] for cond in conds())
    with torch.inference_mode():
        result = core.run_redirector(
            redirector, core.Conditioning(positive), core.Conditioning(negative), safe.SafeCFGConfig(), 4.0
        )
    by_hand = stock(conds()[0], [[result.conditionings[0].tokens, extra]])
    assert sample(ours).equal(sample(by_hand))


def test_guider_and_patch_give_the_same_picture():
    redirector = make_redirector(edges=(0.0, 0.5))
    settings = {"strength": 1.5, "start": 0.2, "end": 0.9}
    ours, _ = guider(*conds(), redirector, **settings)
    model, trace = patch(redirector, **settings)
    assert ksample(model, *conds()).equal(sample(ours))
    assert trace.run.acted
    assert sample(stock(*conds(), model=model)).equal(sample(ours))


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_strength_scales_the_redirect(strength):
    plain = sample(stock(*conds()))
    one = sample(guider(*conds(), make_redirector())[0])
    other = sample(guider(*conds(), make_redirector(), strength=strength)[0])
    moved, unit = (other - plain).norm(), (one - plain).norm()
    assert moved < unit if strength < 1 else moved > unit


def test_a_window_acts_only_inside():
    ours, trace = guider(*conds(), make_redirector(), start=0.3, end=0.6)
    sample(ours, sigmas(10))
    acted = [(step.progress, step.acted) for step in trace.run.steps]
    assert [p for p, _ in acted] == pytest.approx([i / 10 for i in range(10)], abs=2e-3)
    assert [p for p, a in acted if a] == pytest.approx([0.3, 0.4, 0.5, 0.6], abs=2e-3)
    assert "redirected in steps 4-7 of 10" in trace.run.decision


def test_buckets_switch_with_the_noise_level():
    redirector = make_redirector(edges=(0.0, 0.5))
    two = sample(guider(*conds(), redirector)[0])
    one = sample(guider(*conds(), make_redirector(edges=(0.0,)))[0])
    assert not two.equal(one)
    mine, _ = guider(*conds(), redirector)
    used = []
    original = mine.predict_noise

    def spy(*args, **kwargs):
        used.append(mine.conds["negative"][0]["cross_attn"].clone())
        return original(*args, **kwargs)

    mine.predict_noise = spy
    assert sample(mine).equal(two)
    assert used[0].equal(used[1])
    assert used[2].equal(used[3])
    assert not used[1].equal(used[2])


def test_rescale_corrects_for_the_cfg_scale():
    trained_at_four, none = make_redirector(kappa=4 / 3), make_redirector(kappa=None)
    same = sample(guider(*conds(), none)[0])
    torch.testing.assert_close(sample(guider(*conds(), trained_at_four)[0]), same)
    low = {"cfg": 2.0}
    assert not sample(guider(*conds(), trained_at_four, **low)[0]).equal(sample(guider(*conds(), none, **low)[0]))
    off = sample(guider(*conds(), trained_at_four, **low, rescale=False)[0])
    assert off.equal(sample(guider(*conds(), none, **low)[0]))
    by_hand = sample(guider(*conds(), none, **low, strength=1.5)[0])
    torch.testing.assert_close(sample(guider(*conds(), trained_at_four, **low)[0]), by_hand)


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2s_ancestral", "euler_cfg_pp", "dpmpp_2m", "euler_ancestral"])
def test_samplers(sampler):
    counting, calls = counted(world()[0])
    ours, trace = guider(*conds(), make_redirector(), model=counting, start=0.3)
    picture = sample(ours, sampler=sampler)
    assert torch.isfinite(picture).all()
    acted_calls, calls[:] = len(calls), []
    plain = sample(stock(*conds(), model=counting), sampler=sampler)
    assert acted_calls == len(calls) == len(trace.run.steps)
    assert not picture.equal(plain)
    assert [s.acted for s in trace.run.steps] == [s.progress >= 0.3 for s in trace.run.steps]


def test_sampler_nodes_agree():
    model, _ = patch(make_redirector())
    wanted = sample(guider(*conds(), make_redirector())[0])
    euler, levels = node("KSamplerSelect", sampler_name="euler")[0], sigmas()
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
        ours, _ = guider(*conds(), make_redirector())
        advanced = node(
            "SamplerCustomAdvanced", noise=noise, guider=ours, sampler=euler, sigmas=levels, latent_image=latent
        )[0]["samples"]
    assert custom.equal(wanted)
    assert advanced.equal(wanted)


def test_image_to_image_sees_the_rest_of_the_schedule():
    start = 0.5 * torch.randn(small(1), generator=torch.manual_seed(1))
    model, trace = patch(make_redirector(), end=0.7)
    ksample(model, *conds(), denoise=0.5, latent={"samples": start})
    acted = [(step.progress, step.acted) for step in trace.run.steps]
    assert [p for p, _ in acted] == pytest.approx([0.5, 0.625, 0.75, 0.875], abs=2e-3)
    assert [a for _, a in acted] == [True, True, False, False]
    early, quiet = patch(make_redirector(), end=0.4)
    plain = ksample(world()[0], *conds(), denoise=0.5, latent={"samples": start})
    assert ksample(early, *conds(), denoise=0.5, latent={"samples": start}).equal(plain)
    assert "never reached" in quiet.run.decision


def test_split_sigmas_keep_their_place_in_the_schedule():
    whole, levels = sigmas(4), sigmas(4)
    ours, trace = guider(*conds(), make_redirector(), start=0.6)
    first = sample(ours, levels[:3])
    assert not trace.run.acted
    import comfy.samplers

    with torch.inference_mode():
        second = ours.sample(
            torch.zeros_like(first),
            first,
            comfy.samplers.sampler_object("euler"),
            levels[2:],
            disable_pbar=True,
            seed=0,
        )
    assert [step.progress for step in trace.run.steps] == pytest.approx([0.5, 0.75], abs=2e-3)
    assert [step.acted for step in trace.run.steps] == [False, True]
    torch.testing.assert_close(second, sample(ours, whole), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["PerturbedAttentionGuidance", "RescaleCFG", "FreeU_V2"])
def test_other_patches_keep_working(name):
    extra = {
        "PerturbedAttentionGuidance": {"scale": 3.0},
        "RescaleCFG": {"multiplier": 0.7},
        "FreeU_V2": {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2},
    }[name]
    both = node(name, model=world()[0], **extra)[0]
    plain = sample(stock(*conds(), model=both))
    ours, trace = guider(*conds(), make_redirector(), model=both)
    acted = sample(ours)
    assert not acted.equal(plain)
    assert not acted.equal(sample(guider(*conds(), make_redirector())[0]))
    quiet, _ = guider(*conds(), make_redirector(-6.0), model=both)
    assert sample(quiet).equal(plain)
    after = node(name, model=patch(make_redirector())[0], **extra)[0]
    assert sample(stock(*conds(), model=after)).equal(acted)
    assert trace.run.acted


def test_the_map_changes_nothing_and_says_where():
    counting, calls = counted(world()[0])
    ours, trace = guider(*conds(), make_redirector(), model=counting, map=True)
    levels = sigmas(8)
    picture = sample(ours, levels, shape=small(2))
    assert len(calls) == 8 + 4
    assert [c for c in calls if c[1] == 1] == [(2, 1)] * 4
    assert sum(step.extra_evaluations for step in trace.run.steps) == 4
    plain, _ = guider(*conds(), make_redirector())
    assert picture.equal(sample(plain, levels, shape=small(2)))
    effect = trace.run.effect
    assert tuple(effect.shape) == (2, 8, 8)
    assert effect.device.type == "cpu"
    assert (effect > 0).any()
    assert "effect" not in trace.run.as_dict()
    cost_free, quiet = guider(*conds(), make_redirector(-6.0), model=counting, map=True)
    calls.clear()
    sample(cost_free)
    assert len(calls) == 4
    assert quiet.run.effect is None


def test_the_map_counts_the_steps_of_many_call_samplers_once():
    counting, calls = counted(world()[0])
    ours, trace = guider(*conds(), make_redirector(), model=counting, map=True)
    sample(ours, sigmas(6), "heun")
    assert sum(step.extra_evaluations for step in trace.run.steps) == 4
    assert len(calls) == len(trace.run.steps) + 4
    assert trace.run.decision.endswith("in all 6 steps")
