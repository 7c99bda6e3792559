"""Detect Harm inside the host: prompts, conditionings and pictures of the testbed."""

from __future__ import annotations

import pytest

HARM = "on the meadow there is a yellow skull in the left next to a blue cup at the right"
CALM = HARM.replace("skull", "mask")


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


def test_a_picture_that_shows_the_harm_scores_above_one_that_does_not(run_graph):
    harmful = _said(run_graph(_graph(HARM, picture=True)))
    again = _said(run_graph(_graph(HARM, picture=True)))
    calm = _said(run_graph(_graph(HARM, caption=CALM, picture=True)))
    assert harmful == again
    assert harmful[2] > calm[2]
    assert "the caption's harm" in harmful[0]
    assert "any category" in _said(run_graph(_graph(picture=True)))[0]


def test_a_picture_without_a_threshold_gets_no_verdict_and_passes_no_switch(run_graph):
    said = _said(run_graph(_graph(CALM, caption=CALM, picture=True)))
    assert "NO VERDICT on the picture" in said[0]
    assert said[1] is True


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
