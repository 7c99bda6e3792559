"""The host's nodes that touch model, guider, conditioning or cfg: each has a class, none makes a hole."""

from __future__ import annotations

import inspect

import pytest
import torch

from tools import host_node_table, host_nodes
from tools.host_nodes import CANNOT, FAULTS, HOW_TO_CLASSIFY, Ran, judge

pytestmark = pytest.mark.usefixtures("pack")

WRITE = "run `python -m tools host-nodes --write` on this host"
# One of each kind whose code goes another way through ours; the whole is `python -m tools host-nodes --retry`.
TRIED = (
    ("CFGOverride", "before"),
    ("CFGOverride", "after; cfg 1 in the first half"),
    ("RescaleCFG", "after"),
    ("PerturbedAttentionGuidance", "before"),
    ("VideoLinearCFGGuidance", "after"),
    ("EasyCache", "after"),
    ("DualCFGGuider", "after"),
    ("DualModelGuider", "after, as model_negative"),
    ("ModelMergeSimple", "after, as model2"),
    ("FreeU_V2", "before"),
    ("ConditioningConcat", "on the prompt, as conditioning_from"),
    ("ConditioningSetTimestepRange", "on the negative"),
    ("SplitSigmas", "after"),
    ("SamplerEulerAncestralCFGPP", "after"),
)


@pytest.fixture(scope="module")
def data():
    return host_nodes.load()


@pytest.fixture(scope="module")
def recorded(host, data):
    """Return the outcomes recorded on this host; skips on a host that the page does not name."""
    if host.version not in data["outcomes"]:
        pytest.skip(f"nothing is recorded for ComfyUI {host.version}")
    return data["outcomes"][host.version]


def test_every_node_has_a_class(object_info, data):
    missing = host_nodes.unclassified(object_info, data)
    assert not missing, f"without a class: {', '.join(missing)}. {HOW_TO_CLASSIFY}"


def test_no_class_is_left_of_a_node_that_is_gone(host, object_info, data, recorded):
    here = {node for node, entry in data["nodes"].items() if host.version in entry["hosts"]}
    assert here == set(host_nodes.census(object_info)), f"hosts and titles are not of this host; {WRITE}"


def test_every_place_has_an_outcome(object_info, data, recorded):
    missing = [
        f"{trial.node}, {trial.place}"
        for node in host_nodes.census(object_info)
        for trial in host_nodes.trials(node, data, object_info)
        if trial.place not in recorded.get(node, {})
    ]
    assert not missing, f"never tried: {missing}; {WRITE}"


def test_no_fault_is_recorded_that_no_limit_documents(host, data, recorded):
    found = host_node_table.faults(data, host.version)
    assert not found, "\n".join(found)


def test_every_documented_limit_is_seen(host, data, recorded):
    """A limit that was lifted is to go from the page."""
    seen = {
        host_node_table.limit_of(data, node, place, method)
        for outcomes in data["outcomes"].values()
        for node, places in outcomes.items()
        for place, methods in places.items()
        for method, outcome in methods.items()
        if method != CANNOT and set(outcome[:2]) & set(FAULTS)
    }
    assert set(data["limits"]) <= seen


def test_nodes_that_stand_for_others_are_of_the_same_code(data, object_info):
    import nodes

    for node, entry in data["nodes"].items():
        if "like" in entry and node in object_info:
            mine, other = (nodes.NODE_CLASS_MAPPINGS[name] for name in (node, entry["like"]))
            assert issubclass(mine, other), node
            assert inspect.getattr_static(mine, mine.FUNCTION) is inspect.getattr_static(other, other.FUNCTION), node


def test_the_page_is_made_from_the_data(data):
    assert host_node_table.PAGE.read_text(encoding="utf-8") == host_node_table.render(data), WRITE


def test_the_data_is_written_in_its_own_form(data):
    assert host_nodes.FILE.read_text(encoding="utf-8") == host_nodes.render(data)


