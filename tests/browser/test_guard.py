"""Guard this workflow: in the editor as in files, taken back by one undo, and said on every sampler."""

from __future__ import annotations

import json
from collections import Counter
from io import BytesIO

import pytest
from PIL import Image

from safeguidance.headless.guard_plan import GUARD, survey
from safeguidance.headless.guarding import guard_workflow, read_scopes
from safeguidance.headless.hosts import PACK_ROOT

from . import workflows_special  # noqa: F401  (adds to WORKFLOWS)
from .workflows import WORKFLOWS

STOCK = [name for name, make in WORKFLOWS.items() if make().stock]
GUARD_IT, UNGUARD_IT = "Guard this workflow", "Unguard this workflow"
NOT_GUARDED = "not guarded: no guard before it"


@pytest.fixture(autouse=True, scope="module")
def classic_again(editor):
    yield
    editor.call("setting", name="Comfy.VueNodes.Enabled", value=False)


def _ours(editor):
    """Errors of the page, without those about pictures that these workflows only name."""
    return [error for error in editor.errors() if "/view?" not in error["url"]]


def found_here(workflow):
    """What Python says a workflow lacks, as JSON."""
    out = []
    for scope, _ in read_scopes(workflow):
        found = survey(scope)
        out.append(
            {
                "key": scope.key,
                "insertions": [
                    {"model": each.model, "clip": each.clip, "samplers": each.samplers} for each in found.insertions
                ],
                "asleep": found.asleep,
                "noClip": found.no_clip,
            }
        )
    return json.loads(json.dumps(out))


def wires(workflow):
    """Every link of a workflow: scope, both ends by the nodes' titles and the slots; and the mode of every node."""
    links, modes = Counter(), Counter()
    for scope, raw in read_scopes(workflow):
        titles = {node["id"]: node.get("title") or node["type"] for node in raw["nodes"]}
        modes.update((titles[node["id"]], node.get("mode", 0)) for node in raw["nodes"])
        for each in raw["links"]:
            _, origin, slot, target, place, _ = each[:6] if isinstance(each, list) else list(each.values())[:6]
            links[(scope.key, titles.get(origin, origin), slot, titles.get(target, target), place)] += 1
    return links, modes


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_editor_and_the_command_find_the_same(editor, name):
    shared = WORKFLOWS[name]()
    assert editor.call("survey", pack=editor.pack, workflow=shared.workflow) == found_here(shared.workflow)


@pytest.mark.parametrize("name", STOCK)
def test_the_open_graph_is_guarded_given_back_and_undone(editor, name):
    shared = WORKFLOWS[name]()
    editor.call("show", workflow=shared.workflow)
    before = editor.call("serialized")
    editor.call("command", id="SafeGuidance.Guard")
    after = editor.call("serialized")
    left = found_here(after)
    assert [scope for scope in left if scope["insertions"] or scope["asleep"]] == []
    assert sum(len(scope["noClip"]) for scope in left) == len(shared.no_clip)
    by_command = before if shared.no_clip else guard_workflow(shared.workflow)[0]
    assert _without_place(after) == _without_place(by_command)
    if not shared.guards and not shared.asleep:
        return
    editor.call("undo")
    assert wires(editor.call("serialized")) == wires(before), "one undo does not take it back"
    if not shared.asleep and GUARD not in json.dumps(shared.workflow):
        editor.call("command", id="SafeGuidance.Guard")
        editor.call("command", id="SafeGuidance.Unguard")
        assert wires(editor.call("serialized")) == wires(before)
    assert _ours(editor) == []


def _without_place(workflow):
    """Links and modes, with every guard under the same name, whatever its number."""
    for _, raw in read_scopes(workflow):
        for node in raw["nodes"]:
            if node["type"] == GUARD and not node.get("title"):
                node["title"] = "Guard Model"
    return wires(workflow)


@pytest.mark.parametrize("name", ["nested_subgraphs", "links_led_round", "several_checkpoints"])
def test_a_file_guarded_by_the_command_opens_guarded(editor, name):
    guarded, _ = guard_workflow(WORKFLOWS[name]().workflow)
    editor.call("show", workflow=guarded)
    shown = editor.call("serialized")
    assert wires(shown) == wires(guarded)
    assert all(not scope["insertions"] for scope in found_here(shown))
    assert _ours(editor) == []


@pytest.mark.parametrize("modern", [False, True], ids=["classic", "nodes 2.0"])
def test_the_menus_guard_and_unguard_and_the_badge_says_so(editor, modern):
    editor.call("setting", name="Comfy.VueNodes.Enabled", value=modern)
    editor.call("show", workflow=WORKFLOWS["hires_fix"]().workflow)
    editor.call("view", scale=0.7)
    first, second = (key for key, node in editor.nodes().items() if node["type"] == "KSampler")

    def said():
        found = editor.call("badges")
        drawn = found["page"] if modern else found["canvas"]
        return drawn[first], drawn[second]

    assert said() == ([NOT_GUARDED], [NOT_GUARDED])
    editor.screenshot(f"guard-{modern}-before")
    editor.call("menu", node=first, entry=GUARD_IT)
    (guard,) = (key for key, node in editor.nodes().items() if node["type"] == GUARD)
    assert said() == (["guarded"], ["guarded"])
    editor.call("view", scale=0.7)
    editor.screenshot(f"guard-{modern}-after")
    editor.call("undo")
    assert said() == ([NOT_GUARDED], [NOT_GUARDED])
    assert guard not in editor.nodes()
    editor.call("menu", at=editor.call("empty"), entry=GUARD_IT)
    assert said() == (["guarded"], ["guarded"])
    editor.call("mode", node=guard, mode=4)
    assert said() == (["not guarded: Guard Model is bypassed"],) * 2
    editor.call("menu", at=editor.call("empty"), entry=GUARD_IT)
    assert said() == (["guarded"], ["guarded"])
    assert sum(node["type"] == GUARD for node in editor.nodes().values()) == 1
    editor.call("menu", at=editor.call("empty"), entry=UNGUARD_IT)
    assert said() == ([NOT_GUARDED], [NOT_GUARDED])
    assert GUARD not in {node["type"] for node in editor.nodes().values()}
    assert _ours(editor) == []


