"""The gate: it measures as long as it should, closes for good, per sample, and then asks for nothing."""

import math
from dataclasses import replace

import pytest
import torch

from safeguidance.guidance import gate, sp_guard
from safeguidance.guidance.directions import indices
from safeguidance.guidance.gate import GateConfig
from safeguidance.guidance.method import State, Step, StepInfo
from safeguidance.guidance.sp_guard import SPGuardConfig
from safeguidance.predictions import cfg
from tests.core.reference_guidance import minus, numbers, projected_cosine_reference

STEPS = 10
GATE = GateConfig(settle=0.0, threshold=0.05)
GUARD = SPGuardConfig(end=1.0, gate=GATE)


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


def walk(config, agrees, steps=range(STEPS), state=None):
    """Per evaluation, what was needed and what came out."""
    state, seen = state or State(), []
    for number in steps:
        step = make(number, agrees)
        wanted = sp_guard.required_concepts(step.info, config, state)
        got = sp_guard.sp_guard(step, config, state)
        seen.append((wanted, got, torch.equal(got.denoised, cfg(step.prompt, step.base, step.scale))))
        state = got.state
    return seen


def test_all_concepts_while_measuring_then_the_nearest_of_samples_whose_gate_is_open():
    seen = walk(GUARD, [[0.1, 0.5, 0.3], [0.01, 0.02, -0.3]])
    assert [indices(w) for w, *_ in seen] == [(0, 1, 2)] * 2 + [(1,)] * 8
    assert all(w[1].sum() == (3 if i < 2 else 0) for i, (w, *_) in enumerate(seen))
    assert all(plain for *_, plain in seen[:2])
    assert not any(plain for *_, plain in seen[2:])
    for number, (_, got, _) in enumerate(seen):
        step = make(number, [[0.0]] * 2)
        assert torch.equal(got.denoised[1], cfg(step.prompt, step.base, 4.0)[1])
        assert got.acted.tolist() == [number >= 2, False]
    assert seen[-1][1].chosen.tolist() == [1, -1]
    assert torch.allclose(seen[-1][1].scores, torch.tensor([[0.1, 0.5, 0.3], [0.01, 0.02, 0.0]]), atol=1e-5)


def test_a_run_of_harmless_prompts_is_plain_cfg_throughout():
    seen = walk(GUARD, [[0.01, 0.04], [-0.5, 0.0]])
    assert all(plain for *_, plain in seen)
    assert [indices(w) for w, *_ in seen] == [(0, 1)] * 2 + [()] * 8


def test_once_closed_it_stays_closed_whatever_comes_later():
    config, state = GUARD, State()
    for number in range(STEPS):
        step = make(number, [[0.0], [0.0]] if number < 2 else [[1.0], [1.0]])
        got = sp_guard.sp_guard(step, config, state)
        state = got.state
        assert torch.equal(got.denoised, cfg(step.prompt, step.base, step.scale))


@pytest.mark.parametrize(("concept", "wanted"), [("probed", (1,)), ("step", (0, 1)), ("all", (0, 1))])
def test_how_many_concepts_are_needed_depends_on_the_choice(concept, wanted):
    seen = walk(replace(GUARD, concept=concept), [[0.2, 0.5], [0.2, 0.5]])
    assert indices(seen[-1][0]) == wanted


def test_measuring_at_every_second_call_halves_the_cost_and_gives_the_same_score():
    agrees = [[0.2, 0.5], [0.3, 0.1]]
    config = SPGuardConfig(end=1.0, gate=replace(GATE, probe=0.4, every=2))
    seen, whole = walk(config, agrees), walk(replace(config, gate=replace(GATE, probe=0.4)), agrees)
    assert [bool(w.all()) for w, *_ in seen[:4]] == [True, False, True, False]
    assert all(w.all() for w, *_ in whole[:4])
    assert torch.allclose(seen[-1][1].scores, whole[-1][1].scores, atol=1e-5)


def test_a_second_call_at_the_same_sigma_counts_once_when_measuring_every_other():
    config, state, wanted = SPGuardConfig(end=1.0, gate=replace(GATE, probe=0.4, every=2)), State(), []
    for number in (0, 1, 1, 2, 2, 3, 3):
        step = make(number, [[0.2, 0.5]] * 2)
        wanted.append(bool(sp_guard.required_concepts(step.info, config, state).all()))
        state = sp_guard.sp_guard(step, config, state).state
    assert wanted == [True, False, False, True, True, False, False]


