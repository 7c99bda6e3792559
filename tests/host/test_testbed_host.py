"""The testbed inside the host is the testbed alone: same text states, same predictions, same pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from safeguidance.testbed.denoiser import UNET_CONFIG, Denoiser
from safeguidance.testbed.latents import PATCH, preview_colours, to_latent
from safeguidance.testbed.model import LATENT_SHAPE
from safeguidance.testbed.sampler import SHIFT
from safeguidance.testbed.text_encoder import BERT_CONFIG, CONTEXT, TextEncoder, encode
from safeguidance.testbed.wordpieces import MAX_LENGTH, WordPieces
from tests.host.safecfg_graphs import KNIFE, encoded, ksample, part, world

pytestmark = pytest.mark.usefixtures("pack")


@pytest.fixture(scope="module")
def alone():
    return part("safeguidance.testbed.model").load_testbed()


TEXTS = ("", KNIFE, "a syringe next to a dog on the lawn", "an oxymetazoline blunderbuss, qwrtz!")


@pytest.mark.parametrize("text", TEXTS)
def test_text_states_agree(alone, text):
    ((tokens, extra),) = encoded(text)
    expected = alone.conditioning([text])
    torch.testing.assert_close(tokens, expected.tokens, rtol=0, atol=1e-4)
    assert extra["pooled_output"] is None
    assert expected.pooled is None


def test_padding_is_zero_and_hides_nothing_of_the_text():
    states = encoded("a dog")[0][0]
    words = len(WordPieces.from_pretrained().numbers("a dog"))
    assert states.shape == (1, MAX_LENGTH, CONTEXT)
    assert states[:, :words].abs().sum(dim=-1).min() > 0
    assert not states[:, words:].any()


def test_weights_and_long_prompts_work_as_in_the_host():
    assert encoded("a (kitchen:1.0) knife")[0][0].equal(encoded("a kitchen knife")[0][0])
    plain, heavy = encoded("a kitchen knife")[0][0], encoded("a (kitchen:1.3) knife")[0][0]
    empty = encoded("")[0][0]
    torch.testing.assert_close(heavy[0, 2], (plain[0, 2] - empty[0, 2]) * 1.3 + empty[0, 2])
    assert heavy[0, 3].equal(plain[0, 3])
    long = encoded("red " * 75)[0][0]
    assert long.shape == (1, 3 * MAX_LENGTH, CONTEXT)
    # every chunk starts anew, so a full one is what it is alone
    assert long[0, :MAX_LENGTH].equal(encoded("red " * (MAX_LENGTH - 2))[0][0][0])


def test_a_weighted_word_is_what_the_testbed_alone_makes_of_it(alone):
    text = "a (kitchen knife:0.6) on a meadow"
    torch.testing.assert_close(encoded(text)[0][0], alone.encode([text]), rtol=0, atol=1e-4)


def test_predictions_agree(alone):
    import comfy.model_management

    model = world()[0]
    comfy.model_management.load_models_gpu([model])
    x = torch.randn(2, *LATENT_SHAPE, generator=torch.manual_seed(1))
    sigma = torch.tensor([0.9, 0.3])
    tokens = encoded(KNIFE)[0][0].expand(2, -1, -1)
    with torch.inference_mode():
        ours = model.model.apply_model(x, sigma, c_crossattn=tokens)
        torch.testing.assert_close(ours, alone.predict(x, sigma, tokens), rtol=0, atol=1e-4)


def test_a_picture_agrees(alone):
    sampler, predictions = part("safeguidance.testbed.sampler"), part("safeguidance.predictions")
    prompt, empty = alone.encode([KNIFE]), alone.encode([""])

    def guided(x: torch.Tensor, sigma: torch.Tensor, step: int) -> torch.Tensor:
        both = alone.predict(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([prompt, empty]))
        return predictions.cfg(both[:1], both[1:], 4.0)

    noise = torch.randn((1, *LATENT_SHAPE), generator=torch.manual_seed(7), dtype=torch.float32)
    with torch.inference_mode():
        expected = sampler.euler(guided, noise, sampler.schedule(20))
    latent = {"samples": torch.zeros(1, *LATENT_SHAPE)}
    ours = ksample(world()[0], encoded(KNIFE), encoded(""), seed=7, steps=20, latent=latent)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


def test_the_stock_unet_and_bert_predict_what_ours_do_with_any_weights():
    """With random weights every part counts, also what training has left near zero."""
    module = part("nodes.host.testbed")
    torch.manual_seed(0)
    pieces = WordPieces.from_pretrained()
    core, text = (network.requires_grad_(False).eval() for network in (Denoiser(UNET_CONFIG), TextEncoder(len(pieces))))
    for value in core.parameters():
        value += 0.02 * torch.randn_like(value)
    for value in text.parameters():
        value.copy_(0.1 * torch.randn_like(value))
    model = module.testbed_model("Random", UNET_CONFIG, SHIFT, PATCH, core.state_dict(), *preview_colours())
    clip = module.testbed_clip(WordPieces, BERT_CONFIG, MAX_LENGTH, text.state_dict())
    for prompt in TEXTS:
        ((tokens, *_),) = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        torch.testing.assert_close(tokens, encode(text, pieces, [prompt]), rtol=1e-3, atol=1e-4)
    x, context, sigma = torch.randn(2, *LATENT_SHAPE), torch.randn(2, 32, CONTEXT), torch.tensor([0.9, 0.3])
    with torch.inference_mode():
        found = model.model.apply_model(x, sigma, c_crossattn=context)
        wanted = x - sigma[:, None, None, None] * core(x, 1000 * sigma, context)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_a_stock_graph(run_graph):
    graph = {
        "1": {"class_type": "SafeGuidance_LoadTestbed", "inputs": {}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": KNIFE}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 48, "height": 48, "batch_size": 2}},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
                "seed": 3,
                "steps": 3,
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "VAEEncode", "inputs": {"pixels": ["6", 0], "vae": ["1", 2]}},
        "8": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "testbed"}},
        "9": {"class_type": "SaveLatent", "inputs": {"samples": ["7", 0], "filename_prefix": "testbed"}},
    }
    result = run_graph(graph)
    latent, picture = result.value("5")["samples"], result.value("6")
    assert tuple(latent.shape) == (2, *LATENT_SHAPE)
    assert tuple(picture.shape) == (2, 48, 48, 3)
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert picture.std() > 0.05
    expected = to_latent(picture.movedim(-1, 1) * 2 - 1)
    torch.testing.assert_close(result.value("7")["samples"], expected, rtol=0, atol=1e-4)


def test_the_vae_goes_there_and_back():
    vae = world()[2]
    colours = torch.rand(1, 3, 6, 6, generator=torch.manual_seed(0))
    smooth = 1.6 * torch.nn.functional.interpolate(colours, 48, mode="bilinear") - 0.8
    latent = to_latent(smooth)
    with torch.inference_mode():
        picture = vae.decode(latent)
        back = vae.encode(picture)
    assert picture.shape == (1, 48, 48, 3)
    torch.testing.assert_close(back, latent, rtol=0, atol=1e-3)
    torch.testing.assert_close(picture.movedim(-1, 1) * 2 - 1, smooth, rtol=0, atol=0.1)


def test_the_preview_is_the_picture_in_a_quarter_of_its_size():
    import latent_preview

    model, _, vae = world()
    picture = torch.rand(1, 48, 48, 3, generator=torch.manual_seed(0))
    with torch.inference_mode():
        latent = vae.encode(picture)
    held = model.get_model_object("latent_format")
    previewer = latent_preview.Latent2RGBPreviewer(held.latent_rgb_factors, held.latent_rgb_factors_bias)
    shown = previewer.decode_latent_to_preview(latent)
    assert shown.size == (12, 12)
    small = torch.nn.functional.avg_pool2d(picture.movedim(-1, 1), PATCH)[0].movedim(0, -1)
    seen = torch.from_numpy(np.array(shown)) / 255
    torch.testing.assert_close(seen, small, rtol=0, atol=1.5 / 255)


def test_family_and_weights():
    model = world()[0]
    assert part("nodes.host.patcher").model_family(model) == "SafeGuidanceTestbed"
    assert type(model.model.diffusion_model).__name__ == "UNetModel"
    assert type(world()[1].cond_stage_model.clip_l.transformer).__name__ == "BertModel"
    assert model.get_model_object("model_sampling").shift == SHIFT


@pytest.mark.parametrize("name", ["DENOISER_FILE", "TEXT_FILE"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_damaged_weights_are_named(tmp_path, monkeypatch, name, damage):
    from safetensors.torch import save_file

    module = part("nodes.testbed")
    for file in (module.DENOISER_FILE, module.TEXT_FILE):
        (tmp_path / file).symlink_to(module.WEIGHTS / file)
    path = tmp_path / getattr(module, name)
    path.unlink()
    if damage == "truncated":
        path.write_bytes((module.WEIGHTS / path.name).read_bytes()[:5000])
    if damage == "foreign":
        save_file({"something": torch.zeros(2)}, path)
    monkeypatch.setattr(module, "WEIGHTS", tmp_path)
    with pytest.raises(ValueError, match="Load Testbed, .*allowed: .*restore"):
        module.LoadTestbed.execute()


@pytest.mark.parametrize("part_of_it", ["denoiser", "text encoder"])
def test_weights_of_another_network_are_refused(part_of_it):
    module, model = part("nodes.host.testbed"), part("safeguidance.testbed.model")
    file, left_out = {
        "denoiser": (model.DENOISER_FILE, "middle_block."),
        "text encoder": (model.TEXT_FILE, "layer.5."),
    }[part_of_it]
    state = {name: value for name, value in model.read_state(model.WEIGHTS / file).items() if left_out not in name}
    with pytest.raises(ValueError, match=f"{part_of_it} weights: .*differences.*allowed.*restore"):
        if part_of_it == "denoiser":
            module.testbed_model("Part", UNET_CONFIG, SHIFT, PATCH, state, *preview_colours())
        else:
            module.testbed_clip(WordPieces, BERT_CONFIG, MAX_LENGTH, state)
