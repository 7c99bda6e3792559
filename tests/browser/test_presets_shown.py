"""Presets in the editor: fields show numbers and never -1, old graphs mean what they meant, and what is queued too."""

from __future__ import annotations

import json

import pytest

from safeguidance.headless.convert import to_api
from safeguidance.headless.hosts import PACK_ROOT

PREFIX = "SafeGuidance_"
ADVANCED = "Comfy.Node.AlwaysShowAdvancedWidgets"
MODERN = "Comfy.VueNodes.Enabled"
UNSET = (-1, "as preset")


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes 2.0"])
def renderer(editor, request):
    editor.call("setting", name=MODERN, value=request.param)
    editor.call("setting", name=ADVANCED, value=True)
    yield request.param
    editor.call("setting", name=MODERN, value=False)
    editor.call("setting", name=ADVANCED, value=False)


@pytest.fixture(scope="module")
def presets(editor):
    """Type -> (input that chooses, presets), as the host serves them."""
    found = {}
    for kind, info in editor.server.object_info().items():
        for group in ("required", "optional"):
            for name, spec in info["input"].get(group, {}).items():
                hints = spec[1].get("safeguidance", {}) if len(spec) > 1 else {}
                if "presets" in hints:
                    found[kind] = (name, hints["presets"])
    return found


def show(editor, *kinds):
    """Put nodes of some types on an empty canvas: (type, values of the widgets or None for a new one)."""
    nodes = [
        {
            "id": number,
            "type": kind,
            "pos": [60 + 440 * (number - 1), 120],
            "size": [400, 300],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "properties": {},
            **({} if values is None else {"widgets_values": list(values)}),
        }
        for number, (kind, values) in enumerate(kinds, 1)
    ]
    graph = {"id": "t", "revision": 0, "last_node_id": len(nodes), "last_link_id": 0, "nodes": nodes, "links": []}
    editor.call("show", workflow={**graph, "groups": [], "config": {}, "extra": {}, "version": 0.4})
    editor.call("view", scale=1)


def read(editor, number=1):
    """What the widgets of a node hold; numbers as numbers."""
    out = {}
    for name, text in editor.nodes()[str(number)]["widgets"].items():
        try:
            out[name] = float(text)
        except ValueError:
            out[name] = text
    return out


def queued(editor, number=1):
    return editor.call("prompt")[str(number)]["inputs"]


def test_every_node_with_presets_says_their_numbers(presets):
    kinds = {kind.removeprefix(PREFIX) for kind, (name, _) in presets.items() if name == "preset"}
    assert kinds == {
        "SafeCFGGuider",
        "SafeCFGPatch",
        "SPGuardMask",
        "SPGuardGuider",
        "CRG",
        "SafreeEmbeddingFilter",
        "SafeConditioning",
    }
    assert presets[PREFIX + "ConceptGuidance"][0] == "method"


def test_a_new_node_shows_numbers_and_queues_what_a_graph_without_them_means(editor, renderer, presets):
    for kind, (choice, values) in presets.items():
        show(editor, (kind, None))
        shown = read(editor)
        chosen = values[shown[choice]]
        assert {field: shown[field] for field in chosen} == pytest.approx(chosen) or _words(chosen, shown)
        visible = editor.call("fields", node="1", page=renderer)
        assert set(chosen) <= set(visible)
        assert [name for name, text in visible.items() if text.startswith("-1")] == [], kind
        sent = queued(editor)
        assert all(sent[field] in UNSET for field in chosen), kind


def _words(chosen, shown):
    return all(shown[field] == value for field, value in chosen.items())


def test_choosing_fills_the_fields_and_typing_makes_it_custom(editor, renderer):
    show(editor, (PREFIX + "SafeCFGPatch", None))
    editor.call("pick_value", node="1", name="preset", value="light", page=renderer)
    shown = read(editor)
    assert (shown["preset"], shown["strength"], shown["end"]) == ("light", 0.75, 0.6)
    sent = queued(editor)
    assert (sent["preset"], sent["strength"], sent["end"]) == ("light", -1, -1)
    editor.screenshot(f"preset-{renderer}-light")
    editor.call("pick_value", node="1", name="strength", value=1.1, page=renderer)
    shown = read(editor)
    assert (shown["preset"], shown["strength"], shown["end"]) == ("custom", 1.1, 0.6)
    sent = queued(editor)
    assert (sent["preset"], sent["strength"], sent["end"]) == ("custom", 1.1, 0.6)
    editor.screenshot(f"preset-{renderer}-custom")
    editor.call("undo")
    shown = read(editor)
    # Nodes 2.0 takes a choice and the number typed after it back together, those of the host's own nodes too
    before = [("light", 0.75, 0.6), ("balanced", 1.0, 1.0)][: 2 if renderer else 1]
    assert (shown["preset"], shown["strength"], shown["end"]) in before
    editor.call("pick_value", node="1", name="preset", value="strict", page=renderer)
    editor.call("pick_value", node="1", name="start", value=0.1, page=renderer)
    shown = read(editor)
    assert shown["start"] == 0.1
    assert (shown["preset"], shown["strength"], shown["end"]) == ("strict", 1.25, 1.0)


