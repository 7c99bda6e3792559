"""Safety Report behind a real sampler."""

from __future__ import annotations

import copy
import json

import numpy as np
import torch
from PIL import Image

from tests.host.safecfg_graphs import part

STEPS = 4
# a few of one's own: the hundreds of the built-in bank are encoded anew in every graph
HARMLESS = "\n".join(
    f"{thing} {place}"
    for thing in ("a spoon", "a teddy bear", "a green apple", "a sailboat", "two dogs")
    for place in ("in the snow", "on a wooden table", "by the sea")
)
GRAPH = {
    "1": {"class_type": "SafeGuidance_LoadTestbed", "inputs": {}},
    "2": {"class_type": "SafeGuidance_SafetyConcepts", "inputs": {"testbed": True, "own": ""}},
    "3": {
        "class_type": "SafeGuidance_RedirectorFromConcepts",
        "inputs": {"clip": ["1", 1], "concepts": ["2", 0], "sensitivity": 1.0, "benign": HARMLESS},
    },
    "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a kitchen knife on a meadow"}},
    "5": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
    "6": {
        "class_type": "SafeGuidance_SafeCFGPatch",
        "inputs": {
            "model": ["1", 0],
            "redirector": ["3", 0],
            "strength": 1.0,
            "start": 0.0,
            "end": 1.0,
            "threshold": -1.0,
            "rescale": True,
            "map": True,
        },
    },
    "7": {"class_type": "EmptyLatentImage", "inputs": {"width": 48, "height": 48, "batch_size": 2}},
    "8": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["6", 0],
            "positive": ["4", 0],
            "negative": ["5", 0],
            "latent_image": ["7", 0],
            "seed": 1,
            "steps": STEPS,
            "cfg": 4.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 1.0,
        },
    },
    "9": {"class_type": "VAEDecode", "inputs": {"samples": ["8", 0], "vae": ["1", 2]}},
    "10": {"class_type": "SafeGuidance_SafetyReport", "inputs": {"trace": ["6", 1], "image": ["9", 0]}},
}
GRAPH["2"]["inputs"] |= dict.fromkeys(
    ("hate", "harassment", "violence", "self_harm", "sexual", "shocking", "illegal_activity"), False
)


def graph(text=None, drop=(), **report):
    edited = copy.deepcopy(GRAPH)
    if text is not None:
        edited["4"]["inputs"]["text"] = text
    edited["10"]["inputs"] |= report
    for name in drop:
        del edited["10"]["inputs"][name]
    return edited


def test_a_guarded_run_is_reported(run_graph):
    result = run_graph(GRAPH)
    picture, mask, text, harmful, harm = (result.value("10", index) for index in range(5))
    assert picture.shape[0] == 1
    assert picture.shape[2:] == (1200, 3)
    assert mask.shape == (2, 48, 48)
    assert float(mask.max()) == 1.0
    assert float(mask.min()) >= 0
    record = json.loads(text)
    assert harmful is True
    assert harm == record["harm"] >= record["threshold"] == 0.5
    assert len(record["steps"]) == STEPS
    assert record["acted"]
    assert record["extra_evaluations"] == STEPS
    assert record["categories"][0] == "testbed_blades"
    assert "redirected in all 4 steps" in record["decision"]


def test_the_node_shows_the_picture_and_the_decision(run_graph):
    result = run_graph(GRAPH)
    (path,) = result.images["10"]
    shown = np.asarray(Image.open(path), dtype=np.float32) / 255
    assert torch.allclose(torch.from_numpy(shown), result.value("10")[0], atol=1 / 255)
    assert "redirected" in result.ui["10"]["text"][0]


def test_the_report_waits_for_the_sampler_and_follows_a_new_run(session):
    first = session.run(GRAPH)
    calm = session.run(graph(text="a cup of coffee on a meadow"))
    again = session.run(GRAPH)
    assert first.ok
    assert calm.ok
    assert again.ok
    assert [run.value("10", 3) for run in (first, calm, again)] == [True, False, True]
    assert "left untouched" in json.loads(calm.value("10", 2))["decision"]
    assert torch.equal(first.value("10"), again.value("10"))
    assert first.value("10", 2) == again.value("10", 2)


def test_a_harmless_run_has_an_empty_mask(run_graph):
    result = run_graph(graph(text="a cup of coffee on a meadow"))
    assert float(result.value("10", 1).abs().max()) == 0
    assert result.value("10", 4) < 0.5


def test_a_latent_is_enough(run_graph):
    result = run_graph(graph(drop=["image"], latent=["8", 0]))
    assert result.value("10", 1).shape == (2, 12, 12)
    assert result.value("10", 3) is True


def test_without_image_and_latent_it_is_refused_in_words(run_graph):
    result = run_graph(graph(drop=["image"]), check=False)
    assert not result.ok
    assert result.errors[0].node_id == "10"
    assert "Safety Report, image: neither image nor latent is connected" in result.errors[0].line()


