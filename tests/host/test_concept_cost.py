"""What concept guidance asks of the model, counted on a UNet of the host with random weights."""

from __future__ import annotations

import pytest

from tools import cost, cost_concepts

STEPS = 20


@pytest.fixture(scope="module")
def model(host, pack):
    return cost.build_model("small")


def measured(model, name):
    return cost.measure(model, *cost_concepts.makers(name), side=8, steps=STEPS, repeats=1)["guarded"]


# predictions of 20 steps where plain CFG has 40, and calls of the model where it has 20
EXPECTED = {
    "sp_guard": (40 + 2 + 8, 20 + 1),
    "sp_guard_benign": (40 + 2, 20 + 1),
    "sp_guard_7": (40 + 8 + 8, 20 + 1),
    "sp_guard_7_benign": (40 + 8, 20 + 1),
    "sp_guard_published": (40 + 4 + 16, 20 + 4),
    "sp_guard_published_apart": (40 + 4 + 16, 20 + 20),
    "sld_max": (40 + 20, 20),
    "sld_max_apart": (40 + 20, 40),
}


def test_all_cases_are_expected():
    assert EXPECTED.keys() == cost_concepts.CASES.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_predictions_and_calls(model, name):
    rows, calls = EXPECTED[name]
    found = measured(model, name)
    assert found["rows_per_step"] * STEPS == pytest.approx(rows)
    assert found["calls_per_step"] * STEPS == pytest.approx(calls)


def test_the_budget_of_the_default_settings():
    """One concept at most 1.5 times plain CFG where it guides and 1.05 where it does not, seven at most 1.6."""
    share = {name: rows / 40 for name, (rows, _) in EXPECTED.items()}
    assert share["sp_guard"] <= 1.5
    assert share["sp_guard_benign"] <= 1.05
    assert share["sp_guard_7"] <= 1.6


def test_errors(model):
    with pytest.raises(cost.CostError, match="Allowed: safecfg, sp_guard"):
        cost_concepts.makers("nothing")
