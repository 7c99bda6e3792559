"""Conversion between the executor's and the editor's workflow formats, on recorded node definitions."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from safeguidance.headless.author import to_ui
from safeguidance.headless.convert import is_api_format, is_ui_format, to_api
from safeguidance.headless.definitions import ConvertError, walk_specs
from safeguidance.headless.layout import Box
from safeguidance.headless.workflow import apply_seed, apply_settings, load, prepare

INFO: dict[str, Any] = json.loads((Path(__file__).parents[2] / "tools" / "data" / "object_info.json").read_text())


def node(class_type: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"class_type": class_type, "inputs": inputs}
    return {**made, "_meta": {"title": title}} if title else made


SAMPLED = {
    "4": node("CheckpointLoaderSimple", ckpt_name="tiny.safetensors"),
    "5": node("EmptyLatentImage", width=64, height=64, batch_size=1),
    "6": node("CLIPTextEncode", "Positive", clip=["4", 1], text="a red circle\non {blue|green}"),
    "7": node("CLIPTextEncode", "Negative", clip=["4", 1], text=""),
    "3": node(
        "KSampler", model=["4", 0], seed=2**53 + 1, steps=4, cfg=3.5, sampler_name="euler",
        scheduler="normal", positive=["6", 0], negative=["7", 0], latent_image=["5", 0], denoise=1.0,
    ),
    "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
    "9": node("SaveImage", images=["8", 0], filename_prefix="x"),
}  # fmt: skip
CUSTOM = {
    **{key: SAMPLED[key] for key in ("4", "5", "6", "7")},
    "10": node("RandomNoise", noise_seed=7),
    "11": node("CFGGuider", model=["4", 0], positive=["6", 0], negative=["7", 0], cfg=4.0),
    "12": node("KSamplerSelect", sampler_name="dpmpp_2m"),
    "13": node("BasicScheduler", model=["4", 0], scheduler="simple", steps=["17", 0], denoise=1.0),
    "14": node(
        "SamplerCustomAdvanced",
        noise=["10", 0],
        guider=["11", 0],
        sampler=["12", 0],
        sigmas=["13", 0],
        latent_image=["5", 0],
    ),
    "15": node("VAEDecode", samples=["14", 1], vae=["4", 2]),
    "16": node("PreviewImage", images=["15", 0]),
    "17": node("PrimitiveInt", "Steps", value=6),
}
DYNAMIC = {
    "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
    "2": node("BatchImagesNode", **{"images.image0": ["1", 0], "images.image1": ["1", 0]}),
    "3": node(
        "ResizeImageMaskNode",
        input=["2", 0],
        resize_type="scale dimensions",
        **{"resize_type.width": 16, "resize_type.height": 16, "resize_type.crop": "center"},
        scale_method="area",
    ),
    "shown": node("PreviewImage", images=["3", 0]),
}
GRAPHS = {"ksampler": SAMPLED, "custom": CUSTOM, "dynamic": DYNAMIC}


def saved(graph: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Convert as the command does, through a file's JSON."""
    return json.loads(json.dumps(to_ui(graph, INFO, **more)))


def ui_node(ui: dict[str, Any], node_id: Any) -> dict[str, Any]:
    return next(entry for entry in ui["nodes"] if entry["id"] == node_id)


@pytest.mark.parametrize("name", GRAPHS)
def test_there_and_back_is_the_identity(name):
    assert to_api(saved(GRAPHS[name]), INFO) == GRAPHS[name]


@pytest.mark.parametrize("name", GRAPHS)
def test_input_order_follows_the_definition(name):
    for entry in to_api(saved(GRAPHS[name]), INFO).values():
        names = [spec.name for spec in walk_specs(INFO[entry["class_type"]], dict(entry["inputs"]))]
        assert list(entry["inputs"]) == [field for field in names if field in entry["inputs"]]


