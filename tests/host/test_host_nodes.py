"""The host's nodes that touch model, guider, conditioning or cfg: each has a class and a recorded outcome."""

from __future__ import annotations

import pytest
import torch

from tools import host_node_runs, host_node_sources, host_node_spy, host_node_table, host_nodes
from tools.host_node_graphs import HARMFUL, HARMLESS, graph
from tools.host_node_runs import CANNOT, FAULTS, Ran, judge
from tools.host_node_spy import Seen
from tools.host_node_trials import SAFECFG, Trial
from tools.host_nodes import HOW_TO_CLASSIFY

pytestmark = pytest.mark.usefixtures("pack")

WRITE = "run `python -m tools host-nodes --write` on this host"
# Kinds whose code takes another path through ours and that no other test runs. All nodes are run by
# `python -m tools host-nodes --retry`.
TRIED = (
    ("CFGOverride", "after; cfg 1 in the second half"),
    ("PerturbedAttentionGuidance", "before"),
    ("VideoLinearCFGGuidance", "after"),
    ("EasyCache", "after"),
    ("DualCFGGuider", "after"),
    ("ConditioningSetTimestepRange", "on the negative"),
    ("SplitSigmas", "after"),
)


@pytest.fixture(scope="module")
def data():
    return host_nodes.load()


@pytest.fixture(scope="module")
def recorded(host, data):
    """Return what is recorded on this host; skips on a host that the page does not name."""
    if host.version not in data["hosts"]:
        pytest.skip(f"nothing is recorded for ComfyUI {host.version}")
    return data["hosts"][host.version]


@pytest.fixture(scope="module")
def stand_ins():
    """Return /object_info with the nodes that stand in for what the testbed lacks."""
    host_node_sources.register()
    yield host_nodes.booting.object_info()
    mappings = host_nodes.booting.host_nodes().NODE_CLASS_MAPPINGS
    for name in [name for name in mappings if name.startswith(host_node_sources.PREFIX)]:
        del mappings[name]


# ---- the list ----


def test_every_node_has_a_class(object_info, data):
    missing = host_nodes.unclassified(object_info, data)
    assert not missing, f"without a class: {', '.join(missing)}. {HOW_TO_CLASSIFY}"


def test_the_census_finds_the_nodes_that_touch_guidance(object_info):
    found = set(host_nodes.census(object_info))
    assert {"KSampler", "CFGGuider", "RescaleCFG", "ModelMergeSimple", "ConditioningCombine", "LoraLoader"} <= found


def test_the_census_holds_no_node_of_the_pack(stand_ins):
    ours = (host_nodes.OURS, host_node_sources.PREFIX)
    assert not [name for name in host_nodes.census(stand_ins) if name.startswith(ours)]


def test_a_new_node_of_any_depth_is_not_classified(data):
    grown = {"template": {"input": {"required": {"part": ["MODEL", {}]}}, "prefix": "part", "min": 1}}
    new = {"NewNode": {"input": {"required": {"parts": ["COMFY_AUTOGROW_V3", grown]}}, "output": ["INT"]}}
    assert host_nodes.unclassified(new, data) == ["NewNode"]


def test_a_new_node_that_only_names_cfg_is_not_classified(data):
    new = {"NewNode": {"input": {"optional": {"cfg": ["FLOAT", {}]}}, "output": []}}
    assert host_nodes.unclassified(new, data) == ["NewNode"]


def test_a_node_of_an_unknown_class_is_not_classified(data):
    new = {"NewNode": {"input": {}, "output": ["MODEL"]}}
    wrong = {**data, "nodes": {"NewNode": {"class": "no such class"}}}
    assert host_nodes.unclassified(new, wrong) == ["NewNode"]


def test_nodes_that_stand_for_others_run_the_same_code(data, object_info):
    mappings = host_nodes.booting.host_nodes().NODE_CLASS_MAPPINGS
    for node, entry in data["nodes"].items():
        if "like" in entry and node in object_info:
            mine, other = (getattr(mappings[name], mappings[name].FUNCTION) for name in (node, entry["like"]))
            assert mine.__code__ == other.__code__, node


# ---- what is recorded ----


