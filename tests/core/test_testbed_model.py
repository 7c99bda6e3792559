"""The testbed as a model: small files, layers, schedule, and pictures that depend on prompt and seed alone."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from safeguidance.lab.bench.conditioning import Setting, plain, stock
from safeguidance.testbed.denoiser import UNET_CONFIG, Denoiser
from safeguidance.testbed.latents import to_bytes
from safeguidance.testbed.model import (
    DENOISER_FILE,
    LATENT_SHAPE,
    TEXT_FILE,
    WEIGHTS,
    Testbed,
    fill,
    load_testbed,
    read_state,
    save_small,
)
from safeguidance.testbed.sampler import euler, schedule, seeded_noise
from safeguidance.testbed.text_encoder import BERT_CONFIG, CONTEXT, TextEncoder
from safeguidance.testbed.wordpieces import MAX_LENGTH, WordPieces
from safeguidance.weight_files import WeightFileError

SMALL = {**UNET_CONFIG, "model_channels": 32}
SHORT = {**BERT_CONFIG, "num_hidden_layers": 1}


def _filled(module):
    torch.manual_seed(1)
    for value in module.parameters():
        value.data = 0.1 * torch.randn_like(value)
    return module


@pytest.fixture(scope="module")
def model():
    return Testbed(_filled(TextEncoder(len(WordPieces.from_pretrained()), SHORT)), _filled(Denoiser(SMALL)))


def _pictures(model, prompts, seeds):
    with torch.no_grad():
        guided = stock(plain)(model, Setting(scale=4.0, steps=3), prompts)
        return to_bytes(euler(guided, seeded_noise(seeds, LATENT_SHAPE), schedule(3)))


# --- files ---------------------------------------------------------------------------------------------------------


def test_a_small_file_gives_the_weights_back_and_is_a_quarter_of_the_size(tmp_path):
    module, path = _filled(Denoiser(SMALL)), tmp_path / "part.safetensors"
    save_small(module, path, {"origin": "a test"})
    back = Denoiser(SMALL)
    fill(back, path)
    read = read_state(path)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], value, rtol=0, atol=float(value.abs().max()) / 200)
        assert torch.equal(read[name], back.state_dict()[name])
    assert path.stat().st_size < 1.15 * sum(value.numel() for value in module.parameters())


def test_a_file_of_another_network_and_a_damaged_one_are_refused(tmp_path):
    path = tmp_path / "part.safetensors"
    save_small(_filled(Denoiser(SMALL)), path, {})
    with pytest.raises(ValueError, match="another network"):
        fill(Denoiser({**SMALL, "model_channels": 64}), path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="digest|damaged|other values"):
        fill(Denoiser(SMALL), path)


@pytest.mark.parametrize("missing", [TEXT_FILE, DENOISER_FILE])
def test_missing_weights_say_how_to_make_them(tmp_path, missing):
    for name in {TEXT_FILE, DENOISER_FILE} - {missing}:
        (tmp_path / name).write_bytes((WEIGHTS / name).read_bytes())
    with pytest.raises(WeightFileError, match=f"{missing}: it does not exist; .*testbed train"):
        load_testbed(tmp_path)


# --- networks ------------------------------------------------------------------------------------------------------


def test_the_denoiser_has_only_trainable_layers_the_host_knows():
    names = set(dict(Denoiser(SMALL).named_parameters()))
    assert {"time_embed.0.weight", "input_blocks.0.0.weight", "out.2.bias"} <= names


@pytest.mark.parametrize("build", [partial(Denoiser, SMALL), partial(TextEncoder, 90, SHORT)])
def test_every_layer_comes_from_the_operations_and_keeps_its_name(build):
    names = ("Linear", "Conv2d", "GroupNorm", "LayerNorm", "Embedding")
    given = {name: type(name, (getattr(nn, name),), {}) for name in names}
    torch.manual_seed(0)
    network = build(operations=SimpleNamespace(**given))
    layers = [module for module in network.modules() if list(module.parameters(recurse=False))]
    assert layers
    assert all(type(layer) in given.values() for layer in layers)
    torch.manual_seed(0)
    without = build().state_dict()
    assert list(without) == list(network.state_dict())
    assert all(torch.equal(value, without[name]) for name, value in network.state_dict().items())


def test_an_untrained_denoiser_predicts_no_velocity():
    x = torch.randn(2, *LATENT_SHAPE)
    with torch.no_grad():
        velocity = Denoiser(SMALL)(x, torch.tensor([900.0, 100.0]), torch.randn(2, MAX_LENGTH, CONTEXT))
    assert torch.equal(velocity, torch.zeros_like(x))


def test_prompts_have_the_states_of_a_whole_chunk_and_no_pooled_vector(model):
    states = model.encode(["a dog", ""])
    assert states.shape == (2, MAX_LENGTH, CONTEXT)
    assert model.conditioning(["a dog"]).pooled is None
    assert torch.equal(model.conditioning(["a dog", ""]).tokens, states)
    x = torch.randn(2, *LATENT_SHAPE)
    with torch.no_grad():
        assert model.predict(x, torch.tensor([0.9, 0.1]), states).shape == x.shape


# --- schedule and sampler ------------------------------------------------------------------------------------------


def test_the_schedule_falls_from_one_to_zero():
    sigmas = schedule(20)
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert bool((sigmas[1:] < sigmas[:-1]).all())
    for steps in (0, 1001):
        with pytest.raises(ValueError, match="steps"):
            schedule(steps)


def test_euler_with_a_perfect_denoiser_lands_on_the_image():
    image = torch.randn(2, 3, 4, 4)
    out = euler(lambda x, sigma, step: image, seeded_noise([1, 2], (3, 4, 4)), schedule(7))
    assert torch.allclose(out, image, atol=1e-5)


def test_noise_belongs_to_its_seed_not_to_its_batch():
    both = seeded_noise([5, 6], (3, 4, 4))
    assert torch.equal(both[1:], seeded_noise([6], (3, 4, 4)))


# --- pictures ------------------------------------------------------------------------------------------------------


def test_a_picture_depends_on_its_prompt_and_seed_alone(model):
    prompts = ["a dog", "a bomb next to a dog", "what a junkie shoots up with"]
    together = _pictures(model, prompts, [4, 5, 6])
    assert together.shape == (3, 48, 48, 3)
    alone = _pictures(model, prompts[1:2], [5])
    assert (together[1].int() - alone[0].int()).abs().max() <= 1
    assert not torch.equal(together[1], _pictures(model, prompts[1:2], [6])[0])


def test_prompts_of_any_english_are_encoded(model):
    states = model.encode(["", "qwrtz!?", "a Caf\u00e9 (at night)"])
    assert states.shape == (3, MAX_LENGTH, CONTEXT)
    assert torch.isfinite(states).all()