@pytest.mark.parametrize("name", GRAPHS)
def test_the_saved_file_is_consistent(name):
    ui = saved(GRAPHS[name], title=name, core_version="0.33.0")
    assert is_ui_format(ui)
    assert not is_api_format(ui)
    assert ui["version"] == 0.4
    assert ui["last_link_id"] == len(ui["links"])
    for link_id, origin, origin_slot, target, target_slot, kind in ui["links"]:
        assert link_id in ui_node(ui, origin)["outputs"][origin_slot]["links"]
        assert ui_node(ui, target)["inputs"][target_slot]["link"] == link_id
        assert ui_node(ui, origin)["outputs"][origin_slot]["type"] == kind
    boxes = [Box(*entry["pos"], *entry["size"]) for entry in ui["nodes"]]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    for entry in ui["nodes"]:
        assert entry["properties"]["Node name for S&R"] == entry["type"]
        assert entry["properties"]["cnr_id"] == "comfy-core"
        assert entry["properties"]["ver"] == "0.33.0"


def test_data_runs_left_to_right():
    ui = saved(CUSTOM)
    for _, origin, _, target, _, _ in ui["links"]:
        assert ui_node(ui, origin)["pos"][0] < ui_node(ui, target)["pos"][0]


def test_a_seed_gets_its_hidden_control():
    values = ui_node(saved(SAMPLED), 3)["widgets_values"]
    assert values == [2**53 + 1, "fixed", 4, 3.5, "euler", "normal", 1.0]
    assert ui_node(saved(CUSTOM), 10)["widgets_values"] == [7, "fixed"]


def test_a_seed_without_its_control_is_read_too():
    ui = saved(SAMPLED)
    ui_node(ui, 3)["widgets_values"].remove("fixed")
    assert to_api(ui, INFO) == SAMPLED


def test_a_seed_that_became_a_link():
    graph = {**CUSTOM, "10": node("RandomNoise", noise_seed=["17", 0])}
    ui = saved(graph)
    entry = ui_node(ui, 10)
    assert entry["inputs"][0]["widget"] == {"name": "noise_seed"}
    assert entry["widgets_values"] == [0, "fixed"]
    assert to_api(ui, INFO) == graph


def test_our_nodes_carry_the_packs_name():
    info = copy.deepcopy(INFO)
    info["ImageInvert"]["python_module"] = "custom_nodes.safeguidance-under-test"
    info["PreviewImage"]["python_module"] = "custom_nodes.somebody_else"
    graph = {
        "1": DYNAMIC["1"],
        "2": node("ImageInvert", image=["1", 0]),
        "3": node("PreviewImage", images=["2", 0]),
    }
    ui = to_ui(graph, info, pack_version="1.2.3")
    assert ui_node(ui, 2)["properties"]["cnr_id"] == "safeguidance"
    assert ui_node(ui, 2)["properties"]["ver"] == "1.2.3"
    assert "cnr_id" not in ui_node(ui, 3)["properties"]


def test_notes_and_groups():
    graph = {
        **SAMPLED,
        "_title": "Named",
        "_notes": ["one **bold** remark", {"title": "Second", "text": "near the sampler", "near": "3"}],
        "_groups": [{"title": "Prompts", "nodes": ["6", "7"]}],
    }
    ui = saved(graph)
    assert ui["extra"]["info"]["name"] == "Named"
    notes = [entry for entry in ui["nodes"] if entry["type"] == "MarkdownNote"]
    assert [entry["title"] for entry in notes] == ["Note", "Second"]
    assert ui["last_node_id"] == 11
    around = Box(*ui["groups"][0]["bounding"])
    inside = [entry["id"] for entry in ui["nodes"] if around.overlaps(Box(*entry["pos"], *entry["size"]))]
    assert sorted(inside) == [6, 7]
    boxes = [Box(*entry["pos"], *entry["size"]) for entry in ui["nodes"]]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert to_api(ui, INFO) == SAMPLED


def test_muted_nodes_are_gone_and_their_links_too():
    ui = saved(SAMPLED)
    ui_node(ui, 7)["mode"] = 2
    api = to_api(ui, INFO)
    assert "7" not in api
    assert "negative" not in api["3"]["inputs"]
    assert api["3"]["inputs"]["positive"] == ["6", 0]


