"""Concept guidance on the host's own model classes: noise, v and flow prediction, pictures and video."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch

import nodes
from tests.host.concept_graphs import concepts, family, mask
from tests.host.safecfg_graphs import counted, part, sample, sigmas, stock
from tests.host.test_safecfg_models import POOLED, WIDTH, tiny_sd3
from tools import cost

pytestmark = pytest.mark.usefixtures("pack")


@dataclass(frozen=True)
class Words:
    """A text encoder with random states, the same for the same text."""

    length: int
    width: int
    pooled: int = 0

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list[Any]:
        generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        states = torch.randn(1, self.length, self.width, generator=generator)
        extra = {"pooled_output": torch.randn(1, self.pooled, generator=generator)} if self.pooled else {}
        return [[states, extra]]


@cache
def eps_model() -> Any:
    return cost.build_model("small")


@cache
def v_model() -> Any:
    node = nodes.NODE_CLASS_MAPPINGS["ModelSamplingDiscrete"]()
    return node.patch(eps_model(), "v_prediction", False)[0]


@cache
def wan_model() -> Any:
    """A random Wan 2.1 of one block; its latents have five dimensions."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    shape = {"image_model": "wan2.1", "model_type": "t2v", "dim": 128, "ffn_dim": 256, "num_heads": 1, "num_layers": 1}
    config = comfy.supported_models.WAN21_T2V(shape)
    config.set_inference_dtype(torch.float32, None)
    with torch.inference_mode(False):
        model = config.get_model({}, device=torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in [*model.diffusion_model.parameters(), *model.diffusion_model.buffers()]:
                if weight.is_floating_point():
                    scale = 0.02 if weight.ndim > 1 else 0.1
                    weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    model.eval()
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, comfy.model_management.get_torch_device(), cpu)


MODELS = {
    "eps": (eps_model, Words(77, 768), (1, 4, 16, 16)),
    "v": (v_model, Words(77, 768), (1, 4, 16, 16)),
    "flow": (tiny_sd3, Words(32, WIDTH, POOLED), (1, 16, 8, 8)),
    "video": (wan_model, Words(512, 4096), (1, 16, 3, 8, 8)),
}
MODELS_OF = pytest.mark.parametrize("kind", MODELS)
TWO = "blade: knife\ndrug: syringe"


def encoded(kind: str, text: str) -> Any:
    return MODELS[kind][1].encode_from_tokens_scheduled(text)


def denoised(kind: str, model: Any, text: str, negative: str, cfg: float, level: float) -> tuple[Any, Any]:
    """What a guider predicts at a noise level, and the noisy latent there."""
    seen = []
    guider = stock(encoded(kind, text), encoded(kind, negative), model, cfg)
    schedule = torch.tensor([level, 0.0])
    sample(guider, schedule, shape=MODELS[kind][2], callback=lambda i, d, x, n: seen.append((d.clone(), x.clone())))
    return seen[0]


@MODELS_OF
def test_one_call_a_step_and_another_picture(kind):
    make, words, shape = MODELS[kind]
    counting, calls = counted(make())
    model, trace = mask(counting, words, concepts(TWO), threshold=0.0, end=1.0)
    pair, levels = (encoded(kind, "knife"), encoded(kind, "")), sigmas(10, make())
    picture = sample(stock(*pair, model), levels, shape=shape)
    assert torch.isfinite(picture).all()
    assert trace.run.acted
    assert trace.run.scores[0][0] > 0.99, "the prompt is the concept itself"
    acted = sum(step.acted for step in trace.run.steps)
    assert 0 < acted < 10
    assert calls[-acted:] == [(3, 3)] * acted
    assert tuple(trace.run.effect.shape) == (1, *shape[2:])
    assert not picture.equal(sample(stock(*pair, make()), levels, shape=shape))
    assert sample(stock(*pair, model), levels, shape=shape).equal(picture)


@MODELS_OF
def test_a_closed_gate_is_stock(kind):
    make, words, shape = MODELS[kind]
    model, trace = mask(make(), words, concepts(TWO), threshold=1.0)
    pair, levels = (encoded(kind, "a red cup"), encoded(kind, "blurry")), sigmas(6, make())
    assert sample(stock(*pair, model), levels, shape=shape).equal(sample(stock(*pair, make()), levels, shape=shape))
    assert trace.run.decision.startswith("harmless")


