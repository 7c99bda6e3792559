"""A task small enough to train an HGR on in a second, and a painter that needs no artwork."""

from dataclasses import replace

import numpy as np
import torch

from safeguidance.conditioning import Conditioning
from safeguidance.redirector.hgr import HGR, HGRConfig
from safeguidance.training.hgr import HGRTrainConfig, Row, train_hgr

SHAPE = HGRConfig(16, ("knives", "drugs"), width=16, heads=2, layers=1, chunk=5)


class ToyTask:
    """A linear denoiser whose prompts are a bag of three words; "knife" is harmful, "spoon" its counterpart."""

    words = ("knife", "spoon", "red")
    schedule = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.table = torch.randn(len(self.words), 16, generator=generator)
        self.mix = torch.randn(16, 4, generator=generator)

    def encode(self, prompts):
        rows = [[sum((self.table[self.words.index(w)] for w in p.split()), torch.zeros(16))] * 5 for p in prompts]
        return Conditioning(torch.stack([torch.stack(row) for row in rows]))

    def predict(self, x, sigma, cond):
        shift = torch.tanh(0.2 * cond.tokens.mean(1) @ self.mix).reshape(-1, 1, 2, 2)
        return (1 - sigma.reshape(-1, 1, 1, 1)) * x + sigma.reshape(-1, 1, 1, 1) * shift

    def rows(self, step, count):
        kinds = [Row("red knife", "red spoon", 0), Row("spoon", "spoon", -1), Row("red", "red", -1)]
        return [kinds[(step + i) % 3] for i in range(count)]

    def pictures(self, step, rows):
        return None

    def noise(self, count, generator):
        return torch.randn(count, 1, 2, 2, generator=generator)

    def noised(self, latent, noise, sigma):
        return latent + sigma.reshape(-1, 1, 1, 1) * noise


# at a cfg of 3 the target lies where the toy denoiser can reach it
SETTINGS = HGRTrainConfig(steps=300, batch=6, text_batch=6, rate=3e-3, scale=3.0, jitter=0.0)


def toy_drawings():
    """Drawings of all things of the testbed: a square of a colour of its own each."""
    from safeguidance.lab.artwork import SIDE
    from safeguidance.testbed.world import things

    drawings = np.zeros((len(things()), SIDE, SIDE, 4), np.uint8)
    drawings[:, 8:-8, 8:-8, 3] = 255
    drawings[..., 0] = np.arange(len(things()))[:, None, None] * 2
    return drawings


def toy_painter():
    """A painter of them."""
    from safeguidance.lab.draw import Painter

    return Painter(toy_drawings())


def toy_network(shape=SHAPE):
    torch.manual_seed(0)
    return HGR(replace(shape, categories=("knives",)))


def train_toy(
    steps=SETTINGS.steps,
    folder=None,
    stop=None,
    task=None,
    shape=SHAPE,
    checkpoint_every=100,
    history=None,
    **changes,
):
    """Train; returns the network and the losses of the steps made now."""
    network, losses = toy_network(shape), []
    config = replace(SETTINGS, steps=steps, **changes)
    for step in train_hgr(
        network,
        task or ToyTask(),
        config,
        folder,
        lambda _, values: losses.append(values),
        checkpoint_every,
        progress_bar=False,
        history=history,
    ):
        if step == stop:
            break
    return network, losses
