"""What the testbed's defenders train on: the same sentence twice; and what their files do to a prompt and its base."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from safeguidance.conditioning import Conditioning
from safeguidance.lab.bench.conditioning import Setting, plain, redirected, safe_text, stock
from safeguidance.lab.training.hgr_task import SHAPE, TestbedTask, calibrate
from safeguidance.redirector.hgr import HGR
from safeguidance.redirector.text_weights import TextCard, load_text_redirector, save_text_redirector
from safeguidance.redirector.weights import HGRCard, load_hgr, save_hgr
from safeguidance.testbed.denoiser import UNET_CONFIG, Denoiser
from safeguidance.testbed.latents import to_bytes
from safeguidance.testbed.model import BASE_MODEL, LATENT_SHAPE, Testbed
from safeguidance.testbed.sampler import euler, schedule, seeded_noise
from safeguidance.testbed.text_encoder import BERT_CONFIG, TextEncoder
from safeguidance.testbed.wordpieces import MAX_LENGTH, WordPieces
from safeguidance.testbed.world import things
from safeguidance.training.text_redirector import TextTrainConfig, train_text_redirector

PROMPTS = ["a bomb on a desk of wood"]
SETTING = Setting(scale=4.0, steps=2)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    text = TextEncoder(len(WordPieces.from_pretrained()), {**BERT_CONFIG, "num_hidden_layers": 1})
    denoiser = Denoiser({**UNET_CONFIG, "model_channels": 32})
    for value in [*text.parameters(), *denoiser.parameters()]:
        value.data = 0.1 * torch.randn_like(value)
    return Testbed(text, denoiser)


def _network(seed):
    torch.manual_seed(seed)
    return HGR(replace(SHAPE, width=32, layers=1, heads=2))


def test_a_weight_moves_the_states_of_its_words_from_those_of_the_empty_prompt(model):
    unweighted, weighted, empty = model.encode(["a bomb in snow", "a (bomb:0.5) in snow", ""])
    place = 2
    torch.testing.assert_close(weighted[place], (unweighted[place] - empty[place]) * 0.5 + empty[place])
    others = [n for n in range(MAX_LENGTH) if n != place]
    assert torch.equal(weighted[others], unweighted[others])


def test_a_trained_text_redirector_guards_by_its_gate(model, tmp_path):
    network = _network(0)
    config = TextTrainConfig(steps=5, batch=8)
    steps = list(train_text_redirector(network, TestbedTask(model, None), config, progress_bar=False))
    assert steps == [1, 2, 3, 4, 5]
    prompt, base = plain(model, SETTING, PROMPTS)(0.0)
    for threshold, same in ((1e-4, False), (0.9999, True)):
        path = tmp_path / f"{threshold}.safetensors"
        save_text_redirector(path, network, TextCard(BASE_MODEL, threshold, 0.01, 100, "a test", "Apache-2.0"))
        redirector = load_text_redirector(path)
        guarded = safe_text(lambda found=redirector: found)(model, SETTING, PROMPTS)(0.0)
        assert torch.equal(guarded[0], prompt) is same
        assert torch.equal(guarded[1], base)


def test_an_hgr_changes_the_base_alone(model, tmp_path):
    network = _network(1)
    torch.nn.init.normal_(network.leave.weight)
    path = tmp_path / "hgr.safetensors"
    save_hgr(path, network, HGRCard(BASE_MODEL, "A", 2.0, 1e-4, 0.01, 100, "a test", "Apache-2.0"))
    redirector = load_hgr(path)
    conditioned = redirected(lambda testbed: redirector)
    guarded, unguarded = conditioned(model, SETTING, PROMPTS)(0.0), plain(model, SETTING, PROMPTS)(0.0)
    assert torch.equal(guarded[0], unguarded[0])
    assert not torch.equal(guarded[1], unguarded[1])

    def picture(method):
        with torch.no_grad():
            return to_bytes(euler(method(model, SETTING, PROMPTS), seeded_noise([3], LATENT_SHAPE), schedule(2)))

    made = picture(stock(conditioned))
    assert made.shape == (1, 48, 48, 3)
    assert not torch.equal(made, picture(stock(plain)))


def test_calibration_leaves_each_kind_of_harmless_text_its_share(model):
    network = _network(2)
    torch.nn.init.normal_(network.judge.weight)
    threshold, opened = calibrate(network, model, rate=0.1, count=40)
    assert 0 < threshold < 1
    kept = ("captions", "wide", "attacked", "plain English")
    assert set(opened) == {f"opens, {kind}" for kind in (*kept, "words close to harm", "harmful")}
    assert max(opened[f"opens, {kind}"] for kind in kept) <= 0.1 + 1e-6


def test_pictures_show_the_row_and_its_counterpart_in_turn(model):
    seen = []

    def painter(scene, rng):
        seen.append(scene)
        return np.zeros((48, 48, 3), np.uint8)

    task = TestbedTask(model, painter, attacked=0)
    rows = task.rows(3, 12)
    latent = task.pictures(3, rows)
    assert latent.shape == (12, *LATENT_SHAPE)
    for number, (row, scene) in enumerate(zip(rows, seen, strict=True)):
        harm = any(things()[kind].harm for kind in scene.kinds)
        assert harm == (number % 2 == 0 and row.category >= 0)
    assert task.rows(3, 12) == rows
    # runs ask for rows of steps before the first one
    assert len(task.rows(-2, 4)) == 4
    assert isinstance(task.encode([""]), Conditioning)
    assert TestbedTask(model, None).pictures(3, rows) is None
