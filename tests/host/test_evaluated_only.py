"""A report says only what the model was run on; `harmful` is true for a run in which nothing was measured."""

from __future__ import annotations

import pytest
import torch

from tests.host import concept_graphs, spy
from tests.host.safecfg_graphs import APPLE, KNIFE, encoded, part, patch, sample, sigmas, stock, with_values, world

pytestmark = pytest.mark.usefixtures("pack")
STEPS = 10


def run(positive):
    """Sample with the shipped redirector, whose gate opens for the knife alone."""
    redirector = part("nodes.redirectors").LoadHGR.execute("testbed-hgr.safetensors").args[0]
    watched, seen = spy.spied(world()[0])
    model, trace = patch(redirector, watched)
    sample(stock(positive, encoded(""), model=model), sigmas(STEPS))
    return trace, seen


def check(trace, seen):
    """Hold each step against the texts that reached the model: prompt, apple and negative are the host's."""
    known = [encoded(text)[0][0][0] for text in (KNIFE, APPLE, "")]
    for step in trace.run.steps:
        ours = [
            row for row in seen.texts_at(step.sigma) if not any(bool((row - text).abs().max() < 1e-5) for text in known)
        ]
        assert step.acted == bool(ours), step
        assert ("redirected base" in step.evaluated) == bool(ours), step


@pytest.mark.parametrize("span", [(0.0, 0.4), (0.5, 1.0)], ids=str)
def test_a_harmful_part_of_the_prompt_out_of_its_range_is_not_said_to_be_redirected(span):
    harmful = with_values(encoded(KNIFE), start_percent=span[0], end_percent=span[1])
    trace, seen = run([*harmful, *encoded(APPLE)])
    check(trace, seen)
    assert 0 < sum(step.acted for step in trace.run.steps) < STEPS


def test_a_default_prompt_that_nothing_is_left_for_is_not_said_to_be_redirected():
    trace, seen = run([*encoded(APPLE), *with_values(encoded(KNIFE), default=True)])
    check(trace, seen)
    assert "NOT redirected" in trace.run.decision
    assert trace.run.harmful


def test_a_harmful_prompt_is_said_to_be_redirected_in_every_step():
    trace, seen = run(encoded(KNIFE))
    check(trace, seen)
    assert trace.run.decision.endswith(f"redirected in all {STEPS} steps")


def test_a_run_that_ends_before_anything_is_measured_keeps_a_switch_closed():
    model, trace = concept_graphs.mask()
    sample(stock(encoded(KNIFE), encoded(""), model=model), torch.tensor([1.0, 0.0]))
    account = part("safeguidance.report.account").account_for(*trace.runs_of())
    assert account.decision.startswith("NOT JUDGED")
    assert account.harmful


def test_a_step_in_which_the_model_was_not_run_is_not_said_to_be_redirected():
    from comfy.patcher_extension import WrappersMP

    redirector = part("nodes.redirectors").LoadHGR.execute("testbed-hgr.safetensors").args[0]
    model, trace = patch(redirector, world()[0])
    model = model.clone()
    model.add_wrapper_with_key(
        WrappersMP.APPLY_MODEL, "another node", lambda executor, x, *_, **__: torch.zeros_like(x)
    )
    sample(stock(encoded(KNIFE), encoded(""), model=model), sigmas(4))
    assert not any(step.acted for step in trace.run.steps)
    assert all(step.missed for step in trace.run.steps)
    assert "NOT redirected" in trace.run.decision
    assert trace.run.harmful
