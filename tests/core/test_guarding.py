"""Guard Model in workflow files: where it is put, what is left alone, and that taking it out gives the file back."""

import copy
import json
from pathlib import Path

import pytest

from safeguidance.__main__ import main
from safeguidance.headless.definitions import ConvertError
from safeguidance.headless.guard_plan import survey, table
from safeguidance.headless.guarding import (
    GUARD,
    SETTINGS,
    Node,
    guard_workflow,
    plan,
    read_scopes,
    unguard_workflow,
)
from tests.browser import workflows_special  # noqa: F401  (adds to WORKFLOWS)
from tests.browser.workflows import WORKFLOWS

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "example_workflows"
STOCK = Node("KSampler", {"model": ("MODEL", ("1", 0)), "positive": ("CONDITIONING", ("3", 0))}, ("LATENT",))
GRAPH = {
    "1": Node("CheckpointLoaderSimple", {}, ("MODEL", "CLIP", "VAE")),
    "2": Node("LoraLoader", {"model": ("MODEL", ("1", 0)), "clip": ("CLIP", ("1", 1))}, ("MODEL", "CLIP")),
    "3": Node("CLIPTextEncode", {"clip": ("CLIP", ("2", 1))}, ("CONDITIONING",)),
    "4": Node("KSampler", {"model": ("MODEL", ("2", 0)), "positive": ("CONDITIONING", ("3", 0))}, ("LATENT",)),
    "5": Node("BasicScheduler", {"model": ("MODEL", ("2", 0))}, ("SIGMAS",)),
    "6": Node("BasicGuider", {"model": ("MODEL", ("2", 0)), "conditioning": ("CONDITIONING", ("3", 0))}, ("GUIDER",)),
    "7": Node("ModelSave", {"model": ("MODEL", ("2", 0))}, ()),
    "8": Node("FluxGuidance", {"conditioning": ("CONDITIONING", ("3", 0))}, ("CONDITIONING",)),
    "9": Node("Detailer", {"model": ("MODEL", ("1", 0)), "positive": ("CONDITIONING", ("8", 0))}, ("IMAGE",)),
}


def test_one_guard_for_each_model_that_is_sampled_with_its_prompts_clip():
    first, second = sorted(plan(GRAPH), key=lambda found: found.model)
    assert (first.model, first.clip, first.samplers) == (("1", 0), ("2", 1), (("9", "model"),))
    assert (second.model, second.clip) == (("2", 0), ("2", 1))
    assert set(second.samplers) == {("4", "model"), ("6", "model")}


@pytest.mark.parametrize("kind", [GUARD, "SafeGuidance_SafeCFGPatch", "SafeGuidance_SPGuardMask"])
def test_a_guarded_model_is_left_alone_also_behind_further_patches(kind):
    between = {
        "2": Node(kind, {"model": ("MODEL", ("1", 0))}, ("MODEL",)),
        "r": Node("Reroute", {"": ("*", ("2", 0))}, ("MODEL",)),
        "p": Node("ModelSamplingFlux", {"model": ("MODEL", ("r", 0))}, ("MODEL",)),
        "3": GRAPH["3"],
    }
    sampler = Node("KSampler", {"model": ("MODEL", ("p", 0)), "positive": ("CONDITIONING", ("3", 0))}, ("LATENT",))
    assert plan({"1": GRAPH["1"], **between, "4": sampler}) == []


@pytest.mark.parametrize("name", ["TrainHGR", "TrainTextRedirector"])
def test_what_learns_from_unguarded_pictures_gets_no_guard(name):
    inputs = {"model": ("MODEL", ("1", 0)), "clip": ("CLIP", ("1", 1))}
    assert plan({"1": GRAPH["1"], "4": Node(f"SafeGuidance_{name}", inputs, ("STRING", "IMAGE"))}) == []
    flow = json.loads(
        (EXAMPLES / {"TrainHGR": "train_hgr", "TrainTextRedirector": "train_text_redirector"}[name])
        .with_suffix(".json")
        .read_text(encoding="utf-8")
    )
    (found,) = survey(read_scopes(flow)[0][0]).insertions
    assert len(found.samplers) == 1


