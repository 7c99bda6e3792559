"""Every example workflow opens in the editor, runs, and shows its pictures."""

from __future__ import annotations

import json

import pytest
from PIL import Image, ImageChops

from safeguidance.headless.convert import to_api
from safeguidance.headless.hosts import PACK_ROOT
from tools.thumbnails import runs_alone

EXAMPLES = sorted((PACK_ROOT / "example_workflows").glob("*.json"))
NAMES = [path.stem for path in EXAMPLES]


def types_of(path):
    flow = json.loads(path.read_text(encoding="utf-8"))
    parts = flow.get("definitions", {}).get("subgraphs", [])
    return [node["type"] for node in [*flow["nodes"], *(node for part in parts for node in part["nodes"])]]


# The others need a checkpoint or a prompt file of the user's own, so they are opened only.
RUNNABLE = [path.stem for path in EXAMPLES if runs_alone(types_of(path))]


def open_example(editor, name):
    """Open one; return (nodes on the canvas, the graph as the editor would queue it)."""
    editor.call("load", pack=editor.pack, name=name)
    editor.call("view")
    nodes = editor.nodes()
    unknown = [node["type"] for node in nodes.values() if not node["known"]]
    assert not unknown, f"the editor does not know {unknown}"
    assert editor.call("dialogs") == [], "the editor complains in a dialog"
    return nodes, editor.call("prompt")


def changed(before, after, box):
    """Return which share of a box of the window differs between two screenshots, 0 to 1."""
    left, top, width, height = (round(value) for value in box)
    parts = []
    for path in (before, after):
        with Image.open(path) as picture:
            parts.append(picture.convert("RGB").crop((left, top, left + width, top + height)))
    same = ImageChops.difference(*parts).convert("L").histogram()[0]
    return 1 - same / (width * height)


def test_there_are_examples_to_run():
    assert len(RUNNABLE) >= 3


def test_the_editor_lists_every_example(editor):
    assert sorted(editor.call("templates")[editor.pack]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_example_opens_as_it_was_written(editor, name):
    nodes, prompt = open_example(editor, name)
    workflow = json.loads((PACK_ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))
    assert sorted(nodes) == sorted(str(node["id"]) for node in workflow["nodes"])
    meant = to_api(workflow, editor.server.object_info())
    assert {key: node["class_type"] for key, node in prompt.items()} == {
        key: node["class_type"] for key, node in meant.items()
    }
    for key, node in meant.items():
        assert prompt[key]["inputs"] == node["inputs"], f"node {key} ({node['class_type']})"
    assert editor.errors() == []


@pytest.mark.parametrize("name", RUNNABLE)
def test_an_example_runs_and_shows_its_pictures(editor, name):
    nodes, prompt = open_example(editor, name)
    before = editor.screenshot(f"{name}-before")
    done = editor.run()
    assert done["status"]["status_str"] == "success"
    reports = {key for key, node in prompt.items() if node["class_type"] == "SafeGuidance_SafetyReport"}
    assert reports <= set(done["shown"]), "no report picture"
    assert len(done["shown"]) > len(reports), "no picture but the report"
    assert not reports or [key for key in reports if not nodes[key]["folded"]], "no report to be seen"
    shown = {key: images for key, images in done["shown"].items() if not nodes[key]["folded"]}
    editor.call("pictures", nodes=list(shown))
    editor.call("view")
    after = editor.screenshot(name)
    nodes = editor.nodes()
    for key, images in shown.items():
        assert len(nodes[key]["images"]) == len(images), f"node {key} shows another number of pictures than it made"
        assert all(width > 0 and height > 0 for width, height in nodes[key]["images"])
        share = changed(before, after, nodes[key]["box"])
        assert share > 0.05, f"node {key} ({nodes[key]['title']}): no picture was drawn"
    for key in reports & set(shown):
        editor.call("view", nodes=[key])
        editor.screenshot(f"{name}-report-{key}")
    assert editor.errors() == []