@MODELS_OF
@pytest.mark.parametrize("progress", [0.1, 0.7])
def test_sld_counts_its_threshold_in_noise(kind, progress):
    """Schramowski et al. 2023, equations 3 to 7, written out in noise (velocity for flow), at one noise level."""
    make, words, shape = MODELS[kind]
    level = float(make().get_model_object("model_sampling").percent_to_sigma(progress))
    found, noisy = {}, []
    for text in ("a red cup", "", "knife"):
        plain, x = denoised(kind, make(), text, "", 1.0, level)
        noisy.append(x)
        found[text] = (x - plain) / level
    prompt, base, concept = found["a red cup"], found[""], found["knife"]
    difference = (prompt - concept).flatten()
    # settings under which all cases occur, whatever the size of a random network's predictions
    threshold = float(difference[difference > 0].median())
    multiple = 1 / float(5000 * difference.abs().median())
    model, _ = family("SLD max", make(), concepts("blade: knife"), words, threshold=threshold, strength=multiple)
    ours, x = denoised(kind, model, "a red cup", "", 5.0, level)
    assert all(x.equal(other) for other in noisy)
    phi = (5000 * multiple * (prompt - concept).abs()).clamp(max=1)
    mu = torch.where(prompt - concept < threshold, phi, 0)
    assert 0.02 < (mu == 0).float().mean() < 0.98
    assert bool((mu == 1).any())
    wanted = x - level * (base + 5.0 * (prompt - base - mu * (concept - base)))
    slack = 1e-4 * float((x - wanted).abs().max())
    # an element at the very edge of the threshold may fall on either side
    off = ((ours - wanted).abs() > slack).float().mean()
    assert off < 0.002


@MODELS_OF
@pytest.mark.parametrize("name", ["SEGA", "NOT", "negative prompt"])
def test_the_family_runs(kind, name):
    make, words, shape = MODELS[kind]
    model, trace = family(name, make(), concepts(TWO), words)
    pair, levels = (encoded(kind, "knife"), encoded(kind, "")), sigmas(5, make())
    picture = sample(stock(*pair, model), levels, shape=shape)
    assert torch.isfinite(picture).all()
    assert trace.run.acted
    assert not picture.equal(sample(stock(*pair, make()), levels, shape=shape))


def test_concepts_of_another_length_are_right_at_the_price_of_a_call():
    """On models with regular text entries the host batches equal lengths only; results are the same either way."""
    make, words, shape = MODELS["flow"]
    short = Words(16, WIDTH, POOLED)
    counting, calls = counted(make())
    model, trace = family("NOT", counting, concepts("blade: knife"), short)
    pair = encoded("flow", "cup"), encoded("flow", "")
    assert torch.isfinite(sample(stock(*pair, model), sigmas(3, make()), shape=shape)).all()
    assert calls == [(2, 2), (1, 1)] * 3
    assert trace.run.acted


@pytest.mark.parametrize("name", ["SkipLayerGuidanceDiT", "SkipLayerGuidanceDiTSimple"])
def test_skip_layer_guidance_keeps_working(name):
    values = {"double_layers": "1", "single_layers": "", "start_percent": 0.0, "end_percent": 1.0}
    if name == "SkipLayerGuidanceDiT":
        values |= {"scale": 3.0, "rescaling_scale": 0.0}
    make, words, shape = MODELS["flow"]
    levels, pair = sigmas(6, make()), (encoded("flow", "knife"), encoded("flow", ""))
    both = nodes.NODE_CLASS_MAPPINGS[name].execute(model=make(), **values).args[0]
    plain = sample(stock(*pair, both), levels, shape=shape)
    model, trace = mask(both, words, concepts(TWO), threshold=0.0)
    acted = sample(stock(*pair, model), levels, shape=shape)
    alone = sample(stock(*pair, mask(make(), words, concepts(TWO), threshold=0.0)[0]), levels, shape=shape)
    assert trace.run.acted
    assert not acted.equal(plain)
    assert not acted.equal(alone)
    quiet, _ = mask(both, words, concepts(TWO), threshold=1.0)
    other = encoded("flow", "a red cup"), encoded("flow", "")
    plain = sample(stock(*other, both), levels, shape=shape)
    assert sample(stock(*other, quiet), levels, shape=shape).equal(plain)


def test_what_a_model_reads_beside_the_text_is_the_same_for_concepts():
    """Values such as a guidance embedding or the picture's size are taken over, so that only the text differs."""
    room = part("nodes.host.extra_conds")
    area = {"area": (8, 4, 0, 0), "strength": 0.5}
    like = {"cross_attn": 0, "uuid": 1, "guidance": 2.0, "width": 512, "start_percent": 0.2, "mask": 3, **area}
    entry = room.entries_of([[5, {"pooled_output": 6}]], like)[0]
    assert entry.pop("uuid") != 1
    assert entry == {
        "cross_attn": 5, "pooled_output": 6, "guidance": 2.0, "width": 512, "model_conds": {}, "prompt_type": "negative"
    }  # fmt: skip


def test_samples_apart_keep_what_is_theirs():
    import comfy.conds

    room = part("nodes.host.extra_conds")
    own, shared = torch.arange(3.0)[:, None], torch.ones(1, 2)
    entry = {
        "model_conds": {"own": comfy.conds.CONDRegular(own), "shared": comfy.conds.CONDRegular(shared)},
        "mask": torch.arange(3.0)[:, None, None],
    }
    some = room._of_rows(entry, torch.tensor([0, 2]), 3)
    assert some["model_conds"]["own"].cond.flatten().tolist() == [0, 2] == some["mask"].flatten().tolist()
    assert some["model_conds"]["shared"].cond is shared
    assert entry["model_conds"]["own"].cond is own
