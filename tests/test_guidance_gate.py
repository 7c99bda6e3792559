"""The gate: it measures as long as it should, closes for good, per sample, and then asks for nothing."""

from dataclasses import replace

import pytest
import torch

from safeguidance.guidance import gate, sp_guard
from safeguidance.guidance.concept_step import Coming, Memory, Step, indices
from safeguidance.guidance.gate import GateConfig
from safeguidance.guidance.sp_guard import SPGuardConfig
from safeguidance.predictions import cfg

STEPS = 10


def make(step, agrees, shape=(2, 4, 5, 6), sigma=None, progress=None):
    """A step; ``agrees [B][K]`` is the cosine of each concept with the prompt."""
    generator = torch.Generator().manual_seed(step)
    base, x, toward, other = torch.randn(4, *shape, generator=generator)
    toward[:, 1::2], other[:, 0::2] = 0, 0
    toward, other = (d / d.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) for d in (toward, other))
    cos = torch.tensor(agrees).T.reshape(len(agrees[0]), -1, 1, 1, 1)
    concepts = base + 3 * (cos * toward + (1 - cos.square()).sqrt() * other)
    level = 1 - step / STEPS if sigma is None else sigma
    point = step / STEPS if progress is None else progress
    return Step(base + toward, base, tuple(concepts), x, torch.full(shape[:1], level), 4.0, point)


def walk(config, agrees, steps=range(STEPS), memory=None):
    """Per evaluation, what was needed and what came out."""
    memory, seen = memory or Memory(), []
    for number in steps:
        step = make(number, agrees)
        wanted = sp_guard.needs(step.coming, config, memory)
        got = sp_guard.sp_guard(step, config, memory)
        seen.append((wanted, got, torch.equal(got.denoised, cfg(step.prompt, step.base, step.scale))))
        memory = got.memory
    return seen


def test_all_concepts_while_measuring_then_the_nearest_of_samples_whose_gate_is_open():
    seen = walk(SPGuardConfig(), [[0.1, 0.5, 0.3], [0.01, 0.02, -0.3]])
    assert [indices(w) for w, *_ in seen] == [(0, 1, 2)] * 2 + [(1,)] * 8
    assert all(w[1].sum() == (3 if i < 2 else 0) for i, (w, *_) in enumerate(seen))
    assert all(plain for *_, plain in seen[:2]) and not any(plain for *_, plain in seen[2:])
    for number, (_, got, _) in enumerate(seen):
        step = make(number, [[0.0]] * 2)
        assert torch.equal(got.denoised[1], cfg(step.prompt, step.base, 4.0)[1])
        assert got.acted.tolist() == [number >= 2, False]
    assert seen[-1][1].chosen.tolist() == [1, -1]
    assert torch.allclose(seen[-1][1].scores, torch.tensor([[0.1, 0.5, 0.3], [0.01, 0.02, 0.0]]), atol=1e-5)


def test_a_run_of_harmless_prompts_is_plain_cfg_throughout():
    seen = walk(SPGuardConfig(), [[0.01, 0.04], [-0.5, 0.0]])
    assert all(plain for *_, plain in seen)
    assert [indices(w) for w, *_ in seen] == [(0, 1)] * 2 + [()] * 8


def test_once_closed_it_stays_closed_whatever_comes_later():
    config, memory = SPGuardConfig(), Memory()
    for number in range(STEPS):
        step = make(number, [[0.0], [0.0]] if number < 2 else [[1.0], [1.0]])
        got = sp_guard.sp_guard(step, config, memory)
        memory = got.memory
        assert torch.equal(got.denoised, cfg(step.prompt, step.base, step.scale))


@pytest.mark.parametrize(("concept", "wanted"), [("probed", (1,)), ("step", (0, 1)), ("all", (0, 1))])
def test_how_many_concepts_are_needed_depends_on_the_choice(concept, wanted):
    seen = walk(SPGuardConfig(concept=concept), [[0.2, 0.5], [0.2, 0.5]])
    assert indices(seen[-1][0]) == wanted


def test_measuring_at_every_second_call_halves_the_cost_and_gives_the_same_score():
    agrees = [[0.2, 0.5], [0.3, 0.1]]
    config = SPGuardConfig(gate=GateConfig(probe=0.4, every=2))
    seen, whole = walk(config, agrees), walk(replace(config, gate=GateConfig(probe=0.4)), agrees)
    assert [bool(w.all()) for w, *_ in seen[:4]] == [True, False, True, False]
    assert all(w.all() for w, *_ in whole[:4])
    assert torch.allclose(seen[-1][1].scores, whole[-1][1].scores, atol=1e-5)


