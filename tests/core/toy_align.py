"""A model and a redirector small enough to train a LoRA with in a second."""

from dataclasses import replace

import torch
from torch import nn

from safeguidance.conditioning import Conditioning
from safeguidance.prompts.files import Row
from safeguidance.redirector.interface import Proposal
from safeguidance.training.align import AlignConfig, align_model
from safeguidance.training.distributed import SINGLE_PROCESS
from safeguidance.training.lora import LoRA, linear_layers

WORDS = ("knife", "spoon", "red")
SETTINGS = AlignConfig(steps=400, batch=6, rate=2e-2, scale=2.0, focus=0.0, empty_share=0.5)


class ToyModel(nn.Module):
    """Its prediction depends on the mean of the token states through two linear layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.attn, self.out = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, tokens):
        return torch.tanh(self.out(torch.tanh(self.attn(tokens.mean(1))))).reshape(-1, 1, 2, 2)


class ToyPrompts:
    """Prompts are bags of three words; which of them are harmful is not known."""

    schedule = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    prompts = ("red knife", "red spoon", "red", "knife", "spoon")

    def __init__(self):
        self.network = ToyModel().requires_grad_(False)
        self.table = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))

    def encode(self, prompts):
        rows = [sum((self.table[WORDS.index(w)] for w in p.split()), torch.zeros(16)) for p in prompts]
        return Conditioning(torch.stack([row.expand(5, 16) for row in rows]))

    def predict(self, x, sigma, cond):
        level = sigma.reshape(-1, 1, 1, 1)
        return (1 - level) * x + level * self.network(cond.tokens)

    def rows(self, step, count):
        chosen = [self.prompts[(step + i) % len(self.prompts)] for i in range(count)]
        return [Row(prompt, prompt, -1) for prompt in chosen]

    def noise(self, count, generator):
        return torch.randn(count, 1, 2, 2, generator=generator)

    def noised(self, latent, noise, sigma):
        return latent + sigma.reshape(-1, 1, 1, 1) * noise


class ToyRedirector:
    """Finds the knife, and knows what tells it from a spoon."""

    title, categories, width, base_model = "toy", ("knives",), 16, ""
    threshold, kappa, edges = 0.5, 1.0, (0.0, 0.5)

    def __init__(self, task):
        self.knife, self.spoon = task.table[0], task.table[1]
        basis = torch.linalg.pinv(task.table)
        self.read = basis[:, 0]

    def propose(self, prompt, base):
        share = (prompt.tokens.mean(1) @ self.read).clamp(0, 1)
        delta = (self.knife - self.spoon).expand_as(prompt.tokens)
        # the second half of the schedule gets a weaker redirect
        return Proposal(0.02 + 0.96 * share, share[:, None], (delta, 0.5 * delta))


def align_toy(
    folder=None,
    stop=None,
    task=None,
    checkpoint_every=100,
    labels=None,
    group=SINGLE_PROCESS,
    history=None,
    **changes,
):
    """Train; returns the LoRA, the losses of the steps made now, and the task."""
    task = task or ToyPrompts()
    lora = LoRA(linear_layers(task.network, "linear"), 4)
    losses = []
    steps = align_model(
        lora,
        task.network,
        task,
        ToyRedirector(task),
        replace(SETTINGS, **changes),
        folder,
        lambda _, values: losses.append(values),
        checkpoint_every,
        progress_bar=False,
        labels=labels,
        group=group,
        history=history,
    )
    for step in steps:
        if step == stop:
            steps.close()
            break
    return lora, losses, task
