"""SAFREE's conditioning, SafeCFG and SP-Guard on one run, in any order."""

from __future__ import annotations

import pytest
import torch

from tests.host.concept_graphs import EASY, mask
from tests.host.safecfg_graphs import KNIFE, encoded, make_redirector, part, patch, sample, sigmas, stock, world
from tests.host.safree_graphs import filtered

pytestmark = pytest.mark.usefixtures("pack")


def reattention(model):
    node = part("nodes.safree.reattention").SafreeLatentReAttention
    return node.execute(model, strength=1.0, blocks="both", start=0.0, end=1.0).args


LAYERS = {
    "SP-Guard": lambda model: mask(model, **EASY),
    "SafeCFG": lambda model: patch(make_redirector(), model),
    "SAFREE": reattention,
}


@pytest.mark.parametrize("order", [("SAFREE", "SP-Guard", "SafeCFG"), ("SafeCFG", "SP-Guard", "SAFREE")])
def test_three_methods_in_any_order(order):
    known = part("safeguidance.concepts").Concepts(part("safeguidance.testbed.concepts").TESTBED_PRESETS)
    positive, _, _ = filtered(world()[1], KNIFE, known)
    pictures = []
    for names in (order, order[::-1]):
        model, traces = world()[0], {}
        for name in names:
            model, traces[name] = LAYERS[name](model)
        pictures.append(sample(stock(positive, encoded(""), model), sigmas(8)))
        assert all(trace.run.acted for trace in traces.values()), {n: t.run.decision for n, t in traces.items()}
    assert torch.isfinite(pictures[0]).all()
    # the order only decides what shares a call of the model, so pictures are equal up to rounding
    off = (pictures[0] - pictures[1]).abs() > 1e-3
    assert float(off.float().mean()) < 0.02
    for name in order:
        model = world()[0]
        for other in order:
            if other != name:
                model, _ = LAYERS[other](model)
        assert not sample(stock(positive, encoded(""), model), sigmas(8)).equal(pictures[0]), f"{name} counts"


def test_safecfg_behind_the_filter_judges_the_prompt_as_written():
    known = part("safeguidance.concepts").Concepts(part("safeguidance.testbed.concepts").TESTBED_PRESETS)
    positive, _, _ = filtered(world()[1], KNIFE, known, preset="strict")
    assert not any(states.equal(encoded(KNIFE)[0][0]) for states, _ in positive), "filtered to the last step"
    place, scores = part("safeguidance.testbed.model"), []
    for prompt in (positive, encoded(KNIFE)):
        redirector = part("safeguidance.redirector.weights").load_hgr(place.WEIGHTS / place.HGR_FILE)
        model, trace = patch(redirector, world()[0])
        sample(stock(prompt, encoded(""), model), sigmas(4))
        assert trace.run.acted
        scores.append(trace.run.scores[0])
    assert scores[0] == pytest.approx(scores[1])