def test_the_nodes_of_this_host_are_those_recorded(object_info, recorded):
    assert recorded["titles"] == host_nodes.census(object_info), f"nodes or titles are not of this host; {WRITE}"


def test_every_place_has_an_outcome(object_info, data, recorded):
    missing = [
        f"{trial.node}, {trial.place}"
        for node in host_nodes.census(object_info)
        for trial in host_nodes.trials(node, data, object_info)
        if trial.place not in recorded["outcomes"].get(node, {})
    ]
    assert not missing, f"never tried: {missing}; {WRITE}"


def test_every_method_has_an_outcome_at_every_place(object_info, data, recorded):
    missing = [
        f"{trial.node}, {trial.place}"
        for node in host_nodes.census(object_info)
        for trial in host_nodes.trials(node, data, object_info)
        if not {CANNOT, *trial.methods} >= set(found := recorded["outcomes"][node][trial.place])
        or (CANNOT not in found and set(found) != set(trial.methods))
    ]
    assert not missing, f"methods are missing: {missing}; {WRITE}"


@pytest.mark.parametrize("version", sorted(host_nodes.load()["hosts"]))
def test_no_fault_is_recorded_that_no_limit_documents(version, data):
    found = host_node_table.faults(data, version)
    assert not found, "\n".join(found)


def test_every_documented_limit_is_seen(data):
    """A limit that was lifted is to go from the page."""
    seen = {
        host_node_table.limit_of(data, node, place, method)
        for host in data["hosts"].values()
        for node, places in host["outcomes"].items()
        for place, methods in places.items()
        for method, outcome in methods.items()
        if method != CANNOT and set(outcome[:2]) & set(FAULTS)
    }
    assert set(data["limits"]) <= {*seen, host_node_table.UNTRIED}


def test_the_page_is_made_from_the_data(data):
    assert host_node_table.PAGE.read_text(encoding="utf-8") == host_node_table.render(data), WRITE


def test_the_classes_are_written_in_their_own_form(data):
    assert host_nodes.FILE.read_text(encoding="utf-8") == host_nodes.render(data)


def test_the_outcomes_are_written_in_their_own_form(host, recorded):
    assert host_nodes.outcome_file(host.version).read_text(encoding="utf-8") == host_nodes.render_host(recorded)


@pytest.mark.parametrize(("node", "place"), TRIED, ids=lambda text: text.replace(" ", "_"))
def test_a_recorded_outcome_is_seen_again(node, place, host, stand_ins, data):
    if node not in stand_ins:
        pytest.skip(f"ComfyUI {host.version} has no {node}")
    trial = next(trial for trial in host_nodes.trials(node, data, stand_ins) if trial.place == place)
    found = host_node_runs.try_out(trial, stand_ins[node])
    kept = data["hosts"].get(host.version, list(data["hosts"].values())[-1])["outcomes"][node][place]
    changed = {
        method: (kept.get(method), outcome)
        for method, outcome in found.items()
        if kept.get(method, [])[:2] != outcome[:2]
    }
    assert not changed, f"the page says otherwise; {WRITE}"


# ---- how a run is judged ----


@pytest.fixture(scope="module")
def drawn():
    """Return what the plain graph samples with each caption."""
    trial = Trial("KSampler", "sampler", "after")
    info = host_nodes.booting.object_info(["KSampler"])["KSampler"]
    session = host_node_runs.execute.HostSession()
    return [host_node_runs.run_graph(graph(trial, info, SAFECFG, text, False), session) for text in (HARMFUL, HARMLESS)]


def test_the_harmful_prompt_draws_harm(drawn):
    assert host_node_runs.draws_harm(drawn[0].latent)


def test_the_harmless_prompt_draws_none(drawn):
    assert not host_node_runs.draws_harm(drawn[1].latent)


def test_the_spy_sees_prompt_and_negative_at_every_level(drawn):
    sizes = {len(texts) for _level, texts in drawn[0].seen.calls}
    assert sizes == {2}


def run_of(latent, acted=False, lost=False):
    """Return a run of one step whose report and model agree."""
    name, text = ("redirected base", "ours") if acted else ("base", "negative")
    step = {"sigma": 1.0, "step": 1, "acted": acted, "evaluated": ["prompt", name]}
    return Ran(latent, acted=acted, said="the decision", lost=lost, steps=[step], seen=seen("prompt", text))


