"""Blueprints of subgraphs: what is in them is right for the host, and they do what they replace, bit for bit."""

from __future__ import annotations

import json

import pytest
import torch

from safeguidance.headless.definitions import ConvertError, input_specs
from safeguidance.headless.hosts import PACK_ROOT
from tools.blueprint import expand, to_blueprint

pytestmark = pytest.mark.usefixtures("pack")

FILES = {path.stem: path for path in sorted((PACK_ROOT / "subgraphs").glob("*.json"))}
KEPT = PACK_ROOT / "tools" / "data" / "blueprints"
HARMFUL = "a skull and a cup of coffee on a meadow"
HARMLESS = "a ghost and a cup of coffee on a meadow"
CATEGORIES = ("hate", "harassment", "violence", "self_harm", "sexual", "shocking", "illegal_activity")
CONCEPTS = {**dict.fromkeys(CATEGORIES, False), "testbed": True}
SAMPLER = {"seed": 7, "steps": 6, "cfg": 5.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
WIRES = {"model": ["t", 0], "positive": ["p", 0], "negative": ["n", 0], "latent_image": ["l", 0]}
MORE = {"Safe KSampler": {"redirector": ["h", 0]}, "Safe KSampler (Concepts)": {"clip": ["t", 1], "concepts": ["c", 0]}}


def load(name):
    return json.loads(FILES[name].read_text(encoding="utf-8"))


def outside(text):
    return {
        "t": {"class_type": "SafeGuidance_LoadTestbed", "inputs": {}},
        "p": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["t", 1], "text": text}},
        "n": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["t", 1], "text": ""}},
        "l": {"class_type": "EmptyLatentImage", "inputs": {"width": 48, "height": 48, "batch_size": 2}},
        "h": {"class_type": "SafeGuidance_LoadHGR", "inputs": {"hgr_name": "testbed-hgr.safetensors"}},
        "c": {"class_type": "SafeGuidance_SafetyConcepts", "inputs": {**CONCEPTS, "own": ""}},
        "k": {"class_type": "KSampler", "inputs": {**WIRES, **SAMPLER}},
    }


def sampled(run_graph, graph, latent, *keep):
    """Run a graph to a latent; return (samples, values of other links)."""
    graph = {**graph, "s": {"class_type": "SaveLatent", "inputs": {"samples": latent, "filename_prefix": "blueprint"}}}
    result = run_graph(graph)
    return result.value(*latent)["samples"], [result.value(*link) for link in keep]


@pytest.mark.parametrize("name", FILES)
def test_it_is_one_node_with_one_subgraph_of_known_nodes(name, object_info):
    file = load(name)
    (node,), (inside,) = file["nodes"], file["definitions"]["subgraphs"]
    assert node["type"] == inside["id"]
    assert node["title"] == inside["name"] == name
    assert file["extra"]["BlueprintDescription"]
    assert file["extra"]["BlueprintSearchAliases"]
    assert node["properties"]["cnr_id"] == "safeguidance"
    for entry in inside["nodes"]:
        assert {"cnr_id", "ver", "Node name for S&R"} <= set(entry["properties"]), entry["type"]
        known = {spec.name: spec.type for spec in input_specs(object_info[entry["type"]])}
        assert {slot["name"]: slot["type"] for slot in entry["inputs"]}.items() <= known.items(), entry["type"]
    links = {link["id"]: link for link in inside["links"]}
    declared = [link for entry in (*inside["inputs"], *inside["outputs"]) for link in entry["linkIds"]]
    assert len(links) == len(inside["links"])
    assert set(declared) <= set(links)
    assert {slot["name"] for slot in node["inputs"]} == {entry["name"] for entry in inside["inputs"]}


@pytest.mark.parametrize("name", FILES)
def test_it_is_what_its_graph_says_with_every_field_of_this_version(name, object_info):
    kept = json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8"))
    graph, _outputs = expand(load(name), object_info, {})
    anew, _outputs = expand(to_blueprint(kept, object_info), object_info, {})
    assert graph == anew, "run: python -m tools workflows"
    for key, node in graph.items():
        required = {spec.name for spec in input_specs(object_info[node["class_type"]]) if spec.widget}
        assert required <= set(node["inputs"]), key