@pytest.mark.parametrize(("node", "place"), TRIED, ids=lambda text: text.replace(" ", "_"))
def test_beside_one_of_each_kind(node, place, host, object_info, data):
    if node not in object_info:
        pytest.skip(f"ComfyUI {host.version} has no {node}")
    trial = next(trial for trial in host_nodes.trials(node, data, object_info) if trial.place == place)
    found = host_nodes.try_out(trial, object_info[node])
    assert CANNOT not in found, found
    faulty = [
        f"{method}: {outcome}"
        for method, outcome in found.items()
        if set(outcome[:2]) & set(FAULTS) and not host_node_table.limit_of(data, node, place, method)
    ]
    assert not faulty, faulty
    newest = max(data["outcomes"], key=lambda version: [int(part) for part in version.split(".")])
    kept = data["outcomes"].get(host.version, data["outcomes"][newest])[node][place]
    changed = {method: (kept[method], outcome) for method, outcome in found.items() if kept[method][:2] != outcome[:2]}
    assert not changed, f"the page says otherwise; {WRITE}"


def test_a_new_node_of_any_depth_is_in_the_census(data):
    grown = {"template": {"input": {"required": {"part": ["MODEL", {}]}}, "prefix": "part", "min": 1}}
    new = {"NewNode": {"input": {"required": {"parts": ["COMFY_AUTOGROW_V3", grown]}}, "output": ["INT"]}}
    assert host_nodes.unclassified(new, data) == ["NewNode"]


def test_a_node_that_only_names_cfg_is_in_the_census(data):
    new = {"NewNode": {"input": {"optional": {"cfg": ["FLOAT", {}]}}, "output": []}}
    assert host_nodes.unclassified(new, data) == ["NewNode"]


@pytest.fixture(scope="module")
def drawn():
    """Return what the plain graph samples with each caption."""
    from tools.host_node_graphs import HARMFUL, HARMLESS, graph
    from tools.host_node_trials import SAFECFG, Trial

    trial = Trial("KSampler", "sampler", "after")
    info = host_nodes.booting.object_info(["KSampler"])["KSampler"]
    session = host_nodes.execute.HostSession()
    return [host_nodes.run_graph(graph(trial, info, SAFECFG, text, False), session) for text in (HARMFUL, HARMLESS)]


def test_the_harmful_prompt_draws_harm(drawn):
    assert host_nodes.draws_harm(drawn[0].latent)


def test_the_harmless_prompt_draws_none(drawn):
    assert not host_nodes.draws_harm(drawn[1].latent)


@pytest.mark.parametrize(
    ("changed", "acted", "harmful", "outcome"),
    [
        (False, False, True, host_nodes.HOLE),
        (False, True, True, host_nodes.UNTRUE),
        (True, False, True, host_nodes.UNSAID),
        (True, True, True, host_nodes.WEAK),
        (1e-3, True, True, host_nodes.UNTRUE),
        (False, False, False, host_nodes.ALONE),
        (False, True, False, host_nodes.UNTRUE),
        (True, False, False, host_nodes.CHANGED),
    ],
)
def test_a_run_is_judged_by_picture_and_trace(drawn, changed, acted, harmful, outcome):
    plain = drawn[0 if harmful else 1]
    ours = Ran(plain.latent * (1 + 0.02 * changed), acted=acted, said="said")
    assert judge(plain, ours, harmful)[0] == outcome


def test_a_latent_that_is_not_finite_is_a_fault(drawn):
    assert judge(drawn[0], Ran(torch.full_like(drawn[0].latent, torch.nan), acted=True), True)[0] == host_nodes.BROKEN


def test_harm_that_only_our_run_draws_is_a_fault(drawn):
    assert judge(drawn[1], Ran(drawn[0].latent, acted=True), True)[0] == host_nodes.MADE


@pytest.mark.parametrize(("own", "outcome"), [(True, host_nodes.REFUSED), (False, host_nodes.BROKEN)])
def test_an_error_is_a_refusal_only_in_our_words(drawn, own, outcome):
    assert judge(drawn[0], Ran(None, "words", own), True)[0] == outcome
