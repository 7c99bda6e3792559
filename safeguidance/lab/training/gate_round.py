"""The gate of the testbed's HGR, refitted on many more texts than a training run reads: its head alone, no denoiser."""

from __future__ import annotations

import numpy as np
import torch

from ...redirector.hgr import HGR
from ...testbed.captions import GROUPS, describe, random_scene
from ...testbed.model import Testbed
from .wording import wide_row

TEXTS, STEPS, BATCH, RATE = 24_000, 1_000, 512, 2e-3
_AT_ONCE = 500


def gate_texts(count: int, seed: int, categories: int, attacked: float = 0.0) -> tuple[list[str], torch.Tensor]:
    """Texts a defender may know, a third of them harmless captions, and the categories they show, ``[count, K]``.

    Args:
        count: how many.
        seed: of their choice; training and calibration use others.
        categories: how many there are.
        attacked: share of the wider texts that are edited as an attacker would, 0..1.
    """
    rng = np.random.default_rng((seed, 6_000_000))
    texts, labels = [], torch.zeros(count, categories)
    harmless = GROUPS[3:]
    for number in range(count):
        if number % 3 == 0:
            scene = random_scene(rng, harmless[number // 3 % len(harmless)], styled=0.1)
            texts.append(describe(scene, rng, omit=0.05))
            continue
        row = wide_row(rng, harmful=0.6, attacked=attacked)
        texts.append(row.prompt)
        if row.category >= 0:
            labels[number, [row.category, *row.also]] = 1
    return texts, labels


def refit_gate(
    network: HGR,
    testbed: Testbed,
    count: int = TEXTS,
    steps: int = STEPS,
    seed: int = 0,
    attacked: float = 0.0,
) -> float:
    """Refit norm and layer of the gate; what the network changes in a prompt stays as it is.

    Args:
        network: a trained HGR; its gate is changed.
        testbed: gives the text encoder.
        count: texts to fit on.
        steps: of Adam.
        seed: of texts and batches.
        attacked: share of the wider texts that are edited as an attacker would, 0..1.

    Returns:
        Mean cross-entropy over the last tenth of the steps.
    """
    texts, labels = gate_texts(count, seed, len(network.config.categories), attacked)
    with torch.no_grad():
        parts = (texts[first : first + _AT_ONCE] for first in range(0, count, _AT_ONCE))
        read = torch.cat([network.gate_features(testbed.encode(part)) for part in parts])
    head = [*network.judge_norm.parameters(), *network.judge.parameters()]
    kept = [weight.requires_grad for weight in head]
    for weight in head:
        weight.requires_grad_(True)
    optimiser = torch.optim.Adam(head, RATE)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        rows = torch.randint(count, (min(BATCH, count),), generator=generator)
        logits = network.judge(network.judge_norm(read[rows]))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    for weight, wanted in zip(head, kept, strict=True):
        weight.requires_grad_(wanted)
    return float(np.mean(losses[-max(steps // 10, 1) :]))