def test_the_strength_goes_from_nothing_to_its_maximum_to_the_late_value_to_nothing():
    config = replace(GUARD, switch=0.6, end=0.8)
    moves = []
    for number, (_, got, _) in enumerate(walk(config, [[0.5], [0.5]])):
        step = make(number, [[0.5], [0.5]])
        push = sp_guard.mask(step.direction("prompt"), step.direction(0), config) * step.direction(0)
        moves.append(float((got.denoised - cfg(step.prompt, step.base, 4.0)).norm() / (4.0 * 0.5 * push).norm()))
    assert moves == pytest.approx([0, 0, 4, 4, 4, 4, 1, 1, 1, 0], abs=1e-4)


def test_a_run_from_the_middle_of_the_schedule_measures_first_too():
    seen = walk(SPGuardConfig(end=1.0, gate=replace(GATE, probe=0.4)), [[0.5], [0.5]], range(5, STEPS))
    assert [plain for *_, plain in seen] == [True, True, False, False, False]


def test_a_rising_sigma_measures_again():
    config = GUARD
    first = walk(config, [[0.5], [0.0]])
    again = walk(config, [[0.0], [0.5]], state=first[-1][1].state)
    assert [got.acted.tolist() for _, got, _ in again] == [[False, False]] * 2 + [[False, True]] * 8


def test_no_strength_ahead_asks_for_nothing_even_while_measuring():
    info = StepInfo(1.0, 0.0, 2, 3)
    assert sp_guard.required_concepts(info, GUARD).all()
    assert not sp_guard.required_concepts(info, SPGuardConfig(lambda_max=0, lambda_end=0)).any()
    assert not sp_guard.required_concepts(info, SPGuardConfig(lambda_max=0, end=0.5)).any()


def measured(step, config):
    return gate.scores(config, gate.observe(step, config, None))


def test_what_is_taken_off_the_score_is_an_offset_of_the_model_or_the_mean_of_neutral_texts():
    step = make(0, [[0.5, 0.2, 0.4], [0.5, 0.2, 0.4]])
    plain = replace(step, concepts=step.concepts[:2])
    raw = torch.tensor([[0.5, 0.2]] * 2)
    assert torch.allclose(measured(plain, GATE), raw, atol=1e-5)
    assert torch.allclose(measured(plain, replace(GATE, offset=0.3)), (raw - 0.3).clamp(min=0), atol=1e-5)
    each = torch.tensor([0.1, -0.2])
    assert torch.allclose(measured(plain, replace(GATE, offset=(0.1, -0.2))), raw - each, atol=1e-5)
    neutral = replace(plain, neutrals=(step.concepts[2], step.concepts[1]))
    mean = replace(GATE, reference="mean")
    assert torch.allclose(measured(neutral, mean), (raw - 0.3).clamp(min=0), atol=1e-5)
    assert torch.allclose(measured(neutral, replace(GATE, reference="none")), raw, atol=1e-5)


def test_an_offset_for_another_number_of_concepts_is_refused():
    with pytest.raises(ValueError, match="offset: it has 3 numbers; allowed: one number, or one per concept, 2"):
        measured(make(0, [[0.5, 0.2]] * 2), replace(GATE, offset=(0.1, 0.2, 0.3)))


@pytest.mark.parametrize("shape", [(1, 4, 5, 6), (3, 3, 2, 4, 5)])
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_what_neutral_texts_explain_does_not_count(shape, size):
    """Prompt and concept share a large common part; only the small part of their own decides."""
    generator = torch.Generator().manual_seed(3)
    axes = torch.linalg.qr(torch.randn(math.prod(shape[1:]), 6, generator=generator)).Q.T
    common, more, own, other, extra, _ = (size * a.reshape(shape[1:]).expand(shape) for a in axes)
    base = torch.zeros(shape)
    concepts = (common + 0.1 * own, common + 0.1 * other)
    neutrals = (common, common * 2, common + more, base)
    step = Step(2 * common + more + 0.1 * own, base, concepts, base, torch.ones(shape[0]), 4.0, 0.0, neutrals)
    assert measured(replace(step, neutrals=()), GATE).min() > 0.8
    expected = torch.tensor([[1.0, 0.0]]).expand(shape[0], 2)
    assert torch.allclose(measured(step, GATE), expected, atol=1e-3)
    for prompt in (2 * common + more + 0.1 * extra, 2 * common + more):
        assert measured(replace(step, prompt=prompt), GATE).max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_projection_is_the_one_of_the_normal_equations(dtype):
    made = torch.randn(6, 2, 3, 4, 4, generator=torch.Generator().manual_seed(8))
    made[1:] += made[:1]
    base, prompt, *others = made.to(dtype)
    step = Step(prompt, base, tuple(others[:2]), base, torch.ones(2), 4.0, 0.0, tuple(others[2:]))
    for b in range(2):
        named = [numbers(t[b]) for t in (step.prompt, *step.concepts, *step.neutrals)]
        prompt, *others = (minus(named_, numbers(step.base[b])) for named_ in named)
        expected = [projected_cosine_reference(prompt, concept, others[2:]) for concept in others[:2]]
        got = gate.observe(step, GATE, None).total[b]
        assert got.tolist() == pytest.approx(expected, abs=1e-4)