def test_a_trace_without_a_run_says_not_guarded_and_keeps_a_switch_closed():
    report, trace = part("nodes.report").SafetyReport, part("safeguidance.report.trace").Trace()
    _, _, record, harmful, harm = report.execute(trace, image=torch.zeros(1, 8, 8, 3)).args
    assert json.loads(record)["decision"].startswith("NOT GUARDED")
    assert harmful is True
    assert harm == 0.0


def _record(name, harm, latent_in, latent_out, queue_run="q1"):
    trace = part("safeguidance.report.trace")
    return trace.RunRecord(
        name,
        ("blade",),
        [[harm]],
        0.5,
        name,
        latent_in=trace.tensor_digest(latent_in),
        latent_out=trace.tensor_digest(latent_out),
        queue_run=queue_run,
    )


def test_a_base_pass_and_a_detailer_are_two_runs_of_one_picture():
    trace = part("safeguidance.report.trace").Trace()
    empty, base, final, other = (torch.full((1, 4, 2, 2), float(number)) for number in range(4))
    trace.begin(_record("base pass", 0.9, empty, base))
    trace.begin(_record("detailer", 0.1, base, final))
    trace.begin(_record("another picture", 0.2, empty, other))
    report = part("nodes.report").SafetyReport
    record = json.loads(report.execute(trace, latent={"samples": final}).args[2])
    assert record["decision"] == "run 1 of 2: base pass"
    assert record["harmful"] is True
    assert [run["decision"] for run in record["runs"]] == ["base pass", "detailer"]
    calm = json.loads(report.execute(trace, latent={"samples": other}).args[2])
    assert calm["decision"] == "another picture"
    assert calm["harmful"] is False


def test_a_report_added_to_a_cached_sampler_says_that_it_is_not_sure():
    trace = part("safeguidance.report.trace").Trace()
    empty, made = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    trace.begin(_record("an earlier queue run", 0.1, empty, made))
    report = part("nodes.report").SafetyReport
    record = json.loads(report.execute(trace, image=torch.zeros(1, 8, 8, 3)).args[2])
    assert record["certain"] is False
    assert "connect the sampler's latent" in record["decision"]
    sure = json.loads(report.execute(trace, latent={"samples": made}).args[2])
    assert sure["certain"] is True


# --- before and after, and what the verdict is worth -----------------------------------------------------------------


def _with_words(text, **report):
    edited = graph(text=text, clip=["1", 1], **report)
    edited["5"]["inputs"]["text"] = "\u6c34"
    return edited


def test_words_that_the_text_encoder_does_not_know_are_named_and_those_of_the_negative_are_not(run_graph):
    cat, dog = "\u732b", "\u72ac"
    result = run_graph(
        _with_words(f"a kitchen knife beside {cat} and ({dog}:1.2), a zebra and 3 tigers embedding:none")
    )
    record = json.loads(result.value("10", 2))
    assert record["unknown_words"] == [cat, dog]
    assert f"THIS MEANS LITTLE: the text encoder does not know the words {cat}, {dog}" in record["decision"]
    assert "THIS MEANS LITTLE" in result.ui["10"]["text"][0]


def test_known_words_and_a_report_without_a_text_encoder_say_nothing_of_words(run_graph):
    known = run_graph(_with_words("a kitchen knife on a meadow"))
    assert json.loads(known.value("10", 2))["unknown_words"] == []
    silent = run_graph(graph(text="\u732b"))
    assert json.loads(silent.value("10", 2))["unknown_words"] == []


def _least_error(page, picture):
    """How far the left half of a report is from a picture, where it is nearest to it."""
    edge = len(picture)
    left = page[0, :, 10 * page.shape[2] // 300 : 145 * page.shape[2] // 300]
    size = (round(edge * left.shape[0] / left.shape[1]), edge)
    column = torch.nn.functional.interpolate(left.permute(2, 0, 1)[None], size=size, mode="area")[0].permute(1, 2, 0)
    return min(float((column[y : y + edge] - picture).abs().mean()) for y in range(len(column) - edge + 1))


def test_a_picture_without_a_guard_stands_beside_the_guarded_one(run_graph):
    edited = graph(unguarded=["12", 0])
    edited["11"] = {**edited["8"], "inputs": {**edited["8"]["inputs"], "model": ["1", 0]}}
    edited["12"] = {"class_type": "VAEDecode", "inputs": {"samples": ["11", 0], "vae": ["1", 2]}}
    result, alone = run_graph(edited), run_graph(GRAPH).value("10", 0)
    unguarded = result.value("12", 0)[0]
    assert _least_error(result.value("10", 0), unguarded) < 0.03 < _least_error(alone, unguarded)
    # the mask and the verdict are those of the guarded picture alone
    assert [result.value("10", index) for index in (3, 4)] == [run_graph(GRAPH).value("10", index) for index in (3, 4)]


def test_tokenizers_of_bytes_know_every_word():
    from tests.host.safree_graphs import FAMILIES, tiny_clip

    unknown = part("nodes.host.known_words").unknown_words
    for family in FAMILIES:
        assert unknown(tiny_clip(family), "a tiger, qqqzx and (zebra:1.2)") == ()
