"""SafeCFG on another family (a tiny SD3 with pooled vectors), and what happens when a run breaks off."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import nodes
from tests.host.safecfg_graphs import (
    KNIFE,
    counted,
    encoded,
    guider,
    make_redirector,
    part,
    patch,
    sample,
    sigmas,
    stock,
)

pytestmark = pytest.mark.usefixtures("pack")
WIDTH, POOLED, SHAPE = 48, 24, (1, 16, 8, 8)


@cache
def tiny_sd3():
    """A random SD3 of two blocks, made by the host's own loader."""
    import comfy.ops
    import comfy.sd
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    hidden = 128
    embedder = {"target": "torch.nn.Linear", "params": {"in_features": WIDTH, "out_features": hidden}}
    with torch.inference_mode(False):
        network = OpenAISignatureMMDITWrapper(
            input_size=None,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            depth=2,
            adm_in_channels=POOLED,
            context_embedder_config=embedder,
            num_patches=64,
            pos_embed_max_size=8,
            pos_embed_scaling_factor=None,
            dtype=torch.float32,
            device="cpu",
            operations=comfy.ops.disable_weight_init,
        )
        generator = torch.Generator().manual_seed(0)
        state = {
            key: torch.randn(value.shape, generator=generator) * 0.1 for key, value in network.state_dict().items()
        }
    model = comfy.sd.load_diffusion_model_state_dict(state)
    assert part("nodes.host.patcher").model_family(model) == "SD3"
    return model


def conditioning(seed: int, length: int = 32):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, length, WIDTH, generator=generator)
    return [[tokens, {"pooled_output": torch.randn(1, POOLED, generator=generator)}]]


def redirector(**settings):
    return make_redirector(width=WIDTH, base_model="SD3", **settings)


def levels():
    return sigmas(4, tiny_sd3())


def test_one_call_a_step_on_a_transformer_with_regular_text():
    counting, calls = counted(tiny_sd3())
    ours, trace = guider(conditioning(1), conditioning(2), redirector(), model=counting)
    picture = sample(ours, levels(), shape=SHAPE)
    assert calls == [(2, 2)] * 4
    assert trace.run.acted
    assert not picture.equal(sample(stock(conditioning(1), conditioning(2), tiny_sd3()), levels(), shape=SHAPE))


def test_pooled_vectors_follow_only_where_the_redirector_has_a_head():
    used = {}
    for name, pooled_width in (("without", 0), ("with", POOLED)):
        ours, _ = guider(conditioning(1), conditioning(2), redirector(pooled_width=pooled_width), model=tiny_sd3())
        original = ours.predict_noise

        def spy(*args, _ours=ours, _original=original, _name=name, **kwargs):
            used[_name] = _ours.conds["negative"][0]["model_conds"]["y"].cond.clone()
            return _original(*args, **kwargs)

        ours.predict_noise = spy
        assert torch.isfinite(sample(ours, levels(), shape=SHAPE)).all()
    own = conditioning(2)[0][1]["pooled_output"]
    assert used["without"].equal(own)
    assert not used["with"].equal(own)


def test_a_negative_of_another_length():
    ours, trace = guider(conditioning(1, 64), conditioning(2, 32), redirector(), model=tiny_sd3())
    assert torch.isfinite(sample(ours, levels(), shape=SHAPE)).all()
    assert trace.run.acted


def test_skip_layer_guidance_keeps_working():
    node = nodes.NODE_CLASS_MAPPINGS["SkipLayerGuidanceDiT"]
    values = {
        "double_layers": "1",
        "single_layers": "",
        "scale": 3.0,
        "start_percent": 0.0,
        "end_percent": 1.0,
        "rescaling_scale": 0.0,
    }
    both = node.execute(model=tiny_sd3(), **values).args[0]
    pair = conditioning(1), conditioning(2)
    plain = sample(stock(*pair, both), levels(), shape=SHAPE)
    acted = sample(guider(*pair, redirector(), model=both)[0], levels(), shape=SHAPE)
    alone = sample(guider(*pair, redirector(), model=tiny_sd3())[0], levels(), shape=SHAPE)
    assert not acted.equal(plain)
    assert not acted.equal(alone)
    quiet = sample(guider(*pair, redirector(harm=-6.0), model=both)[0], levels(), shape=SHAPE)
    assert quiet.equal(plain)


