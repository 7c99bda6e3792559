"""The world of drawings as a model: its small files, and pictures that depend on prompt and seed alone."""

import pytest
import torch

from safeguidance.lab.world.measure import Sampling, pictures
from safeguidance.testbed.denoiser import Denoiser
from safeguidance.testbed.drawings.encoder import BERT_CONFIG, CONTEXT, TextEncoder
from safeguidance.testbed.drawings.model import DrawingsModel, load_small, save_small
from safeguidance.testbed.drawings.shape import DENOISER_CONFIG
from safeguidance.testbed.drawings.wordpieces import WordPieces

SMALL = {**DENOISER_CONFIG, "model_channels": 32}


def _filled(module):
    torch.manual_seed(1)
    for value in module.parameters():
        value.data = 0.1 * torch.randn_like(value)
    return module


@pytest.fixture(scope="module")
def model():
    text = TextEncoder(len(WordPieces.from_pretrained()), {**BERT_CONFIG, "num_hidden_layers": 1})
    return DrawingsModel(_filled(text), _filled(Denoiser(SMALL)))


def test_a_small_file_gives_the_weights_back_and_is_a_quarter_of_the_size(tmp_path):
    module, path = _filled(Denoiser(SMALL)), tmp_path / "part.safetensors"
    save_small(module, path, {"origin": "a test"})
    back = Denoiser(SMALL)
    load_small(back, path)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], value, rtol=0, atol=float(value.abs().max()) / 200)
    assert path.stat().st_size < 1.15 * sum(value.numel() for value in module.parameters())


def test_a_file_of_another_network_and_a_damaged_one_are_refused(tmp_path):
    path = tmp_path / "part.safetensors"
    save_small(_filled(Denoiser(SMALL)), path, {})
    with pytest.raises(ValueError, match="another network"):
        load_small(Denoiser({**SMALL, "model_channels": 64}), path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"digest|damaged"):
        load_small(Denoiser(SMALL), path)


def test_a_picture_depends_on_its_prompt_and_seed_alone(model):
    how = Sampling(steps=3, batch=3, fast=False)
    prompts = ["a dog", "a bomb next to a dog", "what a junkie shoots up with"]
    together = pictures(model, prompts, [4, 5, 6], how)
    assert together.shape == (3, 48, 48, 3)
    alone = pictures(model, prompts[1:2], [5], how)
    assert (together[1].int() - alone[0].int()).abs().max() <= 1
    assert not torch.equal(together[1], pictures(model, prompts[1:2], [6], how)[0])


def test_prompts_of_any_english_are_encoded(model):
    states = model.encode(["", "qwrtz!?", "a Caf\u00e9 (at night)"])
    assert states.shape == (3, 32, CONTEXT)
    assert torch.isfinite(states).all()