@pytest.mark.parametrize("name", MORE)
def test_safe_ksampler_redirects_a_harmful_prompt_and_only_that(name, object_info, run_graph):
    def compare(text, **values):
        inside, outputs = expand(load(name), object_info, {**WIRES, **MORE[name], **SAMPLER, **values})
        graph = {**outside(text), **inside}
        guarded, (trace,) = sampled(run_graph, graph, outputs["LATENT"], outputs["trace"])
        return guarded, sampled(run_graph, graph, ["k", 0])[0], trace

    guarded, plain, trace = compare(HARMFUL)
    assert trace is not None
    assert not torch.equal(guarded, plain)
    assert not torch.equal(compare(HARMFUL, preset="strict")[0], guarded), "the preset reaches the patch"
    assert torch.equal(*compare(HARMLESS)[:2]), "a harmless prompt is left alone"


def test_safe_ksampler_is_the_patch_before_the_sampler(object_info, run_graph):
    inside, outputs = expand(load("Safe KSampler"), object_info, {**WIRES, "redirector": ["h", 0], **SAMPLER})
    graph = {**outside(HARMFUL), **inside}
    by_hand = outside(HARMFUL)
    by_hand["g"] = {"class_type": "SafeGuidance_SafeCFGPatch", "inputs": {"model": ["t", 0], "redirector": ["h", 0]}}
    by_hand["k"]["inputs"]["model"] = ["g", 0]
    assert torch.equal(
        sampled(run_graph, graph, outputs["LATENT"])[0],
        sampled(run_graph, by_hand, ["k", 0])[0],
    )


def test_safe_text_encode_and_guider_guards_from_text_to_picture(object_info, run_graph):
    def compare(text):
        values = {"model": ["t", 0], "clip": ["t", 1], "text": text, "cfg": 5.0, **CONCEPTS}
        inside, outputs = expand(load("Safe Text Encode + Guider"), object_info, values)
        graph = {
            **outside(text),
            **inside,
            "noise": {"class_type": "RandomNoise", "inputs": {"noise_seed": 7}},
            "euler": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
            "sigmas": {
                "class_type": "BasicScheduler",
                "inputs": {"model": ["t", 0], "scheduler": "simple", "steps": 6, "denoise": 1.0},
            },
            "a": {
                "class_type": "SamplerCustomAdvanced",
                "inputs": {
                    "noise": ["noise", 0],
                    "guider": outputs["GUIDER"],
                    "sampler": ["euler", 0],
                    "sigmas": ["sigmas", 0],
                    "latent_image": ["l", 0],
                },
            },
        }
        guarded, (flagged,) = sampled(run_graph, graph, ["a", 0], outputs["flagged"])
        return guarded, sampled(run_graph, graph, ["k", 0])[0], flagged

    guarded, plain, flagged = compare(HARMFUL)
    assert "skull" in flagged
    assert not torch.equal(guarded, plain)
    guarded, plain, _flagged = compare(HARMLESS)
    assert torch.equal(guarded, plain), "a harmless prompt is left alone"


def test_a_wrong_graph_is_refused_in_words(object_info):
    kept = json.loads((KEPT / "Safe KSampler.json").read_text(encoding="utf-8"))
    for change, text in (
        ({"_inputs": [["model", "1.modle"]]}, "goes to 1.modle, which is not in the graph"),
        ({"_inputs": [["both", "1.model", "2.seed"]]}, "fields of the types"),
        ({"_outputs": [["LATENT", "2.7"]]}, "comes from 2.7, which is not in the graph"),
        ({"_outputs": [["LATENT", "2"]]}, "write NODE.FIELD or NODE.SLOT"),
    ):
        with pytest.raises(ConvertError, match=text):
            to_blueprint({**kept, **change}, object_info)
    with pytest.raises(ConvertError, match="no input sead; inputs: model"):
        expand(load("Safe KSampler"), object_info, {"sead": 1})