def test_a_second_call_at_the_same_sigma_counts_once_when_measuring_every_other():
    config, memory, wanted = SPGuardConfig(gate=GateConfig(probe=0.4, every=2)), Memory(), []
    for number in (0, 1, 1, 2, 2, 3, 3):
        step = make(number, [[0.2, 0.5]] * 2)
        wanted.append(bool(sp_guard.needs(step.coming, config, memory).all()))
        memory = sp_guard.sp_guard(step, config, memory).memory
    assert wanted == [True, False, False, True, True, False, False]


def test_the_strength_goes_from_nothing_to_its_maximum_to_the_late_value_to_nothing():
    config = SPGuardConfig(end=0.8)
    moves = []
    for number, (_, got, _) in enumerate(walk(config, [[0.5], [0.5]])):
        step = make(number, [[0.5], [0.5]])
        push = sp_guard.mask(step.toward("prompt"), step.toward(0), config) * step.toward(0)
        moves.append(float((got.denoised - cfg(step.prompt, step.base, 4.0)).norm() / (4.0 * 0.5 * push).norm()))
    assert moves == pytest.approx([0, 0, 4, 4, 4, 4, 1, 1, 1, 0], abs=1e-4)


def test_a_run_from_the_middle_of_the_schedule_measures_first_too():
    seen = walk(SPGuardConfig(gate=GateConfig(probe=0.4)), [[0.5], [0.5]], range(5, STEPS))
    assert [plain for *_, plain in seen] == [True, True, False, False, False]


def test_a_rising_sigma_measures_again():
    config = SPGuardConfig()
    first = walk(config, [[0.5], [0.0]])
    again = walk(config, [[0.0], [0.5]], memory=first[-1][1].memory)
    assert [got.acted.tolist() for _, got, _ in again] == [[False, False]] * 2 + [[False, True]] * 8


def test_no_strength_ahead_asks_for_nothing_even_while_measuring():
    coming = Coming(1.0, 0.0, 2, 3)
    assert sp_guard.needs(coming, SPGuardConfig()).all()
    assert not sp_guard.needs(coming, SPGuardConfig(lambda_max=0, lambda_end=0)).any()
    assert not sp_guard.needs(coming, SPGuardConfig(lambda_max=0, end=0.5)).any()


def test_what_is_taken_off_the_score_is_an_offset_or_measured_with_neutral_texts():
    step = make(0, [[0.5, 0.2, 0.4], [0.5, 0.2, 0.4]])
    plain = replace(step, concepts=step.concepts[:2])

    def score(config, step):
        return gate.scores(config, gate.observe(step, config, None))

    raw = torch.tensor([[0.5, 0.2]] * 2)
    assert torch.allclose(score(GateConfig(), plain), raw, atol=1e-5)
    assert torch.allclose(score(GateConfig(offset=0.3), plain), (raw - 0.3).clamp(min=0), atol=1e-5)
    neutral = replace(plain, neutrals=(step.concepts[2], step.concepts[1]))
    assert torch.allclose(score(GateConfig(), neutral), (raw - 0.3).clamp(min=0), atol=1e-5)


@pytest.mark.parametrize(("threshold", "open_"), [(0.0, [True, True, False]), (0.3, [True, False, False])])
def test_the_gate_is_open_from_the_threshold_on_and_never_at_zero(threshold, open_):
    scores = torch.tensor([[0.3, 0.1], [0.0, 0.2], [0.0, 0.0]])
    assert gate.is_open(GateConfig(threshold=threshold), scores).tolist() == open_


def test_the_gate_alone_says_what_is_needed():
    config, memory = GateConfig(), Memory()
    for number in range(2):
        step = make(number, [[0.5, 0.1], [0.0, 0.0]])
        assert gate.needs(step.coming, config, memory).all()
        memory = memory.store(step.coming.sigma, gate.observe(step, config, memory.recall(step.coming.sigma)))
    assert gate.needs(make(2, [[0.5, 0.1]] * 2).coming, config, memory).tolist() == [[True, True], [False, False]]
