"""Detect Harm inside the host: prompts, conditionings and pictures of the testbed."""

from __future__ import annotations

import pytest
import torch

from safeguidance.testbed.model import LATENT_SHAPE
from tests.host.safecfg_graphs import encoded, ksample, part, world
from tests.host.small_lora import write_lora

HARM = "a skull and a cup of coffee on a meadow"
CALM = HARM.replace("skull", "ghost")


def _graph(prompt="", caption=HARM, picture=False, **more):
    graph = {
        "1": {"class_type": "SafeGuidance_LoadTestbed", "inputs": {}},
        "2": {"class_type": "SafeGuidance_LoadHGR", "inputs": {"hgr_name": "testbed-hgr.safetensors"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": caption}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 48, "height": 48, "batch_size": 1}},
        "6": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "seed": 7,
                "steps": 8,
                "cfg": 5.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "positive": ["3", 0],
                "negative": ["4", 0],
                "latent_image": ["5", 0],
                "denoise": 1.0,
            },
        },
        "9": {
            "class_type": "SafeGuidance_DetectHarm",
            "inputs": {
                "redirector": ["2", 0],
                "clip": ["1", 1],
                "prompt": prompt,
                "threshold": -1.0,
                "rate": 0.01,
                "harmless": "",
                "image_threshold": -10.0,
                "draws": 4,
                "seed": 0,
                **more,
            },
        },
        "10": {"class_type": "PreviewAny", "inputs": {"source": ["9", 2]}},
    }
    if picture:
        graph["9"]["inputs"].update(model=["1", 0], latent=["6", 0])
    return graph


def _said(result):
    return result.value("9", 2), result.value("9", 1), result.value("9", 3)


def test_prompts_are_told_apart_as_text_and_as_conditioning(run_graph):
    text = _said(run_graph(_graph(HARM)))
    assert text[1] is True
    assert "threshold: " in text[0]
    assert text[2] == 0
    assert _said(run_graph(_graph(positive=["3", 0]))) == text
    assert _said(run_graph(_graph(CALM)))[1] is False


def test_a_threshold_can_be_set_on_harmless_prompts(run_graph):
    quiet = "\n".join(f"a {colour} {thing}" for colour in ("red", "blue") for thing in ("cup", "tree", "fish"))
    said = _said(run_graph(_graph(HARM, harmless=quiet, rate=0.0)))
    assert "0% false positives on 6 harmless prompts" in said[0]
    assert said[1] is True


def test_a_picture_is_judged_by_itself_whatever_the_prompt_says(run_graph):
    harmful = _said(run_graph(_graph(HARM, picture=True)))
    again = _said(run_graph(_graph(HARM, picture=True)))
    alone = _said(run_graph(_graph(picture=True)))
    calm = _said(run_graph(_graph(HARM, caption=CALM, picture=True)))
    assert harmful == again
    assert harmful[2] == alone[2] > calm[2]


def test_on_the_testbed_a_picture_gets_a_verdict_that_says_what_it_is_worth(run_graph):
    said = _said(run_graph(_graph(caption=CALM, picture=True, draws=3)))
    known = part("safeguidance.testbed.picture_calibration").PICTURES
    assert "harmless picture" in said[0]
    assert said[1] is False
    assert f"image threshold: {known.threshold:.5f} (calibrated on {known.harmless} harmless pictures" in said[0]
    assert f"{known.flagged} of them above it; {known.found} of {known.harmful} that show harm are" in said[0]


def test_pictures_of_harm_are_found_and_those_of_its_look_alikes_are_not():
    model, clip, _ = world()
    redirector = part("nodes.redirectors").LoadHGR.execute("testbed-hgr.safetensors").args[0]
    known = part("safeguidance.testbed.picture_calibration").PICTURES
    encoder = part("nodes.host.encoding").ClipEncoder(clip)
    size = {"samples": torch.zeros(1, *LATENT_SHAPE)}
    drawn = {
        text: ksample(model, encoded(text), encoded(""), cfg=4.0, steps=12, latent=size)
        for pair in (("kitchen knife", "spoon"), ("bomb", "balloon"), ("syringe", "pen"))
        for text in (f"a {thing} on a meadow" for thing in pair)
    }
    with torch.inference_mode():
        judged = part("nodes.detect_picture").picture_judge(
            redirector, encoder, model, LATENT_SHAPE, [], encoder([""]), known.draws, known.seed, counterparts=True
        )
        scores = [judged(latent)[0] > known.threshold for latent in drawn.values()]
    harmful, harmless = scores[::2], scores[1::2]
    assert sum(harmful) > len(harmful) / 2
    assert sum(harmless) < len(harmless) / 2


@pytest.mark.parametrize("change", ["draws", "seed", "model"])
def test_what_nothing_was_calibrated_for_gets_no_verdict_and_passes_no_switch(run_graph, change):
    graph = _graph(CALM, caption=CALM, picture=True, **{"draws": 3, **({change: 5} if change != "model" else {})})
    if change == "model":
        # a LoRA makes other weights of it
        graph["13"] = {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": ["1", 0], "lora_name": "safe.safetensors", "strength_model": 1.0},
        }
        graph["9"]["inputs"]["model"] = ["13", 0]
        _lora_in_place()
    said = _said(run_graph(graph))
    assert "NO VERDICT on the picture" in said[0]
    assert said[1] is True


def _lora_in_place():
    from pathlib import Path

    import folder_paths

    write_lora(Path(folder_paths.get_folder_paths("loras")[0]) / "safe.safetensors")
    folder_paths.filename_list_cache.pop("loras", None)


def test_a_threshold_for_pictures_decides(run_graph):
    calm = _graph(CALM, caption=CALM, picture=True, image_threshold=1.0)
    assert _said(run_graph(calm))[1] is False
    strict = _said(run_graph(_graph(CALM, caption=CALM, picture=True, image_threshold=-9.0)))
    assert strict[1] is True
    assert "NO VERDICT" not in strict[0]


def test_harmless_pictures_set_the_threshold(run_graph):
    graph = _graph(CALM, caption=CALM, picture=True, rate=0.25, harmless_latent=["12", 0])
    graph["11"] = {**graph["5"], "inputs": {**graph["5"]["inputs"], "batch_size": 4}}
    graph["12"] = {**graph["6"], "inputs": {**graph["6"]["inputs"], "latent_image": ["11", 0], "seed": 8}}
    said = _said(run_graph(graph))
    assert "25% false positives on 4 harmless pictures" in said[0]
    limit = float(said[0].split("image threshold: ")[1].split()[0])
    assert said[1] is (said[2] > limit)


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (_graph(), "prompt: it is empty, and no positive"),
        (_graph(HARM, positive=["3", 0]), "prompt: it is not empty, and positive is connected too"),
        (_graph(HARM, latent=["6", 0]), "model: it is not connected"),
        (_graph(HARM, harmless="a cup"), "harmless: 1 harmless prompts or pictures cannot show"),
    ],
    ids=["nothing", "both", "no model", "too few"],
)
def test_what_is_missing_is_named(run_graph, graph, words):
    result = run_graph(graph, check=False)
    assert not result.ok
    assert any("Detect Harm" in e.line() and words in e.line() for e in result.errors)
