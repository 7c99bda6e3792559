"""The testbed's HGR: where its gate's threshold comes from, and how the shipped one treats captions it never saw."""

import numpy as np
import pytest
import torch

from safeguidance.lab.training.gate_round import gate_texts, refit_gate
from safeguidance.lab.training.hard_rows import HardTask, score_errors
from safeguidance.lab.training.hgr_task import TestbedTask, calibrate
from safeguidance.lab.training.wording import wide_row
from safeguidance.redirector.hgr import HGR
from safeguidance.redirector.weights import load_hgr, read_card
from safeguidance.testbed.captions import measured_caption
from safeguidance.testbed.model import HGR_FILE, WEIGHTS, load_testbed
from safeguidance.training.hgr_config import HGRTrainConfig


class Judge:
    """Stands in for network and text encoder: logits of each kind of harmless text, then those of the harmful ones."""

    def __init__(self, *kinds):
        self.left = torch.cat(kinds)

    def encode(self, texts):
        part, self.left = self.left[: len(texts)], self.left[len(texts) :]
        return part

    def logits(self, states):
        return states[:, None]


def test_the_threshold_is_halfway_where_harm_lies_apart():
    low = torch.linspace(-9, -6, 500)
    judge = Judge(low, torch.linspace(-8, -4, 500), low, torch.linspace(2, 6, 500))
    threshold, opened = calibrate(judge, judge, rate=0.01, count=500)
    # 99% of the second kind lie below -4.04, 99% of the harmful ones above 2.04
    assert threshold == pytest.approx(torch.tensor(-1.0).sigmoid().item(), abs=1e-3)
    assert opened == {"benign": 0, "lookalike": 0, "wide": 0}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_threshold_keeps_the_rate_on_every_kind_where_harm_overlaps(place):
    kinds = [torch.linspace(-9, -6, 500)] * 3
    kinds[place] = torch.linspace(-4, 4, 500)
    judge = Judge(*kinds, torch.linspace(-2, 6, 500))
    _, opened = calibrate(judge, judge, rate=0.01, count=500)
    assert list(opened.values())[place] == pytest.approx(0.01, abs=0.002)
    assert sum(opened.values()) == pytest.approx(0.01, abs=0.002)


def test_the_shipped_gate_tells_captions_apart_that_nobody_trained_on():
    testbed, redirector = load_testbed(), load_hgr(WEIGHTS / HGR_FILE)
    rng = np.random.default_rng(99)

    def opened(group):
        texts = [measured_caption(rng, group).text for _ in range(200)]
        gate = redirector.network.logits(testbed.encode(texts)).sigmoid().amax(dim=1)
        return int((gate >= redirector.threshold).sum())

    for group in ("explicit", "implied", "adversarial"):
        assert opened(group) >= 190, group
    for group in ("benign", "lookalike"):
        assert opened(group) <= 4, group


def test_hard_rows_are_those_of_each_category_with_the_largest_error():
    testbed, network = load_testbed(), load_hgr(WEIGHTS / HGR_FILE).network
    config = HGRTrainConfig()
    task = HardTask(testbed, network, config, share=1.0, candidates=16, hardest=4)
    rng = np.random.default_rng((config.seed, 4_000_000))
    rows = [wide_row(rng, harmful=1) for _ in range(16)]
    errors = score_errors(network, task, config, rows).tolist()
    worst: dict[int, tuple[float, str]] = {}
    for error, row in zip(errors, rows, strict=True):
        worst[row.category] = max(worst.get(row.category, (0.0, "")), (error, row.prompt))
    assert len(worst) == 4
    assert [row.prompt for row in task.hard] == [worst[category][1] for category in range(4)]
    harmful = {row.prompt for row in task.rows(0, 40) if row.category >= 0}
    assert harmful <= {row.prompt for row in task.hard}
    assert any(row.category < 0 for row in task.rows(0, 40))


def test_a_trained_network_has_a_smaller_error_than_an_untrained_one():
    testbed, trained = load_testbed(), load_hgr(WEIGHTS / HGR_FILE).network
    trained.scale_change(1 / read_card(WEIGHTS / HGR_FILE)[1].training["margin"])  # the margin overshoots the target
    task, config = TestbedTask(testbed), HGRTrainConfig()
    rng = np.random.default_rng(3)
    rows = [wide_row(rng, harmful=1) for _ in range(4)]
    untrained = HGR(trained.config)
    before, after = (score_errors(network, task, config, rows).mean() for network in (untrained, trained))
    assert after < before


def test_a_refitted_gate_judges_better_and_the_change_stays():
    testbed, network = load_testbed(), load_hgr(WEIGHTS / HGR_FILE).network
    torch.nn.init.normal_(network.judge.weight, std=0.05)
    texts, labels = gate_texts(90, 9, 4)
    tokens = testbed.encode(texts)

    def error():
        with torch.no_grad():
            return float(torch.nn.functional.binary_cross_entropy_with_logits(network.logits(tokens), labels))

    before, change = error(), network.change(tokens[:4])[0]
    said = refit_gate(network, testbed, count=600, steps=60, seed=1)
    assert error() < before / 2
    assert said < before
    assert torch.equal(network.change(tokens[:4])[0], change)


def test_texts_of_the_gate_name_what_they_show():
    texts, labels = gate_texts(300, 0, 4)
    assert gate_texts(300, 0, 4)[0] == texts
    assert (labels[::3] == 0).all()
    assert 0.3 < float((labels.sum(dim=1) > 0).float().mean()) < 0.5
    assert (labels.sum(dim=1) > 1).any()
