"""The testbed inside the host is the testbed alone: same text states, same predictions, same pictures."""

from __future__ import annotations

import pytest
import torch

from tests.host.safecfg_graphs import KNIFE, encoded, ksample, part, world

pytestmark = pytest.mark.usefixtures("pack")


@pytest.fixture(scope="module")
def alone():
    return part("safeguidance.testbed.model").load_testbed()


TEXTS = ("", KNIFE, "a small blue spoon right , in the rain", "nothing known heere")


@pytest.mark.parametrize("text", TEXTS)
def test_text_states_agree(alone, text):
    tokens, extra = encoded(text)[0]
    expected, pooled = alone.encode_pooled([text])
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(extra["pooled_output"], pooled, rtol=0, atol=1e-4)


def test_weights_and_long_prompts_work_as_in_the_host():
    assert encoded("a (red:1.0) knife")[0][0].equal(encoded("a red knife")[0][0])
    plain, heavy = encoded("a red knife")[0][0], encoded("a (red:1.3) knife")[0][0]
    empty = encoded("")[0][0]
    torch.testing.assert_close(heavy[0, 2], (plain[0, 2] - empty[0, 2]) * 1.3 + empty[0, 2])
    assert heavy[0, 3].equal(plain[0, 3])
    assert encoded("red " * 75)[0][0].shape == (1, 96, 128)


def test_predictions_agree(alone):
    import comfy.model_management
    import comfy.samplers

    model = world()[0]
    comfy.model_management.load_models_gpu([model])
    x = torch.randn(2, 12, 24, 24, generator=torch.manual_seed(1))
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

    noise = torch.randn((1, 12, 24, 24), generator=torch.manual_seed(7), dtype=torch.float32)
    with torch.inference_mode():
        expected = sampler.euler(guided, noise, sampler.schedule(20))
    latent = {"samples": torch.zeros(1, 12, 24, 24)}
    ours = ksample(world()[0], encoded(KNIFE), encoded(""), seed=7, steps=20, latent=latent)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


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
    assert tuple(latent.shape) == (2, 12, 24, 24)
    assert tuple(picture.shape) == (2, 48, 48, 3)
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert picture.std() > 0.05
    torch.testing.assert_close(result.value("7")["samples"], latent.clamp(-1, 1), rtol=0, atol=1e-5)


def test_the_preview_is_the_picture_in_half_size():
    import latent_preview

    model, _, vae = world()
    picture = torch.rand(1, 48, 48, 3, generator=torch.manual_seed(0))
    with torch.inference_mode():
        latent = vae.encode(picture)
    previewer = latent_preview.Latent2RGBPreviewer(model.get_model_object("latent_format").latent_rgb_factors)
    shown = previewer.decode_latent_to_preview(latent)
    assert shown.size == (24, 24)
    small = torch.nn.functional.avg_pool2d(picture.movedim(-1, 1), 2)[0].movedim(0, -1)
    seen = torch.tensor(list(shown.getdata())).reshape(24, 24, 3) / 255
    torch.testing.assert_close(seen, small, rtol=0, atol=1.5 / 255)


def test_family_and_weights():
    model = world()[0]
    assert part("nodes.host.patcher").model_family(model) == "SafeGuidanceTestbed"
    assert type(model.model.diffusion_model).__name__ == "UNetModel"
    sampling = model.get_model_object("model_sampling")
    assert sampling.shift == part("safeguidance.testbed.sampler").SHIFT


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_damaged_weights_are_named(tmp_path, monkeypatch, damage):
    from safetensors.torch import save_file

    module = part("nodes.testbed")
    path = tmp_path / module.DENOISER_FILE
    if damage == "truncated":
        path.write_bytes((module.WEIGHTS / module.DENOISER_FILE).read_bytes()[:5000])
    if damage == "foreign":
        save_file({"something": torch.zeros(2)}, path)
    monkeypatch.setattr(module, "WEIGHTS", tmp_path)
    with pytest.raises(ValueError, match="Load Testbed, .*allowed: .*restore"):
        module.LoadTestbed.execute()
