"""Where concept guidance has nothing to do, the picture is the host's own, bit for bit."""

from __future__ import annotations

import pytest
import torch

from tests.host.concept_graphs import PLAIN, concepts, family, guider, mask
from tests.host.safecfg_graphs import (
    APPLE,
    KNIFE,
    counted,
    encoded,
    ksample,
    part,
    placed,
    sample,
    sigmas,
    small,
    stock,
    world,
)

pytestmark = pytest.mark.usefixtures("pack")

SHUT = {**PLAIN, "threshold": 1.0}


def conds(negative="blurry"):
    return encoded(KNIFE), encoded(negative)


OFF = {
    "SP-Guard, lambda 0": lambda model: mask(model, lambda_max=0.0, lambda_end=0.0),
    "SP-Guard, end 0": lambda model: mask(model, end=0.0, lambda_end=0.0, switch=0.0),
    "NOT": lambda model: family("NOT", model, strength=0.0),
    "negative prompt": lambda model: family("negative prompt", model, strength=0.0),
    "SLD": lambda model: family("SLD max", model, strength=0.0),
    "SEGA": lambda model: family("SEGA", model, strength=0.0),
    "empty window": lambda model: family("NOT", model, start=0.5, end=0.5),
}


@pytest.mark.parametrize("name", OFF)
def test_switched_off_is_stock_at_the_price_of_stock(name):
    counting, calls = counted(world()[0])
    model, trace = OFF[name](counting)
    assert ksample(model, *conds()).equal(ksample(world()[0], *conds()))
    assert calls == [(2, 2)] * 4
    assert trace.run.decision.endswith("plain CFG")
    assert not trace.run.acted


def test_no_concept_is_stock():
    model, trace = mask(looked_for=part("safeguidance.concepts").Concepts())
    assert ksample(model, *conds()).equal(ksample(world()[0], *conds()))
    assert trace.run.decision == "no concept: plain CFG"


@pytest.mark.parametrize("negative", ["", "blurry"])
def test_a_closed_gate_is_stock_and_asks_for_no_more_after_measuring(negative):
    counting, calls = counted(world()[0])
    ours, trace = guider(*conds(negative), counting, **SHUT)
    assert sample(ours, sigmas(10)).equal(sample(stock(*conds(negative)), sigmas(10)))
    assert calls == [(2, 2), (2, 2)] * 2 + [(2, 2)] * 8, "two steps measure, with the concepts in a call of their own"
    assert [step.extra_evaluations for step in trace.run.steps] == [2, 2] + [0] * 8
    assert trace.run.decision.startswith("harmless (")
    assert not trace.run.acted
    assert trace.run.effect is None
    assert len(trace.run.scores) == 1
    assert trace.run.harm < 1


def test_measuring_at_every_second_evaluation_halves_the_price():
    ours, trace = guider(*conds(), **{**SHUT, "every": 2})
    assert sample(ours, sigmas(20)).equal(sample(stock(*conds()), sigmas(20)))
    assert [step.extra_evaluations for step in trace.run.steps] == [2, 0, 2, 0] + [0] * 16


def test_at_default_settings_a_closed_gate_costs_a_twentieth():
    counting, calls = counted(world()[0])
    model, trace = mask(counting, looked_for=concepts("blade: knife"), threshold=1.0)
    pair = encoded(APPLE), encoded("")
    assert ksample(model, *pair, steps=20).equal(ksample(world()[0], *pair, steps=20))
    assert trace.run.decision.startswith("harmless")
    assert sum(rows for rows, _ in calls) == 42, "one measurement, of the concept and a neutral text"


def test_a_run_too_short_to_measure_does_not_call_the_prompt_harmless():
    one_step = torch.tensor([1.0, 0.0])
    ours, trace = guider(*conds())
    assert sample(ours, one_step).equal(sample(stock(*conds()), one_step))
    assert trace.run.decision.startswith("NOT JUDGED")
    assert trace.run.scores == []


@pytest.mark.parametrize("place", ["area", "mask", "range"])
def test_a_closed_gate_is_stock_with_placed_prompts(place):
    positive = placed(KNIFE, place) + encoded(APPLE)
    ours, _ = guider(positive, encoded(""), **SHUT)
    assert sample(ours).equal(sample(stock(positive, encoded(""))))


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2s_ancestral", "dpmpp_sde", "euler_cfg_pp", "heunpp2"])
def test_a_closed_gate_is_stock_with_every_sampler(sampler):
    ours, trace = guider(*conds(), **SHUT)
    assert sample(ours, sampler=sampler).equal(sample(stock(*conds()), sampler=sampler))
    assert not trace.run.acted


def test_steps_outside_the_window_are_stock():
    seen = {"stock": [], "ours": []}
    sample(stock(*conds()), callback=lambda i, d, x, n: seen["stock"].append(d.clone()))
    model, _ = family("NOT", start=0.5)
    sample(stock(*conds(), model=model), callback=lambda i, d, x, n: seen["ours"].append(d.clone()))
    same = [a.equal(b) for a, b in zip(seen["stock"], seen["ours"], strict=True)]
    assert same == [True, True, False, False]


@pytest.mark.parametrize("method", ["SLD medium", "SEGA"])
def test_warm_up_with_momentum_is_stock(method):
    seen = {"stock": [], "ours": []}
    levels = sigmas(5)
    sample(stock(*conds()), levels, callback=lambda i, d, x, n: seen["stock"].append(d.clone()))
    model, trace = family(method, start=0.4)
    sample(stock(*conds(), model=model), levels, callback=lambda i, d, x, n: seen["ours"].append(d.clone()))
    same = [a.equal(b) for a, b in zip(seen["stock"], seen["ours"], strict=True)]
    assert same == [True, True, False, False, False]
    assert [step.extra_evaluations for step in trace.run.steps] == [2] * 5, "momentum listens during warm-up"


def test_closed_rows_of_a_batch_keep_the_bits_of_stock():
    together = [[torch.cat([encoded(text)[0][0] for text in (KNIFE, APPLE, KNIFE)]), {}]]
    levels, shape = sigmas(10), small(3)
    looked_for = concepts("blade: knife")
    measuring, trace = guider(together, encoded(""), looked_for=looked_for, **SHUT)
    plain = sample(measuring, levels, shape=shape)
    assert plain.equal(sample(stock(together, encoded("")), levels, shape=shape))
    scores = sorted(row[0] for row in trace.run.scores)
    for opened in (1, 2):
        counting, calls = counted(world()[0])
        threshold = (scores[-opened] + scores[-opened - 1]) / 2
        settings = {**PLAIN, "threshold": threshold, "end": 0.6}
        ours, trace = guider(together, encoded(""), counting, looked_for=looked_for, **settings)
        out = sample(ours, levels, shape=shape)
        judged = [row[0] >= threshold for row in trace.run.scores]
        assert sum(judged) == opened
        assert [not a.equal(b) for a, b in zip(out, plain, strict=True)] == judged
        expected = [(6, 2), (opened, 1)] * 5 + [(6, 2)] * 3
        assert calls[4:] == expected, "only the open samples are evaluated, up to the end"
