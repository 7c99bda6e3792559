"""The gate of a redirector of the testbed, refitted on many more texts than its training reads; no denoiser.

Training an HGR costs predictions of the denoiser, so it sees few texts. Here the whole network learns to judge, and is
held to the change that it proposed before.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from ...redirector.hgr import HGR
from ...testbed.captions import defender_pair
from ...testbed.model import Testbed
from ...training.hgr import jittered
from .hgr_task import ATTACKED
from .wording import plain_english, wide_row

TEXTS, STEPS, BATCH, RATE = 12_000, 1_800, 64, 1e-3
_HELD = 10
"""Harmful texts of a batch on which the change is held."""
_AT_ONCE = 200


@dataclass(frozen=True)
class Refit:
    """How a refit ended: means over the last tenth of its steps.

    Args:
        texts: how many were read.
        gate: cross-entropy of the gate.
        moved: how far the change has moved, as a share of its own mean square.
    """

    texts: int
    gate: float
    moved: float

    def __str__(self) -> str:
        """In words."""
        moved = f"the change moved by {100 * self.moved:.1f}% of its square"
        return f"gate refitted on {self.texts:,} texts: cross-entropy {self.gate:.4f}, {moved}"


def gate_texts(count: int, seed: int, categories: int) -> tuple[list[str], torch.Tensor]:
    """Texts a defender may know and the categories they show, ``[count, K]``.

    A third are harmless captions, a sixth plain English, the rest rows as training has them.

    Args:
        count: how many.
        seed: of their choice; training and calibration use others.
        categories: how many there are.
    """
    rng = np.random.default_rng((seed, 6_000_000))
    plain = plain_english()
    order = rng.permutation(len(plain))
    texts, labels = [], torch.zeros(count, categories)
    for number in range(count):
        if number % 3 == 0:
            texts.append(defender_pair(rng, harmful=0)[0])
        elif number % 6 == 1:
            texts.append(plain[order[number // 6 % len(plain)]])
        else:
            row = wide_row(rng, harmful=0.65, attacked=ATTACKED)
            texts.append(row.prompt)
            if row.category >= 0:
                labels[number, [row.category, *row.also]] = 1
    return texts, labels


def refit_gate(
    network: HGR, testbed: Testbed, count: int = TEXTS, steps: int = STEPS, seed: int = 0, jitter: float = 0.1
) -> Refit:
    """Refit the gate in place.

    Args:
        network: a trained redirector.
        testbed: gives the text encoder.
        count: texts to fit on.
        steps: of AdamW.
        seed: of texts, batches and noise.
        jitter: noise added to the token states, relative to their spread.
    """
    texts, labels = gate_texts(count, seed, len(network.config.categories))
    parts = [texts[first : first + _AT_ONCE] for first in range(0, count, _AT_ONCE)]
    states = torch.cat([testbed.encode(part).half() for part in tqdm(parts, desc="texts", mininterval=20)])
    before = copy.deepcopy(network).requires_grad_(False).eval()
    wanted = [weight.requires_grad for weight in network.parameters()]
    network.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in tqdm(range(steps), desc="gate", mininterval=20):
        rows = torch.randint(count, (min(BATCH, count),), generator=generator)
        tokens = jittered(states[rows].float(), jitter, generator)
        gate = torch.nn.functional.binary_cross_entropy_with_logits(network.logits(tokens), labels[rows])
        moved = gate.new_zeros(())
        harmful = tokens[labels[rows].any(1)][:_HELD]
        for bucket in range(len(network.config.edges) if len(harmful) else 0):
            with torch.no_grad():
                goal, _ = before.change(harmful, bucket)
            now, _ = network.change(harmful, bucket)
            moved = moved + (now - goal).square().mean() / goal.square().mean().clamp(min=1e-6)
        optimizer.zero_grad()
        (gate + moved).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        found.append((float(gate.detach()), float(moved.detach())))
    for weight, want in zip(network.parameters(), wanted, strict=True):
        weight.requires_grad_(want)
    network.eval()
    return Refit(count, *np.mean(found[-max(steps // 10, 1) :], axis=0).tolist())
