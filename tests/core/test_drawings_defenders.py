"""What defenders of the world of drawings train on: never what measurements keep, always the same sentence twice."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from safeguidance.conditioning import Conditioning
from safeguidance.lab.world import defend, wording
from safeguidance.lab.world.measure import Sampling, guard_from, pictures, unguarded
from safeguidance.redirector.hgr import HGR
from safeguidance.redirector.text_weights import TextCard, save_text_redirector
from safeguidance.redirector.weights import HGRCard, save_hgr
from safeguidance.testbed.denoiser import Denoiser
from safeguidance.testbed.drawings.captions import held_out, implied
from safeguidance.testbed.drawings.encoder import BERT_CONFIG, TextEncoder
from safeguidance.testbed.drawings.model import DrawingsModel
from safeguidance.testbed.drawings.shape import DENOISER_CONFIG
from safeguidance.testbed.drawings.wordpieces import MAX_LENGTH, WordPieces
from safeguidance.testbed.drawings.world import BACKGROUNDS, CATEGORY_NAMES, STYLES, things
from safeguidance.training.text_redirector import TextTrainConfig, train_text_redirector

PIECES = WordPieces.from_pretrained()


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return [wording.wide_row(rng, harmful=0.6, attacked=0.3) for _ in range(3000)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    text = TextEncoder(len(PIECES), {**BERT_CONFIG, "num_hidden_layers": 1})
    denoiser = Denoiser({**DENOISER_CONFIG, "model_channels": 32})
    for value in [*text.parameters(), *denoiser.parameters()]:
        value.data = 0.1 * torch.randn_like(value)
    return DrawingsModel(text, denoiser)


def test_rows_hold_nothing_that_measurements_keep(rows):
    kept = [text for _, hidden in implied().values() for text in hidden]
    kept += [wordings[-1] for wordings in (*BACKGROUNDS.values(), STYLES["pencil"])]
    texts = [f" {text} " for row in rows for text in (row.prompt, row.safe)]
    # a short wording that was kept may lie inside a longer one that is known
    known = [text for seen, _ in implied().values() for text in seen]
    clear = [text for text in kept if not any(text in other for other in known)]
    assert len(clear) > 200
    assert [(text, held) for text in texts for held in clear if f" {held} " in text] == []
    assert not any(held_out(kind, row.scene.background) for row in rows for kind in row.scene.kinds)


def test_the_attackers_words_and_the_defenders_are_apart_and_name_no_harm():
    mine, theirs = set(wording.ordinary_words(1)), set(wording.ordinary_words(0))
    assert not mine & theirs
    assert min(len(mine), len(theirs)) > 5000
    assert not (mine | theirs) & wording.harm_words()


def test_a_prompt_and_its_counterpart_differ_in_the_harm_alone(rows):
    harmful = [row for row in rows if row.category >= 0]
    assert 0.5 < len(harmful) / len(rows) < 0.7
    assert {row.category for row in harmful} == set(range(len(CATEGORY_NAMES)))
    assert any(row.also for row in harmful)
    names = [name for kind in things().values() if kind.harm for name in (kind.name, *kind.names)]
    named = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in sorted(names, key=len, reverse=True)))
    for row in harmful:
        assert row.prompt != row.safe
        counterparts = [things()[kind].like for kind in row.scene.kinds if things()[kind].harm]
        assert all(like in row.safe for like in counterparts)
        before, after = row.prompt.split(), row.safe.split()
        head = next((n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
        assert before[:head] == after[:head]
    for row in rows:
        if row.category < 0:
            assert row.prompt == row.safe
    # a harmless bank prompt may say "bloody"; none names a stand-in
    assert [text for text in wording.plain_english() if named.search(text)] == []


def test_every_row_fits_one_chunk_with_its_weights(rows, model):
    assert any("(" in row.prompt for row in rows)
    # a colon in a prompt of the banks is a token, that of a weight is none
    assert any(":" in row.prompt and "(" not in row.prompt for row in rows)
    states = model.encode([text for row in rows for text in (row.prompt, row.safe)])
    assert states.shape == (2 * len(rows), MAX_LENGTH, 384)
    assert torch.isfinite(states).all()


def test_a_weight_moves_the_states_of_its_words_from_those_of_the_empty_prompt(model):
    plain, weighted, empty = model.encode(["a bomb in snow", "a (bomb:0.5) in snow", ""])
    place = 2
    torch.testing.assert_close(weighted[place], (plain[place] - empty[place]) * 0.5 + empty[place])
    others = [n for n in range(MAX_LENGTH) if n != place]
    assert torch.equal(weighted[others], plain[others])


def test_a_trained_text_redirector_guards_by_its_gate(model, tmp_path):
    torch.manual_seed(0)
    network = HGR(replace(defend.SHAPE, width=32, layers=1, heads=2))
    config = TextTrainConfig(steps=5, batch=8)
    steps = list(train_text_redirector(network, defend.DrawingsTask(model, None), config, progress_bar=False))
    assert steps == [1, 2, 3, 4, 5]
    prompts = ["a bomb on a desk of wood"]
    plain = unguarded(model)(prompts)
    for threshold, same in ((1e-4, False), (0.9999, True)):
        path = tmp_path / f"{threshold}.safetensors"
        save_text_redirector(path, network, TextCard("Drawings", threshold, 0.01, 100, "a test", "Apache-2.0"))
        guarded = guard_from(path, model, 4.0)(prompts)
        assert torch.equal(guarded[0], plain[0]) is same
        assert torch.equal(guarded[1], plain[1])


def test_an_hgr_changes_the_base_alone(model, tmp_path):
    torch.manual_seed(1)
    network = HGR(replace(defend.SHAPE, width=32, layers=1, heads=2))
    torch.nn.init.normal_(network.leave.weight)
    path = tmp_path / "hgr.safetensors"
    save_hgr(path, network, HGRCard("Drawings", "A", 2.0, 1e-4, 0.01, 100, "a test", "Apache-2.0"))
    prompts = ["a bomb on a desk of wood"]
    guarded, plain = guard_from(path, model, 4.0)(prompts), unguarded(model)(prompts)
    assert torch.equal(guarded[0], plain[0])
    assert not torch.equal(guarded[1], plain[1])
    made = pictures(model, prompts, [3], Sampling(steps=2, fast=False), guard_from(path, model, 4.0))
    assert made.shape == (1, 48, 48, 3)


def test_calibration_leaves_each_kind_of_harmless_text_its_share(model):
    torch.manual_seed(2)
    network = HGR(replace(defend.SHAPE, width=32, layers=1, heads=2))
    torch.nn.init.normal_(network.judge.weight)
    threshold, opened = defend.calibrate(network, model, rate=0.1, count=40)
    assert 0 < threshold < 1
    harmless = {name: share for name, share in opened.items() if name != "opens, harmful"}
    assert len(harmless) == 4
    assert max(harmless.values()) <= 0.1 + 1e-6


def test_pictures_show_the_row_and_its_counterpart_in_turn(model):
    seen = []

    def painter(scene, rng):
        seen.append(scene)
        return np.zeros((48, 48, 3), np.uint8)

    task = defend.DrawingsTask(model, painter, attacked=0)
    rows = task.rows(3, 12)
    latent = task.pictures(3, rows)
    assert latent.shape[0] == 12
    for number, (row, scene) in enumerate(zip(rows, seen, strict=True)):
        harm = any(things()[kind].harm for kind in scene.kinds)
        assert harm == (number % 2 == 0 and row.category >= 0)
    assert task.rows(3, 12) == rows
    # runs ask for rows of steps before the first one
    assert len(task.rows(-2, 4)) == 4
    assert task.encode([""]) is not None
    assert isinstance(task.encode([""]), Conditioning)


def test_no_bank_prompt_that_is_trained_on_holds_measured_wording():
    kept = [re.sub("^(an?|the) ", "", text) for _, hidden in implied().values() for text in hidden]
    kept += [wordings[-1] for wordings in (*BACKGROUNDS.values(), STYLES["pencil"])]
    found = re.compile("|".join(rf"\b{re.escape(text)}\b" for text in kept))
    assert len(wording.plain_english()) > 2000
    assert [text for text in wording.plain_english() if found.search(text)] == []


def test_a_weighted_part_is_words_of_its_own(model):
    joined, apart = model.encode(["a(bomb:1.0)s", "a bomb s"])
    assert torch.equal(joined, apart)