def test_the_simple_variant_that_replaces_the_batch_function_works_too():
    node = nodes.NODE_CLASS_MAPPINGS["SkipLayerGuidanceDiTSimple"]
    values = {"double_layers": "1", "single_layers": "", "start_percent": 0.0, "end_percent": 1.0}
    both = node.execute(model=tiny_sd3(), **values).args[0]
    pair = conditioning(1), conditioning(2)
    plain = sample(stock(*pair, both), levels(), shape=SHAPE)
    assert not sample(guider(*pair, redirector(), model=both)[0], levels(), shape=SHAPE).equal(plain)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_breaks_off_leaves_nothing_behind(error):
    pair = encoded(KNIFE), encoded("")
    ours, trace = guider(*pair, make_redirector(), start=0.2)
    first = sample(ours)

    def stop(step, *_):
        if step == 1:
            raise error("stop")

    with pytest.raises(error):
        sample(ours, seed=9, callback=stop)
    assert [s.acted for s in trace.run.steps] == [False, True]
    assert "step 2 of 4; stopped" in trace.run.decision
    assert part("nodes.safecfg.run").KEY not in ours.model_options
    assert sample(ours).equal(first)


def test_an_error_inside_a_step_puts_the_negative_back():
    model, _ = patch(make_redirector())
    ours = stock(encoded(KNIFE), encoded(""), model=model)
    seen = []

    def broken(args):
        seen.append(ours.conds["negative"])
        raise RuntimeError("no")

    ours.model_options = {**ours.model_options, "sampler_pre_cfg_function": [broken]}
    with pytest.raises(RuntimeError, match="no"):
        sample(ours)
    assert ours.conds["negative"] is not seen[0]
    assert ours.conds["negative"][0]["cross_attn"].equal(encoded("")[0][0])


def entry(positive=None, negative=None):
    places, core = part("nodes.safecfg.places"), part("safeguidance.conditioning")
    tokens = torch.ones(1, 4, 8)
    pair = (
        {"cross_attn": tokens, **(positive or {})},
        {"cross_attn": 0 * tokens, "model_conds": {}, **(negative or {})},
    )
    return places.redirected_entries([(pair, core.Conditioning(2 * tokens), True)])[0]


def test_controls_and_hooks():
    on = {"control": "p", "control_apply_to_uncond": True}
    assert entry(on)["control"] == "p"
    assert entry(on, {"control": "n"})["control"] == "n"
    assert "control" not in entry({"control": "p"})
    assert entry({"hooks": "p"}, {"hooks": "n"})["hooks"] == "n"
    assert "hooks" not in entry({"hooks": "p"})
    assert entry()["prompt_type"] == "negative"
    assert entry()["uuid"] != entry()["uuid"]


def test_ranges_of_hook_schedules_are_carried():
    made = entry({"clip_start_percent": 0.2, "clip_end_percent": 0.8, "start_percent": 0.3}, {"end_percent": 0.6})
    assert (made["start_percent"], made["end_percent"]) == (0.3, 0.6)
    assert "clip_start_percent" not in made
    late = entry({"end_percent": 0.3}, {"start_percent": 0.3})
    assert (late.get("start_percent", 0.0), late["end_percent"]) == (0.0, 0.3)


def test_attention_masks_let_the_redirect_be_seen():
    short, long = torch.tensor([[1, 0, 0, 0]]), torch.tensor([[1, 1, 1, 0]])
    assert entry({"attention_mask": long}, {"attention_mask": short})["attention_mask"].equal(long)
    assert entry({}, {"attention_mask": short})["attention_mask"].equal(torch.ones_like(short))
    assert "attention_mask" not in entry({"attention_mask": long})
