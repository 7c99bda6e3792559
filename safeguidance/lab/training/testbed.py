"""Training the testbed's denoiser (rectified flow, velocity prediction) over frozen text states."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from ...predictions import per_sample
from ...testbed.captions import Caption, attacked_caption
from ...testbed.denoiser import UNET_CONFIG, Denoiser
from ...testbed.latents import EDGE, from_bytes
from ...testbed.model import fill
from ...testbed.text_encoder import TextEncoder, encode
from ...testbed.wordpieces import MAX_LENGTH, WordPieces
from ...testbed.world import safe_scene, things
from ...training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from ..draw import Painter
from ..oracle import CELLS, IGNORED, goals
from ..precision import sixteen_bits

POOL = 4096
"""The latest captions, whose states are kept: encoding costs as much as a quarter of a training step."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run.

    Args:
        steps: training steps.
        batch: scenes a step.
        fresh: new captions a step; the others are drawn anew from the latest ``POOL``.
        rate: peak learning rate.
        seed: seed of data, weights and noise.
        drop: share of empty captions, which teaches the unconditional prediction.
        decay: decay of the running mean of the weights that is kept.
        doubt: share of captions of a stand-in whose scene shows its look-alike in the last tenth of the steps, 0..1.
            Captions of real pictures are never reliable, so real models are unsure at cfg 1 and guidance makes them
            sure; without doubt this one would draw a stand-in with certainty even unguided.
        reading: weight of a second task: to say from the features in the middle which thing is where. While everything
            is noise, the pixels' error barely tells words apart; this does. The idea is that of REPA (Yu et al. 2024,
            arXiv 2410.06940), with the scene itself in place of an encoder's features. Not measured alone.
        focus: how many times a place that shows a thing counts, compared with background.
    """

    steps: int = 24_000
    batch: int = 32
    fresh: int = 8
    rate: float = 8e-4
    seed: int = 0
    drop: float = 0.1
    decay: float = 0.9995
    doubt: float = 0.25
    reading: float = 0.1
    focus: float = 3.0

    def doubt_at(self, step: int) -> float:
        """Share of unreliable captions of stand-ins at a step."""
        return self.doubt if step >= 0.9 * self.steps else 0.0


def run_settings(config: TrainConfig) -> dict[str, Any]:
    """What a resumed run must agree with: everything but how long it is and how it ends."""
    return {name: value for name, value in asdict(config).items() if name not in ("steps", "doubt")}


class CaptionStates:
    """Captions by number with their states; number ``n`` depends on the seed and ``n`` only.

    Args:
        encoder: the frozen text encoder.
        pieces: its word pieces.
        seed: seed of the captions.
    """

    def __init__(self, encoder: TextEncoder, pieces: WordPieces, seed: int) -> None:
        self._encoder, self._pieces, self._seed = encoder, pieces, seed
        self._states: dict[int, torch.Tensor] = {}
        self.empty = encode(encoder, pieces, [""])[0]
        self.caption: Callable[[int], Caption] = lru_cache(maxsize=2 * POOL)(self._caption)

    def _caption(self, number: int) -> Caption:
        rng = np.random.default_rng((self._seed, 1, number))
        while True:
            found = attacked_caption(rng)
            if len(self._pieces.numbers(found.text)) <= MAX_LENGTH:
                return found

    def __call__(self, numbers: list[int]) -> torch.Tensor:
        """States ``[B, L, D]`` of captions."""
        missing = sorted({number for number in numbers if number not in self._states})
        if missing:
            with sixteen_bits(self.empty.device.type):
                found = encode(self._encoder, self._pieces, [self.caption(number).text for number in missing])
            self._states.update(zip(missing, found.bfloat16().clone(), strict=True))
        while len(self._states) > 2 * POOL:
            self._states.pop(next(iter(self._states)))
        return torch.stack([self._states[number] for number in numbers]).float()


def caption_numbers(config: TrainConfig, step: int, rng: np.random.Generator) -> list[int]:
    """Which captions a step trains on: its new ones and others from the latest ``POOL``."""
    end = (step + 1) * config.fresh
    first = max(0, end - POOL)
    return [*range(end - config.fresh, end), *rng.integers(first, end, size=config.batch - config.fresh).tolist()]


def rate_at(config: TrainConfig, step: int) -> float:
    """Learning rate: constant, then straight down over the last third, so that a run can be made longer until then."""
    return config.rate * min(1.0, (step + 1) / 200, max(0.02, (config.steps - step) / config.steps / 0.33))


def train(
    config: TrainConfig,
    painter: Painter,
    encoder: TextEncoder,
    pieces: WordPieces,
    folder: Path,
    minutes: float = 4,
    begin: Path | None = None,
) -> Denoiser:
    """Train where the encoder is, on a CPU or a GPU; a killed run goes on from its last checkpoint.

    Args:
        config: settings; ``steps`` and ``doubt`` may differ from those of the checkpoint.
        painter: draws the scenes.
        encoder: the text encoder, frozen.
        pieces: its word pieces.
        folder: where the checkpoint is.
        minutes: time between checkpoints.
        begin: weight file of a finished run to start from; take another seed, or it sees the same captions again.

    Returns:
        The running mean of the weights.

    Raises:
        SettingsMismatch: if ``folder`` holds a run of other settings.
        ValueError: if ``begin`` is no weight file of this network.
    """
    torch.manual_seed(config.seed)
    states = CaptionStates(encoder, pieces, config.seed)
    model = Denoiser(UNET_CONFIG)
    if begin is not None:
        fill(model, begin)
    model.to(states.empty.device)
    mean = copy.deepcopy(model).requires_grad_(False)
    reader = MiddleReader(model).to(states.empty.device)
    modules: dict[str, nn.Module] = {"model": model, "mean": mean, "reader": reader.layer}
    parameters = [*model.parameters(), *reader.layer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    settings = run_settings(config)
    start = load_checkpoint(folder, modules, optimizer, settings).step
    smooth, saved = 0.0, time.monotonic()
    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, desc="denoiser", mininterval=20)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(config, step)
        loss = _loss(model, reader, painter, states, config, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        _follow(mean, model, min(config.decay, (step + 1) / (step + 20)))
        smooth = loss.item() if step == start else 0.98 * smooth + 0.02 * loss.item()
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        if time.monotonic() - saved > 60 * minutes or step + 1 == config.steps:
            save_checkpoint(folder, modules, optimizer, settings, Checkpoint(step + 1, values={"loss": smooth}))
            saved = time.monotonic()
    return mean


def _loss(
    model: Denoiser, reader: MiddleReader, painter: Painter, states: CaptionStates, config: TrainConfig, step: int
) -> torch.Tensor:
    rng = np.random.default_rng((config.seed, 2, step))
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    numbers = caption_numbers(config, step, rng)
    scenes = [states.caption(number).scene for number in numbers]
    if doubt := config.doubt_at(step):
        scenes = [safe_scene(scene) if rng.random() < doubt else scene for scene in scenes]
    context = states(numbers)
    painted = [painter.paint(scene, rng) for scene in scenes]
    latent = from_bytes(torch.from_numpy(np.stack([picture for picture, _ in painted]))).to(context.device)
    kinds = goals(scenes, [boxes for _, boxes in painted])[0].to(context.device)
    dropped = torch.from_numpy(rng.random(len(numbers)) < config.drop).to(context.device)
    context = torch.where(dropped[:, None, None], states.empty.float(), context)
    noise = torch.randn(latent.shape, generator=generator).to(latent)
    # more mass at high noise, where the layout of a scene is decided
    sigma = torch.sigmoid(1.2 * torch.randn(len(latent), generator=generator) + 0.6).to(latent)
    level = per_sample(sigma, latent)
    with sixteen_bits(latent.device.type):
        velocity = model((1 - level) * latent + level * noise, 1000 * sigma, context)
        read = reader()
    weight = 1 + (config.focus - 1) * (kinds != len(things())).to(latent)[:, None]
    weight = functional.interpolate(weight, scale_factor=EDGE / CELLS)
    error: torch.Tensor = (weight / weight.mean() * (velocity.float() - noise + latent).square()).mean()
    return error + config.reading * functional.cross_entropy(read.float(), kinds, ignore_index=IGNORED)


class MiddleReader:
    """Reads which thing is where from the features in the middle of a denoiser; used in training only.

    Args:
        model: the denoiser.
    """

    def __init__(self, model: Denoiser) -> None:
        self.layer = nn.Conv2d(UNET_CONFIG["model_channels"] * UNET_CONFIG["channel_mult"][-1], len(things()) + 1, 1)
        self._features = torch.empty(0)
        model.middle_block[-1].register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        self._features = output

    def to(self, device: torch.device) -> MiddleReader:
        """Move its layer."""
        self.layer.to(device)
        return self

    def __call__(self) -> torch.Tensor:
        """Logits ``[B, N + 1, 6, 6]`` for the latest prediction of the denoiser."""
        logits: torch.Tensor = self.layer(self._features)
        return logits


@torch.no_grad()
def _follow(mean: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(mean.parameters()), list(model.parameters()), 1 - decay)
