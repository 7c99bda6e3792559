"""SAFREE's self-validation, re-attention and settings, against slow transcriptions and by their properties."""

from __future__ import annotations

import math

import pytest
import torch

from safeguidance.safree import (
    FilterConfig,
    ReattentionConfig,
    TriggerConfig,
    ValidationConfig,
    held_share,
    reattend,
    strength_of_change,
)
from tests.core import reference_safree as slow

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def rows(count, seed=0, width=24):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("beta", [0.0, 0.45, 0.48, 0.5, 0.52, 0.533, 0.55, 0.57, 0.6, 1.0, 2.0])
def test_how_long_the_filter_holds(beta):
    assert held_share(beta, ValidationConfig()) == pytest.approx((slow.program_steps(beta) + 1) / 50)
    assert held_share(beta, ValidationConfig(t0=5.5, k=3.5)) == pytest.approx(
        (slow.program_steps(beta, t0=5.5, k=3.5) + 1) / 50
    )
    assert held_share(beta, ValidationConfig("paper")) == pytest.approx((slow.paper_steps(beta) + 1) / 50)
    assert held_share(beta, ValidationConfig("whole")) == 1.0


def test_the_change_of_a_prompt_is_a_mean_over_all_its_chunks():
    a, b = rows(3), rows(5, 1)
    assert strength_of_change([]) == 0
    assert strength_of_change([(a, a)]) == pytest.approx(0, abs=1e-6)
    assert strength_of_change([(-a, a)]) == pytest.approx(2, abs=1e-6)
    assert strength_of_change([(a, a), (-b, b)]) == pytest.approx(2 * 5 / 8, abs=1e-6)


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (6, 4)])
@pytest.mark.parametrize("radius", [1, 2])
@pytest.mark.parametrize("band", ["low", "high", "all"])
def test_reattention_word_for_word(size, radius, band):
    generator = torch.Generator().manual_seed(1)
    ours, theirs = (torch.randn(1, 1, *size, generator=generator) for _ in range(2))
    got = reattend(ours, theirs, 0.3, ReattentionConfig(radius=radius, band=band))
    expected = slow.reattended(ours[0, 0].tolist(), theirs[0, 0].tolist(), 0.3, radius, band)
    # damping one of a pair of conjugate coefficients leaves an imaginary rest that is dropped, in both
    assert torch.allclose(got[0, 0], torch.tensor(expected), atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 2, 6, 6), (3, 2, 6, 6), (1, 2, 3, 6, 6), (3, 2, 3, 6, 6)])
def test_reattention_is_per_sample_keeps_types_and_is_nothing_at_factor_one(shape, dtype):
    generator = torch.Generator().manual_seed(1)
    ours, theirs = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    config = ReattentionConfig()
    assert reattend(ours, theirs, 1.0, config) is ours
    got = reattend(ours, theirs, 0.2, config)
    assert got.dtype == dtype
    assert got.shape == shape
    assert not torch.equal(got, ours)
    alone = torch.cat([reattend(a[None], b[None], 0.2, config) for a, b in zip(ours, theirs, strict=True)])
    assert torch.allclose(got.float(), alone.float(), atol=1e-3 if dtype != torch.float32 else 1e-6)
    weak = torch.zeros_like(ours)
    assert torch.allclose(reattend(weak, theirs, 0.2, config), weak)


def test_reattention_window_and_factors():
    config = ReattentionConfig(start=0.2, end=0.6, strength=0.5)
    assert [config.active(p) for p in (0.0, 0.2, 0.5, 0.6, 1.0)] == [False, True, True, True, False]
    assert [config.factor(d) for d in range(3)] == pytest.approx([0.95, 0.6, 1.0])
    assert not ReattentionConfig(strength=0).active(0.5)
    assert not ReattentionConfig(scales=(1, 1)).active(0.5)


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (TriggerConfig, {"alpha": -1}, "alpha: it is -1"),
        (TriggerConfig, {"choose": "x"}, "choose: it is 'x'"),
        (FilterConfig, {"order": "x"}, "order: it is 'x'"),
        (FilterConfig, {"scope": "x"}, "scope: it is 'x'"),
        (ValidationConfig, {"form": "x"}, "form: it is 'x'"),
        (ValidationConfig, {"up": 50}, "up: it is 50"),
        (ValidationConfig, {"of": 0}, "of: it is 0"),
        (ValidationConfig, {"t0": 11}, "t0: it is 11"),
        (ValidationConfig, {"k": 0}, "k: it is 0"),
        (ReattentionConfig, {"scales": (2, 1)}, "scales: it is 2"),
        (ReattentionConfig, {"scales": (1,)}, "scales: there are 1"),
        (ReattentionConfig, {"strength": 2}, "strength: it is 2"),
        (ReattentionConfig, {"radius": 0}, "radius: it is 0"),
        (ReattentionConfig, {"band": "x"}, "band: it is 'x'"),
        (ReattentionConfig, {"start": 0.6, "end": 0.2}, "window: it is 0.6 to 0.2"),
    ],
)
def test_settings_out_of_range_are_refused_by_name_with_what_is_allowed(config, changes, words):
    with pytest.raises(ValueError, match=words + ".*allowed"):
        config(**changes)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True])
@pytest.mark.parametrize(
    ("config", "name"),
    [
        (TriggerConfig, "alpha"),
        (ValidationConfig, "t0"),
        (ValidationConfig, "k"),
        (ReattentionConfig, "strength"),
        (ReattentionConfig, "start"),
        (ReattentionConfig, "end"),
    ],
)
def test_what_is_not_a_number_is_no_setting(config, name, value):
    with pytest.raises(ValueError, match=f"it is .*{value}.*allowed"):
        config(**{name: value})
