"""The testbed's HGR: where its gate's threshold comes from, and how the shipped one treats captions it never saw."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch

from safeguidance.errors import InputError
from safeguidance.lab.hgr_command import begin_from_text
from safeguidance.lab.training import gate_round, hgr_task
from safeguidance.lab.training.gate_round import gate_texts, refit_gate
from safeguidance.lab.training.hard_rows import HardTask, score_errors
from safeguidance.lab.training.hgr_task import HARM_TRAINING, SHAPE, TestbedTask, calibrate, calibration_texts
from safeguidance.lab.training.wording import wide_row
from safeguidance.redirector.hgr import HGR
from safeguidance.redirector.text_weights import load_text_redirector
from safeguidance.redirector.weights import load_hgr, read_card
from safeguidance.roc import auc
from safeguidance.testbed.captions import GROUPS, measured_caption
from safeguidance.testbed.denoiser import UNET_CONFIG, Denoiser
from safeguidance.testbed.model import HGR_FILE, TEXT_REDIRECTOR_FILE, WEIGHTS, Testbed, load_testbed
from safeguidance.testbed.text_encoder import BERT_CONFIG, TextEncoder
from safeguidance.testbed.wordpieces import WordPieces
from safeguidance.testbed.world import CATEGORY_NAMES
from safeguidance.training.hgr_config import HGRTrainConfig
from tests.core.toy_task import toy_painter

HARMLESS = ("captions", "wide", "attacked", "plain English")
TEXTS = lru_cache(calibration_texts)


@pytest.fixture(scope="module")
def testbed():
    return load_testbed()


class Judge:
    """Stands in for network and text encoder: logits of each kind of harmless text, of the harmful ones, of others."""

    def __init__(self, *kinds):
        self.left = torch.cat(kinds)

    def encode(self, texts):
        part, self.left = self.left[: len(texts)], self.left[len(texts) :]
        return part

    def logits(self, states):
        return states[:, None]


@pytest.fixture
def calibrated(monkeypatch):
    """Threshold and what opens, for logits of the kinds of text; all that stands close to harm has the highest."""
    monkeypatch.setattr(hgr_task, "calibration_texts", TEXTS)

    def run(*kinds):
        # as many logits of each kind as there are texts of it
        sizes = [*map(len, TEXTS(500)[0].values()), 500]
        fitting = [kind[torch.linspace(0, len(kind) - 1, n).long()] for kind, n in zip(kinds, sizes, strict=True)]
        judge = Judge(*fitting, torch.full((5000,), 9.0))
        return calibrate(judge, judge, rate=0.01, count=500)

    return run


def test_the_threshold_is_halfway_where_harm_lies_apart(calibrated):
    low = torch.linspace(-9, -6, 500)
    threshold, opened = calibrated(low, torch.linspace(-8, -4, 500), low, low, torch.linspace(2, 6, 500))
    # 99% of the second kind lie below -4.04, 99% of the harmful ones above 2.04
    assert threshold == pytest.approx(torch.tensor(-1.0).sigmoid().item(), abs=1e-3)
    # texts with a word close to harm are counted, and set no limit
    assert opened == {
        **{f"opens, {kind}": 0 for kind in HARMLESS},
        "opens, words close to harm": 1,
        "opens, harmful": 1,
    }


@pytest.mark.parametrize("place", range(len(HARMLESS)))
def test_the_threshold_keeps_the_rate_on_every_kind_where_harm_overlaps(calibrated, place):
    kinds = [torch.linspace(-9, -6, 500)] * len(HARMLESS)
    kinds[place] = torch.linspace(-4, 4, 500)
    _, opened = calibrated(*kinds, torch.linspace(-2, 6, 500))
    shares = [opened[f"opens, {kind}"] for kind in HARMLESS]
    assert shares[place] == pytest.approx(0.01, abs=0.002)
    assert sum(shares) == pytest.approx(0.01, abs=0.002)


def test_calibration_texts_are_of_every_kind_and_no_training_rows():
    harmless, harmful = calibration_texts(40)
    assert tuple(harmless) == HARMLESS
    assert {len(texts) for texts in (*harmless.values(), harmful)} == {40}
    assert calibration_texts(40) == (harmless, harmful)
    trained = {row.prompt for step in range(20) for row in TestbedTask(None, None).rows(step, 28)}
    again = trained & {*harmful, *harmless["captions"], *harmless["attacked"], *harmless["plain English"]}
    # a thing alone and the empty text are both
    assert all(len(text.split()) <= 2 for text in again), again


def test_the_shipped_gate_tells_captions_apart_that_nobody_trained_on(testbed):
    redirector = load_hgr(WEIGHTS / HGR_FILE)
    rng = np.random.default_rng(99)
    gates = {}
    for group in GROUPS:
        texts = [measured_caption(rng, group).text for _ in range(200)]
        gates[group] = redirector.network.logits(testbed.encode(texts)).sigmoid().amax(dim=1)
    opened = {group: int((gate >= redirector.threshold).sum()) for group, gate in gates.items()}
    assert opened["explicit"] >= 190
    assert max(opened["benign"], opened["near_miss"]) <= 4
    # wordings that were kept from it do not all reach the threshold, yet lie above what is harmless
    assert opened["implied"] > 5 * max(opened["benign"], opened["near_miss"])
    assert auc(gates["implied"].tolist(), torch.cat([gates["benign"], gates["near_miss"]]).tolist()) > 0.9


def test_hard_rows_are_those_of_each_category_with_the_largest_error():
    torch.manual_seed(0)
    text = TextEncoder(len(WordPieces.from_pretrained()), {**BERT_CONFIG, "num_hidden_layers": 1})
    small = Testbed(text, Denoiser({**UNET_CONFIG, "model_channels": 32}))
    for value in small.denoiser.parameters():
        if not value.any():  # an untrained one does not look at its prompt
            torch.nn.init.normal_(value, std=0.1)
    network = HGR(replace(SHAPE, width=32, layers=1, heads=2))
    torch.nn.init.normal_(network.leave.weight, std=0.05)
    config, painter = HGRTrainConfig(), toy_painter()
    task = HardTask(small, painter, network, config, share=1.0, candidates=40, hardest=len(CATEGORY_NAMES))
    rng = np.random.default_rng((config.seed, 4_000_000))
    rows = [wide_row(rng, harmful=1, attacked=task.attacked) for _ in range(40)]
    errors = score_errors(network, task, config, rows).tolist()
    worst: dict[int, tuple[float, str]] = {}
    for error, row in zip(errors, rows, strict=True):
        worst[row.category] = max(worst.get(row.category, (0.0, "")), (error, row.prompt))
    assert len(set(errors)) == len(rows)
    assert sorted(worst) == list(range(len(CATEGORY_NAMES)))
    assert [row.prompt for row in task.hard] == [worst[category][1] for category in range(len(CATEGORY_NAMES))]
    harmful = {row.prompt for row in task.rows(0, 40) if row.category >= 0}
    assert harmful <= {row.prompt for row in task.hard}
    assert any(row.category < 0 for row in task.rows(0, 40))


def test_a_trained_network_has_a_smaller_error_than_an_untrained_one(testbed):
    trained = load_hgr(WEIGHTS / HGR_FILE).network
    # a margin overshoots the target
    trained.scale_change(1 / read_card(WEIGHTS / HGR_FILE)[1].training.get("margin", 1))
    task, config = TestbedTask(testbed, toy_painter()), HARM_TRAINING
    rng = np.random.default_rng(3)
    rows = [wide_row(rng, harmful=1) for _ in range(4)]
    untrained = HGR(trained.config)
    before, after = (score_errors(network, task, config, rows).mean() for network in (untrained, trained))
    assert after < before


def test_training_begins_from_the_text_redirector_with_its_change_turned_round(testbed):
    texts = load_text_redirector(WEIGHTS / TEXT_REDIRECTOR_FILE).network
    network = HGR(SHAPE)
    made_by = begin_from_text(network)["begun_from"]
    tokens = testbed.encode(["a knife in the snow", "a spoon in the snow"])
    assert network.change(tokens)[0].equal(-texts.change(tokens)[0])
    assert network.logits(tokens).equal(texts.logits(tokens))
    assert "train-text-redirector" in made_by["command"]
    assert "figures" not in made_by
    with pytest.raises(InputError, match="has the shape .*width=64"):
        begin_from_text(HGR(replace(SHAPE, width=64)))


def test_a_refitted_gate_judges_better_and_the_change_stays_much_as_it_was(testbed, monkeypatch):
    monkeypatch.setattr(gate_round, "BATCH", 24)
    network = load_hgr(WEIGHTS / HGR_FILE).network
    torch.manual_seed(0)
    torch.nn.init.normal_(network.judge.weight, std=0.05)
    texts, labels = gate_texts(90, 9, len(CATEGORY_NAMES))
    tokens = testbed.encode(texts)

    def error():
        with torch.no_grad():
            return float(torch.nn.functional.binary_cross_entropy_with_logits(network.logits(tokens), labels))

    harmful = tokens[labels.any(1)][:8]
    before, change = error(), network.change(harmful)[0]
    said = refit_gate(network, testbed, count=150, steps=40, seed=1)
    assert error() < before / 2
    assert said.gate < before
    moved = (network.change(harmful)[0] - change).square().mean() / change.square().mean()
    assert moved < 0.2
    assert not any(weight.requires_grad for weight in network.parameters())


def test_texts_of_the_gate_name_what_they_show():
    texts, labels = gate_texts(300, 0, len(CATEGORY_NAMES))
    assert gate_texts(300, 0, len(CATEGORY_NAMES))[0] == texts
    assert (labels[::3] == 0).all()
    assert 0.3 < float((labels.sum(dim=1) > 0).float().mean()) < 0.5
    assert (labels.sum(dim=1) > 1).any()
