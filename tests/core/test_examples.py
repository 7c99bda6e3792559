"""Example workflows are read as they open: few nodes, one note, a large result, the size that fits a small window."""

from __future__ import annotations

import itertools
import json
import re

import pytest

from safeguidance.headless.definitions import ConvertError
from safeguidance.headless.hosts import PACK_ROOT
from tools import scene

FILES = {path.stem: path for path in sorted((PACK_ROOT / "example_workflows").glob("*.json"))}
GRAPHS = PACK_ROOT / "tools" / "data" / "graphs"
RESULTS = {"SaveImage", "PreviewImage", "SaveAnimatedWEBP", "SaveVideo"}
# ImageCompare draws in Nodes 2.0 only.
ONE_RENDERER = {"ImageCompare"}
MENTION = re.compile(r"(?:\*(\w+)\*:?|\b(cfg)) (\d+(?:\.\d+)?)\b")


def load(name):
    return json.loads(FILES[name].read_text(encoding="utf-8"))


def all_nodes(flow):
    inside = [node for part in flow.get("definitions", {}).get("subgraphs", []) for node in part["nodes"]]
    return [*flow["nodes"], *inside]


def test_the_first_one_comes_first():
    assert min(FILES) == "1_start_here"


@pytest.mark.parametrize("name", FILES)
def test_it_is_few_nodes_and_one_note(name):
    flow = load(name)
    assert len(flow["nodes"]) <= 10
    assert [node["type"] for node in all_nodes(flow)].count("MarkdownNote") == 1
    assert not ONE_RENDERER & {node["type"] for node in all_nodes(flow)}


@pytest.mark.parametrize("name", FILES)
def test_no_word_of_its_note_is_written_as_code(name):
    """Nodes 2.0 draws code in blue on the brown of a note, which nobody reads at the zoom it opens with."""
    notes = [node["widgets_values"][0] for node in all_nodes(load(name)) if node["type"] == "MarkdownNote"]
    assert [note for note in notes if "`" in note] == []


@pytest.mark.parametrize("window", scene.WINDOWS)
@pytest.mark.parametrize("name", FILES)
def test_it_opens_large_enough_to_read(name, window):
    assert scene.zoom(load(name), window) >= scene.ZOOM


@pytest.mark.parametrize("name", FILES)
def test_no_two_nodes_overlap_at_the_size_that_they_need(name):
    boxes = {str(node["id"]): scene.place(node) for node in load(name)["nodes"]}
    for (one, first), (other, second) in itertools.combinations(boxes.items(), 2):
        assert not first.overlaps(second), f"nodes {one} and {other}"


@pytest.mark.parametrize("name", FILES)
def test_before_and_after_are_one_large_picture(name):
    flow = load(name)
    (result,) = [node for node in flow["nodes"] if re.match("Left: .+ Right: ", node.get("title") or "")]
    assert result["type"] in RESULTS
    assert result["size"][0] >= 700
    graph = json.loads((GRAPHS / f"{name}.json").read_text(encoding="utf-8"))
    source = next(value for value in graph[str(result["id"])]["inputs"].values() if isinstance(value, list))[0]
    while graph[source]["class_type"] == "CreateVideo":
        source = graph[source]["inputs"]["images"][0]
    stitched = graph[source]
    assert stitched["class_type"] == "ImageStitch"
    samplers = [_sampler_of(graph, stitched["inputs"][side][0]) for side in ("image1", "image2")]
    assert [graph[each]["_meta"]["title"].rpartition(", ")[2] for each in samplers] == ["unguarded", "guarded"]
    first, second = (_seed(graph, each) for each in samplers)
    assert first == second


def _sampler_of(graph, node):
    while graph[node]["class_type"] not in ("KSampler", "SamplerCustomAdvanced"):
        fields = graph[node]["inputs"]
        node = (fields.get("image") or fields.get("samples"))[0]
    return node


def _seed(graph, node):
    fields = graph[node]["inputs"]
    return fields["seed"] if "seed" in fields else graph[fields["noise"][0]]["inputs"]["noise_seed"]


def mentions():
    for name in FILES:
        graph = json.loads((GRAPHS / f"{name}.json").read_text(encoding="utf-8"))
        for note in graph["_notes"]:
            for starred, plain, number in MENTION.findall(note["text"]):
                yield pytest.param(graph, starred or plain, float(number), id=f"{name}-{starred or plain}-{number}")


@pytest.mark.parametrize(("graph", "field", "number"), list(mentions()))
def test_numbers_in_notes_are_those_of_the_widgets(graph, field, number):
    fields = [node["inputs"] for key, node in graph.items() if not key.startswith("_")]
    values = [each[field] for each in fields if isinstance(each.get(field), (int, float))]
    assert values, f"no node has a number {field}"
    assert set(values) == {number}


def test_a_graph_that_is_wider_is_seen():
    flow = load("1_start_here")
    for node in flow["nodes"]:
        node["pos"][0] *= 1.05
    assert scene.zoom(flow, scene.WINDOWS[1]) < scene.ZOOM


def test_a_column_that_is_too_high_is_refused():
    flow = load("1_start_here")
    flow["nodes"] = [node for node in flow["nodes"] if node["type"] != "MarkdownNote"]
    names = [str(node["id"]) for node in flow["nodes"] if str(node["id"]) != "30"]
    with pytest.raises(ConvertError, match="more than there is"):
        scene.arrange(flow, {"left": names, "result": "30"})
