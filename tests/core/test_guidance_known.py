"""A method that is told how harmful a prompt is, in place of measuring it."""

import pytest
import torch

from safeguidance.guidance.method import Step
from safeguidance.guidance.registry import METHODS
from safeguidance.guidance.run import GuidanceRun
from safeguidance.guidance.sp_guard import SPGuardConfig, mask
from safeguidance.predictions import cfg

METHOD = METHODS["sp_guard"]
NAMES = ("blade", "bomb")
SHAPES = [(3, 4, 8, 8), (3, 4, 2, 6, 6)]
LEVELS = ((10.0, 0.0), (5.0, 0.25), (1.0, 0.5), (0.2, 0.95))


def _step(shape, plan, sigma, progress, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    prompt, base, *concepts = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2 + len(NAMES)))
    asked = tuple(concepts[k] if k in plan.concepts else None for k in range(len(NAMES)))
    return Step(prompt, base, asked, base, torch.full(shape[:1], sigma), 5.0, progress)


def _run(shape, known, config=None, dtype=torch.float32):
    """Plans and results of a run."""
    engine, out = GuidanceRun(METHOD, config or SPGuardConfig(), NAMES, 3, known=known), []
    for sigma, progress in LEVELS:
        plan = engine.plan(sigma, progress, shape[0])
        out.append((plan, engine.apply(plan, _step(shape, plan, sigma, progress, dtype))))
    return out


@pytest.mark.parametrize("shape", SHAPES)
def test_it_acts_from_the_first_step_on_and_measures_nothing(shape):
    known = torch.tensor([[0.9, 0.2], [0.1, 0.6], [0.5, 0.0]])
    for (plan, applied), (_, progress) in zip(_run(shape, known), LEVELS, strict=True):
        assert plan.neutrals == 0
        assert not plan.measures
        assert applied.output.acted.tolist() == [progress < SPGuardConfig().end] * shape[0]
    first = _run(shape, known)[0][0]
    # each sample asks for the concept it is nearest to, and for no other
    assert first.wanted.tolist() == [[True, False], [False, True], [True, False]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_harmless_prompt_among_harmful_ones_is_plain_cfg_to_the_last_bit(shape, dtype):
    known = torch.tensor([[0.9, 0.2], [0.0, 0.0], [0.5, 0.0]])
    for plan, applied in _run(shape, known, dtype=dtype):
        assert not plan.wanted[1].any()
        assert not bool(applied.output.acted[1])
        stock = cfg(applied.step.prompt, applied.step.base, 5.0)
        assert torch.equal(applied.output.denoised[1], stock[1])
        assert torch.equal(applied.over(applied.step.base)[1], stock[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_where_nothing_is_harmful_no_concept_is_predicted(shape):
    for plan, applied in _run(shape, torch.zeros(shape[0], len(NAMES))):
        assert plan.concepts == ()
        assert not applied.acted


def test_the_push_is_as_strong_as_the_prompt_was_found_harmful():
    shape, config = SHAPES[0], SPGuardConfig()
    scores = torch.tensor([[0.9, 0.2], [0.7, 0.1], [0.5, 0.0]])
    applied = _run(shape, scores)[0][1]
    prompt, concept = applied.step.direction("prompt"), applied.step.direction(0)
    # a judge's scores are larger than measured ones
    push = config.lambda_max * 0.5 * scores.amax(dim=1)[:, None, None, None] * mask(prompt, concept, config) * concept
    expected = applied.step.base + 5.0 * (prompt - push)
    assert torch.allclose(applied.output.denoised, expected, atol=1e-4)


def test_the_score_alone_opens_whatever_the_threshold_and_the_offset_of_the_measuring_gate():
    from dataclasses import replace

    config = SPGuardConfig()
    config = replace(config, gate=replace(config.gate, threshold=0.9, offset=0.5))
    applied = _run(SHAPES[0], torch.tensor([[0.2, 0.0]] * 3), config)[0][1]
    assert bool(applied.output.acted.all())
