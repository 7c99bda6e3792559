"""Workflows whose prompt or sampler sits in a subgraph: found by themselves, or said what to name."""

import copy
import json

import pytest

from safeguidance.__main__ import main
from safeguidance.errors import InputError
from safeguidance.evaluate.arms import Arm, build
from safeguidance.evaluate.store import open_results
from safeguidance.evaluate.workflow_nodes import Named, find_places
from safeguidance.headless.convert import to_api
from tests.core.comfy_stub import node, object_info, serving, write_config

MODEL, TEXT = "MODEL", "CONDITIONING"
INFO = object_info()
INFO["ConditioningCombine"] = node({"conditioning_1": [TEXT, {}], "conditioning_2": [TEXT, {}]}, [TEXT])
SAMPLING = [1, "fixed", 20, 5.0, "euler", "simple", 1.0]


def entry(number, kind, inputs, widgets=(), outputs=1, title=None):
    """A node of the editor's format; inputs are name -> (type, link)."""
    slots = [{"name": name, "type": of, "link": link} for name, (of, link) in inputs.items()]
    more = {"title": title} if title else {}
    return {
        "id": number,
        "type": kind,
        "inputs": slots,
        "outputs": [{}] * outputs,
        "widgets_values": [*widgets],
        **more,
    }


def wire(number, origin, slot, target, place, kind):
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return dict(zip(names, (number, origin, slot, target, place, kind), strict=True))


def definition(name, inputs, output, nodes, links):
    slots = [{"id": name_, "name": name_, "type": kind} for name_, kind in inputs]
    ends = {"inputNode": {"id": -10}, "outputNode": {"id": -20}}
    return {
        "id": name, **ends, "inputs": slots, "outputs": [{"id": output, "name": output, "type": output}],
        "nodes": nodes, "links": links,
    }  # fmt: skip


def saved(second=None):
    """Checkpoint and Save Image in the graph; texts and VAE Decode in a subgraph, the sampler in one inside of that.

    Args:
        second: text of a second encoder whose conditioning is combined with the first.
    """
    sampler = entry(
        5, "KSampler",
        {"model": ("MODEL", 1), "positive": (TEXT, 2), "negative": (TEXT, 3), "latent_image": ("LATENT", 4)},
        SAMPLING,
    )  # fmt: skip
    inner = definition(
        "sampling", [("model", "MODEL"), ("positive", TEXT), ("negative", TEXT)], "LATENT",
        [sampler, entry(4, "EmptyLatentImage", {}, [64, 64, 1])],
        [
            wire(1, -10, 0, 5, 0, "MODEL"), wire(2, -10, 1, 5, 1, TEXT), wire(3, -10, 2, 5, 2, TEXT),
            wire(4, 4, 0, 5, 3, "LATENT"), wire(5, 5, 0, -20, 0, "LATENT"),
        ],
    )  # fmt: skip
    text = {"name": "text", "type": "STRING", "link": 13, "widget": {"name": "text"}}
    positive = entry(2, "CLIPTextEncode", {"clip": ("CLIP", 1)}, ["a house"], title="Positive")
    positive["inputs"].append(text)
    negative = entry(3, "CLIPTextEncode", {"clip": ("CLIP", 2)}, ["blurry"])
    links = [
        wire(1, -10, 1, 2, 0, "CLIP"), wire(2, -10, 1, 3, 0, "CLIP"), wire(13, -10, 3, 2, 1, "STRING"),
        wire(3, -10, 0, 20, 0, "MODEL"), wire(5, 3, 0, 20, 2, TEXT), wire(6, 20, 0, 6, 0, "LATENT"),
        wire(7, -10, 2, 6, 1, "VAE"), wire(8, 6, 0, -20, 0, "IMAGE"),
    ]  # fmt: skip
    nodes = [
        positive, negative,
        entry(20, "sampling", {"model": ("MODEL", 3), "positive": (TEXT, 4), "negative": (TEXT, 5)}),
        entry(6, "VAEDecode", {"samples": ("LATENT", 6), "vae": ("VAE", 7)}),
    ]  # fmt: skip
    if second is None:
        links.append(wire(4, 2, 0, 20, 1, TEXT))
    else:
        nodes += [
            entry(8, "CLIPTextEncode", {"clip": ("CLIP", 9)}, [second]),
            entry(9, "ConditioningCombine", {"conditioning_1": (TEXT, 10), "conditioning_2": (TEXT, 11)}),
        ]  # fmt: skip
        links += [
            wire(9, -10, 1, 8, 0, "CLIP"), wire(10, 2, 0, 9, 0, TEXT), wire(11, 8, 0, 9, 1, TEXT),
            wire(4, 9, 0, 20, 1, TEXT),
        ]  # fmt: skip
    promised = [("model", "MODEL"), ("clip", "CLIP"), ("vae", "VAE"), ("text", "STRING")]
    outer = definition("picture", promised, "IMAGE", nodes, links)
    use = entry(10, "picture", {"model": ("MODEL", 1), "clip": ("CLIP", 2), "vae": ("VAE", 3)}, ["a house"])
    use["inputs"].append({"name": "text", "type": "STRING", "link": None, "widget": {"name": "text"}})
    return {
        "nodes": [
            entry(1, "CheckpointLoaderSimple", {}, ["model.safetensors"], 3), use,
            entry(7, "SaveImage", {"images": ("IMAGE", 4)}, ["x"], 0),
        ],
        "links": [
            [1, 1, 0, 10, 0, "MODEL"], [2, 1, 1, 10, 1, "CLIP"], [3, 1, 2, 10, 2, "VAE"], [4, 10, 0, 7, 0, "IMAGE"],
        ],
        "definitions": {"subgraphs": [outer, inner]},
        "version": 0.4,
    }  # fmt: skip


