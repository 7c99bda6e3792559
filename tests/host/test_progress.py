"""The line on a node while it works, and the decision afterwards: what is sent, and that no run depends on it."""

from __future__ import annotations

import pytest

from tests.host.safecfg_graphs import KNIFE, encoded, guider, make_redirector, sample
from tests.host.test_report_node import GRAPH, STEPS, graph

pytestmark = pytest.mark.usefixtures("pack")
CONCEPTS = {"clip": ["1", 1], "concepts": ["2", 0]}


@pytest.fixture
def sent(monkeypatch, server):
    """What reaches the host's own way to browsers, as (text, node, client)."""
    seen = []
    real = server.send_progress_text

    def note(text, node_id, sid=None):
        seen.append((text, node_id, sid))
        real(text, node_id, sid)

    monkeypatch.setattr(server, "send_progress_text", note)
    return seen


@pytest.fixture
def server(host):
    from server import PromptServer

    return PromptServer.instance


def with_node(kind, **inputs):
    """The graph of the report's tests with another safety node."""
    edited = graph()
    edited["6"] = {"class_type": kind, "inputs": {"model": ["1", 0], **inputs}}
    edited["8"]["inputs"]["steps"] = 10
    return edited


def test_a_guarded_run_says_each_step_and_then_the_decision(run_graph, sent):
    result = run_graph(GRAPH)
    assert {node for _, node, _ in sent} == {"6"}
    assert all(client for _, _, client in sent)
    *steps, last = [text for text, _, _ in sent]
    assert [text.split(":")[0] for text in steps] == [f"step {k + 1} of {STEPS}" for k in range(STEPS)]
    assert all("testbed_blades " in text and text.endswith(", redirecting") for text in steps)
    assert last == result.ui["10"]["text"][0]
    assert "redirected in all" in last


def test_a_harmless_prompt_is_said_to_be_left_alone(run_graph, sent):
    run_graph(graph(text="a cup of coffee on a meadow"))
    *steps, last = [text for text, _, _ in sent]
    assert len(steps) == STEPS
    assert all(text.endswith(", left alone") for text in steps)
    assert last.startswith("harmless (")
    assert last.endswith("left untouched")


def test_sp_guard_says_that_it_measures_and_what_it_guides_away_from(run_graph, sent):
    edited = with_node("SafeGuidance_SPGuardMask", **CONCEPTS, threshold=0.0, judge_by="measured")
    # the text of a whole category agrees with no single thing of it here
    edited["2"]["inputs"].update(testbed=False, own="blade: knife")
    run_graph(edited)
    texts = [text for text, node, _ in sent if node == "6"]
    assert texts[0] == "step 1 of 10: measuring"
    assert texts[1].endswith("measuring")
    assert any("guiding away from blade" in text for text in texts)
    assert texts[-2].endswith("left alone from here on")
    assert ": guided in steps 3-" in texts[-1]


def test_concept_guidance_says_what_it_guides_away_from(run_graph, sent):
    run_graph(with_node("SafeGuidance_ConceptGuidance", **CONCEPTS, method="SLD medium", strength=1.0, end=1.0,
                        concept="nearest", start=-1, threshold=-1, quantile=-1, momentum=-1, beta=-1))  # fmt: skip
    texts = [text for text, node, _ in sent if node == "6"]
    assert texts[0].endswith("warming up")
    assert "guiding away from testbed_" in texts[-2]
    assert texts[-1].startswith("guided in steps ")
    assert "most often away from" in texts[-1]


def picture(result):
    return result.value("9")


def test_the_picture_is_the_same_whoever_looks(run_graph, session, server, monkeypatch):
    seen = picture(run_graph(GRAPH))

    def broken(*_):
        raise RuntimeError("Event loop is closed")

    monkeypatch.setattr(server, "send_progress_text", broken)
    changed = graph()
    changed["8"]["inputs"]["seed"] = 2
    run_graph(changed)
    assert picture(run_graph(GRAPH)).equal(seen)


@pytest.mark.parametrize("client", [None, "someone"])
def test_outside_of_a_graph_nothing_is_sent(sent, server, monkeypatch, client):
    monkeypatch.setattr(server, "client_id", client)
    ours, _ = guider(encoded(KNIFE), encoded(""), make_redirector())
    before = dict(vars(ours))
    sample(ours)
    assert not sent
    assert set(vars(ours)) >= set(before)


def test_without_a_browser_nothing_is_sent(sent, server, monkeypatch):
    from tests.host.safecfg_graphs import part

    monkeypatch.setattr(server, "client_id", None)
    line = part("nodes.host.progress").ProgressText("6")
    line.update("text")
    assert not line.has_client
    assert not sent


def test_a_line_is_sent_once_and_not_again_after_a_failure(sent, server, monkeypatch):
    from tests.host.safecfg_graphs import part

    monkeypatch.setattr(server, "client_id", "someone")
    monkeypatch.setattr(server, "send_sync", lambda *_: None)
    line = part("nodes.host.progress").ProgressText("6")
    line.update("one")
    line.update("one")
    line.update("two")
    assert [text for text, _, _ in sent] == ["one", "two"]

    calls = []

    def broken(*_):
        calls.append(1)
        raise RuntimeError

    monkeypatch.setattr(server, "send_progress_text", broken)
    line.update("three")
    line.update("four")
    assert len(calls) == 1
    assert not line.has_client
