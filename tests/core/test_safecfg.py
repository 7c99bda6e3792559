"""The maths of SafeCFG: neutral is exact, the target does what it is derived to do."""

import pytest
import torch

from safeguidance.guidance.safecfg import SafeCFGConfig, gate_open, kappa, redirect
from safeguidance.predictions import cfg
from safeguidance.training.target import target
from tests.core.reference import cfg_reference, redirect_reference, target_reference

SHAPES = [(1, 4, 6, 5), (3, 4, 6, 5), (1, 3, 2, 4, 5), (3, 3, 2, 4, 5)]


def _predictions(shape, dtype=torch.float64, count=3):
    generator = torch.Generator().manual_seed(sum(shape))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_clean_target_is_the_base_prediction_bit_for_bit(shape, dtype):
    base, prompt = _predictions(shape, dtype, 2)
    assert torch.equal(target(base, prompt, prompt, kappa(3.0)), base)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [2.0, 3.0, 7.5, 12.0])
def test_at_the_training_scale_the_harmful_prompt_gives_cfg_on_its_safe_counterpart(shape, scale):
    base, prompt, safe = _predictions(shape)
    redirected = target(base, prompt, safe, kappa(scale))
    assert torch.allclose(cfg(prompt, redirected, scale), cfg(safe, base, scale), atol=1e-5)


@pytest.mark.parametrize("used", [2.0, 6.5, 12.0])
@pytest.mark.parametrize("trained", [3.0, 7.5])
def test_leftover_at_another_scale_is_one_minus_the_ratio_of_etas(used, trained):
    base, prompt, safe = _predictions((2, 4, 6, 5))
    redirected = target(base, prompt, safe, kappa(trained))
    rest = cfg(prompt, redirected, used) - cfg(safe, base, used)
    leftover = 1 - (used - 1) / (trained - 1)
    assert torch.allclose(rest, leftover * (prompt - safe), atol=1e-5)


@pytest.mark.parametrize("used", [2.0, 6.5, 12.0])
def test_rescaling_by_the_kappas_removes_the_leftover(used):
    base, prompt, safe = _predictions((2, 4, 6, 5))
    change = target(base, prompt, safe, kappa(3.0)) - base
    rescaled = base + kappa(used) / kappa(3.0) * change
    assert torch.allclose(cfg(prompt, rescaled, used), cfg(safe, base, used), atol=1e-5)


def test_rescaling_the_conditioning_removes_the_leftover_to_first_order():
    """With a smooth denoiser the error of rescaling the conditioning falls with the square of the change."""
    generator = torch.Generator().manual_seed(3)
    mix = torch.randn(5, 7, generator=generator, dtype=torch.float64)

    def denoiser(cond):
        return torch.tanh(cond @ mix)

    base = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    direction = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    errors, ratio = [], kappa(7.5) / kappa(3.0)
    for size in (0.1, 0.05):
        exact = denoiser(base) + ratio * (denoiser(base + size * direction) - denoiser(base))
        errors.append((denoiser(base + ratio * size * direction) - exact).abs().max())
    assert errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize("shape", [(1, 4, 3, 2), (2, 3, 2, 2, 2)])
def test_fast_formulas_agree_with_the_literal_ones(shape):
    base, prompt, safe = _predictions(shape)
    gate = torch.rand(shape[0])
    assert torch.allclose(cfg(prompt, base, 7.5), cfg_reference(prompt, base, 7.5))
    assert torch.allclose(target(base, prompt, safe, kappa(7.5)), target_reference(base, prompt, safe, 6.5))
    expected = redirect_reference(base.float(), prompt.float(), gate, 0.7)
    assert torch.allclose(redirect(base.float(), prompt.float(), gate, 0.7).double(), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_closed_gate_or_zero_strength_returns_the_base_bit_for_bit(dtype, batch):
    base, delta = (torch.randn(batch, 7, 16).to(dtype) for _ in range(2))
    delta[0, 0, 0] = float("inf")
    assert torch.equal(redirect(base, delta, torch.zeros(batch), 1.0), base)
    assert torch.equal(redirect(base, delta, torch.ones(batch), 0.0), base)


def test_gates_act_per_sample():
    base, delta = torch.randn(3, 7, 16), torch.randn(3, 7, 16)
    gate = gate_open(torch.tensor([0.9, 0.1, 0.6]), 0.5)
    moved = redirect(base, delta, gate, 1.0)
    assert torch.equal(moved[1], base[1])
    for i in (0, 2):
        assert torch.equal(moved[i], redirect(base[i : i + 1], delta[i : i + 1], gate[i : i + 1], 1.0)[0])


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_kappa_refuses_a_scale_without_an_unconditional_branch(scale):
    with pytest.raises(ValueError, match="above 1"):
        kappa(scale)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"strength": -0.1}, "strength"),
        ({"strength": 2.1}, "strength"),
        ({"start": 0.7, "end": 0.3}, "window"),
        ({"end": 1.2}, "end"),
        ({"threshold": 1.5}, "threshold"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, word):
    with pytest.raises(ValueError, match=word):
        SafeCFGConfig(**settings)


def test_the_window_says_when_it_acts():
    config = SafeCFGConfig(start=0.2, end=0.6)
    assert [config.active(p) for p in (0.0, 0.2, 0.5, 0.6, 0.61, 1.0)] == [False, True, True, True, False, False]
    assert not SafeCFGConfig(start=0.5, end=0.5).active(0.5)
    assert not SafeCFGConfig(strength=0).active(0.5)