@pytest.mark.parametrize(
    ("kind", "saved", "shown", "sent"),
    [
        (
            "SafeCFGPatch",
            ["light", -1, 0, -1, -1, True, False],
            {"preset": "light", "strength": 0.75, "end": 0.6},
            {"preset": "light", "strength": -1, "end": -1, "threshold": -1},
        ),
        (
            "SafeCFGPatch",
            ["strict", 1.1, 0, -1, 0.3, True, False],
            {"preset": "custom", "strength": 1.1, "end": 1.0, "threshold": 0.3},
            {"preset": "custom", "strength": 1.1, "end": 1.0, "threshold": 0.3},
        ),
        (
            "SafeCFGPatch",
            ["strict", 1.25, 0, -1, -1, True, False],
            {"preset": "strict", "strength": 1.25, "end": 1.0},
            {"preset": "strict", "strength": 1.25, "end": -1},
        ),
        (
            "SafreeEmbeddingFilter",
            ["a cat", "light", "whole schedule", -1, "as preset"],
            {"preset": "custom", "hold": "whole schedule", "alpha": 0.05, "scope": "tokens"},
            {"preset": "custom", "hold": "whole schedule", "alpha": 0.05, "scope": "tokens"},
        ),
        (
            "CRG",
            ["strict"],
            {"preset": "strict", "strength": 3.0, "threshold": 0.3},
            {"preset": "strict", "strength": -1, "threshold": -1},
        ),
        (
            "ConceptGuidance",
            ["SEGA", 1, 1, "nearest", -1, -1, 0.8, -1, -1, "negative"],
            {"method": "SEGA", "start": 0.2, "quantile": 0.8, "momentum": 0.1},
            {"method": "SEGA", "start": -1, "threshold": -1, "quantile": 0.8, "momentum": -1},
        ),
    ],
)
def test_an_old_graph_means_what_it_meant(editor, renderer, kind, saved, shown, sent):
    show(editor, (PREFIX + kind, saved))
    values = read(editor)
    assert {name: values[name] for name in shown} == shown
    values = queued(editor)
    assert {name: values[name] for name in sent} == sent


def test_what_is_saved_is_what_is_queued(editor, renderer, presets):
    rows = [(kind, None) for kind in presets]
    show(editor, *rows)
    editor.call("view")
    editor.call("widget", node="2", name="preset", value="strict")
    editor.call("widget", node="3", name="preset", value="custom")
    saved, prompt = editor.call("serialized"), editor.call("prompt")
    by_file = to_api(json.loads(json.dumps(saved)), editor.server.object_info())
    assert {key: node["inputs"] for key, node in by_file.items()} == {k: node["inputs"] for k, node in prompt.items()}
    editor.call("show", workflow=saved)
    assert editor.call("prompt") == prompt
    again = editor.call("serialized")
    assert [(n["id"], n["widgets_values"]) for n in again["nodes"]] == [
        (n["id"], n["widgets_values"]) for n in saved["nodes"]
    ]


def test_a_threshold_of_ones_own_is_asked_for_with_a_switch(editor, renderer):
    for kind in ("SafeCFGPatch", "SafeConditioning"):
        show(editor, (PREFIX + kind, None))
        assert "threshold" not in editor.call("fields", node="1", page=renderer)
        editor.call("widget", node="1", name="own threshold", value=True)
        assert read(editor)["threshold"] == queued(editor)["threshold"] == 0.5
        assert "threshold" in editor.call("fields", node="1", page=renderer)
        editor.call("widget", node="1", name="own threshold", value=False)
        assert queued(editor)["threshold"] == -1
        assert "threshold" not in editor.call("fields", node="1", page=renderer)
        assert "own threshold" not in queued(editor)


def test_a_preset_from_outside_a_subgraph_is_followed(editor):
    blueprint = json.loads((PACK_ROOT / "subgraphs" / "Safe KSampler.json").read_text(encoding="utf-8"))
    editor.call("show", workflow=blueprint)
    (outer,) = editor.nodes()
    for preset in ("strict", "light"):
        editor.call("widget", node=outer, name="preset", value=preset)
        prompt = editor.call("prompt")
        (patch,) = (n["inputs"] for n in prompt.values() if n["class_type"] == PREFIX + "SafeCFGPatch")
        assert (patch["preset"], patch["strength"], patch["end"]) == (preset, -1, -1)
    (definition,) = blueprint["definitions"]["subgraphs"]
    editor.call("enter", id=definition["id"])
    assert "by the linked preset" in " ".join(editor.call("labels"))
    editor.call("enter")