def test_muted_samplers_and_models_from_outside_are_not_guarded_here():
    muted = Node("KSampler", STOCK.inputs, ("LATENT",), runs=False)
    assert plan({"1": GRAPH["1"], "3": GRAPH["3"], "4": muted}) == []
    outside = Node("KSampler", {"model": ("MODEL", (-10, 0)), "positive": ("CONDITIONING", ("3", 0))}, ("LATENT",))
    assert plan({"3": GRAPH["3"], "4": outside}) == []


def test_a_prompt_without_its_clip_in_the_graph_is_named():
    with pytest.raises(ConvertError, match=r"node 4 \(KSampler\): the CLIP"):
        plan({"1": Node("UNETLoader", {}, ("MODEL",)), "4": STOCK})


def test_without_a_prompt_in_the_graph_the_clip_that_came_with_the_model_is_taken():
    (found,) = plan({"1": GRAPH["1"], "4": STOCK})
    assert found.clip == ("1", 1)


def test_the_editor_has_the_same_table():
    path = ROOT / "web" / "js" / "guarding.json"
    assert json.loads(path.read_text(encoding="utf-8")) == table(), f"write table() of guard_plan.py to {path.name}"


def test_the_settings_of_a_guard_put_in_are_the_nodes_own_widgets():
    inputs = json.loads((ROOT / "tools" / "data" / "nodes.json").read_text(encoding="utf-8"))[GUARD]["inputs"]
    widgets = {entry["name"]: entry["default"] for entry in inputs if "default" in entry}
    assert list(widgets.items()) == list(SETTINGS.items())


def lacking(workflow):
    """What a workflow lacks, by titles: guards, guards asleep, samplers without a CLIP."""
    guards, asleep, no_clip = [], [], []
    for scope, raw in read_scopes(workflow):
        before = f"{raw['name']}/" if scope.key else ""
        titles = {node["id"]: before + node.get("title", node["type"]) for node in raw["nodes"]}
        found = survey(scope)
        guards += [
            (titles[each.model[0]], titles[each.clip[0]], ", ".join(titles[number] for number, _ in each.samplers))
            for each in found.insertions
        ]
        asleep += [titles[number] for number in found.asleep]
        no_clip += [titles[number] for number, _ in found.no_clip]
    return tuple(guards), tuple(asleep), tuple(no_clip)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_shared_workflow_gets_its_guards(name):
    shared = WORKFLOWS[name]()
    assert lacking(shared.workflow) == (shared.guards, shared.asleep, shared.no_clip)
    if shared.no_clip:
        with pytest.raises(ConvertError, match="the CLIP"):
            guard_workflow(shared.workflow)
        return
    guarded, count = guard_workflow(shared.workflow)
    assert count == len(shared.guards) + len(shared.asleep)
    assert lacking(guarded) == ((), (), ())
    for _, raw in read_scopes(guarded):
        _check_links(raw)
        _check_places(raw["nodes"])
    if not shared.asleep and GUARD not in json.dumps(shared.workflow):
        back, gone = unguard_workflow(guarded)
        assert gone == count
        assert [_wires(raw) for _, raw in read_scopes(back)] == [_wires(raw) for _, raw in read_scopes(shared.workflow)]


def test_a_link_that_is_led_round_is_let_go_by_its_bends():
    guarded, _ = guard_workflow(WORKFLOWS["links_led_round"]().workflow)
    assert guarded["extra"] == {"reroutes": [{"id": 1, "pos": [900, 40], "linkIds": []}], "linkExtensions": []}


def _check_places(nodes):
    for ours in (node for node in nodes if node["type"] == GUARD and node["id"] == nodes[-1]["id"]):
        (x, y), (width, height) = ours["pos"], ours["size"]
        for other in nodes[:-1]:
            (left, top), (w, h) = other["pos"], other["size"]
            assert not (left < x + width and x < left + w and top < y + height and y < top + h), other["title"]


