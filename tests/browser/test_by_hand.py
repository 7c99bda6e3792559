"""What a person does with mouse and keyboard: the template browser, the node search, links, Run."""

from __future__ import annotations

import json
from io import BytesIO

from PIL import Image

from safeguidance.headless.author import to_ui
from safeguidance.headless.hosts import PACK_ROOT

from .test_examples import NAMES, RUNNABLE

GUIDER = "SafeGuidance_SafeCFGGuider"
GRAPHS = PACK_ROOT / "tools" / "data" / "graphs"


def open_flat(editor, name):
    """Open the graph of an example as one would draw it, without subgraphs."""
    graph = json.loads((GRAPHS / f"{name}.json").read_text(encoding="utf-8"))
    editor.call("show", workflow=to_ui(graph, editor.server.object_info()))
    editor.call("view")


def test_the_template_browser_shows_and_opens_an_example(editor):
    shown = editor.call("pick", pack=editor.pack, name=RUNNABLE[0], count=len(NAMES))
    assert [name for name in NAMES if name not in shown["cards"]] == []
    # The thumbnails are 512 pixels wide; the stand-in for a missing one is not.
    assert shown["widths"].count(512) == len(NAMES)
    opened = editor.nodes()
    assert "SafeGuidance_LoadTestbed" in {node["type"] for node in opened.values()}
    # The dialog also asks for the host's own templates, which not every host has installed.
    assert [error for error in editor.errors() if editor.pack in error["url"] + error["text"]] == []


def test_the_editor_finds_the_help_page_of_every_node_of_ours(editor):
    ours = [name for name in editor.server.object_info() if name.startswith("SafeGuidance_")]
    assert ours
    for name in ours:
        page = editor.server.get(f"/extensions/{editor.pack}/docs/{name}.md")
        assert page.decode("utf-8").startswith("# "), name


def test_the_info_button_shows_the_help_page(editor):
    editor.call("load", pack=editor.pack, name="safecfg_guider")
    editor.call("view")
    guider = next(node for node in editor.nodes().values() if node["type"] == GUIDER)
    text = editor.call("help", node=guider["id"])
    editor.screenshot("help")
    assert "Works with, does not work with" in text
    assert "Errors and what to do" in text
    # The editor asks for a translation first and takes the plain page where there is none.
    assert [error for error in editor.errors() if not error["url"].endswith(f"/docs/{GUIDER}/en.md")] == []


def test_a_guider_is_found_wired_and_run_by_hand(editor):
    open_flat(editor, "safecfg_guider")
    old = next(node for node in editor.nodes().values() if node["type"] == GUIDER)
    before = editor.call("prompt")
    links = {name: value for name, value in before[old["id"]]["inputs"].items() if isinstance(value, list)}
    users = [
        (key, name, value[1])
        for key, node in before.items()
        for name, value in node["inputs"].items()
        if isinstance(value, list) and value[0] == old["id"]
    ]
    assert links
    assert users
    editor.call("remove", node=old["id"])
    added = editor.call("add", name="SafeCFG Guider", x=old["box"][0] + 10, y=old["box"][1] + 40)
    assert added["type"] == GUIDER
    nodes = editor.nodes()
    for name, (source, slot) in links.items():
        output = nodes[source]["outputs"][slot]
        editor.call("wire", source=source, output=output, target=added["id"], input=name)
    for target, name, slot in users:
        editor.call("wire", source=added["id"], output=added["outputs"][slot], target=target, input=name)
    wired = editor.call("prompt")
    assert {name: wired[added["id"]]["inputs"].get(name) for name in links} == {
        name: list(value) for name, value in links.items()
    }
    for target, name, slot in users:
        assert wired[target]["inputs"][name] == [added["id"], slot]
    editor.screenshot("by-hand-wired")
    done = editor.run()
    report = next(key for key, node in wired.items() if node["class_type"] == "SafeGuidance_SafetyReport")
    editor.call("pictures", nodes=list(done["shown"]))
    assert done["outputs"][report]["text"], "the report says nothing"
    (saver,) = (key for key, node in wired.items() if node["class_type"] == "SaveImage")
    with Image.open(BytesIO(editor.server.view(done["shown"][saver][0]))) as pair:
        left = pair.convert("RGB").crop((0, 0, 512, 512))
        right = pair.convert("RGB").crop((pair.width - 512, 0, pair.width, 512))
    assert left.tobytes() != right.tobytes(), "guarded and unguarded are the same picture"
    editor.call("view")
    editor.screenshot("by-hand")
    assert editor.errors() == []


def test_blueprints_are_found_and_one_takes_a_samplers_place(editor):
    open_flat(editor, "safecfg_model_patch")
    nodes, before = editor.nodes(), editor.call("prompt")
    patch = next(key for key, node in before.items() if node["class_type"] == "SafeGuidance_SafeCFGPatch")
    old = next(key for key, node in before.items() if node["inputs"].get("model") == [patch, 0])
    loader = next(key for key, node in before.items() if node["class_type"] == "SafeGuidance_LoadHGR")
    decode = next(key for key, node in before.items() if node["inputs"].get("samples") == [old, 0])
    links = {name: value for name, value in before[old]["inputs"].items() if isinstance(value, list)}
    links |= {"model": before[patch]["inputs"]["model"], "redirector": [loader, 0]}
    editor.call("remove", node=old)
    names = sorted(path.stem for path in (PACK_ROOT / "subgraphs").glob("*.json"))
    x, y = nodes[old]["box"][0] + 10, nodes[old]["box"][1] + 40
    shown = editor.call("search", name="Safe ", x=x, y=y)
    assert [name for name in names if not any(name in option for option in shown)] == []
    added = editor.call("add", name="Safe KSampler", x=x, y=y)
    assert added["title"] == "Safe KSampler"
    file = json.loads((PACK_ROOT / "subgraphs" / "Safe KSampler.json").read_text(encoding="utf-8"))
    (inside,) = file["definitions"]["subgraphs"]
    assert {slot["name"] for slot in added["inputs"]} == {entry["name"] for entry in inside["inputs"]}
    assert {"seed", "steps", "cfg", "sampler_name", "scheduler", "denoise", "preset"} <= set(added["widgets"])
    for name, (source, slot) in links.items():
        output = editor.nodes()[source]["outputs"][slot]
        editor.call("wire", source=source, output=output, target=added["id"], input=name)
    editor.call("wire", source=added["id"], output="LATENT", target=decode, input="samples")
    report = next(key for key, node in before.items() if node["class_type"] == "SafeGuidance_SafetyReport")
    editor.call("wire", source=added["id"], output="trace", target=report, input="trace")
    wired = editor.call("prompt")
    within = {node["class_type"]: key for key, node in wired.items() if key.startswith(f"{added['id']}:")}
    assert set(within) == {"SafeGuidance_SafeCFGPatch", "KSampler"}
    assert wired[decode]["inputs"]["samples"] == [within["KSampler"], 0]
    assert wired[within["SafeGuidance_SafeCFGPatch"]]["inputs"]["redirector"] == [loader, 0]
    for name, link in links.items():
        owner = "SafeGuidance_SafeCFGPatch" if name in ("model", "redirector") else "KSampler"
        assert wired[within[owner]]["inputs"][name] == link, name
    done = editor.run()
    assert done["outputs"][report]["text"], "the report says nothing"
    editor.call("pictures", nodes=list(done["shown"]))
    editor.call("view")
    editor.screenshot("blueprint")
    assert editor.errors() == []