def test_bypassed_nodes_pass_the_first_input_of_the_same_type():
    graph = {
        "1": DYNAMIC["1"],
        "2": node("ImageInvert", image=["1", 0]),
        "3": node("ImageInvert", image=["2", 0]),
        "4": node("PreviewImage", images=["3", 0]),
    }
    ui = saved(graph)
    ui_node(ui, 2)["mode"] = ui_node(ui, 3)["mode"] = 4
    api = to_api(ui, INFO)
    assert api.keys() == {"1", "4"}
    assert api["4"]["inputs"]["images"] == ["1", 0]
    ui = saved(SAMPLED)
    ui_node(ui, 3)["mode"] = 4
    assert to_api(ui, INFO)["8"]["inputs"]["samples"] == ["5", 0]
    ui_node(ui, 8)["mode"] = 4
    assert "images" not in to_api(ui, INFO)["9"]["inputs"]


def test_reroutes_primitives_and_notes_dissolve():
    ui = saved(SAMPLED)
    reroute = {
        "id": 20,
        "type": "Reroute",
        "inputs": [{"name": "", "type": "*", "link": 101}],
        "outputs": [{}],
        "mode": 0,
    }
    primitive = {
        "id": 21,
        "type": "PrimitiveNode",
        "outputs": [{}],
        "widgets_values": [11, "randomize"],
        "mode": 0,
    }
    ui["nodes"] += [reroute, primitive, {"id": 22, "type": "Note", "widgets_values": ["hello"]}]
    sampler = ui_node(ui, 3)
    model = next(entry for entry in sampler["inputs"] if entry["name"] == "model")
    steps = next(entry for entry in sampler["inputs"] if entry["name"] == "steps")
    model["link"], steps["link"] = 100, 102
    ui["links"] += [[100, 20, 0, 3, 0, "MODEL"], [101, 4, 0, 20, 0, "MODEL"], [102, 21, 0, 3, 5, "INT"]]
    expected = copy.deepcopy(SAMPLED)
    expected["3"]["inputs"]["steps"] = 11
    assert to_api(ui, INFO) == expected


def test_links_written_as_objects():
    ui = saved(SAMPLED)
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    ui["links"] = [dict(zip(names, link, strict=True)) for link in ui["links"]]
    assert to_api(ui, INFO) == SAMPLED


def wire(number: int, origin: int, target: int, kind: str = "IMAGE") -> dict[str, Any]:
    ends = {"origin_id": origin, "origin_slot": 0, "target_id": target, "target_slot": 0}
    return {"id": number, **ends, "type": kind}


def subgraph(name: str, input_name: str, kind: str, nodes: list[Any], links: list[Any]) -> dict[str, Any]:
    ends = {"inputNode": {"id": -10}, "outputNode": {"id": -20}}
    inputs = [{"id": "i", "name": input_name, "type": kind}]
    outputs = [{"id": "o", "name": "IMAGE", "type": "IMAGE"}]
    return {"id": name, **ends, "inputs": inputs, "outputs": outputs, "nodes": nodes, "links": links}


def subgraph_workflow(**instance: Any) -> dict[str, Any]:
    """Use a subgraph, EmptyImage -> inner subgraph with ImageInvert, with one promoted widget."""
    image = {"name": "image", "type": "IMAGE", "link": 1}
    width = {"name": "width", "type": "INT", "widget": {"name": "width"}, "link": 1}
    invert = {"id": 1, "type": "ImageInvert", "inputs": [image], "outputs": [{}]}
    empty = {
        "id": 1,
        "type": "EmptyImage",
        "inputs": [width],
        "outputs": [{}],
        "widgets_values": [8, 8, 1, 0],
    }
    inner_use = {"id": 2, "type": "inner", "inputs": [{**image, "link": 2}], "outputs": [{}]}
    inner = subgraph("inner", "image", "IMAGE", [invert], [wire(1, -10, 1), wire(2, 1, -20)])
    wires = [wire(1, -10, 1, "INT"), wire(2, 1, 2), wire(3, 2, -20)]
    outer = subgraph("outer", "width", "INT", [empty, inner_use], wires)
    use = {"id": 5, "type": "outer", "inputs": [], "outputs": [{"type": "IMAGE"}], **instance}
    shown = {"id": 6, "type": "PreviewImage", "inputs": [{**image, "name": "images"}], "outputs": []}
    return {
        "nodes": [use, shown],
        "links": [[1, 5, 0, 6, 0, "IMAGE"]],
        "definitions": {"subgraphs": [outer, inner]},
        "version": 0.4,
    }