def measuring(config, points):
    """At which of these progresses concepts are asked for."""
    state, found = State(), []
    for number, point in enumerate(points):
        step = make(number, [[0.0]] * 2, sigma=1 - 0.01 * number, progress=point)
        if sp_guard.required_concepts(step.info, config, state).any():
            found.append(point)
        state = sp_guard.sp_guard(step, config, state).state
    return found


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (20, 1, [0.15]),
        (40, 1, [0.15, 0.175]),
        (40, 2, [0.15]),
        (50, 1, [0.16, 0.18]),
        (10, 1, [0.1]),
        (4, 1, [0.25]),
        (100, 2, [0.15, 0.17, 0.19]),
    ],
)
def test_the_first_measurement_waits_but_is_made_in_runs_of_any_length(steps, every, expected):
    config = SPGuardConfig(end=1.0, gate=GateConfig(every=every))
    assert measuring(config, [i / steps for i in range(steps)]) == pytest.approx(expected)


@pytest.mark.parametrize(("probe", "expected"), [(0.1, [0.08]), (0.4, [0.3, 0.32, 0.34, 0.36, 0.38])])
def test_a_shorter_or_longer_measuring_part_waits_in_proportion(probe, expected):
    config = SPGuardConfig(end=1.0, gate=GateConfig(probe=probe))
    assert measuring(config, [i / 50 for i in range(50)]) == pytest.approx(expected)


def test_the_printed_proxy_is_measured_from_the_first_step_on():
    config = SPGuardConfig(end=1.0, gate=replace(gate.PRINTED, threshold=0.1))
    assert measuring(config, [i / 50 for i in range(50)]) == pytest.approx([i / 50 for i in range(10)])


def test_calibrating_gives_the_wanted_share_of_false_positives():
    generator = torch.Generator().manual_seed(4)
    raw = torch.tensor([0.1, 0.3]) + 0.05 * torch.randn(400, 2, generator=generator)
    config = gate.calibrate(GateConfig(offset=-1), raw[:200] + 1)
    assert config.offset == pytest.approx((0.1, 0.3), abs=0.02)
    fresh = (raw[200:] - torch.tensor(config.offset)).clamp(min=0)
    assert gate.is_open(config, fresh).float().mean() <= 0.03
    loose = gate.calibrate(GateConfig(offset=-1), raw[:200] + 1, false_positives=0.2)
    assert loose.threshold < config.threshold
    assert 0.1 < gate.is_open(loose, fresh).float().mean() < 0.3


@pytest.mark.parametrize(
    ("config", "count", "share", "words"),
    [
        (GateConfig(offset=-1), 7, 0.01, "7 harmless prompts"),
        (GateConfig(), 20, 0.01, "offset: it is 0.0"),
        (GateConfig(offset=-1), 20, 0.9, "false_positives: it is 0.9"),
    ],
)
def test_calibrating_with_too_little_or_cut_off_scores_is_refused(config, count, share, words):
    with pytest.raises(ValueError, match=words + ".*allowed"):
        gate.calibrate(config, torch.ones(count, 2), share)


@pytest.mark.parametrize(("threshold", "open_"), [(0.0, [True, True, False]), (0.3, [True, False, False])])
def test_the_gate_is_open_from_the_threshold_on_and_never_at_zero(threshold, open_):
    scores = torch.tensor([[0.3, 0.1], [0.0, 0.2], [0.0, 0.0]])
    assert gate.is_open(GateConfig(threshold=threshold), scores).tolist() == open_


def test_the_gate_alone_says_what_is_needed():
    config, state = GATE, State()
    for number in range(2):
        step = make(number, [[0.5, 0.1], [0.0, 0.0]])
        assert gate.required_concepts(step.info, config, state).all()
        state = state.store(step.info.sigma, gate.observe(step, config, state.recall(step.info.sigma)))
    assert gate.required_concepts(make(2, [[0.5, 0.1]] * 2).info, config, state).tolist() == [
        [True, True],
        [False, False],
    ]