def test_messages_are_in_the_editors_language(editor):
    editor.call("setting", name="Comfy.Locale", value="fr")
    editor.call("show", workflow=WORKFLOWS["hires_fix"]().workflow)
    editor.call("command", id="SafeGuidance.Guard")
    said = editor.call("text")
    editor.call("setting", name="Comfy.Locale", value="en")
    assert "Guard Model ajout\u00e9 : 1. Annuler l'enl\u00e8ve." in said


def test_badges_look_into_subgraphs_and_out_of_them(editor):
    editor.call("setting", name="Comfy.VueNodes.Enabled", value=False)
    shared = WORKFLOWS["subgraph_used_twice_with_a_lora_inside"]()
    editor.call("show", workflow=shared.workflow)
    inside = shared.workflow["definitions"]["subgraphs"][0]["id"]
    uses = [str(node["id"]) for node in shared.workflow["nodes"] if node["type"] == inside]

    def everywhere():
        outer = editor.call("badges")["canvas"]
        editor.call("enter", id=inside)
        (inner,) = (text for text in editor.call("badges")["canvas"].values() if text)
        editor.call("enter")
        return [outer[key] for key in uses], inner

    assert everywhere() == ([[NOT_GUARDED]] * 2, [NOT_GUARDED])
    editor.call("command", id="SafeGuidance.Guard")
    assert everywhere() == ([["guarded"]] * 2, ["guarded"])
    guards = [key for key, node in editor.nodes().items() if node["type"] == GUARD]
    assert len(guards) == 2
    editor.call("mode", node=guards[0], mode=4)
    assert everywhere()[1] == ["not guarded: Guard Model is bypassed"]


def test_the_examples_say_that_one_of_their_two_samplers_is_guarded(editor):
    editor.call("setting", name="Comfy.VueNodes.Enabled", value=False)
    said = {}
    for name in sorted(path.stem for path in (PACK_ROOT / "example_workflows").glob("*.json")):
        editor.call("load", pack=editor.pack, name=name)
        said[name] = [text for texts in editor.call("badges")["canvas"].values() for text in texts]
    # by a patch, a guider from outside its subgraph, or a prompt that was filtered; an aligned model needs no guard
    assert said.pop("align_model") == [NOT_GUARDED]
    assert said == dict.fromkeys(said, ["partly guarded: 1 of 2 samplers"])


def test_a_guard_of_strength_0_is_said_to_be_none(editor):
    editor.call("setting", name="Comfy.VueNodes.Enabled", value=False)
    editor.call("load", pack=editor.pack, name="safecfg_model_patch")
    patch = next(key for key, node in editor.nodes().items() if node["type"] == "SafeGuidance_SafeCFGPatch")

    def said():
        return [text for texts in editor.call("badges")["canvas"].values() for text in texts]

    # one of the two samplers in the subgraph is the unguarded one to compare with
    assert said() == ["partly guarded: 1 of 2 samplers"]
    editor.call("widget", node=patch, name="strength", value=0)
    (text,) = said()
    assert text.startswith("not guarded: ")


def test_a_guard_put_in_acts_and_taken_out_leaves_no_trace(editor):
    editor.call("setting", name="Comfy.VueNodes.Enabled", value=False)
    editor.call("load", pack=editor.pack, name="safecfg_model_patch")
    prompt = editor.call("prompt")
    ours = next(key for key, node in prompt.items() if node["class_type"] == "SafeGuidance_SafeCFGPatch")
    guarded = next(key for key, node in prompt.items() if node["inputs"].get("model") == [ours, 0])
    decoded = next(key for key, node in prompt.items() if node["inputs"].get("samples") == [guarded, 0])

    def other_picture():
        """The picture that is not behind the guard of the example."""
        shown, now = editor.run()["shown"], editor.call("prompt")
        (saver,) = (
            key
            for key in shown
            if now[key]["class_type"] == "SaveImage" and now[key]["inputs"]["images"] != [decoded, 0]
        )
        return Image.open(BytesIO(editor.server.view(shown[saver][0]))).convert("RGB").tobytes()

    plain = other_picture()
    editor.call("command", id="SafeGuidance.Guard")
    assert all("not guarded" not in " ".join(texts) for texts in editor.call("badges")["canvas"].values())
    assert other_picture() != plain
    editor.call("command", id="SafeGuidance.Unguard")
    assert {key: node["inputs"] for key, node in editor.call("prompt").items()} == {
        key: node["inputs"] for key, node in prompt.items()
    }
    assert editor.errors() == []