def _wires(raw):
    return sorted(tuple(link[1:]) if isinstance(link, list) else tuple(link.values())[1:] for link in raw["links"])


def _models(workflow):
    """(origin type, target type) of every link of type MODEL in every scope."""
    out = []
    for scope in (workflow, *workflow.get("definitions", {}).get("subgraphs", [])):
        kinds = {node["id"]: node["type"] for node in scope["nodes"]}
        for raw in scope["links"]:
            link = (
                raw if isinstance(raw, list) else [raw[key] for key in ("id", "origin_id", "origin_slot", "target_id")]
            )
            kind = raw[5] if isinstance(raw, list) else raw["type"]
            if kind == "MODEL":
                out.append((kinds.get(link[1]), kinds.get(link[3])))
    return out


def _check_links(scope):
    """Every link is known at both of its ends, and no id is used twice."""
    ids = [node["id"] for node in scope["nodes"]]
    assert len(ids) == len(set(ids))
    links = {raw[0]: raw for raw in (raw if isinstance(raw, list) else list(raw.values()) for raw in scope["links"])}
    assert len(links) == len(scope["links"])
    by_id = {node["id"]: node for node in scope["nodes"]}
    for number, origin, slot, target, place, _ in links.values():
        assert number in (
            scope["inputs"][slot]["linkIds"] if origin == -10 else by_id[origin]["outputs"][slot]["links"]
        )
        if target != -20:
            assert by_id[target]["inputs"][place]["link"] == number
    for node in scope["nodes"]:
        for entry in node.get("outputs") or ():
            assert all(links[number][1] == node["id"] for number in entry.get("links") or ())


@pytest.mark.parametrize(
    "name", ["safree_filter", "safree_video", "checkpoint_flux", "checkpoint_wan_video", "safree_cfg1"]
)
def test_editor_files_are_guarded_and_given_back(name):
    before = json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))
    kept = copy.deepcopy(before)
    guarded, count = guard_workflow(before)
    assert before == kept
    _check_links(guarded)
    again, more = guard_workflow(guarded)
    assert (again, more) == (guarded, 0)
    back, gone = unguard_workflow(guarded)
    assert gone == count
    _check_links(back)
    for key in ("nodes", "links"):
        assert sorted(back[key], key=str) == sorted(kept[key], key=str)
    if name == "safree_cfg1":
        assert count == 1
        ours = next(node for node in guarded["nodes"] if node["type"] == GUARD)
        assert ours["widgets_values"] == list(SETTINGS.values())
        (sampling,) = [part["id"] for part in guarded["definitions"]["subgraphs"]]
        assert [origin for origin, target in _models(guarded) if target == sampling] == [GUARD]


def test_the_command_writes_the_file_and_says_how_many(tmp_path, capsys):
    source, target = EXAMPLES / "safree_cfg1.json", tmp_path / "out.json"
    assert main(["comfyui", "guard", str(source), "-o", str(target)]) == 0
    assert "1 Guard Model put in" in capsys.readouterr().out
    assert main(["comfyui", "unguard", str(target), "-o", str(tmp_path / "back.json")]) == 0
    assert "1 Guard Model taken out" in capsys.readouterr().out
    back = json.loads((tmp_path / "back.json").read_text(encoding="utf-8"))
    assert len(back["nodes"]) == len(json.loads(source.read_text(encoding="utf-8"))["nodes"])


@pytest.mark.parametrize("text", ["[]", '{"a": 1}', "nonsense"])
def test_what_is_no_workflow_is_refused_and_nothing_is_written(tmp_path, capsys, text):
    path = tmp_path / "odd.json"
    path.write_text(text, encoding="utf-8")
    assert main(["comfyui", "unguard", str(path), "-o", str(tmp_path / "out.json")]) == 2
    assert "odd.json" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
