"""Pictures of captions by one method, and what the oracle reads in them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...testbed.captions import Caption
from ...testbed.latents import to_bytes
from ...testbed.model import LATENT_SHAPE, Testbed
from ...testbed.sampler import Guided, euler, schedule, seeded_noise
from ..oracle import Oracle, Reading
from .conditioning import Method, Setting
from .localisation import Watched
from .picture_cache import Stored, join
from .starts import Start

_BATCH = 50


@dataclass
class Sampled:
    """Pictures ``[N, 48, 48, 3]`` uint8 of one method and what the oracle reads in them.

    Where the method says what it changed, ``changes`` has it, ``[N, steps, 12, 12]``.
    """

    pictures: torch.Tensor
    readings: list[Reading]
    evals_per_step: float
    seconds: float
    changes: torch.Tensor | None = None


@torch.no_grad()
def sample(
    testbed: Testbed,
    oracle: Oracle,
    method: Method,
    captions: Sequence[Caption],
    setting: Setting,
    seed: int,
    known: Stored | None = None,
    start: Start | None = None,
) -> Sampled:
    """Sample pictures for captions; image ``i`` starts from noise of seed ``seed + i``.

    Args:
        testbed: the model.
        oracle: reads the pictures.
        method: how they are guided.
        captions: one per picture.
        setting: sampling settings.
        seed: of the first picture.
        known: pictures of the first captions, made earlier in the same way; only the others are made.
        start: what they begin from; None for pure noise.
    """
    if known is not None and len(known.pictures) > len(captions):
        part = slice(len(captions))
        changes = None if known.changes is None else known.changes[part]
        known = Stored(known.pictures[part], changes, known.evals_per_step, known.seconds)
    first = 0 if known is None else len(known.pictures)
    if first < len(captions):
        made = _make(testbed, method, captions, setting, seed, first, start)
        known = made if known is None else join(known, made)
    assert known is not None
    got = read(oracle, known.pictures, known.evals_per_step, known.seconds)
    got.changes = known.changes
    return got


def _make(
    testbed: Testbed,
    method: Method,
    captions: Sequence[Caption],
    setting: Setting,
    seed: int,
    begin: int,
    start: Start | None,
) -> Stored:
    rows = 0
    parts: list[torch.Tensor] = []
    changes: list[torch.Tensor] = []

    def count(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal rows
        rows += len(inputs[0])

    hook = testbed.denoiser.register_forward_pre_hook(count)
    begun = time.perf_counter()
    for first in range(begin, len(captions), _BATCH):
        part = captions[first : first + _BATCH]
        guided = method(testbed, setting, [c.text for c in part])
        noise = seeded_noise([seed + first + i for i in range(len(part))], LATENT_SHAPE)
        parts.append(to_bytes(_run(guided, noise, setting, start and start.rows(first, first + len(part)))))
        if isinstance(guided, Watched):
            changes.append(torch.stack(guided.changes, dim=1))
    seconds = time.perf_counter() - begun
    hook.remove()
    per_step = rows / ((len(captions) - begin) * setting.steps)
    return Stored(torch.cat(parts), torch.cat(changes) if changes else None, per_step, seconds)


def _run(guided: Guided, noise: torch.Tensor, setting: Setting, start: Start | None) -> torch.Tensor:
    """Latents of a run. One that starts in the middle of the schedule is told how far along it is."""
    if start is None:
        return euler(guided, noise, schedule(setting.steps))
    skipped = 1 - start.denoise

    def later(x: torch.Tensor, sigma: torch.Tensor, step: int) -> torch.Tensor:
        return guided(x, sigma, int(skipped * setting.steps + start.denoise * step))

    return euler(later, noise, start.sigmas(setting.steps), start.latent, start.mask)


@torch.no_grad()
def read(oracle: Oracle, pictures: torch.Tensor, evals_per_step: float = 0.0, seconds: float = 0.0) -> Sampled:
    """What the oracle sees in pictures ``[N, 48, 48, 3]`` uint8, however they were made."""
    readings = [r for p in pictures.split(250) for r in oracle.read(p)]
    return Sampled(pictures, readings, evals_per_step, seconds)
