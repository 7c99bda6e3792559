"""MODEL and VAE of the world of drawings: the host's own classes give what the core gives."""

from __future__ import annotations

import importlib

import pytest
import torch

from safeguidance.headless import boot
from safeguidance.testbed.denoiser import Denoiser
from safeguidance.testbed.drawings.latents import LATENT_CHANNELS, PATCH, preview_colours, to_image, to_latent
from safeguidance.testbed.drawings.shape import DENOISER_CONFIG, LATENT_SHAPE
from safeguidance.testbed.sampler import SHIFT


@pytest.fixture(scope="module")
def testbed():
    return importlib.import_module(".nodes.host.testbed", boot.pack_module().__name__)


def test_the_stock_unet_predicts_what_the_core_predicts(testbed):
    torch.manual_seed(0)
    core = Denoiser(DENOISER_CONFIG).requires_grad_(False).eval()
    for value in core.parameters():
        value += 0.02 * torch.randn_like(value)
    colours, grey = preview_colours()
    patcher = testbed.testbed_model("Drawings", DENOISER_CONFIG, SHIFT, PATCH, core.state_dict(), colours, grey)
    assert patcher.model.latent_format.latent_channels == LATENT_CHANNELS
    x, context, sigma = torch.randn(2, *LATENT_SHAPE), torch.randn(2, 32, 384), torch.tensor([0.9, 0.3])
    found = patcher.model.apply_model(x, sigma, c_crossattn=context)
    wanted = x - sigma[:, None, None, None] * core(x, 1000 * sigma, context)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_a_preview_has_the_mean_colour_of_each_block(testbed):
    colours, grey = preview_colours()
    picture = torch.rand(1, 3, 48, 48) * 2 - 1
    preview = torch.nn.functional.linear(to_latent(picture).movedim(1, -1), torch.tensor(colours).T, torch.tensor(grey))
    wanted = torch.nn.functional.avg_pool2d(picture, PATCH).movedim(1, -1)
    torch.testing.assert_close(preview, wanted, rtol=1e-3, atol=1e-3)


def test_the_vae_goes_there_and_back(testbed):
    vae = testbed.testbed_vae(to_latent, to_image, PATCH, LATENT_CHANNELS)
    latent = to_latent(torch.nn.functional.interpolate(torch.rand(1, 3, 6, 6), 48, mode="bilinear") * 2 - 1)
    picture = vae.decode(latent)
    assert picture.shape == (1, 48, 48, 3)
    torch.testing.assert_close(vae.encode(picture), latent, rtol=1e-2, atol=5e-2)