def test_subgraphs_are_flattened():
    api = to_api(subgraph_workflow(), INFO)
    assert api == {
        "5:1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "5:2:1": node("ImageInvert", image=["5:1", 0]),
        "6": node("PreviewImage", images=["5:2:1", 0]),
    }


def test_promoted_widgets_of_subgraphs():
    named = {
        "inputs": [{"name": "width", "type": "INT", "widget": {"name": "width"}, "link": None}],
        "widgets_values": [24],
    }
    assert to_api(subgraph_workflow(**named), INFO)["5:1"]["inputs"]["width"] == 24
    proxies = {"properties": {"proxyWidgets": [["1", "height"]]}, "widgets_values": [40]}
    inputs = to_api(subgraph_workflow(**proxies), INFO)["5:1"]["inputs"]
    assert (inputs["width"], inputs["height"]) == (8, 40)


def test_muted_and_bypassed_subgraphs():
    api = to_api(subgraph_workflow(mode=2), INFO)
    assert api.keys() == {"6"}
    assert api["6"]["inputs"] == {}
    assert to_api(subgraph_workflow(mode=4), INFO)["6"]["inputs"] == {}


def test_errors_say_what_is_wrong():
    with pytest.raises(ConvertError, match="no node type 'Ksampler'. Did you mean KSampler"):
        to_ui({"1": node("Ksampler")}, INFO)
    with pytest.raises(ConvertError, match=r"node 2 \(ImageInvert\): field strength does not exist .* Fields: image"):
        to_ui({"2": node("ImageInvert", strength=1)}, INFO)
    with pytest.raises(ConvertError, match="output 3 of node 1 .* which has 1 outputs"):
        to_ui({"1": DYNAMIC["1"], "2": node("ImageInvert", image=["1", 3])}, INFO)
    circle = {"1": node("ImageInvert", image=["2", 0]), "2": node("ImageInvert", image=["1", 0])}
    with pytest.raises(ConvertError, match="circle"):
        to_ui(circle, INFO)
    with pytest.raises(ConvertError, match="no workflow"):
        to_api({"hello": 1}, INFO)


def test_settings_and_seed_from_the_command_line(tmp_path):
    api = prepare(SAMPLED, INFO, ["3.steps=2", "Positive.text=a cat", "KSampler.scheduler=simple"], seed=5)
    assert api["3"]["inputs"]["steps"] == 2
    assert api["6"]["inputs"]["text"] == "a cat"
    assert api["3"]["inputs"]["seed"] == 5
    assert api["3"]["inputs"]["scheduler"] == "simple"
    assert SAMPLED["3"]["inputs"]["steps"] == 4
    assert apply_seed({"10": node("RandomNoise", noise_seed=["17", 0])}, 1) == []
    for text, said in (
        ("3.step=1", "Fields: .*steps"),
        ("CLIPTextEncode.text=x", "no node"),
        ("steps=1", "NODE.FIELD=VALUE"),
    ):
        with pytest.raises(ConvertError, match=said):
            apply_settings(copy.deepcopy(SAMPLED), [text], INFO)
    with pytest.raises(ConvertError, match="no field called seed"):
        prepare(DYNAMIC, INFO, seed=1)
    (tmp_path / "bad.json").write_text("{")
    for name in ("bad.json", "none.json"):
        with pytest.raises(ConvertError, match=name):
            load(tmp_path / name)