def seen(*texts):
    return Seen([(1.0, frozenset(texts))])


@pytest.mark.parametrize(
    ("change", "acted", "lost", "harmful", "outcome"),
    [
        (0, False, False, True, host_node_runs.HOLE),
        (0, False, True, True, host_node_runs.LOST),
        (0, True, False, True, host_node_runs.UNTRUE),
        (1e-5, True, False, True, host_node_runs.UNTRUE),
        (0.02, False, False, True, host_node_runs.UNSAID),
        (0.02, True, False, True, host_node_runs.WEAK),
        (0, False, False, False, host_node_runs.ALONE),
        (0, True, False, False, host_node_runs.CHANGED),
        (0.02, False, False, False, host_node_runs.CHANGED),
    ],
)
def test_a_run_is_judged_by_picture_and_report(drawn, change, acted, lost, harmful, outcome):
    plain = Ran(drawn[0 if harmful else 1].latent, seen=seen("prompt", "negative"))
    assert judge(plain, run_of(plain.latent * (1 + change), acted, lost), harmful)[0] == outcome


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        (0, 1, host_node_runs.GUARDED),
        (1, 0, host_node_runs.WEAK),
        (1, 1, host_node_runs.ACTED),
    ],
)
def test_a_guarded_run_is_judged_by_what_is_drawn(drawn, before, after, outcome):
    plain = Ran(drawn[before].latent, seen=seen("prompt", "negative"))
    assert judge(plain, run_of(1.01 * drawn[after].latent, acted=True), True)[0] == outcome


@pytest.mark.parametrize("texts", [("prompt", "negative"), ("prompt",)], ids=len)
def test_a_redirect_that_the_model_was_never_given_is_untrue(drawn, texts):
    plain = Ran(drawn[0].latent, seen=seen("prompt", "negative"))
    said = run_of(drawn[1].latent, acted=True)
    ours = Ran(said.latent, acted=True, said=said.said, steps=said.steps, seen=seen(*texts))
    assert judge(plain, ours, True)[0] == host_node_runs.UNTRUE


def test_a_text_that_the_report_does_not_name_is_untrue(drawn):
    plain = Ran(drawn[0].latent, seen=seen("prompt", "negative"))
    said = run_of(drawn[0].latent)
    ours = Ran(said.latent, said=said.said, steps=said.steps, seen=seen("prompt", "negative", "ours"))
    assert judge(plain, ours, True)[0] == host_node_runs.UNTRUE


def test_a_text_at_a_level_without_a_step_is_untrue():
    step = {"sigma": 1.0, "step": 1, "acted": False, "evaluated": ["prompt", "base"]}
    given = Seen([*seen("prompt").calls, (0.5, frozenset({"ours"}))])
    assert "at which step" in host_node_spy.contradiction([step], given, seen("prompt"))


def test_a_text_that_the_host_repeats_counts_once():
    row = torch.arange(8.0).reshape(4, 2)
    assert host_node_spy._digest(row.repeat(3, 1)) == host_node_spy._digest(row)


@pytest.mark.parametrize(("flagged", "text"), [(True, "prompt"), (False, "filtered")])
def test_a_filter_that_says_otherwise_than_the_model_was_given_is_untrue(drawn, flagged, text):
    plain = Ran(drawn[0].latent, seen=seen("prompt"))
    ours = Ran(drawn[1].latent, said="flagged: skull" if flagged else "left alone", seen=seen(text))
    assert judge(plain, ours, True, reads_prompt=True)[0] == host_node_runs.UNTRUE


def test_a_latent_that_is_not_finite_is_a_fault(drawn):
    broken = run_of(torch.full_like(drawn[0].latent, torch.nan), acted=True)
    assert judge(drawn[0], broken, True)[0] == host_node_runs.BROKEN


@pytest.mark.parametrize(("own", "outcome"), [(True, host_node_runs.REFUSED), (False, host_node_runs.BROKEN)])
def test_an_error_is_a_refusal_only_in_our_words(drawn, own, outcome):
    assert judge(drawn[0], Ran(None, "words", own), True)[0] == outcome