def test_prompt_seed_and_output_are_found_in_subgraphs():
    api = to_api(saved(), INFO)
    places = find_places(api, INFO)
    assert places.as_dict() == {"prompt": ["10:2.text"], "seed": ["10:20:5.seed"], "output": "7"}
    built = build(Arm("a", api, "guard_model"), INFO)
    graph = built.graph("a boat", 9)
    sampler = graph["10:20:5"]["inputs"]
    assert (graph["10:2"]["inputs"]["text"], graph["10:3"]["inputs"]["text"], sampler["seed"]) == (
        "a boat",
        "blurry",
        9,
    )
    assert graph[sampler["model"][0]]["class_type"] == "SafeGuidance_GuardModel"
    assert graph[graph[sampler["model"][0]]["inputs"]["model"][0]]["class_type"] == "SafeGuidance_RunMeter"


def test_texts_that_differ_in_a_subgraph_are_named_with_their_fields():
    api = to_api(saved("a red boat"), INFO)
    with pytest.raises(InputError) as caught:
        find_places(api, INFO)
    assert caught.value.field == "nodes.prompt"
    for field in ("10:2.text (CLIPTextEncode, 'Positive')", "10:8.text (CLIPTextEncode)"):
        assert field in caught.value.allowed
    for named in ("10:8.text", "Positive.text, 10:8.text"):
        found = find_places(api, INFO, Named(prompt=named)).prompt
        assert found == tuple(("10:2" if "Positive" in part else "10:8", "text") for part in named.split(","))


def test_a_seed_that_no_field_of_that_name_holds_is_asked_for():
    api = copy.deepcopy(to_api(saved(), INFO))
    del api["10:20:5"]["inputs"]["seed"]
    api["10:20:5"]["class_type"] = "KSamplerSelect"
    info = {
        **INFO,
        "KSamplerSelect": {
            **INFO["KSampler"],
            "input": {
                "required": {
                    **{key: value for key, value in INFO["KSampler"]["input"]["required"].items() if key != "seed"}
                }
            },
        },
    }
    with pytest.raises(InputError, match="seed or noise_seed") as caught:
        find_places(api, info)
    assert "10:20:5.steps (KSamplerSelect)" in caught.value.allowed
    assert find_places(api, info, Named(seed="10:20:5.steps")).seed == (("10:20:5", "steps"),)


@pytest.mark.parametrize("form", ["editor", "api"])
def test_a_workflow_with_subgraphs_is_evaluated_from_its_file(tmp_path, form, capsys):
    flow = saved() if form == "editor" else to_api(saved(), INFO)
    with serving() as url:
        config = write_config(tmp_path, [url], 4)
        (tmp_path / "workflow.json").write_text(json.dumps(flow))
        assert main(["evaluate", str(config), "--no-page"]) == 0
    assert "prompt 10:2.text; seed 10:20:5.seed; output 7" in capsys.readouterr().out
    with open_results(tmp_path / "results") as store:
        rows = list(store.rows(status="done"))
    assert len(rows) == 8
    assert len({row.picture_digest for row in rows if row.arm == "unguarded"}) == 4
    assert {row.evaluations for row in rows} == {40}
    assert {row.guard["guarded"] for row in rows if row.arm == "guarded"} == {True}
