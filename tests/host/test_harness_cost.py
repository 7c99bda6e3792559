"""Measuring cost on a small network: what is counted is what the host evaluates."""

from __future__ import annotations

import pytest

from tools import cost

POSITIVE, NEGATIVE = cost.random_conditioning(1), cost.random_conditioning(2)


def stock(model):
    return cost.stock_guider(model, POSITIVE, NEGATIVE, 7.5)


@pytest.fixture(scope="module")
def model(host):
    return cost.build_model("small")


def test_stock_against_itself(model):
    result = cost.measure(model, stock, stock, steps=3, repeats=3)
    for name in ("stock", "guarded"):
        assert result[name]["calls_per_step"] == 1
        assert result[name]["rows_per_step"] == 2
    ratio = result["ratio"]
    assert ratio["min"] <= ratio["median"] <= ratio["max"]
    assert ratio["median"] > 0


def test_a_third_prediction_shows_as_a_third_row(model):
    import comfy.samplers

    class Third(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
            conds = [self.conds.get(name) for name in ("positive", "negative", "concept")]
            outs = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)
            return outs[1] + (outs[0] - outs[1]) * self.cfg

    def three(model):
        guider = Third(model)
        guider.inner_set_conds({"positive": POSITIVE, "negative": NEGATIVE, "concept": cost.random_conditioning(3)})
        guider.set_cfg(7.5)
        return guider

    result = cost.measure(model, stock, three, steps=2, repeats=1)
    assert result["guarded"]["calls_per_step"] == 1
    assert result["guarded"]["rows_per_step"] == 3


def test_cfg_one_asks_for_one_row(model):
    result = cost.measure(model, stock, lambda m: cost.stock_guider(m, POSITIVE, NEGATIVE, 1.0), steps=2, repeats=1)
    assert result["guarded"]["rows_per_step"] == 1


def test_errors(model):
    with pytest.raises(cost.CostError, match="Allowed: small,"):
        cost.build_model("large")
    with pytest.raises(cost.CostError, match="at least 1"):
        cost.measure(model, stock, stock, steps=0)


def test_safecfg_costs_one_batch_of_two_rows_like_stock(model):
    redirector = cost.random_redirector()

    def guarded(model):
        return cost.guarded_guider(model, POSITIVE, NEGATIVE, 7.5, redirector)

    result = cost.measure(model, stock, guarded, steps=3, repeats=1)
    for name in ("stock", "guarded"):
        assert result[name]["calls_per_step"] == 1
        assert result[name]["rows_per_step"] == 2
    assert cost.network_bytes(redirector.network) > 4 * 28_000_000
