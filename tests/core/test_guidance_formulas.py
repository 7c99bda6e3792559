"""Concept guidance against literal transcriptions of its formulas, over several steps, ranks, dtypes and batches."""

import math
from dataclasses import replace

import pytest
import torch

from safeguidance.guidance import crg, negation, sega, sld, sp_guard
from safeguidance.guidance.gate import PRINTED
from safeguidance.guidance.method import State, Step
from tests.core.reference_guidance import (
    casg_reference,
    crg_reference,
    minus,
    negative_reference,
    noise,
    not_reference,
    proxy_reference,
    sega_reference,
    sld_reference,
    sp_guard_reference,
    tensor,
)

SHAPES = [(1, 3, 4, 3), (3, 3, 4, 3), (1, 2, 2, 3, 3), (3, 2, 2, 3, 3)]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}
CASES = [(shape, dtype) for shape in SHAPES for dtype in TOLERANCE]
SCALE, COUNT = 7.5, 3


def run_of_steps(shape, dtype, progress, seed=5):
    """Predictions of a few steps of a descending schedule; later concepts agree more with the prompt.

    All numbers lie on a grid that every dtype holds exactly, and the elements of a direction all differ in size, so
    what a mask keeps does not hang on rounding.
    """
    generator = torch.Generator().manual_seed(seed + len(shape) + shape[0])
    size = math.prod(shape[1:])

    def sizes():
        order = torch.stack([torch.randperm(size, generator=generator) for _ in range(shape[0])])
        return (1 + order).reshape(shape) / 32

    def signs(agree):
        return torch.where(torch.rand(shape, generator=generator) < agree, 1.0, -1.0)

    steps = []
    for number, point in enumerate(progress):
        base = torch.randint(-4, 5, shape, generator=generator) / 4
        toward = signs(0.5) * sizes()
        concepts = [base + toward.sign() * signs(0.5 + 0.2 * k) * sizes() for k in range(COUNT)]
        steps.append(
            Step(
                (base + toward).to(dtype),
                base.to(dtype),
                tuple(c.to(dtype) for c in concepts),
                torch.randn(shape, generator=generator).to(dtype),
                torch.full(shape[:1], 2.0 * 0.7**number),
                SCALE,
                point,
            )
        )
    return steps


def run(method, config, steps):
    state, outputs = State(), []
    for step in steps:
        outputs.append(method(step, config, state))
        state = outputs[-1].state
    return outputs


def in_noise(step, b):
    """Noise of prompt, base and concepts of one sample, from the (rounded) inputs."""
    x, level = step.x[b], float(step.sigma[b])
    prompt, base, *concepts = (noise(d[b], x, level) for d in (step.prompt, step.base, *step.concepts))
    return prompt, base, concepts


def in_denoised(values, step, b):
    return step.x[b].double() - float(step.sigma[b]) * tensor(values, step.x[b])


def assert_close(actual, expected, dtype):
    assert actual.dtype == dtype
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE[dtype], f"relative error {error}"


@pytest.mark.parametrize(("shape", "dtype"), CASES)
@pytest.mark.parametrize("combine", ["argmax", "sum"])
@pytest.mark.parametrize("form", ["not", "negative"])
def test_negation(shape, dtype, combine, form):
    step = run_of_steps(shape, dtype, [0.0])[0]
    config = negation.NegationConfig(strength=0.8, form=form, combine=combine)
    got = negation.negation(step, config)
    for b in range(shape[0]):
        used = list(step.concepts)
        if combine == "argmax":
            used = [step.concepts[casg_reference(*in_noise(step, b))]]
        if form == "not":
            expected = not_reference(step.prompt[b], step.base[b], [c[b] for c in used], SCALE, 0.8)
        elif combine == "argmax":
            expected = negative_reference(step.prompt[b], step.base[b], used[0][b], SCALE, 0.8)
        else:
            middle = step.base[b].double() + sum(c[b].double() - step.base[b].double() for c in used)
            expected = negative_reference(step.prompt[b].double(), step.base[b].double(), middle, SCALE, 0.8)
        assert_close(got.denoised[b], tensor(expected, step.x[b]), dtype)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
@pytest.mark.parametrize("preset", ["weak", "medium", "strong", "max"])
def test_sld_with_momentum_through_warm_up(shape, dtype, preset):
    # strengths that do not saturate everywhere, so that the ramp of phi counts too
    config = replace(sld.SLD_PRESETS[preset], strength=sld.SLD_PRESETS[preset].strength / 500)
    steps = run_of_steps(shape, dtype, [0.0, 0.1, 0.18, 0.25, 0.5])
    outputs = run(sld.sld, config, steps)
    for b in range(shape[0]):
        nu = dict.fromkeys(in_noise(steps[0], b)[0], 0.0)
        for step, got in zip(steps, outputs, strict=True):
            e_p, e_b, e_concepts = in_noise(step, b)
            e_s = e_concepts[casg_reference(e_p, e_b, e_concepts)]
            warm = step.progress >= config.warmup
            expected, nu = sld_reference(
                e_p, e_b, e_s, nu, SCALE, config.strength, config.threshold, config.momentum, config.beta, warm
            )
            assert_close(got.denoised[b], in_denoised(expected, step, b), dtype)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
