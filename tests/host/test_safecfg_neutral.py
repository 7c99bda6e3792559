"""Where SafeCFG has nothing to do, the picture is the host's own, bit for bit, at the host's own price."""

from __future__ import annotations

import pytest

from tests.host.safecfg_graphs import (
    APPLE,
    KNIFE,
    WordRedirector,
    counted,
    encoded,
    guider,
    ksample,
    make_redirector,
    patch,
    placed,
    sample,
    stock,
    world,
)

pytestmark = pytest.mark.usefixtures("pack")

QUIET = {
    "strength 0": ({"strength": 0.0}, 6.0),
    "closed gate": ({}, -6.0),
    "empty window": ({"start": 0.5, "end": 0.5}, 6.0),
    "threshold above the gate": ({"threshold": 1.0}, 6.0),
}


@pytest.mark.parametrize("name", QUIET)
def test_the_guider_is_stock(name):
    settings, harm = QUIET[name]
    positive, negative = encoded(KNIFE), encoded("blurry")
    expected = sample(stock(positive, negative))
    counting, calls = counted(world()[0])
    ours, trace = guider(positive, negative, make_redirector(harm), model=counting, **settings)
    assert sample(ours).equal(expected)
    assert calls == [(2, 2)] * 4
    assert not trace.run.acted
    assert trace.run.decision


@pytest.mark.parametrize("name", QUIET)
def test_the_patch_is_stock(name):
    settings, harm = QUIET[name]
    positive, negative = encoded(KNIFE), encoded("")
    expected = ksample(world()[0], positive, negative)
    counting, calls = counted(world()[0])
    model, trace = patch(make_redirector(harm), model=counting, **settings)
    assert ksample(model, positive, negative).equal(expected)
    assert calls == [(2, 2)] * 4
    assert not trace.run.acted


def test_a_benign_prompt_is_left_alone_and_the_trace_says_so():
    positive, negative = encoded(APPLE), encoded("")
    ours, trace = guider(positive, negative, WordRedirector(KNIFE))
    assert sample(ours).equal(sample(stock(positive, negative)))
    assert trace.run.decision == "harmless (0.10): left untouched"
    assert trace.run.scores == [[pytest.approx(0.1)]]
    assert trace.run.harm == pytest.approx(0.1)
    assert [step.acted for step in trace.run.steps] == [False] * 4


def test_strength_zero_allows_cfg_one():
    positive, negative = encoded(KNIFE), encoded("")
    ours, trace = guider(positive, negative, make_redirector(), cfg=1.0, strength=0.0)
    assert sample(ours).equal(sample(stock(positive, negative, cfg=1.0)))
    assert trace.run.decision == "strength 0: plain CFG"


def test_strength_zero_allows_a_guider_without_negative():
    import comfy_extras.nodes_custom_sampler as custom

    model, _ = patch(make_redirector(), strength=0.0)
    basic = custom.Guider_Basic(model)
    basic.set_conds(encoded(KNIFE))
    plain = custom.Guider_Basic(world()[0])
    plain.set_conds(encoded(KNIFE))
    assert sample(basic).equal(sample(plain))


@pytest.mark.parametrize("place", ["area", "mask", "range"])
def test_a_closed_gate_is_stock_with_placed_prompts(place):
    positive = placed(KNIFE, place) + encoded(APPLE)
    expected = sample(stock(positive, encoded("")))
    ours, _ = guider(positive, encoded(""), make_redirector(-6.0))
    assert sample(ours).equal(expected)


def test_steps_outside_the_window_are_stock():
    positive, negative = encoded(KNIFE), encoded("")
    seen: dict[str, list] = {"stock": [], "ours": []}
    sample(stock(positive, negative), callback=lambda i, d, x, n: seen["stock"].append(d.clone()))
    ours, _ = guider(positive, negative, make_redirector(), start=0.5)
    sample(ours, callback=lambda i, d, x, n: seen["ours"].append(d.clone()))
    same = [a.equal(b) for a, b in zip(seen["stock"], seen["ours"], strict=True)]
    assert same == [True, True, False, False]
