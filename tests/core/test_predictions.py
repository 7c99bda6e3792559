"""Named predictions: what is handed on as the prompt's prediction gives the guided one back."""

from __future__ import annotations

import pytest
import torch

from safeguidance.predictions import cfg, fold_into_cond


@pytest.mark.parametrize("shape", [(3, 4, 6, 6), (2, 4, 3, 6, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 4.0, 0.5])
def test_the_guided_prediction_comes_back_and_the_rest_keeps_its_bits(shape, dtype, scale):
    generator = torch.Generator().manual_seed(0)
    prompt, base, change = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
    change = torch.where(change > 0.5, change, 0)
    stock = cfg(prompt, base, scale)
    guided = torch.where(change == 0, stock, stock + change)
    out = fold_into_cond(prompt, stock, guided, scale)
    assert out.dtype == dtype
    assert out.shape == prompt.shape
    same = guided == stock
    assert 0 < int(same.sum()) < same.numel()
    assert bool((out[same] == prompt[same]).all())
    slack = 1e-5 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps * max(scale, 1)
    torch.testing.assert_close(cfg(out, base, scale), guided, rtol=slack, atol=slack)