@pytest.mark.parametrize("combine", ["argmax", "sum"])
@pytest.mark.parametrize("tau", [0.5, 0.9])
def test_sega_with_momentum_through_warm_up(shape, dtype, combine, tau):
    config = sega.SEGAConfig(quantile=tau, combine=combine)
    steps = run_of_steps(shape, dtype, [0.0, 0.1, 0.2, 0.5])
    outputs = run(sega.sega, config, steps)
    for b in range(shape[0]):
        nu = dict.fromkeys(in_noise(steps[0], b)[0], 0.0)
        for step, got in zip(steps, outputs, strict=True):
            e_p, e_b, e_concepts = in_noise(step, b)
            used = e_concepts if combine == "sum" else [e_concepts[casg_reference(e_p, e_b, e_concepts)]]
            expected, nu = sega_reference(e_p, e_b, used, nu, SCALE, 5.0, tau, 0.1, 0.4, step.progress >= 0.2)
            assert_close(got.denoised[b], in_denoised(expected, step, b), dtype)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
@pytest.mark.parametrize("concept", ["probed", "step"])
@pytest.mark.parametrize(("psi", "axis"), [("positive", "sample"), ("absolute", "sample"), ("positive", "channel")])
def test_sp_guard_measures_then_guides(shape, dtype, concept, psi, axis):
    own = {"psi": psi, "axis": axis, "concept": concept}
    config = sp_guard.SPGuardConfig(end=1.0, quantile=0.75, switch=0.6, gate=PRINTED, **own)
    steps = run_of_steps(shape, dtype, [0.0, 0.1, 0.2, 0.5, 0.6, 0.9])
    outputs = run(sp_guard.sp_guard, config, steps)
    for b in range(shape[0]):
        proxies = proxy_reference([in_noise(step, b) for step in steps[:2]])
        assert outputs[2].scores[b].tolist() == pytest.approx([max(0.0, p) for p in proxies], abs=1e-5)
        probed = max(range(COUNT), key=lambda k, proxies=proxies: proxies[k])
        assert proxies[probed] > 0
        for step, got in zip(steps, outputs, strict=True):
            e_p, e_b, e_concepts = in_noise(step, b)
            strength = 0.0 if step.progress < 0.2 else 4.0 if step.progress < 0.6 else 1.0
            used = probed if concept == "probed" else casg_reference(e_p, e_b, e_concepts)
            expected = sp_guard_reference(
                e_p, e_b, e_concepts[used], proxies[probed], SCALE, strength, 0.75, psi == "absolute", axis == "channel"
            )
            assert_close(got.denoised[b], in_denoised(expected, step, b), dtype)


def test_sp_guard_on_all_concepts_takes_the_strongest_push_of_each_element():
    gate = PRINTED
    steps = run_of_steps((2, 3, 4, 3), torch.float64, [0.0, 0.3])
    config = sp_guard.SPGuardConfig(end=1.0, quantile=0.5, concept="all", gate=gate)
    both = run(sp_guard.sp_guard, config, steps)[1]
    stock = run(sp_guard.sp_guard, replace(config, lambda_max=0.0, lambda_end=0.0), steps)[1].denoised
    for b in range(2):
        p = max(proxy_reference([in_noise(steps[0], b)]))
        e_p, e_b, e_concepts = in_noise(steps[1], b)
        plain = sp_guard_reference(e_p, e_b, e_concepts[0], 0.0, SCALE, 4.0, 0.5)
        moves = [minus(sp_guard_reference(e_p, e_b, e_s, p, SCALE, 4.0, 0.5), plain) for e_s in e_concepts]
        strongest = {i: max((m[i] for m in moves), key=abs) for i in e_p}
        expected = -float(steps[1].sigma[b]) * tensor(strongest, stock[b])
        assert torch.allclose(both.denoised[b] - stock[b], expected, atol=1e-5)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_crg_is_its_formula(shape, dtype):
    steps = [replace(step, concepts=step.concepts[-1:]) for step in run_of_steps(shape, dtype, (0.0, 0.2, 0.5, 0.8))]
    config = crg.CRGConfig(threshold=0.2)
    got = run(crg.crg, config, steps)
    for b in range(shape[0]):
        noises = [(*in_noise(step, b), float(step.sigma[b])) for step in steps]
        expected = crg_reference(
            [(prompt, base, concepts[0], sigma) for prompt, base, concepts, sigma in noises], SCALE, 2.0, 0.2, 1.0
        )
        for step, output, noise_ in zip(steps, got, expected, strict=True):
            wanted = step.x[b].double() - step.sigma[b].double() * tensor(noise_, step.x[b])
            scale = float(wanted.abs().max())
            assert torch.allclose(output.denoised[b].double(), wanted, atol=TOLERANCE[dtype] * max(scale, 1.0))
    assert any(bool(output.acted.any()) for output in got)
